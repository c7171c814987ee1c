//go:build integration

package integration

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"routerd.dev/integration/harness"
	"routerd.dev/internal/agent"
	"routerd.dev/internal/rollout"
)

// smallDisks is the world of disks that are full or read-only.
var smallDisks = harness.WorldOptions{Args: faulted.Args, SmallDisk: 8 << 20}

// hostScenarios are faults of the machine an instance runs on, and of what runs
// there.
func hostScenarios() []harness.Scenario {
	var all []harness.Scenario
	add := func(name string, short bool, o harness.WorldOptions, run func(t *testing.T, w *harness.World)) {
		all = append(all, harness.Scenario{Name: name, Bound: recovery, Short: short, World: o, Run: run})
	}
	add("full disk", true, smallDisks, diskThat(fill))
	add("state files damaged while down", false, faulted, damagedWhileDown)
	add("state files damaged while up, then no etcd", true, faulted, damagedWhileUp)
	add("state folder lost", false, faulted, stateLost)
	add("poison snapshot", true, faulted, poison)
	add("rolling upgrade with mixed capabilities", true, faulted, mixedCapabilities)
	add("instance's clock an hour ahead", false, faulted, wrongClock(false, time.Hour))
	add("instance's clock an hour behind", false, faulted, wrongClock(false, -time.Hour))
	add("controller's clock an hour ahead", false, faulted, wrongClock(true, time.Hour))
	add("controller's clock an hour behind", false, faulted, wrongClock(true, -time.Hour))
	return append(all, harness.Scenario{
		Name: "read-only disk", Bound: recovery, World: smallDisks, Run: diskThat(readOnly),
		Ground: "processes", Why: "a container does not see what is mounted after its start",
	}, harness.Scenario{
		Name: "memory limit during prepare", Bound: recovery, World: faulted, Run: memoryLimit,
		Ground: "containers", Why: "processes have no limit of memory",
	})
}

// fill leaves no room on a file system.
func fill(t *testing.T, dir string) (mend func()) {
	t.Helper()
	path := filepath.Join(dir, "filler")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for size := 64 << 10; size > 0; {
		if _, err := f.Write(make([]byte, size)); err != nil {
			size /= 2
		}
	}
	return func() {
		if err := os.Remove(path); err != nil {
			t.Error(err)
		}
	}
}

