package history

import (
	"slices"
	"strings"

	"routerd.dev/internal/rollout"
)

// fenced holds a transaction against I4: what decides for the fleet is written
// only by who is elected, and each such transaction moves the election key,
// which it found as its writer left it. So a controller that was deposed shows:
// either its transaction leaves the key alone, or it takes it from another.
//
// Operators write without being elected what only asks, or what no controller
// does: an intent with the target it stands for, settings, a pardon, a collection
// under gc's lock, and what `routectl recover` gives back to an etcd that lost it.
func (r *records) fenced(ws []Write) {
	var key *Write
	for i := range ws {
		if ws[i].Key == "election/leader" && !ws[i].Deleted {
			key = &ws[i]
		}
	}
	if key != nil && r.leader != nil && key.Version > 1 && (string(key.Value) != string(r.leader.Value) || key.Lease != r.leader.Lease) {
		r.v.broken("I4", "%s wrote at %s in the term of %s: %s", key.Value, place(key.Era, key.Revision), r.leader.Value, keys(ws))
		return
	}
	control := r.control(ws)
	if control == "" {
		return
	}
	r.v.Fenced++
	switch at := place(ws[0].Era, ws[0].Revision); {
	case key == nil:
		r.v.broken("I4", "%s was written at %s without the election key", control, at)
	case key.Version == 1:
		r.v.broken("I4", "%s was written at %s by %s, who was not elected before", control, at, key.Value)
	}
}

// control names the first of ws that only a controller may write, or "".
func (r *records) control(ws []Write) string {
	recover := slices.ContainsFunc(ws, func(w Write) bool {
		var a rollout.AuditEntry
		return strings.HasPrefix(w.Key, "audit/") && !w.Deleted && r.decode(&w, &a) && a.What == "recover"
	})
	for i := range ws {
		w := &ws[i]
		dir, _, _ := strings.Cut(w.Key, "/")
		var mine bool
		switch dir {
		case "groups", "served":
			mine = !recover && !(w.Deleted && r.collector)
		case "prepare", "rollouts":
			mine = true
		case "ended", "baked":
			mine = !(w.Deleted && r.collector)
		case "condemned":
			mine = !w.Deleted
		case "intents":
			mine = w.Deleted
		case "fleet":
			var f rollout.Fleet
			mine = w.Version > 1 && r.decode(w, &f) && (f.Committed != r.fleet.Committed || f.Floor != r.fleet.Floor)
		}
		if mine {
			return w.Key
		}
	}
	return ""
}

func keys(ws []Write) string {
	var out []string
	for _, w := range ws {
		if w.Key != "election/leader" {
			out = append(out, w.Key)
		}
	}
	return strings.Join(out, ", ")
}
