package rollout

import (
	"fmt"
	"maps"
	"slices"

	"routerd.dev/internal/version"
)

// takeRecover ends a freeze: the groups go on from above every epoch that an
// instance ever saw, with what etcd has or with what one instance serves. It is an
// override, because frozen instances do not prepare.
func (d *draft) takeRecover(r Rollout) {
	groups, why := d.frozenGroups(&r)
	if why == "" && r.From != "" {
		r.To, why = d.restored(&r)
	}
	if why == "" && r.From == "" {
		for _, g := range groups {
			if a, ok := d.groups[g]; why == "" && (!ok && d.fleet.Committed.IsZero() || ok && a.Stable.IsZero()) {
				why = fmt.Sprintf("etcd has no revision for group %s to adopt: routectl recover --from INSTANCE, or publish", g)
			}
		}
	}
	if why != "" {
		d.reject(&r, PhaseAborted, why)
		return
	}
	if len(groups) == 0 {
		d.end(&r, PhaseDone, "no group is frozen: nothing to recover")
		return
	}
	r.Groups = groups
	d.clear(&r)
	d.recommit(&r, groups)
}

// frozenGroups lists the groups that r is to end the freeze of, also such as
// etcd has forgotten.
func (d *draft) frozenGroups(r *Rollout) ([]string, string) {
	frozen := make(map[string]bool)
	for _, rep := range d.v.Reports {
		if len(d.frozenIn(rep.Group)) > 0 {
			frozen[rep.Group] = true
		}
	}
	for _, g := range r.Groups {
		if _, ok := d.groups[g]; !ok && !frozen[g] {
			return nil, d.unknown(r.Groups)
		}
	}
	maps.DeleteFunc(frozen, func(g string, _ bool) bool {
		return len(r.Groups) > 0 && !slices.Contains(r.Groups, g)
	})
	return slices.Sorted(maps.Keys(frozen)), ""
}

// restored is the revision that the instance r.From serves, which routectl has
// put back into etcd.
func (d *draft) restored(r *Rollout) (version.Ref, string) {
	to := r.To
	if s := d.v.Reports[r.From].Serving; to.IsZero() && s != nil {
		to = version.Ref{Number: s.Revision, Digest: s.Digest}
	}
	if to.IsZero() {
		return to, fmt.Sprintf("instance %s does not say what it serves: routectl status lists who does", r.From)
	}
	if rev, ok := d.v.Revisions[to.Number]; (!ok || rev.Digest != to.Digest) && !d.v.Served[to.Digest] {
		return to, fmt.Sprintf("revision %d of instance %s is not in etcd: routectl recover --from puts it there first", to.Number, r.From)
	}
	return to, ""
}

func (d *draft) recommit(r *Rollout, groups []string) {
	var epoch int64
	for _, g := range groups {
		epoch = max(epoch, d.highest(g))
	}
	epoch++
	instances := make(map[string]int)
	for _, i := range d.v.Instances {
		instances[i.Group]++
	}
	r.Epochs = make(map[string]int64, len(groups))
	for _, g := range groups {
		a, ok := d.groups[g]
		if !ok {
			a = d.newGroup(g)
		}
		if r.From != "" && a.Stable.Digest != r.To.Digest {
			back := pushed(a, r.To)
			a.Nonce, a.Set = d.fresh(), d.setOf(r.To, version.Ref{}, back)
			a.Stable, a.Back = r.To, back
		}
		a.Candidate, a.Against = nil, version.Ref{} // Their rollout was superseded.
		late := d.late(move{group: g, from: a, warm: true, regs: d.registered(g)})
		a.Epoch, a.Recovered, a.Instant, a.Rollout = epoch, epoch, d.now, r.ID
		a.Ready, a.Members = len(d.registered(g))-len(late), instances[g]
		a.Override = &Override{Why: "recover by " + r.By, Instances: late}
		d.groups[g] = a
		r.Epochs[g] = epoch
	}
	if r.From != "" {
		d.fleet.Target = r.To
		d.serve(r.To.Digest)
	}
	d.end(r, PhaseDone, "")
	d.audit(r, "recover", r.Message, groups, r.To)
	d.settle()
}
