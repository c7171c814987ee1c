package history

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"routerd.dev/internal/rollout"
	"routerd.dev/internal/version"
)

const ms = time.Millisecond

// A story is a small history, written down step by step.
type story struct {
	h       History
	answers []*Response
	era     int
	rev     int64
	txn     bool             // the writes of the moment are one transaction
	vers    map[string]int64 // of each key
	lease   int64
}

// tell begins with a fleet of group main with instances a and b, of which a is
// the controller, and revisions 1 and 2; epoch 1 of revision 1 is committed.
func tell() *story {
	s := &story{vers: map[string]int64{}, h: History{Start: time.Unix(1e9, 0), Logs: map[string][]Line{}, Groups: map[string]string{"a": "main", "b": "main"}, Skewed: map[string]bool{}}}
	s.h.Answers = func(yield func(*Response) bool) {
		for _, p := range s.answers {
			if !yield(p) {
				return
			}
		}
	}
	s.put("format", "{}")
	s.put("fleet", rollout.Fleet{ID: "f"})
	s.elect("a")
	for n := range int64(3) {
		s.put(fmt.Sprintf("revisions/%020d", n+1), version.Revision{Number: n + 1, Digest: digest(n + 1), Parent: n, Message: fmt.Sprint(n + 11)})
	}
	s.control(func() { s.put("groups/main", rollout.Assignment{Group: "main", Epoch: 1, Nonce: "n1", Stable: ref(1)}) })
	s.put("ready/main/a", "n1")
	s.put("ready/main/b", "n1")
	return s
}

func digest(n int64) version.Digest { return version.DigestOf([]byte(fmt.Sprint(n))) }
func ref(n int64) version.Ref       { return version.Ref{Number: n, Digest: digest(n)} }

func (s *story) put(key string, v any) {
	if !s.txn {
		s.rev++
	}
	s.vers[key]++
	b, ok := v.(string)
	if !ok {
		j, err := json.Marshal(v)
		if err != nil {
			panic(err)
		}
		b = string(j)
	}
	s.h.Writes = append(s.h.Writes, Write{Era: s.era, Revision: s.rev, Key: key, Value: []byte(b), Version: s.vers[key], Lease: s.lease})
}

func (s *story) del(key string) {
	if !s.txn {
		s.rev++
	}
	s.vers[key] = 0
	s.h.Writes = append(s.h.Writes, Write{Era: s.era, Revision: s.rev, Key: key, Deleted: true})
}

// together makes one transaction of what do writes.
func (s *story) together(do func()) {
	s.rev++
	s.txn = true
	do()
	s.txn = false
}

// elect gives the election key to another.
func (s *story) elect(who string) {
	if s.vers["election/leader"] > 0 {
		s.del("election/leader")
	}
	s.lease++
	s.put("election/leader", who)
}

// control is a transaction of the elected controller.
func (s *story) control(do func()) { s.controlAs("a", s.lease, do) }

func (s *story) controlAs(who string, lease int64, do func()) {
	s.together(func() {
		do()
		was := s.lease
		s.lease = lease
		s.put("election/leader", who)
		s.lease = was
	})
}

// commit prepares and commits revision n at the next epoch in good order.
func (s *story) commit(epoch, n int64) {
	nonce := fmt.Sprint("n", epoch)
	s.control(func() { s.put("prepare/main", rollout.Prepare{Group: "main", Nonce: rollout.Nonce(nonce)}) })
	s.put("ready/main/a", nonce)
	s.put("ready/main/b", nonce)
	s.assign(rollout.Assignment{Epoch: epoch, Nonce: rollout.Nonce(nonce), Stable: ref(n)})
}

func (s *story) assign(a rollout.Assignment) {
	a.Group = "main"
	s.control(func() { s.put("groups/main", a) })
}

// answer is a good answer of an instance: of revision epoch, as commit is used here.
func (s *story) answer(instance string, asked, got time.Duration, epoch int64) *Response {
	p := &Response{Instance: instance, Group: "main", Asked: asked, Got: got, Epoch: epoch, Revision: epoch, Mark: int32(epoch + 10), Status: 200}
	s.answers = append(s.answers, p)
	return p
}

