package agent

import (
	"os"
	"strings"
	"testing"
	"time"

	"routerd.dev/internal/store"
)

// most is the longest that jitter makes of a time.
func most(d time.Duration) time.Duration { return d + d/2 }

// The times that docs/operations.md promises are not below what the constants
// allow, and each is under 15 s.
func TestPromisedTimes(t *testing.T) {
	const probe = 500 * time.Millisecond // store's look at why a call failed
	silent := 2 * store.DefaultSilence
	read := store.ReadPatience + probe
	want := map[string][2]time.Duration{ // of the code; 0: not told by constants
		"etcd does not answer":                                {max(silent, most(store.DefaultReread)) + read, most(5*time.Second) + store.ReadPatience},
		"a watch is silent, etcd is well":                     {silent, store.ReadPatience},
		"a watch passes nothing on, and answers":              {most(store.DefaultReread), 0},
		"the watch hangs in the process":                      {heardWithin, store.ReadPatience},
		"renewals of the lease get no answer":                 {store.DefaultTTL / 2, 2 * store.DefaultTTL / 5},
		"the lease is gone":                                   {store.DefaultTTL, leaveTimeout + most(minBackoff)},
		"an etcd member hangs, or is not heard by the others": {0, 0},
		"what is committed cannot be served":                  {outAfter, most(soonRetry)},
		"pieces or states are damaged on disk":                {most(scrubEvery), longestCalm},
		"pieces are damaged in etcd":                          {0, most(soonRetry)},
		"the disk takes no writes":                            {longestCalm, tryDiskAgain},
		"a build hangs":                                       {(hangAfter + 1) * hangLook, 0},
		"the controller died or hangs":                        {store.DefaultTTL, 0},
	}
	b, err := os.ReadFile("../../docs/operations.md")
	must(t, err)
	_, section, ok := strings.Cut(string(b), "## Self-healing: detection and recovery\n")
	if !ok {
		t.Fatal("the section is gone")
	}
	section, _, _ = strings.Cut(section, "\n## ")
	seen := 0
	for l := range strings.Lines(section) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(l), "|"), "|")
		if len(cells) != 5 || strings.Contains(cells[0], "---") || strings.TrimSpace(cells[0]) == "fault" {
			continue
		}
		fault, _, _ := strings.Cut(strings.TrimSpace(cells[0]), ":")
		code, ok := want[fault]
		if !ok {
			t.Errorf("nothing is known of %q", fault)
			continue
		}
		seen++
		for n, cell := range []string{cells[2], cells[4]} {
			said, err := time.ParseDuration(strings.ReplaceAll(strings.TrimSpace(cell), " ", ""))
			if err != nil {
				t.Errorf("%s: %v", fault, err)
			}
			if said < code[n] || said >= 15*time.Second || code[n] > 0 && said > 2*code[n]+2*time.Second {
				t.Errorf("%s: promised %s, by the code it is %s, and it is to be under 15s", fault, said, code[n])
			}
		}
	}
	if seen != len(want) {
		t.Errorf("%d faults are promised, %d are known", seen, len(want))
	}
}
