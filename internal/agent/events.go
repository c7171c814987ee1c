package agent

import (
	"context"
	"errors"
	"strings"
	"time"

	"routerd.dev/internal/rollout"
	"routerd.dev/internal/store"
)

// heardWithin is within what time the watch says something, be it that nothing
// changed. One that does not is given up: something in this process is stuck.
const heardWithin = 13 * time.Second

var errSilent = errors.New("the watch says nothing")

// follow has the group watched until ctx ends, by a new watch whenever the
// loop gave one up.
func (p *loop) follow(ctx context.Context) {
	for ctx.Err() == nil {
		watching, end := context.WithCancel(ctx)
		p.tell(ctx, func() { p.unwatch, p.heard = end, time.Now() })
		// Its only error is the context's.
		_ = p.deps.Store.WatchGroup(watching, p.core.group, p.o.Watch, func(st groupState) {
			p.tell(watching, func() { p.heard = time.Now(); p.sawState(st, false, 0) })
		})
		end()
	}
}

// checkWatch gives up a watch that says nothing, and has the group read meanwhile.
// It returns when to look next.
func (p *loop) checkWatch(now time.Time) time.Time {
	if p.unwatch == nil {
		return time.Time{}
	}
	if next := p.heard.Add(p.o.Heard); next.After(now) {
		return next
	}
	if p.etcd.Reachable {
		p.log.Error("the watch says nothing, making a new one", "since", p.heard)
		p.sawState(groupState{Err: errSilent, StaleSince: p.heard}, false, 0) // until a read tells otherwise
	}
	p.unwatch()
	p.heard = now
	p.core.doubt = true
	p.again = true
	return time.Time{}
}

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
			p.log.Warn("etcd does not answer, serving on", "since", st.StaleSince, "err", st.Err)
		}
		p.etcd.Error = line(st.Err.Error())
		return
	}
	p.contact(now)
	if broken := p.unreadable(st); broken != "" {
		if p.broken == "" {
			p.brokenSince = now
		}
		if p.broken != broken {
			p.log.Error("a record cannot be read; what was known before stands", "why", broken)
		}
		p.broken = broken
		return
	}
	if p.broken != "" {
		p.broken = ""
		p.core.contact() // etcd tells again what is in force
	}
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
	p.meter.resend()
	p.log.Info("joined")
}

func (p *loop) lost(left bool) {
	p.core.left()
	if !left {
		p.log.Warn("the lease is lost, serving on and joining again")
	}
}

func (p *loop) said(r rollout.Ready, admitted, out bool) {
	if admitted {
		p.core.admitted = true
	}
	if out {
		p.core.stepped(time.Now())
		p.log.Error("out of traffic until what is committed can be served", "why", p.core.behind(time.Now()))
	}
	p.etcd.Contact = time.Now()
	p.log.Debug("ready", "nonce", r.Nonce, "refused", r.Refused, "why", r.Why)
}

// floor tells that it has to stay in traffic although it cannot serve what is
// committed.
func (p *loop) floor(err error) {
	p.core.mayNot(time.Now())
	p.log.Warn("what is committed cannot be served, and the group spares no other instance: serving what there is", "err", err)
}

func (p *loop) joinFailed(err error) {
	p.twin = errors.Is(err, store.ErrTwin)
	if now := line(err.Error()); p.etcd.Error != now {
		p.etcd.Error = now
		p.log.Warn("cannot join, trying again", "err", err)
	}
}
