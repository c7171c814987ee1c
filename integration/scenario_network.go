//go:build integration

package integration

import (
	"crypto/tls"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"routerd.dev/integration/harness"
	"routerd.dev/internal/store"
)

// networkScenarios break the network between instances and etcd, and between
// etcd's members.
func networkScenarios() []harness.Scenario {
	var all []harness.Scenario
	add := func(name string, short bool, run func(t *testing.T, w *harness.World)) {
		all = append(all, harness.Scenario{Name: name, Bound: recovery, Short: short, World: faulted, Run: run})
	}
	for _, c := range []struct {
		how                       harness.Cut
		member, controller, group bool // in CI
	}{
		{harness.CutBoth, true, false, true},
		{harness.CutIn, false, false, false},
		{harness.CutOut, false, false, false},
		{harness.CutSlow, false, false, false},
		{harness.CutOpen, false, true, false},
		{harness.CutRefuse, false, false, false},
	} {
		add(fmt.Sprintf("etcd member %v", c.how), c.member, memberCut(c.how))
		add(fmt.Sprintf("controller %v", c.how), c.controller, controllerCut(c.how))
		add(fmt.Sprintf("group %v", c.how), c.group, groupCut(c.how))
	}
	add("all of etcd cut from all instances", false, allCut)
	silent := func(name string, short bool, run func(t *testing.T, w *harness.World)) {
		all = append(all, harness.Scenario{
			Name: name, Bound: recovery, Short: short, World: faulted, Run: run,
			Ground: "processes", Why: "a proxy in the test's own process swallows what watches are told",
		})
	}
	silent("watch silent without an error", true, watchSilent((*harness.WatchProxy).SilenceOpen, detection))
	// It hears of the prepare and then of the commit by reading again, only.
	silent("every watch silent without an error", false, watchSilent((*harness.WatchProxy).SilenceAll, 2*detection))
	return all
}

// parted is the most time until a publish goes through when etcd's leader is
// not killed but parted from the others: routectl reaches it still, and waits
// for answers that never come. A publish that fails so is made again.
const parted = 45 * time.Second

// goesThroughAtLast publishes until it succeeds, which must be in time.
func goesThroughAtLast(t *testing.T, w *harness.World, within time.Duration) {
	t.Helper()
	start := time.Now()
	tries := 0
	for {
		tries++
		err := w.Publish("--wait", "--timeout", within.String())
		took := time.Since(start)
		switch {
		case took > within:
			t.Errorf("no publish went through within %v, with %d tries in %v: %v", within, tries, took, err)
			return
		case err == nil:
			t.Logf("a publish went through after %v, with %d tries", took.Round(time.Millisecond), tries)
			return
		}
		t.Logf("publish: %v", err)
	}
}

// memberCut breaks the network of etcd's leader: publishes go on.
func memberCut(how harness.Cut) func(t *testing.T, w *harness.World) {
	return func(t *testing.T, w *harness.World) {
		prelude(t, w)
		m := w.Leader(t)
		w.Cut(t, m, how)
		goesThroughAtLast(t, w, parted)
		w.Mend(t, m)
		w.AwaitEtcd(t)
	}
}

// lasting tells whether a node cut off so stays cut off: a slow network is one
// on which it is well, and out of open connections that are silent it comes by
// itself.
func lasting(how harness.Cut) bool { return how != harness.CutSlow && how != harness.CutOpen }

// controllerCut breaks the network of the controller's instance. Another is
// elected when its lease has ended, and it writes nothing more.
func controllerCut(how harness.Cut) func(t *testing.T, w *harness.World) {
	return func(t *testing.T, w *harness.World) {
		prelude(t, w)
		c := w.Controller(t).Instance
		n := termsOf(w, c)
		if err := w.Publish(); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		w.Cut(t, c, how)
		if !lasting(how) {
			goesThrough(t, w, instanceLease+detection)
			w.Mend(t, c)
			return
		}
		w.UntilStale(t, detection, c)
		t.Logf("%s says that it is stale after %v", c, time.Since(start).Round(time.Millisecond))
		untilAnother(t, w, c, 2*controllerLease+detection)
		goesThrough(t, w, recovery)
		w.Mend(t, c)
		wroteNothing(t, w, c, n)
	}
}

