package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/metric/noop"

	"routerd.dev/internal/rollout"
	"routerd.dev/internal/route"
	"routerd.dev/internal/store"
	"routerd.dev/internal/version"
)

func TestJoinServesWhatIsCommitted(t *testing.T) {
	f := initFleet(t, shared)
	one := f.publish(table("one"))
	f.commit(3, "n1", one)
	m := f.join("a")
	if r := m.Ready(); r.Ready {
		t.Errorf("ready before anything is served: %+v", r)
	}
	s := m.awaitEpoch(3)
	f.awaitReady("a", "n1")
	if got := m.body(); got != "one" {
		t.Errorf("served %q", got)
	}
	if s.Serving.Source != SourceEtcd || s.Serving.Digest != one.Digest || s.Serving.Revision != 1 {
		t.Errorf("status %+v", s.Serving)
	}
	if r := m.Ready(); !r.Ready || r.Source != SourceEtcd || r.Epoch != 3 {
		t.Errorf("readiness %+v", r)
	}
	eventually(t, func() string {
		if r := f.report("a"); r.Serving == nil || r.Serving.Epoch != 3 || r.HighestEpoch != 3 || r.HighestRevision != 1 || r.Nonce != "n1" || r.Boot == "" {
			return fmt.Sprintf("report %+v", r)
		}
		return ""
	})
	if f.get("instances/a") == "" {
		t.Error("not registered")
	}
}

// TestPublishedAgain: a snapshot that is published again is served under its
// new number, by the engine that was built for the old one.
func TestPublishedAgain(t *testing.T) {
	f := initFleet(t, shared)
	one := f.publish(table("one"))
	f.commit(1, "n1", one)
	m := f.join("a")
	m.awaitEpoch(1)
	first := m.front.Serving().Stable
	again := version.Ref{Number: 3, Digest: one.Digest}
	f.commit(2, "n1", again)
	if s := m.awaitEpoch(2); s.Serving.Revision != 3 {
		t.Errorf("status says revision %d", s.Serving.Revision)
	}
	if e := m.front.Serving().Stable; e.Ref() != again || first.As(3).Ref() != again || first.Ref() != one {
		t.Errorf("served as %v, before as %v", e.Ref(), first.Ref())
	}
}

func TestJoinServesNothingBeforeAdmission(t *testing.T) {
	f := initFleet(t, shared)
	one, two := f.publish(table("one")), f.publish(table("two"))
	f.commit(1, "n1", two, one)
	chunk := func() string { // two cannot be built: its manifest is damaged
		return f.get("manifests/" + two.Digest.String())
	}()
	f.put("manifests/"+two.Digest.String(), []byte("damaged"))
	m := f.join("a")
	m.await("told why", func(s Status) bool { return s.Refused != nil && holdsAll(s, one) })
	if got := f.get("ready/g/a"); m.Status().Serving != nil || got != "" && got != "evicted n1 "+two.Digest.String() {
		t.Errorf("an instance that does not hold what is in force serves, or says %q", got)
	}
	f.put("manifests/"+two.Digest.String(), []byte(chunk))
	m.awaitEpoch(1)
	f.awaitReady("a", "n1")
}

