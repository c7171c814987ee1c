package store

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	clientv3 "go.etcd.io/etcd/client/v3"

	"routerd.dev/internal/rollout"
	"routerd.dev/internal/version"
)

// whole fails unless every byte of the snapshot is stored.
func whole(t *testing.T, s *Store, d version.Digest) {
	t.Helper()
	b, err := s.Manifest(t.Context(), d)
	must(t, err)
	if _, _, err := version.Load(t.Context(), d, b, s, nil); err != nil {
		t.Fatal(err)
	}
}

func TestPublishUploadsOnlyWhatIsMissing(t *testing.T) {
	s := fleet(t)
	first := publish(t, s, "a", "b", "c")
	whole(t, s, first.Digest)
	p, err := s.Publish(t.Context(), PublishRequest{Snapshot: snapshot(t, "a", "b", "d"), Parent: first.Ref()})
	must(t, err)
	if p.Uploaded.Chunks != 1 || p.Uploaded.Known != 2 || p.Uploaded.Bytes == 0 {
		t.Errorf("uploaded %+v", p.Uploaded)
	}
	whole(t, s, p.Revision.Digest)
}

// A snapshot whose chunks are more than one transaction takes.
func TestPublishManyChunks(t *testing.T) {
	s := fleet(t)
	words := make([]string, 250)
	for i := range words {
		words[i] = fmt.Sprintf("word-%d-%s", i, strings.Repeat("x", 5000))
	}
	whole(t, s, publish(t, s, words...).Digest)
}

func TestPublishIsOneTransaction(t *testing.T) {
	s := fleet(t)
	base := publish(t, s, "a")
	rev := publishOn(t, s, base.Ref(), &rollout.Intent{Kind: rollout.IntentSwitch, Groups: []string{"main"}}, "b")
	if rev.Number != 2 || rev.Parent != 1 || rev.Author != "ann" || rev.Routes != 1 || rev.Modules["m0"].IsZero() {
		t.Errorf("revision %+v", rev)
	}
	v := view(t, s)
	i := v.Intents[1]
	if i.To != rev.Ref() || i.PrevTarget != base.Ref() || i.By != "ann" || i.Message != "words" || i.Time.IsZero() || v.Fleet.Target != rev.Ref() {
		t.Errorf("intent %+v, fleet %+v", i, v.Fleet)
	}
	mods := map[int64][]string{}
	resp, err := raw(t, s).Get(t.Context(), s.Prefix(), clientv3.WithPrefix())
	must(t, err)
	for _, kv := range resp.Kvs {
		mods[kv.ModRevision] = append(mods[kv.ModRevision], s.name(string(kv.Key), ""))
	}
	if last := mods[v.At]; len(last) != 7 { // audit, fleet, head, intent, revision, and the pieces: a chunk and the manifest
		t.Errorf("the last transaction wrote %v", last)
	}
	entries, _, err := s.Audit(t.Context(), 1, "")
	must(t, err)
	if e := entries[0]; e.What != "publish" || e.Who != "ann" || e.To != rev.Ref() || e.Rollout != i.ID {
		t.Errorf("audit %+v", e)
	}
}

func TestPublishWithoutSwitchLeavesTheTarget(t *testing.T) {
	s := fleet(t)
	base := publish(t, s, "a")
	rev := publishOn(t, s, base.Ref(), nil, "b")
	if v := view(t, s); v.Fleet.Target != base.Ref() || len(v.Intents) != 1 || rev.Number != 2 {
		t.Errorf("view %+v", v)
	}
	// The next publish composes on the target, not on the newest.
	if rev = publishOn(t, s, base.Ref(), nil, "c"); rev.Number != 3 || rev.Parent != 1 {
		t.Errorf("revision %+v", rev)
	}
}

func TestPublishOnAnotherTargetConflicts(t *testing.T) {
	s := fleet(t)
	base := publish(t, s, "a")
	publish(t, s, "b")
	unchanged(t, s, func() {
		_, err := s.Publish(t.Context(), PublishRequest{Snapshot: snapshot(t, "c"), Parent: base.Ref()})
		wantErr(t, err, ErrConflict, "revision 2", "revision 1", "publish again")
	})
}

