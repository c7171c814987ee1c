package store

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// What an AccessStep does, as etcdctl calls it.
const (
	addRole      = "role add"
	deleteRole   = "role delete"
	grantKeys    = "role grant-permission"
	revokeKeys   = "role revoke-permission"
	addUser      = "user add"
	deleteUser   = "user delete"
	grantRole    = "user grant-role"
	revokeRole   = "user revoke-role"
	deleteKey    = "del"
	putKey       = "put"
	enableAccess = "auth enable"
)

// setupUser begins the name of who turns access control off again should root
// not get in. The id of a lease follows, in hexadecimal digits: while the lease
// lives, so may the setup that made the user.
const setupUser = "routerd-setup-"

// setupTime is how long that lease lives.
const setupTime = 10 * time.Minute

// setupLease tells whether a user is of a setup, and by which lease.
func setupLease(user string) (id clientv3.LeaseID, ok bool) {
	digits, ok := strings.CutPrefix(user, setupUser)
	n, err := strconv.ParseInt(digits, 16, 64)
	// Setups of before have eight digits, and no lease.
	if !ok || err != nil || len(digits) != 8 && len(digits) != 16 || digits != fmt.Sprintf("%0*x", len(digits), n) {
		return 0, false
	}
	return clientv3.LeaseID(n), true
}

// former are the roles that an earlier documentation had people make: wider
// than those of today.
var former = []string{"routerd-instance", "routerd-controller", "routerd-publisher", "routerd-operator"}

// An AccessStep is one change of etcd's users and roles.
type AccessStep struct {
	Do    string `json:"do"` // as etcdctl calls it
	User  string `json:"user,omitempty"`
	Role  string `json:"role,omitempty"`
	Grant Grant  `json:"grant,omitzero"`
	// Password tells that a user who is made signs in by password; otherwise
	// only a certificate with its name will do.
	Password bool `json:"password,omitempty"`
	// Value is what is put.
	Value string `json:"value,omitempty"`
}

func (s AccessStep) String() string {
	words := []string{s.Do}
	for _, w := range []string{s.User, s.Role} {
		if w != "" {
			words = append(words, printable(w))
		}
	}
	switch s.Do {
	case grantKeys:
		words = append(words, s.Grant.String())
	case revokeKeys, deleteKey:
		words = append(words, s.Grant.Keys())
	case putKey:
		words = append(words, s.Grant.Keys(), s.Value)
	}
	return strings.Join(words, " ")
}

// Etcdctl is the command of etcd's own tool that does the same. Where a
// password is set, it is read from a file with the user's name in the folder
// passwords; etcdctl asks for that of root.
func (s AccessStep) Etcdctl(passwords string) string {
	words := append([]string{"etcdctl"}, strings.Fields(s.Do)...)
	for _, w := range []string{s.User, s.Role} {
		if w != "" {
			words = append(words, quote(w))
		}
	}
	switch s.Do {
	case addUser:
		switch {
		case !s.Password:
			words = append(words, "--no-password")
		case s.User == rootUser || passwords == "": // etcdctl asks for it
		default:
			words = append(words, fmt.Sprintf(`--new-user-password "$(cat %s)"`, quote(strings.TrimSuffix(passwords, "/")+"/"+s.User)))
		}
	case grantKeys:
		words = append(words, s.Grant.Kind)
		fallthrough
	case revokeKeys, deleteKey:
		words = append(words, quote(s.Grant.Key))
		switch s.Grant.End {
		case "":
		case clientv3.GetPrefixRangeEnd(s.Grant.Key):
			words = append(words, "--prefix=true")
		case "\x00":
			words = append(words, "--from-key=true")
		default:
			words = append(words, quote(s.Grant.End))
		}
	case putKey:
		words = append(words, quote(s.Grant.Key), quote(s.Value))
	}
	return strings.Join(words, " ")
}