func TestPrepareThenSwitch(t *testing.T) {
	f := initFleet(t, shared)
	one, two := f.publish(table("one")), f.publish(table("two"))
	f.commit(1, "n1", one)
	m := f.join("a")
	m.awaitEpoch(1)
	f.awaitReady("a", "n1")

	f.prepare("n2", "", two, one)
	f.awaitReady("a", "n2")
	if s := m.Status(); s.Serving.Epoch != 1 || !holdsAll(s, one, two) || m.body() != "one" {
		t.Errorf("prepared, but not committed: %+v serves %q", s.Serving, m.body())
	}
	a := f.commit(2, "n2", two, one)
	f.delete("prepare/g")
	s := m.awaitEpoch(2)
	if m.body() != "two" || s.Serving.Since.Before(a.Instant) {
		t.Errorf("served %q since %v, the instant was %v", m.body(), s.Serving.Since, a.Instant)
	}
	if s.SkewMicros <= 0 || s.PrepareMicros <= 0 {
		t.Errorf("skew %d µs, prepare %d µs", s.SkewMicros, s.PrepareMicros)
	}
	// The way back is held: it is one commit.
	f.commit(3, "n2", one, two)
	m.awaitEpoch(3)
	// What left the set is dropped.
	f.commit(4, "n3", one)
	m.await("alone", func(s Status) bool { return s.Serving.Epoch == 4 && len(s.Holds) == 1 && s.Holds[0] == one.Digest })
	f.awaitReady("a", "n3")
	if got := m.epochs(); !slices.Equal(got, []int64{1, 2, 3, 4}) {
		t.Errorf("epochs %v", got)
	}
}

func TestFirstInstanceFirst(t *testing.T) {
	f := initFleet(t, shared)
	one, two := f.publish(table("one")), f.publish(table("two"))
	f.commit(1, "n1", one)
	a, b := f.join("a"), f.join("b")
	f.awaitReady("a", "n1")
	f.awaitReady("b", "n1")
	f.prepare("n2", "a", two, one)
	f.awaitReady("a", "n2")
	s := b.await("waiting", func(s Status) bool { return s.Preparing != nil && s.Preparing.Stage == StageWaiting })
	if holdsAll(s, two) || f.get("ready/g/b") != "n1" {
		t.Errorf("b did not wait for a: %+v", s)
	}
	f.prepare("n2", "", two, one)
	f.awaitReady("b", "n2")
	if !holdsAll(a.Status(), one, two) {
		t.Error("a dropped what it prepared")
	}
}

func TestWithdrawnPreparePutsBackTheNonceInForce(t *testing.T) {
	f := initFleet(t, shared)
	one, two := f.publish(table("one")), f.publish(table("two"))
	f.commit(1, "n1", one)
	m := f.join("a")
	m.awaitEpoch(1)
	f.awaitReady("a", "n1")
	f.prepare("n2", "", two, one)
	f.awaitReady("a", "n2")
	f.delete("prepare/g")
	f.awaitReady("a", "n1")
	m.await("without two", func(s Status) bool { return !holdsAll(s, two) })
}

func TestI6_RefusesAndKeepsWhatItHas(t *testing.T) {
	f := initFleet(t, shared)
	one := f.publish(table("one"))
	f.commit(1, "n1", one)
	m := f.join("a")
	m.awaitEpoch(1)
	f.awaitReady("a", "n1")

	chunkOf := func(r version.Ref) string {
		raw, err := version.UnpackManifest([]byte(f.get("manifests/" + r.Digest.String())))
		if err != nil {
			t.Fatal(err)
		}
		man, err := version.ParseManifest(r.Digest, raw)
		if err != nil {
			t.Fatal(err)
		}
		return "chunks/" + man.Modules[0].Chunks[0].Digest.String()
	}
	corrupted := f.publish(table("corrupted"))
	f.put(chunkOf(corrupted), []byte("not a chunk\nof ours"))
	gone := f.publish(table("gone"))
	f.delete(chunkOf(gone))
	foreign := f.publish(table("needs", route.Route{
		Name: "limited", Path: "/l", Action: route.Action{Respond: &route.Respond{}},
		Middlewares: []route.Middleware{{Kind: "fromTheFuture", Config: "{}"}},
	}))
	failing := func() version.Ref {
		tab := table("failing")
		tab.Modules[0].Tests = []route.Test{{Name: "never", Method: "GET", URL: "/nowhere", Route: "root"}}
		route.Normalize(tab)
		return f.publish(tab)
	}()
	for i, c := range []struct {
		ref  version.Ref
		says string
	}{
		{corrupted, "chunk"}, {gone, "not found"}, {foreign, "middleware/fromTheFuture/1"}, {failing, "never"},
	} {
		nonce := fmt.Sprintf("bad%d", i)
		f.prepare(rollout.Nonce(nonce), "", c.ref, one)
		var got string
		eventually(t, func() string {
			got = f.get("ready/g/a")
			return hasPrefix(got, "refused "+nonce+" ")
		})
		if !strings.Contains(got, c.says) || strings.ContainsAny(got, "\n\r") || len(got) > 500 {
			t.Errorf("refusal %q, want one bounded line with %q", got, c.says)
		}
		if m.body() != "one" || m.Status().Serving.Epoch != 1 {
			t.Error("a refusal changed what is served")
		}
	}
	// The same digest under a new nonce is tried again.
	again := f.publish(table("corrupted"))
	f.delete(chunkOf(again))
	if _, err := f.store.PutSnapshot(t.Context(), mustEncode(t, table("corrupted"))); err != nil {
		t.Fatal(err)
	}
	f.prepare("good", "", again, one)
	f.awaitReady("a", "good")
}

