package agent

import (
	"fmt"
	"time"

	"routerd.dev/internal/rollout"
	"routerd.dev/internal/version"
)

// Origin tells where it is known from that the epoch served was committed.
type Origin string

// The origins.
const (
	SourceEtcd Origin = "etcd"
	SourceDisk Origin = "disk" // remembered: etcd has not confirmed it since the start
)

// A Status is what the instance does at one moment: what it serves, not what
// it was told to (I12).
type Status struct {
	Fleet    string    `json:"fleet,omitempty"`
	Group    string    `json:"group"`
	Instance string    `json:"instance"`
	Boot     string    `json:"boot"`
	Started  time.Time `json:"started"`

	Serving  *Serving         `json:"serving,omitempty"` // absent while it serves nothing
	Holds    []version.Digest `json:"holds"`
	Ready    string           `json:"ready,omitempty"` // what its ready key is to say: a nonce, none, or refused and why
	Joined   bool             `json:"joined"`          // registered in etcd at this moment
	Draining bool             `json:"draining,omitempty"`

	Preparing   *rollout.Progress `json:"preparing,omitempty"`
	Refused     *rollout.Refusal  `json:"refused,omitempty"` // the newest
	Frozen      string            `json:"frozen,omitempty"`
	Stale       string            `json:"stale,omitempty"`
	StaleSince  time.Time         `json:"staleSince,omitzero"`
	Quarantined []version.Digest  `json:"quarantined,omitempty"`
	Evicted     bool              `json:"evicted,omitempty"` // out of traffic, as the group's controller wished, or by its own wish
	Out         string            `json:"out,omitempty"`     // why by its own wish: what is committed cannot be served
	Pinned      version.Digest    `json:"pinned,omitzero"`   // served because of Pin, whatever is committed
	Pin         *Pin              `json:"pin,omitempty"`     // an operator's order; not obeyed while Pinned is absent
	Lacks       []rollout.Lack    `json:"lacks,omitempty"`   // what cannot be had of the set in force; it is tried again
	Disk        string            `json:"disk,omitempty"`    // why the disk does not remember

	HighestEpoch    int64 `json:"highestEpoch"`
	HighestRevision int64 `json:"highestRevision"`
	SkewMicros      int64 `json:"skewMicros,omitempty"`    // last switch: actual − instant
	PrepareMicros   int64 `json:"prepareMicros,omitempty"` // last prepare

	Etcd Etcd `json:"etcd"`
}

// Serving is what requests are served by.
type Serving struct {
	rollout.Serving
	Source    Origin             `json:"source"`
	Candidate *rollout.Candidate `json:"candidate,omitempty"`
	// Fallback: the epoch's own revision is quarantined here, an older one is
	// served in its place.
	Fallback bool `json:"fallback,omitempty"`
}

// Etcd tells how etcd answers.
type Etcd struct {
	Reachable bool      `json:"reachable"`
	Since     time.Time `json:"since"`                // of Reachable being so
	Contact   time.Time `json:"lastContact,omitzero"` // when it answered last
	Error     string    `json:"error,omitempty"`      // the newest, while it does not answer or lets not join
}

// Status returns what the instance does now. It may be called at any time, from
// any goroutine.
func (a *Agent) Status() Status {
	s := *a.status.Load()
	s.Draining = a.draining.Load()
	s.Disk = a.disk.trouble()
	s.Preparing = a.progress.Load()
	return s
}

// A Readiness answers whether traffic may be sent here.
type Readiness struct {
	Ready  bool   `json:"ready"`
	Why    string `json:"why"`              // in words, also when it is ready
	Source Origin `json:"source,omitempty"` // of the epoch served
	Epoch  int64  `json:"epoch,omitempty"`
	Pinned *Pin   `json:"pinned,omitempty"` // the order that decides what is served
}

