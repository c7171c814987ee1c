package main

import (
	"slices"
	"time"

	"routerd.dev/internal/rollout"
	"routerd.dev/internal/version"
)

// A trip is one switch of a fleet, as seen from outside of it: when it was
// asked for, what the controller wrote when, and when each instance swapped.
type trip struct {
	to      version.Digest
	missing int           // instances that have not swapped yet
	done    chan struct{} // closed when none is missing

	began, published     time.Time // the publisher's call, and its return
	askedFirst, askedAll write     // the prepares; zero when there was none
	commit               write
	instant              time.Time // that the commit named
	swaps                []time.Time
	looks                []float64 // how long the controller's reads took, in ms
	lost                 int       // writes of the controller that came too late

	// Processor time of this process.
	cpuAtBegin, cpuAtPublished, cpuAtCommit, cpuAtLast time.Duration
}

// A write is one transaction of the controller.
type write struct{ began, ended time.Time }

func (t *trip) last() time.Time  { return slices.MaxFunc(t.swaps, time.Time.Compare) }
func (t *trip) first() time.Time { return slices.MinFunc(t.swaps, time.Time.Compare) }

// onTrip runs do on the trip under way, if there is one.
func (f *fleet) onTrip(do func(*trip)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.trip != nil {
		do(f.trip)
	}
}

func (f *fleet) swapped(to version.Digest, at time.Time) {
	f.onTrip(func(t *trip) {
		if to != t.to || t.missing == 0 {
			return
		}
		t.swaps = append(t.swaps, at)
		if t.missing--; t.missing == 0 {
			t.cpuAtLast = cpu()
			close(t.done)
		}
	})
}

func (f *fleet) looked(took time.Duration) {
	f.onTrip(func(t *trip) {
		if t.missing > 0 {
			t.looks = append(t.looks, ms(took))
		}
	})
}

func (f *fleet) applied(c rollout.Change, began, ended time.Time, err error) {
	f.onTrip(func(t *trip) {
		if err != nil {
			t.lost++
			return
		}
		w := write{began, ended}
		for _, p := range c.Prepares {
			if p.First != "" {
				t.askedFirst = w
			} else {
				t.askedAll = w
			}
		}
		for _, a := range c.Groups {
			if a.Stable.Digest == t.to {
				t.commit, t.instant, t.cpuAtCommit = w, a.Instant, cpu()
			}
		}
	})
}

// A stage is a part of a trip.
type stage struct {
	name string
	ms   float64
}

// stages cuts a trip into what followed what. Those that did not happen are
// left out; one that was over before the one before it takes nothing.
func (t *trip) stages() []stage {
	var all []stage
	at := t.began
	reach := func(name string, when time.Time) {
		if when.IsZero() {
			return
		}
		all = append(all, stage{name, ms(max(0, when.Sub(at)))})
		if when.After(at) {
			at = when
		}
	}
	if !t.askedFirst.ended.IsZero() {
		reach("until the publisher has uploaded and the controller knows", t.askedFirst.began)
		reach("ask the first instance", t.askedFirst.ended)
	}
	if !t.askedAll.ended.IsZero() {
		reach("until the first is ready", t.askedAll.began)
		reach("ask all", t.askedAll.ended)
	}
	if len(all) == 0 {
		reach("until the request is written and the controller knows", t.commit.began)
	} else {
		reach("until all are ready and the controller knows", t.commit.began)
	}
	reach("commit", t.commit.ended)
	reach("until the instant", t.instant)
	reach("until the last has swapped", t.last())
	return all
}
