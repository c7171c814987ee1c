package cli

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"routerd.dev/internal/store"
)

func newEtcdCmd(c *command) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "etcd",
		Short: "Say who may do what in etcd, and make certificates",
		Long: `Say who may do what in etcd, and make certificates. Each part of a fleet is an etcd user
with a role for the keys it needs and no others; with client certificates, a
certificate's common name is the user.

  routectl etcd certs    make certificates, for trying and for small fleets
  routectl etcd setup    write users and roles
  routectl etcd show     show them, and what is wider than needed`,
		Args: onlyCommands,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	for _, add := range []func(*command) *cobra.Command{newEtcdCertsCmd, newEtcdSetupCmd, newEtcdShowCmd} {
		cmd.AddCommand(add(c))
	}
	return cmd
}

// madeCertificates is what `etcd certs -o json` gives.
type madeCertificates struct {
	Authority struct {
		Cert    string    `json:"cert"`
		Key     string    `json:"key"`
		Made    bool      `json:"made"`
		Expires time.Time `json:"expires"`
	} `json:"authority"`
	Certificates []store.Certificate `json:"certificates"`
}

func newEtcdCertsCmd(c *command) *cobra.Command {
	var (
		dir              string
		servers, clients []string
		days             int
		renew            bool
		hands            handing
	)
	cmd := &cobra.Command{
		Use:   "certs --dir DIR [--server NAME=HOST,HOST…]… [--client NAME,NAME…]…",
		Short: "Make certificates for etcd and its clients",
		Long: `Make certificates for etcd and its clients: a small authority, for trying and for
small fleets. DIR gets ca.pem, which everybody needs, ca-key.pem, which only who
makes certificates needs, and for each name NAME.pem and NAME-key.pem. Keys can be read
by their owner only. An authority that is in DIR is used again; certificates that are
there are kept, unless --renew makes them anew, for the same use and with the hosts that are
named then.

A server's certificate is for an etcd member, towards its clients and its peers: name every
host by which others reach it. A client's is for one user of etcd: each instance, each
person and pipeline that publishes, and root, who sets up the others. Its common name is
NAME, and that is the user (routectl etcd setup).

  etcd --client-cert-auth --trusted-ca-file ca.pem --cert-file NAME.pem --key-file NAME-key.pem \
       --peer-client-cert-auth --peer-trusted-ca-file ca.pem --peer-cert-file NAME.pem --peer-key-file NAME-key.pem
  routerd serve --etcd-ca ca.pem --etcd-cert NAME.pem --etcd-key NAME-key.pem
  routectl --ca ca.pem --cert NAME.pem --key NAME-key.pem

With an authority of your own, make the same with it: a certificate for each client with
the extended key usage clientAuth and the common name that routectl etcd setup is given, for each
member one with serverAuth and clientAuth and its hosts as subject alternative names. Nobody but
etcd's administrators should get one with the common name root, and etcd should trust no
authority that signs for others, too.`,
		Example: `  routectl etcd certs --dir tls --server etcd-1=etcd-1.example.com,10.0.0.1 --client root,edge-1,edge-2,ci
  routectl etcd certs --dir tls --client edge-1 --renew --days 90`,
		Args: usage(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			requests, err := certificateRequests(servers, clients, days, renew)
			if err != nil {
				return fail(ExitUsage, err, "")
			}
			to, err := hands.handovers(requests)
			if err != nil {
				return fail(ExitUsage, err, "")
			}
			return c.makeCertificates(dir, requests, to)
		},
	}
	f := cmd.Flags()
	f.StringVar(&dir, "dir", "", "folder of the authority and the certificates; it is made where it is missing")
	f.StringArrayVar(&servers, "server", nil, "an etcd member and the names and addresses it is reached by, NAME=HOST,HOST…; may be repeated")
	f.StringSliceVar(&clients, "client", nil, "users of etcd, separated by commas; may be repeated")
	f.IntVar(&days, "days", 365, "how long the certificates are good for")
	f.BoolVar(&renew, "renew", false, "make those anew that are there")
	hands.flags(f)
	return cmd
}

