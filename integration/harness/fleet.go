package harness

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"routerd.dev/integration/history"
	"routerd.dev/internal/agent"
	"routerd.dev/internal/rollout"
	"routerd.dev/internal/version"
)

// An Instance is one `routerd serve` process.
type Instance struct {
	*Process
	Instance, Group string
	HTTP, Admin     string // addresses
	StateDir        string
	Output          func() string // all it wrote, of one that runs on a Ground; its Process is nil

	mu   sync.Mutex
	down []window // when the test had it killed
}

// A window is a time in which an instance may fail requests; an open one has
// no end yet.
type window struct{ from, to time.Time }

// A Fleet is instances on one etcd.
type Fleet struct {
	Bin       Binaries
	Endpoints []string
	Instances []*Instance
	CtlArgs   []string // flags of every routectl: who it is towards etcd
}

// FleetOptions say which instances a fleet has.
type FleetOptions struct {
	Groups      []string // one instance each
	Controllers int      // how many of them, from the first, stand for election
	Args        []string // further flags of each

	// Via gives the endpoints of the n-th instance, when they are not the fleet's.
	Via func(n int) []string
}

// StartFleet starts the instances. Nothing is published yet, so they need not
// be ready when it returns.
func StartFleet(t *testing.T, b Binaries, endpoints []string, o FleetOptions) *Fleet {
	t.Helper()
	f := &Fleet{Bin: b, Endpoints: endpoints}
	dir := folder(t)
	for n, group := range o.Groups {
		name := fmt.Sprintf("%s-%d", group, n)
		i := &Instance{Instance: name, Group: group, HTTP: FreeAddr(t), Admin: FreeAddr(t), StateDir: filepath.Join(dir, name)}
		to := endpoints
		if o.Via != nil {
			to = o.Via(n)
		}
		args := []string{
			"serve", "--group", group, "--instance", name, "--http", i.HTTP, "--admin", i.Admin, "--admin-pprof",
			"--state-dir", i.StateDir, "--endpoints", strings.Join(to, ","), "--response-headers",
			"--log-format", "json", "--log-level", "debug",
		}
		if n < o.Controllers {
			args = append(args, "--controller")
		}
		i.Process = Start(t, name, dir, b.RouterdPath, nil, append(args, o.Args...)...)
		f.Instances = append(f.Instances, i)
	}
	t.Cleanup(func() {
		if t.Failed() {
			for _, i := range f.Instances {
				t.Logf("the end of %s's log:\n%s", i.Instance, i.Tail(25))
			}
		}
	})
	return f
}

// Crash kills the instance with SIGKILL.
func (i *Instance) Crash() {
	i.Down()
	i.Kill()
}

// Down notes that from now on requests to the instance may fail, until Back.
func (i *Instance) Down() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.down = append(i.down, window{from: time.Now()})
}

// Back notes that the instance serves again: from now on no request may fail.
func (i *Instance) Back() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.down[len(i.down)-1].to = time.Now()
}

// Excused tells whether the instance was down at some moment between two
// times.
func (i *Instance) Excused(from, to time.Time) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, w := range i.down {
		if w.from.Before(to) && (w.to.IsZero() || from.Before(w.to)) {
			return true
		}
	}
	return false
}

// Ready asks /readyz; the error says why it is not.
func (i *Instance) Ready() (agent.Readiness, error) {
	var r agent.Readiness
	err := getJSON("http://"+i.Admin+"/readyz", &r)
	return r, err
}

// Status asks the instance what it does.
func (i *Instance) Status() (agent.Status, error) {
	var s agent.Status
	err := getJSON("http://"+i.Admin+"/v1/status", &s)
	return s, err
}

func getJSON(url string, v any) error {
	b, err := get(url)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%s: %w: %s", url, err, b)
	}
	return nil
}

var (
	goroutines = regexp.MustCompile(`goroutine profile: total (\d+)`)
	heap       = regexp.MustCompile(`# HeapAlloc = (\d+)`)
)

// Vitals are what a process that leaks has ever more of.
type Vitals struct{ Goroutines, Descriptors, Heap int }

func (v Vitals) String() string {
	return fmt.Sprintf("%d goroutines, %d descriptors, %.1f MiB heap", v.Goroutines, v.Descriptors, float64(v.Heap)/(1<<20))
}

// Vitals measures the instance, the heap after a collection.
func (i *Instance) Vitals() (Vitals, error) {
	var v Vitals
	number := func(page string, re *regexp.Regexp) (int, error) {
		b, err := get("http://" + i.Admin + "/debug/pprof/" + page)
		if err != nil {
			return 0, err
		}
		m := re.FindSubmatch(b)
		if m == nil {
			return 0, fmt.Errorf("%s says no %v", page, re)
		}
		return strconv.Atoi(string(m[1]))
	}
	var err error
	if v.Heap, err = number("heap?gc=1&debug=1", heap); err != nil {
		return v, err
	}
	if v.Goroutines, err = number("goroutine?debug=1", goroutines); err != nil {
		return v, err
	}
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", i.Pid()))
	v.Descriptors = len(fds)
	return v, err
}

// Lines reads what the instance logged so far, in its own order.
func (i *Instance) Lines() ([]history.Line, error) {
	var said string
	if i.Output != nil {
		said = i.Output()
	} else {
		b, err := os.ReadFile(i.Log)
		if err != nil {
			return nil, fmt.Errorf("read the log of %s: %w", i.Instance, err)
		}
		said = string(b)
	}
	var out []history.Line
	for s := range strings.Lines(said) {
		var l history.Line
		if json.Unmarshal([]byte(s), &l) == nil {
			out = append(out, l)
		}
	}
	return out, nil
}

// Routectl runs routectl against the fleet's etcd.
func (f *Fleet) Routectl(stdin string, args ...string) (string, error) {
	return f.Bin.Routectl(f.Endpoints, stdin, slices.Concat(f.CtlArgs, args)...)
}

// A FleetStatus is what tests read of `routectl status -o json`.
type FleetStatus struct {
	Target     version.Ref
	Controller string
	Groups     []struct {
		Group  string
		Epoch  int64
		Stable version.Ref
	}
	Instances []struct {
		Instance, Group, Stale, Frozen string
		Serving                        *rollout.Serving
	}
	Rollouts []json.RawMessage
}

// Status asks routectl who serves what.
func (f *Fleet) Status() (FleetStatus, error) {
	var s FleetStatus
	out, err := f.Routectl("", "status", "-o", "json")
	if err == nil {
		err = json.Unmarshal([]byte(out), &s)
	}
	return s, err
}

// Converged returns nil when every instance is registered and serves its group's
// epoch and the fleet's target, and nothing is under way.
func (f *Fleet) Converged() error {
	s, err := f.Status()
	if err != nil {
		return err
	}
	if len(s.Rollouts) > 0 {
		return fmt.Errorf("under way: %s", s.Rollouts[0])
	}
	if len(s.Instances) != len(f.Instances) {
		return fmt.Errorf("%d of %d instances are registered", len(s.Instances), len(f.Instances))
	}
	epochs := map[string]int64{}
	for _, g := range s.Groups {
		epochs[g.Group] = g.Epoch
		if g.Stable != s.Target {
			return fmt.Errorf("group %s is assigned revision %d, target is %d", g.Group, g.Stable.Number, s.Target.Number)
		}
	}
	for _, i := range s.Instances {
		switch {
		case i.Serving == nil:
			return fmt.Errorf("%s serves nothing", i.Instance)
		case i.Serving.Digest != s.Target.Digest || i.Serving.Epoch != epochs[i.Group]:
			return fmt.Errorf("%s serves revision %d (epoch %d), target is %d (epoch %d)", i.Instance, i.Serving.Revision, i.Serving.Epoch, s.Target.Number, epochs[i.Group])
		case i.Stale != "" || i.Frozen != "":
			return fmt.Errorf("%s: %s%s", i.Instance, i.Stale, i.Frozen)
		}
	}
	return nil
}

func get(url string) ([]byte, error) {
	resp, err := http.Get(url)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", url, err)
	}
	if resp.StatusCode != http.StatusOK {
		return b, fmt.Errorf("%s: %s: %s", url, resp.Status, strings.TrimSpace(string(b)))
	}
	return b, nil
}

// Ctl runs `routerd ctl` against the instance's own socket.
func Ctl(b Binaries, i *Instance, args ...string) (string, error) {
	cmd := exec.Command(b.RouterdPath, append([]string{"ctl", "--state-dir", i.StateDir}, args...)...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}
