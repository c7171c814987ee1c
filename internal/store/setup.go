package store

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/authpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// An AccessState is what etcd's access control says at a moment.
type AccessState struct {
	Enabled bool                // nobody is asked who he is while it is not
	Users   map[string][]string // user to its roles
	Roles   map[string][]Grant  // role to what it may do

	wrongPassword map[string]bool   // users who have not the password that they should
	bound         map[string]string // by key: the bindings there are
	left          []string          // keys of instances that are to be revoked
	underWay      map[string]bool   // users of setups that may not have ended
}

// AccessState reads etcd's users and roles. Once access control is on it needs
// etcd's root, and fails with ErrDenied without it.
func (s *Store) AccessState(ctx context.Context) (AccessState, error) {
	const what = "read etcd's users and roles"
	st := AccessState{Users: map[string][]string{}, Roles: map[string][]Grant{}}
	var users, roles []string
	err := s.asRoot(ctx, what, func(ctx context.Context, c *clientv3.Client) error {
		status, err := c.AuthStatus(ctx)
		if err != nil {
			return err
		}
		u, err := c.UserList(ctx)
		if err != nil {
			return err
		}
		r, err := c.RoleList(ctx)
		if err != nil {
			return err
		}
		st.Enabled, users, roles = status.Enabled, u.Users, r.Roles
		return nil
	})
	if err != nil {
		return st, err
	}
	for _, name := range users {
		err := s.asRoot(ctx, what, func(ctx context.Context, c *clientv3.Client) error {
			u, err := c.UserGet(ctx, name)
			if err != nil {
				return unless(err, rpctypes.ErrUserNotFound) // deleted meanwhile
			}
			st.Users[name] = u.Roles
			return nil
		})
		if err != nil {
			return st, err
		}
	}
	for _, name := range roles {
		err := s.asRoot(ctx, what, func(ctx context.Context, c *clientv3.Client) error {
			r, err := c.RoleGet(ctx, name)
			if err != nil {
				return unless(err, rpctypes.ErrRoleNotFound)
			}
			st.Roles[name] = grantsOf(r.Perm)
			return nil
		})
		if err != nil {
			return st, err
		}
	}
	return st, nil
}

func grantsOf(perms []*authpb.Permission) []Grant {
	kinds := map[authpb.Permission_Type]string{authpb.Permission_READ: mayRead, authpb.Permission_WRITE: mayWrite, authpb.Permission_READWRITE: mayBoth}
	all := make([]Grant, 0, len(perms))
	for _, p := range perms {
		all = append(all, Grant{Key: string(p.Key), End: string(p.RangeEnd), Kind: kinds[p.PermType]})
	}
	slices.SortFunc(all, compareGrants)
	return all
}

// unless is err, but nil for those that say that it is so already.
func unless(err error, fine ...error) error {
	for _, f := range fine {
		if errors.Is(err, f) {
			return nil
		}
	}
	return err
}

var errNotRoot = fmt.Errorf("%w: only etcd's root may: come with a certificate whose common name is root, or as user root with its password", ErrDenied)

// asRoot is call for what only etcd's root may do.
func (s *Store) asRoot(ctx context.Context, what string, f func(context.Context, *clientv3.Client) error) error {
	return s.call(ctx, what, "etcd's users and roles", func(ctx context.Context, c *clientv3.Client) error {
		err := f(ctx, c)
		// A user whom etcd does not know is who asks: the others are looked up by f.
		for _, denied := range []error{rpctypes.ErrPermissionDenied, rpctypes.ErrUserEmpty, rpctypes.ErrUserNotFound} {
			if errors.Is(err, denied) {
				return errNotRoot
			}
		}
		return err
	})
}

// Setup says what SetUpAccess is to do.
type Setup struct {
	Access
	// Passwords are those of users who are to have one. The others come by
	// certificate; one that has a password already keeps it.
	Passwords map[string]string
	// Enable turns access control on, and makes root where it is missing: with
	// RootPassword, or to come by certificate.
	Enable       bool
	RootPassword string
	// DryRun changes nothing: the steps are what would be done.
	DryRun bool
	// StaysOut is told who is named and gets nothing, because he was revoked before
	// and is not reinstated. Nil for nobody to tell.
	StaysOut func(name string)
	// NotRevoked is told who is to be reinstated and was not revoked. Nil for nobody to tell.
	NotRevoked func(name string)
}

