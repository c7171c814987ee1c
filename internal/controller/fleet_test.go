package controller

import (
	"context"
	"fmt"
	"testing"
	"time"

	"routerd.dev/internal/rollout"
	"routerd.dev/internal/store"
)

// TestSwitch goes from publishing to every instance, and back.
func TestSwitch(t *testing.T) {
	f := newFleet(t)
	f.control(Of(f.open()), Options{ID: "c1"})
	for _, n := range []string{"a", "b", "c"} {
		f.instance(n, "main")
	}
	f.instance("k", "canary")
	one, id := f.publish("one")
	f.await("revision 1", all(one, "a", "b", "c", "k"))
	if r := f.ended(id); r.Phase != rollout.PhaseDone {
		t.Errorf("rollout %+v", r)
	}
	for i := range 5 {
		began := time.Now()
		two, _ := f.publish(fmt.Sprint("two", i))
		f.await("the next", all(two, "a", "b", "c", "k"))
		t.Logf("publish to last of 4 instances: %v", time.Since(began))
	}
	in, err := f.PutIntent(t.Context(), rollout.Intent{Kind: rollout.IntentRollback, By: "ann"}, nil, one)
	if err == nil {
		t.Fatal("an intent with the wrong target was taken")
	}
	began := time.Now()
	if in, err = f.PutIntent(t.Context(), rollout.Intent{Kind: rollout.IntentRollback, By: "ann"}, nil, f.target()); err != nil {
		t.Fatal(err)
	}
	r := f.ended(in.ID)
	if r.Phase != rollout.PhaseDone || r.Why != "" {
		t.Errorf("rollback %+v", r)
	}
	back := r.Goals["main"]
	f.await("the rollback", all(back, "a", "b", "c", "k"))
	t.Logf("rollback to last of 4 instances: %v", time.Since(began))
	if f.target() != back {
		t.Errorf("target %v, not %v", f.target(), back)
	}
}

// TestRefusal ends a rollout that an instance refuses, and gives the target
// back.
func TestRefusal(t *testing.T) {
	f := newFleet(t)
	f.control(Of(f.open()), Options{})
	f.instance("a", "main")
	f.instance("b", "main")
	one, _ := f.publish("one")
	f.await("revision 1", all(one, "a", "b"))
	f.mu.Lock()
	f.bad["b"] = "needs what it has not"
	f.mu.Unlock()
	_, id := f.publish("two")
	if r := f.ended(id); r.Phase != rollout.PhaseRefused || r.Why != "b refused it: needs what it has not" {
		t.Errorf("rollout %s: %s", r.Phase, r.Why)
	}
	if f.target() != one {
		t.Errorf("target %v", f.target())
	}
}

// TestKilledInEachPhase kills the controller before, and after, each of its
// writes; another goes on from there to the same end.
func TestKilledInEachPhase(t *testing.T) {
	for n := range 4 {
		for _, carried := range []bool{false, true} {
			t.Run(fmt.Sprintf("write %d carried out %v", n+1, carried), func(t *testing.T) {
				t.Parallel()
				f := newFleet(t)
				stop := f.control(Of(f.open()), Options{ID: "first"})
				f.instance("a", "main")
				f.instance("b", "main")
				one, id := f.publish("one")
				f.await("revision 1", all(one, "a", "b"))
				f.ended(id)
				stop()

				s := f.open()
				mortal := &mortal{Source: Of(s), left: n, carried: carried, die: func() { _ = s.Close() }, dead: make(chan struct{})}
				stop = f.control(mortal, Options{ID: "mortal"})
				two, id := f.publish("two")
				if n < 3 { // take up and ask first, ask all, commit
					<-mortal.dead
				} else {
					f.ended(id)
				}
				stop()
				f.control(Of(f.open()), Options{ID: "heir"})
				f.await("revision 2", all(two, "a", "b"))
				if r := f.ended(id); r.Phase != rollout.PhaseDone {
					t.Errorf("rollout %s: %s", r.Phase, r.Why)
				}
				f.settled()
				f.mu.Lock()
				defer f.mu.Unlock()
				for name, e := range f.epochs {
					if n := len(e); n < 2 || e[n-1] != e[n-2]+1 { // nothing is committed twice
						t.Errorf("%s served epochs %v", name, e)
					}
				}
			})
		}
	}
}

