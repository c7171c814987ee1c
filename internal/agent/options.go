package agent

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"os"
	"time"

	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/metric/noop"

	"routerd.dev/internal/analysis"
	"routerd.dev/internal/engine"
	"routerd.dev/internal/rollout"
	"routerd.dev/internal/store"
	"routerd.dev/internal/version"
)

// A Store is the fleet's small records. *store.Store is one.
type Store interface {
	// Init makes an empty fleet if there is none.
	Init(ctx context.Context) (store.Format, bool, error)
	// Group reads a group linearizably, at one revision.
	Group(ctx context.Context, group string) (store.GroupState, error)
	// WatchGroup tells fn what is known of a group until ctx ends.
	WatchGroup(ctx context.Context, group string, o store.WatchOptions, fn func(store.GroupState)) error
	// Join registers an instance under a lease.
	Join(ctx context.Context, who rollout.Instance, ttl time.Duration) (*store.Membership, error)
}

// Snapshots is where manifests and chunks come from. What it returns is not
// trusted. *store.Store is one.
type Snapshots interface {
	Manifest(ctx context.Context, d version.Digest) ([]byte, error)
	Chunk(ctx context.Context, d version.Digest) ([]byte, error)
}

// A Swapper serves requests by what it was given last. *engine.Switch is one.
type Swapper interface {
	Swap(s *engine.Serving)
	// Keys returns which clients' keys either side was asked by since the last Swap.
	Keys() (stable, candidate analysis.KeySet)
	// TokenCounts returns what came of clients' tokens so far.
	TokenCounts() engine.TokenCounts
}

// Deps are what an agent works with; all are needed.
type Deps struct {
	Store     Store
	Snapshots Snapshots
	Switch    Swapper
	Library   *engine.Library // outlives every engine; this agent's alone
	Cache     *version.Cache  // may be shared by the agents of a process
}

// Options say who the instance is and how it works. Who is needed, with
// Instance and Group; all else has defaults.
type Options struct {
	// Who is registered. Boot is made up when empty, Started is the start of Run.
	Who rollout.Instance
	// StateDir is where the instance remembers; empty for nowhere. Two
	// processes must not share one.
	StateDir string

	// CrashNote has the runtime write what it says when it dies into a file,
	// too, which is closed afterwards: debug.SetCrashOutput. That is the
	// process's: of several agents in it the last one has it. Nil: a crash in
	// service cannot be told from a kill and does not count.
	CrashNote func(*os.File) error

	JoinTimeout  time.Duration // without etcd for so long, a start serves from disk; 0 for 5 s
	LeaseTTL     time.Duration // 0 for store.DefaultTTL
	BuildTimeout time.Duration // for compiling and testing one digest, not for fetching it; 0 for 1 min
	ReportEvery  time.Duration // with up to half as much again at random; 0 for 5 s
	Healthy      time.Duration // a digest served for so long has proven itself; 0 for 10 s

	// ScrubEvery is how often it is looked whether the disk has what it should,
	// with up to half as much again at random; 0 for 5 s.
	ScrubEvery time.Duration

	// MeasureEvery is how often what was counted of a comparison is written, in
	// a small group; 0 for 1 s. In large ones it is less often.
	MeasureEvery time.Duration
	// EvictDelay is how long after turning its readiness off, as it was told
	// to, the instance says so: for balancers to notice.
	EvictDelay time.Duration

	Watch store.WatchOptions
	// Heard is within what time the watch has to say something, be it that nothing
	// changed; longer than half as much again as Watch.Reread. 0 for 13 s.
	Heard   time.Duration
	Compile engine.Options // Previous is the agent's to set

	// Capabilities are what this build can do; nil for engine.Capabilities. A
	// snapshot that needs another is refused.
	Capabilities []string
	// Counts tells how many requests were served and how many with a 5xx, since
	// the start; nil for none.
	Counts func() (requests, errors int64)

	Logger *slog.Logger // nil for none
	Meter  metric.Meter // nil for none
}

func (o Options) withDefaults() Options {
	def := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	def(&o.JoinTimeout, 5*time.Second)
	def(&o.LeaseTTL, store.DefaultTTL)
	def(&o.BuildTimeout, time.Minute)
	def(&o.ReportEvery, 5*time.Second)
	def(&o.Healthy, 10*time.Second)
	def(&o.MeasureEvery, time.Second)
	def(&o.Heard, heardWithin)
	def(&o.ScrubEvery, scrubEvery)
	if o.Capabilities == nil {
		o.Capabilities = engine.Capabilities()
	}
	if o.Who.Capabilities == nil {
		o.Who.Capabilities = o.Capabilities
	}
	if o.Who.Boot == "" {
		o.Who.Boot = newBoot()
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Meter == nil {
		o.Meter = noop.Meter{}
	}
	if o.Counts == nil {
		o.Counts = func() (int64, int64) { return 0, 0 }
	}
	return o
}

// jitter returns a time between d and 1.5 d, so that a fleet does not come
// back as one.
func jitter(d time.Duration) time.Duration { return d + rand.N(d/2+1) }
