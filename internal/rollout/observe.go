package rollout

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"routerd.dev/internal/version"
)

// A move is one group on its way from what it serves to where its rollout
// wants it, with what its instances say.
type move struct {
	group string
	from  Assignment
	to    version.Ref
	regs  []Ready // of every registered instance, by name
	warm  bool    // the set in force holds to
}

func (d *draft) scope(r *Rollout) []string { return r.Scope(d.groups) }

// Scope names the groups that r concerns, in order: those it names, or every one of
// the fleet's.
func (r *Rollout) Scope(fleet map[string]Assignment) []string {
	switch {
	case r.Plan != nil:
		return slices.Sorted(maps.Keys(r.Origin)) // fixed when it was taken up
	case r.Goals != nil:
		return slices.Sorted(maps.Keys(r.Goals))
	case len(r.Groups) > 0:
		return slices.Compact(slices.Sorted(slices.Values(r.Groups)))
	default:
		return slices.Sorted(maps.Keys(fleet))
	}
}

// moves lists the groups of r that are not where r wants them.
func (d *draft) moves(r *Rollout) []move {
	var out []move
	for _, g := range d.scope(r) {
		a, ok := d.groups[g]
		if !ok {
			continue // retired meanwhile
		}
		to := r.To
		if goal, ok := r.Goals[g]; ok {
			to = goal
		}
		if a.Stable.Digest == to.Digest && a.Candidate == nil {
			continue
		}
		out = append(out, move{group: g, from: a, to: to, regs: d.registered(g), warm: has(a.Set, to.Digest)})
	}
	return out
}

func cold(ms []move) []move {
	return slices.DeleteFunc(slices.Clone(ms), func(m move) bool { return m.warm })
}

func groupsOf(ms []move) []string {
	out := make([]string, len(ms))
	for i, m := range ms {
		out[i] = m.group
	}
	return out
}

// registered lists what the instances of group g that have a ready key say.
func (d *draft) registered(g string) []Ready {
	said := d.v.Ready[g]
	out := make([]Ready, 0, len(said))
	for _, name := range slices.Sorted(maps.Keys(said)) {
		r := said[name]
		r.Instance = name
		out = append(out, r)
	}
	return out
}

// wanted is the nonce that all of m's instances must hold for m to be committed.
func (d *draft) wanted(m move) Nonce {
	if m.warm {
		return m.from.Nonce
	}
	return d.prepares[m.group].Nonce
}

// late lists the registered instances of m that do not hold what is wanted.
func (d *draft) late(m move) []string {
	var out []string
	for _, said := range m.regs {
		if !d.holds(m, said) {
			out = append(out, said.Instance)
		}
	}
	return out
}

// lateText names the instances of ms that are not ready, with their stage.
func (d *draft) lateText(ms []move) string {
	const most = 20 // of what may be thousands: an override lists them all
	var out []string
	more := 0
	for _, m := range ms {
		for _, name := range d.late(m) {
			if len(out) == most {
				more++
				continue
			}
			stage := "waiting"
			rep, ok := d.v.Reports[name]
			switch {
			case !ok:
				stage = "no report"
			case rep.Preparing != nil && rep.Preparing.Nonce == d.wanted(m):
				stage = rep.Preparing.Stage
			case len(d.v.Ready[m.group][name].Lacks) > 0:
				stage = lackText(m, d.v.Ready[m.group][name])
			case rep.Stale != "":
				stage = rep.Stale
			}
			out = append(out, fmt.Sprintf("%s (%s)", join([]string{name}, ""), brief(stage, 80)))
		}
	}
	if more > 0 {
		out = append(out, fmt.Sprintf("and %d more", more))
	}
	return strings.Join(out, ", ")
}

// maxWhy bounds a reason, in bytes. Part of it is what instances say, and a
// transaction that repeats it for each group must not become too large.
const maxWhy = 4000

func brief(s string, most int) string {
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}

// lost names the groups of ms that have fewer than half of the last commit's
// members, which is how a mass lease loss looks, and empty groups that had some.
func lost(ms []move) []move {
	var out []move
	for _, m := range ms {
		if 2*len(m.regs) < m.from.members() {
			out = append(out, m)
		}
	}
	return out
}

func lostText(ms []move) string {
	out := make([]string, len(ms))
	for i, m := range ms {
		way := "it goes on when they are back, or commits without them by --allow-fewer"
		if len(m.regs) == 0 {
			way = "restart them, or commit without them by --allow-fewer, or retire the group"
		}
		out[i] = fmt.Sprintf("group %s has %d of the %d instances of its last commit: %s", m.group, len(m.regs), m.from.members(), way)
	}
	return strings.Join(out, "; ")
}

func (a Assignment) members() int { return cmp.Or(a.Members, a.Ready) }

// reporting names the instances of group g that report, sorted.
func (d *draft) reporting(g string) []string {
	if d.reporters == nil {
		d.reporters = make(map[string][]string)
		for _, name := range slices.Sorted(maps.Keys(d.v.Reports)) {
			in := d.v.Reports[name].Group
			d.reporters[in] = append(d.reporters[in], name)
		}
	}
	return d.reporters[g]
}

// frozenIn names the instances of group g that know more than etcd does.
// A view is read at one revision of etcd, so a report above the group's epoch
// proves it even before the instance says so.
func (d *draft) frozenIn(g string) []string {
	var out []string
	for _, name := range d.reporting(g) {
		r := d.v.Reports[name]
		if strings.HasPrefix(r.Frozen, FrozenStoreWentBack) || r.HighestEpoch > d.groups[g].Epoch {
			out = append(out, name)
		}
	}
	return out
}

func (d *draft) frozenText(ms []move) string {
	var out []string
	for _, m := range ms {
		if who := d.frozenIn(m.group); len(who) > 0 {
			out = append(out, fmt.Sprintf("group %s is frozen, %s served what etcd does not know: routectl recover", m.group, strings.Join(who, ", ")))
		}
	}
	return strings.Join(out, "; ")
}

// highest is the highest epoch that group g or its instances ever saw.
func (d *draft) highest(g string) int64 {
	h := d.groups[g].Epoch
	for _, name := range d.reporting(g) {
		h = max(h, d.v.Reports[name].HighestEpoch)
	}
	return h
}

// refusal finds an instance that refuses what r asks it to hold.
func (d *draft) refusal(r *Rollout, ms []move) (Ready, bool) {
	for _, m := range ms {
		for _, said := range m.regs {
			if n := r.Nonces[m.group]; said.Refused && n != "" && said.Nonce == n {
				return said, true
			}
		}
	}
	return Ready{}, false
}
