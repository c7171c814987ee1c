package telemetry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"pgregory.net/rapid"

	"routerd.dev/internal/engine"
	"routerd.dev/internal/version"
)

func aRecord() *engine.Record {
	return &engine.Record{
		Context: context.Background(),
		Start:   time.Date(2026, 1, 2, 3, 4, 5, 678000, time.FixedZone("", 3600)), Duration: 1500 * time.Microsecond,
		Method: "GET", Scheme: "https", Host: "shop.example", Path: "/items/7", Proto: "HTTP/2.0",
		Client: netip.MustParseAddr("192.0.2.1"), Revision: version.Ref{Number: 4}, Route: "shop/item", Epoch: 9,
		Status: 200, BytesOut: 12, Upstream: "http://127.0.0.1:9001", Attempts: 1,
	}
}

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

func TestAccessLine(t *testing.T) {
	a := newAccessLog(nil, discard(), slog.String("group", "main"), slog.String("instance", "a"))
	r := aRecord()
	r.Kind, r.Err, r.Candidate, r.Attempts = "timeout", errors.New(`said "no"`), true, 2
	want := `{"time":"2026-01-02T02:04:05.000678Z","client":"192.0.2.1","method":"GET","scheme":"https","host":"shop.example","path":"/items/7","proto":"HTTP/2.0",` +
		`"status":200,"micros":1500,"bytesIn":0,"bytesOut":12,"route":"shop/item","revision":4,"epoch":9,"group":"main","instance":"a",` +
		`"candidate":true,"upstream":"http://127.0.0.1:9001","attempts":2,"failure":"timeout","error":"said \"no\""}` + "\n"
	if got := string(a.appendRecord(nil, r)); got != want {
		t.Errorf("got  %swant %s", got, want)
	}
}

