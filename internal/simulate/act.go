package simulate

import (
	"fmt"
	"time"

	"routerd.dev/internal/rollout"
)

// A deed is one atomic thing that may happen in a fleet.
type deed struct {
	what deedKind
	who  string // instance or group
}

type deedKind uint8

// What instances do, then what happens to them, then controllers.
const (
	deedLook deedKind = iota
	deedLookCommit
	deedJoin
	deedBuild
	deedSpeak
	deedServe
	deedReport
	deedMeasure // writes what it counted

	deedDie
	deedLapse   // its lease ends though it lives
	deedExpire  // the lease of a dead process ends
	deedRestart // of a dead process
	deedRefuse  // the job under way turns out not to compile

	deedRead  // the elected controller reads a view and decides
	deedWrite // it tries its transaction
	deedElect // another is elected
)

var deedNames = [...]string{
	"looks", "looks at the commit only", "joins", "builds", "says what it holds", "switches", "reports", "measures",
	"dies", "loses its lease", "is forgotten", "restarts", "refuses",
	"controller decides", "controller writes", "another controller is elected",
}

func (d deed) String() string {
	if d.who == "" {
		return deedNames[d.what]
	}
	return fmt.Sprintf("%s %s", d.who, deedNames[d.what])
}

// own are the deeds of a process that nothing but its own state and etcd call for.
var own = [...]deedKind{deedLook, deedLookCommit, deedJoin, deedBuild, deedSpeak, deedServe, deedReport}

// may tells whether process p can do what now.
func (f *Fleet) may(p *process, what deedKind) bool {
	if !p.up {
		return what == deedRestart || what == deedExpire && f.keysStand(p)
	}
	m := f.mods.m[p.group]
	switch what {
	case deedLook:
		return !p.saw || p.at != m
	case deedLookCommit:
		return p.saw && m.assignment > p.at.assignment && m.prepare == 0 && p.at.prepare > 0
	case deedJoin:
		return p.saw && !f.keysStand(p)
	case deedBuild, deedRefuse:
		_, ok := f.nextJob(p)
		return ok
	case deedSpeak:
		return f.maySpeak(p)
	case deedServe:
		return f.mayServe(p)
	case deedReport:
		return f.keysStand(p) && (!p.sent || p.told != f.wordsOf(p))
	case deedMeasure:
		return f.keysStand(p) && f.compares(p)
	case deedDie:
		return true
	case deedLapse:
		return f.keysStand(p)
	}
	return false
}

func (f *Fleet) maySpeak(p *process) bool {
	if !f.keysStand(p) {
		return false
	}
	r, ok := f.readyOf(p)
	_, spoke := f.ready.m[p.group][p.name]
	switch {
	case !ok && !spoke:
		return false
	case !ok:
		return p.said.Nonce != ""
	case f.admits(p, r) && p.at != f.mods.m[p.group]:
		return false // It would fail, and read again.
	}
	return !spoke || !p.said.Equal(&r)
}

func (f *Fleet) mayServe(p *process) bool {
	if p.want == nil || p.frozen || !p.admitted && p.serving == nil || p.want.Stable.IsZero() {
		return false
	}
	if p.serving != nil && p.want.Epoch <= p.serving.Epoch {
		return false
	}
	return f.holdsAll(p, p.choose(p.want))
}

// compares tells whether p serves what is compared with something.
func (f *Fleet) compares(p *process) bool {
	return p.serving != nil && (p.serving.Candidate != nil || !p.serving.Against.IsZero())
}

// do carries a process's own deed out, or what happens to it.
func (f *Fleet) do(d deed) {
	switch d.what {
	case deedLook:
		f.look(d.who)
	case deedLookCommit:
		f.lookCommit(d.who)
	case deedJoin:
		f.join(d.who)
	case deedBuild:
		f.build(d.who)
	case deedSpeak:
		f.speak(d.who)
	case deedServe:
		f.serve(d.who)
	case deedReport:
		f.report(d.who)
	case deedDie:
		f.Die(d.who)
	case deedLapse, deedExpire:
		f.Lapse(d.who)
	case deedRestart:
		_, p := f.find(d.who)
		f.Start(d.who, p.group)
	case deedRefuse:
		f.refuse(d.who, "it does not compile")
	case deedElect:
		f.elect()
	case deedWrite:
		_ = f.write() // What failed is decided anew.
	case deedRead, deedMeasure:
		panic("the caller does it: it needs more than a fleet") // a defect of this package
	}
}

// elect makes another controller the one whose writes count. The former one
// may still try what it was about to write.
func (f *Fleet) elect() {
	f.term++
	f.bump()
	if f.pending != nil {
		f.old = f.pending
	}
	f.pending = nil
}

// read has the elected controller decide; it tells whether there is something to write.
func (f *Fleet) read(step stepFunc) (pending, bool) {
	v := f.View()
	c, _ := step(v, f.now)
	if c.IsZero() {
		return pending{}, false
	}
	return pending{term: f.term, at: v.At, seed: v.Seed, change: c}, true
}

// write tries what the elected controller decided.
func (f *Fleet) write() error {
	p := f.pending
	f.pending = nil
	return f.apply(p)
}

// A stepFunc is rollout.Step, or in tests a broken one.
type stepFunc = func(*rollout.View, time.Time) (rollout.Change, time.Time)
