package harness

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"routerd.dev/integration/history"
	"routerd.dev/internal/agent"
)

// A Recorder is a load on a fleet, every answer of which is kept. Its clients
// are many and known, and each asks the instances of its group in turn.
// Requests are sent at a fixed rate and wait for no answer, so that a slow
// fleet cannot hide by slowing its load down. It also asks each instance's
// /v1/status, again and again.
//
// Start begins, Stop ends; in between everything else may be called from any
// goroutine.
type Recorder struct {
	RecorderOptions
	fleet   *Fleet
	start   time.Time
	client  *http.Client
	stop    context.CancelFunc
	done    sync.WaitGroup
	opened  atomic.Int64
	mu      sync.Mutex
	chunks  [][]history.Response // a new one for each chunkSize: nothing is copied as they grow
	samples []history.Sample
	errs    map[string]string // one copy of each, as there may be many
	counts  Counts
}

// RecorderOptions have a usable zero value.
type RecorderOptions struct {
	Rate    int // requests a second, on the whole fleet; 0 for 200
	Clients int // in each group; 0 for 32
}

// Counts are what came of a load so far.
type Counts struct{ Requests, Excused, Failed int }

// ClientHeader says which of a recorder's clients asks, as all come from one address.
const ClientHeader = "X-Client"

const (
	chunkSize   = 1 << 14
	sampleEvery = 500 * time.Millisecond
	// maxOpen bounds the requests under way: past it the machine cannot keep up,
	// and what is due is sent later.
	maxOpen = 4096
	patient = 10 * time.Second // that a client waits for an answer
)