func TestOfManyPublishersOneWins(t *testing.T) {
	s := fleet(t)
	base := publish(t, s, "base")
	var wg sync.WaitGroup
	errs := make([]error, 8)
	for i := range errs {
		other, snap := again(t, s), snapshot(t, fmt.Sprint("by ", i))
		wg.Go(func() {
			_, errs[i] = other.Publish(t.Context(), PublishRequest{
				Snapshot: snap, Parent: base.Ref(), Intent: &rollout.Intent{Kind: rollout.IntentSwitch},
			})
		})
	}
	wg.Wait()
	won := 0
	for _, err := range errs {
		switch {
		case err == nil:
			won++
		case !errors.Is(err, ErrConflict):
			t.Error(err)
		}
	}
	if head, err := s.Head(t.Context()); won != 1 || head != 2 || err != nil {
		t.Errorf("%d won, head %d, %v", won, head, err)
	}
}

// Publishers that do not switch all end, each with a number of its own.
func TestOfManyPublishersNoNumberIsUsedTwice(t *testing.T) {
	s := fleet(t)
	var wg sync.WaitGroup
	numbers := make([]int64, 8)
	for i := range numbers {
		other, snap := again(t, s), snapshot(t, fmt.Sprint("by ", i))
		wg.Go(func() {
			p, err := other.Publish(t.Context(), PublishRequest{Snapshot: snap})
			if err != nil {
				t.Error(err)
			}
			numbers[i] = p.Revision.Number
		})
	}
	wg.Wait()
	slices.Sort(numbers)
	if !slices.Equal(numbers, []int64{1, 2, 3, 4, 5, 6, 7, 8}) {
		t.Errorf("numbers %v", numbers)
	}
}

// A controller that commits moves the fleet's key, not its target: neither
// stops the other, and neither's write is lost.
func TestPublishIsNotStoppedByCommits(t *testing.T) {
	s := fleet(t)
	base := publish(t, s, "base")
	stop := make(chan struct{})
	var wg sync.WaitGroup
	busy, writes := again(t, s), time.Duration(0)
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if err := busy.SetSettings(t.Context(), "c", func(x *rollout.Settings) error { x.Lead = (x.Lead + 1) % rollout.MaxLead; return nil }); err != nil {
				t.Error(err)
				return
			}
			writes++
		}
	})
	for i := range 50 {
		base = publishOn(t, s, base.Ref(), &rollout.Intent{Kind: rollout.IntentSwitch}, fmt.Sprint("w", i))
	}
	close(stop)
	wg.Wait()
	if f, err := s.Fleet(t.Context()); err != nil || f.Target != base.Ref() || f.Settings.Lead != writes || writes == 0 {
		t.Errorf("fleet %+v, %v, after %d writes", f, err, writes)
	}
}

func TestNumbersExceedEveryOneEverSeen(t *testing.T) {
	s := fleet(t)
	m := join(t, s, "main", "a")
	must(t, m.Report(t.Context(), rollout.Report{HighestRevision: 41}))
	if rev := publish(t, s, "a"); rev.Number != 42 {
		t.Errorf("number %d", rev.Number)
	}
	must(t, m.Leave(t.Context()))
	rawDelete(t, s, "head") // also when head was lost: a revision never changes
	if rev := publish(t, s, "b"); rev.Number != 43 {
		t.Errorf("number %d", rev.Number)
	}
	rawPut(t, s, "head", "1e9")
	if _, err := s.Publish(t.Context(), PublishRequest{Snapshot: snapshot(t, "c"), Parent: target(t, s)}); !errors.Is(err, ErrCorrupt) {
		t.Errorf("error %v", err)
	}
}

func TestPublishOfWhatIsLive(t *testing.T) {
	s := fleet(t)
	rev := publish(t, s, "a")
	again := func() error {
		_, err := s.Publish(t.Context(), PublishRequest{Snapshot: snapshot(t, "a"), Parent: rev.Ref(), Intent: &rollout.Intent{}})
		return err
	}
	term := campaign(t, s, "c1")
	serve := func(a rollout.Assignment) {
		t.Helper()
		must(t, term.Apply(t.Context(), view(t, s), rollout.Change{Groups: []rollout.Assignment{a}}))
	}
	serve(rollout.Assignment{Group: "main", Epoch: 1, Stable: rev.Ref()})
	unchanged(t, s, func() {
		err := again()
		wantErr(t, err, ErrNothingChanged, "revision 1")
		var e *NothingChangedError
		if !errors.As(err, &e) || e.Target != rev.Ref() {
			t.Errorf("error %#v", err)
		}
	})
	// It is the target, but a group serves another: then it is a revision.
	serve(rollout.Assignment{Group: "main", Epoch: 2, Stable: version.Ref{Number: 9, Digest: version.DigestOf([]byte("x"))}})
	must(t, again())
}

