package store

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"

	"routerd.dev/internal/rollout"
	"routerd.dev/internal/version"
)

// served publishes and has group main serve it.
func served(t *testing.T, s *Store, words ...string) version.Revision {
	t.Helper()
	rev := publish(t, s, words...)
	must(t, campaign(t, s, "c1").Apply(t.Context(), view(t, s), rollout.Change{Groups: []rollout.Assignment{{Group: "main", Epoch: 1, Stable: rev.Ref()}}}))
	return rev
}

// Publishing what is live is how its pieces come back when etcd lost them.
func TestPublishOfWhatIsLiveGivesBack(t *testing.T) {
	s := fleet(t)
	rev := served(t, s, "a", "b")
	snap := snapshot(t, "a", "b")
	again := func(anew bool) Uploaded {
		t.Helper()
		done, err := s.Publish(t.Context(), PublishRequest{Snapshot: snap, Parent: rev.Ref(), Anew: anew, Intent: &rollout.Intent{}})
		wantErr(t, err, ErrNothingChanged)
		whole(t, s, rev.Digest)
		return done.Uploaded
	}
	chunk := dirChunks + snap.Manifest.Chunks()[0].Digest.String()
	rawDelete(t, s, dirManifests+rev.Digest.String())
	rawDelete(t, s, chunk)
	if up := again(false); up.Chunks != 1 || up.Bytes == 0 {
		t.Errorf("given back: %+v", up)
	}
	rawPut(t, s, chunk, "no chunk")
	if up := again(true); up.Chunks != 2 {
		t.Errorf("sent anew: %+v", up)
	}
	// So does a revision of other groups' table that has them.
	rawPut(t, s, chunk, "no chunk")
	done, err := s.Publish(t.Context(), PublishRequest{Snapshot: snapshot(t, "a", "c"), Parent: rev.Ref(), Anew: true})
	must(t, err)
	whole(t, s, done.Revision.Digest)
}

// A fleet's record that nobody can have written who had read the right one is
// taken for lost by all, and nothing is built on it.
func TestFleetOfNobody(t *testing.T) {
	for name, wrong := range map[string]string{
		"empty": `{}`, "null": `null`, "another's": `{"id":"another"}`, "gone": "", "absurd": `{"id":"%s","target":{"number":-1}}`,
	} {
		t.Run(name, func(t *testing.T) {
			s := fleet(t)
			rev := served(t, s, "a")
			f, err := s.Format(t.Context())
			must(t, err)
			if wrong == "" {
				rawDelete(t, s, keyFleet)
			} else {
				rawPut(t, s, keyFleet, strings.Replace(wrong, "%s", f.FleetID, 1))
			}
			unchanged(t, s, func() {
				for what, err := range map[string]error{
					"Fleet": second(s.Fleet(t.Context())),
					"Publish": second(s.Publish(t.Context(), PublishRequest{
						Snapshot: snapshot(t, "b"), Parent: rev.Ref(),
						Intent: &rollout.Intent{Kind: rollout.IntentSwitch},
					})),
					"Publish the first": second(s.Publish(t.Context(), PublishRequest{Snapshot: snapshot(t, "b"), Intent: &rollout.Intent{Kind: rollout.IntentSwitch}})),
					"PutIntent":         second(s.PutIntent(t.Context(), rollout.Intent{Kind: rollout.IntentRecover}, nil, version.Ref{})),
					"Init":              func() error { _, _, err := s.Init(t.Context()); return err }(),
					"SetSettings":       s.SetSettings(t.Context(), "ann", func(x *rollout.Settings) error { x.HistoryLimit++; return nil }),
				} {
					t.Log(what)
					wantErr(t, err, ErrCorrupt, s.key(keyFleet), f.FleetID, "routectl recover --from")
				}
				v, err := s.View(t.Context())
				wantErr(t, err, ErrCorrupt)
				if v == nil || v.Groups["main"].Stable != rev.Ref() || v.Fleet != (rollout.Fleet{}) {
					t.Errorf("what is left to recover by: %+v", v)
				}
			})
			done, err := s.Recover(t.Context(), RecoverRequest{
				FleetID: f.FleetID, Target: rev.Ref(), Settings: rollout.Settings{HistoryLimit: 7}, Replace: []string{"main"},
				Groups: []rollout.Assignment{{Group: "main", Epoch: 2, Stable: rev.Ref()}},
			})
			must(t, err)
			if got := view(t, s).Fleet; !done.Created || got.ID != f.FleetID || got.Target != rev.Ref() || got.Settings.HistoryLimit != 7 {
				t.Errorf("recovered %+v: %+v", done, got)
			}
			publish(t, s, "b")
		})
	}
}

