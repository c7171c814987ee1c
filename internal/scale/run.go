package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"routerd.dev/internal/cli"
	"routerd.dev/internal/rollout"
	"routerd.dev/internal/route"
	"routerd.dev/internal/store"
	"routerd.dev/internal/version"
)

// patience bounds what instances are awaited for.
const patience = 3 * time.Minute

// A Size is what a fleet of one size cost.
type Size struct {
	Instances int `json:"instances"`
	Processes int `json:"processes"` // that the agents were in

	Join     Phase `json:"join"`     // all start at once, nothing is published
	Load     Phase `json:"load"`     // the first table: every instance fetches and compiles all of it
	Idle     Phase `json:"idle"`     // nothing happens
	Publish  Phase `json:"publish"`  // one module of the table changed
	Rollback Phase `json:"rollback"` // within the set: nothing is prepared
	Outage   Phase `json:"outage"`   // etcd killed, away, and back: since then
	Leases   Phase `json:"leases"`   // every lease revoked at once

	Commit     float64 `json:"commitMs"`    // the transaction of the publish
	Prepared   float64 `json:"preparedMs"`  // from asking all until it was committed
	Skew       float64 `json:"skewMs"`      // last switch after the instant named by the commit
	IdleMiB    float64 `json:"idleMiB"`     // etcd's memory at the end of the idle phase
	Database   float64 `json:"databaseMiB"` // etcd's, at the end
	StatusMs   float64 `json:"statusMs"`    // routectl status
	StatusRows int     `json:"statusLines"`
}

// A run is one fleet of one size.
type run struct {
	o     options
	n     int
	log   io.Writer
	dir   string
	etcd  *cluster
	store *store.Store // the publisher's

	control *child
	agents  []*child
	served  version.Digest
	deeds   Deeds // of the phase that ended last
}

// measureSize runs a fleet of n instances through its life.
func measureSize(ctx context.Context, o options, n int, log io.Writer) (s Size, err error) {
	r := &run{o: o, n: n, log: log}
	if r.dir, err = os.MkdirTemp("", "routerd-scale-"); err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(r.dir)) }()
	states := r.dir
	if _, err := os.Stat(memoryDir); err == nil {
		if states, err = os.MkdirTemp(memoryDir, "routerd-scale-"); err != nil {
			return s, err
		}
		defer os.RemoveAll(states)
	}
	defer r.close()
	if err := r.open(ctx, states); err != nil {
		return s, err
	}
	s.Instances, s.Processes = n, len(r.agents)
	for _, p := range []struct {
		name string
		run  func(context.Context, *Size) error
	}{
		{"join", r.join},
		{"load", r.load},
		{"idle", r.idle},
		{"publish", r.publish},
		{"rollback", r.rollback},
		{"status", r.status},
		{"outage", r.outage},
		{"leases", r.leases},
	} {
		began := time.Now()
		if err := p.run(ctx, &s); err != nil {
			return s, fmt.Errorf("%d instances: %s: %w%s", n, p.name, err, r.scene(ctx))
		}
		fmt.Fprintf(log, "scale: %d instances: %s: %.1f s\n", n, p.name, time.Since(began).Seconds())
	}
	m, err := r.etcd.metrics(ctx)
	s.Database = m[metricDatabase] / (1 << 20)
	return s, err
}

// scene is what the records say when something went wrong.
func (r *run) scene(ctx context.Context) string {
	v, err := r.store.View(ctx)
	if err != nil {
		return "\nthe records: " + err.Error()
	}
	said := map[string]int{}
	for _, i := range v.Ready[group] {
		said[fmt.Sprintf("%s refused=%v %s", i.Nonce, i.Refused, i.Why)]++
	}
	text := fmt.Sprintf("\nthe records: %d instances, group %+v, prepares %+v, ready %v", len(v.Instances), v.Groups[group], v.Prepares, said)
	for _, o := range v.Rollouts {
		text += fmt.Sprintf("\n%s: %s %s", o.ID, o.Phase, o.Why)
	}
	return text
}

// memoryDir is where Linux keeps files in memory.
const memoryDir = "/dev/shm"

// open starts etcd, the controller and the processes of agents, which wait.
func (r *run) open(ctx context.Context, states string) (err error) {
	if r.etcd, err = newCluster(r.dir, r.o.members); err != nil {
		return err
	}
	if err := r.etcd.start(ctx, r); err != nil {
		return err
	}
	if r.store, err = store.Open(store.Config{Endpoints: r.etcd.endpoints()}); err != nil {
		return err
	}
	if _, _, err := r.store.Init(ctx); err != nil {
		return err
	}
	if r.control, err = startChild(ctx, r.log, "controller", controllerSpec{r.etcd.endpoints()}, nil); err != nil {
		return err
	}
	for first := 0; first < r.n; first += r.o.each {
		c, err := startChild(ctx, r.log, "agents", agentsSpec{
			Endpoints: r.etcd.endpoints(), First: first, N: min(r.o.each, r.n-first), States: states,
		}, nil)
		if err != nil {
			return err
		}
		r.agents = append(r.agents, c)
	}
	return nil
}

