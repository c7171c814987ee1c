package main

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestMain lets the tests' own binary be the children of a run.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == "child" {
		if err := start(context.Background(), os.Args[1:]); err != nil {
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func TestParseStat(t *testing.T) {
	// A name with everything in it that could be taken for a field.
	stat := "4242 (etcd (x) 1 2) S 1 4242 4242 0 -1 4194560 16843 0 112 0 250 75 1 2 20 0 9 0 3003 748552192 6117 18446744073709551615 1 1 0 0 0 0 0 0 2143420159 0 0 0 17 1 0 0 0 0 0\n"
	u, err := parseStat([]byte(stat))
	if err != nil {
		t.Fatal(err)
	}
	if want := 3250 * time.Millisecond; u.CPU != want {
		t.Errorf("processor time %v, want %v: that of children does not count", u.CPU, want)
	}
	if want := 6117 * int64(os.Getpagesize()); u.RSS != want {
		t.Errorf("memory %d, want %d", u.RSS, want)
	}
	for _, bad := range []string{"", "1 etcd S", "1 (etcd) S 1 2", strings.Replace(stat, " 250 ", " x ", 1)} {
		if u, err := parseStat([]byte(bad)); err == nil {
			t.Errorf("%q: %+v and no error", bad, u)
		}
	}
}

func TestUsageOfItself(t *testing.T) {
	before, err := usageOf(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	for began := time.Now(); ; {
		after, err := usageOf(os.Getpid())
		if err != nil {
			t.Fatal(err)
		}
		if after.RSS < 1<<20 {
			t.Fatalf("this process has %d bytes of memory", after.RSS)
		}
		if after.CPU > before.CPU {
			return
		}
		if time.Since(began) > time.Minute {
			t.Fatalf("no processor time in %v of work", time.Since(began))
		}
	}
}

func TestParseMetrics(t *testing.T) {
	m, err := parseMetrics(strings.NewReader(`# HELP etcd_mvcc_put_total Total.
# TYPE etcd_mvcc_put_total counter
etcd_mvcc_put_total 17
grpc_server_handled_total{grpc_code="OK",grpc_method="Put"} 3
grpc_server_handled_total{grpc_code="OK",grpc_method="a } b"} 4
etcd_mvcc_db_total_size_in_bytes 2.4576e+04
`))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]float64{metricPuts: 17, metricCalls: 7, metricDatabase: 24576} {
		if m[name] != want {
			t.Errorf("%s is %v, want %v", name, m[name], want)
		}
	}
	if _, err := parseMetrics(strings.NewReader("x y z\n")); err == nil {
		t.Error("nonsense is no error")
	}
	if g := grown(metrics{"a": 5}, metrics{"a": 7}, "a"); g != 2 {
		t.Errorf("5 to 7 is %v more", g)
	}
	if g := grown(metrics{"a": 5}, metrics{"a": 3}, "a"); g != 3 {
		t.Errorf("a counter that began anew and is 3 grew by %v", g)
	}
}

func TestQuantile(t *testing.T) {
	var hundred []float64
	for i := range 100 {
		hundred = append(hundred, float64(100-i))
	}
	for q, want := range map[float64]float64{0: 1, 0.5: 50, 0.99: 99, 1: 100} {
		if got := quantile(hundred, q); got != want {
			t.Errorf("quantile %v of 1 to 100 is %v, want %v", q, got, want)
		}
	}
	if got := quantile(nil, 0.5); got != 0 {
		t.Errorf("of nothing: %v", got)
	}
	if !slices.IsSortedFunc(hundred, func(a, b float64) int { return int(b - a) }) {
		t.Error("what is asked for was sorted in place")
	}
	began := time.Unix(100, 0)
	p50, p99, last := spread(began, reached{began.Add(time.Second).UnixNano(), began.Add(3 * time.Second).UnixNano()})
	if p50 != 1000 || p99 != 3000 || last != 3000 {
		t.Errorf("half after %v ms, p99 %v, last %v", p50, p99, last)
	}
}

// sample is a report as a run makes it.
func sample() Report {
	r := Report{Go: "go", Began: time.Unix(0, 0), Members: 1, IdleFor: 10, AwayFor: 3}
	for _, n := range []int{50, 1000, 2000} {
		p := Phase{Seconds: 2, P50: 10, Last: float64(n), EtcdCPU: float64(n) / 1000, EtcdPeak: 50, EtcdMiB: 100, Puts: float64(n)}
		r.Sizes = append(r.Sizes, Size{Instances: n, Join: p, Load: p, Idle: p, Publish: p, Rollback: p, Outage: p, Leases: p, IdleMiB: 80})
	}
	return r
}

// TestPlotIsWellFormed reads the plot as XML and finds no coordinate that is
// no number or outside.
func TestPlotIsWellFormed(t *testing.T) {
	empty := sample()
	for i := range empty.Sizes {
		empty.Sizes[i] = Size{Instances: empty.Sizes[i].Instances, Idle: Phase{Seconds: 1}}
	}
	one := sample()
	one.Sizes = one.Sizes[:1]
	for name, r := range map[string]Report{"a run": sample(), "nothing measured": empty, "one size": one} {
		b := r.plot()
		texts := map[string]bool{}
		curves := 0
		for d := xml.NewDecoder(bytes.NewReader(b)); ; {
			tok, err := d.Token()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			switch tok := tok.(type) {
			case xml.StartElement:
				if tok.Name.Local == "polyline" {
					curves++
				}
			case xml.CharData:
				texts[string(tok)] = true
			}
		}
		if strings.Contains(string(b), "NaN") || strings.Contains(string(b), "Inf") || strings.Contains(string(b), `="-`) {
			t.Errorf("%s: a coordinate is no number, or outside", name)
		}
		for _, want := range []string{"instances", "etcd's processor time, % of one processor", "etcd's memory, MiB", "peak, publish"} {
			if !texts[want] {
				t.Errorf("%s: the plot does not say %q", name, want)
			}
		}
		if curves != 11 {
			t.Errorf("%s: %d curves, want 11", name, curves)
		}
	}
}

func TestNiceStep(t *testing.T) {
	for _, most := range []float64{0.013, 0.9, 1, 7, 10, 36.5, 99, 100, 101, 2000} {
		step := niceStep(most)
		if marks := most / step; marks < 2 || marks > 8 {
			t.Errorf("%v: %v marks, a step is %v", most, marks, step)
		}
		if f := step / math.Pow(10, math.Floor(math.Log10(step)+1e-9)); math.Abs(f-1) > 1e-6 && math.Abs(f-2) > 1e-6 && math.Abs(f-5) > 1e-6 {
			t.Errorf("%v: a step of %v", most, step)
		}
	}
}

// TestDocumentIsRegenerated: what people wrote around the tables stays, twice as well as once.
func TestDocumentIsRegenerated(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "scale.md")
	if err := sample().write(dir); err == nil {
		t.Error("there is no document, and no error")
	}
	if err := os.WriteFile(path, []byte("# Scale\n"+markBegin+"\nold\n"+markEnd+"\nthe plan\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var last []byte
	for range 2 {
		if err := sample().write(dir); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if last != nil && !bytes.Equal(last, b) {
			t.Errorf("written again it is another:\n%s\n%s", last, b)
		}
		last = b
	}
	text := string(last)
	if !strings.HasPrefix(text, "# Scale\n") || !strings.HasSuffix(text, "\nthe plan\n") || strings.Contains(text, "old") || !strings.Contains(text, "| 2,000 |") {
		t.Errorf("the document is now:\n%s", text)
	}
	var r Report
	b, err := os.ReadFile(filepath.Join(dir, "scale/scale.json"))
	if err == nil {
		err = json.Unmarshal(b, &r)
	}
	if err != nil || len(r.Sizes) != 3 || r.Sizes[2].Idle != sample().Sizes[2].Idle {
		t.Errorf("the JSON says %+v, %v", r, err)
	}
	if _, err := between([]byte("no marks"), "x"); err == nil {
		t.Error("a document without marks is no error")
	}
}

func TestBadFlags(t *testing.T) {
	for _, args := range [][]string{{"-n", "x"}, {"-n", "0"}, {"-n", "10000"}, {"-members", "0"}, {"-routes", "3"}, {"child", "x"}} {
		if err := start(t.Context(), args); err == nil {
			t.Errorf("%v: no error", args)
		}
	}
}

// TestWholeRun takes twenty real agents through everything. It fails when an
// instance does not come back, and holds what does not depend on the machine.
func TestWholeRun(t *testing.T) {
	if testing.Short() {
		t.Skip("not with -short: it takes some ten seconds")
	}
	var log bytes.Buffer
	o := options{sizes: []int{20}, members: 1, each: 10, modules: 4, routes: 40, idle: 500 * time.Millisecond, away: 500 * time.Millisecond}
	r, err := measureAll(t.Context(), o, &log)
	if err != nil {
		t.Fatalf("%v\n%s", err, log.String())
	}
	s := r.Sizes[0]
	if s.Instances != 20 || s.Processes != 2 {
		t.Errorf("%d instances in %d processes", s.Instances, s.Processes)
	}
	for name, p := range map[string]Phase{"join": s.Join, "load": s.Load, "publish": s.Publish, "rollback": s.Rollback, "outage": s.Outage, "leases": s.Leases} {
		if p.Seconds <= 0 || p.P50 <= 0 || p.Last < p.P99 || p.P99 < p.P50 || p.Last > 1000*p.Seconds+1 {
			t.Errorf("%s: %+v: want 0 < half ≤ p99 ≤ last ≤ all of it", name, p)
		}
		if p.Puts < 1 || p.EtcdMiB < 1 || p.Unanswered > 0 && name != "outage" {
			t.Errorf("%s: %+v: etcd did nothing, or did not answer", name, p)
		}
	}
	// Each joins by three writes at least, and says that it is ready by one.
	if s.Join.Puts < 3*20 || s.Publish.Puts < 2*20 || s.Leases.Puts < 3*20 {
		t.Errorf("puts: %v to join, %v to publish, %v to join again", s.Join.Puts, s.Publish.Puts, s.Leases.Puts)
	}
	if s.Commit <= 0 || s.Prepared <= 0 || s.StatusRows < 20 {
		t.Errorf("commit %v ms, prepared %v ms, routectl status has %d lines", s.Commit, s.Prepared, s.StatusRows)
	}
}
