package simulate

import (
	"encoding/binary"
	"math"
	"reflect"
	"slices"
	"sync"
	"time"

	"routerd.dev/internal/analysis"
	"routerd.dev/internal/rollout"
	"routerd.dev/internal/version"
)

// The longest that something in the past is told apart from what was before it:
// longer than any deadline of the plans that are explored.
const past = 20 * time.Second

// canonical appends bytes that are equal for two fleets only if they go on
// alike. Left out is what nothing follows from: texts for people, when things
// began and ended, and the deposed controller's change, which every state tries
// to write.
func (f *Fleet) canonical(buf []byte) []byte {
	e := encoder{buf: buf, now: int64(f.now.Sub(start))}
	e.add(noteOf(f.whole, f.fleet))
	e.add(noteOf(f.groups.note, f.groups.m))
	e.add(noteOf(f.prepares.note, f.prepares.m))
	e.add(noteOf(f.ready.note, f.ready.m))
	e.add(noteOf(f.instances.note, f.instances.m))
	e.add(noteOf(f.reports.note, f.reports.m))
	e.add(noteOf(f.measures.note, f.measures.m))
	e.add(noteOf(f.checks.note, f.checks.m))
	e.add(noteOf(f.condemned.note, f.condemned.m))
	e.add(noteOf(f.served.note, f.served.m))
	e.add(noteOf(f.baked.note, f.baked.m))
	for i := range f.intents {
		e.add(noteOf(new(note), f.intents[i]))
	}
	e.add(noteOf(f.active, f.rollouts))
	for _, id := range sorted(f.ended.m) {
		e.buf = append(append(e.buf, id...), f.ended.m[id].Phase...)
	}
	for _, p := range f.procs {
		m := f.mods.m[p.group]
		e.flag(p.at.assignment == m.assignment, p.at.prepare == m.prepare, f.keysStand(p))
		e.add(f.noteOfProcess(p))
	}
	if p := f.pending; p != nil {
		e.flag(true, f.moved > p.at)
		for _, g := range p.change.Settled {
			late := false
			for k, at := range f.saidAt.m {
				late = late || k.group == g && at > p.at
			}
			e.flag(late)
		}
		e.add(noteOf(&p.note, p.change))
	}
	return e.buf
}

// An encoder puts notes together.
type encoder struct {
	buf    []byte
	now    int64
	nonces []rollout.Nonce
}

func (e *encoder) flag(bs ...bool) {
	for _, b := range bs {
		if b {
			e.buf = append(e.buf, 1)
		} else {
			e.buf = append(e.buf, 0)
		}
	}
}

func (e *encoder) add(n *note) {
	e.buf = binary.AppendUvarint(e.buf, uint64(len(n.bytes)))
	e.buf = append(e.buf, n.bytes...)
	for _, m := range n.marks {
		if m.nonce == "" {
			e.buf = binary.AppendVarint(e.buf, max(m.at-e.now, -int64(past)))
			continue
		}
		i := slices.Index(e.nonces, m.nonce)
		if i < 0 {
			i = len(e.nonces)
			e.nonces = append(e.nonces, m.nonce)
		}
		e.buf = binary.AppendUvarint(e.buf, uint64(i))
	}
}

var nothing = note{done: true, bytes: []byte{0}}

// noteOf fills n, unless that was done.
func noteOf(n *note, v any) *note {
	if n == nil {
		return &nothing // of what never had anything in it
	}
	if !n.done {
		n.value(reflect.ValueOf(v))
		n.done = true
	}
	return n
}

// noteOfProcess leaves out what is told by how it compares with etcd.
func (f *Fleet) noteOfProcess(p *process) *note {
	n := p.note
	if n.done {
		return n
	}
	n.done = true
	n.bytes = append(n.bytes, p.name...)
	n.bool(p.up)
	n.bool(p.joined)
	n.bool(p.admitted)
	n.bool(p.frozen)
	n.bool(p.away)
	n.bool(p.saw)
	n.bool(p.sent)
	n.value(reflect.ValueOf(rollout.Nonce(p.boot)))
	n.value(reflect.ValueOf(p.want))
	n.value(reflect.ValueOf(p.asks))
	n.value(reflect.ValueOf(p.serving))
	n.value(reflect.ValueOf(p.said))
	n.bytes = binary.AppendUvarint(n.bytes, uint64(p.holds))
	n.bytes = binary.AppendUvarint(n.bytes, uint64(p.lost))
	for _, x := range p.failed {
		n.bytes = binary.AppendUvarint(n.bytes, uint64(x.number))
		n.value(reflect.ValueOf(x.nonce))
	}
	n.bytes = append(n.bytes, 0)
	for _, v := range []int64{p.floor, p.highest, p.told.epoch, p.told.number, p.told.candidate, p.told.highest} {
		n.bytes = binary.AppendVarint(n.bytes, v)
	}
	n.bool(p.told.evicted)
	n.bool(p.told.frozen)
	n.value(reflect.ValueOf(p.told.nonce))
	n.value(reflect.ValueOf(p.crashes.m))
	return n
}

func (n *note) bool(b bool) {
	if b {
		n.bytes = append(n.bytes, 1)
	} else {
		n.bytes = append(n.bytes, 0)
	}
}

