package history

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"routerd.dev/internal/rollout"
	"routerd.dev/internal/version"
)

// A commit is one write of a group's assignment, with what was registered at
// that revision.
type commit struct {
	rollout.Assignment
	era   int
	at    int64
	ready map[string]string // by instance: the values of ready/<group>/
}

// A revision is one, and the era that published it.
type revision struct {
	version.Revision
	era int
}

// A records is what the writes told: the state after the last one, and what
// was ever committed.
type records struct {
	v *verdict

	era       int
	ready     map[string]map[string]string // by group, then instance
	epochs    map[string]int64             // newest of each group in this era
	leader    *Write                       // the election key as it stands; nil for none
	fleet     rollout.Fleet
	collector bool // the lock of gc is held

	commits   []*commit
	byEpoch   map[string]map[int64]*commit // by group
	revisions map[int64][]revision         // by number
	boots     map[string]map[string]bool   // boot ids ever seen, by instance
	strayed   map[string]bool              // instances that ever said to serve another revision than their epoch's
}

// replay goes through the writes once and finds what broke
//
//   - I2: an assignment was written while a registered instance did not hold its
//     nonce, without an override on record that names it; or an instance reported an
//     epoch that etcd did not have yet;
//   - I3: a group's epoch did not grow, was given twice, or fell in an instance's reports;
//   - I4: a control write did not move the election key of who was elected.
func replay(v *verdict, h *History) *records {
	r := &records{
		v: v, byEpoch: map[string]map[int64]*commit{}, revisions: map[int64][]revision{},
		boots: map[string]map[string]bool{}, strayed: map[string]bool{},
	}
	r.begin(0)
	for ws := h.Writes; len(ws) > 0; {
		n := 1
		for n < len(ws) && ws[n].Era == ws[0].Era && ws[n].Revision == ws[0].Revision {
			n++
		}
		if ws[0].Era != r.era {
			r.begin(ws[0].Era)
		}
		r.transaction(ws[:n])
		v.Writes += n
		ws = ws[n:]
	}
	return r
}

// begin starts an era: etcd holds nothing, and what it held before counts for
// nothing but the epochs that were given.
func (r *records) begin(era int) {
	r.era, r.ready, r.epochs = era, map[string]map[string]string{}, map[string]int64{}
	r.leader, r.fleet, r.collector = nil, rollout.Fleet{}, false
}

// transaction looks at the writes of one revision, and then carries them out.
func (r *records) transaction(ws []Write) {
	if slices.ContainsFunc(ws, func(w Write) bool { return w.Deleted && w.Key == "format" }) {
		r.begin(r.era) // who takes the fleet's records away asks nobody
		return
	}
	if !ws[0].Base {
		r.fenced(ws)
	}
	for i := range ws {
		w := &ws[i]
		dir, name, _ := strings.Cut(w.Key, "/")
		switch dir {
		case "election":
			r.leader = w
			if w.Deleted {
				r.leader = nil
			}
		case "gc":
			if name == "lock" {
				r.collector = !w.Deleted
			}
		case "ready":
			r.said(name, w)
		case "instances":
			r.booted(name, w)
		case "fleet":
			r.decode(w, &r.fleet)
		case "revisions":
			r.revision(w)
		}
	}
	for i := range ws {
		group, ok := strings.CutPrefix(ws[i].Key, "groups/")
		if ok && !ws[i].Deleted {
			r.commit(group, &ws[i])
		}
	}
	for i := range ws {
		if name, ok := strings.CutPrefix(ws[i].Key, "reports/"); ok && !ws[i].Deleted {
			r.report(name, &ws[i])
		}
	}
}

// decode reads a record; one that cannot be read is a finding.
func (r *records) decode(w *Write, into any) bool {
	if w.Deleted {
		return false
	}
	if err := json.Unmarshal(w.Value, into); err != nil {
		r.v.broken("record", "%s at %d: %v", w.Key, w.Revision, err)
		return false
	}
	return true
}

func (r *records) said(name string, w *Write) {
	group, instance, _ := strings.Cut(name, "/")
	if w.Deleted {
		delete(r.ready[group], instance)
		return
	}
	if r.ready[group] == nil {
		r.ready[group] = map[string]string{}
	}
	r.ready[group][instance] = string(w.Value)
}

func (r *records) booted(name string, w *Write) {
	var i rollout.Instance
	if !r.decode(w, &i) {
		return
	}
	if r.boots[name] == nil {
		r.boots[name] = map[string]bool{}
	}
	r.boots[name][i.Boot] = true
}

