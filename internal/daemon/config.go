package daemon

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"routerd.dev/internal/yamlfile"
)

// envPrefix begins the name of the environment variable of each setting:
// --state-dir is ROUTERD_STATE_DIR.
const envPrefix = "ROUTERD_"

// A Config is the settings of one instance. Every field has a flag, an
// environment variable and a key in the configuration file, all of one name.
type Config struct {
	Group    string
	Instance string

	HTTP, HTTPS, H2C, Admin string // listen addresses; empty for none
	TLSCert, TLSKey         string // PEM files, read again when they change
	AdminPprof              bool

	Endpoints    []string // of etcd
	Prefix       string
	EtcdUser     string
	EtcdPassword string // "file:PATH" reads it from there
	EtcdCA       string
	EtcdCert     string
	EtcdKey      string
	EmbeddedEtcd bool
	EtcdListen   string // client address of the embedded etcd
	EtcdDir      string

	Controller  bool
	StateDir    string
	JoinTimeout time.Duration
	LeaseTTL    time.Duration

	TrustedProxies    []string
	ResponseHeaders   bool
	MergeSlashes      bool
	AllowEncodedSlash bool

	ReadHeaderTimeout time.Duration
	IdleTimeout       time.Duration
	MaxHeaderBytes    int
	MaxBodyBytes      int64
	MaxConnections    int
	DrainTimeout      time.Duration
	DrainDelay        time.Duration

	CompileMemory  int64
	CompileTime    time.Duration
	CompilePercent int

	LogFormat string
	LogLevel  string
	AccessLog string
}

// Flags adds a flag for every setting to fs, with its default and its help.
func (c *Config) Flags(fs *pflag.FlagSet) {
	host, _ := os.Hostname()
	fs.StringVar(&c.Group, "group", "main", "group of instances that switch together")
	fs.StringVar(&c.Instance, "instance", host, "name of this instance, one of its kind in the fleet")
	fs.StringVar(&c.HTTP, "http", "127.0.0.1:8080", "listen address for HTTP/1.1; empty for none")
	fs.StringVar(&c.HTTPS, "https", "", "listen address for HTTPS (HTTP/1.1 and HTTP/2); empty for none")
	fs.StringVar(&c.H2C, "h2c", "", "listen address for HTTP/2 without TLS, by prior knowledge; empty for none")
	fs.StringVar(&c.TLSCert, "tls-cert", "", "PEM file of the certificate chain; read again when it changes")
	fs.StringVar(&c.TLSKey, "tls-key", "", "PEM file of the private key; read again when it changes")
	fs.StringVar(&c.Admin, "admin", "127.0.0.1:9080", "listen address of health, status and metrics; empty for none")
	fs.BoolVar(&c.AdminPprof, "admin-pprof", false, "serve Go's profiles under /debug/pprof/ on the admin listener")

	fs.StringSliceVar(&c.Endpoints, "endpoints", []string{"127.0.0.1:2379"}, "etcd's client addresses, separated by commas")
	fs.StringVar(&c.Prefix, "prefix", "/routerd", "etcd key prefix of the fleet")
	fs.StringVar(&c.EtcdUser, "etcd-user", "", "etcd user name")
	fs.StringVar(&c.EtcdPassword, "etcd-password", "", "etcd password, or file:PATH to read it from a file")
	fs.StringVar(&c.EtcdCA, "etcd-ca", "", "PEM file of the authority that signed etcd's certificates; turns TLS on")
	fs.StringVar(&c.EtcdCert, "etcd-cert", "", "PEM file of the client certificate for etcd")
	fs.StringVar(&c.EtcdKey, "etcd-key", "", "PEM file of the client key for etcd")
	fs.BoolVar(&c.EmbeddedEtcd, "embedded-etcd", false, "run an etcd inside this process: a fleet on a single machine")
	fs.StringVar(&c.EtcdListen, "embedded-etcd-listen", "127.0.0.1:2379", "client address of the embedded etcd")
	fs.StringVar(&c.EtcdDir, "embedded-etcd-dir", "", "data of the embedded etcd; empty for etcd/ under the state directory")

	fs.BoolVar(&c.Controller, "controller", false, "stand for election as the fleet's controller (needs write access to the whole prefix)")
	fs.StringVar(&c.StateDir, "state-dir", "/var/lib/routerd", "where what was served is remembered, for starting without etcd")
	fs.DurationVar(&c.JoinTimeout, "join-timeout", 10*time.Second, "how long a start waits for etcd before it serves from the state directory")
	fs.DurationVar(&c.LeaseTTL, "lease-ttl", 10*time.Second, "an instance that etcd has not heard of for this long counts as gone")

	fs.StringSliceVar(&c.TrustedProxies, "trusted-proxies", nil, "CIDRs of proxies whose X-Forwarded-* are believed")
	fs.BoolVar(&c.ResponseHeaders, "response-headers", false, "say in Routerd-* headers of each answer which route, revision, epoch and instance gave it")
	fs.BoolVar(&c.MergeSlashes, "merge-slashes", false, "take repeated slashes in a path as one instead of refusing them")
	fs.BoolVar(&c.AllowEncodedSlash, "allow-encoded-slash", false, "take %2F in a path as data within a segment instead of refusing it")

	fs.DurationVar(&c.ReadHeaderTimeout, "read-header-timeout", 10*time.Second, "time a client has to send a request's head")
	fs.DurationVar(&c.IdleTimeout, "idle-timeout", 2*time.Minute, "time a client's connection may be idle between requests")
	fs.IntVar(&c.MaxHeaderBytes, "max-header-bytes", 64<<10, "largest request head, in bytes")
	fs.Int64Var(&c.MaxBodyBytes, "max-body-bytes", 0, "largest request body, in bytes; 0 for no limit")
	fs.IntVar(&c.MaxConnections, "max-connections", 0, "most client connections at once a listener; 0 for no limit")
	fs.DurationVar(&c.DrainTimeout, "drain-timeout", 30*time.Second, "after SIGTERM, how long requests have to finish")
	fs.DurationVar(&c.DrainDelay, "drain-delay", 0, "after SIGTERM, how long to go on accepting while readiness is off, for balancers to notice")

	fs.Int64Var(&c.CompileMemory, "compile-memory", 1<<30, "most memory that compiling a revision may take, in bytes")
	fs.DurationVar(&c.CompileTime, "compile-time", time.Minute, "most time that compiling a revision may take")

	fs.IntVar(&c.CompilePercent, "compile-percent", 50, "part of one core that compiling a revision may use while requests are served")

	fs.StringVar(&c.LogFormat, "log-format", "text", "text or json")
	fs.StringVar(&c.LogLevel, "log-level", "info", "debug, info, warn or error")
	fs.StringVar(&c.AccessLog, "access-log", "", "file of the access log, JSON lines; - for standard output, empty for none")
}