// readOnly has the folders of what is remembered take no writes. The whole file
// system cannot be made read-only while the process holds its lock file open.
func readOnly(t *testing.T, dir string) (mend func()) {
	t.Helper()
	mount := func(cmd string, args ...string) {
		t.Helper()
		if out, err := exec.Command(cmd, args...).CombinedOutput(); err != nil {
			t.Fatalf("%s %v: %v: %s", cmd, args, err, out)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var folders []string
	for _, e := range entries {
		if e.IsDir() {
			path := filepath.Join(dir, e.Name())
			mount("mount", "--bind", path, path)
			folders = append(folders, path)
			mount("mount", "-o", "remount,bind,ro", path)
		}
	}
	return func() {
		for _, path := range folders {
			mount("umount", "-l", path)
		}
	}
}

// diskThat: no switch waits for the disk, it is said that it does not remember,
// and what it missed is made up for by itself.
func diskThat(fails func(t *testing.T, dir string) (mend func())) func(t *testing.T, w *harness.World) {
	return func(t *testing.T, w *harness.World) {
		prelude(t, w)
		i := w.Instance(follower(t, w))
		untilOnDisk(t, i, w.Epoch(t, i.Instance)) // nothing of before is written later
		mend := fails(t, i.StateDir)
		mended := false
		defer func() {
			if !mended {
				mend()
			}
		}()
		goesThrough(t, w, recovery)
		w.UntilStatus(t, detection, i.Instance, "says that its disk fails", diskSays(true))
		w.UntilConverged(t, recovery)
		if r, err := i.Ready(); err != nil || !r.Ready {
			t.Errorf("%s: %+v, %v", i.Instance, r, err)
		}
		mend()
		mended = true
		w.UntilStatus(t, recovery, i.Instance, "says that its disk remembers", diskSays(false))
		servesFromDisk(t, w, i.Instance)
	}
}

func diskSays(trouble bool) func(agent.Status) error {
	return func(st agent.Status) error {
		if (st.Disk != "") != trouble {
			return fmt.Errorf("disk: %q", st.Disk)
		}
		return nil
	}
}

// servesFromDisk restarts an instance without etcd, which must serve what it
// did, and brings etcd back.
func servesFromDisk(t *testing.T, w *harness.World, name string) {
	t.Helper()
	was := w.Epoch(t, name)
	for _, m := range w.Members() {
		w.Kill(t, m)
	}
	w.Down(name)
	w.Stop(t, name)
	w.Revive(t, name)
	r, err := w.Instance(name).Ready()
	if err != nil || r.Epoch != was || r.Source != agent.SourceDisk {
		t.Errorf("%s serves epoch %d from %s, want epoch %d from its disk: %v", name, r.Epoch, r.Source, was, err)
	}
	for _, m := range w.Members() {
		w.Start(t, m)
	}
	w.AwaitEtcd(t)
}

// stateFiles are those of an instance's state folder whose path below it
// matches, newest first.
func stateFiles(t *testing.T, i *harness.Instance, pattern string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(i.StateDir, pattern))
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(files)
	slices.Reverse(files)
	return files
}

// kinds are the state files there are, by a pattern of each kind.
var kinds = []string{"*/*/good-*", "*/*/seen", "*/*/chunks/*", "*/*/manifests/*", "lock"}

// damage overwrites the middle of files, or cuts them off.
func damage(t *testing.T, files ...string) {
	t.Helper()
	for n, name := range files {
		b, err := os.ReadFile(name)
		if errors.Is(err, os.ErrNotExist) {
			continue // the instance needs it no more
		}
		if err != nil {
			t.Fatal(err)
		}
		if n%2 == 0 {
			b = b[:len(b)/2]
		} else {
			b[len(b)/2] ^= 0xff
		}
		f, err := os.OpenFile(name, os.O_WRONLY|os.O_TRUNC, 0) // which does not bring back what was just removed
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err == nil {
			_, err = f.Write(b)
			err = errors.Join(err, f.Close())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// Each kind of file is damaged while the instance is down; what is left of its
// folder serves, and etcd gives the rest.
func damagedWhileDown(t *testing.T, w *harness.World) {
	was := prelude(t, w)
	i := w.Instance(follower(t, w))
	for _, kind := range kinds {
		w.Down(i.Instance)
		w.Stop(t, i.Instance)
		files := stateFiles(t, i, kind)
		if len(files) == 0 {
			t.Errorf("there is no %s", kind)
		}
		damage(t, files...)
		took := w.Revive(t, i.Instance)
		t.Logf("%d %s damaged: it serves %v after its start", len(files), kind, took.Round(time.Millisecond))
	}
	unchanged(t, w, was)
	untilWhole(t, i)
	servesFromDisk(t, w, i.Instance)
}

// Each kind of file is damaged, or removed, while the instance runs: it mends
// them by itself, so that a restart without etcd serves what it did.
func damagedWhileUp(t *testing.T, w *harness.World) {
	prelude(t, w)
	i := w.Instance(follower(t, w))
	untilOnDisk(t, i, w.Epoch(t, i.Instance)) // what is written after the switch is
	untilWhole(t, i)
	var files []string
	for _, kind := range kinds[:len(kinds)-1] { // a lock is held, not read
		files = append(files, stateFiles(t, i, kind)...)
	}
	damage(t, files...)
	for n, name := range files {
		if n%3 == 0 {
			if err := os.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
				t.Fatal(err)
			}
		}
	}
	start := time.Now()
	untilWhole(t, i)
	t.Logf("%d files were whole again after %v", len(files), time.Since(start).Round(time.Millisecond))
	servesFromDisk(t, w, i.Instance)
}

// untilWhole waits until a scrub found and mended all there was: it says so
// once for states and once for pieces, and what it looked at since is whole.
func untilWhole(t *testing.T, i *harness.Instance) {
	t.Helper()
	harness.Until(t, recovery, i.Instance+"'s files are whole", func() error {
		good := stateFiles(t, i, "*/*/good-*")
		if len(good) == 0 {
			return errors.New("no state is there")
		}
		for _, kind := range kinds[:4] {
			for _, name := range stateFiles(t, i, kind) {
				if err := agent.CheckFile(name); err != nil {
					return err
				}
			}
		}
		if len(stateFiles(t, i, "*/*/chunks/*")) == 0 || len(stateFiles(t, i, "*/*/manifests/*")) < 2 {
			return errors.New("pieces are missing")
		}
		return nil
	})
}

// An instance whose folder is lost is as new, and gets everything from etcd.
func stateLost(t *testing.T, w *harness.World) {
	was := prelude(t, w)
	i := w.Instance(follower(t, w))
	w.Crash(t, i.Instance)
	for _, f := range append(stateFiles(t, i, "*"), stateFiles(t, i, ".*")...) {
		if base := filepath.Base(f); base == "." || base == ".." {
			continue
		}
		if err := os.RemoveAll(f); err != nil {
			t.Fatal(err)
		}
	}
	took := w.Revive(t, i.Instance)
	t.Logf("it serves %v after its start, %v of which its former lease takes at most", took.Round(time.Millisecond), instanceLease)
	unchanged(t, w, was)
}

// bulk is a module of so many routes that preparing it takes its time.
func bulk(module string, n int) string {
	return strings.Replace(strings.ReplaceAll(harness.Ballast(n), ".example.com", "."+module+".example"), "module: ballast", "module: "+module, 1)
}

// poisonous is so many routes that who is asked to prepare them is still at it
// when a container was told to end, by a slow Docker, too: some seconds.
const poisonous = 100000

// askedFirst waits until somebody who is not dead yet is asked to prepare
// before all others.
func askedFirst(t *testing.T, asked clientv3.WatchChan, dead []string) string {
	t.Helper()
	late := time.After(time.Minute)
	for {
		select {
		case <-late:
			t.Fatal("nobody was asked to prepare first within a minute")
		case resp, ok := <-asked:
			if !ok || resp.Err() != nil {
				t.Fatalf("the watch of prepares ended: %v", resp.Err())
			}
			for _, e := range resp.Events {
				var p rollout.Prepare
				if e.Type == clientv3.EventTypePut && json.Unmarshal(e.Kv.Value, &p) == nil && p.First != "" && !slices.Contains(dead, p.First) {
					return p.First
				}
			}
		}
	}
}

// A snapshot that kills whoever prepares it first is condemned after the second
// death, the target is what it was, and nobody else is touched.
func poison(t *testing.T, w *harness.World) {
	prelude(t, w)
	before, err := w.Status()
	if err != nil {
		t.Fatal(err)
	}
	c, ctx := rootOf(t, w)
	asked := c.Watch(ctx, prefix+"prepare/", clientv3.WithPrefix())
	done := make(chan error, 1)
	go func() {
		_, err := w.Routectl(bulk("poison", poisonous), "publish", "-f", "-", "-m", "poison", "--wait", "--timeout", "1m")
		done <- err
	}()
	var dead []string
	for range 2 {
		victim := askedFirst(t, asked, dead)
		w.Crash(t, victim)
		dead = append(dead, victim)
	}
	err = <-done
	if err == nil || !strings.Contains(err.Error(), "condemned") {
		t.Errorf("the publish ended with: %v", err)
	}
	t.Logf("it killed %v; the publisher was told: %v", dead, err)
	for _, name := range dead {
		w.Revive(t, name)
	}
	after, err := w.Status()
	if err != nil {
		t.Fatal(err)
	}
	if after.Target.Digest != before.Target.Digest {
		t.Errorf("the target is revision %d, and was %d", after.Target.Number, before.Target.Number)
	}
	if _, err := w.Routectl(bulk("poison", poisonous), "publish", "-f", "-", "-m", "poison", "--wait", "--timeout", "10s"); err == nil {
		t.Error("a condemned digest was published again")
	}
}

// variants are other builds of routerd, each made once.
var variants struct {
	sync.Mutex
	files map[string][]byte
}

// variant puts another build of routerd into an instance's folder, and returns
// the program that runs it there.
func variant(t *testing.T, w *harness.World, name string, v harness.Variant, i *harness.Instance) harness.Program {
	t.Helper()
	variants.Lock()
	defer variants.Unlock()
	b := variants.files[name]
	if b == nil {
		out := filepath.Join(t.TempDir(), name)
		if err := harness.BuildVariant(out, v); err != nil {
			t.Fatal(err)
		}
		var err error
		if b, err = os.ReadFile(out); err != nil {
			t.Fatal(err)
		}
		if variants.files == nil {
			variants.files = map[string][]byte{}
		}
		variants.files[name] = b
	}
	if err := os.WriteFile(filepath.Join(w.Dir(i.Instance), name), b, 0o700); err != nil {
		t.Fatal(err)
	}
	p := w.InstanceProgram(i)
	p.File = name
	return p
}

// replace runs an instance as another program, and waits until it serves.
func replace(t *testing.T, w *harness.World, name string, p harness.Program) {
	t.Helper()
	w.Down(name)
	w.Stop(t, name)
	w.Run(t, name, p)
	w.UntilServes(t, name)
	w.Back(name)
}

// While one instance is of an older build, what it cannot do is refused, and who
// and what is named; once it is upgraded, the same goes through.
func mixedCapabilities(t *testing.T, w *harness.World) {
	was := prelude(t, w)
	i := w.Instance(follower(t, w))
	const lacks = "middleware/ipDeny/1"
	replace(t, w, i.Instance, variant(t, w, "older", harness.Fewer(lacks), i))
	module := fmt.Sprintf(`apiVersion: routerd/v1
module: newer
middlewares: {nobody: {ipDeny: {clients: ["192.0.2.%d/32"]}}}
routes:
  - {name: newer, path: /newer, middlewares: [{use: nobody}], respond: newer}
`, time.Now().UnixNano()%250) // a digest of its own: one that was refused twice is condemned
	_, err := w.Routectl(module, "publish", "-f", "-", "-m", "newer", "--wait", "--timeout", "20s")
	switch {
	case err == nil:
		t.Error("what one instance cannot do was committed")
	case !strings.Contains(err.Error(), i.Instance) || !strings.Contains(err.Error(), lacks):
		t.Errorf("the publisher is not told who lacks what: %v", err)
	}
	unchanged(t, w, was)
	goesThrough(t, w, recovery) // what all can do goes on
	replace(t, w, i.Instance, w.InstanceProgram(i))
	if _, err := w.Routectl(module, "publish", "-f", "-", "-m", "newer", "--wait", "--timeout", "20s"); err != nil {
		t.Errorf("after the upgrade: %v", err)
	}
}

// wrongClock gives an instance, or the controller, a wall clock that is wrong:
// nothing depends on it, and the skew is reported.
func wrongClock(controller bool, by time.Duration) func(t *testing.T, w *harness.World) {
	return func(t *testing.T, w *harness.World) {
		prelude(t, w)
		i := w.Controller(t)
		if !controller {
			i = w.Instance(follower(t, w))
		}
		w.Skew(i.Instance)
		p := variant(t, w, "clock", harness.WrongClock(), i)
		p.Env = append(p.Env, fmt.Sprintf("%s=%d", harness.ClockShift, int(by.Seconds())))
		if controller { // the only one who can be
			for _, other := range w.Instances[:w.Options.Controllers] {
				if other != i {
					w.Down(other.Instance)
					w.Stop(t, other.Instance)
					defer w.Revive(t, other.Instance)
				}
			}
		}
		replace(t, w, i.Instance, p)
		defer replace(t, w, i.Instance, w.InstanceProgram(i))
		if controller {
			harness.Until(t, controllerLease+detection, i.Instance+" is elected", func() error {
				st, err := w.Status()
				if err == nil && st.Controller != i.Instance {
					err = fmt.Errorf("it is %q", st.Controller)
				}
				return err
			})
		}
		for range 3 {
			goesThrough(t, w, recovery)
		}
		if controller {
			return // its instants are in the others' past or future: they switched all the same
		}
		st, err := i.Status()
		if err != nil {
			t.Fatal(err)
		}
		skew := time.Duration(st.SkewMicros) * time.Microsecond
		if (skew - by).Abs() > time.Minute {
			t.Errorf("it reports a skew of %v, its clock is wrong by %v", skew, by)
		}
	}
}

// An instance that has not the memory for a snapshot refuses it, or dies of it;
// the others serve on, and it serves again what it can.
func memoryLimit(t *testing.T, w *harness.World) {
	prelude(t, w)
	i := w.Instance(follower(t, w))
	p := w.InstanceProgram(i)
	p.Memory = 64 << 20
	replace(t, w, i.Instance, p)
	w.Down(i.Instance)
	_, err := w.Routectl(bulk("heavy", 100000), "publish", "-f", "-", "-m", "heavy", "--wait", "--timeout", "1m")
	t.Logf("the publisher was told: %v; %s runs: %v", err, i.Instance, w.Running(i.Instance))
	// It refuses, it is killed, or it hangs at its limit, answers nobody, and
	// loses its lease: which of them is the kernel's choice. It must not say
	// that it took it.
	fleet, ferr := w.Status()
	if ferr != nil {
		t.Fatal(ferr)
	}
	if st, e := i.Status(); err == nil && e == nil && st.Serving != nil && st.Serving.Digest == fleet.Target.Digest {
		t.Errorf("%s says that it took what its memory is too small for: %+v", i.Instance, st.Serving)
	}
	if w.Running(i.Instance) {
		w.Stop(t, i.Instance)
	}
	w.Run(t, i.Instance, w.InstanceProgram(i))
	w.UntilServes(t, i.Instance)
	w.Back(i.Instance)
	if _, err := w.Routectl(bulk("heavy", 1), "publish", "-f", "-", "-m", "light", "--allow-shrink", "--wait", "--timeout", "1m"); err != nil {
		t.Errorf("a light one after it: %v", err)
	}
}