// Ready tells whether the instance serves a committed epoch, or one remembered
// on disk, is not draining and not evicted.
func (a *Agent) Ready() Readiness {
	s := a.Status()
	switch {
	case s.Draining:
		return Readiness{Why: "draining"}
	case s.Serving == nil:
		why := "nothing is served yet"
		switch {
		case s.Stale != "":
			why += ": " + s.Stale
		case s.Etcd.Error != "":
			why += ": " + s.Etcd.Error
		}
		return Readiness{Why: why}
	case s.Out != "":
		return Readiness{Why: "out of traffic until it serves what is committed: " + s.Out, Source: s.Serving.Source, Epoch: s.Serving.Epoch}
	case s.Evicted:
		return Readiness{Why: "evicted: it was too slow for a prepare; ready again once it serves what is committed", Source: s.Serving.Source, Epoch: s.Serving.Epoch}
	}
	r := Readiness{Ready: true, Why: "serving a committed epoch", Source: s.Serving.Source, Epoch: s.Serving.Epoch}
	if r.Source == SourceDisk {
		r.Why = "serving an epoch remembered on disk"
	}
	if !s.Pinned.IsZero() {
		r.Pinned = s.Pin
		r.Why = fmt.Sprintf("PINNED by an operator to revision %d (%s), whatever epoch %d is", s.Serving.Revision, s.Pinned.Short(), r.Epoch)
	}
	return r
}

// snapshot makes what Status and the report say, of what the loop knows.
func (p *loop) snapshot(now time.Time) Status {
	c := p.core
	s := Status{
		Fleet: c.fleet, Group: c.group, Instance: c.instance, Boot: p.o.Who.Boot, Started: p.started,
		Holds: sortedDigests(c.held), Joined: c.registered,
		Refused: c.refusal, Frozen: c.frozen, Quarantined: sortedDigests(c.quarantined),
		HighestEpoch: c.highestEpoch, HighestRevision: c.highestRevision,
		SkewMicros: p.skew.Microseconds(), PrepareMicros: p.prepared.Microseconds(), Etcd: p.etcd,
		Evicted: !c.evicted.IsZero(), Pin: c.pin, Lacks: c.sickness(),
	}
	if v := c.serving; v != nil {
		s.Serving = &Serving{
			Serving: rollout.Serving{Epoch: v.Epoch, Revision: v.main().Number, Digest: v.main().Digest, Since: v.since},
			Source:  v.source, Candidate: v.candidate, Fallback: v.fallback,
		}
		if v.pinned {
			s.Pinned = v.stable.Digest
		}
	}
	if r := p.wished; r != nil {
		switch {
		case r.Nonce == "":
			s.Ready = "none"
		case len(r.Lacks) > 0 && !r.Evicted:
			s.Ready = "lacks " + string(r.Nonce)
		case r.Evicted:
			s.Ready = "evicted " + string(r.Nonce)
		case r.Refused:
			s.Ready = "refused " + string(r.Nonce) + " " + r.Why
		default:
			s.Ready = string(r.Nonce)
		}
	}
	if c.own {
		s.Out = c.behind(now)
	}
	switch behind := c.behind(now); {
	case !p.etcd.Reachable:
		s.Stale, s.StaleSince = "no answer from etcd since "+p.etcd.Since.UTC().Format(time.RFC3339), p.etcd.Since
	case behind != "":
		s.Stale, s.StaleSince = behind, c.activate
	case p.broken != "":
		s.Stale, s.StaleSince = "a record in etcd cannot be read: "+p.broken, p.brokenSince
	case c.serving != nil && !c.registered && p.etcd.Error != "":
		s.Stale, s.StaleSince = "not registered: "+p.etcd.Error, p.etcd.Since
	}
	return s
}

// report is what a status says to the fleet.
func (s *Status) report() rollout.Report {
	r := rollout.Report{
		Instance: s.Instance, Group: s.Group, Boot: s.Boot,
		Holds: s.Holds, HighestEpoch: s.HighestEpoch, HighestRevision: s.HighestRevision,
		Refused: s.Refused, Frozen: s.Frozen, Stale: s.Stale,
		Quarantined: s.Quarantined, Pinned: s.Pinned, Evicted: s.Evicted, Lacks: s.Lacks, SkewMicros: s.SkewMicros, PrepareMicros: s.PrepareMicros,
	}
	if s.Serving != nil {
		v := s.Serving.Serving
		r.Serving = &v
	}
	return r
}