// close ends everything; nobody gives a lease back, which two thousand would take
// long for.
func (r *run) close() {
	for _, c := range r.agents {
		c.kill()
	}
	r.control.kill()
	if r.store != nil {
		_ = r.store.Close() // nothing is under way
	}
	if r.etcd != nil {
		r.etcd.kill()
	}
}

// usage is what was used so far, by etcd, the controller and the agents.
func (r *run) usage() (etcd Usage, control, agents time.Duration, err error) {
	if etcd, err = r.etcd.usage(); err != nil {
		return etcd, 0, 0, err
	}
	u, err := usageOf(r.control.pid())
	if err != nil {
		return etcd, 0, 0, err
	}
	for _, c := range r.agents {
		a, err := usageOf(c.pid())
		if err != nil {
			return etcd, 0, 0, err
		}
		agents += a.CPU
	}
	return etcd, u.CPU, agents, nil
}

// ask asks all processes of agents at once, and puts together when agents reached something.
func (r *run) ask(ctx context.Context, ask string, with any) (reached, error) {
	at := make([]json.RawMessage, len(r.agents))
	errs := make([]error, len(r.agents))
	var wg sync.WaitGroup
	for i, c := range r.agents {
		wg.Go(func() { errs[i] = c.ask(ctx, ask, with, &at[i]) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil || ask != "await" {
		return nil, err
	}
	var all reached
	for _, a := range at {
		var some reached
		if err := json.Unmarshal(a, &some); err != nil {
			return nil, err
		}
		all = append(all, some...)
	}
	return all, nil
}

// whole waits until every instance is registered and ready and nothing is
// under way.
func (r *run) whole(ctx context.Context) error {
	return until(ctx, patience, "the fleet is whole", whole(r.store, r.n))
}

func (r *run) join(ctx context.Context, s *Size) (err error) {
	m, err := r.measure(ctx)
	if err != nil {
		return err
	}
	began := time.Now()
	if _, err := r.ask(ctx, "go", nil); err != nil {
		return err
	}
	at, err := r.ask(ctx, "await", awaited{Since: began, Timeout: patience})
	if err == nil {
		err = r.whole(ctx)
	}
	if err != nil {
		return err
	}
	s.Join, err = m.end(ctx, began, at)
	return err
}

func (r *run) idle(ctx context.Context, s *Size) error {
	m, err := r.measure(ctx)
	if err != nil {
		return err
	}
	select {
	case <-time.After(r.o.idle):
	case <-ctx.Done():
		return ctx.Err()
	}
	if s.Idle, err = m.end(ctx, time.Time{}, nil); err != nil {
		return err
	}
	u, err := r.etcd.usage()
	s.IdleMiB = float64(u.RSS) / (1 << 20)
	return err
}

// travel measures a switch of the fleet that ask asks for.
func (r *run) travel(ctx context.Context, to version.Digest, ask func() error) (p Phase, last time.Time, err error) {
	m, err := r.measure(ctx)
	if err != nil {
		return p, last, err
	}
	began := time.Now()
	if err := ask(); err != nil {
		return p, last, err
	}
	at, err := r.ask(ctx, "await", awaited{Digest: to, Timeout: patience})
	if err == nil {
		err = r.whole(ctx)
	}
	if err != nil {
		return p, last, err
	}
	r.served = to
	p, err = m.end(ctx, began, at)
	return p, began.Add(time.Duration(p.Last * float64(time.Millisecond))), err
}

// switchTo publishes a table and has the fleet switch to it.
func (r *run) switchTo(ctx context.Context, t *route.Table) (Phase, time.Time, error) {
	snap, err := version.Encode(t)
	if err != nil {
		return Phase{}, time.Time{}, err
	}
	known, err := r.store.Fleet(ctx)
	if err != nil {
		return Phase{}, time.Time{}, err
	}
	return r.travel(ctx, snap.Digest, func() error {
		_, err := r.store.Publish(ctx, store.PublishRequest{
			Snapshot: snap, Parent: known.Target, Author: "scale",
			Intent: &rollout.Intent{Kind: rollout.IntentSwitch, Timeout: patience},
		})
		return err
	})
}

func (r *run) load(ctx context.Context, s *Size) (err error) {
	s.Load, _, err = r.switchTo(ctx, teams(r.o.modules, r.o.routes, 0))
	return err
}

func (r *run) publish(ctx context.Context, s *Size) error {
	p, last, err := r.switchTo(ctx, teams(r.o.modules, r.o.routes, 1))
	if err != nil {
		return err
	}
	s.Publish = p
	for _, c := range r.deeds.Commits {
		if c.To == r.served {
			s.Commit, s.Prepared, s.Skew = ms(c.Took), ms(c.Written.Sub(r.deeds.Asked)), ms(last.Sub(c.Instant))
		}
	}
	return nil
}

func (r *run) rollback(ctx context.Context, s *Size) error {
	v, err := r.store.View(ctx)
	if err != nil {
		return err
	}
	back := v.Groups[group].Back
	if len(back) == 0 {
		return errors.New("nothing was served before")
	}
	s.Rollback, _, err = r.travel(ctx, back[0].Digest, func() error {
		_, err := r.store.PutIntent(ctx, rollout.Intent{Kind: rollout.IntentRollback, By: "scale"}, nil, v.Fleet.Target)
		return err
	})
	return err
}

// lines counts what is written to it.
type lines struct{ n int }

func (l *lines) Write(b []byte) (int, error) {
	for _, c := range b {
		if c == '\n' {
			l.n++
		}
	}
	return len(b), nil
}

// status measures what an operator waits for.
func (r *run) status(ctx context.Context, s *Size) error {
	env := cli.OS()
	var out lines
	env.Stdout, env.Stderr = &out, r.log
	began := time.Now()
	if code := cli.Run(ctx, env, []string{"status", "--endpoints", r.etcd.endpoints()[0]}); code != 0 {
		return fmt.Errorf("routectl status: exit status %d", code)
	}
	s.StatusMs, s.StatusRows = ms(time.Since(began)), out.n
	return nil
}

// outage kills etcd, which cuts every connection at once, leaves it away for
// so long that everybody has noticed, and measures from its start on.
func (r *run) outage(ctx context.Context, s *Size) error {
	r.etcd.kill()
	select {
	case <-time.After(r.o.away):
	case <-ctx.Done():
		return ctx.Err()
	}
	if err := r.etcd.start(ctx, r); err != nil {
		return err
	}
	m, err := r.measure(ctx)
	if err != nil {
		return err
	}
	began := time.Now()
	at, err := r.watchersBack(ctx, began)
	if err == nil {
		err = r.whole(ctx)
	}
	if err == nil {
		err = until(ctx, patience, "every instance says how it is", r.heard(began))
	}
	if err != nil {
		return err
	}
	s.Outage, err = m.end(ctx, began, at)
	return err
}

// watchersBack returns when etcd had so many watches again: two an instance.
func (r *run) watchersBack(ctx context.Context, began time.Time) (reached, error) {
	at := make(reached, 0, r.n)
	err := until(ctx, patience, "every watch stands again", func(ctx context.Context) error {
		m, err := r.etcd.metrics(ctx)
		if err != nil {
			return err
		}
		back := int(m[metricWatchers]) / 2
		for now := time.Now().UnixNano(); len(at) < min(back, r.n); {
			at = append(at, now)
		}
		if len(at) < r.n {
			return fmt.Errorf("of %d", len(at))
		}
		return nil
	})
	return at, err
}

// heard tells whether every instance's report is newer than a time.
func (r *run) heard(since time.Time) func(context.Context) error {
	return func(ctx context.Context) error {
		v, err := r.store.View(ctx)
		if err != nil {
			return err
		}
		n := 0
		for _, p := range v.Reports {
			if p.Time.After(since) && p.Serving != nil && p.Serving.Digest == r.served && p.Stale == "" {
				n++
			}
		}
		if n != r.n {
			return fmt.Errorf("%d of %d", n, r.n)
		}
		return nil
	}
}

// leases revokes all leases: what happens when etcd could not hear anybody
// for longer than they live.
func (r *run) leases(ctx context.Context, s *Size) error {
	m, err := r.measure(ctx)
	if err != nil {
		return err
	}
	began := time.Now()
	var n int
	if err := r.etcd.members[0].ask(ctx, "revoke", nil, &n); err != nil {
		return err
	}
	if n < r.n {
		return fmt.Errorf("%d leases for %d instances", n, r.n)
	}
	at, err := r.ask(ctx, "await", awaited{Since: began, Timeout: patience})
	if err == nil {
		err = r.whole(ctx)
	}
	if err != nil {
		return err
	}
	s.Leases, err = m.end(ctx, began, at)
	return err
}