func TestPublishWithoutFleet(t *testing.T) {
	s := open(t)
	_, err := s.Publish(t.Context(), PublishRequest{Snapshot: snapshot(t, "a")})
	wantErr(t, err, ErrNotInitialized, "routectl init", s.Prefix())
	if all := dump(t, s); len(all) != 0 {
		t.Errorf("wrote %v", all)
	}
}

// The last transaction is carried out and the connection dies before the
// answer: the publisher finds out that it is done.
func TestUnansweredPublishIsFoundOut(t *testing.T) {
	direct := fleet(t)
	p := newBlackhole(t, strings.TrimPrefix(shared.endpoint(), "unix://"), direct.revisionKey(1))
	s := openAt(t, Config{Prefix: direct.Prefix(), Endpoints: []string{"unix://" + p.path}, Timeout: 20 * time.Second})
	var wg sync.WaitGroup
	wg.Go(func() {
		eventually(t, "the revision is there", func() bool {
			_, err := direct.Revision(t.Context(), 1)
			return err == nil
		})
		p.cut()
	})
	done, err := s.Publish(t.Context(), PublishRequest{Snapshot: snapshot(t, "a"), Intent: &rollout.Intent{Kind: rollout.IntentSwitch}})
	must(t, err)
	wg.Wait()
	if head, err := direct.Head(t.Context()); err != nil || head != 1 || done.Revision.Number != 1 || target(t, direct) != done.Revision.Ref() {
		t.Errorf("head %d, %v, done %+v", head, err, done)
	}
	other := done.Revision
	other.Time = other.Time.Add(1)
	if s.published(t.Context(), other) {
		t.Error("another's record is taken for its own")
	}
}