func mustEncode(t *testing.T, tab *route.Table) *version.Snapshot {
	t.Helper()
	s, err := version.Encode(tab)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestI12_OverrideThatIsNotHeld(t *testing.T) {
	f := initFleet(t, shared)
	one, two := f.publish(table("one")), f.publish(table("two"))
	f.commit(1, "n1", one)
	m := f.join("a")
	m.awaitEpoch(1)
	f.awaitReady("a", "n1")
	man := f.get("manifests/" + two.Digest.String())
	f.delete("manifests/" + two.Digest.String())
	f.commit(2, "n2", two)
	f.awaitReady("a", "none")
	s := m.await("stale", func(s Status) bool { return strings.Contains(s.Stale, "epoch 2 is committed") })
	if s.Serving.Epoch != 1 || m.body() != "one" {
		t.Errorf("serves %+v", s.Serving)
	}
	eventually(t, func() string {
		if r := f.report("a"); r.Stale == "" || r.HighestEpoch != 2 {
			return fmt.Sprintf("report %+v", r)
		}
		return ""
	})
	f.put("manifests/"+two.Digest.String(), []byte(man))
	m.awaitEpoch(2)
	f.awaitReady("a", "n2")
	if s := m.await("not stale", func(s Status) bool { return s.Stale == "" }); m.body() != "two" {
		t.Errorf("status %+v", s)
	}
}

// TestOverrideBetweenAdmissionAndInstant takes back what was said by an instance
// that serves nothing yet.
func TestOverrideBetweenAdmissionAndInstant(t *testing.T) {
	f := initFleet(t, shared)
	one, two := f.publish(table("one")), f.publish(table("two"))
	f.put("groups/g", rollout.Assignment{
		Group: "g", Epoch: 1, Nonce: "n1", Stable: one, Set: []version.Ref{one}, Instant: time.Now().Add(time.Hour),
	})
	man := f.get("manifests/" + two.Digest.String())
	f.delete("manifests/" + two.Digest.String())
	m := f.join("a")
	f.awaitReady("a", "n1")
	f.commit(2, "n2", two)
	f.awaitReady("a", "none")
	f.put("manifests/"+two.Digest.String(), []byte(man))
	m.awaitEpoch(2)
	f.awaitReady("a", "n2")
}

func TestI10_Freeze(t *testing.T) {
	for _, c := range []struct {
		name string
		do   func(*fleet)
	}{
		{"assignment gone", func(f *fleet) { f.delete("groups/g") }},
		{"lower epoch", func(f *fleet) { f.put("groups/g", rollout.Assignment{Group: "g", Epoch: 2, Nonce: "old"}) }},
		{"same epoch, other commit", func(f *fleet) { f.put("groups/g", rollout.Assignment{Group: "g", Epoch: 3, Nonce: "other"}) }},
		{"wiped", func(f *fleet) { f.delete("", clientv3.WithPrefix()) }},
		{"wiped and made anew", func(f *fleet) {
			f.delete("", clientv3.WithPrefix())
			if _, _, err := f.store.Init(f.t.Context()); err != nil {
				f.t.Fatal(err)
			}
			f.put("groups/g", rollout.Assignment{Group: "g", Epoch: 70, Nonce: "other"})
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := initFleet(t, shared)
			one := f.publish(table("one"))
			f.commit(3, "n1", one)
			m := f.join("a")
			m.awaitEpoch(3)
			c.do(f)
			s := m.await("frozen", func(s Status) bool { return s.Frozen != "" })
			f.awaitReady("a", "none")
			if why := hasPrefix(s.Frozen, rollout.FrozenStoreWentBack); why != "" || m.body() != "one" || s.Serving.Epoch != 3 {
				t.Errorf("%s; serves %+v", why, s.Serving)
			}
			eventually(t, func() string {
				r := f.report("a")
				if r.HighestEpoch < 3 {
					return fmt.Sprintf("report %+v", r)
				}
				return hasPrefix(r.Frozen, rollout.FrozenStoreWentBack)
			})
			// A higher epoch alone is not followed, a recovery is.
			two := f.publish(table("two")) // etcd may have lost the first
			a := rollout.Assignment{Group: "g", Epoch: 80, Nonce: "n8", Stable: two, Set: []version.Ref{two}, Instant: time.Now()}
			f.put("groups/g", a)
			f.prepare("n9", "", two)
			f.awaitReady("a", "none")
			m.await("still frozen", func(s Status) bool { return s.Frozen != "" && s.Serving.Epoch == 3 })
			f.store.Init(t.Context()) //nolint:errcheck // only the wiped one needs it
			f.delete("prepare/g")
			a.Epoch, a.Recovered = 81, 81
			f.put("groups/g", a)
			s = m.awaitEpoch(81)
			f.awaitReady("a", "n8")
			if s = m.await("recovered", func(s Status) bool { return s.Frozen == "" }); m.body() != "two" {
				t.Errorf("serves %q", m.body())
			}
			if got := m.epochs(); !slices.Equal(got, []int64{3, 81}) {
				t.Errorf("epochs %v", got)
			}
		})
	}
}

func TestI5_ColdStartWithoutEtcd(t *testing.T) {
	e := ownEtcd(t)
	f := initFleet(t, e)
	one, two := f.publish(table("one")), f.publish(table("two"))
	f.commit(1, "n1", one)
	o := f.options("a")
	o.StateDir = t.TempDir()
	m := f.start(o)
	m.awaitEpoch(1)
	f.prepare("n2", "", two, one)
	f.awaitReady("a", "n2")
	f.commit(2, "n2", two, one)
	m.awaitEpoch(2)
	m.stop()
	e.stop()

	began := time.Now()
	m = f.start(o)
	s := m.awaitEpoch(2)
	if took := time.Since(began); took < o.JoinTimeout {
		t.Errorf("served from disk after %v, before the join timeout", took)
	}
	if s.Serving.Source != SourceDisk || m.body() != "two" || s.Stale == "" {
		t.Errorf("serves %+v %q, stale %q", s.Serving, m.body(), s.Stale)
	}
	if r := m.Ready(); !r.Ready || r.Source != SourceDisk || !strings.Contains(r.Why, "disk") {
		t.Errorf("readiness %+v", r)
	}
	if s.HighestEpoch != 2 || s.HighestRevision != 2 {
		t.Errorf("remembers %d, %d", s.HighestEpoch, s.HighestRevision)
	}
	if err := e.start(); err != nil {
		t.Fatal(err)
	}
	f.awaitReady("a", "n2")
	s = m.await("confirmed", func(s Status) bool { return s.Serving.Source == SourceEtcd && s.Stale == "" && s.Etcd.Reachable })
	if got := m.epochs(); !slices.Equal(got, []int64{2}) {
		t.Errorf("epochs %v: etcd that came back changed what is served", got)
	}
	f.commit(3, "n2", one, two)
	m.awaitEpoch(3)
}

func TestStartNeverServesOlderDiskStateWithEtcdReachable(t *testing.T) {
	f := initFleet(t, shared)
	one, two := f.publish(table("one")), f.publish(table("two"))
	f.commit(1, "n1", one)
	o := f.options("a")
	o.StateDir = t.TempDir()
	m := f.start(o)
	m.awaitEpoch(1)
	m.stop()
	man := f.get("manifests/" + two.Digest.String())
	f.delete("manifests/" + two.Digest.String())
	f.commit(2, "n2", two, one)
	o.JoinTimeout = time.Minute // the start must not depend on which comes first
	m = f.start(o)
	m.await("told why", func(s Status) bool { return s.Refused != nil && holdsAll(s, one) })
	if m.Status().Serving != nil {
		t.Error("served older disk state")
	}
	f.put("manifests/"+two.Digest.String(), []byte(man))
	m.awaitEpoch(2)
	if got := m.epochs(); !slices.Equal(got, []int64{2}) {
		t.Errorf("epochs %v", got)
	}
}

func TestI3_StartAfterEtcdWentBackServesFromDiskFrozen(t *testing.T) {
	f := initFleet(t, shared)
	one, two := f.publish(table("one")), f.publish(table("two"))
	f.commit(5, "n5", two, one)
	o := f.options("a")
	o.StateDir = t.TempDir()
	m := f.start(o)
	m.awaitEpoch(5)
	m.stop()
	f.commit(4, "n4", one)
	m = f.start(o)
	s := m.await("frozen at 5", func(s Status) bool { return s.Serving != nil && s.Serving.Epoch == 5 && s.Frozen != "" })
	if s.Serving.Source != SourceDisk || m.body() != "two" {
		t.Errorf("status %+v %+v", s, s.Serving)
	}
	f.awaitReady("a", "none")
	m.await("whole set held", func(s Status) bool { return holdsAll(s, one, two) })
	if got := m.epochs(); !slices.Equal(got, []int64{5}) {
		t.Errorf("epochs %v", got)
	}
}

func TestChunksOnDiskAreNotFetched(t *testing.T) {
	f := initFleet(t, shared)
	one := f.publish(table("one"))
	f.commit(1, "n1", one)
	o := f.options("a")
	o.StateDir = t.TempDir()
	m := f.start(o)
	m.awaitEpoch(1)
	m.stop()
	f.delete("chunks/", clientv3.WithPrefix())
	f.delete("manifests/", clientv3.WithPrefix())
	o.JoinTimeout = time.Minute // etcd is to say what is in force, however long that takes
	m = f.start(o)
	if s := m.awaitEpoch(1); s.Serving.Source != SourceEtcd || m.body() != "one" {
		t.Errorf("serves %+v", s.Serving)
	}
}

func TestLostLeaseJoinsAgain(t *testing.T) {
	f := initFleet(t, shared)
	one := f.publish(table("one"))
	f.commit(1, "n1", one)
	m := f.join("a")
	m.awaitEpoch(1)
	f.awaitReady("a", "n1")
	resp, err := f.raw.Get(t.Context(), f.prefix+"instances/a")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.raw.Revoke(t.Context(), clientv3.LeaseID(resp.Kvs[0].Lease)); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() string {
		again, err := f.raw.Get(t.Context(), f.prefix+"instances/a")
		if err != nil || len(again.Kvs) == 0 || again.Kvs[0].Lease == resp.Kvs[0].Lease {
			return fmt.Sprintf("not joined again: %v %v", again, err)
		}
		return ""
	})
	f.awaitReady("a", "n1")
	if got := m.epochs(); !slices.Equal(got, []int64{1}) || m.body() != "one" {
		t.Errorf("a lost lease changed what is served: %v", got)
	}
	// Keys that somebody took away are a lost membership too.
	f.delete("instances/a")
	eventually(t, func() string {
		if f.get("instances/a") == "" {
			return "not joined again"
		}
		return ""
	})
	f.awaitReady("a", "n1")
}

