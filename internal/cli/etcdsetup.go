package cli

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"routerd.dev/internal/store"
)

// accessFlags are what `etcd setup` is given.
type accessFlags struct {
	instances, controllers []string // NAME=GROUP
	access                 store.Access
	passwords              string // folder
	enable, dryRun         bool
	rootPassword           string
}

func newEtcdSetupCmd(c *command) *cobra.Command {
	var o accessFlags
	cmd := &cobra.Command{
		Use:   "setup [--instance NAME=GROUP,…] [--publisher NAME,…] [--enable] …",
		Short: "Write etcd's users and roles for the fleet",
		Long: `Write etcd's users and roles for the fleet under the prefix. Each name is an etcd user:
with client certificates, the common name of one. Users come by certificate only, unless
--passwords names a folder where each user's password is a file, which is made where it is
missing.

  instance    its own four keys; reads its group's assignment and prepare, and snapshots
  controller  an instance that may also decide what groups serve; reads all of the fleet
  publisher   publish, switch, rollback, abort, retire, rollout; reads all of the fleet
  collector   gc; also for a controller where the fleet has a history limit
  operator    everything under the prefix: init, recover, settings, strategy, keep, pardon
  reader      status, history, audit, publish --dry-run and whatever else only reads

Who is named gets exactly the roles that the flags give; a role that has more than it needs is
cut down. Who is not named stays as he is, until --revoke. Who was revoked stays out for good,
also when a later setup names him, which says so and goes on with the others: his credential may
be in other hands. --reinstate lets the name in again, for who has a new certificate while nobody
takes the old one any more. A command that is run again changes nothing. It needs etcd's root: as
long as access control is off, that is everybody. --enable
turns it on, and makes root where it is missing, to come by certificate or with
--root-password, which replaces the one that root had; if root cannot get in then, it is turned
off again.`,
		Example: `  routectl etcd setup --controller edge-1=edge --instance edge-2=edge,main-1=main --publisher ci --operator ann --enable
  routectl etcd setup --instance edge-3=edge --dry-run
  routectl etcd setup --revoke edge-2`,
		Args: usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return c.setUpAccess(cmd, &o) },
	}
	f := cmd.Flags()
	f.StringSliceVar(&o.instances, "instance", nil, "instances and their groups, NAME=GROUP, separated by commas; may be repeated, as the others")
	f.StringSliceVar(&o.controllers, "controller", nil, "instances that run with --controller, and their groups")
	f.StringSliceVar(&o.access.Publishers, "publisher", nil, "users who publish and switch")
	f.StringSliceVar(&o.access.Collectors, "collector", nil, "users who run gc")
	f.StringSliceVar(&o.access.Operators, "operator", nil, "users who may do everything with the fleet")
	f.StringSliceVar(&o.access.Readers, "reader", nil, "users who only look")
	f.StringSliceVar(&o.access.Revoke, "revoke", nil, "users who may do nothing any more; what instances among them wrote is deleted")
	f.StringSliceVar(&o.access.Reinstate, "reinstate", nil, "users who were revoked and may be named again: an old certificate of theirs that is still good is let in, too")
	f.StringVar(&o.passwords, "passwords", "", "folder of the users' passwords, a file each; missing ones are made at random")
	f.BoolVar(&o.enable, "enable", false, "turn etcd's access control on")
	f.StringVar(&o.rootPassword, "root-password", "", "password of a root that --enable makes, or file:PATH to read it from a file")
	f.BoolVar(&o.dryRun, "dry-run", false, "change nothing, print what would be done as etcdctl commands")
	return cmd
}

// setUp is what `etcd setup -o json` gives.
type setUp struct {
	Prefix   string             `json:"prefix"`
	DryRun   bool               `json:"dryRun"`
	Steps    []store.AccessStep `json:"steps"`
	StaysOut []string           `json:"staysOut,omitempty"` // who is named, was revoked, and got nothing
}

