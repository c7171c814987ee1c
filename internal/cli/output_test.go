package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"routerd.dev/internal/analysis"
	"routerd.dev/internal/engine"
	"routerd.dev/internal/rollout"
	"routerd.dev/internal/route"
	"routerd.dev/internal/store"
	"routerd.dev/internal/version"
	"routerd.dev/internal/yamlfile"
)

// TestJSONIsWhatEncodingJSONSays holds -o json, whose encoder is the project's
// own, against encoding/json for every kind of value that a command gives. They
// differ on purpose in two things: a nil list or map is empty, not
// null, and a duration is text.
func TestJSONIsWhatEncodingJSONSays(t *testing.T) {
	now := time.Date(2026, 11, 22, 20, 33, 15, 123456789, time.FixedZone("", 3600))
	digest := version.DigestOf([]byte("x"))
	ref := version.Ref{Number: 7, Digest: digest}
	rev := version.Revision{Number: 7, Digest: digest, Author: "ann <a@b>", Message: "ä \"<&>\" \n\u2028", Time: now, Modules: map[string]version.Digest{"b": digest, "a": digest}, Routes: 3}
	for name, v := range map[string]any{
		"history": []version.Revision{rev, {Modules: map[string]version.Digest{}}},
		"show":    shownRevision{Revision: rev, Files: []*yamlfile.Node{}},
		"status": fleetStatus{
			Fleet: "f", Target: ref, Groups: []groupStatus{{Group: "g", Stable: ref, Back: []version.Ref{ref}, Override: &rollout.Override{Why: "late"}}},
			Instances: []instanceStatus{
				{Instance: "i", Serving: &rollout.Serving{Epoch: 1 << 60, Revision: 7, Digest: digest, Since: now}, Holds: []version.Digest{digest}, Reported: now, SkewMicros: -5},
				{Instance: "j", Holds: []version.Digest{}},
			},
			Rollouts: []rollout.Rollout{}, Condemned: []rollout.Condemned{{Digest: digest, Why: "w", Time: now}}, Broken: []store.Broken{{Key: "k", Why: "w"}},
		},
		"outcome":   outcome{Revision: 7, Digest: digest, Changed: true, Uploaded: &store.Uploaded{Chunks: 1}, Epochs: map[string]int64{"b": 2, "a": 1}, Behind: []behind{{"i", "g", "w"}}, Seconds: 0.0523},
		"nothing":   outcome{},
		"explain":   engine.Explanation{Route: "m/r", Params: map[string]string{"id": "ü/\t"}, Considered: []engine.Considered{{Route: "m/r"}}},
		"explain 0": engine.Explanation{Params: map[string]string{}, Status: 404, Considered: []engine.Considered{}},
		"validate":  checked{Problems: []problem{{Severity: "error", Line: 3, Message: valid("caf\xe9")}}},
		"audit":     []rollout.AuditEntry{{Time: now, Who: "a", To: ref}, {}},
		"gc":        store.Collected{Revisions: 1},
		"asked":     asked{"id"},
		"steered":   steeredRollout{Rollout: "r", Intent: "i", Why: "w"},
		"kept":      kept{7, true},
		"keep":      []store.Pin{{Number: 7, Why: "w", By: "a", Time: now}},
		"pardon":    pardoned{digest},
		"strategy":  listStrategies(rollout.Settings{FirstUse: "linear"}, map[string]rollout.Strategy{"own": {Name: "own"}}),
		"rollout": rolloutStatus{
			Rollout: rollout.Rollout{
				Intent: rollout.Intent{ID: "i", Kind: rollout.IntentSwitch, To: ref, Time: now}, Started: now,
				Plan:     &rollout.Strategy{Waves: []rollout.Wave{{Groups: []string{"*"}, Steps: []rollout.PlanStep{{Analysis: &rollout.AnalysisStep{}}, {Match: &rollout.MatchStep{Match: rollout.Match{Header: "h"}}}, {Commit: &rollout.CommitStep{}}, {Bake: &rollout.BakeStep{For: rollout.Duration(time.Hour)}}}}}},
				Evidence: &analysis.Result{Verdict: analysis.Pass, Findings: []analysis.Finding{{Group: "g", Effect: 1e-9}}}, Return: &rollout.Return{To: map[string]int64{"g": 1}, Decided: now},
			},
			Groups: []rolloutGroup{{Group: "g", Stable: ref, Candidate: &rollout.Candidate{Ref: ref, Permyriad: 5}, Instances: []rolloutInstance{{Instance: "i"}}}},
		},
		"recording": recording{Config: analysis.Config{Confidence: 0.9}, Comparison: &recordedComparison{Groups: map[string]analysis.Sample{"g": {}}}},
	} {
		ours, err := yamlfile.EncodeJSON(v)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		theirs, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		var a, b any
		decode(t, ours, &a)
		decode(t, theirs, &b)
		if d := cmp.Diff(b, a); d != "" {
			t.Errorf("%s: -encoding/json +ours\n%s", name, d)
		}
	}
}

