package rollout

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"routerd.dev/internal/version"
)

const (
	defaultGrace = time.Minute // how long a rollout may be left alone by controllers
	// leastGrace is longer than a controller that is at work may be away: below
	// it each look would find the rollout left alone.
	leastGrace = 5 * time.Second
)

// choosePlan gives r the strategy that it names, with the groups of each wave
// named, or says why it cannot. A switch in one step, and the first revision
// that groups are given, have no plan: there is nothing to compare with.
func (d *draft) choosePlan(r *Rollout) string {
	groups := d.compared(r)
	name := cmp.Or(r.Strategy, d.fleet.Settings.Strategy, AllAtOnce)
	s, ok := d.strategy(name)
	if !ok {
		return fmt.Sprintf("there is no strategy %s: routectl strategy list", name)
	}
	if len(groups) == 0 {
		return ""
	}
	if slower, note, why := d.firstUse(r, groups, &s); why != "" {
		return why
	} else if note != "" {
		s, r.Note = slower, note
	}
	straggler := cmp.Or(r.Straggler, s.Straggler)
	if s.Name == AllAtOnce && r.Revert == 0 && straggler != StragglerEvict {
		return ""
	}
	if p := s.Validate(); len(p) > 0 {
		return fmt.Sprintf("strategy %s cannot be played: %s", s.Name, p[0])
	}
	plan, without := resolve(s, groups)
	if len(without) > 0 {
		return fmt.Sprintf(`strategy %s has no wave for %s: name them, or have a wave "*"`, s.Name, join(without, ", "))
	}
	if r.Revert > 0 {
		last := &plan.Waves[len(plan.Waves)-1]
		last.Steps = append(slices.Clone(last.Steps), PlanStep{
			Pause: &PauseStep{For: Duration(r.Revert), Approval: true, Otherwise: OtherwiseRollback},
		})
	}
	r.Plan, r.Strategy, r.Straggler = &plan, s.Name, straggler
	r.Timeout = cmp.Or(r.Timeout, time.Duration(s.PrepareTimeout))
	r.Salt = string(d.fresh())
	r.Origin = d.origin(r, groups)
	r.Cursor = Cursor{Since: d.now}
	r.Alive = d.now.Add(grace(&plan))
	return ""
}

func noted(r *Rollout) string {
	if r.Message == "" || r.Note == "" {
		return r.Message + r.Note
	}
	return r.Message + "; " + r.Note
}

func (d *draft) strategy(name string) (Strategy, bool) {
	if s, ok := d.v.Strategies[name]; ok && name != AllAtOnce {
		s.Name = name
		return s, true
	}
	return Builtin(name)
}

// compared lists the groups that r is to move. It is empty when none of them
// serves anything that could be compared with or gone back to.
func (d *draft) compared(r *Rollout) []string {
	var out []string
	some := false
	for _, m := range d.moves(r) {
		out = append(out, m.group)
		some = some || !m.from.Stable.IsZero()
	}
	if !some {
		return nil
	}
	return out
}

// firstUse returns the fleet's strategy for the first use of a capability,
// where r's revision is one and that strategy is slower than s, and says so.
func (d *draft) firstUse(r *Rollout, groups []string, s *Strategy) (slower Strategy, note, why string) {
	name := d.fleet.Settings.FirstUse
	if name == "" {
		return Strategy{}, "", ""
	}
	group, need := d.firstNeed(r, groups)
	if need == "" {
		return Strategy{}, "", ""
	}
	slower, ok := d.strategy(name)
	if !ok {
		return Strategy{}, "", fmt.Sprintf("there is no strategy %s, which the settings name for the first use of a feature (here %s): routectl strategy list", name, need)
	}
	if slower.steps() <= s.steps() {
		return Strategy{}, "", ""
	}
	return slower, fmt.Sprintf("strategy %s instead of %s: it is the first use of %s in group %s", name, s.Name, need, group), ""
}