// An Origin says where a setting's value came from: "default", "file PATH:LINE",
// "env NAME" or "flag".
type Origin string

// Load fills the settings of fs that were not given as flags from the
// environment, and those that are not there from the file, if a path is
// given. It returns where each value came from. An unknown key in the file, an
// unknown ROUTERD_ variable, or a value that a setting cannot take is an
// error; all of them are reported at once.
func Load(fs *pflag.FlagSet, path string, environ []string) (map[string]Origin, error) {
	origins := make(map[string]Origin)
	fs.VisitAll(func(f *pflag.Flag) {
		if origins[f.Name] = "default"; f.Changed {
			origins[f.Name] = "flag"
		}
	})
	var errs []error
	set := func(name, value string, from Origin) {
		if origins[name] != "default" {
			return // what is stronger has spoken
		}
		if err := fs.Set(name, value); err != nil {
			errs = append(errs, fmt.Errorf("%s: %s: %w", from, name, err))
			return
		}
		origins[name] = from
	}

	for _, kv := range environ {
		name, value, _ := strings.Cut(kv, "=")
		key, ours := strings.CutPrefix(name, envPrefix)
		if !ours || key == "CONFIG" {
			continue
		}
		flag := strings.ReplaceAll(strings.ToLower(key), "_", "-")
		if fs.Lookup(flag) == nil || !isSetting(flag) || envName(flag) != name {
			errs = append(errs, fmt.Errorf("env %s: no such setting; `routerd serve --help` lists them", name))
			continue
		}
		set(flag, value, Origin("env "+name))
	}
	if path != "" {
		settings, err := readSettings(path)
		if err != nil {
			errs = append(errs, err)
		}
		for _, s := range settings {
			from := Origin(fmt.Sprintf("file %s:%d", path, s.line))
			if fs.Lookup(s.key) == nil || !isSetting(s.key) {
				errs = append(errs, fmt.Errorf("%s: %s: no such setting; `routerd serve --help` lists them", from, s.key))
				continue
			}
			set(s.key, s.value, from)
		}
	}
	return origins, errors.Join(errs...)
}

// isSetting tells a setting from the flags that say how to read them.
func isSetting(flag string) bool {
	return flag != "config" && flag != "print-config" && flag != "help"
}

type setting struct {
	key, value string
	line       int
}

// readSettings reads a configuration file: one map, each value a scalar or a
// list of scalars.
func readSettings(path string) ([]setting, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	docs, problems := yamlfile.Parse(path, data)
	if err := problems.Err(); err != nil {
		return nil, err
	}
	if len(docs) != 1 || docs[0].Root.Kind != yamlfile.Map {
		return nil, fmt.Errorf("%s: want one map of settings, such as group: main", path)
	}
	var (
		out  []setting
		errs []error
	)
	for _, f := range docs[0].Root.Fields {
		var values []string
		nodes := []*yamlfile.Node{f.Value}
		if f.Value.Kind == yamlfile.List {
			nodes = f.Value.Items
		}
		for _, n := range nodes {
			if n.Kind == yamlfile.List || n.Kind == yamlfile.Map || n.Kind == yamlfile.Null {
				errs = append(errs, fmt.Errorf("%s:%d: %s: want one value or a list of values, got %s", path, n.Pos.Line, f.Key, n.Kind))
				continue
			}
			values = append(values, n.Text)
		}
		out = append(out, setting{key: f.Key, value: strings.Join(values, ","), line: f.Pos.Line})
	}
	return out, errors.Join(errs...)
}