func TestOfManyIntentsOneMovesTheTarget(t *testing.T) {
	s := fleet(t)
	one, two := publish(t, s, "a"), publish(t, s, "b")
	to := one.Ref()
	var wg sync.WaitGroup
	var won atomic.Int64
	for range 8 {
		other := again(t, s)
		wg.Go(func() {
			_, err := other.PutIntent(t.Context(), rollout.Intent{Kind: rollout.IntentRollback, To: to}, &to, two.Ref())
			if err == nil {
				won.Add(1)
			} else if !errors.Is(err, ErrConflict) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if won.Load() != 1 {
		t.Errorf("%d won", won.Load())
	}
}

func TestIntentMovesTheTargetOnlyAsExpected(t *testing.T) {
	s := fleet(t)
	one, two := publish(t, s, "a"), publish(t, s, "b")
	back, wrong := one.Ref(), one.Ref()
	unchanged(t, s, func() {
		_, err := s.PutIntent(t.Context(), rollout.Intent{Kind: rollout.IntentRollback, To: back}, &back, wrong)
		wantErr(t, err, ErrConflict, "revision 2")
	})
	i, err := s.PutIntent(t.Context(), rollout.Intent{Kind: rollout.IntentRollback, To: back, By: "bob", Message: "oops"}, &back, two.Ref())
	must(t, err)
	if i.PrevTarget != two.Ref() || i.ID == "" || target(t, s) != back {
		t.Errorf("intent %+v", i)
	}
	entries, _, err := s.Audit(t.Context(), 1, "")
	must(t, err)
	if e := entries[0]; e.What != "rollback" || e.Who != "bob" || e.Why != "oops" || e.Rollout != i.ID {
		t.Errorf("audit %+v", e)
	}
	unchanged(t, s, func() {
		_, err := s.PutIntent(t.Context(), i, nil, version.Ref{})
		wantErr(t, err, ErrConflict, i.ID)
	})
}

// collected says whether the snapshot is gone.
func collected(t *testing.T, s *Store, d version.Digest) bool {
	t.Helper()
	_, err := s.Manifest(t.Context(), d)
	if err != nil && !errors.Is(err, ErrNotFound) {
		t.Fatal(err)
	}
	return err != nil
}

func gc(t *testing.T, s *Store) Collected {
	t.Helper()
	c, err := s.GC(t.Context(), "ann", KeepPolicy{Revisions: -1})
	must(t, err)
	return c
}

// Everything that may name a snapshot keeps it.
func TestGCKeepsWhatIsNamed(t *testing.T) {
	for name, hold := range map[string]func(*testing.T, *Store, version.Ref){
		"nothing": nil,
		"stable": func(t *testing.T, s *Store, r version.Ref) {
			mustApply(t, s, rollout.Change{Groups: []rollout.Assignment{{Group: "main", Epoch: 1, Stable: r}}})
		},
		"candidate": func(t *testing.T, s *Store, r version.Ref) {
			mustApply(t, s, rollout.Change{Groups: []rollout.Assignment{{Group: "main", Epoch: 1, Candidate: &rollout.Candidate{Ref: r}}}})
		},
		"set": func(t *testing.T, s *Store, r version.Ref) {
			mustApply(t, s, rollout.Change{Groups: []rollout.Assignment{{Group: "main", Epoch: 1, Set: []version.Ref{r}}}})
		},
		"way back": func(t *testing.T, s *Store, r version.Ref) {
			mustApply(t, s, rollout.Change{Groups: []rollout.Assignment{{Group: "main", Epoch: 1, Back: []version.Ref{r}}}})
		},
		"prepare": func(t *testing.T, s *Store, r version.Ref) {
			mustApply(t, s, rollout.Change{Prepares: []rollout.Prepare{{Group: "main", Set: []version.Ref{r}}}})
		},
		"intent": func(t *testing.T, s *Store, r version.Ref) {
			_, err := s.PutIntent(t.Context(), rollout.Intent{Kind: rollout.IntentSwitch, To: r}, nil, version.Ref{})
			must(t, err)
		},
		"rollout": func(t *testing.T, s *Store, r version.Ref) {
			mustApply(t, s, rollout.Change{Rollouts: []rollout.Rollout{{Intent: rollout.Intent{ID: "x", To: r}, Phase: rollout.PhasePreparing}}})
		},
		"target a rollout may restore": func(t *testing.T, s *Store, r version.Ref) {
			mustApply(t, s, rollout.Change{Rollouts: []rollout.Rollout{{Intent: rollout.Intent{ID: "x", PrevTarget: r}, Phase: rollout.PhasePreparing}}})
		},
		"committed": func(t *testing.T, s *Store, r version.Ref) {
			f := view(t, s).Fleet
			f.Committed = r
			mustApply(t, s, rollout.Change{Fleet: &f})
		},
		"held": func(t *testing.T, s *Store, r version.Ref) {
			must(t, join(t, s, "main", "a").Report(t.Context(), rollout.Report{Holds: []version.Digest{r.Digest}}))
		},
		"against": func(t *testing.T, s *Store, r version.Ref) {
			mustApply(t, s, rollout.Change{Groups: []rollout.Assignment{{Group: "main", Epoch: 1, Against: r}}})
		},
		"goal": func(t *testing.T, s *Store, r version.Ref) {
			holdRollout(t, s, rollout.Rollout{Goals: map[string]version.Ref{"main": r}})
		},
		"origin": func(t *testing.T, s *Store, r version.Ref) {
			holdRollout(t, s, rollout.Rollout{Origin: map[string]version.Ref{"main": r}})
		},
		"way back of a rollout": func(t *testing.T, s *Store, r version.Ref) {
			holdRollout(t, s, rollout.Rollout{Return: &rollout.Return{To: map[string]int64{"main": r.Number}}})
		},
		"pin": func(t *testing.T, s *Store, r version.Ref) {
			must(t, s.Pin(t.Context(), r.Number, "the last good one", "ann"))
		},
		"pin that is unreadable": func(t *testing.T, s *Store, r version.Ref) {
			rawPut(t, s, fmt.Sprintf("pins/%020d", r.Number), "{")
		},
		"pinned": func(t *testing.T, s *Store, r version.Ref) {
			must(t, join(t, s, "main", "a").Report(t.Context(), rollout.Report{Pinned: r.Digest}))
		},
		"serving": func(t *testing.T, s *Store, r version.Ref) {
			must(t, join(t, s, "main", "a").Report(t.Context(), rollout.Report{Serving: &rollout.Serving{Digest: r.Digest}}))
		},
		"preparing": func(t *testing.T, s *Store, r version.Ref) {
			must(t, join(t, s, "main", "a").Report(t.Context(), rollout.Report{Preparing: &rollout.Progress{Digest: r.Digest}}))
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := fleet(t)
			old := publishOn(t, s, version.Ref{}, nil, "old", "shared")
			now := publishOn(t, s, version.Ref{}, &rollout.Intent{Kind: rollout.IntentSwitch}, "now", "shared")
			if hold != nil {
				hold(t, s, old.Ref())
			}
			c := gc(t, s)
			if got := collected(t, s, old.Digest); got != (hold == nil) {
				t.Errorf("collected: %v: %+v", got, c)
			}
			whole(t, s, now.Digest)
			if hold != nil {
				whole(t, s, old.Digest)
				if _, err := s.Revision(t.Context(), old.Number); err != nil {
					t.Error(err)
				}
				return
			}
			if _, err := s.Revision(t.Context(), old.Number); !errors.Is(err, ErrNotFound) {
				t.Errorf("revision: %v", err)
			}
			want := Collected{Revisions: 1, Manifests: 1, Chunks: 1, KeptRevisions: 1, KeptManifests: 1, KeptChunks: 2}
			if c != want {
				t.Errorf("collected %+v, want %+v", c, want)
			}
		})
	}
}

func holdRollout(t *testing.T, s *Store, r rollout.Rollout) {
	t.Helper()
	r.ID, r.Phase = "x", rollout.PhaseRunning
	mustApply(t, s, rollout.Change{Rollouts: []rollout.Rollout{r}})
}

func mustApply(t *testing.T, s *Store, c rollout.Change) {
	t.Helper()
	must(t, campaign(t, s, "c1").Apply(t.Context(), view(t, s), c))
}

func TestGCKeepsTheNewest(t *testing.T) {
	s := fleet(t)
	var revs []version.Revision
	for i := range 5 {
		revs = append(revs, publishOn(t, s, version.Ref{}, nil, fmt.Sprint("w", i)))
	}
	c, err := s.GC(t.Context(), "ann", KeepPolicy{Revisions: 2})
	must(t, err)
	if c.Revisions != 3 || c.KeptRevisions != 2 {
		t.Errorf("collected %+v", c)
	}
	for i, r := range revs {
		if got := collected(t, s, r.Digest); got != (i < 3) {
			t.Errorf("revision %d: collected %v", r.Number, got)
		}
	}
	if rev := publishOn(t, s, version.Ref{}, nil, "next"); rev.Number != 6 {
		t.Errorf("number %d was used before", rev.Number)
	}
}

// A record that says another number than its key would have another deleted in
// its place: it stops gc as an unreadable one does.
func TestGCGoesByKeys(t *testing.T) {
	s := fleet(t)
	rev := publish(t, s, "a")
	for key, value := range map[string]string{
		fmt.Sprintf("%s%020d", dirRevisions, 5): `{"number":1}`,
		dirRevisions + "1":                      `{"number":1}`,
		dirRevisions + "\x1b":                   `{}`,
	} {
		rawPut(t, s, key, value)
		unchangedButGC(t, s, func() {
			_, err := s.GC(t.Context(), "ann", KeepPolicy{Revisions: -1})
			if !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), shown(s.key(key))) || !strings.Contains(err.Error(), "delete it") {
				t.Errorf("%q: %v", key, err)
			}
		})
		rawDelete(t, s, key)
	}
	gc(t, s)
	must(t, second(s.Revision(t.Context(), rev.Number)))
}

