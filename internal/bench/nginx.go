package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// An nginx is a master and its workers, with every file in a directory of its
// own.
type nginx struct {
	cmd     *exec.Cmd
	log     *bytes.Buffer // what it said; not to be read before it ended
	address string
}

// startNginx starts nginx with an http block and waits until it listens.
// ADDRESS in it stands for where to.
func (b *bench) startNginx(ctx context.Context, workers int, http string) (*nginx, error) {
	dir, err := os.MkdirTemp(b.dir, "nginx-")
	if err != nil {
		return nil, err
	}
	n := &nginx{log: new(bytes.Buffer)}
	if n.address, err = freeAddress(); err != nil {
		return nil, err
	}
	var conf strings.Builder
	if os.Getuid() == 0 {
		conf.WriteString("user root;\n") // or its workers could not read the directory
	}
	fmt.Fprintf(&conf, "daemon off;\nworker_processes %d;\npid nginx.pid;\nerror_log stderr error;\nworker_rlimit_nofile 4096;\nevents { worker_connections 2000; }\n", workers)
	fmt.Fprintf(&conf, "http {\naccess_log off;\nsendfile on;\ntcp_nopush on;\nkeepalive_requests 100000000;\nkeepalive_timeout 600s;\n")
	for _, temp := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
		fmt.Fprintf(&conf, "%s_temp_path %s;\n", temp, temp)
	}
	conf.WriteString(strings.ReplaceAll(http, "ADDRESS", n.address) + "}\n")
	file := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(file, []byte(conf.String()), 0o600); err != nil {
		return nil, err
	}
	n.cmd = exec.Command("nginx", "-p", dir, "-e", "stderr", "-c", file)
	n.cmd.Stderr, n.cmd.SysProcAttr = n.log, tied()
	if err := n.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start nginx: %w", err)
	}
	if err := awaitListener(ctx, n.address); err != nil {
		err = errors.Join(err, n.stop())
		return nil, fmt.Errorf("start nginx: %w: %s", err, n.log)
	}
	return n, nil
}

// stop ends master and workers.
func (n *nginx) stop() error {
	if n == nil {
		return nil
	}
	_ = n.cmd.Process.Signal(syscall.SIGTERM)
	patience := time.AfterFunc(10*time.Second, func() { _ = n.cmd.Process.Kill() })
	defer patience.Stop()
	if err := n.cmd.Wait(); err != nil {
		return fmt.Errorf("nginx: %w", err)
	}
	return nil
}

// cpu is the processor time of the workers, 0 where that cannot be told.
func (n *nginx) cpu(context.Context) (sum time.Duration, err error) {
	pid := n.cmd.Process.Pid
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return 0, nil
	}
	for worker := range strings.FieldsSeq(string(children)) {
		text, err := os.ReadFile("/proc/" + worker + "/schedstat")
		if err != nil {
			return 0, nil
		}
		nanos, _, _ := strings.Cut(string(text), " ")
		d, err := strconv.ParseInt(nanos, 10, 64)
		if err != nil {
			return 0, nil
		}
		sum += time.Duration(d)
	}
	return sum, nil
}

// freeAddress returns one on loopback that nobody listened on a moment ago.
func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

func awaitListener(ctx context.Context, address string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for {
		c, err := new(net.Dialer).DialContext(ctx, "tcp", address)
		if err == nil {
			return c.Close()
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// wrkResult is what one run of wrk found.
type wrkResult struct {
	rate     float64 // requests a second
	requests float64
}

// wrk asks for url as fast as it is answered, over 64 connections that are
// kept. Any answer but 2xx, and any broken connection, is an error.
func wrk(ctx context.Context, url, host string, seconds int) (r wrkResult, err error) {
	cmd := exec.CommandContext(ctx, "wrk", "-t2", "-c64", fmt.Sprintf("-d%ds", seconds), "-H", "Host: "+host, url)
	cmd.SysProcAttr = tied()
	out, err := cmd.CombinedOutput()
	if err != nil {
		return r, fmt.Errorf("wrk %s: %w: %s", url, err, out)
	}
	if bytes.Contains(out, []byte("Non-2xx")) || bytes.Contains(out, []byte("Socket errors")) {
		return r, fmt.Errorf("wrk %s: requests failed: %s", url, out)
	}
	number := func(pattern string) float64 {
		m := regexp.MustCompile(pattern).FindSubmatch(out)
		if m == nil {
			return math.NaN()
		}
		v, _ := strconv.ParseFloat(string(m[1]), 64) // the pattern is a number's
		return v
	}
	r = wrkResult{rate: number(`Requests/sec:\s+([\d.]+)`), requests: number(`(\d+) requests in`)}
	if math.IsNaN(r.rate) || !(r.requests > 0) {
		return r, fmt.Errorf("wrk %s said: %s", url, out)
	}
	return r, nil
}
