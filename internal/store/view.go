package store

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"routerd.dev/internal/rollout"
	"routerd.dev/internal/version"
)

// cache spares a View what cannot have changed: revisions are immutable, and
// what thousands of instances say is decoded again only where its bytes are others.
type cache struct {
	mu        sync.Mutex
	revisions map[version.Ref]version.Revision
	decoded   map[string]decoded // by key: those of the last View, never changed
}

// decoded is a record with the bytes it was decoded from. Views share it.
type decoded struct {
	raw []byte
	v   any
}

// View reads every record that decides what happens next at one revision of
// etcd, linearizably. Records that cannot be read are left out and logged; see
// ViewBroken. Only an unreadable or missing fleet is an error; with ErrCorrupt the
// View has everything but the fleet, for who puts that back.
func (s *Store) View(ctx context.Context) (*rollout.View, error) {
	v, broken, err := s.ViewBroken(ctx)
	for _, b := range broken {
		s.log.Error("unreadable record left out", "key", b.Key, "why", b.Why)
	}
	return v, err
}

// ViewBroken is View, and names the records that it left out. When a group's
// assignment is unreadable, the group's instances, prepare and reports are left
// out with it, so that nobody takes it for a group that serves nothing yet.
func (s *Store) ViewBroken(ctx context.Context) (*rollout.View, []Broken, error) {
	r := viewReader{s: s, v: &rollout.View{}, is: map[string]decoded{}}
	dirs := r.dirs()
	ops := []clientv3.Op{clientv3.OpGet(s.key(keyFormat)), clientv3.OpGet(s.key(keyFleet))}
	first := len(ops)
	for _, d := range dirs {
		ops = append(ops, clientv3.OpGet(s.key(d.dir), clientv3.WithPrefix()))
	}
	resp, err := s.txn(ctx, "read view", s.cfg.Prefix, nil, ops, nil)
	if err != nil {
		return nil, nil, err
	}
	formatKV, fleetKV := onlyKV(resp, 0), onlyKV(resp, 1)
	if formatKV == nil {
		return nil, nil, fmt.Errorf("read view: %w", s.notInitialized())
	}
	format, err := decodeFormat(s.key(keyFormat), formatKV.Value)
	if err != nil {
		return nil, nil, err
	}
	r.v.At, r.was = resp.Header.Revision, s.cache.take()
	var noFleet error
	r.v.Fleet, noFleet = s.decodeFleet(fleetKV, format.FleetID)
	for _, err := range boundSettings(&r.v.Fleet.Settings) {
		r.report(fleetKV, fmt.Sprintf("settings: %v; its default stands: set it with routectl settings", err))
	}
	for i, d := range dirs {
		d.take(resp.Responses[first+i].GetResponseRange().Kvs)
	}
	s.cache.put(r.is)
	if err := r.measures(ctx); err != nil {
		return nil, nil, err
	}
	if err := r.revisions(ctx); err != nil {
		return nil, nil, err
	}
	return r.v, r.broken, noFleet
}

// viewReader turns keys and values into a View.
type viewReader struct {
	s      *Store
	v      *rollout.View
	broken []Broken
	hidden map[string]bool // groups whose assignment is unreadable
	bound  map[string]binding

	was, is map[string]decoded // what the View before decoded, and this one
}

// A viewDir is one kind of record, and what makes it a part of the View.
type viewDir struct {
	dir  string
	take func([]*mvccpb.KeyValue)
}

// dirs are in the order in which they are taken: some leave out what those
// before them say is not to be believed.
func (r *viewReader) dirs() []viewDir {
	return []viewDir{
		{dirBound, r.bindings},
		{dirGroups, r.groups},
		{dirPrepares, r.prepares},
		{dirReady, r.ready},
		{dirInstances, r.instances},
		{dirReports, r.reports},
		{dirIntents, r.intents},
		{dirRollouts, r.rollouts},
		{dirCondemned, r.condemned},
		{dirServed, func(kvs []*mvccpb.KeyValue) { r.v.Served = r.marks(dirServed, kvs) }},
		{dirBaked, func(kvs []*mvccpb.KeyValue) { r.v.Baked = r.marks(dirBaked, kvs) }},
		{dirStrategies, r.strategies},
		{dirChecks, r.checks},
	}
}

