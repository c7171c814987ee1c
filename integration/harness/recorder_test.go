package harness

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"routerd.dev/integration/history"
)

// TestRecorderReadsAnswers: what an answer says of its revision in each place,
// and what is made of it.
func TestRecorderReadsAnswers(t *testing.T) {
	good := map[string]string{
		"Routerd-Instance": "a", "Routerd-Group": "g", "Routerd-Epoch": "3", "Routerd-Revision": "2", "Routerd-Route": "marked/own-7", "X-Mark": "7",
	}
	for name, c := range map[string]struct {
		field, value, body string
		want               history.Fault
	}{
		"good":               {"", "", "7 /own", history.FaultNone},
		"mixed body":         {"", "", "8 /own", history.FaultMixed},
		"mixed header":       {"X-Mark", "8", "7 /own", history.FaultMixed},
		"mixed route":        {"Routerd-Route", "marked/own-8", "7 /own", history.FaultMixed},
		"no epoch":           {"Routerd-Epoch", "", "7 /own", history.FaultFailed},
		"another instance":   {"Routerd-Instance", "b", "7 /own", history.FaultFailed},
		"another group":      {"Routerd-Group", "h", "7 /own", history.FaultFailed},
		"another path":       {"", "", "7 /other", history.FaultFailed},
		"another route":      {"Routerd-Route", "marked/echo-7", "7 /own", history.FaultFailed},
		"no number for mark": {"", "", "x /own", history.FaultFailed},
	} {
		t.Run(name, func(t *testing.T) {
			h := http.Header{}
			for k, v := range good {
				h.Set(k, v)
			}
			if c.field != "" {
				h.Set(c.field, c.value)
			}
			p := history.Response{Instance: "a", Group: "g", Route: "own"}
			readMarks(&p, "/own", h, c.body)
			if p.Fault != c.want || (p.Err == "") != (c.want == history.FaultNone) {
				t.Errorf("fault %d (%s), want %d", p.Fault, p.Err, c.want)
			}
			if c.want == history.FaultNone && (p.Epoch != 3 || p.Revision != 2 || p.Mark != 7) {
				t.Errorf("read %+v", p)
			}
		})
	}
}

// TestRecorderKeepsEverything: each answer is kept, in the order in which it
// came; a failure is excused only at an instance that the test has down.
func TestRecorderKeepsEverything(t *testing.T) {
	serve := func(name string) *Instance {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if name != "good" {
				http.Error(w, name, http.StatusNotFound)
				return
			}
			route, _, _ := strings.Cut(r.URL.Path[1:], "/")
			for k, v := range map[string]string{"Instance": name, "Group": "main", "Epoch": "1", "Revision": "1", "Route": "marked/" + route + "-1"} {
				w.Header().Set("Routerd-"+k, v)
			}
			w.Header().Set("X-Mark", "1")
			fmt.Fprintf(w, "1 %s", r.URL.Path)
		}))
		t.Cleanup(s.Close)
		addr := strings.TrimPrefix(s.URL, "http://")
		return &Instance{Instance: name, Group: "main", HTTP: addr, Admin: addr}
	}
	f := &Fleet{Instances: []*Instance{serve("good"), serve("down"), serve("bad")}}
	f.Instances[1].Down()
	r := NewRecorder(f, RecorderOptions{Rate: 1000})
	r.Start()
	Until(t, 30*time.Second, "enough was asked", func() error {
		if c := r.Counts(); c.Requests < 600 {
			return fmt.Errorf("%+v", c)
		}
		return nil
	})
	r.Stop()
	c, n := r.Counts(), 0
	var last time.Duration
	by := map[string]map[bool]int{}
	for p := range r.Answers() {
		n++
		if p.Got < last || p.Asked > p.Got {
			t.Fatalf("answer %d came at %v, the one before at %v", n, p.Got, last)
		}
		last = p.Got
		if by[p.Instance] == nil {
			by[p.Instance] = map[bool]int{}
		}
		by[p.Instance][p.Excused]++
		if lost := p.Fault == history.FaultNoRoute; lost != (p.Instance != "good") {
			t.Fatalf("%+v", p)
		}
	}
	if n != c.Requests || c.Excused != by["down"][true] || c.Failed != by["bad"][false] || by["bad"][true]+by["down"][false] > 0 || by["good"][false] == 0 {
		t.Errorf("%d answers, counted %+v, by instance and excuse %v", n, c, by)
	}
}
