//go:build integration

package integration

import (
	"testing"
	"time"

	"routerd.dev/integration/harness"
)

// strikeScenarios kill a process at a random moment of a publish, and start it
// again after a random time. The publish may fail.
func strikeScenarios() []harness.Scenario {
	var all []harness.Scenario
	for _, who := range []string{"controller", "instance", "etcd member"} {
		all = append(all, harness.Scenario{
			Name: who + " killed at a random moment of a publish", Bound: recovery, Short: true, World: faulted,
			Run: func(t *testing.T, w *harness.World) { strike(t, w, who) },
		})
	}
	return all
}

func strike(t *testing.T, w *harness.World, who string) {
	rng := random(t)
	before, after := time.Duration(rng.IntN(250))*time.Millisecond, time.Duration(rng.IntN(1000))*time.Millisecond
	prelude(t, w)
	node := w.Members()[rng.IntN(w.Options.Etcds)]
	switch who {
	case "controller":
		node = w.Controller(t).Instance
	case "instance":
		node = follower(t, w)
	}
	published := make(chan error, 1)
	go func() { published <- w.Publish("--wait", "--timeout", "30s") }()
	time.Sleep(before) // the moment is what varies
	if who == "etcd member" {
		w.Kill(t, node)
		time.Sleep(after)
		w.Start(t, node)
		w.AwaitEtcd(t)
	} else {
		w.Crash(t, node)
		time.Sleep(after)
		w.Revive(t, node)
	}
	err := <-published
	t.Logf("%s killed after %v, for %v; the publish under way: %v", node, before, after, err)
}
