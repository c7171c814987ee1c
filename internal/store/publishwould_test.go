package store

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"routerd.dev/internal/rollout"
	"routerd.dev/internal/version"
)

// TestWouldPublish: it says what Publish then does, fails where Publish fails, and
// writes nothing, also while a gc runs.
func TestWouldPublish(t *testing.T) {
	s := fleet(t)
	base := publish(t, s, "a")
	rawPut(t, s, keyGCLock, "somebody")
	req := PublishRequest{
		Snapshot: snapshot(t, "b"), Parent: base.Ref(), Author: "ann", Message: "words", Intent: &rollout.Intent{Kind: rollout.IntentSwitch},
	}
	var would Published
	unchanged(t, s, func() {
		var err error
		would, err = s.WouldPublish(t.Context(), req)
		must(t, err)
	})
	rawDelete(t, s, keyGCLock)
	did, err := s.Publish(t.Context(), req)
	must(t, err)
	moment := cmp.Options{
		cmpopts.IgnoreFields(version.Revision{}, "Time"), cmpopts.IgnoreFields(rollout.Intent{}, "ID", "Time"), cmpopts.IgnoreFields(Published{}, "Uploaded"),
	}
	if d := cmp.Diff(did, would, moment); d != "" {
		t.Errorf("-it did +it would\n%s", d)
	}
	if would.Revision.Number != 2 {
		t.Errorf("revision %d", would.Revision.Number)
	}
}

func TestWouldPublishFailsAsPublish(t *testing.T) {
	s := fleet(t)
	base := publish(t, s, "a")
	on := publish(t, s, "b")
	condemned := snapshot(t, "c")
	rawPut(t, s, dirCondemned+condemned.Digest.String(), `{"why":"it crashed"}`)
	for name, x := range map[string]struct {
		req  PublishRequest
		want error
	}{
		"another target":  {PublishRequest{Snapshot: snapshot(t, "d"), Parent: base.Ref()}, ErrConflict},
		"nothing changed": {PublishRequest{Snapshot: snapshot(t, "b"), Parent: on.Ref()}, ErrNothingChanged},
		"condemned":       {PublishRequest{Snapshot: condemned, Parent: on.Ref()}, ErrCondemned},
		"message too long": {PublishRequest{
			Snapshot: snapshot(t, "d"), Parent: on.Ref(), Message: strings.Repeat("x", maxIntent), Intent: &rollout.Intent{Kind: rollout.IntentSwitch},
		}, ErrTooLarge},
	} {
		unchanged(t, s, func() {
			_, err := s.WouldPublish(t.Context(), x.req)
			if wantErr(t, err, x.want, "publish "); t.Failed() {
				t.Log(name)
			}
		})
		if _, err := s.Publish(t.Context(), x.req); err == nil {
			t.Errorf("%s: Publish does not fail", name)
		}
	}
}
