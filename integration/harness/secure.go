package harness

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"routerd.dev/internal/store"
)

// Users of etcd beside the instances, each of which is one.
const (
	rootUser      = "root"
	operatorUser  = "operator"
	publisherUser = "publisher"
	readerUser    = "reader"
)

// A vault is what the users of a world's etcd prove themselves with.
type vault struct {
	dir       string // of the authority, the certificates and the passwords
	passwords bool
}

func (v vault) file(name string) string { return filepath.Join(v.dir, name) }

func (v vault) password(user string) string { return filepath.Join(v.dir, "passwords", user) }

// flags are those of routectl for a user.
func (v vault) flags(user string) []string {
	ca := []string{"--ca", v.file("ca.pem")}
	if v.passwords {
		return append(ca, "--user", user, "--password", "file:"+v.password(user))
	}
	return append(ca, "--cert", v.file(user+".pem"), "--key", v.file(user+"-key.pem"))
}

// issue makes the certificates of all nodes and users, or makes those named
// in renew anew.
func (w *World) issue(t testing.TB, names []string, renew bool) {
	t.Helper()
	args := []string{"etcd", "certs", "--dir", w.vault.dir}
	if renew {
		args = append(args, "--renew")
	}
	for _, name := range names {
		if slices.Contains(w.members, name) {
			args = append(args, "--server", name+"="+strings.Join(w.hosts(name), ","))
		} else {
			args = append(args, "--client", name)
		}
	}
	if _, err := w.Bin.Routectl(nil, "", args...); err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if slices.Contains(w.members, name) || !w.vault.passwords && slices.Contains(w.nodes(), name) {
			w.Deliver(t, name) // passwords are not made yet
		}
	}
}

// Renew makes certificates of nodes and users anew, with new keys, and puts
// them where the nodes read them.
func (w *World) Renew(t testing.TB, names ...string) {
	t.Helper()
	w.issue(t, names, true)
}

// hosts are all by which a member is reached.
func (w *World) hosts(member string) []string {
	all := []string{"127.0.0.1"} // where a relay of the test stands
	add := func(addr string) {
		if host, _, err := net.SplitHostPort(addr); err == nil && !slices.Contains(all, host) {
			all = append(all, host)
		}
	}
	add(w.Outside(member, EtcdClientPort))
	add(w.Inside("", member, EtcdPeerPort))
	for _, i := range w.Instances {
		add(w.Inside(i.Instance, member, EtcdClientPort))
	}
	return all
}

// nodes are the names of members and instances.
func (w *World) nodes() []string {
	names := slices.Clone(w.members)
	for _, i := range w.Instances {
		names = append(names, i.Instance)
	}
	return names
}

// Deliver puts what a node proves itself with into its folder, each file in one
// step, as tools that rotate certificates do.
func (w *World) Deliver(t testing.TB, node string) {
	t.Helper()
	files := map[string]string{"ca.pem": "ca.pem", node + "-key.pem": "key.pem", node + ".pem": "cert.pem"}
	if w.vault.passwords && !slices.Contains(w.members, node) {
		files = map[string]string{"ca.pem": "ca.pem", filepath.Join("passwords", node): "password"}
	}
	for from, to := range files {
		b, err := os.ReadFile(w.vault.file(from))
		path := filepath.Join(w.Dir(node), to)
		if err == nil {
			err = os.WriteFile(path+".new", b, 0o600)
		}
		if err == nil {
			err = os.Rename(path+".new", path)
		}
		if err != nil {
			t.Fatalf("give %s its %s: %v", node, to, err)
		}
	}
}

// etcdSecurity are the flags by which a member asks who comes.
func (w *World) etcdSecurity(e string) []string {
	args := []string{
		"--cert-file", w.Path(e, "cert.pem"), "--key-file", w.Path(e, "key.pem"),
		"--peer-client-cert-auth", "--peer-trusted-ca-file", w.Path(e, "ca.pem"),
		"--peer-cert-file", w.Path(e, "cert.pem"), "--peer-key-file", w.Path(e, "key.pem"),
		"--bcrypt-cost", "4", // the machine has other things to do
	}
	if !w.vault.passwords {
		args = append(args, "--client-cert-auth", "--trusted-ca-file", w.Path(e, "ca.pem"))
	}
	return args
}

// instanceSecurity are the flags by which an instance says who it is.
func (w *World) instanceSecurity(i *Instance) []string {
	args := []string{"--etcd-ca", w.Path(i.Instance, "ca.pem")}
	if w.vault.passwords {
		return append(args, "--etcd-user", i.Instance, "--etcd-password", "file:"+w.Path(i.Instance, "password"))
	}
	return append(args, "--etcd-cert", w.Path(i.Instance, "cert.pem"), "--etcd-key", w.Path(i.Instance, "key.pem"))
}

// SetUpAccess writes etcd's users and roles and turns its access control on.
func (w *World) SetUpAccess(t testing.TB) {
	t.Helper()
	args := []string{"etcd", "setup", "--enable", "--operator", operatorUser, "--publisher", publisherUser, "--reader", readerUser}
	for n, i := range w.Instances {
		role := "--instance"
		if n < w.Options.Controllers {
			role = "--controller"
		}
		args = append(args, role, i.Instance+"="+i.Group)
	}
	as := w.vault.flags(rootUser)
	if w.vault.passwords {
		as = []string{"--ca", w.vault.file("ca.pem")} // nobody is root yet
		args = append(args, "--root-password", "file:"+w.vault.password(rootUser), "--passwords", w.vault.file("passwords"))
		if err := w.vault.makeRoot(); err != nil {
			t.Fatal(err)
		}
	}
	Until(t, settle, "etcd knows who may do what", func() error { // its first leader may not be there yet
		_, err := w.Bin.Routectl(w.Endpoints, "", slices.Concat(as, args)...)
		return err
	})
	if w.vault.passwords {
		for _, i := range w.Instances {
			w.Deliver(t, i.Instance)
		}
	}
}

