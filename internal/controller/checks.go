package controller

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"routerd.dev/internal/check"
	"routerd.dev/internal/rollout"
	"routerd.dev/internal/store"
)

const (
	// askAtOnce bounds how many questions are under way.
	askAtOnce = 16
	// askAtMost is how long one may take whatever it says itself: so long it
	// keeps others waiting.
	askAtMost = time.Minute
	// askRarely is the shortest interval of a check: each answer is a write.
	askRarely = time.Second
	// putAgain is when answers are written again that could not be.
	putAgain = time.Second
)

// An asker asks the checks of the rollouts under way, beside the steps of the
// controller, during one term. Each present step that has checks has one
// goroutine that writes down what was answered, and one for each check.
type asker struct {
	c     *Controller
	term  Term
	slots chan struct{}
	wg    sync.WaitGroup

	now map[string]asking // by rollout; only see uses it
}

// An asking is for one step of one rollout.
type asking struct {
	wave, step int
	stop       context.CancelFunc
	done       chan struct{} // closed when nothing more is written for it
}

func newAsker(c *Controller, term Term) *asker {
	return &asker{c: c, term: term, slots: make(chan struct{}, askAtOnce), now: map[string]asking{}}
}

// see begins to ask what v calls for and ends what it does not any more. It
// waits for nobody, and is called by one goroutine. ctx is the term's.
func (a *asker) see(ctx context.Context, v *rollout.View) {
	wanted := map[string]bool{}
	for i := range v.Rollouts {
		r := &v.Rollouts[i]
		checks := r.Present().Checks()
		if len(checks) == 0 {
			continue
		}
		wanted[r.ID] = true
		old, ok := a.now[r.ID]
		if ok && old.wave == r.Cursor.Wave && old.step == r.Cursor.Step {
			continue
		}
		if ok {
			old.stop()
		}
		a.begin(ctx, r, checks, v.Checks[r.ID], old.done)
	}
	for id, old := range a.now {
		if !wanted[id] {
			old.stop()
			delete(a.now, id)
		}
	}
}

// begin starts an asking. It goes on from a record of the same step, which a
// controller before this one wrote, and writes nothing before the asking that
// it follows has ended.
func (a *asker) begin(ctx context.Context, r *rollout.Rollout, checks []rollout.Check, was rollout.Checks, before <-chan struct{}) {
	ctx, stop := context.WithCancel(ctx)
	n := asking{wave: r.Cursor.Wave, step: r.Cursor.Step, stop: stop, done: make(chan struct{})}
	a.now[r.ID] = n
	rec := rollout.Checks{Rollout: r.ID, Wave: n.wave, Step: n.step, Results: map[string]rollout.CheckResult{}}
	if was.Wave == n.wave && was.Step == n.step {
		for _, c := range checks {
			if res, ok := was.Results[c.Name]; ok {
				rec.Results[c.Name] = res
			}
		}
	}
	checks = slices.Clone(checks)
	a.wg.Go(func() {
		defer close(n.done)
		defer stop()
		var asks sync.WaitGroup
		defer asks.Wait()
		defer stop() // first, or the wait would not end
		if before != nil {
			<-before
		}
		answers := make(chan answer)
		for _, c := range checks {
			asked := rec.Results[c.Name].Asked
			asks.Go(func() { a.repeat(ctx, c, asked, answers) })
		}
		a.record(ctx, rec, answers)
	})
}

// An answer is what a check answered, and when.
type answer struct {
	check rollout.Check
	at    time.Time
	value float64
	ok    bool
	err   error
}

// repeat asks one check on its interval until ctx ends.
func (a *asker) repeat(ctx context.Context, c rollout.Check, asked time.Time, answers chan<- answer) {
	every := time.Duration(c.Every)
	if every <= 0 {
		every = check.DefaultEvery
	}
	every = max(every, askRarely)
	for {
		if !asked.IsZero() {
			pause(ctx, min(time.Until(asked.Add(every)), every)) // a clock that differs delays by no more
		}
		select {
		case a.slots <- struct{}{}:
		case <-ctx.Done():
			return
		}
		asked = time.Now()
		one, cancel := context.WithTimeout(ctx, askAtMost)
		value, ok, err := a.c.ask(one, c)
		cancel()
		<-a.slots
		if ctx.Err() != nil { // what was cut off says nothing
			return
		}
		a.c.m.asked(ctx, c, value, ok, err)
		select {
		case answers <- answer{c, asked, value, ok, err}:
		case <-ctx.Done():
			return
		}
	}
}

// record writes answers down as they come, until ctx or the term ends or the
// rollout does.
func (a *asker) record(ctx context.Context, rec rollout.Checks, answers <-chan answer) {
	log := a.c.log.With("rollout", rec.Rollout, "wave", rec.Wave, "step", rec.Step)
	retry := time.NewTimer(putAgain)
	retry.Stop()
	defer retry.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case x := <-answers:
			// A copy: what was given away to be written is not changed.
			rec.Results = maps.Clone(rec.Results)
			rec.Results[x.check.Name] = check.Count(rec.Results[x.check.Name], x.check, x.at.UTC(), x.value, x.ok, x.err)
			log.Debug("check answered", "check", x.check.Name, "value", x.value, "ok", x.ok, "err", x.err)
		case <-retry.C:
		}
		err := a.term.PutChecks(ctx, rec)
		switch {
		case err == nil:
			retry.Stop()
		case ctx.Err() != nil, errors.Is(err, store.ErrDeposed), errors.Is(err, store.ErrNotFound):
			return // the next step of the controller finds out, or has
		default:
			log.Warn("cannot write down what checks answered, trying again", "err", err)
			retry.Reset(putAgain)
		}
	}
}
