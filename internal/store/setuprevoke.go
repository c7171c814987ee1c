package store

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// roleRevoked and a name is an empty role: the mark of who was revoked. It is a
// role and no key, so that neither an operator nor who deletes all of a fleet's
// keys takes it away.
const roleRevoked = "revoked:"

// Revoked are the names that were revoked in the fleet under prefix and not
// reinstated, in order.
func (st AccessState) Revoked(prefix string) []string {
	names := []string{}
	for role := range st.Roles {
		if name, ok := strings.CutPrefix(role, prefix+roleRevoked); ok {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// settle has marks count: who was revoked before is revoked again, and whoever
// names him for something is told of it and not followed. Run again and again with
// the same names, as by a container that starts, setup must not bring a thief back.
func (o *Setup) settle(prefix string, st AccessState) (out []string) {
	for _, name := range st.Revoked(prefix) {
		if slices.Contains(o.Reinstate, name) {
			continue
		}
		if !slices.Contains(o.Revoke, name) {
			o.Revoke = append(slices.Clone(o.Revoke), name)
		}
	}
	for _, name := range o.Access.Users() {
		if slices.Contains(o.Revoke, name) {
			out = append(out, name)
		}
	}
	o.Access = o.Access.without(out)
	return out
}

// without is a without these names, but for Revoke and Reinstate.
func (a Access) without(names []string) Access {
	if len(names) == 0 {
		return a
	}
	a.Instances, a.Controllers = maps.Clone(a.Instances), maps.Clone(a.Controllers)
	for _, name := range names {
		delete(a.Instances, name)
		delete(a.Controllers, name)
	}
	for _, list := range []*[]string{&a.Publishers, &a.Collectors, &a.Operators, &a.Readers} {
		*list = slices.DeleteFunc(slices.Clone(*list), func(name string) bool { return slices.Contains(names, name) })
	}
	return a
}

// checkRevoked finds every name to revoke that nobody has in this fleet: a
// mistyped one, or one of another fleet, must not look as if it were done.
func (o Setup) checkRevoked(prefix string, st AccessState) error {
	known := map[string]bool{}
	for _, name := range slices.Concat(slices.Collect(maps.Keys(st.Users)), st.Revoked(prefix)) {
		known[name] = true
	}
	for role := range st.Roles {
		if name, ok := strings.CutPrefix(role, prefix+roleInstance); ok {
			known[name] = true
		}
	}
	for _, key := range st.left {
		known[key[strings.LastIndexByte(key, '/')+1:]] = true
	}
	var errs []error
	for _, name := range o.Revoke {
		if !known[name] {
			errs = append(errs, fmt.Errorf("revoke %s: %w: nobody has this name%s; routectl etcd show lists all",
				name, ErrNotFound, alike(name, slices.Sorted(maps.Keys(known)))))
			continue
		}
		roles := st.Users[name]
		here := len(roles) == 0 || st.Roles[prefix+roleInstance+name] != nil || slices.Contains(st.Revoked(prefix), name) ||
			slices.ContainsFunc(roles, func(r string) bool { return ours(prefix, r) || slices.Contains(former, r) }) ||
			slices.ContainsFunc(st.left, func(key string) bool { return strings.HasSuffix(key, "/"+name) })
		if !here {
			errs = append(errs, fmt.Errorf("revoke %s: %w: it has no role of the fleet under %s, only %s; --prefix says which fleet",
				name, ErrNotFound, prefix, strings.Join(roles, ", ")))
		}
	}
	return errors.Join(errs...)
}

// alike says which of the names may have been meant, if any is near.
func alike(name string, names []string) string {
	var near []string
	for _, n := range names {
		if n != rootUser && (distance(name, n) <= 2 || strings.HasPrefix(n, name) || strings.HasPrefix(name, n)) {
			near = append(near, n)
		}
	}
	if len(near) == 0 {
		return ""
	}
	return ", near to it is " + strings.Join(near[:min(5, len(near))], ", ")
}

// distance is how many letters must be put in, left out or replaced to make b of a (Levenshtein).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			replaced := diagonal
			if a[i] != b[j] {
				replaced++
			}
			diagonal = row[j+1]
			row[j+1] = min(replaced, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// mark remembers who is revoked, before anything is taken away, and forgets who is
// reinstated.
func (p *planner) mark() {
	for _, user := range p.o.Revoke {
		if role := p.prefix + roleRevoked + user; p.st.Roles[role] == nil {
			p.give = append(p.give, AccessStep{Do: addRole, Role: role})
		}
	}
	for _, user := range p.o.Reinstate {
		if role := p.prefix + roleRevoked + user; p.st.Roles[role] != nil {
			p.give = append(p.give, AccessStep{Do: deleteRole, Role: role})
		}
	}
}
