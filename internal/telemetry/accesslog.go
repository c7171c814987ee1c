package telemetry

import (
	"bytes"
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

	"go.opentelemetry.io/otel/trace"

	"routerd.dev/internal/engine"
)

// An AccessLog writes a JSON line for each request. Requests never wait for
// it: when the writer cannot keep up, lines are dropped and counted.
type AccessLog struct {
	path  string
	who   string // such as ,"group":"main","instance":"a", in every line
	log   *slog.Logger
	pool  sync.Pool     // of *[]byte, to build lines in
	wake  chan struct{} // there is enough to write at once
	stuck time.Duration // how long Run waits for a blocked writer once it is told to end

	dropped atomic.Int64
	ran     atomic.Bool

	mu     sync.Mutex
	lines  []byte // whole lines that wait for the writer
	closed bool

	// The writer's own.
	out    io.WriteCloser
	opened os.FileInfo // of out; nil for what cannot be renamed
	spare  []byte      // the memory of lines, used in turns
	torn   bool        // out ends within a line
	failed bool        // said already
}

const (
	accessBacklog = 16 << 20 // bytes that may wait for the writer
	accessBatch   = 64 << 10 // bytes that are written at once, or after accessFlush
	accessFlush   = time.Second
	accessStuck   = 2 * time.Second
)

// OpenAccessLog opens a file, to be appended to; it is opened again once it
// was renamed or removed. "-" is standard output. log is for the access log's
// own troubles; what who says, such as group and instance, stands on every line.
// Nothing is written before Run.
func OpenAccessLog(path string, log *slog.Logger, who ...slog.Attr) (*AccessLog, error) {
	if path == "-" {
		return newAccessLog(nopCloser{os.Stdout}, log, who...), nil
	}
	f, info, err := openLog(path)
	if err != nil {
		return nil, fmt.Errorf("open the access log: %w", err)
	}
	a := newAccessLog(f, log, who...)
	a.path, a.opened = path, info
	return a, nil
}

func newAccessLog(out io.WriteCloser, log *slog.Logger, who ...slog.Attr) *AccessLog {
	var constant []byte
	for _, w := range who {
		constant = appendText(constant, w.Key, w.Value.String())
	}
	return &AccessLog{
		out: out, who: string(constant), log: log,
		pool: sync.Pool{New: func() any { b := make([]byte, 0, 1024); return &b }},
		wake: make(chan struct{}, 1), stuck: accessStuck,
	}
}