// unchangedButGC is unchanged, but for what counts the gcs.
func unchangedButGC(t *testing.T, s *Store, f func()) {
	t.Helper()
	records := func() map[string]string {
		all := dump(t, s)
		maps.DeleteFunc(all, func(key, _ string) bool { return strings.HasPrefix(key, dirGC) })
		return all
	}
	before := records()
	f()
	if diff := cmp.Diff(before, records()); diff != "" {
		t.Errorf("something was written:\n%s", diff)
	}
}

func TestGCTrimsEndedRolloutsAndAudit(t *testing.T) {
	s := fleet(t)
	d := version.DigestOf([]byte("gone"))
	c := rollout.Change{Serve: []version.Digest{d}}
	for i := range 5 {
		at := time.Unix(int64(i), 0)
		c.Rollouts = append(c.Rollouts, rollout.Rollout{Intent: rollout.Intent{ID: fmt.Sprint("x", i)}, Phase: rollout.PhaseDone})
		c.Audit = append(c.Audit, rollout.AuditEntry{Time: at, What: fmt.Sprint("old", i)})
	}
	c.Rollouts[0].Phase = rollout.PhasePreparing
	mustApply(t, s, c)
	got, err := s.GC(t.Context(), "ann", KeepPolicy{Rollouts: 2, Audit: 3})
	must(t, err)
	if got.Rollouts != 2 || got.Audit != 3 || got.Served != 1 { // 5 old and init, of which 3 stay
		t.Errorf("collected %+v", got)
	}
	all, err := s.Rollouts(t.Context(), 0)
	must(t, err)
	if len(all) != 3 || all[2].ID != "x0" || len(view(t, s).Served) != 0 {
		t.Errorf("rollouts %+v", all)
	}
}