func (s *story) sample(instance string, at time.Duration, epoch int64) {
	s.h.Samples = append(s.h.Samples, Sample{Instance: instance, Group: "main", Asked: at, Got: at + ms, Epoch: epoch, Revision: epoch, Digest: digest(epoch)})
}

func (s *story) log(instance string, at time.Duration, msg string, epoch int64) {
	s.h.Logs[instance] = append(s.h.Logs[instance], Line{Time: s.h.Start.Add(at), Msg: msg, Epoch: epoch, Nonce: fmt.Sprint("n", epoch)})
}

// TestFinds: each of these small histories breaks one promise, and the check
// names it; those that begin with "well" break none.
func TestFinds(t *testing.T) {
	for name, c := range map[string]struct {
		tell func(*story)
		want string
	}{
		"well: switched": {func(s *story) {
			s.answer("a", 0, 5*ms, 1)
			s.h.Bounds = []Bound{{Revision: s.rev, Asked: 6 * ms}}
			s.commit(2, 2)
			s.log("a", 7*ms, "prepared", 2)
			s.log("b", 8*ms, "prepared", 2)
			s.log("a", 9*ms, "switched", 2)
			s.answer("b", 8*ms, 30*ms, 1) // under way while a switched
			s.answer("a", 9*ms, 12*ms, 2)
			s.sample("a", 20*ms, 2)
			s.put("reports/a", rollout.Report{Instance: "a", Group: "main", Serving: &rollout.Serving{Epoch: 2, Revision: 2, Digest: digest(2)}})
			s.h.Acked = []Ack{{Revision: 2, Digest: digest(2), Message: "12"}}
			s.h.Final = []version.Revision{{Number: 2, Digest: digest(2), Message: "12"}}
		}, ""},
		"well: a client asks one that is behind": {func(s *story) {
			s.commit(2, 2)
			s.answer("a", 0, 5*ms, 2)
			s.answer("b", 6*ms, 9*ms, 1)
		}, ""},
		"well: an answer to an older request comes later": {func(s *story) {
			s.commit(2, 2)
			s.answer("a", 2*ms, 5*ms, 2)
			s.answer("a", 1*ms, 6*ms, 1)
		}, ""},
		"well: excused": {func(s *story) {
			p := s.answer("a", 0, ms, 0)
			p.Fault, p.Err, p.Excused = FaultFailed, "refused", true
		}, ""},
		"well: overridden": {func(s *story) {
			s.assign(rollout.Assignment{Epoch: 2, Nonce: "x", Stable: ref(2), Override: &rollout.Override{Instances: []string{"a", "b"}}})
		}, ""},
		"well: an operator": {func(s *story) {
			s.together(func() {
				s.put("revisions/00000000000000000004", version.Revision{Number: 4, Digest: digest(4), Message: "14"})
				s.put("head", "4")
				s.put("fleet", rollout.Fleet{ID: "f", Target: ref(4)})
				s.put("intents/x", rollout.Intent{})
			})
			s.put("gc/lock", "me")
			s.del("served/abc")
			s.del("gc/lock")
		}, ""},
		"well: recovered": {func(s *story) {
			s.together(func() {
				s.put("audit/x", rollout.AuditEntry{What: "recover"})
				s.put("groups/new", rollout.Assignment{Group: "new", Epoch: 7, Stable: ref(1)})
			})
		}, ""},
		"well: another is elected": {func(s *story) {
			s.elect("b")
			s.controlAs("b", s.lease, func() { s.del("prepare/main") })
		}, ""},
		"well: wiped and begun anew": {func(s *story) {
			s.era, s.rev, s.vers = 1, 0, map[string]int64{}
			s.put("format", "{}")
			s.elect("b")
			s.controlAs("b", s.lease, func() {
				s.put("groups/main", rollout.Assignment{Group: "main", Epoch: 2, Stable: ref(1)})
			})
		}, ""},
		"well: acknowledged before etcd lost its records": {func(s *story) {
			s.h.Acked = []Ack{{Revision: 2, Digest: digest(2), Message: "12"}}
			s.h.LastEra, s.h.Final = time.Unix(1, 0), []version.Revision{}
		}, ""},
		"well: quarantined": {func(s *story) {
			s.commit(2, 2)
			s.put("reports/a", rollout.Report{
				Instance: "a", Group: "main", Quarantined: []version.Digest{digest(2)},
				Serving: &rollout.Serving{Epoch: 2, Revision: 1, Digest: digest(1)},
			})
			p := s.answer("a", 0, ms, 2)
			p.Revision, p.Mark = 1, 11
		}, ""},
		"well: a canary": {func(s *story) {
			s.commit(2, 2)
			s.assign(rollout.Assignment{Epoch: 3, Nonce: "n2", Stable: ref(2), Candidate: &rollout.Candidate{Ref: ref(3)}})
			s.answer("a", 0, ms, 3)
			p := s.answer("a", 0, ms, 3)
			p.Revision, p.Mark = 2, 12
		}, ""},

		"mixed marks": {func(s *story) {
			p := s.answer("a", 0, ms, 1)
			p.Fault, p.Err = FaultMixed, "11 and 12"
		}, "I1"},
		"mixed marks of one that was down": {func(s *story) {
			p := s.answer("a", 0, ms, 1)
			p.Fault, p.Excused = FaultMixed, true
		}, "I1"},
		"another revision than the epoch's": {func(s *story) {
			p := s.answer("a", 0, ms, 1)
			p.Revision, p.Mark = 2, 12
		}, "I1"},
		"another mark than the revision's": {func(s *story) { s.answer("a", 0, ms, 1).Mark = 12 }, "I1"},
		"not ready": {func(s *story) {
			s.put("ready/main/a", "n2")
			s.assign(rollout.Assignment{Epoch: 2, Nonce: "n2", Stable: ref(2)})
		}, "I2"},
		"an override that names another": {func(s *story) {
			s.put("ready/main/a", "n2")
			s.assign(rollout.Assignment{Epoch: 2, Nonce: "n2", Stable: ref(2), Override: &rollout.Override{Instances: []string{"a"}}})
		}, "I2"},
		"served before the commit": {func(s *story) {
			s.h.Bounds = []Bound{{Revision: s.rev, Asked: 10 * ms}}
			s.commit(2, 2)
			s.answer("a", 2*ms, 9*ms, 2)
		}, "I2"},
		"served what was never committed": {func(s *story) { s.answer("a", 0, ms, 2) }, "I2"},
		"served before it held the set": {func(s *story) {
			s.commit(2, 2)
			s.answer("a", 0, 3*ms, 2)
			s.log("a", 4*ms, "prepared", 2)
		}, "I2"},
		"switched before another held the set": {func(s *story) {
			s.commit(2, 2)
			s.log("a", 2*ms, "prepared", 2)
			s.log("a", 3*ms, "switched", 2)
			s.log("b", 4*ms, "prepared", 2)
		}, "I2"},
		"reported before the commit": {func(s *story) {
			s.put("reports/a", rollout.Report{Instance: "a", Group: "main", Serving: &rollout.Serving{Epoch: 2, Revision: 2, Digest: digest(2)}})
			s.commit(2, 2)
		}, "I2"},
		"an epoch falls on an instance": {func(s *story) {
			s.commit(2, 2)
			s.answer("a", 0, 5*ms, 2)
			s.answer("a", 6*ms, 9*ms, 1).Client = 1
		}, "I3"},
		"an epoch falls in etcd": {func(s *story) {
			s.commit(2, 2)
			s.commit(1, 1)
		}, "I3"},
		"an epoch is given twice": {func(s *story) {
			s.commit(2, 2)
			s.era, s.rev, s.vers = 1, 0, map[string]int64{}
			s.elect("a")
			s.control(func() { s.put("groups/main", rollout.Assignment{Group: "main", Epoch: 2, Stable: ref(3)}) })
		}, "I3"},
		"an epoch falls in a log": {func(s *story) {
			s.log("a", 2*ms, "switched", 2)
			s.log("a", 3*ms, "switched", 1)
		}, "I3"},
		"a controller that does not move the election key": {func(s *story) { s.put("prepare/main", rollout.Prepare{}) }, "I4"},
		"a deposed controller": {func(s *story) {
			s.elect("b")
			s.controlAs("a", s.lease-1, func() { s.del("prepare/main") })
		}, "I4"},
		"a controller of an earlier term": {func(s *story) {
			s.elect("a")
			s.controlAs("a", s.lease-1, func() { s.del("prepare/main") })
		}, "I4"},
		"a controller in nobody's term": {func(s *story) {
			s.del("election/leader")
			s.control(func() { s.del("prepare/main") })
		}, "I4"},
		"records deleted without the lock":        {func(s *story) { s.del("served/abc") }, "I4"},
		"a publisher that says what is committed": {func(s *story) { s.put("fleet", rollout.Fleet{ID: "f", Committed: ref(2)}) }, "I4"},
		"a failed request while etcd is away": {func(s *story) {
			s.h.Samples = []Sample{{Instance: "a", Asked: ms, Got: 2 * ms, Unreachable: true}}
			p := s.answer("a", 0, 3*ms, 0)
			p.Fault = FaultFailed
		}, "I5"},
		"a failed request": {func(s *story) { s.answer("a", 0, 3*ms, 0).Fault = FaultFailed }, "I9"},
		"a lost route":     {func(s *story) { s.answer("a", 0, 3*ms, 0).Fault = FaultNoRoute }, "I10"},
		"status behind": {func(s *story) {
			s.commit(2, 2)
			s.answer("a", 0, 5*ms, 2)
			s.sample("a", 5*ms+2*slow, 1)
		}, "I12"},
		"status ahead": {func(s *story) {
			s.commit(2, 2)
			s.sample("a", 0, 2)
			s.answer("a", 5*ms, 9*ms, 1)
		}, "I12"},
		"status of another revision": {func(s *story) {
			s.commit(2, 2)
			s.answer("a", 0, 9*ms, 2)
			s.sample("a", 20*ms, 2)
			s.h.Samples[0].Digest = digest(1)
		}, "I12"},
		"status falls": {func(s *story) {
			s.commit(2, 2)
			s.answer("a", 0, 5*ms, 1)
			s.sample("a", 10*ms, 2)
			s.sample("a", 20*ms, 1)
		}, "I3"},
		"status of what was never committed": {func(s *story) {
			s.answer("a", 0, 5*ms, 1)
			s.sample("a", 10*ms, 2)
		}, "I2"},
		"report of another revision": {func(s *story) {
			s.put("reports/a", rollout.Report{Instance: "a", Group: "main", Serving: &rollout.Serving{Epoch: 1, Revision: 2, Digest: digest(2)}})
		}, "I12"},
		"acknowledged and never written": {func(s *story) {
			s.h.Acked = []Ack{{Revision: 9, Digest: digest(9), Message: "19"}}
		}, "lost"},
		"acknowledged and another at the end": {func(s *story) {
			s.h.Acked = []Ack{{At: s.h.LastEra.Add(ms), Revision: 2, Digest: digest(2), Message: "12"}}
			s.h.Final = []version.Revision{{Number: 1, Digest: digest(1), Message: "11"}}
		}, "lost"},
		"a number given twice": {func(s *story) {
			s.put("revisions/00000000000000000002", version.Revision{Number: 2, Digest: digest(5), Message: "15"})
		}, "lost"},
		"a record that cannot be read": {func(s *story) { s.put("instances/a", "{") }, "record"},
	} {
		t.Run(name, func(t *testing.T) {
			s := tell()
			c.tell(s)
			found, _ := Check(&s.h)
			var rules []string
			for _, v := range found {
				rules = append(rules, v.Rule)
			}
			switch {
			case strings.HasPrefix(name, "well") != (c.want == ""):
				t.Fatal("the name and what is wanted do not fit")
			case c.want == "" && len(found) > 0:
				t.Errorf("found %v", found)
			case c.want != "" && !slices.Equal(rules, []string{c.want}):
				t.Errorf("found %v, want %s", found, c.want)
			}
		})
	}
}

