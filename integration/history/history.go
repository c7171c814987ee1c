package history

import (
	"fmt"
	"iter"
	"maps"
	"slices"
	"time"

	"routerd.dev/internal/version"
)

// A History is what was seen of one fleet.
type History struct {
	Start time.Time // that of which Response and Sample count their times

	Answers iter.Seq[*Response] // in the order in which they came
	Writes  []Write             // in etcd's order, one era after the other
	Bounds  []Bound             // in the order in which they were asked
	Samples []Sample            // of each instance, in the order in which they were asked
	Groups  map[string]string   // each instance's
	Logs    map[string][]Line   // by instance, in its own order
	Skewed  map[string]bool     // instances whose clock is not the test's
	Acked   []Ack               // publishes that succeeded
	Final   []version.Revision  // what routectl history lists at the end; nil when it was not asked
	LastEra time.Time           // when the last era was seen to have begun
}

// A Write is what became of one key, in one transaction of etcd.
type Write struct {
	Era      int    // how often etcd had lost its records before
	Revision int64  // etcd's; the writes of a transaction share it
	Key      string // without the fleet's prefix
	Value    []byte // left out of chunks and manifests
	Deleted  bool
	Version  int64 // of the key: 1 when it was not there before
	Lease    int64
	// Base: the key was found so, because what led to it was compacted before
	// it was seen. Nothing is known of the transaction that wrote it.
	Base bool
}

// A Bound is that etcd was at Revision at some moment after Asked: whatever has
// a higher revision was written after Asked.
type Bound struct {
	Era      int
	Revision int64
	Asked    time.Duration
}

// A Sample is what an instance's /v1/status said.
type Sample struct {
	Asked, Got  time.Duration
	Instance    string
	Group       string
	Epoch       int64 // 0 while it serves nothing
	Revision    int64
	Digest      version.Digest
	Fallback    bool // its epoch's revision is quarantined there, or another is pinned
	Unreachable bool // it says that etcd does not answer
}

// A Line is what is read of a log line.
type Line struct {
	Time  time.Time
	Msg   string
	Level string
	Nonce string
	Epoch int64
}

// An Ack is a publish whose publisher was told that it was done.
type Ack struct {
	At       time.Time      `json:"-"` // when it was told
	Revision int64          `json:"revision"`
	Digest   version.Digest `json:"digest"`
	Message  string         `json:"-"`
}

// A Violation is a promise that was broken, and one or more proofs that are
// much alike.
type Violation struct {
	Rule  string   `json:"rule"` // "I1" to "I12"; "lost" for what was acknowledged and is not there
	Times int      `json:"times"`
	What  []string `json:"what"` // the first few
}

func (v Violation) String() string {
	return fmt.Sprintf("%s, %d times: %s", v.Rule, v.Times, v.What[0])
}

// Looked is how much of each kind a check looked at: a check that found nothing
// because it saw nothing proves nothing.
type Looked struct {
	Answers int `json:"answers"`
	Good    int `json:"good"`    // answers that were a 200 with one mark
	Excused int `json:"excused"` // failures at an instance that the test had down
	Failed  int `json:"failed"`  // all others
	Away    int `json:"away"`    // good answers of an instance that said etcd is away (I5)
	Writes  int `json:"writes"`
	Fenced  int `json:"fenced"`  // transactions with control writes (I4)
	Commits int `json:"commits"` // of a group's assignment (I2)
	Reports int `json:"reports"` // instances' own words, in etcd and over HTTP (I12)
	Logs    int `json:"logs"`    // switches in logs that were held against who had prepared (I2)
	Acked   int `json:"acked"`   // publishes that were told to be done

	// Behind is by how much a client's epoch of a group fell at most when it
	// went from one instance to the next. That is no violation: only tokens
	// promise otherwise.
	Behind time.Duration `json:"behind"`
}

// A verdict collects what a check finds.
type verdict struct {
	Looked
	found map[string]*Violation
}

// most is how many proofs of one rule are kept.
const most = 8

func (v *verdict) broken(rule, format string, args ...any) {
	if v.found == nil {
		v.found = map[string]*Violation{}
	}
	b := v.found[rule]
	if b == nil {
		b = &Violation{Rule: rule}
		v.found[rule] = b
	}
	if b.Times++; len(b.What) < most {
		b.What = append(b.What, fmt.Sprintf(format, args...))
	}
}

// Check returns the promises that h shows to be broken, and what was looked at.
func Check(h *History) ([]Violation, Looked) {
	v := &verdict{}
	r := replay(v, h)
	checkAnswers(v, h, r)
	checkSamples(v, h, r)
	checkLogs(v, h, r)
	checkAcked(v, h, r)
	var out []Violation
	for _, rule := range slices.Sorted(maps.Keys(v.found)) {
		out = append(out, *v.found[rule])
	}
	return out, v.Looked
}
