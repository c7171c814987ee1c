package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
)

// A child is this program again, in a process of its own. Each line on its
// standard input is a question, answered by one line; it ends with that input, so
// with whoever started it.
type child struct {
	kind string
	cmd  *exec.Cmd
	in   io.WriteCloser
	mu   sync.Mutex // one question at a time
	out  *bufio.Reader
}

// A question is what a child is asked, with what it needs to know for it.
type question struct {
	Ask  string          `json:"ask"`
	With json.RawMessage `json:"with,omitempty"`
}

// An answer is what came of it.
type answer struct {
	Error string          `json:"error,omitempty"`
	Value json.RawMessage `json:"value,omitempty"`
}

// A servant is what a child does. Its value is what the child says when it is up.
type servant struct {
	value  any
	answer func(ctx context.Context, ask string, with json.RawMessage) (any, error)
	stop   func()
}

// kinds are what a child can be.
func kinds() map[string]func(context.Context, json.RawMessage) (*servant, error) {
	return map[string]func(context.Context, json.RawMessage) (*servant, error){
		"etcd": serveEtcd, "agents": serveAgents, "controller": serveController,
	}
}

// startChild starts a child and waits until it is up; hello takes what it then says.
func startChild(ctx context.Context, log io.Writer, kind string, spec, hello any) (*child, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	c := &child{kind: kind, cmd: exec.Command(self, "child", kind)}
	c.cmd.Stderr = log
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // an interrupt of the terminal is its parent's to act on
	if c.in, err = c.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	c.out = bufio.NewReader(out)
	if err := c.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", kind, err)
	}
	if err := c.ask(ctx, "begin", spec, hello); err != nil {
		c.kill()
		return nil, err
	}
	return c, nil
}

func (c *child) pid() int { return c.cmd.Process.Pid }

// ask asks a question and waits for the answer, which goes into v unless that is nil.
func (c *child) ask(ctx context.Context, ask string, with, v any) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	what := fmt.Sprintf("%s, process %d: %s", c.kind, c.pid(), ask)
	w, err := json.Marshal(with)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	q, err := json.Marshal(question{Ask: ask, With: w})
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	// A child that does not answer in time is of no use any more; its end ends the read.
	defer context.AfterFunc(ctx, func() { _ = c.cmd.Process.Kill() })()
	if _, err := c.in.Write(append(q, '\n')); err != nil {
		return fmt.Errorf("%s: %w", what, errors.Join(err, ctx.Err()))
	}
	line, err := c.out.ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("%s: it ended: %w", what, errors.Join(err, ctx.Err()))
	}
	var a answer
	if err := json.Unmarshal(line, &a); err != nil {
		return fmt.Errorf("%s: %w: %.80q", what, err, line)
	}
	if a.Error != "" {
		return fmt.Errorf("%s: %s", what, a.Error)
	}
	if v == nil {
		return nil
	}
	return json.Unmarshal(a.Value, v)
}

// kill ends the child at once and waits for it.
func (c *child) kill() {
	if c == nil {
		return
	}
	_ = c.cmd.Process.Kill()
	_ = c.in.Close()
	_ = c.cmd.Wait()
}

// runChild is the other side.
func runChild(ctx context.Context, kind string, in io.Reader, out io.Writer) error {
	begin := kinds()[kind]
	if begin == nil {
		return fmt.Errorf("child %q: for this program itself", kind)
	}
	ctx, end := context.WithCancel(ctx)
	defer end()
	questions := make(chan question)
	var reading sync.WaitGroup
	defer reading.Wait()
	reading.Go(func() {
		defer end() // also while an answer is being thought about
		defer close(questions)
		lines := json.NewDecoder(in)
		for {
			var q question
			if lines.Decode(&q) != nil {
				return
			}
			questions <- q
		}
	})
	var s *servant
	for q := range questions {
		v, err := any(nil), error(nil)
		if s == nil {
			if s, err = begin(ctx, q.With); err == nil {
				v = s.value
				defer s.stop()
			}
		} else {
			v, err = s.answer(ctx, q.Ask, q.With)
		}
		var a answer
		if err == nil {
			a.Value, err = json.Marshal(v)
		}
		if err != nil {
			a = answer{Error: strings.ReplaceAll(err.Error(), "\n", "; ")}
		}
		b, err := json.Marshal(a)
		if err != nil {
			return err
		}
		if _, err := out.Write(append(b, '\n')); err != nil {
			return err
		}
	}
	return nil
}

func unknown(ask string) error { return fmt.Errorf("%s: nobody knows", ask) }