func second[T any](_ T, err error) error { return err }

// A lost format comes back with what an instance knows, and the fleet's own
// record stays; another fleet's is not touched.
func TestRecoverOfALostFormat(t *testing.T) {
	s := fleet(t)
	rev := publish(t, s, "a")
	f, err := s.Format(t.Context())
	must(t, err)
	rawDelete(t, s, keyFormat)
	req := RecoverRequest{FleetID: "another", Target: rev.Ref(), Groups: []rollout.Assignment{{Group: "main", Epoch: 2, Stable: rev.Ref()}}}
	unchanged(t, s, func() {
		_, err := s.Recover(t.Context(), req)
		wantErr(t, err, ErrConflict, f.FleetID)
	})
	req.FleetID = f.FleetID
	must(t, second(s.Recover(t.Context(), req)))
	if got := view(t, s).Fleet; got.ID != f.FleetID || got.Target != rev.Ref() {
		t.Errorf("fleet %+v", got)
	}
}

// Numbers at the end of their range are named and never counted on from, and
// everything goes on when they are deleted.
func TestAbsurdCounts(t *testing.T) {
	s := fleet(t)
	first := publish(t, s, "a")
	try := func() error {
		return second(s.Publish(t.Context(), PublishRequest{Snapshot: snapshot(t, "b"), Parent: target(t, s), Intent: &rollout.Intent{Kind: rollout.IntentSwitch}}))
	}
	for _, n := range []int64{1<<63 - 1, mostCount + 1, mostCount, mostAhead + 2, -1} {
		rawPut(t, s, keyHead, fmt.Sprint(n))
		unchanged(t, s, func() { wantErr(t, try(), ErrCorrupt, s.key(keyHead), fmt.Sprint(n), "delete the key") })
	}
	rawPut(t, s, keyHead, fmt.Sprint(int64(mostCount+1)))
	wantErr(t, second(s.Head(t.Context())), ErrCorrupt, s.key(keyHead))
	rawDelete(t, s, keyHead)
	for _, key := range []string{"09223372036854775807", "-9223372036854775808", "zzz", "00000000000000000001zzz", fmt.Sprintf("%020d", int64(mostCount))} {
		rawPut(t, s, dirRevisions+key, `{}`)
	}
	must(t, try())
	if got := target(t, s); got.Number != first.Number+1 {
		t.Errorf("revision %d", got.Number)
	}
	for i := range lastKeys {
		rawPut(t, s, fmt.Sprintf("%s%020d", dirRevisions, mostCount-int64(i)), `{}`)
	}
	wantErr(t, second(s.Publish(t.Context(), PublishRequest{Snapshot: snapshot(t, "c"), Parent: target(t, s)})), ErrCorrupt, s.key(dirRevisions), "delete")
	f, err := s.Format(t.Context())
	must(t, err)
	wantErr(t, second(s.Recover(t.Context(), RecoverRequest{FleetID: f.FleetID, Highest: mostCount + 1})), ErrCorrupt)
}

func TestTheLastNumberIsNotGivenOut(t *testing.T) {
	s := fleet(t)
	f, err := s.Fleet(t.Context())
	must(t, err)
	f.Target.Number = mostCount - 1
	must(t, second(raw(t, s).Do(t.Context(), put(s.key(keyFleet), f))))
	rawPut(t, s, keyHead, fmt.Sprint(int64(mostCount)))
	unchanged(t, s, func() {
		wantErr(t, second(s.Publish(t.Context(), PublishRequest{Snapshot: snapshot(t, "c"), Parent: f.Target})), ErrCorrupt, "counts further")
	})
}

