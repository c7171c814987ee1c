package rollout

import (
	"fmt"
	"slices"
	"strings"

	"routerd.dev/internal/version"
)

// An instance may be unable to have a digest of the set in force: its pieces
// are lost, its build hangs. The next set names that digest, too, for the way
// back, so the instance never holds that set; and if the digest is what is in
// force, the next revision is the cure. Whoever lacks nothing but what it
// lacked before is therefore not waited for when the commit goes elsewhere: it
// holds what the commit has it serve, and going back to the digest finds it as
// it was found before. The commit is an override that names it. What is new in
// a set nobody may lack.

// lacksOther tells that an instance holds all of the set that m wants but what it
// lacked before, and that m does not go there.
func (d *draft) lacksOther(m move, said Ready) bool {
	return !said.Refused && said.Nonce == d.wanted(m) && len(said.Lacks) > 0 &&
		!slices.ContainsFunc(said.Lacks, func(x version.Digest) bool { return x == m.to.Digest || !has(m.from.Set, x) })
}

// waits tells whether m has to wait: for somebody who is late and is not spared, or
// because nobody would be left who holds what m goes to.
func (d *draft) waits(m move) bool {
	held := len(m.regs) == 0
	for _, said := range m.regs {
		switch {
		case d.holds(m, said), d.lacksOther(m, said):
			held = true
		case !d.evicted(m, said):
			return true
		}
	}
	return !held
}

// sparedText names those of ms who are late and not waited for.
func (d *draft) sparedText(ms []move) string {
	const most = 20 // of what may be thousands: an override lists them all
	var left, lack []string
	more := 0
	for _, m := range ms {
		for _, said := range m.regs {
			switch {
			case d.lacksOther(m, said) && len(lack) == most:
				more++
			case d.lacksOther(m, said):
				lack = append(lack, fmt.Sprintf("%s (%s)", said.Instance, lackText(m, said)))
			case d.evicted(m, said):
				left = append(left, said.Instance)
			}
		}
	}
	var out []string
	if len(left) > 0 {
		out = append(out, "evicted, not ready in time: "+join(left, ", "))
	}
	if more > 0 {
		lack = append(lack, fmt.Sprintf("and %d more", more))
	}
	if len(lack) > 0 {
		out = append(out, "not all of the set is held, as before: "+join(lack, ", "))
	}
	return strings.Join(out, "; ")
}

func lackText(m move, said Ready) string {
	var out []string
	for _, x := range said.Lacks {
		name := x.Short()
		if i := slices.IndexFunc(m.from.Set, func(r version.Ref) bool { return r.Digest == x }); i >= 0 {
			name = fmt.Sprint(m.from.Set[i].Number)
		}
		out = append(out, name)
	}
	return brief("lacks revision "+join(out, ", "), 80)
}
