package simulate

import (
	"cmp"
	"fmt"
	"maps"
	"strings"
	"time"

	"routerd.dev/internal/analysis"
	"routerd.dev/internal/rollout"
)

// faultAt is when the next fault comes.
func (p *player) faultAt() time.Time {
	if len(p.faults) == 0 {
		return never
	}
	return p.began.Add(p.faults[0].At)
}

// fault has the next fault happen.
func (p *player) fault() {
	x := p.faults[0]
	p.faults = p.faults[1:]
	switch x.Kind {
	case FaultController, FaultDepose, FaultEtcd:
		p.faultOfEtcd(x)
	case FaultErrors, FaultLatency:
		p.traffic.t.worsen(x)
		p.say("traffic", "%s", worseText(x))
	case FaultPause, FaultResume, FaultPromote, FaultApprove, FaultAbort, FaultRollback:
		in := rollout.Intent{Kind: rollout.IntentKind(x.Kind), Rollout: mainID, Full: x.Full}
		if x.Kind == FaultRollback {
			in.Rollout = ""
			if x.Group != "" {
				in.Groups = []string{x.Group}
			}
		}
		p.ask(in)
	default:
		p.faultOfInstance(x)
	}
}

func worseText(x Fault) string {
	where := "every changed route"
	if x.Route != "" {
		where = "route " + x.Route
	}
	if x.Kind == FaultErrors {
		return fmt.Sprintf("revision 3 fails %g %% of the requests on %s", 100*x.Rate, where)
	}
	return fmt.Sprintf("revision 3 takes %g times as long on %s", x.Factor, where)
}

// ask puts an intent, as an operator does.
func (p *player) ask(in rollout.Intent) {
	p.asked++
	in.ID = cmp.Or(in.ID, fmt.Sprintf("r%d", p.asked))
	in.By = "operator"
	p.f.Ask(in)
	what := string(in.Kind)
	switch {
	case in.Kind == rollout.IntentSwitch:
		what = fmt.Sprintf("switches to revision %d by strategy %s", in.To.Number, in.Strategy)
	case in.Full:
		what += ", every wave"
	case len(in.Groups) > 0:
		what += " of group " + strings.Join(in.Groups, ", ")
	}
	p.say("operator", "%s", what)
	p.rouse()
}

func (p *player) faultOfEtcd(x Fault) {
	f := p.f
	switch x.Kind {
	case FaultController:
		p.say("controller", "dies")
		f.pending, f.old = nil, nil
		p.wake, p.elected = never, f.now.Add(cmp.Or(x.For, leaseTTL))
	case FaultDepose:
		p.elect()
	case FaultEtcd:
		p.away = f.now.Add(cmp.Or(x.For, 30*time.Second))
		p.say("etcd", "does not answer for %v", p.away.Sub(f.now))
		if p.away.Sub(f.now) <= leaseTTL {
			return
		}
		// The instances gave their leases up, and join again once it answers.
		for _, q := range f.procs {
			if q.up && f.keysStand(q) {
				f.Lapse(q.name)
			}
		}
	}
}

func (p *player) faultOfInstance(x Fault) {
	f := p.f
	_, q := f.find(x.Instance)
	if q == nil && x.Kind != FaultJoin {
		p.say(x.Instance, "is not there yet: nothing happens")
		return
	}
	switch x.Kind {
	case FaultJoin:
		p.say(x.Instance, "starts, in group %s", x.Group)
		f.Start(x.Instance, x.Group)
	case FaultDie, FaultRestart:
		if !q.up {
			p.say(x.Instance, "is dead already")
			return
		}
		f.Die(x.Instance)
		p.say(x.Instance, "dies")
		p.forgets[x.Instance] = f.now.Add(leaseTTL)
		if x.For > 0 || x.Kind == FaultRestart {
			p.wakes[x.Instance] = f.now.Add(x.For)
		}
	case FaultRefuse:
		f.bad = f.bad.with(bad(x.Instance, 3), "it does not compile here")
		p.say(x.Instance, "will refuse revision 3")
	case FaultPoison:
		f.poison = f.poison.with(bad(x.Instance, 3), true)
		p.say(x.Instance, "will die of revision 3")
	case FaultSlow:
		p.slow[x.Instance] = cmp.Or(x.Factor, 100)
		p.say(x.Instance, "builds %g times slower from now on", p.slow[x.Instance])
	case FaultLapse:
		if f.keysStand(q) {
			f.Lapse(x.Instance)
			p.say(x.Instance, "loses its lease")
			p.rouse()
		}
	}
}

// numbersText lists what an instance holds, the newest first.
func numbersText(b bits) string {
	var out []string
	for n := int64(63); n >= 0; n-- {
		if b.has(n) {
			out = append(out, fmt.Sprint(n))
		}
	}
	return "{" + strings.Join(out, " ") + "}"
}

// servesText says what an instance serves.
func servesText(q *process) string {
	s := fmt.Sprintf("revision %d, epoch %d", q.main().Number, q.serving.Epoch)
	if c := q.serving.Candidate; c != nil && c.Permyriad > 0 {
		s += fmt.Sprintf(", and revision %d for %g %%", c.Number, float64(c.Permyriad)/100)
	}
	return s
}

// copySample copies what is shared of a sample that goes on counting.
func copySample(s analysis.Sample) analysis.Sample {
	s.Routes = maps.Clone(s.Routes)
	return s
}