// An epoch that no fleet counted to is as good as none: the group is hidden from
// who decides, and kept by who serves it, until an instance's word replaces it.
func TestAbsurdEpochs(t *testing.T) {
	s := fleet(t)
	rev := publish(t, s, "a")
	f, err := s.Format(t.Context())
	must(t, err)
	for _, n := range []int64{1<<63 - 1, mostCount + 1, 0, -1} {
		rawPut(t, s, "groups/main", fmt.Sprintf(`{"group":"main","epoch":%d}`, n))
		v, broken, err := s.ViewBroken(t.Context())
		must(t, err)
		if _, there := v.Groups["main"]; there || len(broken) != 1 || !strings.Contains(broken[0].Why, fmt.Sprint(n)) {
			t.Errorf("epoch %d: groups %v, broken %v", n, v.Groups, broken)
		}
		g, err := s.Group(t.Context(), "main")
		must(t, err)
		if g.Assignment != nil || g.Missing() || len(g.Broken) != 1 {
			t.Errorf("epoch %d: %+v", n, g)
		}
	}
	must(t, second(s.Recover(t.Context(), RecoverRequest{
		FleetID: f.FleetID, Replace: []string{"main"}, Groups: []rollout.Assignment{{Group: "main", Epoch: 2, Stable: rev.Ref()}},
	})))
	if v := view(t, s); v.Groups["main"].Epoch != 2 {
		t.Errorf("groups %v", v.Groups)
	}
}

// A lock without a lease would never end: it stops nobody.
func TestGCLockOfNobody(t *testing.T) {
	s := fleet(t)
	rawPut(t, s, keyGCLock, "dead")
	rev := publish(t, s, "a")
	must(t, s.Pin(t.Context(), rev.Number, "", "ann"))
	must(t, second(s.PutIntent(t.Context(), rollout.Intent{Kind: rollout.IntentSwitch, To: rev.Ref()}, nil, version.Ref{})))
	gc(t, s)
	if got := rawGet(t, s, keyGCLock); got != "" {
		t.Errorf("the lock is %q after gc", got)
	}
}

// Whoever waits for a gc that does not end is told whose it is.
func TestGCIsNotWaitedForForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		err := awaitUnlocked(t.Context(), "publish", func(context.Context) (*mvccpb.KeyValue, error) {
			return &mvccpb.KeyValue{Value: []byte("sam"), Lease: 7}, nil
		})
		wantErr(t, err, ErrBusy, "publish", "sam")
		if took := time.Since(began); took != gcPatience {
			t.Errorf("after %v", took)
		}
	})
}

// What every View would leave out is not written, and named.
func TestRecoverOfWhatNobodyWouldSee(t *testing.T) {
	s := fleet(t)
	rev := publish(t, s, "a")
	f, err := s.Format(t.Context())
	must(t, err)
	for name, x := range map[string]struct {
		change func(*RecoverRequest)
		say    []string
	}{
		"no epoch":          {func(r *RecoverRequest) { r.Groups[0].Epoch = 0 }, []string{"group edge: epoch 0"}},
		"negative epoch":    {func(r *RecoverRequest) { r.Groups[0].Epoch = -1 }, []string{"group edge: epoch -1"}},
		"absurd epoch":      {func(r *RecoverRequest) { r.Groups[0].Epoch = mostCount + 1 }, []string{"group edge: epoch 9007199254740993"}},
		"name":              {func(r *RecoverRequest) { r.Groups[0].Group = "e/\x1b" }, []string{`group e/\x1b: group name "e/\x1b"`}},
		"no name":           {func(r *RecoverRequest) { r.Groups[0].Group = "" }, []string{"group name"}},
		"stable":            {func(r *RecoverRequest) { r.Groups[0].Stable.Number = -1 }, []string{"group edge: revision -1"}},
		"candidate":         {func(r *RecoverRequest) { r.Groups[0].Candidate = &rollout.Candidate{Ref: version.Ref{Number: -2}} }, []string{"group edge: revision -2"}},
		"target":            {func(r *RecoverRequest) { r.Target.Number = mostCount + 1 }, []string{"target: revision 9007199254740993"}},
		"negative revision": {func(r *RecoverRequest) { r.Revisions = []version.Revision{{Number: -3}} }, []string{"revision -3"}},
		"several":           {func(r *RecoverRequest) { r.Highest, r.Groups[0].Epoch = -4, 0 }, []string{"revision -4", "group edge: epoch 0"}},
	} {
		req := RecoverRequest{FleetID: f.FleetID, Target: rev.Ref(), Groups: []rollout.Assignment{{Group: "edge", Epoch: 2, Stable: rev.Ref()}}}
		x.change(&req)
		unchanged(t, s, func() {
			_, err := s.Recover(t.Context(), req)
			if !errors.Is(err, ErrCorrupt) {
				t.Errorf("%s: %v", name, err)
				return
			}
			wantErr(t, err, ErrCorrupt, x.say...)
			if strings.Contains(err.Error(), "\x1b") {
				t.Errorf("%s: a terminal gets %q", name, err)
			}
		})
	}
}
