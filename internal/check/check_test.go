package check

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"routerd.dev/internal/rollout"
)

// says serves one answer.
func says(t *testing.T, status int, body string) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		fmt.Fprint(w, body)
	}))
	t.Cleanup(s.Close)
	return s.URL
}

type want struct {
	value float64
	ok    bool
	err   string // a part of it
}

func (w want) of(t *testing.T, c rollout.Check) {
	t.Helper()
	c.Name = "x"
	v, ok, err := Ask(t.Context(), c)
	switch {
	case w.err == "" && err != nil:
		t.Errorf("error %v", err)
	case w.err != "" && (err == nil || !strings.Contains(err.Error(), w.err) || !strings.Contains(err.Error(), "check x")):
		t.Errorf("error %v, want %q", err, w.err)
	case v != w.value || ok != w.ok:
		t.Errorf("got %v, %v, want %v, %v", v, ok, w.value, w.ok)
	}
}

func TestWeb(t *testing.T) {
	for name, c := range map[string]struct {
		status      int
		body, field string
		want
	}{
		"number":        {200, `{"a":{"b":[0,{"c":2.5}]}}`, "a.b.1.c", want{2.5, true, ""}},
		"zero":          {200, `{"a":0}`, "a", want{0, true, ""}},
		"text":          {200, `{"a":"0.75"}`, "a", want{0.75, true, ""}},
		"true":          {200, `{"a":true}`, "a", want{1, true, ""}},
		"false":         {200, `{"a":false}`, "a", want{0, true, ""}},
		"null":          {200, `{"a":null}`, "a", want{0, false, ""}},
		"not a number":  {200, `{"a":"NaN"}`, "a", want{0, false, ""}},
		"infinite":      {200, `{"a":"+Inf"}`, "a", want{math.MaxFloat64, true, ""}},
		"large":         {200, `{"a":-1e999}`, "a", want{-math.MaxFloat64, true, ""}},
		"word":          {200, `{"a":"good"}`, "a", want{err: "not a number"}},
		"object":        {200, `{"a":{}}`, "a", want{err: "not a number"}},
		"no field":      {200, `{"a":{}}`, "a.b", want{err: `a has no field "b"`}},
		"no item":       {200, `[1]`, "1", want{err: "a list of 1"}},
		"below a value": {200, `{"a":1}`, "a.b", want{err: "neither"}},
		"not JSON":      {200, `<html>`, "a", want{err: "not JSON"}},
		"two values":    {200, `{"a":1}{"a":2}`, "a", want{err: "more than one"}},
		"failed":        {503, "no\n workers", "a", want{err: "answered 503: no workers"}},
		"status good":   {204, "", "", want{1, true, ""}},
		"status bad":    {500, "", "", want{0, true, ""}},
		"too much":      {200, `{"a":"` + strings.Repeat("x", MaxBody) + `"}`, "a", want{err: "more than"}},
	} {
		t.Run(name, func(t *testing.T) {
			c.of(t, rollout.Check{Web: &rollout.WebCheck{URL: says(t, c.status, c.body), Field: c.field}})
		})
	}
}

func TestPrometheus(t *testing.T) {
	vector := func(samples string) string {
		return `{"status":"success","data":{"resultType":"vector","result":[` + samples + `]}}`
	}
	for name, c := range map[string]struct {
		status int
		body   string
		want
	}{
		"sample":         {200, vector(`{"metric":{"job":"x"},"value":[1700000000.1,"0.25"]}`), want{0.25, true, ""}},
		"scalar":         {200, `{"status":"success","data":{"resultType":"scalar","result":[1,"3"]}}`, want{3, true, ""}},
		"empty":          {200, vector(``), want{0, false, ""}},
		"NaN":            {200, vector(`{"value":[1,"NaN"]}`), want{0, false, ""}},
		"infinite":       {200, vector(`{"value":[1,"+Inf"]}`), want{math.MaxFloat64, true, ""}},
		"several":        {200, vector(`{"value":[1,"1"]},{"value":[1,"2"]}`), want{err: "2 samples"}},
		"matrix":         {200, `{"status":"success","data":{"resultType":"matrix","result":[]}}`, want{err: "gives a matrix"}},
		"refused":        {400, `{"status":"error","errorType":"bad_data","error":"parse error"}`, want{err: "bad_data: parse error"}},
		"away":           {502, `bad gateway`, want{err: "answered 502: bad gateway"}},
		"something else": {200, `{"a":1}`, want{err: "answered 200"}},
		"a page":         {200, `<html>`, want{err: "not Prometheus's"}},
		"no sample":      {200, vector(`{}`), want{err: "not Prometheus's"}},
		"number as is":   {200, vector(`{"value":[1,2]}`), want{err: "not text"}},
	} {
		t.Run(name, func(t *testing.T) {
			c.of(t, rollout.Check{Prometheus: &rollout.PrometheusCheck{Address: says(t, c.status, c.body), Query: "up"}})
		})
	}
}

