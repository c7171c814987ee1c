//go:build integration

package integration

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/client"
	"github.com/testcontainers/testcontainers-go"
	"github.com/testcontainers/testcontainers-go/network"

	"routerd.dev/integration/harness"
)

// A town is a fleet in containers: the instances reach etcd over one private
// network, and are reached by the test over another, so that a cut of the first
// leaves the second whole.
type town struct {
	*site
	docker     *testcontainers.DockerProvider
	control    *testcontainers.DockerNetwork
	containers map[string]*testcontainers.DockerContainer
}

const (
	townLease   = 5 * time.Second
	leaderLease = 10 * time.Second // store.DefaultTTL
)

// docker returns the engine. Where there is none the test is skipped, but in
// CI it fails.
func docker(t *testing.T) *testcontainers.DockerProvider {
	t.Helper()
	p, err := testcontainers.NewDockerProvider()
	if err == nil {
		t.Cleanup(func() { p.Close() })
		err = p.Health(t.Context())
	}
	switch {
	case err == nil:
	case os.Getenv("CI") != "":
		t.Fatalf("CI needs a Docker engine: %v", err)
	default:
		t.Skipf("no Docker engine, nothing was tested: %v", err)
	}
	return p
}

// newTown builds one image of the static binaries and starts three etcd
// members and three instances, of which the first two stand for election.
// Everything, the image too, is removed at the end.
func newTown(t *testing.T) *town {
	t.Helper()
	ctx := t.Context()
	w := &town{docker: docker(t), containers: map[string]*testcontainers.DockerContainer{}}
	image := w.build(t)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	var err error
	w.control, err = network.New(ctx, network.WithInternal())
	testcontainers.CleanupNetwork(t, w.control)
	must(err)
	front, err := network.New(ctx, network.WithInternal())
	testcontainers.CleanupNetwork(t, front)
	must(err)
	start := func(name string, networks []string, cmd ...string) {
		t.Helper()
		aliases := map[string][]string{w.control.Name: {name}}
		c, err := testcontainers.Run(ctx, image, testcontainers.WithCmd(cmd...), testcontainers.CustomizeRequestOption(func(r *testcontainers.GenericContainerRequest) error {
			r.Networks, r.NetworkAliases = networks, aliases
			return nil
		}))
		testcontainers.CleanupContainer(t, c, testcontainers.StopTimeout(0))
		must(err)
		w.containers[name] = c
	}

	etcds := []string{"etcd0", "etcd1", "etcd2"}
	var cluster, inside, outside []string
	for _, e := range etcds {
		cluster = append(cluster, e+"=http://"+e+":2380")
		inside = append(inside, e+":2379")
	}
	for _, e := range etcds {
		start(e, []string{w.control.Name}, "/etcd", "--name", e, "--data-dir", "/data", "--log-level", "error",
			"--listen-client-urls", "http://0.0.0.0:2379", "--advertise-client-urls", "http://"+e+":2379",
			"--listen-peer-urls", "http://0.0.0.0:2380", "--initial-advertise-peer-urls", "http://"+e+":2380",
			"--initial-cluster", strings.Join(cluster, ","), "--initial-cluster-state", "new",
			"--heartbeat-interval", "50", "--election-timeout", "500")
		outside = append(outside, w.address(t, e, w.control.Name)+":2379")
	}
	etcd := &harness.Etcd{Endpoints: outside}
	etcd.Await(t)
	w.site = &site{etcd: etcd, judge: harness.NewJudge(), Fleet: &harness.Fleet{Bin: bin, Endpoints: outside}}
	w.judge.OwnOnly = true
	for n := range 3 {
		name := fmt.Sprintf("r%d", n)
		start(name, []string{front.Name, w.control.Name}, "/routerd", "serve", "--group", "main", "--instance", name,
			"--http", "0.0.0.0:8080", "--admin", "0.0.0.0:9080", "--state-dir", "/state", "--endpoints", strings.Join(inside, ","),
			"--response-headers", "--log-format", "json", "--lease-ttl", townLease.String(), fmt.Sprintf("--controller=%v", n < 2))
		ip := w.address(t, name, front.Name)
		w.Instances = append(w.Instances, &harness.Instance{Instance: name, Group: "main", HTTP: ip + ":8080", Admin: ip + ":9080"})
	}
	t.Cleanup(func() {
		for _, i := range w.Instances {
			if t.Failed() {
				t.Logf("the log of %s:\n%s", i.Instance, w.log(t, i.Instance))
			}
		}
	})
	w.joined(t)
	for range 2 {
		must(w.publish("--wait"))
	}
	harness.Until(t, 20*time.Second, "every instance serves", w.Converged)
	return w
}