// TestLooked: what was looked at is counted, so that a check that saw nothing
// does not pass for one that found nothing.
func TestLooked(t *testing.T) {
	s := tell()
	s.h.Samples = []Sample{{Instance: "a", Asked: ms, Got: 2 * ms, Unreachable: true}}
	s.answer("a", 0, 3*ms, 1)
	p := s.answer("a", 10*time.Second, 11*time.Second, 1)
	p.Fault, p.Excused = FaultFailed, true
	s.commit(2, 2)
	s.answer("a", 12*time.Second, 13*time.Second, 2)
	s.answer("b", 14*time.Second, 15*time.Second, 1)
	s.log("a", 11*time.Second, "switched", 2)
	_, got := Check(&s.h)
	want := Looked{Answers: 4, Good: 3, Excused: 1, Away: 1, Writes: len(s.h.Writes), Fenced: 3, Commits: 1, Logs: 1, Behind: 2 * time.Second}
	if got != want {
		t.Errorf("looked at %+v\nwant       %+v", got, want)
	}
}

// TestResponseIsSmall: a million of them fit into little memory.
func TestResponseIsSmall(t *testing.T) {
	if size := unsafe.Sizeof(Response{}); size > 150 {
		t.Errorf("a Response takes %d bytes", size)
	}
}