// NewRecorder makes a recorder of a fleet, which asks nothing yet.
func NewRecorder(f *Fleet, o RecorderOptions) *Recorder {
	if o.Rate == 0 {
		o.Rate = 200
	}
	if o.Clients == 0 {
		o.Clients = 32
	}
	return &Recorder{
		RecorderOptions: o, fleet: f, start: time.Now(), errs: map[string]string{},
		client: &http.Client{
			Transport:     &http.Transport{MaxIdleConnsPerHost: 64, DisableCompression: true, Proxy: nil},
			Timeout:       patient,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
}

// Begun is the time that the recorded times count from.
func (r *Recorder) Begun() time.Time { return r.start }

// Start begins to ask. Every instance must serve already, or be noted as down.
func (r *Recorder) Start() {
	ctx, cancel := context.WithCancel(context.Background())
	r.stop = cancel
	r.done.Go(func() { r.send(ctx) })
	for _, i := range r.fleet.Instances {
		r.done.Go(func() { r.watch(ctx, i) })
	}
}

// Stop ends the load and waits for the last answers.
func (r *Recorder) Stop() {
	if r.stop != nil {
		r.stop()
	}
	r.done.Wait()
	r.client.CloseIdleConnections()
}

// Counts tells what came of the load so far.
func (r *Recorder) Counts() Counts {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.counts
}

// Answers gives every answer that came so far, in the order in which they came.
func (r *Recorder) Answers() iter.Seq[*history.Response] {
	r.mu.Lock()
	chunks := slices.Clone(r.chunks) // what is in them already changes no more
	r.mu.Unlock()
	return func(yield func(*history.Response) bool) {
		for _, c := range chunks {
			for i := range c {
				if !yield(&c[i]) {
					return
				}
			}
		}
	}
}

// Samples gives what the instances said so far, in the order of asking.
func (r *Recorder) Samples() []history.Sample {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := slices.Clone(r.samples)
	slices.SortStableFunc(out, func(a, b history.Sample) int { return int(a.Asked - b.Asked) })
	return out
}

// An asker is one client: it asks the instances of its group in turn.
type asker struct {
	id    int32
	among []*Instance
	turn  int
}

func (r *Recorder) askers() []*asker {
	groups := map[string][]*Instance{}
	var names []string
	for _, i := range r.fleet.Instances {
		if groups[i.Group] == nil {
			names = append(names, i.Group)
		}
		groups[i.Group] = append(groups[i.Group], i)
	}
	var out []*asker
	for n := range r.Clients {
		for _, g := range names {
			out = append(out, &asker{id: int32(len(out)), among: groups[g], turn: n})
		}
	}
	return out
}

// send gives each request its client, in turn, when it is due.
func (r *Recorder) send(ctx context.Context) {
	askers := r.askers()
	var open sync.WaitGroup
	defer open.Wait()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	began := time.Now()
	for sent := 0; ; {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			for due := int(now.Sub(began).Seconds() * float64(r.Rate)); sent < due && r.opened.Load() < maxOpen; sent++ {
				a, path := askers[sent%len(askers)], "/own"
				i := a.among[a.turn%len(a.among)]
				// Each client asks each instance for each route.
				if a.turn/len(a.among)%4 == 3 {
					path = "/echo/" + strconv.Itoa(sent)
				}
				a.turn++
				r.opened.Add(1)
				open.Go(func() {
					defer r.opened.Add(-1)
					r.keep(r.ask(a.id, i, path), i)
				})
			}
		}
	}
}

// ask sends one request and looks at its answer.
func (r *Recorder) ask(client int32, i *Instance, path string) history.Response {
	p := history.Response{Client: client, Instance: i.Instance, Group: i.Group}
	p.Route, _, _ = strings.Cut(path[1:], "/")
	req, err := http.NewRequest(http.MethodGet, "http://"+i.HTTP+path, nil)
	if err != nil {
		panic(err) // the address is ours
	}
	req.Header.Set(ClientHeader, strconv.Itoa(int(client)))
	p.Asked = time.Since(r.start)
	resp, err := r.client.Do(req)
	if err != nil {
		p.Fault, p.Err = history.FaultFailed, err.Error()
		return p
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	p.Status = int16(resp.StatusCode)
	switch {
	case err != nil:
		p.Fault, p.Err = history.FaultFailed, "read the body: "+err.Error()
	case resp.StatusCode == http.StatusNotFound:
		p.Fault, p.Err = history.FaultNoRoute, fmt.Sprintf("%s: %s", p.Route, resp.Status)
	case resp.StatusCode != http.StatusOK:
		p.Fault, p.Err = history.FaultFailed, fmt.Sprintf("%s: %s: %.80s", p.Route, resp.Status, body)
	default:
		readMarks(&p, path, resp.Header, string(body))
	}
	return p
}

// readMarks reads which revision an answer says that it is of, in all places
// where it says so.
func readMarks(p *history.Response, path string, h http.Header, body string) {
	bad := func(fault history.Fault, format string, args ...any) {
		p.Fault, p.Err = fault, fmt.Sprintf(format, args...)
	}
	var err, err2 error
	p.Epoch, err = strconv.ParseInt(h.Get("Routerd-Epoch"), 10, 64)
	p.Revision, err2 = strconv.ParseInt(h.Get("Routerd-Revision"), 10, 64)
	own, at, _ := strings.Cut(body, " ")
	name, route, _ := strings.Cut(strings.TrimPrefix(h.Get("Routerd-Route"), "marked/"), "-")
	switch mark, err3 := strconv.ParseInt(own, 10, 32); {
	case h.Get("Routerd-Instance") != p.Instance:
		bad(history.FaultFailed, "answered by %q", h.Get("Routerd-Instance"))
	case h.Get("Routerd-Group") != p.Group:
		bad(history.FaultFailed, "answered by group %q", h.Get("Routerd-Group"))
	case err != nil || err2 != nil || err3 != nil:
		bad(history.FaultFailed, "epoch %q, revision %q, mark %.20q", h.Get("Routerd-Epoch"), h.Get("Routerd-Revision"), own)
	case at != path:
		bad(history.FaultFailed, "asked for %q, the answer is of %.40q", path, at) // I8
	case name != p.Route:
		bad(history.FaultFailed, "route %q answered %s", h.Get("Routerd-Route"), path)
	case own != route || own != h.Get("X-Mark"):
		bad(history.FaultMixed, "%s: mark %s in the body, %s in the route's name, %s in the header, revision %d", p.Route, own, route, h.Get("X-Mark"), p.Revision)
	default:
		p.Mark = int32(mark)
	}
}

// keep records an answer at the moment it came, in the order of these moments.
func (r *Recorder) keep(p history.Response, i *Instance) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p.Got = time.Since(r.start)
	r.counts.Requests++
	if p.Fault != history.FaultNone {
		p.Excused = i.Excused(r.start.Add(p.Asked), r.start.Add(p.Got))
		if known, ok := r.errs[p.Err]; ok {
			p.Err = known
		} else if len(r.errs) < 1000 {
			r.errs[p.Err] = p.Err
		}
		if p.Excused {
			r.counts.Excused++
		} else {
			r.counts.Failed++
		}
	}
	last := len(r.chunks) - 1
	if last < 0 || len(r.chunks[last]) == chunkSize {
		r.chunks = append(r.chunks, make([]history.Response, 0, chunkSize))
		last++
	}
	r.chunks[last] = append(r.chunks[last], p)
}

// watch asks an instance what it does. Who does not answer is not counted:
// that is what the load is for.
func (r *Recorder) watch(ctx context.Context, i *Instance) {
	tick := time.NewTicker(sampleEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		asked := time.Since(r.start)
		st, err := r.status(ctx, i)
		if err != nil {
			continue
		}
		s := history.Sample{
			Asked: asked, Got: time.Since(r.start), Instance: i.Instance, Group: i.Group, Unreachable: !st.Etcd.Reachable,
		}
		if v := st.Serving; v != nil {
			s.Epoch, s.Revision, s.Digest = v.Epoch, v.Revision, v.Digest
			s.Fallback = v.Fallback || !st.Pinned.IsZero()
		}
		r.mu.Lock()
		r.samples = append(r.samples, s)
		r.mu.Unlock()
	}
}

// status asks as Instance.Status does, and waits no longer for a paused
// instance than the load does.
func (r *Recorder) status(ctx context.Context, i *Instance) (st agent.Status, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+i.Admin+"/v1/status", nil)
	if err != nil {
		return st, err
	}
	resp, err := r.client.Do(req)
	if err != nil {
		return st, err
	}
	defer resp.Body.Close()
	return st, json.NewDecoder(resp.Body).Decode(&st)
}

// acknowledged notes a publish that succeeded, by what routectl said of it.
func (w *World) acknowledged(message, out string) error {
	a := history.Ack{At: time.Now(), Message: message}
	if err := json.Unmarshal([]byte(out), &a); err != nil {
		return fmt.Errorf("publish -o json: %w: %s", err, out)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.acked = append(w.acked, a)
	return nil
}

// Acked lists the publishes that succeeded.
func (w *World) Acked() []history.Ack {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.acked)
}

// Skew notes that an instance's clock is not the test's, or was not: the times
// of its log prove nothing.
func (w *World) Skew(instance string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.skewed == nil {
		w.skewed = map[string]bool{}
	}
	w.skewed[instance] = true
}

// Skewed are the instances that Skew was called for.
func (w *World) Skewed() map[string]bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return maps.Clone(w.skewed)
}