// unread are the fields from which nothing follows.
var unread = map[reflect.Type][]string{
	reflect.TypeFor[rollout.Assignment](): {"Instant"},
	reflect.TypeFor[rollout.Rollout]():    {"Started", "Ended"},
	reflect.TypeFor[analysis.Result]():    {"Why", "Findings"},
	reflect.TypeFor[rollout.Intent]():     {"Time", "By", "Message"},
	reflect.TypeFor[rollout.Instance]():   {"Started", "Former"},
	reflect.TypeFor[rollout.Report]():     {"Time", "Preparing"},
	reflect.TypeFor[rollout.Serving]():    {"Since"},
	reflect.TypeFor[rollout.Condemned]():  {"Why", "Time"},
	reflect.TypeFor[rollout.Hold]():       {"Since"},
	reflect.TypeFor[rollout.Return]():     {"Evidence"},
	reflect.TypeFor[rollout.Change]():     {"Audit"},
}

// layouts are what fieldsOf found: []field by reflect.Type.
var layouts sync.Map

var (
	timeType   = reflect.TypeFor[time.Time]()
	nonceType  = reflect.TypeFor[rollout.Nonce]()
	sampleType = reflect.TypeFor[analysis.Sample]()
	digestType = reflect.TypeFor[version.Digest]()
)

// value appends v: every field of every record, so that one that is added is
// not forgotten, but for those that are unread.
func (n *note) value(v reflect.Value) {
	switch t := v.Type(); {
	case t == timeType:
		n.time(v.Interface().(time.Time))
		return
	case t == nonceType:
		n.bool(v.Len() > 0)
		if v.Len() > 0 {
			n.marks = append(n.marks, mark{nonce: rollout.Nonce(v.String())})
		}
		return
	case t == digestType:
		d := v.Interface().(version.Digest)
		n.bytes = append(n.bytes, d[:8]...)
		return
	}
	if t := v.Type(); t == sampleType {
		s := v.Interface().(analysis.Sample) // All that explorations tell apart, of more than a thousand figures.
		n.bytes = binary.AppendUvarint(binary.AppendUvarint(n.bytes, s.All.Candidate.Requests), s.All.Candidate.Errors)
		return
	}
	switch v.Kind() {
	case reflect.Bool:
		n.bool(v.Bool())
	case reflect.Int, reflect.Int64, reflect.Int32, reflect.Int16, reflect.Int8:
		n.bytes = binary.AppendVarint(n.bytes, v.Int())
	case reflect.Uint64, reflect.Uint8, reflect.Uint, reflect.Uint32:
		n.bytes = binary.AppendUvarint(n.bytes, v.Uint())
	case reflect.Float64:
		n.bytes = binary.BigEndian.AppendUint64(n.bytes, math.Float64bits(v.Float()))
	case reflect.String:
		n.bytes = append(binary.AppendUvarint(n.bytes, uint64(v.Len())), v.String()...)
	case reflect.Slice, reflect.Array:
		n.bytes = binary.AppendUvarint(n.bytes, uint64(v.Len()))
		for i := range v.Len() {
			n.value(v.Index(i))
		}
	case reflect.Map:
		n.mapping(v)
	case reflect.Pointer:
		n.bool(!v.IsNil())
		if !v.IsNil() {
			n.value(v.Elem())
		}
	case reflect.Struct:
		for _, x := range fieldsOf(v.Type()) {
			if x.boot {
				n.value(reflect.ValueOf(rollout.Nonce(v.Field(x.i).String())))
				continue
			}
			n.value(v.Field(x.i))
		}
	default:
		panic("no canonical form of " + v.Type().String()) // a record got a new kind of field
	}
}

// A field is one that counts. Boot ids are told apart like nonces; salts are not, because who is a canary follows from them.
type field struct {
	i    int
	boot bool
}

func fieldsOf(t reflect.Type) []field {
	if known, ok := layouts.Load(t); ok {
		return known.([]field)
	}
	skip := unread[t]
	var out []field
	for i := range t.NumField() {
		if name := t.Field(i).Name; !slices.Contains(skip, name) {
			out = append(out, field{i: i, boot: name == "Boot" || name == "FirstBoot"})
		}
	}
	layouts.Store(t, out)
	return out
}

func (n *note) time(t time.Time) {
	n.bool(!t.IsZero())
	if !t.IsZero() {
		n.marks = append(n.marks, mark{at: int64(t.Sub(start))})
	}
}

func (n *note) mapping(v reflect.Value) {
	type entry struct {
		key   string
		value reflect.Value
	}
	entries := make([]entry, 0, v.Len())
	for it := v.MapRange(); it.Next(); {
		var k note
		k.value(it.Key())
		entries = append(entries, entry{string(k.bytes), it.Value()})
	}
	slices.SortFunc(entries, func(a, b entry) int {
		switch {
		case a.key < b.key:
			return -1
		case a.key > b.key:
			return 1
		}
		return 0
	})
	n.bytes = binary.AppendUvarint(n.bytes, uint64(len(entries)))
	for _, x := range entries {
		n.bytes = append(n.bytes, x.key...)
		n.value(x.value)
	}
}