func (c *command) setUpAccess(cmd *cobra.Command, o *accessFlags) error {
	var errs []error
	o.access.Instances, errs = namedInstances("instance", o.instances, errs)
	o.access.Controllers, errs = namedInstances("controller", o.controllers, errs)
	if err := errors.Join(append(errs, o.access.Check())...); err != nil {
		return fail(ExitUsage, err, "")
	}
	setup := store.Setup{Access: o.access, Enable: o.enable, DryRun: o.dryRun}
	var out []string
	setup.StaysOut = func(name string) {
		out = append(out, name)
		c.say("%s was revoked and stays out: give who needs it another name, or --reinstate %s once its old certificate is good for nothing", name, name)
	}
	setup.NotRevoked = func(name string) { c.say("%s is not revoked: there is nothing to reinstate", name) }
	var err error
	if setup.RootPassword, err = store.LoadPassword(o.rootPassword); err != nil {
		return err
	}
	if o.passwords != "" {
		if setup.Passwords, err = userPasswords(o.passwords, o.access.Users(), o.dryRun); err != nil {
			return err
		}
	}
	return c.withStore(func(s *store.Store) error {
		done, err := s.SetUpAccess(cmd.Context(), setup)
		if err != nil {
			if len(done) > 0 {
				c.say("done before that: %s; run it again to go on", plural(len(done), "step"))
			}
			return err
		}
		return c.print(setUp{s.Prefix(), o.dryRun, done, out}, func(w *table) {
			switch {
			case o.dryRun:
				for _, step := range done {
					w.line("%s", step.Etcdctl(o.passwords))
				}
			case len(done) == 0:
				w.line("nothing to do: users and roles are as asked for")
			default:
				showSteps(w, done)
			}
		})
	})
}

// showSteps lists steps, those of one role or user under its name.
func showSteps(w *table, steps []store.AccessStep) {
	last := ""
	for _, s := range steps {
		about, what := s.About()
		if about != last {
			w.line("%s", about)
			last = about
		}
		w.line("  %s", what)
	}
}

// namedInstances reads NAME=GROUP.
func namedInstances(flag string, args []string, errs []error) (map[string]string, []error) {
	all := map[string]string{}
	for _, arg := range args {
		name, group, ok := strings.Cut(arg, "=")
		switch _, twice := all[name]; {
		case !ok || name == "" || group == "":
			errs = append(errs, fmt.Errorf("--%s %s: want NAME=GROUP, as routerd serve has --instance and --group", flag, arg))
		case twice && all[name] != group:
			errs = append(errs, fmt.Errorf("--%s %s: it is of group %s, too: an instance has one group", flag, arg, all[name]))
		}
		all[name] = group
	}
	return all, errs
}

// userPasswords reads each user's password from its file, and makes those that
// are missing, unless nothing is to be changed.
func userPasswords(dir string, users []string, dry bool) (map[string]string, error) {
	all := map[string]string{}
	if !dry {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("make the folder of passwords: %w", err)
		}
	}
	for _, user := range users {
		path := filepath.Join(dir, user)
		b, err := os.ReadFile(path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			all[user] = rand.Text()
			if dry {
				continue
			}
			if err := os.WriteFile(path, []byte(all[user]+"\n"), 0o600); err != nil {
				return nil, fmt.Errorf("write the password of %s: %w", user, err)
			}
		case err != nil:
			return nil, fmt.Errorf("read the password of %s: %w", user, err)
		default:
			if all[user] = strings.TrimRight(string(b), "\r\n"); all[user] == "" {
				return nil, fmt.Errorf("read the password of %s: %s is empty: delete it, and one is made", user, path)
			}
		}
	}
	return all, nil
}

func newEtcdShowCmd(c *command) *cobra.Command {
	return &cobra.Command{
		Use:   "show",
		Short: "Show who may do what in etcd, and what is wider than needed",
		Long: `Show etcd's users and roles, what each may do with the fleet under the prefix, and what
is wider than needed. It needs etcd's root, as long as access control is on.`,
		Example: `  routectl etcd show --cert root.pem --key root-key.pem --ca ca.pem`,
		Args:    usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.withStore(func(s *store.Store) error {
				st, err := s.AccessState(cmd.Context())
				if err != nil {
					return err
				}
				r := st.Review(s.Prefix())
				return c.print(r, func(w *table) { showAccess(w, r) })
			})
		},
	}
}

func showAccess(w *table, r store.AccessReview) {
	if !r.Enabled {
		w.line("access control is off: everybody who reaches etcd may do everything; routectl etcd setup --enable turns it on")
		w.line("")
	}
	w.row("USER", "ROLES", "")
	for _, u := range r.Users {
		w.row(u.Name, strings.Join(u.Roles, ", "), notes(u.Wrong))
	}
	if len(r.Revoked) > 0 {
		w.line("")
		w.line("revoked, and stay out: %s", strings.Join(r.Revoked, ", "))
	}
	for _, role := range r.Roles {
		w.line("")
		w.line("role %s%s", role.Name, notes(role.Wrong))
		byKind := map[string][]string{}
		for _, g := range role.Grants {
			byKind[g.Kind] = append(byKind[g.Kind], g.Keys())
		}
		for _, kind := range slices.Sorted(maps.Keys(byKind)) {
			w.line("  %-9s  %s", kind, strings.Join(byKind[kind], "  "))
		}
	}
}

func notes(wrong []string) string {
	if len(wrong) == 0 {
		return ""
	}
	return "  ! " + strings.Join(wrong, "; ")
}
