package history

import (
	"fmt"
	"sort"
	"time"
)

// A step is that from At on no request may be asked and be answered with less
// than Epoch.
type step struct {
	At    time.Duration
	Epoch int64
}

// steps only grow, in both; the newest is the last.
type steps []step

func (s steps) floor(asked time.Duration) int64 {
	i := sort.Search(len(s), func(i int) bool { return s[i].At > asked })
	if i == 0 {
		return 0
	}
	return s[i-1].Epoch
}

func (s *steps) rise(got time.Duration, epoch int64) {
	if n := len(*s); n == 0 || epoch > (*s)[n-1].Epoch {
		*s = append(*s, step{At: got, Epoch: epoch})
	}
}

// An asked is what one client saw last of one group, and when.
type asked struct {
	client int32
	group  string
}

// answers holds the answers against each other and against the records.
type answers struct {
	v     *verdict
	h     *History
	r     *records
	floor map[string]*steps // by instance
	newer map[asked]*steps
	after map[*commit]time.Duration // a moment before which the commit was not made
	held  map[string]map[string]time.Time
	away  map[string][]Sample // by instance, when it said that etcd is away
}

// checkAnswers finds answers that broke
//
//   - I1: marks of two revisions, or another revision than the answer's epoch has;
//   - I2: an answer of an epoch that was not yet committed, or whose set the
//     instance had not prepared yet;
//   - I3: a lower epoch than one that had been seen of the instance when the request was asked;
//   - I5, I9: no good answer, while etcd was away or not;
//   - I10: a route that every revision has was gone.
func checkAnswers(v *verdict, h *History, r *records) {
	a := &answers{
		v: v, h: h, r: r, floor: map[string]*steps{}, newer: map[asked]*steps{},
		after: bounds(h, r), held: prepared(h), away: map[string][]Sample{},
	}
	for _, s := range h.Samples {
		if s.Unreachable {
			a.away[s.Instance] = append(a.away[s.Instance], s)
		}
		if s.Fallback {
			r.strayed[s.Instance] = true
		}
	}
	for p := range h.Answers {
		a.look(p)
	}
}

func (a *answers) look(p *Response) {
	a.v.Answers++
	away := a.isAway(p)
	switch {
	case p.Fault == FaultMixed:
		a.v.broken("I1", "%s: %s", a.when(p), p.Err)
	case p.Fault == FaultNone:
	case p.Excused:
		a.v.Excused++
		return
	default:
		a.v.Failed++
		rule := "I9"
		if p.Fault == FaultNoRoute {
			rule = "I10"
		} else if away {
			rule = "I5"
		}
		a.v.broken(rule, "%s: %s", a.when(p), p.Err)
		return
	}
	a.v.Good++
	if away {
		a.v.Away++
	}
	a.order(p)
	a.records(p)
}

// order is I3 as clients see it.
func (a *answers) order(p *Response) {
	floor := a.floor[p.Instance]
	if floor == nil {
		floor = &steps{}
		a.floor[p.Instance] = floor
	}
	if least := floor.floor(p.Asked); p.Epoch < least {
		a.v.broken("I3", "%s: epoch %d, and the instance had answered with %d before", a.when(p), p.Epoch, least)
	}
	floor.rise(p.Got, p.Epoch)

	who := asked{p.Client, p.Group}
	seen := a.newer[who]
	if seen == nil {
		seen = &steps{}
		a.newer[who] = seen
	}
	if seen.floor(p.Asked) > p.Epoch {
		for _, s := range *seen {
			if s.Epoch > p.Epoch {
				a.v.Behind = max(a.v.Behind, p.Got-s.At)
				break
			}
		}
	}
	seen.rise(p.Got, p.Epoch)
}

// records holds an answer against what was committed and published.
func (a *answers) records(p *Response) {
	c := a.r.byEpoch[p.Group][p.Epoch]
	if c == nil {
		a.v.broken("I2", "%s: epoch %d of group %s was never committed", a.when(p), p.Epoch, p.Group)
		return
	}
	if fits := p.Revision == c.Stable.Number || c.Candidate != nil && p.Revision == c.Candidate.Number; !fits && !a.r.strayed[p.Instance] {
		a.v.broken("I1", "%s: revision %d in epoch %d of group %s, which is of revision %d", a.when(p), p.Revision, p.Epoch, p.Group, c.Stable.Number)
	}
	if err := a.r.marked(p.Revision, p.Mark); err != nil {
		a.v.broken("I1", "%s: %v", a.when(p), err)
	}
	if at, ok := a.after[c]; ok && p.Got < at {
		a.v.broken("I2", "%s: epoch %d of group %s was not committed before %v", a.when(p), p.Epoch, p.Group, a.h.Start.Add(at).Format(clock))
	}
	if at, ok := a.held[p.Instance][string(c.Nonce)]; ok && a.h.Start.Add(p.Got).Before(at) {
		a.v.broken("I2", "%s: epoch %d of group %s, whose set it held only at %s", a.when(p), p.Epoch, p.Group, at.Format(clock))
	}
}

const clock = "15:04:05.000"

func (a *answers) when(p *Response) string {
	return fmt.Sprintf("%s at %s +%v", p.Instance, a.h.Start.Add(p.Asked).Format(clock), (p.Got - p.Asked).Round(time.Millisecond))
}

// isAway tells whether the instance said while the request was under way, or
// both shortly before and after it, that etcd does not answer.
func (a *answers) isAway(p *Response) bool {
	ss := a.away[p.Instance]
	i := sort.Search(len(ss), func(i int) bool { return ss[i].Got >= p.Asked })
	return i < len(ss) && (ss[i].Asked <= p.Got || i > 0 && ss[i].Asked-ss[i-1].Got < between)
}

// between is the most time between two samples that say so for etcd to count as
// away all the while.
const between = 2 * time.Second

// bounds finds for each commit a moment before which it was not made: that of
// the last time etcd was asked and had not come to it.
func bounds(h *History, r *records) map[*commit]time.Duration {
	out := map[*commit]time.Duration{}
	for _, c := range r.commits {
		// Bounds rise in era and revision: a later question has a later answer.
		i := sort.Search(len(h.Bounds), func(i int) bool {
			b := h.Bounds[i]
			return b.Era > c.era || b.Era == c.era && b.Revision >= c.at
		})
		if i > 0 && h.Bounds[i-1].Era == c.era {
			out[c] = h.Bounds[i-1].Asked
		}
	}
	return out
}

// prepared is when each instance logged first that it holds a set, by instance
// and nonce.
func prepared(h *History) map[string]map[string]time.Time {
	out := map[string]map[string]time.Time{}
	for name, lines := range h.Logs {
		if h.Skewed[name] {
			continue
		}
		out[name] = map[string]time.Time{}
		for _, l := range lines {
			if _, ok := out[name][l.Nonce]; l.Msg == "prepared" && !ok {
				out[name][l.Nonce] = l.Time
			}
		}
	}
	return out
}