// SetUpAccess gives etcd the users and roles that a fleet needs, and takes away
// what the fleet's roles have too much of, or those who are named. Users
// who are not named are left as they are. It returns what it did; doing it
// again does nothing.
//
// Who was revoked stays revoked, also when he is named: that is no error, the
// others are set up, and StaysOut is told. A name to revoke that nobody has is
// ErrNotFound, and nothing is done.
//
// When access control is turned on and root cannot get in, it is turned off
// again, and that is the error.
func (s *Store) SetUpAccess(ctx context.Context, o Setup) ([]AccessStep, error) {
	const what = "set up access to etcd"
	if err := o.Check(); err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	if strings.Trim(s.cfg.Prefix, "/") == "" { // its roles would be good for every other fleet
		return nil, fmt.Errorf("%s: prefix %q: want one of the fleet's own, such as /routerd", what, s.cfg.Prefix)
	}
	named := o // whom the caller names
	done := []AccessStep{}
	var madeRoot bool
	signedIn := map[string]bool{} // users whose password is known to be right
	for round := range setupRounds {
		o := named
		st, err := s.AccessState(ctx)
		if err != nil {
			return done, err
		}
		out := o.settle(s.cfg.Prefix, st)
		if err := s.lookCloser(ctx, &st, o, signedIn); err != nil {
			return done, err
		}
		if round == 0 {
			if err := named.checkRevoked(s.cfg.Prefix, st); err != nil {
				return nil, fmt.Errorf("%s: %w", what, err)
			}
			if err := s.checkRoot(o, st); err != nil {
				return nil, fmt.Errorf("%s: %w", what, err)
			}
			o.tell(s.cfg.Prefix, st, out)
		}
		steps := o.plan(s.cfg.Prefix, st)
		if len(steps) == 0 || o.DryRun {
			return append(done, steps...), nil
		}
		for _, step := range steps {
			if step.Do == enableAccess {
				err = s.enableAccess(ctx, o, madeRoot)
			} else {
				err = s.carryOut(ctx, step, o)
			}
			if err != nil {
				return done, err
			}
			if step.Do == addUser {
				signedIn[step.User] = true
				_, there := st.Users[rootUser]
				madeRoot = madeRoot || step.User == rootUser && !there
			}
			done = append(done, step)
			if step.Do == enableAccess && o.RootPassword != "" {
				return done, nil // this store may not be root's; enableAccess looked as root
			}
		}
	}
	return done, fmt.Errorf("%s: %w: somebody else changes users and roles", what, ErrConflict)
}

// setupRounds is how often SetUpAccess looks whether all is as it should be.
const setupRounds = 3

// lookCloser finds out what etcd does not tell by itself.
func (s *Store) lookCloser(ctx context.Context, st *AccessState, o Setup, signedIn map[string]bool) error {
	st.wrongPassword = map[string]bool{}
	for name, password := range o.Passwords {
		if _, known := st.Users[name]; !known || signedIn[name] {
			continue
		}
		err := s.asRoot(ctx, "sign in as "+name, func(ctx context.Context, c *clientv3.Client) error {
			_, err := c.Authenticate(ctx, name, password)
			st.wrongPassword[name] = err != nil
			// While access control is off, nobody can sign in: the password is set anew.
			return unless(err, rpctypes.ErrAuthFailed, rpctypes.ErrAuthNotEnabled)
		})
		if err != nil {
			return err
		}
		signedIn[name] = !st.wrongPassword[name]
	}
	if err := s.findUnderWay(ctx, st); err != nil {
		return err
	}
	if err := s.readBindings(ctx, st, o); err != nil {
		return err
	}
	if len(o.Revoke) == 0 {
		return nil
	}
	for _, dir := range []string{dirInstances, dirReady, dirReports, dirMeasures, dirBound} {
		resp, err := s.get(ctx, "find what revoked instances wrote", s.key(dir), clientv3.WithPrefix(), clientv3.WithKeysOnly())
		if err != nil {
			return err
		}
		for _, kv := range resp.Kvs {
			key := string(kv.Key)
			if slices.Contains(o.Revoke, key[strings.LastIndexByte(key, '/')+1:]) {
				st.left = append(st.left, key)
			}
		}
	}
	return nil
}