// TestAccessLineIsJSON: whatever a client sends is one line, parses, and what is
// text comes out as it went in.
func TestAccessLineIsJSON(t *testing.T) {
	hostile := rapid.OneOf(
		rapid.String(),
		rapid.Map(rapid.SliceOf(rapid.Byte()), func(b []byte) string { return string(b) }),
		rapid.SampledFrom([]string{`"`, `\`, "\n", "\r\n{\"time\":\"x\"}", "\x00", "\x7f", "\u2028", "\xff\xfe", "</script>", strings.Repeat("/a", 40<<10)}),
	)
	a := newAccessLog(nil, discard(), slog.String("group", "main"), slog.String("instance", "a"))
	rapid.Check(t, func(t *rapid.T) {
		r := aRecord()
		r.Method, r.Host, r.Path = hostile.Draw(t, "method"), hostile.Draw(t, "host"), hostile.Draw(t, "path")
		r.Route, r.Upstream, r.Kind = hostile.Draw(t, "route"), hostile.Draw(t, "upstream"), hostile.Draw(t, "kind")
		r.Err = errors.New(hostile.Draw(t, "error"))
		if rapid.Bool().Draw(t, "no client") {
			r.Client = netip.Addr{}
		}
		line := a.appendRecord(nil, r)
		if bytes.Count(line, []byte{'\n'}) != 1 || line[len(line)-1] != '\n' {
			t.Fatalf("not one line: %q", line)
		}
		var got map[string]any
		if err := json.Unmarshal(line, &got); err != nil {
			t.Fatalf("%v: %q", err, line)
		}
		for key, want := range map[string]string{"method": r.Method, "host": r.Host, "path": r.Path, "error": r.Err.Error()} {
			if utf8.ValidString(want) && got[key] != want {
				t.Fatalf("%s: %q, want %q", key, got[key], want)
			}
		}
	})
}

// gate is a writer that blocks until it is opened.
type gate struct {
	open chan struct{}
	mu   sync.Mutex
	got  bytes.Buffer
}

func (g *gate) Write(b []byte) (int, error) {
	<-g.open
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.got.Write(b)
}

func (g *gate) Close() error { return nil }

func TestBlockedAccessLogDropsAndCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &gate{open: make(chan struct{})}
		a := newAccessLog(g, discard())
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- a.Run(ctx) }()
		r := aRecord()
		r.Path = "/" + strings.Repeat("x", 32<<10)
		const sent = 2000 // 64 MiB
		for range sent {
			a.Request(r) // never waits: in a bubble, that would end the test
		}
		synctest.Wait()
		dropped := a.Dropped()
		if dropped == 0 || dropped == sent {
			t.Errorf("%d of %d lines were dropped", dropped, sent)
		}
		a.mu.Lock()
		if len(a.lines) > accessBacklog {
			t.Errorf("%d bytes wait, want %d at most", len(a.lines), accessBacklog)
		}
		a.mu.Unlock()
		close(g.open)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if n := int64(bytes.Count(g.got.Bytes(), []byte{'\n'})); n+dropped != sent {
			t.Errorf("%d written and %d dropped of %d", n, dropped, sent)
		}
		a.Request(r)
		if a.Dropped() != dropped+1 {
			t.Error("a line after the end was not counted as dropped")
		}
	})
}

func TestBlockedAccessLogDoesNotHoldTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &gate{open: make(chan struct{})}
		var said bytes.Buffer
		a := newAccessLog(g, slog.New(slog.NewTextHandler(&said, nil)))
		a.Request(aRecord())
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := a.Run(ctx); err != nil {
			t.Error(err)
		}
		if !strings.Contains(said.String(), "does not read") {
			t.Errorf("it was not said: %q", said.String())
		}
		close(g.open)
	})
}

// flaky fails after it took some bytes, until it is mended.
type flaky struct {
	bytes.Buffer
	room int
}

func (f *flaky) Write(b []byte) (int, error) {
	if len(b) <= f.room {
		f.room -= len(b)
		return f.Buffer.Write(b)
	}
	n, _ := f.Buffer.Write(b[:f.room])
	f.room = 0
	return n, errors.New("no space left")
}

func (*flaky) Close() error { return nil }

func TestFullDiskSpoilsOneLineAndIsSaidOnce(t *testing.T) {
	out := &flaky{}
	var said bytes.Buffer
	a := newAccessLog(out, slog.New(slog.NewTextHandler(&said, nil)))
	line := len(a.appendRecord(nil, aRecord()))
	out.room = line + line/2
	for range 3 {
		a.Request(aRecord())
		a.flush(false)
	}
	if a.Dropped() != 2 || strings.Count(said.String(), "no space left") != 1 {
		t.Errorf("%d dropped, want 2; said: %s", a.Dropped(), said.String())
	}
	out.room = 1 << 20
	a.Request(aRecord())
	a.flush(true)
	lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
	if len(lines) != 3 || !json.Valid([]byte(lines[0])) || json.Valid([]byte(lines[1])) || !json.Valid([]byte(lines[2])) {
		t.Errorf("want a line, half a line and a line:\n%s", out.String())
	}
}

func TestAccessLogFollowsRotation(t *testing.T) {
	path := filepath.Join(t.TempDir(), "access.log")
	a, err := OpenAccessLog(path, discard())
	if err != nil {
		t.Fatal(err)
	}
	a.Request(aRecord())
	a.flush(false)
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	a.reopen()
	a.Request(aRecord())
	a.Request(aRecord())
	a.flush(true)
	if err := a.Close(); err != nil {
		t.Error(err)
	}
	for name, want := range map[string]int{path + ".1": 1, path: 2} {
		b, err := os.ReadFile(name)
		if n := bytes.Count(b, []byte{'\n'}); err != nil || n != want {
			t.Errorf("%s: %d lines, want %d (%v)", filepath.Base(name), n, want, err)
		}
	}
}

func BenchmarkAccessLog(b *testing.B) {
	a := newAccessLog(nopCloser{io.Discard}, discard(), slog.String("group", "main"), slog.String("instance", "a"))
	ctx, cancel := context.WithCancel(b.Context())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	r := aRecord()
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			a.Request(r)
		}
	})
	cancel()
	if err := <-done; err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(a.Dropped())/float64(b.N), "dropped/op")
}