// build makes an image of nothing but the static binaries; no other is pulled.
func (w *town) build(t *testing.T) (tag string) {
	t.Helper()
	dir := t.TempDir()
	for _, path := range []string{bin.RouterdPath, bin.EtcdPath} {
		b, err := os.ReadFile(path)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, filepath.Base(path)), b, 0o700)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte("FROM scratch\nCOPY routerd etcd /\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	tag, err := w.docker.BuildImage(t.Context(), &testcontainers.ContainerRequest{
		FromDockerfile: testcontainers.FromDockerfile{Context: dir, Repo: "routerd-integration"},
	})
	if err != nil {
		t.Fatalf("build the image: %v", err)
	}
	t.Cleanup(func() {
		if _, err := w.docker.Client().ImageRemove(context.Background(), tag, client.ImageRemoveOptions{Force: true, PruneChildren: true}); err != nil {
			t.Errorf("remove the image: %v", err)
		}
	})
	return tag
}

// address is a container's in a network.
func (w *town) address(t *testing.T, name, network string) string {
	t.Helper()
	info, err := w.containers[name].Inspect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	n := info.NetworkSettings.Networks[network]
	if n == nil {
		t.Fatalf("%s is not in network %s", name, network)
	}
	return n.IPAddress.String()
}

func (w *town) log(t *testing.T, name string) string {
	t.Helper()
	r, err := w.containers[name].Logs(context.Background())
	if err != nil {
		return err.Error()
	}
	defer r.Close()
	var b bytes.Buffer
	_, _ = io.Copy(&b, r)
	return b.String()
}

func (w *town) pause(t *testing.T, name string) {
	t.Helper()
	if _, err := w.docker.Client().ContainerPause(t.Context(), w.containers[name].GetContainerID(), client.ContainerPauseOptions{}); err != nil {
		t.Fatalf("pause %s: %v", name, err)
	}
}

func (w *town) unpause(t *testing.T, name string) {
	t.Helper()
	if _, err := w.docker.Client().ContainerUnpause(t.Context(), w.containers[name].GetContainerID(), client.ContainerUnpauseOptions{}); err != nil {
		t.Fatalf("unpause %s: %v", name, err)
	}
}

// cut takes an instance off the network that etcd is on.
func (w *town) cut(t *testing.T, name string) {
	t.Helper()
	_, err := w.docker.Client().NetworkDisconnect(t.Context(), w.control.ID, client.NetworkDisconnectOptions{Container: w.containers[name].GetContainerID()})
	if err != nil {
		t.Fatalf("cut %s off: %v", name, err)
	}
}

func (w *town) mend(t *testing.T, name string) {
	t.Helper()
	_, err := w.docker.Client().NetworkConnect(t.Context(), w.control.ID, client.NetworkConnectOptions{Container: w.containers[name].GetContainerID()})
	if err != nil {
		t.Fatalf("connect %s: %v", name, err)
	}
}

// untilStale waits until an instance says that what it knows may be old.
func (w *town) untilStale(t *testing.T, i *harness.Instance) {
	t.Helper()
	harness.Until(t, 30*time.Second, i.Instance+" says that it is stale", func() error {
		st, err := i.Status()
		if err == nil && (st.Stale == "" || st.Serving == nil) {
			err = fmt.Errorf("stale: %q, serving %v, etcd %+v", st.Stale, st.Serving, st.Etcd)
		}
		return err
	})
}

func (w *town) epoch(t *testing.T, i *harness.Instance) int64 {
	t.Helper()
	r, err := i.Ready()
	if err != nil {
		t.Fatal(err)
	}
	return r.Epoch
}