// TestRequests looks at what is sent.
func TestRequests(t *testing.T) {
	t.Setenv("ROUTERD_CHECK_TOKEN", "s3cret")
	t.Setenv("ROUTERD_ETCD_PASSWORD", "s3cret")
	var got *http.Request
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got = r
		fmt.Fprint(w, `{"status":"success","data":{"resultType":"scalar","result":[1,"3"]}}`)
	}))
	defer s.Close()
	headers := map[string]string{"Authorization": "env:ROUTERD_CHECK_TOKEN", "X-Plain": "p"}
	want{3, true, ""}.of(t, rollout.Check{Prometheus: &rollout.PrometheusCheck{
		Address: s.URL + "/prom/?tenant=a", Query: `sum(rate(x[1m])) + 1`, Headers: headers,
	}})
	if got.URL.Path != "/prom/api/v1/query" || got.URL.Query().Get("query") != `sum(rate(x[1m])) + 1` || got.URL.Query().Get("tenant") != "a" ||
		got.Header.Get("Authorization") != "s3cret" || got.Header.Get("X-Plain") != "p" {
		t.Errorf("sent %s %v", got.URL, got.Header)
	}
	want{1, true, ""}.of(t, rollout.Check{Web: &rollout.WebCheck{URL: s.URL, Method: "POST", Headers: map[string]string{"Host": "other"}}})
	if got.Method != "POST" || got.Host != "other" {
		t.Errorf("sent %s to %s", got.Method, got.Host)
	}
	got = nil
	for v, why := range map[string]string{
		"env:ROUTERD_ETCD_PASSWORD": "routerd's own",
		"env:NOBODY_SET_THIS":       "no environment variable",
	} {
		want{err: why}.of(t, rollout.Check{Web: &rollout.WebCheck{URL: s.URL, Headers: map[string]string{"X": v}}})
	}
	if got != nil {
		t.Error("it was asked without its header")
	}
	want{err: "asks nothing"}.of(t, rollout.Check{})
}

func TestRedirects(t *testing.T) {
	var seen int
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { seen++ }))
	defer other.Close()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/here":
			http.Redirect(w, r, "/there", http.StatusFound)
		case "/away":
			http.Redirect(w, r, other.URL, http.StatusFound)
		case "/loop":
			http.Redirect(w, r, "/loop", http.StatusFound)
		}
	}))
	defer s.Close()
	for path, w := range map[string]want{
		"/here": {1, true, ""},
		"/away": {err: "another host"},
		"/loop": {err: "redirected more than"},
	} {
		w.of(t, rollout.Check{Web: &rollout.WebCheck{URL: s.URL + path}})
	}
	if seen > 0 {
		t.Error("the other host was asked")
	}
}

// TestTimeLimit: neither a server that is silent nor one that never ends holds
// anybody up, and the error does not tell the address.
func TestTimeLimit(t *testing.T) {
	release := make(chan struct{})
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/begin" {
			fmt.Fprint(w, "{")
			_ = http.NewResponseController(w).Flush()
		}
		<-release
	}))
	defer s.Close()
	defer close(release)
	for _, path := range []string{"/silent", "/begin"} {
		c := rollout.Check{Name: "x", Timeout: rollout.Duration(50 * time.Millisecond), Web: &rollout.WebCheck{URL: s.URL + path + "?token=s3cret", Field: "a"}}
		_, _, err := Ask(t.Context(), c)
		if err == nil || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s: %v", path, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, _, err := Ask(ctx, rollout.Check{Web: &rollout.WebCheck{URL: s.URL}})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	s2 := httptest.NewServer(nil)
	s2.Close()
	_, _, err = Ask(t.Context(), rollout.Check{Web: &rollout.WebCheck{URL: s2.URL + "/?token=s3cret"}})
	if err == nil || strings.Contains(err.Error(), "s3cret") {
		t.Errorf("error %v", err)
	}
}

// TestCount holds the counters to what the rows of answers say.
func TestCount(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		low, high := 1.0, 2.0
		c := rollout.Check{Min: &low, Max: &high}
		var r rollout.CheckResult
		var row []string // answers so far, oldest first
		for i, kind := range rapid.SliceOf(rapid.SampledFrom([]string{"pass", "fail", "none", "error"})).Draw(t, "answers") {
			row = append(row, kind)
			at := time.Unix(int64(i), 0)
			switch kind {
			case "pass":
				r = Count(r, c, at, rapid.SampledFrom([]float64{1, 1.5, 2}).Draw(t, "v"), true, nil)
			case "fail":
				r = Count(r, c, at, rapid.SampledFrom([]float64{0.9, 2.1}).Draw(t, "v"), true, nil)
			case "none":
				r = Count(r, c, at, 0, false, nil)
			case "error":
				r = Count(r, c, at, 0, false, errors.New("away"))
			}
			want := rollout.CheckResult{Asked: at}
			failing, valued := true, true
			for j := len(row) - 1; j >= 0; j-- {
				switch k := row[j]; {
				case k == "pass":
					want.Passed++
					failing, valued = false, false
				case k == "fail" && failing:
					want.Failed++
					valued = false
				case k == "fail":
					valued = false
				case k == "none" && valued:
					want.Inconclusive++
				}
			}
			for j := len(row) - 1; j >= 0 && row[j] == "error"; j-- {
				want.Errors++
			}
			if got := (rollout.CheckResult{Asked: r.Asked, Passed: r.Passed, Failed: r.Failed, Errors: r.Errors, Inconclusive: r.Inconclusive}); got != want {
				t.Fatalf("after %v: %+v, want %+v", row, got, want)
			}
			if (r.Value != nil) != (kind == "pass" || kind == "fail") || (r.Error != "") != (kind == "error") {
				t.Fatalf("after %s: value %v, error %q", kind, r.Value, r.Error)
			}
		}
	})
	r := Count(rollout.CheckResult{}, rollout.Check{}, time.Time{}, 0, false, errors.New(strings.Repeat("x", 10_000)))
	if len(r.Error) > 600 {
		t.Errorf("error of %d bytes", len(r.Error))
	}
}