func openLog(path string) (*os.File, os.FileInfo, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
	if err != nil {
		return nil, nil, err
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	if !info.Mode().IsRegular() {
		info = nil // a pipe or a terminal stays what it is
	}
	return f, info, nil
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

// Request implements engine.Observer.
func (a *AccessLog) Request(r *engine.Record) {
	b := a.pool.Get().(*[]byte)
	*b = a.appendRecord((*b)[:0], r)
	if !a.add(*b) {
		a.dropped.Add(1)
	}
	if cap(*b) <= accessBatch { // one endless path must not stay in memory
		a.pool.Put(b)
	}
}

// add queues a line; false when there is no room for it.
func (a *AccessLog) add(line []byte) bool {
	a.mu.Lock()
	room := !a.closed && len(a.lines)+len(line) <= accessBacklog
	if room {
		a.lines = append(a.lines, line...)
	}
	enough := len(a.lines) >= accessBatch
	a.mu.Unlock()
	if enough {
		select {
		case a.wake <- struct{}{}:
		default:
		}
	}
	return room
}

// Dropped is how many lines were not written: the writer was behind, it
// failed, or it had ended.
func (a *AccessLog) Dropped() int64 { return a.dropped.Load() }

// Run writes lines until ctx ends and then what is left, and closes the file.
// A writer that is blocked then is waited for no longer than two seconds. It is
// called once.
func (a *AccessLog) Run(ctx context.Context) error {
	a.ran.Store(true)
	ended := make(chan error, 1)
	go func() { ended <- a.write(ctx) }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	timeout := time.NewTimer(a.stuck)
	defer timeout.Stop()
	select {
	case err := <-ended:
		return err
	case <-timeout.C:
		// Nothing can end a write that the kernel holds; the process is about to.
		a.log.Warn("the access log's reader does not read: its last lines are lost", "path", a.path)
		return nil
	}
}

func (a *AccessLog) write(ctx context.Context) error {
	tick := time.NewTicker(accessFlush)
	defer tick.Stop()
	for {
		select {
		case <-a.wake:
			a.flush(false)
		case <-tick.C:
			a.flush(false)
			a.reopen()
		case <-ctx.Done():
			a.flush(true)
			if err := a.out.Close(); err != nil {
				return fmt.Errorf("close the access log: %w", err)
			}
			return nil
		}
	}
}

// flush writes what waits; last takes no more lines.
func (a *AccessLog) flush(last bool) {
	a.mu.Lock()
	lines := a.lines
	a.lines, a.closed = a.spare[:0], last
	a.mu.Unlock()
	a.spare = lines
	if len(lines) == 0 {
		return
	}
	if a.torn { // so that the half of a line spoils no other
		if _, err := a.out.Write([]byte{'\n'}); err != nil {
			a.lost(lines, err)
			return
		}
		a.torn = false
	}
	n, err := a.out.Write(lines)
	if err != nil {
		a.torn = n > 0 && lines[n-1] != '\n'
		a.lost(lines[n:], err)
		return
	}
	a.failed = false
}

// lost counts lines that could not be written, and says so once.
func (a *AccessLog) lost(lines []byte, err error) {
	a.dropped.Add(int64(bytes.Count(lines, []byte{'\n'})))
	if !a.failed {
		a.log.Error("write the access log", "path", a.path, "err", err)
	}
	a.failed = true
}

// reopen follows a log that was rotated: its path names another file now, or
// none.
func (a *AccessLog) reopen() {
	if a.opened == nil {
		return
	}
	if now, err := os.Stat(a.path); err == nil && os.SameFile(now, a.opened) {
		return
	}
	f, info, err := openLog(a.path)
	if err != nil {
		if !a.failed {
			a.log.Error("open the access log again, the file before stays in use", "err", err)
		}
		a.failed = true
		return
	}
	if err := a.out.Close(); err != nil {
		a.log.Warn("close the former access log", "err", err)
	}
	a.out, a.opened, a.torn = f, info, false
}

// Close closes a log that never ran; one that did closes itself.
func (a *AccessLog) Close() error {
	if a.ran.Load() {
		return nil
	}
	return a.out.Close()
}

func (a *AccessLog) appendRecord(b []byte, r *engine.Record) []byte {
	b = append(b, `{"time":"`...)
	b = r.Start.UTC().AppendFormat(b, "2006-01-02T15:04:05.000000Z")
	b = append(b, `","client":"`...)
	if r.Client.IsValid() {
		b = r.Client.AppendTo(b)
	}
	b = append(b, '"')
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
	b = append(b, a.who...)
	if r.Candidate {
		b = append(b, `,"candidate":true`...)
	}
	if r.Upstream != "" {
		b = appendText(b, "upstream", r.Upstream)
	}
	if r.Attempts > 1 {
		b = appendNumber(b, "attempts", int64(r.Attempts))
	}
	if r.Upgraded {
		b = append(b, `,"upgraded":true`...)
	}
	if r.Kind != "" {
		b = appendText(b, "failure", r.Kind)
	}
	if r.Err != nil {
		b = appendText(b, "error", r.Err.Error())
	}
	if r.Context != nil {
		if span := trace.SpanContextFromContext(r.Context); span.HasTraceID() {
			b = appendText(b, "trace", span.TraceID().String())
		}
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
