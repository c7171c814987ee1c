package telemetry

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"routerd.dev/internal/engine"
)

// An AccessLog writes a JSON line for each request. Requests never wait for
// it: when the writer cannot keep up, lines are dropped and counted.
type AccessLog struct {
	lines   chan *[]byte
	pool    sync.Pool
	dropped atomic.Int64
	out     io.WriteCloser
	log     *slog.Logger
}

// backlog is how many lines may wait for the writer.
const backlog = 16 << 10

// OpenAccessLog opens the file, to be appended to; "-" is standard output.
// Nothing is written before Run.
func OpenAccessLog(path string, log *slog.Logger) (*AccessLog, error) {
	var out io.WriteCloser = nopCloser{os.Stdout}
	if path != "-" {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
		if err != nil {
			return nil, fmt.Errorf("open the access log: %w", err)
		}
		out = f
	}
	return &AccessLog{
		lines: make(chan *[]byte, backlog),
		pool:  sync.Pool{New: func() any { b := make([]byte, 0, 512); return &b }},
		out:   out, log: log,
	}, nil
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

// Request implements engine.Observer.
func (a *AccessLog) Request(r *engine.Record) {
	b := a.pool.Get().(*[]byte)
	*b = appendRecord((*b)[:0], r)
	select {
	case a.lines <- b:
	default:
		a.dropped.Add(1)
		a.pool.Put(b)
	}
}

// Dropped is how many lines were not written because the writer was behind.
func (a *AccessLog) Dropped() int64 { return a.dropped.Load() }

// Run writes lines until ctx ends and then what is left, and closes the file.
func (a *AccessLog) Run(ctx context.Context) error {
	const flushEvery = time.Second
	w := bufio.NewWriterSize(a.out, 64<<10)
	tick := time.NewTicker(flushEvery)
	defer tick.Stop()
	var failed error // said once, not once a line
	note := func(err error) {
		if err != nil && failed == nil {
			a.log.Error("write the access log", "err", err)
		}
		if failed = err; err != nil {
			w.Reset(a.out) // a bufio.Writer that failed once fails for ever
		}
	}
	write := func(b *[]byte) {
		_, err := w.Write(*b)
		a.pool.Put(b)
		note(err)
	}
	for {
		select {
		case b := <-a.lines:
			write(b)
		case <-tick.C:
			note(w.Flush())
		case <-ctx.Done():
			for {
				select {
				case b := <-a.lines:
					write(b)
					continue
				default:
				}
				note(w.Flush())
				if err := a.out.Close(); err != nil {
					return fmt.Errorf("close the access log: %w", err)
				}
				return nil
			}
		}
	}
}

func appendRecord(b []byte, r *engine.Record) []byte {
	b = append(b, `{"time":"`...)
	b = r.Start.UTC().AppendFormat(b, "2006-01-02T15:04:05.000000Z")
	b = append(b, '"')
	b = appendText(b, "client", r.Client.String())
	b = appendText(b, "method", r.Method)
	b = appendText(b, "scheme", r.Scheme)
	b = appendText(b, "host", r.Host)
	b = appendText(b, "path", r.Path)
	b = appendText(b, "proto", r.Proto)
	b = appendNumber(b, "status", int64(r.Status))
	b = appendNumber(b, "micros", r.Duration.Microseconds())
	b = appendNumber(b, "bytesIn", r.BytesIn)
	b = appendNumber(b, "bytesOut", r.BytesOut)
	b = appendText(b, "route", r.Route)
	b = appendNumber(b, "revision", r.Revision.Number)
	b = appendNumber(b, "epoch", r.Epoch)
	b = appendText(b, "group", r.Group)
	b = appendText(b, "instance", r.Instance)
	if r.Candidate {
		b = append(b, `,"candidate":true`...)
	}
	if r.Upstream != "" {
		b = appendText(b, "upstream", r.Upstream)
	}
	if r.Kind != "" {
		b = appendText(b, "failure", r.Kind)
	}
	if r.Err != nil {
		b = appendText(b, "error", r.Err.Error())
	}
	return append(b, '}', '\n')
}

func appendNumber(b []byte, key string, v int64) []byte {
	b = append(b, ',', '"')
	b = append(b, key...)
	b = append(b, '"', ':')
	return strconv.AppendInt(b, v, 10)
}

// appendText quotes as JSON does. What needs no escape, nearly everything, is
// copied as it is.
func appendText(b []byte, key, v string) []byte {
	b = append(b, ',', '"')
	b = append(b, key...)
	b = append(b, '"', ':')
	for i := range len(v) {
		if c := v[i]; c < ' ' || c == '"' || c == '\\' || c >= 0x7f {
			quoted, _ := json.Marshal(v) // a string always has a JSON form
			return append(b, quoted...)
		}
	}
	b = append(b, '"')
	b = append(b, v...)
	return append(b, '"')
}

// Observers tells each request to all of them; nil when there are none.
func Observers(all ...engine.Observer) engine.Observer {
	var os observers
	for _, o := range all {
		if o != nil {
			os = append(os, o)
		}
	}
	switch len(os) {
	case 0:
		return nil
	case 1:
		return os[0]
	}
	return os
}

type observers []engine.Observer

// Request implements engine.Observer.
func (os observers) Request(r *engine.Record) {
	for _, o := range os {
		o.Request(r)
	}
}