// certificateRequests reads what the flags name.
func certificateRequests(servers, clients []string, days int, renew bool) ([]store.CertificateRequest, error) {
	var all []store.CertificateRequest
	var errs []error
	add := func(name string, hosts []string) {
		if slices.ContainsFunc(all, func(r store.CertificateRequest) bool { return r.Name == name }) {
			errs = append(errs, fmt.Errorf("%s is named twice: each certificate has a name of its own", name))
			return
		}
		all = append(all, store.CertificateRequest{Name: name, Hosts: hosts, Days: days, Renew: renew})
	}
	for _, s := range servers {
		name, hosts, _ := strings.Cut(s, "=")
		if hosts == "" {
			errs = append(errs, fmt.Errorf("--server %s: want NAME=HOST,HOST…, with every name and address it is reached by", s))
			continue
		}
		add(name, strings.Split(hosts, ","))
	}
	for _, name := range clients {
		add(name, nil)
	}
	return all, errors.Join(errs...)
}

func (c *command) makeCertificates(dir string, requests []store.CertificateRequest, to []store.Handover) error {
	if dir == "" {
		return fail(ExitUsage, errors.New("no folder is named"), "--dir says where the authority and the certificates are")
	}
	for _, r := range requests {
		if err := r.Check(); err != nil {
			return fail(ExitUsage, err, "")
		}
	}
	a, err := store.OpenAuthority(dir, c.env.Now())
	if err != nil {
		return err
	}
	var errs []error
	for _, r := range requests { // before any is written
		errs = append(errs, a.Check(r))
	}
	if err := errors.Join(errs...); err != nil {
		hint := "--renew makes them anew"
		if slices.ContainsFunc(errs, func(err error) bool { return errors.Is(err, store.ErrOtherKind) }) {
			hint = "a server's certificate is named with --server NAME=HOST,HOST…, a client's with --client NAME"
		}
		return fail(exitCode(err), err, hint)
	}
	out := madeCertificates{Certificates: []store.Certificate{}}
	out.Authority.Cert, out.Authority.Key = a.Files()
	out.Authority.Made, out.Authority.Expires = a.Made, a.Expires()
	for _, r := range requests {
		made, err := a.Issue(r)
		if err != nil {
			return err
		}
		out.Certificates = append(out.Certificates, made)
	}
	c.warnOfCertificates(a, out.Certificates)
	for _, h := range to {
		if err := a.HandOver(h); err != nil {
			return err
		}
	}
	return c.print(out, func(w *table) {
		w.row("NAME", "KIND", "STATE", "EXPIRES", "FILES")
		state := store.CertificateKept
		if a.Made {
			state = store.CertificateMade
		}
		w.row("", "authority", state, a.Expires().Local().Format(time.DateOnly), out.Authority.Cert)
		for _, x := range out.Certificates {
			w.row(x.Name, x.Kind, x.State, x.Expires.Local().Format(time.DateOnly), x.Cert+", "+cmp.Or(strings.Join(x.Hosts, ", "), x.Key))
		}
	})
}

// soon is before which end of a certificate its owner is told of it.
const soon = 30 * 24 * time.Hour

// warnOfCertificates says what would be a surprise later: certificates that end
// soon, hosts that are not in a certificate any more, and keys that others can
// read.
func (c *command) warnOfCertificates(a *store.Authority, all []store.Certificate) {
	now := c.env.Now()
	ends := func(what string, at time.Time, wayOut string) {
		if left := at.Sub(now); left < soon {
			c.say("warning: %s ends in %s, at %s: %s", what, plural(int(left.Hours()/24), "day"), at.Local().Format(time.DateTime), wayOut)
		}
	}
	_, key := a.Files()
	keys := []string{key}
	if !a.Made {
		ends("the authority", a.Expires(), "make another in another folder, have everybody trust both, then change over")
	}
	for _, x := range all {
		keys = append(keys, x.Key)
		if x.State == store.CertificateKept {
			ends("certificate "+x.Name, x.Expires, "--renew makes it anew")
		}
		if len(x.Former) > 0 {
			c.say("certificate %s was for %s, and is for %s now", x.Name, strings.Join(x.Former, ", "), strings.Join(x.Hosts, ", "))
		}
	}
	for _, key := range keys {
		if info, err := os.Stat(key); err == nil && info.Mode().Perm()&^0o600 != 0 {
			c.say("warning: %s has mode %04o, so others may read it: chmod 600 %s", key, info.Mode().Perm(), key)
		}
	}
}