// taken is an etcd where the instance's name is another's: a dead process's,
// whose lease lasts until its end, or a living one's. From down until up it
// does not answer.
type taken struct {
	Store
	down, up, end time.Time
}

func (s taken) Join(context.Context, rollout.Instance, time.Duration) (*store.Membership, error) {
	switch now := time.Now(); {
	case now.After(s.down) && now.Before(s.up):
		return nil, store.ErrUnavailable
	case now.Before(s.end):
		return nil, &store.TwinError{Instance: "a", Boot: "other", Expires: min(s.end.Sub(now), 10*time.Second)}
	}
	return nil, errors.New("the name is free")
}

// An etcd that was away gives every lease its whole time again, a dead
// process's too: that is no sign of life.
func TestDeadTwinIsWaitedForWhileEtcdIsAway(t *testing.T) {
	for _, c := range []struct {
		down, up, end time.Duration
		fatal         bool
	}{
		{down: time.Second, up: 12 * time.Second, end: 22 * time.Second},
		{down: 9 * time.Second, up: 12 * time.Second, end: 22 * time.Second},
		{down: time.Hour, up: time.Hour, end: 10 * time.Second},
		{down: time.Hour, up: time.Hour, end: time.Hour, fatal: true},
		{down: 5 * time.Second, up: 10 * time.Second, end: time.Hour, fatal: true},
	} {
		f := &fleet{t: t}
		synctest.Test(t, func(t *testing.T) {
			l, now := bareLoop(t, f.options("a")).link, time.Now()
			l.ttl, l.wish.state.At = 10*time.Second, 1
			l.store = taken{down: now.Add(c.down), up: now.Add(c.up), end: now.Add(c.end)}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			l.tell = func(func(*loop)) {}
			if err := l.run(ctx); errors.Is(err, store.ErrTwin) != c.fatal {
				t.Errorf("away from %s to %s, taken until %s: %v", c.down, c.up, c.end, err)
			}
		})
	}
}

