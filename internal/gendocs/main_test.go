package main

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"routerd.dev/internal/daemon"
)

// TestPagesAreUpToDate fails when what is checked in is not what the code says.
func TestPagesAreUpToDate(t *testing.T) {
	pages, err := generate(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range pages {
		have, err := os.ReadFile(filepath.Join("..", "..", filepath.FromSlash(p.path)))
		if err != nil {
			t.Errorf("%v: run make docs", err)
			continue
		}
		if !bytes.Equal(have, p.data) {
			t.Errorf("%s is not what the code says: run make docs\n%s", p.path, cmp.Diff(string(have), string(p.data)))
		}
	}
}

func TestGeneratingTwiceGivesTheSameBytes(t *testing.T) {
	a, err := generate(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	b, err := generate(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for i := range a {
		if !bytes.Equal(a[i].data, b[i].data) {
			t.Errorf("%s differs from one run to the next", a[i].path)
		}
	}
}

// TestEveryMetricIsOnThePage runs a fleet, with a switch and a request, and
// looks for each metric that it shows.
func TestEveryMetricIsOnThePage(t *testing.T) {
	all, err := collect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	kinds := map[string]string{}
	for _, i := range all {
		if i.doc == "" {
			t.Errorf("%s has no description", i.name)
		}
		kinds[i.prometheus()] = i.kind
	}

	ctx, stop := context.WithCancel(t.Context())
	out, said := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		ended <- daemon.Dev(ctx, daemon.DevOptions{
			HTTP: "127.0.0.1:0", Admin: "127.0.0.1:0", Etcd: "127.0.0.1:0", Upstreams: "127.0.0.1:0", Instances: 1, LogLevel: "error",
		}, said)
		_ = said.Close()
	}()
	text := readUntil(t, out, "Ctrl-C")
	go func() { _, _ = io.Copy(io.Discard, out) }()
	defer func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	get(t, regexp.MustCompile(`front +(\S+)`).FindStringSubmatch(text)[1]+"/products/7")
	admin := regexp.MustCompile(`admin (\S+)`).FindStringSubmatch(text)[1]

	shown := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^# TYPE (routerd_\S+) (\S+)$`).FindAllStringSubmatch(get(t, admin+"/metrics"), -1) {
		shown[m[1]] = true
		if want := kinds[m[1]]; want != m[2] {
			t.Errorf("/metrics shows the %s %s; the page says %q", m[2], m[1], want)
		}
	}
	for _, name := range []string{"routerd_epoch", "routerd_requests_total", "routerd_controller_steps_total", "routerd_switches_total"} {
		if !shown[name] {
			t.Errorf("/metrics does not show %s", name)
		}
	}
}

func readUntil(t *testing.T, r io.Reader, mark string) string {
	t.Helper()
	var text strings.Builder
	buf := make([]byte, 4096)
	for !strings.Contains(text.String(), mark) {
		n, err := r.Read(buf)
		if err != nil {
			t.Fatalf("the fleet ended: %v\n%s", err, text.String())
		}
		text.Write(buf[:n])
	}
	return text.String()
}

func get(t *testing.T, url string) string {
	t.Helper()
	c := http.Client{Timeout: 10 * time.Second}
	resp, err := c.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}