// groupCut breaks the network of one whole group. While one of it is registered
// nothing is committed, in no group: a publish moves all of them or none.
func groupCut(how harness.Cut) func(t *testing.T, w *harness.World) {
	return func(t *testing.T, w *harness.World) {
		was := prelude(t, w)
		var edge []string
		for _, i := range w.Instances {
			if i.Group == "edge" {
				edge = append(edge, i.Instance)
			}
		}
		start := time.Now()
		for _, i := range edge {
			w.Cut(t, i, how)
		}
		mend := func() {
			for _, i := range edge {
				w.Mend(t, i)
			}
		}
		if !lasting(how) {
			goesThrough(t, w, instanceLease+detection)
			mend()
			return
		}
		holdsBack(t, w, was, edge...)
		for _, i := range edge {
			w.UntilStale(t, time.Until(start.Add(detection)), i)
		}
		t.Logf("the group says that it is stale after %v", time.Since(start).Round(time.Millisecond))
		unchanged(t, w, was)
		mend()
	}
}

// allCut parts every instance from etcd, which is well itself.
func allCut(t *testing.T, w *harness.World) {
	was := prelude(t, w)
	start := time.Now()
	for _, i := range w.Instances {
		w.Cut(t, i.Instance, harness.CutBoth)
	}
	if err := w.Publish("--wait", "--timeout", "2s"); err == nil {
		t.Error("a publish went through that no instance could hear of")
	}
	untilAllStale(t, w, start)
	unchanged(t, w, was)
	for _, i := range w.Instances {
		w.Mend(t, i.Instance)
	}
}

// watchSilent has an instance's watches say nothing while its calls, its lease
// and its connection are well. It must notice by itself: a publish needs it twice.
func watchSilent(silence func(*harness.WatchProxy), within time.Duration) func(t *testing.T, w *harness.World) {
	return func(t *testing.T, w *harness.World) {
		prelude(t, w)
		i := w.Instance(follower(t, w))
		var proxies []*harness.WatchProxy
		var endpoints []string
		for _, m := range w.Members() {
			p := harness.StartWatchProxy(t, w.Inside(i.Instance, m, harness.EtcdClientPort), asMember(t, w, m), asClient(t, w, i.Instance))
			proxies, endpoints = append(proxies, p), append(endpoints, "https://"+p.Addr)
		}
		program := w.InstanceProgram(i)
		program.Args = slices.Clone(program.Args)
		program.Args[slices.Index(program.Args, "--endpoints")+1] = strings.Join(endpoints, ",")
		rerun := func(p harness.Program) {
			w.Down(i.Instance)
			w.Stop(t, i.Instance)
			w.Run(t, i.Instance, p)
			w.UntilServes(t, i.Instance)
			w.Back(i.Instance)
		}
		rerun(program)
		goesThrough(t, w, time.Minute) // the proxies carry
		for _, p := range proxies {
			silence(p)
		}
		goesThrough(t, w, within)
		rerun(w.InstanceProgram(i))
	}
}

// asMember is how a server on loopback proves to be an etcd member.
func asMember(t *testing.T, w *harness.World, member string) *tls.Config {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(filepath.Join(w.Dir(member), "cert.pem"), filepath.Join(w.Dir(member), "key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
}

// asClient is how an instance proves to etcd who it is.
func asClient(t *testing.T, w *harness.World, name string) *tls.Config {
	t.Helper()
	file := func(f string) string { return filepath.Join(w.Dir(name), f) }
	c, err := store.LoadTLS(file("ca.pem"), file("cert.pem"), file("key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	return c
}
