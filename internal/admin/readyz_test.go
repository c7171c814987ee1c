package admin

import (
	"strings"
	"testing"

	"routerd.dev/internal/agent"
)

// TestReadyzTellsWhoIsNotRegistered: it serves, so balancers keep it; but when its
// name is another's no switch waits for it, which nobody else can know.
func TestReadyzTellsWhoIsNotRegistered(t *testing.T) {
	ready := agent.Readiness{Ready: true, Why: "serving a committed epoch"}
	const taken = "instance name m2 is taken by the process at 10.0.0.2:80"
	for _, c := range []struct {
		name   string
		ready  agent.Readiness
		status agent.Status
		told   bool
	}{
		{"taken", ready, agent.Status{Etcd: agent.Etcd{Reachable: true, Error: taken}}, true},
		{"joined", ready, agent.Status{Joined: true, Etcd: agent.Etcd{Reachable: true, Error: taken}}, false},
		{"etcd is away", ready, agent.Status{Etcd: agent.Etcd{Error: "no etcd"}}, false},
		{"draining", agent.Readiness{Why: "draining"}, agent.Status{Etcd: agent.Etcd{Reachable: true, Error: taken}}, false},
	} {
		h := New(options(&known{ready: c.ready, status: c.status}))
		code, body, text := get(t, h, "/readyz")
		why, _ := body["why"].(string)
		if told := strings.Contains(why, taken) && strings.Contains(why, "NOT REGISTERED"); told != c.told || (code == 200) != c.ready.Ready {
			t.Errorf("%s: %d %s", c.name, code, text)
		}
	}
}
