package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// A load sends requests over connections that are kept, at a rate of its own
// that no slow answer holds back. A request that had to wait because the one
// before it on its connection was slow counts from when it was due.
type load struct {
	address, host, path string

	window atomic.Int32 // to which answers are counted; -1 for none
}

// connections is how many a load has.
const connections = 64

// run sends until ctx ends, and returns the latencies in milliseconds by window.
// A rate of 0 is as fast as answers come.
func (l *load) run(ctx context.Context, rate float64, windows int) ([][]float64, error) {
	all := make([][]float64, windows)
	var mu sync.Mutex
	var errs []error
	var wg sync.WaitGroup
	began := time.Now()
	for i := range connections {
		wg.Go(func() {
			got, err := l.connection(ctx, began, rate, i, windows)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				errs = append(errs, err)
			}
			for w := range got {
				all[w] = append(all[w], got[w]...)
			}
		})
	}
	wg.Wait()
	return all, errors.Join(errs...)
}

// connection sends every connections-th request.
func (l *load) connection(ctx context.Context, began time.Time, rate float64, i, windows int) ([][]float64, error) {
	c, err := new(net.Dialer).DialContext(ctx, "tcp", l.address)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	request := []byte("GET " + l.path + " HTTP/1.1\r\nHost: " + l.host + "\r\n\r\n")
	answers := bufio.NewReader(c)
	got := make([][]float64, windows)
	due := time.NewTimer(0)
	defer due.Stop()
	for n := 0; ctx.Err() == nil; n++ {
		start := time.Now()
		if rate > 0 {
			at := began.Add(time.Duration((float64(n)*connections + float64(i)) / rate * float64(time.Second)))
			if wait := at.Sub(start); wait > 0 {
				due.Reset(wait)
				select {
				case <-due.C:
				case <-ctx.Done():
					return got, nil
				}
				start = time.Now() // that a timer is late is not the router's doing
			} else {
				start = at
			}
		}
		window := l.window.Load()
		if _, err := c.Write(request); err != nil {
			return got, err
		}
		if err := readAnswer(answers); err != nil {
			return got, err
		}
		if window >= 0 && int(window) < windows {
			got[window] = append(got[window], ms(time.Since(start)))
		}
	}
	return got, nil
}

// readAnswer reads a 200 of a known length.
func readAnswer(r *bufio.Reader) error {
	length := -1
	for first := true; ; first = false {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return err
		}
		text := strings.TrimRight(string(line), "\r\n")
		if text == "" {
			break
		}
		if first && !strings.HasPrefix(text, "HTTP/1.1 200 ") {
			return fmt.Errorf("answered %q", text)
		}
		if name, value, _ := strings.Cut(text, ":"); strings.EqualFold(name, "Content-Length") {
			if length, err = strconv.Atoi(strings.TrimSpace(value)); err != nil {
				return err
			}
		}
	}
	if length < 0 {
		return errors.New("an answer without a length")
	}
	_, err := io.CopyN(io.Discard, r, int64(length))
	return err
}
