package store

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode"

	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	// rootUser may do everything in etcd, by the role of the same name.
	rootUser = "root"
	// maxUser is how many bytes the name of an etcd user may have.
	maxUser = 128
)

// CheckUser tells what is wrong with the name of an etcd user, which is the
// common name of a certificate and a part of file names, too.
func CheckUser(name string) error {
	plain := func(r rune) bool {
		return '0' <= r && r <= '9' || 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || strings.ContainsRune("._-@", r)
	}
	if name == "" || len(name) > maxUser || strings.ContainsFunc(name, func(r rune) bool { return !plain(r) }) || strings.ContainsRune(".-", rune(name[0])) {
		return fmt.Errorf("user name %.140q: want 1 to %d letters, digits, '.', '_', '-' or '@', beginning with no '.' or '-'", name, maxUser)
	}
	return nil
}

// The roles of a fleet. An instance's and a controller's own keys are a role of
// their own for each.
const (
	RolePublisher  = "publisher"  // routectl publish, switch, rollback, abort, retire, rollout
	RoleController = "controller" // what decides
	RoleCollector  = "collector"  // routectl gc
	RoleOperator   = "operator"   // everything under the prefix
	RoleReader     = "reader"     // everything that only reads
	roleInstance   = "instance:"  // and then the instance's name
)

// Access says who may do what in a fleet, by the names of etcd users. With
// client certificates a user's name is the common name of its certificate.
type Access struct {
	Instances   map[string]string // instance to group: each may use its own keys, and read what it serves by
	Controllers map[string]string // instances that may also decide
	Publishers  []string
	Collectors  []string
	Operators   []string
	Readers     []string
	Revoke      []string // may do nothing any more, also when they are named again later
	Reinstate   []string // were revoked and may be given roles again
}

// Users are those who are given a role, by name.
func (a Access) Users() []string { return slices.Sorted(maps.Keys(a.roles("/"))) }