func decode(t *testing.T, b []byte, v *any) {
	t.Helper()
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber()
	if err := dec.Decode(v); err != nil {
		t.Fatalf("%v in %s", err, b)
	}
}

// TestSlowWorkIsNamed: what takes over a second is said once, unless something
// else was said or it ended.
func TestSlowWorkIsNamed(t *testing.T) {
	said := make(chan string, 10)
	c := &command{env: Env{Stderr: writerFunc(func(b []byte) { said <- string(b) })}}
	c.doing("first")
	c.doing("second %d", 2)
	if got := <-said; got != "second 2 …\n" {
		t.Errorf("said %q, want what is being done now", got)
	}
	c.doing("third")
	c.say("fourth")
	c.doing("")
	if c.slow != nil {
		t.Error("something is being done still")
	}
	close(said)
	var rest strings.Builder
	for s := range said {
		rest.WriteString(s)
	}
	if rest.String() != "fourth\n" {
		t.Errorf("said %q besides", rest.String())
	}
}

// TestPlain: what others wrote neither steers a terminal nor begins a line or a
// column, in all that people read.
func TestPlain(t *testing.T) {
	const evil = "\x1b[2J\u009b1m\x9b\u202e\ta\\x1b \"ü\" →\nhint: b"
	const safe = `\x1b[2J\u009b1m\x9b\u202e\ta\x1b "ü" →\nhint: b`
	var out, said strings.Builder
	c := &command{env: Env{Stdout: &out, Stderr: &said}}
	err := c.print(nil, func(w *table) {
		w.row(evil, 7, rollout.Phase(evil))
		w.line("%-3s %d %v %.1f", evil, 7, errors.New(evil), 0.5)
		w.text("a\x1b\nb\n")
	})
	if err != nil {
		t.Fatal(err)
	}
	c.say("%s: %v", evil, errors.New(evil))
	c.env.explain(fail(ExitFailed, errors.New(evil), evil))
	c.env.explain(route.Problems{{Message: "\x1b\n"}})
	wantOut := safe + "  7  " + safe + "\n" + safe + " 7 " + safe + " 0.5\na\\x1b\nb\n"
	if d := cmp.Diff(wantOut, out.String()); d != "" {
		t.Errorf("output: -want +got\n%s", d)
	}
	lines := strings.Replace(safe, `\n`, "\n  ", 1) // an error may be several
	wantSaid := safe + ": " + safe + "\nroutectl: " + lines + "\nhint: " + safe + "\nerror: \\x1b\\n\nroutectl: 1 problem\n"
	if d := cmp.Diff(wantSaid, said.String()); d != "" {
		t.Errorf("said: -want +got\n%s", d)
	}
}

type writerFunc func([]byte)

func (f writerFunc) Write(b []byte) (int, error) { f(b); return len(b), nil }