// A publisher found a chunk in place, gc took it away, the publisher is about
// to end: it must not, until the chunk is there again.
func TestGCNeverDeletesWhatPublisherUses(t *testing.T) {
	s := fleet(t)
	publishOn(t, s, version.Ref{}, nil, "shared")
	ctx := t.Context()
	p := publication{s: s, what: "test", req: PublishRequest{Snapshot: snapshot(t, "shared", "new")}}
	must(t, p.begin(ctx))
	up, err := s.PutSnapshot(ctx, p.req.Snapshot)
	must(t, err)
	if up.Known != 1 {
		t.Fatalf("uploaded %+v", up)
	}
	gc(t, s)
	unchanged(t, s, func() {
		if _, err := p.commit(ctx, nil); !errors.Is(err, errCollected) {
			t.Errorf("commit: %v", err)
		}
	})
	// So it is when the pieces go with the revision.
	p = publication{s: s, what: "test", req: PublishRequest{Snapshot: snapshot(t, "shared", "newer")}}
	must(t, p.begin(ctx))
	gc(t, s)
	unchanged(t, s, func() {
		if _, err := p.finish(ctx); !errors.Is(err, errCollected) {
			t.Errorf("finish: %v", err)
		}
	})
	// Publish itself begins anew.
	whole(t, s, publishOn(t, s, version.Ref{}, nil, "shared", "new").Digest)
}

// One gc runs beside each publish, wherever the two happen to meet.
func TestGCBesidePublishers(t *testing.T) {
	s := fleet(t)
	collector := again(t, s)
	for i := range 30 {
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := collector.GC(t.Context(), "gc", KeepPolicy{Revisions: 1}); err != nil {
				t.Error(err)
			}
		})
		rev := publishOn(t, s, target(t, s), &rollout.Intent{Kind: rollout.IntentSwitch}, fmt.Sprint("w", i%3), fmt.Sprint("v", i%2))
		wg.Wait()
		whole(t, s, rev.Digest)
	}
}

// A gc that lost its lock, for example because it slept, deletes nothing.
func TestGCWithoutItsLockDeletesNothing(t *testing.T) {
	s := fleet(t)
	rev := publishOn(t, s, version.Ref{}, nil, "a")
	l, err := s.grant(t.Context(), "test", 0)
	must(t, err)
	locked, err := s.lockGC(t.Context(), "test", "sleeper", l)
	must(t, err)
	must(t, l.release(t.Context(), "test"))
	g := collection{s: s, what: "test", locked: locked, keep: KeepPolicy{}, c: &Collected{}}
	unchanged(t, s, func() { wantErr(t, g.run(t.Context(), "sleeper"), ErrConflict, "lock") })
	if collected(t, s, rev.Digest) {
		t.Error("collected")
	}
}

func TestOfManyGCsOneHasTheLock(t *testing.T) {
	s := fleet(t)
	var wg sync.WaitGroup
	errs := make([]error, 8)
	leases := make([]*lease, len(errs))
	for i := range errs {
		l, err := s.grant(t.Context(), "test", 0)
		must(t, err)
		leases[i] = l
	}
	for i, l := range leases {
		wg.Go(func() { _, errs[i] = s.lockGC(t.Context(), "test", "x", l) })
	}
	wg.Wait()
	won := 0
	for i, err := range errs {
		if err == nil {
			won++
		} else if !errors.Is(err, ErrBusy) {
			t.Error(err)
		}
		must(t, leases[i].release(t.Context(), "test"))
	}
	if won != 1 {
		t.Errorf("%d have the lock", won)
	}
}