func envName(flag string) string {
	return envPrefix + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// PrintConfig writes every setting with its value and where it came from, as
// a configuration file that would give the same settings. Secrets are left out.
func PrintConfig(w io.Writer, fs *pflag.FlagSet, origins map[string]Origin) error {
	var err error
	fs.VisitAll(func(f *pflag.Flag) {
		if !isSetting(f.Name) || err != nil {
			return
		}
		value := f.Value.String()
		if s, ok := f.Value.(pflag.SliceValue); ok {
			value = "[" + strings.Join(s.GetSlice(), ", ") + "]"
		} else if f.Value.Type() == "string" {
			value = fmt.Sprintf("%q", value)
		}
		if f.Name == "etcd-password" && f.Value.String() != "" && !strings.HasPrefix(f.Value.String(), "file:") {
			_, err = fmt.Fprintf(w, "# %s is set and not shown  # %s\n", f.Name, origins[f.Name])
			return
		}
		_, err = fmt.Fprintf(w, "%s: %s  # %s\n", f.Name, value, origins[f.Name])
	})
	return err
}

// Check returns everything that is wrong with the settings, each with the name
// of its setting.
func (c *Config) Check() error {
	var errs []error
	bad := func(key, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s: %s", key, fmt.Sprintf(format, args...)))
	}
	for key, v := range map[string]string{"group": c.Group, "instance": c.Instance} {
		if !nameOK(v) {
			bad(key, "%q: want 1 to 63 letters, digits, '.', '_' or '-'", v)
		}
	}
	addrs := []struct{ key, addr string }{{"http", c.HTTP}, {"https", c.HTTPS}, {"h2c", c.H2C}, {"admin", c.Admin}}
	for _, a := range addrs {
		if a.addr == "" {
			continue
		}
		if _, _, err := net.SplitHostPort(a.addr); err != nil {
			bad(a.key, "%v: want host:port, such as 127.0.0.1:8080", err)
		}
	}
	if c.HTTP == "" && c.HTTPS == "" && c.H2C == "" {
		bad("http", "one of http, https and h2c must be given")
	}
	if c.HTTPS != "" && (c.TLSCert == "" || c.TLSKey == "") {
		bad("https", "needs tls-cert and tls-key")
	}
	if (c.EtcdCert == "") != (c.EtcdKey == "") {
		bad("etcd-cert", "goes with etcd-key")
	}
	if len(c.Endpoints) == 0 && !c.EmbeddedEtcd {
		bad("endpoints", "at least one is needed")
	}
	if c.StateDir == "" {
		bad("state-dir", "must be given: without it a start without etcd serves nothing")
	}
	for _, p := range c.TrustedProxies {
		if _, err := parsePrefix(p); err != nil {
			bad("trusted-proxies", "%v", err)
		}
	}
	positive := []struct {
		key string
		ok  bool
	}{
		{"join-timeout", c.JoinTimeout > 0}, {"lease-ttl", c.LeaseTTL >= 2*time.Second}, {"read-header-timeout", c.ReadHeaderTimeout > 0},
		{"idle-timeout", c.IdleTimeout > 0}, {"max-header-bytes", c.MaxHeaderBytes >= 1024}, {"max-body-bytes", c.MaxBodyBytes >= 0},
		{"max-connections", c.MaxConnections >= 0}, {"drain-timeout", c.DrainTimeout >= 0}, {"drain-delay", c.DrainDelay >= 0},
		{"compile-memory", c.CompileMemory >= 16<<20}, {"compile-time", c.CompileTime > 0},
		{"compile-percent", c.CompilePercent >= 1 && c.CompilePercent <= 100},
	}
	for _, p := range positive {
		if !p.ok {
			bad(p.key, "out of range; see `routerd serve --help`")
		}
	}
	if _, err := c.level(); err != nil {
		bad("log-level", "%q: want debug, info, warn or error", c.LogLevel)
	}
	if !slices.Contains([]string{"text", "json"}, c.LogFormat) {
		bad("log-format", "%q: want text or json", c.LogFormat)
	}
	slices.SortFunc(errs, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return errors.Join(errs...)
}

func (c *Config) level() (slog.Level, error) {
	var l slog.Level
	err := l.UnmarshalText([]byte(c.LogLevel))
	return l, err
}

func parsePrefix(s string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return p, fmt.Errorf("%q: want an address or a CIDR", s)
	}
	return p.Masked(), nil
}

func nameOK(s string) bool {
	if s == "" || len(s) > 63 {
		return false
	}
	for _, r := range s {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '.', r == '_', r == '-':
		default:
			return false
		}
	}
	return true
}