// firstNeed finds a capability that r's revision needs, and a group where
// nothing known of what is or was stable does.
func (d *draft) firstNeed(r *Rollout, groups []string) (group, need string) {
	for _, g := range groups {
		a := d.groups[g]
		if a.Stable.IsZero() {
			continue
		}
		known := make(map[string]bool)
		for _, ref := range append([]version.Ref{a.Stable}, a.Back...) {
			for _, n := range d.v.Revisions[ref.Number].Needs {
				known[n] = true
			}
		}
		for _, n := range d.v.Revisions[r.To.Number].Needs {
			if !known[n] {
				return g, n
			}
		}
	}
	return "", ""
}

func (s *Strategy) steps() int {
	n := 0
	for _, w := range s.Waves {
		n += len(w.Steps)
	}
	return n
}

// resolve names the groups of each wave of s; waves without any go. It lists
// those of groups that no wave is for.
func resolve(s Strategy, groups []string) (plan Strategy, without []string) {
	named := make(map[string]bool)
	for _, w := range s.Waves {
		for _, g := range w.Groups {
			named[g] = true
		}
	}
	plan = s
	plan.Waves = nil
	for _, w := range s.Waves {
		var in []string
		for _, g := range w.Groups {
			switch {
			case g == everyOther:
				in = append(in, slices.DeleteFunc(slices.Clone(groups), func(g string) bool { return named[g] })...)
			case slices.Contains(groups, g):
				in = append(in, g)
			}
		}
		plan.Waves = append(plan.Waves, w.over(in)...)
	}
	if !named[everyOther] {
		without = slices.DeleteFunc(slices.Clone(groups), func(g string) bool { return named[g] })
	}
	return plan, without
}

// over returns w for these groups: one wave, one for each, or none.
func (w Wave) over(groups []string) []Wave {
	if len(groups) == 0 {
		return nil
	}
	if !w.OneByOne {
		w.Groups = groups
		return []Wave{w}
	}
	w.OneByOne = false
	var out []Wave
	name := w.Name
	for _, g := range groups {
		w.Groups, w.Name = []string{g}, strings.TrimPrefix(name+"/"+g, "/")
		out = append(out, w)
	}
	return out
}

// origin is where r's groups go back to. What a rollout was still trying,
// which r supersedes, is nothing to go back to.
func (d *draft) origin(r *Rollout, groups []string) map[string]version.Ref {
	out := make(map[string]version.Ref, len(groups))
	for _, g := range groups {
		out[g] = d.groups[g].Stable
		if o := d.playing(g); o != nil && o.Origin[g].Digest != r.To.Digest && !o.Origin[g].IsZero() {
			out[g] = o.Origin[g]
		}
	}
	return out
}

// playing returns the rollout in progress whose plan moves group g.
func (d *draft) playing(g string) *Rollout {
	for i := range d.active {
		if o := &d.active[i]; o.Plan != nil {
			if _, ok := o.Origin[g]; ok {
				return o
			}
		}
	}
	return nil
}

// busy says why r must leave its groups to a rollout that has steps.
func (d *draft) busy(r *Rollout) string {
	for _, o := range d.active {
		switch {
		case o.Plan == nil || !d.overlap(&o, r):
		case o.Phase == PhaseReturning:
			return fmt.Sprintf("rollout %s is on its way back: try again when that is over", o.ID)
		case !r.Supersede:
			return fmt.Sprintf("rollout %s moves %s: wait for it, promote it, abort it, or supersede it by --supersede", o.ID, join(d.scope(&o), ", "))
		case d.ending(&o):
			return fmt.Sprintf("rollout %s, which it would supersede, is to be aborted", o.ID)
		}
	}
	return ""
}

// ending tells whether a later intent takes o back: that must find it there.
func (d *draft) ending(o *Rollout) bool {
	return slices.ContainsFunc(d.v.Intents[1:], func(in Intent) bool {
		return in.Kind == IntentAbort && (in.Rollout == "" || in.Rollout == o.ID)
	})
}

func grace(s *Strategy) time.Duration {
	return max(cmp.Or(time.Duration(s.ControllerGrace), defaultGrace), leastGrace)
}
