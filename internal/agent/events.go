package agent

import (
	"context"
	"errors"
	"strings"
	"time"

	"routerd.dev/internal/rollout"
	"routerd.dev/internal/store"
)

// confirm reads the group linearizably when the core doubts what it saw.
func (p *loop) confirm(ctx context.Context, doubt bool, now time.Time) {
	if !doubt || p.confirming || now.Before(p.confirmAt) {
		return
	}
	p.confirming = true
	after := p.core.records
	p.confirms.Go(func() {
		st, err := p.deps.Store.Group(ctx, p.core.group)
		p.tell(ctx, func() {
			p.confirming = false
			if err != nil {
				p.confirmAt = time.Now().Add(jitter(longestPause))
				return
			}
			p.sawState(st, true, after)
		})
	})
}

// sawState takes what etcd says about the group.
func (p *loop) sawState(st groupState, confirmed bool, after int) {
	now := time.Now()
	if st.Err != nil {
		if p.etcd.Reachable {
			p.etcd.Reachable, p.etcd.Since = false, st.StaleSince
			p.log.Warn("etcd does not answer, serving on", "since", st.StaleSince, "error", st.Err)
		}
		p.etcd.Error = line(st.Err.Error())
		return
	}
	p.contact(now)
	if broken := p.unreadable(st); broken != "" {
		if p.logged != broken {
			p.log.Error("a record cannot be read; what was known before stands", "why", broken)
		}
		p.logged = broken
		return
	}
	p.logged = ""
	frozen := p.core.frozen
	if st.At >= p.state.At || confirmed {
		p.state = st
	}
	p.core.saw(record{
		at: st.At, fleet: st.FleetID, assignment: st.Assignment, prepare: st.Prepare, confirmed: confirmed, after: after,
	}, now)
	switch {
	case p.core.frozen != "" && frozen == "":
		p.log.Error("frozen: serving on, following nothing until routectl recover", "why", p.core.frozen)
	case p.core.frozen == "" && frozen != "":
		p.log.Info("recovered: following the group again", "fleet", p.core.fleet)
	}
}

// unreadable tells which record says nothing because it cannot be read: that
// is not the same as one that is gone (I10).
func (p *loop) unreadable(st groupState) string {
	for _, b := range st.Broken {
		if (st.Assignment == nil && st.AssignmentMod != 0) || (st.FleetID == "" && strings.HasSuffix(b.Key, "format")) {
			return b.Key + ": " + b.Why
		}
	}
	return ""
}

func (p *loop) contact(now time.Time) {
	if !p.etcd.Reachable {
		if !p.etcd.Contact.IsZero() {
			p.log.Info("etcd answers again", "after", now.Sub(p.etcd.Since))
		}
		p.etcd.Reachable, p.etcd.Since, p.etcd.Error = true, now, ""
		p.core.contact()
	}
	p.etcd.Contact = now
}

// joined, lost, said and joinFailed are told by the link.
func (p *loop) joined() {
	p.contact(time.Now())
	p.etcd.Error, p.twin = "", false
	p.core.registered = true
	p.core.contact()
	p.log.Info("joined")
}

func (p *loop) lost(left bool) {
	p.core.left()
	if !left {
		p.log.Warn("the lease is lost, serving on and joining again")
	}
}

func (p *loop) said(r rollout.Ready, admitted bool) {
	if admitted {
		p.core.admitted = true
	}
	p.etcd.Contact = time.Now()
	p.log.Debug("ready", "nonce", r.Nonce, "refused", r.Refused, "why", r.Why)
}

func (p *loop) joinFailed(err error) {
	p.twin = errors.Is(err, store.ErrTwin)
	if now := line(err.Error()); p.etcd.Error != now {
		p.etcd.Error = now
		p.log.Warn("cannot join, trying again", "error", err)
	}
}