// makeRoot makes the password of a root that etcd does not know yet.
func (v vault) makeRoot() error {
	if err := os.MkdirAll(v.file("passwords"), 0o700); err != nil {
		return fmt.Errorf("make the folder of passwords: %w", err)
	}
	if err := os.WriteFile(v.password(rootUser), []byte("root's of this test\n"), 0o600); err != nil {
		return fmt.Errorf("write root's password: %w", err)
	}
	return nil
}

// RoutectlAs runs routectl as another user of etcd than the operator.
func (w *World) RoutectlAs(user, stdin string, args ...string) (string, error) {
	return w.Bin.Routectl(w.Endpoints, stdin, append(w.vault.flags(user), args...)...)
}

// ConfigAs is the configuration of a client of etcd for a user.
func (w *World) ConfigAs(t testing.TB, user string) clientv3.Config {
	t.Helper()
	cfg, err := w.configAs(user)
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

func (w *World) configAs(user string) (clientv3.Config, error) {
	cfg := clientv3.Config{Endpoints: w.Endpoints, DialTimeout: 5 * time.Second, Logger: zap.NewNop()}
	cert, key := w.vault.file(user+".pem"), w.vault.file(user+"-key.pem")
	if w.vault.passwords {
		cert, key = "", ""
		password, err := store.LoadPassword("file:" + w.vault.password(user))
		if err != nil {
			return cfg, err
		}
		cfg.Username, cfg.Password = user, password
	}
	var err error
	if cfg.TLS, err = store.LoadTLS(w.vault.file("ca.pem"), cert, key); err != nil {
		return cfg, fmt.Errorf("be %s towards etcd: %w", user, err)
	}
	return cfg, nil
}

// A Certificate is one that a client proved itself with.
type Certificate struct {
	User      string
	serial    *big.Int
	cert, key []byte
}

// users are all who have a certificate and are no member.
func (w *World) users() []string {
	names := []string{rootUser, operatorUser, publisherUser, readerUser}
	for _, i := range w.Instances {
		names = append(names, i.Instance)
	}
	return names
}

// Certificates are those of all clients as they are now.
func (w *World) Certificates(t testing.TB) (all []Certificate) {
	t.Helper()
	for _, user := range w.users() {
		c := Certificate{User: user}
		var err, keyErr error
		c.cert, err = os.ReadFile(w.vault.file(user + ".pem"))
		c.key, keyErr = os.ReadFile(w.vault.file(user + "-key.pem"))
		if err = errors.Join(err, keyErr); err != nil {
			t.Fatal(err)
		}
		pair, err := tls.X509KeyPair(c.cert, c.key)
		if err != nil {
			t.Fatalf("read the certificate of %s: %v", user, err)
		}
		c.serial = pair.Leaf.SerialNumber
		all = append(all, c)
	}
	return all
}

// RenewAll makes every certificate anew and puts it where it is read.
func (w *World) RenewAll(t testing.TB) {
	t.Helper()
	w.Renew(t, slices.Concat(w.members, w.users())...)
}

// Revoke puts a list of certificates that are not good any more, revoked.crl,
// into a member's folder.
func (w *World) Revoke(t testing.TB, member string, old []Certificate) {
	t.Helper()
	ca, err := tls.LoadX509KeyPair(w.vault.file("ca.pem"), w.vault.file("ca-key.pem"))
	if err != nil {
		t.Fatalf("read the authority: %v", err)
	}
	list := &x509.RevocationList{Number: big.NewInt(time.Now().Unix()), ThisUpdate: time.Now().Add(-time.Minute), NextUpdate: time.Now().Add(time.Hour)}
	for _, c := range old {
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: c.serial, RevocationTime: list.ThisUpdate})
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, ca.Leaf, ca.PrivateKey.(crypto.Signer))
	if err == nil {
		err = os.WriteFile(filepath.Join(w.Dir(member), "revoked.crl"), der, 0o600)
	}
	if err != nil {
		t.Fatalf("revoke certificates: %v", err)
	}
}

// LetIn tries to come to etcd with certificates; the error says why none is
// let in.
func (w *World) LetIn(t testing.TB, with []Certificate) error {
	t.Helper()
	var refused error
	for _, c := range with {
		cfg := w.ConfigAs(t, rootUser)
		pair, err := tls.X509KeyPair(c.cert, c.key)
		if err != nil {
			t.Fatal(err)
		}
		cfg.TLS.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
		if err = readOnce(cfg); err == nil {
			return nil
		}
		refused = errors.Join(refused, err)
	}
	return refused
}

// readOnce makes one linearizable read with a client of its own.
func readOnce(cfg clientv3.Config) error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	cfg.Context = ctx
	c, err := clientv3.New(cfg)
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.Get(ctx, store.DefaultPrefix+"format")
	return err
}

// ChangePassword gives an instance's user of etcd another password, which
// the instance is not told before Deliver.
func (w *World) ChangePassword(t testing.TB, user string) {
	t.Helper()
	c := w.Client(t)
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), settle)
	defer cancel()
	password := rand.Text()
	_, err := c.UserChangePassword(ctx, user, password)
	if err == nil {
		err = os.WriteFile(w.vault.password(user), []byte(password+"\n"), 0o600)
	}
	if err != nil {
		t.Fatalf("change the password of %s: %v", user, err)
	}
}