// revision notes a revision. Within an era a number is given once; a fleet whose
// records were restored may give it again.
func (r *records) revision(w *Write) {
	var rev version.Revision
	if !r.decode(w, &rev) {
		return
	}
	known := r.revisions[rev.Number]
	if slices.ContainsFunc(known, func(k revision) bool { return k.Digest == rev.Digest && k.Message == rev.Message }) {
		return
	}
	for _, k := range known {
		if k.era == w.Era {
			r.v.broken("lost", "revision %d was %s (%q) and became %s (%q)", rev.Number, k.Digest.Short(), k.Message, rev.Digest.Short(), rev.Message)
		}
	}
	r.revisions[rev.Number] = append(known, revision{rev, w.Era})
}

func (r *records) commit(group string, w *Write) {
	c := &commit{era: w.Era, at: w.Revision, ready: maps.Clone(r.ready[group])}
	if !r.decode(w, &c.Assignment) {
		return
	}
	if old := r.byEpoch[group][c.Epoch]; old != nil && (old.Stable != c.Stable || candidate(old) != candidate(c)) {
		r.v.broken("I3", "group %s: epoch %d was committed twice: at %s of revision %d, at %s of revision %d",
			group, c.Epoch, place(old.era, old.at), old.Stable.Number, place(c.era, c.at), c.Stable.Number)
	}
	if c.Epoch <= r.epochs[group] {
		r.v.broken("I3", "group %s: epoch %d was committed after %d, at %s", group, c.Epoch, r.epochs[group], place(c.era, c.at))
	}
	r.epochs[group] = max(r.epochs[group], c.Epoch)
	if r.byEpoch[group] == nil {
		r.byEpoch[group] = map[int64]*commit{}
	}
	if r.byEpoch[group][c.Epoch] == nil {
		r.byEpoch[group][c.Epoch] = c
		r.commits = append(r.commits, c)
	}
	if w.Base || w.Version == 1 {
		return
	}
	r.v.Commits++
	for _, i := range slices.Sorted(maps.Keys(c.ready)) {
		waived := c.Override != nil && slices.Contains(c.Override.Instances, i)
		if c.ready[i] != string(c.Nonce) && !waived {
			r.v.broken("I2", "group %s epoch %d (nonce %s) was committed at %s while %s said %q", group, c.Epoch, c.Nonce, place(c.era, c.at), i, c.ready[i])
		}
	}
}

// report holds what an instance says that it serves against what etcd has at
// that revision: an instance cannot know of a commit before it is made.
func (r *records) report(name string, w *Write) {
	var rep rollout.Report
	if !r.decode(w, &rep) || rep.Serving == nil || w.Base {
		return
	}
	r.v.Reports++
	c := r.byEpoch[rep.Group][rep.Serving.Epoch]
	switch {
	case c == nil:
		r.v.broken("I2", "%s reported epoch %d of group %s at %s, before any commit of it", name, rep.Serving.Epoch, rep.Group, place(w.Era, w.Revision))
	case len(rep.Quarantined) > 0 || !rep.Pinned.IsZero():
		r.strayed[name] = true
	case rep.Serving.Digest != c.Stable.Digest && (c.Candidate == nil || rep.Serving.Digest != c.Candidate.Digest):
		r.v.broken("I12", "%s reported revision %d for epoch %d of group %s, which is of revision %d", name, rep.Serving.Revision, rep.Serving.Epoch, rep.Group, c.Stable.Number)
	}
}

// marked tells whether the answers of revision n may bear mark: it is the number
// that its message is, or else that of the revision it was composed on.
func (r *records) marked(n int64, mark int32) error {
	var marks []int64
	for _, rev := range r.revisions[n] {
		for range len(r.revisions) + 1 {
			m, err := strconv.ParseInt(rev.Message, 10, 32)
			if err == nil {
				marks = append(marks, m)
				break
			}
			up := r.revisions[rev.Parent]
			if len(up) == 0 {
				break
			}
			rev = up[len(up)-1]
		}
	}
	switch {
	case len(r.revisions[n]) == 0:
		return fmt.Errorf("revision %d was never published", n)
	case !slices.Contains(marks, int64(mark)):
		return fmt.Errorf("mark %d, revision %d has %v", mark, n, marks)
	}
	return nil
}

func candidate(c *commit) version.Ref {
	if c.Candidate == nil {
		return version.Ref{}
	}
	return c.Candidate.Ref
}

func place(era int, revision int64) string {
	if era == 0 {
		return fmt.Sprintf("revision %d of etcd", revision)
	}
	return fmt.Sprintf("revision %d of etcd's records after their %d. loss", revision, era)
}
