package store

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// A binding says of which group an instance's name is: bound/<instance> is the
// group's name. Instances may not write it, so that one whose credential was
// stolen cannot speak for another group: what it writes under its own keys only
// claims a group. A name without one is of the group it claims.
type binding struct{ instance, group string }

// ErrBound: an instance's name is of another group than it says.
var ErrBound = errors.New("its name is of another group")

// foreign tells why an instance cannot be of a group.
func (b binding) foreign(group string) string {
	if b.group == "" || b.group == group {
		return ""
	}
	return fmt.Sprintf("the name %s is of group %s, and says that it is of group %.80q: start it with --group %s, or move the name by "+
		"routectl etcd setup --instance %s=GROUP; if nobody started it so, its credential was stolen", b.instance, b.group, group, b.group, b.instance)
}

// bindings are left out where they cannot be read, and reported.
func (r *viewReader) bindings(kvs []*mvccpb.KeyValue) {
	r.bound = make(map[string]binding, len(kvs))
	for _, kv := range kvs {
		name, group := r.s.name(string(kv.Key), dirBound), string(kv.Value)
		if err := CheckName("group", group); err != nil {
			r.report(kv, err.Error())
			continue
		}
		r.bound[name] = binding{name, group}
	}
}

// checkBound fails with ErrBound if the instance's name is of another group. An
// instance whose role is older than bindings may not read that, and then others
// tell.
func (m *Membership) checkBound(ctx context.Context, what string) error {
	resp, err := m.s.get(ctx, what, m.s.key(dirBound+m.who.Instance))
	if errors.Is(err, ErrDenied) {
		return nil
	}
	if err != nil || len(resp.Kvs) == 0 {
		return err
	}
	b := binding{m.who.Instance, string(resp.Kvs[0].Value)}
	if err := CheckName("group", b.group); err != nil {
		return fmt.Errorf("%s: read %s: %w: %w", what, resp.Kvs[0].Key, ErrCorrupt, err)
	}
	if why := b.foreign(m.who.Group); why != "" {
		return fmt.Errorf("%s: %w: %s", what, ErrBound, why)
	}
	return nil
}

// readBindings finds of which groups the names are that are to be set up.
func (s *Store) readBindings(ctx context.Context, st *AccessState, o Setup) error {
	st.bound = map[string]string{}
	if len(o.Instances)+len(o.Controllers) == 0 {
		return nil
	}
	resp, err := s.get(ctx, "read the groups of instances", s.key(dirBound), clientv3.WithPrefix())
	if err != nil {
		return err
	}
	for _, kv := range resp.Kvs {
		st.bound[string(kv.Key)] = string(kv.Value)
	}
	return nil
}

// bind says of which group the instances are.
func (p *planner) bind() {
	groups := maps.Clone(p.o.Instances)
	if groups == nil {
		groups = map[string]string{}
	}
	maps.Copy(groups, p.o.Controllers)
	for _, name := range slices.Sorted(maps.Keys(groups)) {
		key := p.prefix + dirBound + name
		if p.st.bound[key] != groups[name] {
			p.give = append(p.give, AccessStep{Do: putKey, Grant: Grant{Key: key}, Value: groups[name]})
		}
	}
}