func (c *cache) take() map[string]decoded {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.decoded
}

func (c *cache) put(is map[string]decoded) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.decoded = is
}

func (r *viewReader) report(kv *mvccpb.KeyValue, why string) {
	r.broken = append(r.broken, Broken{Key: shown(string(kv.Key)), Why: why})
}

// wellNamed reports a record whose name nobody may have: it would reach terminals.
func (r *viewReader) wellNamed(kv *mvccpb.KeyValue, what, name string) bool {
	err := CheckName(what, name)
	if err != nil {
		r.report(kv, err.Error())
	}
	return err == nil
}

// record decodes kv into a T and reports it if it is not what its key says:
// named gives the name that the record itself bears.
func record[T any](r *viewReader, kv *mvccpb.KeyValue, dir string, named func(*T) string) (name string, v T, ok bool) {
	name = r.s.name(string(kv.Key), dir)
	if err := json.Unmarshal(kv.Value, &v); err != nil {
		r.report(kv, err.Error())
		return name, v, false
	}
	if n := named(&v); n != name {
		r.report(kv, fmt.Sprintf("the record is of %q", n))
		return name, v, false
	}
	return name, v, true
}

// recordOnce is record for what there are thousands of: it is shared with the
// View before while its bytes are the same. Nobody changes what a View holds.
func recordOnce[T any](r *viewReader, kv *mvccpb.KeyValue, dir string, named func(*T) string) (name string, v T, ok bool) {
	key := string(kv.Key)
	if d, known := r.was[key]; known && bytes.Equal(d.raw, kv.Value) {
		if v, ok = d.v.(T); ok {
			r.is[key] = d
			return r.s.name(key, dir), v, true
		}
	}
	if name, v, ok = record(r, kv, dir, named); ok {
		r.is[key] = decoded{raw: slices.Clone(kv.Value), v: v}
	}
	return name, v, ok
}

func (r *viewReader) groups(kvs []*mvccpb.KeyValue) {
	r.v.Groups = make(map[string]rollout.Assignment, len(kvs))
	r.hidden = map[string]bool{}
	for _, kv := range kvs {
		name, a, ok := record(r, kv, dirGroups, func(a *rollout.Assignment) string { return a.Group })
		if !ok {
			r.hidden[name] = true
			continue
		}
		if !r.wellNamed(kv, "group", name) {
			continue
		}
		if err := checkEpoch(a.Epoch); err != nil {
			r.report(kv, err.Error())
			r.hidden[name] = true
			continue
		}
		r.v.Groups[name] = a
	}
}

func (r *viewReader) prepares(kvs []*mvccpb.KeyValue) {
	r.v.Prepares = make(map[string]rollout.Prepare, len(kvs))
	for _, kv := range kvs {
		if name, p, ok := record(r, kv, dirPrepares, func(p *rollout.Prepare) string { return p.Group }); ok && !r.hidden[name] && r.wellNamed(kv, "group", name) {
			r.v.Prepares[name] = p
		}
	}
}

func (r *viewReader) ready(kvs []*mvccpb.KeyValue) {
	r.v.Ready = map[string]map[string]rollout.Ready{}
	for _, kv := range kvs {
		group, instance, ok := strings.Cut(r.s.name(string(kv.Key), dirReady), "/")
		if !ok || group == "" || instance == "" {
			r.report(kv, "the key is not ready/<group>/<instance>: nobody writes it, delete it")
		}
		// One without an instance, or with a name that none may have, is in the
		// range that a commit compares: what the commit waits for must be seen.
		if !ok || group == "" {
			continue
		}
		if r.hidden[group] || !r.wellNamed(kv, "group", group) {
			continue
		}
		if instance != "" && !r.wellNamed(kv, "instance", instance) {
			instance = strconv.Quote(instance) // which is nobody's name
		}
		if r.v.Ready[group] == nil {
			r.v.Ready[group] = map[string]rollout.Ready{}
		}
		r.v.Ready[group][instance] = decodeReady(group, instance, string(kv.Value))
	}
}