// noCallbacks is a meter that calls nobody.
type noCallbacks struct{ noop.Meter }

func (noCallbacks) RegisterCallback(metric.Callback, ...metric.Observable) (metric.Registration, error) {
	return nil, errors.New("no callbacks")
}

// Whoever waits for an agent that did not come to run is told so.
func TestRunThatFailsKeepsNobodyWaiting(t *testing.T) {
	f := &fleet{t: t}
	o := f.options("a")
	o.Meter = noCallbacks{}
	a := bareLoop(t, o).Agent
	if err := a.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "no callbacks") {
		t.Errorf("run: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := a.Leave(ctx); err != nil {
		t.Error(err)
	}
	if _, err := a.Unpin(ctx); !errors.Is(err, errEnded) {
		t.Errorf("unpin: %v", err)
	}
}

func TestTwinIsFatalAtTheStart(t *testing.T) {
	f := initFleet(t, shared)
	f.commit(1, "n1", f.publish(table("one")))
	a := f.join("a")
	a.awaitEpoch(1)
	twin := f.join("a")
	select {
	case err := <-twin.done:
		if !errors.Is(err, store.ErrTwin) {
			t.Errorf("run: %v, want ErrTwin", err)
		}
		twin.done <- nil
	case <-time.After(20 * time.Second):
		t.Fatal("the twin runs on")
	}
	if twin.Status().Serving != nil {
		t.Error("the twin served")
	}
	if f.awaitReady("a", "n1"); !a.Status().Joined {
		t.Error("the twin took the place of the first")
	}
}