func TestGCLockStopsOthers(t *testing.T) {
	s := fleet(t)
	old := publishOn(t, s, version.Ref{}, nil, "a")
	l, err := s.grant(t.Context(), "test", 0)
	must(t, err)
	_, err = s.lockGC(t.Context(), "test", "sam", l)
	must(t, err)
	brief := func() context.Context {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		t.Cleanup(cancel)
		return ctx
	}
	unchanged(t, s, func() {
		_, err := s.GC(brief(), "ann", KeepPolicy{})
		wantErr(t, err, ErrBusy, "sam")
		_, err = s.Publish(brief(), PublishRequest{Snapshot: snapshot(t, "b")})
		wantErr(t, err, ErrBusy, "sam")
		_, err = s.PutIntent(brief(), rollout.Intent{Kind: rollout.IntentSwitch, To: old.Ref()}, nil, version.Ref{})
		wantErr(t, err, ErrBusy, "sam")
	})
	must(t, l.release(t.Context(), "test"))
	gc(t, s)
	_, err = s.PutIntent(t.Context(), rollout.Intent{Kind: rollout.IntentSwitch, To: old.Ref()}, nil, version.Ref{})
	wantErr(t, err, ErrNotFound, "publish it again")
}

func TestGCStopsAtUnreadableRecords(t *testing.T) {
	for _, key := range []string{"groups/main", "prepare/main", "intents/x", "rollouts/x", "reports/a", "revisions/00000000000000000001", "pins/one"} {
		s := fleet(t)
		rev := publishOn(t, s, version.Ref{}, nil, "a")
		publishOn(t, s, version.Ref{}, &rollout.Intent{Kind: rollout.IntentSwitch}, "b")
		rawPut(t, s, key, `{"broken`)
		_, err := s.GC(t.Context(), "ann", KeepPolicy{Revisions: -1})
		wantErr(t, err, ErrCorrupt, key)
		if collected(t, s, rev.Digest) {
			t.Errorf("%s: collected", key)
		}
	}
}

// A condemned digest is refused before anything is written, with the reason.
func TestPublishOfTheCondemned(t *testing.T) {
	s := fleet(t)
	snap := snapshot(t, "a")
	term := campaign(t, s, "c1")
	must(t, term.Apply(t.Context(), view(t, s), rollout.Change{Condemn: []rollout.Condemned{{Digest: snap.Digest, Why: "a and b died of it"}}}))
	unchanged(t, s, func() {
		_, err := s.Publish(t.Context(), PublishRequest{Snapshot: snap, Intent: &rollout.Intent{Kind: rollout.IntentSwitch}})
		wantErr(t, err, ErrCondemned, "a and b died of it")
	})
	publish(t, s, "b")
}

// The pieces of a usual publish are in the transaction that makes the revision;
// those of a large one come before it, and both say what they need.
func TestUsualPublishIsOneWrite(t *testing.T) {
	s := fleet(t)
	at := func() int64 { return view(t, s).At }
	before := at()
	rev := publishOn(t, s, version.Ref{}, &rollout.Intent{Kind: rollout.IntentSwitch}, "a", "b")
	if wrote := at() - before; wrote != 1 {
		t.Errorf("a publish of two chunks wrote %d times", wrote)
	}
	whole(t, s, rev.Digest)
	if len(rev.Needs) == 0 || !slices.IsSorted(rev.Needs) {
		t.Errorf("needs %q", rev.Needs)
	}
	many := make([]string, inlineOps+1)
	for i := range many {
		many[i] = fmt.Sprintf("w%03d", i)
	}
	before = at()
	rev = publishOn(t, s, target(t, s), &rollout.Intent{Kind: rollout.IntentSwitch}, many...)
	if wrote := at() - before; wrote != 2 {
		t.Errorf("a publish of %d chunks wrote %d times", len(many), wrote)
	}
	whole(t, s, rev.Digest)
}

// A digest that is condemned while its revision is on its way is not published.
func TestCondemnedWhilePublishing(t *testing.T) {
	s := fleet(t)
	p := publication{s: s, what: "test", req: PublishRequest{Snapshot: snapshot(t, "bad")}}
	must(t, p.begin(t.Context()))
	_, err := raw(t, s).Put(t.Context(), s.key(dirCondemned+p.req.Snapshot.Digest.String()), `{"why":"it crashed"}`)
	must(t, err)
	unchanged(t, s, func() {
		_, err := p.finish(t.Context())
		wantErr(t, err, ErrCondemned)
	})
}