func (r *viewReader) instances(kvs []*mvccpb.KeyValue) {
	r.v.Instances = make(map[string]rollout.Instance, len(kvs))
	for _, kv := range kvs {
		name, i, ok := recordOnce(r, kv, dirInstances, func(i *rollout.Instance) string { return i.Instance })
		if !ok || r.hidden[i.Group] {
			continue
		}
		if !r.wellNamed(kv, "instance", name) || !r.wellNamed(kv, "group", i.Group) { // a group would be made of it
			continue
		}
		if why := r.bound[name].foreign(i.Group); why != "" {
			r.report(kv, "refused: "+why)
			continue
		}
		r.v.Instances[name] = i
	}
}

func (r *viewReader) reports(kvs []*mvccpb.KeyValue) {
	r.v.Reports = make(map[string]rollout.Report, len(kvs))
	for _, kv := range kvs {
		name, p, ok := recordOnce(r, kv, dirReports, func(p *rollout.Report) string { return p.Instance })
		if !ok || r.hidden[p.Group] || !r.wellNamed(kv, "instance", name) || !r.wellNamed(kv, "group", p.Group) {
			continue
		}
		if !credible(&p, r.v.Groups[p.Group].Epoch, max(r.v.Fleet.Target.Number, r.v.Fleet.Committed.Number)) {
			r.report(kv, fmt.Sprintf("epoch %d, revision %d: no fleet counted so far", p.HighestEpoch, p.HighestRevision))
			continue
		}
		if why := r.bound[name].foreign(p.Group); why != "" {
			r.report(kv, "refused: "+why)
			continue
		}
		if i, known := r.v.Instances[name]; known && i.Group != p.Group { // it could freeze a group that is not its own
			r.report(kv, fmt.Sprintf("the instance is of group %q, its report of %q", i.Group, p.Group))
			continue
		}
		r.v.Reports[name] = p
	}
}

// credible tells whether a fleet can have counted as far as an instance says,
// where etcd knows so much: an etcd that was restored is behind, but not by
// more than a fleet counts in a century. The fleet's own numbers exceed what is
// believed: one false report must not bring them to where true ones are not
// believed any more.
func credible(r *rollout.Report, epoch, revision int64) bool {
	return 0 <= r.HighestEpoch && r.HighestEpoch <= Believable(epoch) && 0 <= r.HighestRevision && r.HighestRevision <= Believable(revision)
}

// intents lists them in the order in which etcd took them: the clocks of those
// who asked do not agree, and the target is that of who came last.
func (r *viewReader) intents(kvs []*mvccpb.KeyValue) {
	slices.SortFunc(kvs, func(a, b *mvccpb.KeyValue) int { return cmp.Compare(a.CreateRevision, b.CreateRevision) })
	for _, kv := range kvs {
		if len(kv.Value) > maxIntent {
			r.report(kv, fmt.Sprintf("the intent has %d bytes, at most %d are allowed", len(kv.Value), maxIntent))
			continue
		}
		if _, i, ok := record(r, kv, dirIntents, func(i *rollout.Intent) string { return i.ID }); ok {
			r.v.Intents = append(r.v.Intents, i)
		}
	}
}

func (r *viewReader) rollouts(kvs []*mvccpb.KeyValue) {
	for _, kv := range kvs {
		_, o, ok := record(r, kv, dirRollouts, func(o *rollout.Rollout) string { return o.ID })
		if !ok || o.Phase.Final() {
			continue
		}
		if why := impossible(&o); why != "" {
			r.report(kv, why)
			continue
		}
		r.v.Rollouts = append(r.v.Rollouts, o)
	}
	slices.SortFunc(r.v.Rollouts, func(a, b rollout.Rollout) int {
		return cmp.Or(a.Started.Compare(b.Started), cmp.Compare(a.ID, b.ID))
	})
}