// A mortal dies at a write: with carried, etcd has it and the controller does
// not know.
type mortal struct {
	Source
	left    int
	carried bool
	die     func()
	dead    chan struct{}
}

func (m *mortal) Campaign(ctx context.Context, id string, ttl time.Duration) (Term, error) {
	t, err := m.Source.Campaign(ctx, id, ttl)
	if err != nil {
		return nil, err
	}
	return mortalTerm{Term: t, m: m}, nil
}

type mortalTerm struct {
	Term
	m *mortal
}

func (t mortalTerm) Apply(ctx context.Context, at *rollout.View, c rollout.Change) error {
	if t.m.left--; t.m.left >= 0 {
		return t.Term.Apply(ctx, at, c)
	}
	var err error
	if t.m.carried {
		err = t.Term.Apply(ctx, at, c)
	}
	t.m.die()
	close(t.m.dead)
	<-ctx.Done() // Nothing of it runs any more.
	return err
}

func (t mortalTerm) Resign(ctx context.Context) error {
	select {
	case <-t.m.dead:
		return nil // The dead do not resign; the lease ends by itself.
	default:
		return t.Term.Resign(ctx)
	}
}

// TestI4_DeposedWritesNothing stops a controller between deciding and writing
// until its lease is over and another has moved on; its write must fail.
func TestI4_DeposedWritesNothing(t *testing.T) {
	f := newFleet(t)
	stop := f.control(Of(f.open()), Options{ID: "first"})
	f.instance("a", "main")
	one, id := f.publish("one")
	f.await("revision 1", all(one, "a"))
	f.ended(id)
	stop()

	frozen := &stopped{Source: Of(f.open()), at: make(chan Term), on: make(chan struct{}), result: make(chan error, 1)}
	f.control(frozen, Options{ID: "stopped"})
	two, id := f.publish("two")
	term := <-frozen.at
	if err := term.Resign(t.Context()); err != nil { // its lease is over, and it does not know
		t.Fatal(err)
	}
	f.control(Of(f.open()), Options{ID: "second"})
	f.await("revision 2", all(two, "a"))
	f.ended(id)
	f.settled()
	before, err := f.View(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := term.PutChecks(t.Context(), rollout.Checks{Rollout: id}); outcome(err) != "deposed" {
		t.Errorf("the deposed controller's answers: %v", err)
	}
	close(frozen.on)
	if err := <-frozen.result; outcome(err) != "deposed" {
		t.Errorf("the deposed controller's write: %v", err)
	}
	after, err := f.View(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if before.Fleet != after.Fleet || before.Groups["main"].Epoch != after.Groups["main"].Epoch || len(after.Prepares)+len(after.Rollouts) > 0 {
		t.Errorf("something was written: %+v", after)
	}
}

// A stopped controller hangs at its first write, as by SIGSTOP.
type stopped struct {
	Source
	at     chan Term
	on     chan struct{}
	result chan error
}

func (s *stopped) Campaign(ctx context.Context, id string, ttl time.Duration) (Term, error) {
	t, err := s.Source.Campaign(ctx, id, ttl)
	if err != nil {
		return nil, err
	}
	return stoppedTerm{Term: t, s: s}, nil
}

type stoppedTerm struct {
	Term
	s *stopped
}

func (t stoppedTerm) Apply(ctx context.Context, at *rollout.View, c rollout.Change) error {
	select {
	case t.s.at <- t.Term:
		<-t.s.on
		err := t.Term.Apply(context.WithoutCancel(ctx), at, c)
		t.s.result <- err
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (f *fleet) settled() {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.t.Context(), 20*time.Second)
	defer cancel()
	for {
		v, err := f.View(ctx)
		if err != nil {
			f.t.Fatalf("does not settle: %v", err)
		}
		if len(v.Intents)+len(v.Rollouts)+len(v.Prepares) == 0 {
			return
		}
		pause(ctx, 5*time.Millisecond)
	}
}

var _ Source = etcd{(*store.Store)(nil)}