// quote makes one word of it for a shell.
func quote(word string) string {
	plain := func(r rune) bool {
		return r < 0x80 && (r == '@' || '0' <= r && r <= '9' || 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || strings.ContainsRune("/._:-", r))
	}
	if word != "" && !strings.ContainsFunc(word, func(r rune) bool { return !plain(r) }) {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}

// plan finds what makes etcd's users and roles what is asked for. What is
// needed is given before anything is taken away, so that nobody who works is
// stopped in between.
func (o Setup) plan(prefix string, st AccessState) []AccessStep {
	p := planner{prefix: prefix, o: o, st: st}
	p.mark()
	p.roles()
	p.users()
	p.bind()
	p.revoke()
	if o.Enable && !st.Enabled {
		p.root()
	}
	return slices.Concat(p.give, p.take, p.last)
}

// A planner collects steps.
type planner struct {
	prefix           string
	o                Setup
	st               AccessState
	give, take, last []AccessStep
}

// roles makes those that are asked for, and repairs those of the fleet that are there.
func (p *planner) roles() {
	wanted := map[string]bool{}
	for _, roles := range p.o.Access.roles(p.prefix) {
		for _, r := range roles {
			wanted[r] = true
		}
	}
	for r := range p.st.Roles {
		wanted[r] = wanted[r] || ours(p.prefix, r) && !p.revoked(r)
	}
	for _, role := range slices.Sorted(maps.Keys(wanted)) {
		group := p.group(role)
		if !wanted[role] || group == "" && strings.HasPrefix(role, p.prefix+roleInstance) {
			continue // not to be, or nobody knows of which group
		}
		want := grants(p.prefix, strings.TrimPrefix(role, p.prefix), group)
		have, there := p.st.Roles[role]
		if !there {
			p.give = append(p.give, AccessStep{Do: addRole, Role: role})
		}
		missing, extra := differ(have, want)
		for _, g := range missing {
			p.give = append(p.give, AccessStep{Do: grantKeys, Role: role, Grant: g})
		}
		for _, g := range extra {
			p.take = append(p.take, AccessStep{Do: revokeKeys, Role: role, Grant: g})
		}
	}
}

// ours tells whether a role is one of the fleet's.
func ours(prefix, role string) bool {
	name, ok := strings.CutPrefix(role, prefix)
	return ok && grants(prefix, name, "") != nil
}

// revoked tells whether it is the role of an instance that is to be revoked.
func (p *planner) revoked(role string) bool {
	name, ok := strings.CutPrefix(role, p.prefix+roleInstance)
	return ok && slices.Contains(p.o.Revoke, name)
}

// group is the group of an instance's role: as asked for, or as it is.
func (p *planner) group(role string) string {
	name, ok := strings.CutPrefix(role, p.prefix+roleInstance)
	if !ok {
		return ""
	}
	for _, named := range []map[string]string{p.o.Instances, p.o.Controllers} {
		if g, ok := named[name]; ok {
			return g
		}
	}
	return groupOf(p.prefix, name, p.st.Roles[role])
}

// groupOf finds the group in what an instance's role may do; "" when it does not say.
func groupOf(prefix, name string, have []Grant) string {
	for _, g := range have {
		rest, ok := strings.CutPrefix(g.Key, prefix+dirReady)
		if group, instance, _ := strings.Cut(rest, "/"); ok && instance == name && CheckName("group", group) == nil {
			return group
		}
	}
	return ""
}

// differ returns what of want is not in have, and what of have nobody wants. A
// grant of another kind for the same keys is replaced by giving the right one.
func differ(have, want []Grant) (missing, extra []Grant) {
	for _, w := range want {
		if !slices.Contains(have, w) {
			missing = append(missing, w)
		}
	}
	for _, h := range have {
		if !slices.ContainsFunc(want, func(w Grant) bool { return w.Key == h.Key && w.End == h.End }) {
			extra = append(extra, h)
		}
	}
	return missing, extra
}

// users makes those that are asked for, with exactly these of the fleet's roles.
func (p *planner) users() {
	wanted := p.o.Access.roles(p.prefix)
	for _, user := range slices.Sorted(maps.Keys(wanted)) {
		have, there := p.st.Users[user]
		_, password := p.o.Passwords[user]
		keep := have // roles that have nothing to do with this fleet
		if there && p.st.wrongPassword[user] {
			p.give = append(p.give, AccessStep{Do: deleteUser, User: user})
			there = false
		}
		if !there {
			p.give = append(p.give, AccessStep{Do: addUser, User: user, Password: password})
			have = nil
		}
		for _, role := range keep {
			if !slices.Contains(wanted[user], role) && !p.outdated(role) && !there {
				p.give = append(p.give, AccessStep{Do: grantRole, User: user, Role: role})
			}
		}
		for _, role := range wanted[user] {
			if !slices.Contains(have, role) {
				p.give = append(p.give, AccessStep{Do: grantRole, User: user, Role: role})
			}
		}
		for _, role := range have {
			if !slices.Contains(wanted[user], role) && p.outdated(role) {
				p.take = append(p.take, AccessStep{Do: revokeRole, User: user, Role: role})
			}
		}
	}
}

// outdated tells whether a role, if it is not asked for, is to go: it is the
// fleet's, or one of a former documentation.
func (p *planner) outdated(role string) bool {
	return ours(p.prefix, role) ||
		slices.Contains(former, role) && slices.ContainsFunc(p.st.Roles[role], func(g Grant) bool { return g.overlaps(p.prefix) })
}

// revoke takes everything from users, and their keys from the fleet, so that
// nobody waits for a lease to end, or for a key that has none.
func (p *planner) revoke() {
	for _, user := range p.o.Revoke {
		if own := p.prefix + roleInstance + user; p.st.Roles[own] != nil {
			p.take = append(p.take, AccessStep{Do: deleteRole, Role: own})
		}
		roles, there := p.st.Users[user]
		other := slices.ContainsFunc(roles, func(r string) bool { return !p.outdated(r) })
		if there && !other {
			p.take = append(p.take, AccessStep{Do: deleteUser, User: user})
			continue
		}
		for _, r := range roles {
			if p.outdated(r) && !p.revoked(r) {
				p.take = append(p.take, AccessStep{Do: revokeRole, User: user, Role: r})
			}
		}
	}
	for _, user := range slices.Sorted(maps.Keys(p.st.Users)) {
		if _, ok := setupLease(user); ok && !p.st.underWay[user] { // of a setup that was killed
			p.take = append(p.take, AccessStep{Do: deleteUser, User: user})
		}
	}
	for _, key := range p.st.left {
		p.last = append(p.last, AccessStep{Do: deleteKey, Grant: Grant{Key: key}})
	}
}

// root turns access control on, with somebody who may turn it off again.
func (p *planner) root() {
	roles, there := p.st.Users[rootUser]
	keep := roles
	if there && p.o.RootPassword != "" {
		// Nobody can tell which password it has, or whether it has one, while
		// access control is off, and one without cannot be given one.
		p.last = append(p.last, AccessStep{Do: deleteUser, User: rootUser})
		there, roles = false, nil
	}
	if !there {
		p.last = append(p.last, AccessStep{Do: addUser, User: rootUser, Password: p.o.RootPassword != ""})
	}
	for _, role := range append([]string{rootUser}, keep...) {
		if !slices.Contains(roles, role) {
			p.last = append(p.last, AccessStep{Do: grantRole, User: rootUser, Role: role})
			roles = append(slices.Clone(roles), role)
		}
	}
	p.last = append(p.last, AccessStep{Do: enableAccess})
}