// impossible says what no controller writes into a rollout, and none could go
// on from; empty for one that can be played.
func impossible(o *rollout.Rollout) string {
	if o.Phase == rollout.PhaseReturning && o.Return == nil {
		return "it goes back, and does not say since when"
	}
	if o.Plan == nil {
		return ""
	}
	at, waves := o.Cursor, o.Plan.Waves
	over := at.Wave == len(waves) && at.Step == 0
	if !over && (at.Wave < 0 || at.Wave >= len(waves) || at.Step < 0 || at.Step >= len(waves[at.Wave].Steps)) {
		return fmt.Sprintf("it is at wave %d, step %d: its plan has no such step", at.Wave, at.Step)
	}
	return ""
}

func (r *viewReader) condemned(kvs []*mvccpb.KeyValue) {
	r.v.Condemned = make(map[version.Digest]rollout.Condemned, len(kvs))
	for _, kv := range kvs {
		if _, c, ok := record(r, kv, dirCondemned, func(c *rollout.Condemned) string { return c.Digest.String() }); ok {
			r.v.Condemned[c.Digest] = c
		}
	}
}

// marks are the digests that have a key under dir.
func (r *viewReader) marks(dir string, kvs []*mvccpb.KeyValue) map[version.Digest]bool {
	marked := make(map[version.Digest]bool, len(kvs))
	for _, kv := range kvs {
		d, err := version.ParseDigest(r.s.name(string(kv.Key), dir))
		if err != nil {
			r.report(kv, err.Error())
			continue
		}
		marked[d] = true
	}
	return marked
}

// A ready key's value is exactly the nonce, so that one range compare can say
// that a whole group holds it.
// What is no nonce has a space in it, or is none: a nonce is neither.
const readyNone, readyRefused, readyEvicted, readyLacks = "none", "refused ", "evicted ", "lacks "

func encodeReady(r rollout.Ready) string {
	switch {
	case r.Refused:
		return readyRefused + string(r.Nonce) + " " + r.Why
	case r.Evicted:
		return strings.TrimSuffix(readyEvicted+string(r.Nonce)+" "+encodeLacks(r.Lacks), " ")
	case len(r.Lacks) > 0:
		return readyLacks + string(r.Nonce) + " " + encodeLacks(r.Lacks)
	case r.Nonce == "":
		return readyNone
	}
	return string(r.Nonce)
}

// boundWhy bounds a reason when it is written, and when it is read: a foreign
// build may have written it, and it goes into the controller's transaction.
func boundWhy(why string) string {
	if len(why) <= maxWhy+len("…") {
		return why
	}
	return strings.ToValidUTF8(why[:maxWhy], "") + "…"
}

// mostLacks is more than a set has.
const mostLacks = 32

func encodeLacks(ds []version.Digest) string {
	out := make([]string, len(ds))
	for i, d := range ds {
		out[i] = d.String()
	}
	return strings.Join(out, ",")
}

// decodeLacks returns nil for what cannot be read, or is none.
func decodeLacks(list string) (ds []version.Digest) {
	for text := range strings.SplitSeq(list, ",") {
		d, err := version.ParseDigest(text)
		if err != nil || len(ds) == mostLacks {
			return nil
		}
		ds = append(ds, d)
	}
	return ds
}

func decodeReady(group, instance, value string) rollout.Ready {
	r := rollout.Ready{Instance: instance, Group: group}
	refusal, refused := strings.CutPrefix(value, readyRefused)
	left, evicted := strings.CutPrefix(value, readyEvicted)
	lacks, some := strings.CutPrefix(value, readyLacks)
	switch {
	case refused:
		nonce, why, _ := strings.Cut(refusal, " ")
		r.Nonce, r.Refused, r.Why = rollout.Nonce(nonce), true, boundWhy(why)
	case evicted:
		nonce, list, _ := strings.Cut(left, " ")
		r.Nonce, r.Evicted, r.Lacks = rollout.Nonce(nonce), true, decodeLacks(list)
	case some:
		nonce, list, _ := strings.Cut(lacks, " ")
		if r.Lacks = decodeLacks(list); r.Lacks != nil { // else nobody knows what it holds
			r.Nonce = rollout.Nonce(nonce)
		}
	case value != readyNone:
		r.Nonce = rollout.Nonce(value)
	}
	return r
}
