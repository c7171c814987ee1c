package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"routerd.dev/internal/rollout"
	"routerd.dev/internal/version"
)

const (
	dirPins   = ".pins"
	minPrefix = 4               // hex digits of a digest that name it
	nagEvery  = time.Minute     // how often the log says that a pin is in force
	obeyed    = 5 * time.Second // until then the loop acts on an order, or is stuck
)

// A Pin is an operator's order, given on the instance itself, to serve a
// revision whatever is committed: for when etcd cannot be written. It is obeyed
// until it is taken back, also after a restart.
type Pin struct {
	version.Ref
	By    string    `json:"by,omitempty"`
	Why   string    `json:"why,omitempty"`
	Since time.Time `json:"since"`
}

// A PinResult is what became of an order.
type PinResult struct {
	Status Status `json:"status"` // after it
	// Warning is why a restart would not know of the order; empty when it would.
	Warning string `json:"warning,omitempty"`
}

// ErrNotHeld is wrapped by Pin's error for a revision that this instance does
// not hold.
var ErrNotHeld = errors.New("this instance does not hold it")

// Pin has this instance serve a revision that it holds, named by number or by
// the beginning of its digest. It needs no etcd. What is not in memory and on
// disk is compiled first; nothing changes when that fails or ctx ends before.
// Its error names what it can be pinned to when to is none of that.
func (a *Agent) Pin(ctx context.Context, to, by, why string) (PinResult, error) {
	if err := a.alone(ctx); err != nil {
		return PinResult{}, fmt.Errorf("pin to %.80s: %w", to, err)
	}
	defer func() { <-a.pins }()
	refs, err := a.Pinnable(ctx)
	if err != nil {
		return PinResult{}, fmt.Errorf("pin to %.80s: %w", to, err)
	}
	ref, err := pickRef(refs, to)
	if err != nil {
		return PinResult{}, err
	}
	if err := a.hold(ctx, ref); err != nil {
		return PinResult{}, fmt.Errorf("pin to revision %d (%s): %w", ref.Number, ref.Digest.Short(), err)
	}
	p := &Pin{Ref: ref, By: line(by), Why: line(why), Since: time.Now().UTC()}
	r, err := a.order(ctx, p)
	if err != nil {
		a.letGo(ctx)
	}
	return r, err
}

// Unpin has this instance serve again what its group is assigned. It is no
// error when it was not pinned.
func (a *Agent) Unpin(ctx context.Context) (PinResult, error) {
	if err := a.alone(ctx); err != nil {
		return PinResult{}, fmt.Errorf("unpin: %w", err)
	}
	defer func() { <-a.pins }()
	return a.order(ctx, nil)
}

// Forgive ends every quarantine of this instance, on disk too, and tries what
// was under one at once where it is to be served: for when power or an operator
// ended the process, or what made it crash is mended. Two crashes more bring it
// back. It is no error when there was none.
func (a *Agent) Forgive(ctx context.Context) (PinResult, error) {
	if err := a.alone(ctx); err != nil {
		return PinResult{}, fmt.Errorf("forgive: %w", err)
	}
	defer func() { <-a.pins }()
	err := a.do(ctx, func(p *loop) { p.forgive() })
	if err == nil {
		err = a.do(ctx, func(*loop) {}) // the loop acts between two events
	}
	if err != nil {
		return PinResult{}, fmt.Errorf("forgive: %w", err)
	}
	return PinResult{Status: a.Status()}, nil
}

func (p *loop) forgive() {
	ds := sortedDigests(p.core.quarantined)
	for _, d := range ds {
		p.log.Warn("forgiven: no longer quarantined", "digest", d.Short())
	}
	p.core.forgive(ds...)
	p.disk.forgive()
}

// alone waits for the order before this one, whose disk may be slow.
func (a *Agent) alone(ctx context.Context) error {
	select {
	case a.pins <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("another order is under way: %w", ctx.Err())
	}
}

// Pinnable lists what this instance can be pinned to, by number: what it holds
// in memory and what it remembers on disk.
func (a *Agent) Pinnable(ctx context.Context) ([]version.Ref, error) {
	var held, other []version.Ref
	if err := a.do(ctx, func(p *loop) { held, other = p.core.known() }); err != nil {
		return nil, err
	}
	for _, r := range other {
		if _, err := a.disk.manifest(r.Digest); err == nil {
			held = append(held, r)
		}
	}
	slices.SortFunc(held, func(x, y version.Ref) int { return cmp.Compare(x.Number, y.Number) })
	return held, nil
}