// findUnderWay finds the users of setups that may be under way: without theirs,
// one that turned access control on and finds that root does not get in could not
// turn it off again.
func (s *Store) findUnderWay(ctx context.Context, st *AccessState) error {
	st.underWay = map[string]bool{}
	for user := range st.Users {
		id, ok := setupLease(user)
		if !ok {
			continue
		}
		err := s.call(ctx, "look whether another setup is under way", "a lease", func(ctx context.Context, c *clientv3.Client) error {
			resp, err := c.TimeToLive(ctx, id)
			st.underWay[user] = err == nil && resp.TTL >= 0 // 0 is the last second
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// carryOut does one step. What is so already is no error.
func (s *Store) carryOut(ctx context.Context, step AccessStep, o Setup) error {
	g := step.Grant
	return s.asRoot(ctx, step.String(), func(ctx context.Context, c *clientv3.Client) error {
		var err error
		switch step.Do {
		case addRole:
			_, err = c.RoleAdd(ctx, step.Role)
		case deleteRole:
			_, err = c.RoleDelete(ctx, step.Role)
		case grantKeys:
			kind := map[string]authpb.Permission_Type{mayRead: authpb.Permission_READ, mayWrite: authpb.Permission_WRITE, mayBoth: authpb.Permission_READWRITE}[g.Kind]
			_, err = c.RoleGrantPermission(ctx, step.Role, g.Key, g.End, clientv3.PermissionType(kind))
		case revokeKeys:
			_, err = c.RoleRevokePermission(ctx, step.Role, g.Key, g.End)
		case addUser:
			password := o.Passwords[step.User]
			if step.User == rootUser {
				password = o.RootPassword
			}
			_, err = c.UserAddWithOptions(ctx, step.User, password, &clientv3.UserAddOptions{NoPassword: password == ""})
		case deleteUser:
			_, err = c.UserDelete(ctx, step.User)
		case grantRole:
			_, err = c.UserGrantRole(ctx, step.User, step.Role)
		case revokeRole:
			_, err = c.UserRevokeRole(ctx, step.User, step.Role)
		case deleteKey:
			_, err = c.Delete(ctx, g.Key)
		case putKey:
			_, err = c.Put(ctx, g.Key, step.Value)
		}
		return unless(err, rpctypes.ErrRoleAlreadyExist, rpctypes.ErrRoleNotFound, rpctypes.ErrUserAlreadyExist, rpctypes.ErrUserNotFound,
			rpctypes.ErrRoleNotGranted, rpctypes.ErrPermissionNotGranted)
	})
}

// enableAccess turns access control on. Until root was seen to get in there is
// a second one with a random password, which turns it off again if root does
// not; a root that was made for it goes, too, so that the next try is like the
// first.
func (s *Store) enableAccess(ctx context.Context, o Setup, madeRoot bool) error {
	const what = "turn access control on"
	do := func(s *Store, f func(context.Context, *clientv3.Client) error) error { return s.asRoot(ctx, what, f) }
	name, ended, err := s.nameSetup(ctx, what)
	if err != nil {
		return err
	}
	defer ended()
	password := randomHex(16)
	if err := do(s, func(ctx context.Context, c *clientv3.Client) error {
		if _, err := c.UserAdd(ctx, name, password); err != nil {
			return err
		}
		if _, err := c.UserGrantRole(ctx, name, rootUser); err != nil {
			return err
		}
		_, err := c.AuthEnable(ctx)
		return err
	}); err != nil {
		return err
	}
	root, closeRoot, err := s.as(rootUser, o.RootPassword)
	if err != nil {
		return err
	}
	defer closeRoot()
	look, cancel := context.WithTimeout(ctx, setupTime/2) // the way back is there for no longer than setupTime
	defer cancel()
	_, failed := root.AccessState(look)
	if failed == nil {
		return do(root, func(ctx context.Context, c *clientv3.Client) error {
			_, err := c.UserDelete(ctx, name)
			return err
		})
	}
	back, closeBack, err := s.as(name, password)
	if err != nil {
		return err
	}
	defer closeBack()
	err = do(back, func(ctx context.Context, c *clientv3.Client) error {
		_, err := c.AuthDisable(ctx)
		return err
	})
	if err == nil {
		err = do(s, func(ctx context.Context, c *clientv3.Client) error {
			if _, err := c.UserDelete(ctx, name); err != nil || !madeRoot {
				return err
			}
			_, err := c.UserDelete(ctx, rootUser)
			return err
		})
	}
	if err != nil {
		return errors.Join(fmt.Errorf("%s: root does not get in, and access control is still on: %w", what, failed), err)
	}
	return fmt.Errorf("%s: root does not get in, so it is off again; give --root-password, or let etcd have --client-cert-auth and come with a certificate whose common name is root: %w", what, failed)
}

// nameSetup names a user whom no other setup takes away before ended was called,
// or setupTime is over.
func (s *Store) nameSetup(ctx context.Context, what string) (name string, ended func(), err error) {
	var id clientv3.LeaseID
	err = s.call(ctx, what, "a lease", func(ctx context.Context, c *clientv3.Client) error {
		resp, err := c.Grant(ctx, int64(setupTime/time.Second))
		if err == nil {
			id = resp.ID
		}
		return err
	})
	ended = func() {
		_ = s.call(ctx, what, "a lease", func(ctx context.Context, c *clientv3.Client) error { // else it ends by itself
			_, err := c.Revoke(ctx, id)
			return err
		})
	}
	return fmt.Sprintf("%s%016x", setupUser, int64(id)), ended, err
}

// as is the store of another user, who comes with the same certificate; without a
// password it is s itself.
func (s *Store) as(user, password string) (other *Store, end func(), err error) {
	if password == "" {
		return s, func() {}, nil
	}
	cfg := s.cfg
	cfg.Username, cfg.Password = user, password
	cfg.TLS, cfg.Sources = s.tlsConfig(), nil // they name this user's password
	if other, err = Open(cfg); err != nil {
		return nil, nil, err
	}
	return other, func() { _ = other.Close() }, nil // it only asked
}

// checkRoot finds out, before anything is written, that root would not get in.
func (s *Store) checkRoot(o Setup, st AccessState) error {
	if !o.Enable || st.Enabled || o.RootPassword != "" || s.cfg.Username == rootUser {
		return nil
	}
	switch name := s.certified(); name {
	case rootUser:
		return nil
	case "":
		return errors.New("root would not get in, so nothing was done: give --root-password, or come with a certificate whose common name is root")
	default:
		return fmt.Errorf("root would not get in, so nothing was done: this certificate's common name is %q: "+
			"come with one whose common name is root, or give --root-password", name)
	}
}

// certified is the common name of the certificate that this store comes with, "" for none.
func (s *Store) certified() string {
	if s.cfg.TLS == nil {
		return ""
	}
	pair, err := s.cfg.TLS.Certificates, error(nil)
	if s.cfg.TLS.GetClientCertificate != nil {
		var now *tls.Certificate
		if now, err = s.cfg.TLS.GetClientCertificate(&tls.CertificateRequestInfo{}); now != nil {
			pair = []tls.Certificate{*now}
		}
	}
	if err != nil || len(pair) == 0 || pair[0].Leaf == nil {
		return ""
	}
	return pair[0].Leaf.Subject.CommonName
}

// tell says of whom the caller should know.
func (o Setup) tell(prefix string, st AccessState, out []string) {
	if o.StaysOut != nil {
		for _, name := range out {
			o.StaysOut(name)
		}
	}
	revoked := st.Revoked(prefix)
	for _, name := range o.Reinstate {
		if o.NotRevoked != nil && !slices.Contains(revoked, name) {
			o.NotRevoked(name)
		}
	}
}