// TestProofsAreBounded: a million broken answers are one violation with a few
// proofs.
func TestProofsAreBounded(t *testing.T) {
	s := tell()
	for range 100 {
		s.answer("a", 0, 3*ms, 0).Fault = FaultFailed
	}
	found, _ := Check(&s.h)
	if len(found) != 1 || found[0].Times != 100 || len(found[0].What) != most {
		t.Errorf("found %v", found)
	}
}

// TestLinearizable: what publishers and readers were told, and whether any
// order explains it.
func TestLinearizable(t *testing.T) {
	op := func(client int, call, ret time.Duration, kind OpKind, o Outcome, rev, expect int64) Op {
		return Op{Client: client, Call: call, Return: ret, Kind: kind, Outcome: o, Revision: rev, Expect: expect}
	}
	for name, c := range map[string]struct {
		ops []Op
		ok  bool
	}{
		"in turn":               {[]Op{op(0, 0, 1, OpPublish, Done, 2, 0), op(1, 2, 3, OpPublish, Done, 3, 2), op(0, 4, 5, OpTarget, Done, 3, 0)}, true},
		"at once":               {[]Op{op(0, 0, 5, OpPublish, Done, 3, 2), op(1, 1, 4, OpPublish, Done, 2, 1)}, true},
		"a loser":               {[]Op{op(0, 0, 5, OpPublish, Done, 2, 1), op(1, 1, 4, OpPublish, Refused, 0, 1)}, true},
		"unknown, and was done": {[]Op{op(0, 0, 1, OpPublish, Unknown, 0, 1), op(1, 2, 3, OpTarget, Done, 1, 0), op(1, 4, 5, OpTarget, Done, 2, 0)}, true},
		"unknown, and was not":  {[]Op{op(0, 0, 1, OpPublish, Unknown, 0, 1), op(1, 2, 3, OpPublish, Done, 2, 1)}, true},
		"a read that failed":    {[]Op{op(0, 0, 1, OpHead, Unknown, 0, 0)}, true},

		"two with one number":      {[]Op{op(0, 0, 5, OpPublish, Done, 2, 0), op(1, 1, 4, OpPublish, Done, 2, 0)}, false},
		"two on one target":        {[]Op{op(0, 0, 5, OpPublish, Done, 2, 1), op(1, 1, 4, OpPublish, Done, 3, 1)}, false},
		"a read of the past":       {[]Op{op(0, 0, 1, OpPublish, Done, 2, 0), op(1, 2, 3, OpTarget, Done, 1, 0)}, false},
		"a read of what was taken": {[]Op{op(0, 0, 1, OpPublish, Done, 2, 0), op(1, 2, 3, OpHead, Done, 3, 0)}, false},
		"refused for nothing":      {[]Op{op(0, 0, 1, OpPublish, Refused, 0, 1)}, false},
		"unknown, and done twice":  {[]Op{op(0, 0, 1, OpPublish, Unknown, 0, 0), op(1, 2, 3, OpHead, Done, 3, 0)}, false},
		"a lost publish":           {[]Op{op(0, 0, 1, OpPublish, Done, 2, 0), op(0, 2, 3, OpPublish, Done, 2, 0)}, false},
	} {
		t.Run(name, func(t *testing.T) {
			if ok, why := Linearizable(1, c.ops, 10*time.Second); ok != c.ok {
				t.Errorf("linearizable: %v (%s)", ok, why)
			}
		})
	}
	if ok, why := Linearizable(1, []Op{op(0, 0, 1, OpTarget, Done, 2, 0)}, 10*time.Second); ok || why == "" {
		t.Errorf("ok %v, why %q", ok, why)
	}
}