// Check finds every name that cannot be: one that would reach into another's keys,
// and one that is named for two things that exclude each other.
func (a Access) Check() error {
	var errs []error
	for _, members := range []map[string]string{a.Instances, a.Controllers} {
		for _, name := range slices.Sorted(maps.Keys(members)) {
			errs = append(errs, CheckName("instance", name), CheckName("group", members[name]))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(a.Instances)) {
		if group, both := a.Controllers[name]; both && group != a.Instances[name] {
			errs = append(errs, fmt.Errorf("%s is named as of group %s and of group %s: an instance has one group", name, a.Instances[name], group))
		}
	}
	users := a.roles("/")
	for _, name := range slices.Sorted(maps.Keys(users)) {
		errs = append(errs, CheckUser(name))
		if name == rootUser {
			errs = append(errs, errors.New("root may do everything already: give who works with the fleet another name"))
		}
		errs = append(errs, checkNotSetup(name))
		if slices.Contains(a.Revoke, name) {
			errs = append(errs, fmt.Errorf("%s is to be revoked and to be given a role", name))
		}
	}
	for _, name := range a.Reinstate {
		errs = append(errs, CheckUser(name), checkNotSetup(name))
		if slices.Contains(a.Revoke, name) {
			errs = append(errs, fmt.Errorf("%s is to be revoked and to be reinstated", name))
		}
	}
	for _, name := range a.Revoke {
		errs = append(errs, CheckUser(name))
		if name == rootUser {
			errs = append(errs, errors.New("root cannot be revoked: etcd needs it"))
		}
	}
	return errors.Join(errs...)
}

// checkNotSetup refuses a name that would be taken for one of enableAccess.
func checkNotSetup(name string) error {
	if strings.HasPrefix(name, setupUser) {
		return fmt.Errorf("user name %.140q: names that begin with %s are of routectl etcd setup itself: choose another name", name, setupUser)
	}
	return nil
}

// roles are the roles of each user, by name.
func (a Access) roles(prefix string) map[string][]string {
	users := map[string][]string{}
	give := func(user, role string) {
		if role = prefix + role; !slices.Contains(users[user], role) {
			users[user] = append(users[user], role)
		}
	}
	for name := range a.Instances {
		give(name, roleInstance+name)
	}
	for name := range a.Controllers {
		give(name, roleInstance+name)
		give(name, RoleController)
	}
	for role, names := range map[string][]string{
		RolePublisher: a.Publishers, RoleCollector: a.Collectors, RoleOperator: a.Operators, RoleReader: a.Readers,
	} {
		for _, name := range names {
			give(name, role)
		}
	}
	for _, roles := range users {
		slices.Sort(roles)
	}
	return users
}

// A Grant is what a role may do with a key, or with every key from Key to
// before End.
type Grant struct {
	Key  string `json:"key"`
	End  string `json:"end,omitempty"`
	Kind string `json:"may"` // read, write or readwrite
}

// The kinds of a Grant.
const (
	mayRead  = "read"
	mayWrite = "write"
	mayBoth  = "readwrite"
)

// Keys says which keys these are: "/routerd/fleet", or "/routerd/groups/*" for
// all that begin so.
func (g Grant) Keys() string {
	switch g.End {
	case "":
		return g.Key
	case clientv3.GetPrefixRangeEnd(g.Key):
		return g.Key + "*"
	case "\x00":
		return fmt.Sprintf("%s and everything after it", printable(g.Key))
	}
	return fmt.Sprintf("%s to before %s", printable(g.Key), printable(g.End))
}

func printable(key string) string {
	if strings.ContainsFunc(key, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return fmt.Sprintf("%q", key)
	}
	return key
}

func (g Grant) String() string { return g.Kind + " " + g.Keys() }

// writes and reads tell what a grant allows.
func (g Grant) writes() bool { return g.Kind != mayRead }

// overlaps tells whether a grant has to do with keys under prefix.
func (g Grant) overlaps(prefix string) bool {
	end := clientv3.GetPrefixRangeEnd(prefix)
	switch g.End {
	case "":
		return strings.HasPrefix(g.Key, prefix)
	case "\x00":
		return g.Key < end
	}
	return g.Key < end && prefix < g.End
}

// covers tells whether a grant reaches every key under prefix.
func (g Grant) covers(prefix string) bool {
	return g.End == "\x00" && g.Key <= prefix || g.End >= clientv3.GetPrefixRangeEnd(prefix) && g.Key <= prefix
}

// grants are what a role of the fleet may do; nil for one that is not a role.
// Every range is a folder of keys: it ends in a slash, so that it has no
// neighbour's key in it.
func grants(prefix, role, group string) []Grant {
	one := func(kind string, keys ...string) (all []Grant) {
		for _, k := range keys {
			all = append(all, Grant{Key: prefix + k, Kind: kind})
		}
		return all
	}
	dirs := func(kind string, dirs ...string) (all []Grant) {
		for _, d := range dirs {
			all = append(all, Grant{Key: prefix + d, End: clientv3.GetPrefixRangeEnd(prefix + d), Kind: kind})
		}
		return all
	}
	everything := dirs(mayRead, "")
	var all []Grant
	switch name, isInstance := strings.CutPrefix(role, roleInstance); {
	case isInstance:
		all = slices.Concat(
			one(mayBoth, dirInstances+name, dirReady+group+"/"+name, dirReports+name, dirMeasures+name),
			// What it asks of etcd to know what to serve, and who of its group is out of traffic before it goes, too.
			one(mayRead, keyFormat, keyFleet, dirGroups+group, dirPrepares+group),
			dirs(mayRead, dirReady+group+"/", dirManifests, dirChunks))
	case role == RoleController:
		all = slices.Concat(everything, one(mayBoth, keyFleet), dirs(mayBoth, dirElection,
			dirGroups, dirPrepares, dirIntents, dirRollouts, dirEnded, dirCondemned, dirServed, dirBaked, dirChecks, dirAudit))
	case role == RolePublisher:
		all = slices.Concat(everything, one(mayBoth, keyHead, keyFleet), dirs(mayBoth, dirChunks, dirManifests, dirRevisions, dirIntents, dirAudit))
	case role == RoleCollector:
		all = slices.Concat(everything, dirs(mayBoth, dirGC, dirRevisions, dirManifests, dirChunks, dirServed, dirBaked, dirEnded, dirAudit))
	case role == RoleOperator:
		all = dirs(mayBoth, "")
	case role == RoleReader:
		all = everything
	default:
		return nil
	}
	slices.SortFunc(all, compareGrants)
	return all
}

func compareGrants(a, b Grant) int {
	return cmp.Or(cmp.Compare(a.Key, b.Key), cmp.Compare(a.End, b.End))
}