// pickRef finds the one revision that to names.
func pickRef(refs []version.Ref, to string) (version.Ref, error) {
	var found []version.Ref
	number, err := strconv.ParseInt(to, 10, 64)
	for _, r := range refs {
		if err == nil && r.Number == number {
			return r, nil
		}
		if len(to) >= minPrefix && strings.HasPrefix(r.Digest.String(), strings.ToLower(to)) {
			found = append(found, r)
		}
	}
	if len(found) == 1 {
		return found[0], nil
	}

	var names []string
	for _, r := range refs {
		names = append(names, fmt.Sprintf("%d (%s)", r.Number, r.Digest.Short()))
	}
	can := "it holds none"
	if len(names) > 0 {
		can = "it can be pinned to revision " + strings.Join(names, ", ")
	}
	if len(found) > 1 {
		return version.Ref{}, fmt.Errorf("pin to %.80s: more than one digest begins so; %s", to, can)
	}
	return version.Ref{}, fmt.Errorf("pin to %.80s: %w; %s", to, ErrNotHeld, can)
}

// hold waits until ref is held, and leaves no trace when it is not.
func (a *Agent) hold(ctx context.Context, ref version.Ref) error {
	held := make(chan error, 1)
	if err := a.do(ctx, func(p *loop) { p.holdFor(ref, held) }); err != nil {
		return err
	}
	select {
	case err := <-held:
		return err
	case <-a.over:
		return errEnded
	case <-ctx.Done():
		a.letGo(ctx)
		return fmt.Errorf("it is not held yet: %w", ctx.Err())
	}
}

// letGo has the loop forget what was to be held for a pin that does not come, if it
// ever gets to look.
func (a *Agent) letGo(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_ = a.do(ctx, func(p *loop) { p.core.pinning, p.holding = nil, nil })
}

// order brings a pin, or nil for none, into force, has the disk remember it,
// and tells what is served then. The disk comes second: it may be what is
// broken. What came into force is remembered, whether or not ctx ends
// meanwhile.
func (a *Agent) order(ctx context.Context, p *Pin) (PinResult, error) {
	var r PinResult
	if err := a.do(ctx, func(l *loop) { l.pinned(p) }); err != nil {
		return r, err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), obeyed)
	defer cancel()
	err := a.do(ctx, func(*loop) {}) // the loop acts between two events
	if err != nil {
		err = fmt.Errorf("ordered, but not seen to be obeyed: %w", err)
	}
	if err := savePin(a.o.StateDir, a.o.Who.Group, p); err != nil {
		r.Warning = "a restart would not know of it: " + err.Error()
		a.log.Error("the disk does not remember the order to pin or unpin", "err", err)
	}
	r.Status = a.Status()
	return r, err
}

var errEnded = errors.New("the instance is ending")

// do runs f on the loop's goroutine and returns when it did.
func (a *Agent) do(ctx context.Context, f func(*loop)) error {
	done := make(chan struct{})
	select {
	case a.orders <- func(p *loop) { f(p); close(done) }:
	case <-a.over:
		return errEnded
	case <-ctx.Done():
		return fmt.Errorf("the instance does not answer: %w", ctx.Err())
	}
	<-done // f never waits
	return nil
}

// holdFor has ref built if it is not held, and tells held.
func (p *loop) holdFor(ref version.Ref, held chan error) {
	delete(p.core.failed, ref.Digest) // an operator's order is a reason to try again at once
	p.core.pinning, p.holding = &ref, held
}

// answerPin tells who waits for a digest to be pinned whether it is held.
func (p *loop) answerPin() {
	ref := p.core.pinning
	if ref == nil || p.holding == nil {
		return
	}
	f, failed := p.core.failed[ref.Digest]
	switch {
	case p.core.held[ref.Digest]:
		p.holding <- nil // it stays wanted until the order comes
	case failed:
		p.holding <- errors.New(f.why)
		p.core.pinning = nil
	default:
		return
	}
	p.holding = nil
}

func (p *loop) pinned(pin *Pin) {
	was := p.core.pin
	p.core.pin, p.core.pinning, p.unpinned = pin, nil, pin == nil
	p.nagAt = time.Time{}
	if pin == nil && was != nil {
		p.log.Warn("unpinned: following the group again", "was", was.Number, "digest", was.Digest.Short())
	}
}

// readLate takes an order of a former life that could not be read at the start. It
// is held before it comes into force, as any other: else prepares and a switch
// would wait for it. One that cannot be held is in force without being obeyed.
func (p *loop) readLate(pin *Pin) {
	_, failed := p.core.failed[pin.Digest]
	if !p.core.held[pin.Digest] && !failed && !p.core.quarantined[pin.Digest] {
		p.core.pinning = &pin.Ref
		return
	}
	p.log.Warn("an order to pin this instance could not be read at the start: in force from now on")
	p.pinned(pin)
}

