package agent

import (
	"context"
	"sync/atomic"
	"time"

	"routerd.dev/internal/engine"
	"routerd.dev/internal/rollout"
)

const (
	// hangAfter is without how many signs of life, looked for once a hangLook,
	// a build counts as hanging. Looks are counted and not time: a process that
	// was stopped for a minute has not looked.
	hangAfter = 10
	hangLook  = time.Second
	// mostHung is how many builds may hang in one process before nothing more is
	// built in it. Each keeps a goroutine, and most often a processor.
	mostHung = 2
	// dismissal is how long the end of Run waits for a build that hangs.
	dismissal = 5 * time.Second
	// patience is how many looks in a row a build may wait for others: all of the
	// time it has to fetch, which a disk that hangs does not mind.
	patience = int(fetchTime / hangLook)
)

// work is a job for the worker, with what to build on.
type work struct {
	job
	ctx      context.Context
	cancel   context.CancelFunc
	previous *engine.Engine
	tried    <-chan struct{}

	said *rollout.Progress // what was told of it last; the worker's, once it has it

	beats   atomic.Int64 // signs of life
	patient atomic.Bool  // what it does now waits for others, and ends with ctx
	heard   int64        // beats when last looked
	waited  int          // looks since the last sign of life for which it was patient
	silent  int          // the looks after those
}

// A worker builds in the background, one job at a time. It is a goroutine that
// may be given up: what it runs are loops over what somebody published.
type worker struct {
	jobs chan *work
	done chan struct{} // closed when it has ended
}

// hire makes a worker of whom the loop is the only customer.
func (p *loop) hire(ctx context.Context) {
	w := &worker{jobs: make(chan *work), done: make(chan struct{})}
	p.worker = w
	go func() {
		defer close(w.done)
		p.builds(ctx, w.jobs)
	}()
}

// dismiss waits for the worker of the moment to end, for as long as is of use.
func (p *loop) dismiss() {
	if p.worker == nil {
		return
	}
	wait := time.NewTimer(dismissal)
	defer wait.Stop()
	select {
	case <-p.worker.done:
	case <-wait.C:
		p.log.Error("a build hangs, ending without it")
	}
}

// checkBuild looks for signs of life in what is built, and gives up what has none.
func (p *loop) checkBuild(ctx context.Context, now time.Time) {
	w := p.building
	if w == nil || now.Before(p.lookAt) {
		return
	}
	p.lookAt = now.Add(hangLook)
	switch n := w.beats.Load(); {
	case n != w.heard:
		w.heard, w.waited, w.silent = n, 0, 0
	case w.patient.Load() && w.ctx.Err() == nil && w.waited < patience:
		w.waited++
	default:
		w.silent++
	}
	if w.silent >= hangAfter {
		p.giveUp(ctx, w, now)
	}
}

// giveUp goes on without a worker that hangs. Its digest is not built again in
// this process.
func (p *loop) giveUp(ctx context.Context, w *work, now time.Time) {
	w.cancel()
	p.building, p.worker = nil, nil
	p.progress.Store(nil)
	p.hung++
	why := "building it hangs: no sign of life for " + (hangAfter * hangLook).String()
	p.core.hangs(w.job, why, now)
	p.metrics.refused.Add(context.Background(), 1, p.metrics.attrs)
	p.log.Error("a build hangs and is given up", "revision", w.Number, "digest", w.Digest.Short(), "nonce", w.nonce, "hung", p.hung)
	p.keepUsed() // what was dropped while it was built is still there
	if p.hung < mostHung {
		p.hire(ctx)
		return
	}
	p.log.Error("builds hang in this process, so it builds no more: restart it", "hung", p.hung)
}

// giveBack refuses what nobody is there to build.
func (p *loop) giveBack(wanted []job, now time.Time) []job {
	for _, j := range wanted {
		p.core.refused(j, "builds hang in this process: restart it", true, now)
		p.again = true // what is said of readiness is another now
	}
	return nil
}

// lives is a sign of life. waits: what the worker does next waits for others, and
// ends with ctx.
func (w *work) lives(waits bool) {
	w.beats.Add(1)
	w.patient.Store(waits)
}

// stage notes what the worker does, unless it was given up: then the progress
// is nobody's, or of another build.
func (w *work) stage(p *loop, stage string) {
	w.lives(stage == StageFetching)
	if pr := progressOf(w.job, stage); p.progress.CompareAndSwap(w.said, pr) {
		w.said = pr
	}
}

func progressOf(j job, stage string) *rollout.Progress {
	return &rollout.Progress{Nonce: j.nonce, Digest: j.Digest, Stage: stage, Since: time.Now().UTC()}
}
