package agent

import (
	"slices"
	"time"
)

// An instance that is too slow for a prepare may be told to go out of traffic,
// so that a commit can leave it behind without two revisions being seen by
// clients. It turns its readiness off first, says so then, and serves on and
// builds on meanwhile: whoever sends it requests all the same gets what it has.
//
// One that cannot serve what is committed goes by its own wish, so that its
// clients are not served what the others left: if the floor of its group
// allows, it says so first, which keeps its place below the floor, and is out
// from that moment.
//
// Two are not told, and do not go: one that is frozen, since it follows
// nothing, and one that is pinned, since an operator wants it in traffic with
// another revision anyway. Both stay ready and count as late; what becomes of
// the rollout is its strategy's to say.

// traffic decides whether this instance is out of traffic. It is called before
// anything is planned.
func (c *core) traffic(now time.Time) {
	switch {
	case c.serving == nil, c.frozen != "", c.pin != nil, c.own && !c.lags():
		c.evicted, c.own = time.Time{}, false
	case c.named():
		if c.evicted.IsZero() {
			c.evicted = now
		}
	case !c.own && c.current():
		c.evicted = time.Time{}
	}
	c.away = !c.evicted.IsZero() && !now.Before(c.evicted.Add(c.evictDelay))
	c.asking = c.evicted.IsZero() && c.lags() && !now.Before(c.activate.Add(outAfter)) && !now.Before(c.notBefore)
}

const (
	// outAfter is how long an instance may not serve what is committed before it
	// goes out of traffic: longer than a compile mostly takes.
	outAfter = 3 * time.Second
	// outAgain is when it asks again, if the floor did not allow that.
	outAgain = 3 * time.Second
)

// lags tells whether an older epoch is served than is committed.
func (c *core) lags() bool {
	return c.target != nil && c.serving != nil && c.frozen == "" && c.pin == nil && c.serving.Epoch < c.target.Epoch
}

// stepped tells that the floor allows it to be out.
func (c *core) stepped(now time.Time) {
	if c.lags() && c.evicted.IsZero() {
		c.evicted, c.own = now, true
	}
}

// mayNot tells that the floor does not allow it.
func (c *core) mayNot(now time.Time) {
	if c.own {
		c.evicted, c.own = time.Time{}, false
	}
	c.asking, c.notBefore = false, now.Add(jitter(outAgain))
}

// wakeOut is when to look again whether to go; zero for never.
func (c *core) wakeOut(now time.Time) time.Time {
	if !c.lags() || !c.evicted.IsZero() {
		return time.Time{}
	}
	if t := c.activate.Add(outAfter); t.After(now) {
		return t
	}
	if c.notBefore.After(now) {
		return c.notBefore
	}
	return time.Time{}
}

// named tells whether the prepare names this instance as too slow, and it is:
// one that holds the set by now or all it can have of it, or refuses it, says
// that instead.
func (c *core) named() bool {
	p := c.prepare
	if p == nil || !slices.Contains(p.Evict, c.instance) || !c.asked(p) {
		return false
	}
	if _, refuses := c.refuses(p); refuses {
		return false
	}
	lacks, sick := c.lacking(p.Set)
	return len(lacks) > 0 && !sick
}

// current tells whether what is committed is served, and all that can be had of
// its set is held.
func (c *core) current() bool {
	t := c.target
	if t == nil {
		return true
	}
	lacks, sick := c.lacking(t.Set)
	return c.serving != nil && c.serving.Epoch >= t.Epoch && (len(lacks) == 0 || sick)
}
