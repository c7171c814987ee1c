//go:build integration

package integration

import (
	"testing"

	"routerd.dev/integration/harness"
	"routerd.dev/integration/history"
)

// obeyed holds the records of a fleet against the rules and its instances' logs,
// and returns what it looked at. The fleet's answers are looked at by others.
func obeyed(t *testing.T, h *recording, instances []*harness.Instance) history.Looked {
	t.Helper()
	h.complete(t)
	all := &history.History{Start: h.start, Answers: func(func(*history.Response) bool) {}}
	logsOf(t, instances, all)
	for _, l := range h.into(all) {
		t.Error(l)
	}
	found, looked := history.Check(all)
	for _, v := range found {
		t.Error(v)
	}
	return looked
}

// logsOf adds what the instances logged.
func logsOf(t *testing.T, instances []*harness.Instance, to *history.History) {
	t.Helper()
	to.Groups, to.Logs = map[string]string{}, map[string][]history.Line{}
	for _, i := range instances {
		to.Groups[i.Instance] = i.Group
		lines, err := i.Lines()
		if err != nil {
			t.Fatal(err)
		}
		to.Logs[i.Instance] = lines
	}
}
