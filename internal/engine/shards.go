package engine

import (
	"net/http"
	"strings"
	"sync/atomic"

	"routerd.dev/internal/analysis"
	"routerd.dev/internal/proxy"
)

// A routeCounter starts with one small shard, and gets one for each processor
// when it turns out to be busy: most routes of a large table are not.
type routeCounter struct {
	first quietShard
	more  atomic.Pointer[[]shard]
}

// busyFrom is how many requests of a class a route has in its first shard
// before it gets more. It keeps quietShard's 32 bits from running over.
const busyFrom = 4096

// busy returns the shards of a busy route, nil for a route that is not.
func (rc *routeCounter) busy(shards, class int) []shard {
	if more := rc.more.Load(); more != nil {
		return *more
	}
	if rc.first.status[class].Load() < busyFrom {
		return nil
	}
	more := make([]shard, shards)
	rc.more.CompareAndSwap(nil, &more)
	return *rc.more.Load()
}

func (rc *routeCounter) addTo(t *Totals) {
	rc.first.addTo(t)
	if more := rc.more.Load(); more != nil {
		for i := range *more {
			(*more)[i].addTo(t)
		}
	}
}

// An event is a request as it is counted.
type event struct {
	class         int
	marks         [marks]bool
	bucket        int
	in, out, took uint64
}

// What is counted of a request besides its class. A reading must not show a
// part that is larger than its whole: shards are written in this order, classes
// first, and read backwards.
const (
	markError = iota
	markConnect
	markPanic
	markNotFound
	markNotAllowed
	marks
)

func eventOf(r *Record) event {
	ev := event{
		class: r.Status / 100, bucket: analysis.BucketOf(r.Duration),
		in: uint64(max(r.BytesIn, 0)), out: uint64(max(r.BytesOut, 0)), took: uint64(max(r.Duration, 0)),
	}
	if ev.class < 0 || ev.class > 5 {
		ev.class = 0
	}
	switch {
	case r.Status == http.StatusNotFound:
		ev.marks[markNotFound] = true
	case r.Status == http.StatusMethodNotAllowed:
		ev.marks[markNotAllowed] = true
	}
	if r.Panic != nil {
		ev.marks[markPanic] = true
	}
	if r.Kind != "" && unconnected(r) {
		ev.marks[markConnect] = true
	}
	ev.marks[markError] = r.Status >= 500 || ev.marks[markPanic] || ev.marks[markConnect] || r.Kind != "" && cutOff(r)
	return ev
}

// unconnected tells whether no upstream took a connection, or none in time.
func unconnected(r *Record) bool {
	return r.Kind == proxy.KindConnect.String() ||
		r.Kind == proxy.KindTimeout.String() && r.Err != nil && strings.HasPrefix(r.Err.Error(), "connect: ")
}

// cutOff tells whether a response that had begun ended early because of its
// upstream. Tunnels have no end of their own, so that theirs says nothing.
func cutOff(r *Record) bool {
	if r.Upgraded {
		return false
	}
	switch r.Kind {
	case proxy.KindUpstreamReset.String(), proxy.KindBadResponse.String():
		return true
	case proxy.KindTimeout.String():
		return r.Err == nil || r.Err.Error() != clientStalled
	}
	return false
}

// clientStalled is what proxy says of a timeout that is the client's doing.
const clientStalled = "client stalled"

// A shard is written mostly by one processor. It fills whole cache lines.
type shard struct {
	status        [6]atomic.Uint64
	marks         [marks]atomic.Uint64
	in, out, took atomic.Uint64
	latency       [analysis.Buckets]atomic.Uint64
}

func (s *shard) add(ev *event) {
	s.status[ev.class].Add(1)
	for i, is := range ev.marks {
		if is {
			s.marks[i].Add(1)
		}
	}
	if ev.in > 0 {
		s.in.Add(ev.in)
	}
	if ev.out > 0 {
		s.out.Add(ev.out)
	}
	s.took.Add(ev.took)
	s.latency[ev.bucket].Add(1)
}

func (s *shard) addTo(t *Totals) {
	for i := range s.latency {
		t.Latency[i] += s.latency[i].Load()
	}
	t.addBytes(&s.in, &s.out, &s.took)
	for i := marks - 1; i >= 0; i-- {
		t.addMark(i, s.marks[i].Load())
	}
	for i := range s.status {
		t.Status[i] += s.status[i].Load()
	}
}

// A quietShard is a shard in half the memory.
type quietShard struct {
	status        [6]atomic.Uint32
	marks         [marks]atomic.Uint32
	latency       [analysis.Buckets]atomic.Uint32
	in, out, took atomic.Uint64
}

func (s *quietShard) add(ev *event) {
	s.status[ev.class].Add(1)
	for i, is := range ev.marks {
		if is {
			s.marks[i].Add(1)
		}
	}
	if ev.in > 0 {
		s.in.Add(ev.in)
	}
	if ev.out > 0 {
		s.out.Add(ev.out)
	}
	s.took.Add(ev.took)
	s.latency[ev.bucket].Add(1)
}

func (s *quietShard) addTo(t *Totals) {
	for i := range s.latency {
		t.Latency[i] += uint64(s.latency[i].Load())
	}
	t.addBytes(&s.in, &s.out, &s.took)
	for i := marks - 1; i >= 0; i-- {
		t.addMark(i, uint64(s.marks[i].Load()))
	}
	for i := range s.status {
		t.Status[i] += uint64(s.status[i].Load())
	}
}

func (t *Totals) addBytes(in, out, took *atomic.Uint64) {
	t.BytesIn += in.Load()
	t.BytesOut += out.Load()
	t.Nanos += took.Load()
}

func (t *Totals) addMark(mark int, n uint64) {
	switch mark {
	case markError:
		t.Errors += n
	case markConnect:
		t.Connect += n
	case markPanic:
		t.Panics += n
	case markNotFound:
		t.NotFound += n
	case markNotAllowed:
		t.NotAllowed += n
	}
}
