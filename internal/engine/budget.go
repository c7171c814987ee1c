package engine

import (
	"context"
	"fmt"
	"runtime"
	"time"
)

// A Budget bounds what a compile may take from the requests served meanwhile.
// The zero value is usable.
type Budget struct {
	// Memory is how many bytes the engine may take, as estimated before they
	// are; DefaultMemory when 0. A table over it is refused.
	Memory int64

	// Percent is the part of one core to use, 1..100; after each slice of work
	// the compile sleeps for the rest, but at the beginning, which is all that a
	// usual change takes. 0 is 100: it never sleeps. A compile uses one
	// core at most in any case.
	Percent int

	// Leeway, if not nil, is for who prepares: taken before a large table is
	// decoded, given back when it is compiled. Compile itself does not use it.
	Leeway *Leeway

	// Beat, if not nil, is called every now and then: the compile lives. It must be
	// quick.
	Beat func()
}

// DefaultMemory is the memory an engine may take when a Budget names none:
// enough for a table of route.MaxRoutes routes that are on two hosts each.
const DefaultMemory = 2 << 30

// What a route takes by estimate, beyond the text of its pattern: measured on
// tables of 1k to 100k routes and rounded up.
const (
	bytesPerRoute = 640 // an entry, in its module's part
	bytesPerPlace = 400 // its place in one host's trees
	bytesPerHost  = 6 << 10
	bytesPerInst  = 160 // each instruction of a regular expression
)

// slice is how long a compile works before it lets others run.
const slice = 500 * time.Microsecond

// burst is how many steps of a compile are not paced: what a table of some two
// thousand routes takes is over before anybody could notice, and a fleet waits
// for it twice, once for the first instance. Steps are counted and not time,
// which on a busy machine passes while others work. What takes longer than
// longBurst for all that is paced: regular expressions take their time.
const (
	burst     = 4096
	longBurst = 25 * time.Millisecond
)

// A pacer keeps a compile within its budget.
type pacer struct {
	ctx     context.Context
	percent int
	memory  int64
	beat    func()
	used    int64
	steps   int
	since   time.Time
	worked  time.Duration // in the slices before
}

func newPacer(ctx context.Context, b Budget) *pacer {
	p := &pacer{ctx: ctx, percent: b.Percent, memory: b.Memory, beat: b.Beat, since: time.Now()}
	if p.memory <= 0 {
		p.memory = DefaultMemory
	}
	return p
}

// step is called between small pieces of work. It fails when the context is
// done, and may sleep.
func (p *pacer) step() error {
	if p.steps++; p.steps%16 != 0 {
		return nil
	}
	worked := time.Since(p.since)
	if worked < slice {
		return nil
	}
	if p.beat != nil {
		p.beat()
	}
	if err := p.ended(); err != nil {
		return err
	}
	p.worked += worked
	if p.percent > 0 && p.percent < 100 && (p.steps > burst || p.worked > longBurst) {
		pause := time.NewTimer(worked * time.Duration(100-p.percent) / time.Duration(p.percent))
		defer pause.Stop()
		select {
		case <-pause.C:
		case <-p.ctx.Done():
			return p.ended()
		}
	} else {
		runtime.Gosched()
	}
	p.since = time.Now()
	return nil
}

// ended fails when the context is done.
func (p *pacer) ended() error {
	if err := p.ctx.Err(); err != nil {
		return fmt.Errorf("compile: %w", err)
	}
	return nil
}

// take counts bytes that are about to be used, and tells whether they may be.
func (p *pacer) take(bytes int64) bool {
	p.used += bytes
	return p.used <= p.memory
}
