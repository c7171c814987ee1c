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
	"time"
)

// A child is this program again, in a process of its own. It is asked by lines
// on its standard input, answers each by one line, and ends when that input
// does: with whoever started it, however that one ends.
type child struct {
	cmd     *exec.Cmd
	in      io.WriteCloser
	answers *bufio.Reader
	Address string // where it listens
}

// childKinds are what a child can be; each gets its specification as JSON, says
// hello with its address, and returns what answers questions.
func childKinds() map[string]func(context.Context, []byte) (*servant, error) {
	return map[string]func(context.Context, []byte) (*servant, error){
		"etcd":    serveEtcd,
		"front":   serveFront,
		"backend": serveBackend,
	}
}

// A servant is what a child does.
type servant struct {
	address string
	answer  func(ctx context.Context, question string) (string, error) // nil for no questions
	stop    func() error
}

// startChild starts a child and waits until it listens.
func (b *bench) startChild(ctx context.Context, kind string, spec any) (*child, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	text, err := json.Marshal(spec)
	if err != nil {
		return nil, err
	}
	c := &child{cmd: exec.Command(self, "child", kind, string(text))}
	c.cmd.Stderr = b.log
	c.cmd.SysProcAttr = tied()
	if c.in, err = c.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	c.answers = bufio.NewReader(out)
	if err := c.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", kind, err)
	}
	if c.Address, err = c.read(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("start %s: %w", kind, err), c.stop())
	}
	return c, nil
}

// ask sends a question and waits for the answer.
func (c *child) ask(ctx context.Context, question string) (string, error) {
	if _, err := io.WriteString(c.in, question+"\n"); err != nil {
		return "", fmt.Errorf("ask for %s: %w", question, err)
	}
	return c.read(ctx)
}

// askFor is ask with an answer in JSON.
func (c *child) askFor(ctx context.Context, question string, into any) error {
	text, err := c.ask(ctx, question)
	if err != nil {
		return err
	}
	return json.Unmarshal([]byte(text), into)
}

func (c *child) cpu(ctx context.Context) (d time.Duration, err error) {
	err = c.askFor(ctx, "cpu", &d)
	return d, err
}

func (c *child) read(ctx context.Context) (string, error) {
	// A child that does not answer is ended, which ends the read.
	stop := context.AfterFunc(ctx, func() { _ = c.cmd.Process.Kill() })
	defer stop()
	line, err := c.answers.ReadString('\n')
	if err != nil {
		return "", fmt.Errorf("process %d ended: %w", c.cmd.Process.Pid, err)
	}
	if wrong, is := strings.CutPrefix(line, "error: "); is {
		return "", errors.New(strings.TrimSpace(wrong))
	}
	return strings.TrimSpace(line), nil
}

// stop ends the child and waits for it.
func (c *child) stop() error {
	if c == nil {
		return nil
	}
	_ = c.in.Close()
	patience := time.AfterFunc(10*time.Second, func() { _ = c.cmd.Process.Kill() })
	defer patience.Stop()
	if err := c.cmd.Wait(); err != nil {
		return fmt.Errorf("process %d: %w", c.cmd.Process.Pid, err)
	}
	return nil
}

// runChild is the other side.
func runChild(ctx context.Context, args []string, in io.Reader, out io.Writer) (err error) {
	if len(args) != 2 || childKinds()[args[0]] == nil {
		return errors.New("child: for the bench itself")
	}
	s, err := childKinds()[args[0]](ctx, []byte(args[1]))
	if err != nil {
		fmt.Fprintf(out, "error: %s\n", oneLine(err))
		return err
	}
	defer func() { err = errors.Join(err, s.stop()) }()
	fmt.Fprintln(out, s.address)
	for questions := bufio.NewScanner(in); questions.Scan(); {
		answer, err := s.reply(ctx, questions.Text())
		if err != nil {
			answer = "error: " + oneLine(err)
		}
		fmt.Fprintln(out, answer)
	}
	return nil
}

func (s *servant) reply(ctx context.Context, question string) (string, error) {
	switch {
	case question == "cpu":
		return fmt.Sprint(int64(cpu())), nil
	case s.answer == nil:
		return "", fmt.Errorf("%s: nobody knows", question)
	default:
		return s.answer(ctx, question)
	}
}

func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }
