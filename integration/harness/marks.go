package harness

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
)

// Marked returns a route file whose every route carries a mark: in its name,
// in a header it sets on the answer, in one it sets on the request sent
// upstream, and in the body it answers itself. An answer that was put together
// of two revisions shows two marks.
//
// Beside them stand routes that nobody asks for, so that a revision which is
// kept after its time shows in the heap.
func Marked(mark int, upstream string) string {
	var b strings.Builder
	fmt.Fprintf(&b, `apiVersion: routerd/v1
module: marked
upstreams:
  echo: {targets: [%[2]q]}
middlewares:
  mark: {headers: {request: {set: {X-Mark: "%[1]d"}}, response: {set: {X-Mark: "%[1]d"}}}}
routes:
  - {name: own-%[1]d, path: /own, middlewares: [{use: mark}], respond: "%[1]d /own"}
  - {name: echo-%[1]d, path: "/echo/{id}", middlewares: [{use: mark}], proxy: {upstream: echo}}
  - {name: ws, path: /ws, proxy: {upstream: echo}}
  - {name: slow, path: /slow, proxy: {upstream: echo}}
  - {name: events, path: /events, proxy: {upstream: echo}}
`, mark, upstream)
	for i := range 200 {
		fmt.Fprintf(&b, "  - {name: pad-%[1]d, path: \"/pad/%[1]d/{id}\", respond: \"%[2]d of %[1]d\"}\n", i, mark)
	}
	fmt.Fprintf(&b, "tests:\n  - {request: GET /own, expect: {route: own-%d}}\n", mark)
	return b.String()
}

// Ballast returns a route file of another module with n routes that never
// change, so that a table is of a size that takes work.
func Ballast(n int) string {
	var b strings.Builder
	b.WriteString("apiVersion: routerd/v1\nmodule: ballast\nroutes:\n")
	for i := range n {
		fmt.Fprintf(&b, "  - {name: r%[1]d, hosts: [h%[2]d.example.com], path: \"/v1/things/t%[1]d/{id}\", respond: \"%[1]d\"}\n", i, i%10)
	}
	return b.String()
}

// An answer is which revision an answer names and which marks it bears.
type answer struct {
	instance         string
	revision         int64
	route, head, own string
}

// A Judge looks at every answer of a fleet to the requests of Marked.
type Judge struct {
	mu    sync.Mutex
	seen  map[answer]int
	marks map[int64]int // of each revision published
}

// NewJudge returns a judge that knows of no revision yet.
func NewJudge() *Judge { return &Judge{seen: map[answer]int{}, marks: map[int64]int{}} }

// Published notes the mark of a revision.
func (j *Judge) Published(revision int64, mark int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.marks[revision] = mark
}

// Load is a load on one instance, each answer of which is looked at: it must
// be a 200 of this instance with all its marks alike, and of no earlier epoch
// than an answer that had come when the request was sent (I1, I3).
func (j *Judge) Load(i *Instance, rate int) Load {
	var floor atomic.Int64
	return Load{Rate: rate, Excused: i.Excused, New: func(n int) (*http.Request, func(*http.Response, []byte) error) {
		path := "/own"
		if n%2 == 0 {
			path = fmt.Sprintf("/echo/%d", n)
		}
		req, err := http.NewRequestWithContext(context.Background(), http.MethodGet, "http://"+i.HTTP+path, nil)
		if err != nil {
			panic(err) // the address is ours
		}
		least := floor.Load()
		return req, func(resp *http.Response, body []byte) error {
			epoch, err := j.look(i, path, resp, body)
			if err != nil {
				return err
			}
			if epoch < least {
				return fmt.Errorf("epoch %d after epoch %d", epoch, least)
			}
			for {
				old := floor.Load()
				if epoch <= old || floor.CompareAndSwap(old, epoch) {
					return nil
				}
			}
		}
	}}
}

func (j *Judge) look(i *Instance, path string, resp *http.Response, body []byte) (epoch int64, err error) {
	if resp.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("%s: %s", resp.Status, body)
	}
	h := resp.Header
	if got := h.Get("Routerd-Instance"); got != i.Instance {
		return 0, fmt.Errorf("answered by %q", got)
	}
	epoch, err = strconv.ParseInt(h.Get("Routerd-Epoch"), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("epoch: %w", err)
	}
	revision, err := strconv.ParseInt(h.Get("Routerd-Revision"), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("revision: %w", err)
	}
	own, at, _ := strings.Cut(string(body), " ")
	if at != path {
		return 0, fmt.Errorf("the upstream was asked for %q", at) // I8
	}
	_, route, _ := strings.Cut(h.Get("Routerd-Route"), "-")
	a := answer{instance: i.Instance, revision: revision, route: route, head: h.Get("X-Mark"), own: own}
	j.mu.Lock()
	j.seen[a]++
	j.mu.Unlock()
	if a.route != a.head || a.head != a.own {
		return 0, fmt.Errorf("mixed: %+v", a)
	}
	return epoch, nil
}

// Verdict tells of every answer that bears another mark than its revision's,
// and how many answers and revisions were seen.
func (j *Judge) Verdict() (wrong []string, answers, revisions int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	seen := map[int64]bool{}
	for a, n := range j.seen {
		answers += n
		seen[a.revision] = true
		if mark, ok := j.marks[a.revision]; !ok || strconv.Itoa(mark) != a.head {
			wrong = append(wrong, fmt.Sprintf("%d answers %+v, its revision's mark is %d", n, a, mark))
		}
	}
	slices.Sort(wrong)
	return wrong, answers, len(slices.Collect(maps.Keys(seen)))
}