// nag says again and again that a pin is in force, and returns when to do so
// next; zero for never.
func (p *loop) nag(now time.Time) time.Time {
	pin := p.core.pin
	if pin == nil {
		return time.Time{}
	}
	if !now.Before(p.nagAt) {
		p.nagAt = now.Add(nagEvery)
		args := []any{"revision", pin.Number, "digest", pin.Digest.Short(), "by", pin.By, "why", pin.Why, "since", pin.Since}
		if t := p.core.target; t != nil {
			args = append(args, "assigned", t.Stable.Number, "epoch", t.Epoch)
		}
		if p.core.obeysPin() {
			p.log.Error("PINNED: this instance serves what an operator ordered, not what its group is assigned; routerd ctl unpin ends it", args...)
		} else {
			args = append(args, "err", p.core.whyNotPinned())
			p.log.Error("PINNED, but what it is pinned to cannot be held: serving what the group is assigned; routerd ctl unpin ends it", args...)
		}
	}
	return p.nagAt
}

// known lists the revisions that are held, and the others that were among the
// sets of what was served: they should be on disk.
func (c *core) known() (held, other []version.Ref) {
	seen := map[version.Digest]bool{}
	add := func(remembered bool, refs ...version.Ref) {
		for _, r := range refs {
			if r.IsZero() || seen[r.Digest] || c.quarantined[r.Digest] || !(c.held[r.Digest] || remembered) {
				continue
			}
			seen[r.Digest] = true
			if c.held[r.Digest] {
				held = append(held, r)
			} else {
				other = append(other, r)
			}
		}
	}
	if c.pin != nil {
		add(true, c.pin.Ref)
	}
	if c.serving != nil {
		add(false, c.serving.refs()...)
	}
	if c.target != nil {
		add(false, c.target.Set...)
	}
	if c.prepare != nil {
		add(false, c.prepare.Set...)
	}
	for i := range c.good {
		add(true, c.good[i].Stable)
		add(true, c.good[i].Set...)
	}
	return held, other
}

// obeysPin tells whether a pin decides what is served. One whose revision
// crashes this process, or cannot be had after a restart, does not: serving what
// the group is assigned is better than serving nothing. It is tried again.
func (c *core) obeysPin() bool {
	if c.pin == nil || c.quarantined[c.pin.Digest] {
		return false
	}
	_, failed := c.failed[c.pin.Digest]
	return c.held[c.pin.Digest] || !failed
}

func (c *core) whyNotPinned() string {
	if c.quarantined[c.pin.Digest] {
		return "it is quarantined: it crashed this process twice"
	}
	return c.failed[c.pin.Digest].why
}

// wantPinned has what an operator named built and kept. It is for the set in
// force, so that no prepare goes before it.
func (c *core) wantPinned(p *plan, now time.Time) {
	var nonce rollout.Nonce
	if c.target != nil {
		nonce = c.target.Nonce
	}
	if c.pin != nil {
		c.want(p, now, nonce, true, []version.Ref{c.pin.Ref})
	}
	if c.pinning != nil {
		c.want(p, now, nonce, true, []version.Ref{*c.pinning})
	}
}

// repin tells what is to be served in the epoch that is served already, when an
// operator pinned or unpinned this instance since, or forgave what had crashed
// it.
func (c *core) repin() (choice, bool) {
	if c.serving == nil {
		return choice{}, false
	}
	ch := c.choose(&c.serving.Assignment)
	forgiven := c.serving.fallback && !ch.fallback
	if ch.pinned == c.serving.pinned && !forgiven && (!ch.pinned || ch.stable.Digest == c.serving.stable.Digest) {
		return ch, false
	}
	return ch, !ch.stable.IsZero() && c.holds(ch.refs())
}

// A pinState is what the disk keeps of an order.
type pinState struct {
	Group string `json:"group"`
	Pin   Pin    `json:"pin"`
}

func pinFile(dir, group string) string { return filepath.Join(dir, dirPins, fileName(group)) }

// savePin writes an order, or takes the one there was away.
func savePin(dir, group string, p *Pin) error {
	if dir == "" {
		return errors.New("there is no state directory")
	}
	if p != nil {
		return writeSealed(pinFile(dir, group), pinState{Group: group, Pin: *p})
	}
	if err := os.Remove(pinFile(dir, group)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forget the pin: %w", err)
	}
	return nil
}

// loadPin reads the order of a former life; nil for none.
func loadPin(dir, group string) (*Pin, error) {
	if dir == "" {
		return nil, nil
	}
	var s pinState
	err := readSealed(pinFile(dir, group), &s)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err == nil && (s.Group != group || s.Pin.IsZero()):
		err = errors.New("it is of another group")
		fallthrough
	case err != nil:
		return nil, fmt.Errorf("read the pin in %s: %w", pinFile(dir, group), err)
	}
	return &s.Pin, nil
}