// TestFaultsInContainers cuts and pauses what real networks and machines cut
// and pause, under load. No request to an instance that is not itself paused may
// fail, and the fleet must be one after each fault.
func TestFaultsInContainers(t *testing.T) {
	w := newTown(t)
	h, complete := record(t, w.Endpoints)
	stop := w.load(t, 30)
	converged := func(t *testing.T, what string) {
		t.Helper()
		start := time.Now()
		harness.Until(t, 60*time.Second, what, w.Converged)
		t.Logf("%s after %v", what, time.Since(start).Round(time.Millisecond))
	}

	t.Run("an instance cut off from etcd", func(t *testing.T) {
		r2, was := w.Instances[2], w.epoch(t, w.Instances[2])
		w.cut(t, "r2")
		// Until its lease ends r2 counts: nothing may be committed without it.
		err := w.publish("--wait", "--timeout", "2s")
		if err == nil || !strings.Contains(err.Error(), "r2") {
			t.Errorf("publish while r2 is registered and cut off: %v; want a failure that names r2", err)
		}
		if e := w.epoch(t, w.Instances[0]); e != was {
			t.Errorf("I2: r0 switched to epoch %d while r2 could not", e)
		}
		start := time.Now()
		if err := w.publish("--wait", "--timeout", "40s"); err != nil {
			t.Fatalf("publish after r2's lease: %v", err)
		}
		t.Logf("the next publish went through after %v, with a lease of %v", time.Since(start).Round(time.Millisecond), townLease)
		w.untilStale(t, r2)
		if e := w.epoch(t, r2); e != was {
			t.Errorf("r2 serves epoch %d, cut off at %d", e, was)
		}
		w.mend(t, "r2")
		converged(t, "r2 caught up")
	})

	t.Run("an etcd member paused", func(t *testing.T) {
		for _, e := range []string{"etcd0", "etcd1", "etcd2"} {
			w.pause(t, e)
			start := time.Now()
			err := w.publish("--wait", "--timeout", "40s")
			t.Logf("a publish with %s paused took %v", e, time.Since(start).Round(time.Millisecond))
			w.unpause(t, e)
			if err != nil {
				t.Errorf("publish while %s is paused: %v", e, err)
			}
			w.etcd.Await(t)
		}
		converged(t, "the fleet is one")
	})

	t.Run("most etcd members paused", func(t *testing.T) {
		was := w.epoch(t, w.Instances[0])
		w.pause(t, "etcd0")
		w.pause(t, "etcd1")
		for _, i := range w.Instances {
			w.untilStale(t, i)
		}
		if err := w.publish("--wait", "--timeout", "3s"); err == nil {
			t.Error("a publish went through without a majority of etcd")
		}
		for _, i := range w.Instances {
			if e := w.epoch(t, i); e != was {
				t.Errorf("%s serves epoch %d, was at %d", i.Instance, e, was)
			}
		}
		w.unpause(t, "etcd0")
		w.unpause(t, "etcd1")
		w.etcd.Await(t)
		converged(t, "the fleet is one")
		if err := w.publish("--wait", "--timeout", "40s"); err != nil {
			t.Error(err)
		}
	})

	t.Run("the controller paused past its lease", func(t *testing.T) {
		i := w.victim(t, "controller", 0)
		elected := strings.Count(w.log(t, i.Instance), `"msg":"elected"`)
		// In the midst of a rollout, so that it wakes with one in mind.
		if err := w.publish(); err != nil {
			t.Fatal(err)
		}
		i.Down()
		w.pause(t, i.Instance)
		start := time.Now()
		if err := w.publish("--wait", "--timeout", "60s"); err != nil {
			t.Errorf("publish with the controller paused: %v", err)
		}
		t.Logf("a publish went through %v after the controller was paused (its lease: %v)", time.Since(start).Round(time.Millisecond), leaderLease)
		harness.Until(t, 30*time.Second, "another is elected", func() error {
			if st, err := w.Status(); err != nil || st.Controller == i.Instance || st.Controller == "" {
				return fmt.Errorf("controller %q, %v", st.Controller, err)
			}
			return nil
		})
		w.unpause(t, i.Instance)
		harness.Until(t, 20*time.Second, "it answers again", func() error { _, err := i.Ready(); return err })
		i.Back()
		converged(t, i.Instance+" caught up")
		if err := w.publish("--wait"); err != nil {
			t.Error(err)
		}
		// I4: what it did after its term it did as nobody.
		if err := deposed(w.log(t, i.Instance), elected); err != nil {
			t.Errorf("I4: %s: %v", i.Instance, err)
		}
	})

	stop()
	w.verdict(t)
	complete()
	commits, broken := h.commits()
	for _, b := range broken {
		t.Error(b)
	}
	t.Logf("%d commits held against I2 and I3", len(commits))
}

// deposed looks in a log for the end of a controller's n-th term, and fails
// when it wrote anything between that and its next one.
func deposed(log string, n int) error {
	var terms int
	var over bool
	for line := range strings.Lines(log) {
		says := func(msgs ...string) bool {
			return slices.ContainsFunc(msgs, func(m string) bool { return strings.Contains(line, `"msg":"`+m+`"`) })
		}
		switch {
		case says("elected"):
			terms++
		case terms == n && says("deposed", "term ended: its lease is gone"):
			over = true
		case over && terms == n && says("committed", "asked to prepare", "withdrew prepares", "group made", "rollout"):
			return fmt.Errorf("wrote after its term: %s", line)
		}
	}
	if !over {
		return errors.New("its log does not say that its term ended")
	}
	return nil
}