func TestNewGroupWaitsForItsFirstAssignment(t *testing.T) {
	f := newFleet(t, shared) // without a fleet: an instance without a state of its own makes it
	m := f.join("a")
	eventually(t, func() string {
		if f.get("format") == "" || f.get("instances/a") == "" {
			return "no fleet was made, or the instance is not registered"
		}
		return ""
	})
	one := f.publish(table("one"))
	f.prepare("n1", "", one)
	f.awaitReady("a", "n1")
	if m.Status().Serving != nil {
		t.Error("serves what was only prepared")
	}
	f.commit(1, "n1", one)
	m.awaitEpoch(1)
}

func TestLeaveGivesTheLeaseBack(t *testing.T) {
	f := initFleet(t, shared)
	f.commit(1, "n1", f.publish(table("one")))
	o := f.options("a")
	o.LeaseTTL = time.Minute
	m := f.start(o)
	m.awaitEpoch(1)
	f.awaitReady("a", "n1")
	m.Drain()
	if r := m.Ready(); r.Ready || r.Why != "draining" {
		t.Errorf("readiness %+v", r)
	}
	if f.get("ready/g/a") != "n1" || m.body() != "one" {
		t.Error("draining ended more than readiness")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := m.Leave(ctx); err != nil {
		t.Fatal(err)
	}
	if f.get("instances/a")+f.get("ready/g/a")+f.get("reports/a") != "" {
		t.Error("keys are left")
	}
	if m.body() != "one" {
		t.Error("leaving ended serving")
	}
}

func TestEtcdAwayChangesNothingForUsers(t *testing.T) {
	e := ownEtcd(t)
	f := initFleet(t, e)
	one, two := f.publish(table("one")), f.publish(table("two"))
	f.commit(1, "n1", one)
	m := f.join("a")
	m.awaitEpoch(1)
	f.awaitReady("a", "n1")
	e.stop()
	s := m.await("stale", func(s Status) bool { return s.Stale != "" && !s.Etcd.Reachable })
	if m.body() != "one" || !m.Ready().Ready {
		t.Errorf("status %+v", s)
	}
	if err := e.start(); err != nil {
		t.Fatal(err)
	}
	f.prepare("n2", "", two, one)
	f.awaitReady("a", "n2")
	f.commit(2, "n2", two, one)
	m.awaitEpoch(2)
}

func TestQuarantine(t *testing.T) {
	f := initFleet(t, shared)
	one, two, three := f.publish(table("one")), f.publish(table("two")), f.publish(table("three"))
	f.commit(1, "n1", one)
	o := f.options("a")
	o.StateDir = t.TempDir()
	m := f.start(o)
	m.awaitEpoch(1)
	m.stop()

	// Two former lives ended while they compiled the digest.
	d := &disk{root: o.StateDir, group: "g", log: m.log}
	if err := writeSealed(d.trialFile(two.Digest), trial{Build: "test", Crashes: 1, Open: true, Compiling: true, Machine: BootID()}); err != nil {
		t.Fatal(err)
	}
	f.commit(2, "n2", two, one)
	m = f.start(o)
	s := m.awaitEpoch(2)
	f.awaitReady("a", "n2")
	if m.body() != "one" || !s.Serving.Fallback || s.Serving.Digest != one.Digest || !slices.Contains(s.Quarantined, two.Digest) {
		t.Errorf("status %+v %+v", s, s.Serving)
	}
	eventually(t, func() string {
		if r := f.report("a"); !slices.Contains(r.Quarantined, two.Digest) || r.Serving == nil || r.Serving.Digest != one.Digest {
			return fmt.Sprintf("report %+v", r)
		}
		return ""
	})
	// The fleet can leave it, and cannot come to it.
	f.prepare("n3", "", three, two, one)
	f.awaitReady("a", "n3")
	f.commit(3, "n3", three, one)
	m.awaitEpoch(3)
	f.prepare("n4", "", two, three)
	eventually(t, func() string { return hasPrefix(f.get("ready/g/a"), "refused n4 ") })
	if m.body() != "three" {
		t.Errorf("serves %q", m.body())
	}
	m.stop()
	// Another build may do better.
	o.Who.Version = "test2"
	f.start(o)
	f.awaitReady("a", "n4")
}
