package daemon

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strconv"
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
	// A weaker value that a setting cannot take is an error, too: it would come
	// into force on the day the stronger one goes.
	set := func(name string, v value, from Origin) {
		if err := v.check(fs.Lookup(name)); err != nil {
			errs = append(errs, fmt.Errorf("%s: %s: %w", from, name, err))
			return
		}
		if origins[name] != "default" {
			return // what is stronger has spoken
		}
		if err := v.set(fs.Lookup(name)); err != nil {
			errs = append(errs, fmt.Errorf("%s: %s: %w", from, name, err))
			return
		}
		origins[name] = from
	}

	link := regexp.MustCompile(serviceLinks)
	for _, kv := range environ {
		name, text, _ := strings.Cut(kv, "=")
		key, ours := strings.CutPrefix(name, envPrefix)
		if !ours || key == "CONFIG" || link.MatchString(name) {
			continue
		}
		flag := strings.ReplaceAll(strings.ToLower(key), "_", "-")
		if fs.Lookup(flag) == nil || !isSetting(flag) || envName(flag) != name {
			errs = append(errs, unknown(fs, Origin("env "+name), flag))
			continue
		}
		set(flag, textOf(fs.Lookup(flag), text), Origin("env "+name))
	}
	if path != "" {
		settings, err := readSettings(path)
		if err != nil {
			errs = append(errs, err)
		}
		for _, s := range settings {
			from := Origin(fmt.Sprintf("file %s:%d", path, s.line))
			if fs.Lookup(s.key) == nil || !isSetting(s.key) {
				errs = append(errs, unknown(fs, from, s.key))
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

// unknown is the error of a key that is no setting.
func unknown(fs *pflag.FlagSet, from Origin, key string) error {
	var names []string
	fs.VisitAll(func(f *pflag.Flag) {
		if isSetting(f.Name) {
			names = append(names, f.Name)
		}
	})
	hint := "`routerd serve --help` lists them"
	if near := yamlfile.Suggest(key, names); near != "" {
		hint = "is it " + near + "?"
	}
	return fmt.Errorf("%s: %s: no such setting; %s", from, key, hint)
}

// serviceLinks matches the variables that Kubernetes adds for each Service of a
// namespace, here for one whose name begins with routerd: they are nobody's settings.
const serviceLinks = `^ROUTERD(_[A-Z0-9_]+)?_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT(_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)$`

// A value is what a file or a variable gives a setting.
type value struct {
	items []string
	list  bool // written as a list
}

// textOf reads one text: for a list, of items separated by commas.
func textOf(f *pflag.Flag, text string) value {
	if _, ok := f.Value.(pflag.SliceValue); !ok {
		return value{items: []string{text}}
	}
	v := value{list: true}
	for item := range strings.SplitSeq(text, ",") {
		if item = strings.TrimSpace(item); item != "" {
			v.items = append(v.items, item)
		}
	}
	return v
}

// check tells whether f can take the value, without a trace on f.
func (v value) check(f *pflag.Flag) error {
	if _, ok := f.Value.(pflag.SliceValue); ok {
		return nil
	}
	if v.list {
		return errors.New("want one value, got a list")
	}
	trial := pflag.NewFlagSet("", pflag.ContinueOnError)
	switch f.Value.Type() {
	case "bool":
		trial.Bool("v", false, "")
	case "int":
		trial.Int("v", 0, "")
	case "int64":
		trial.Int64("v", 0, "")
	case "duration":
		trial.Duration("v", 0, "")
	default:
		return nil
	}
	if err := trial.Lookup("v").Value.Set(v.items[0]); err != nil {
		return fmt.Errorf("%q: want %s", v.items[0], wanted(f.Value.Type()))
	}
	return nil
}

func wanted(kind string) string {
	switch kind {
	case "bool":
		return "true or false"
	case "duration":
		return "a duration, such as 10s"
	default:
		return "a whole number"
	}
}

func (v value) set(f *pflag.Flag) error {
	if list, ok := f.Value.(pflag.SliceValue); ok {
		return list.Replace(v.items)
	}
	return f.Value.Set(v.items[0])
}

type setting struct {
	key   string
	value value
	line  int
}

// readSettings reads a configuration file: one map, each value a scalar or a
// list of scalars. A file without content sets nothing.
func readSettings(path string) ([]setting, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	docs, problems := yamlfile.Parse(path, data)
	if err := problems.Err(); err != nil {
		return nil, err
	}
	if len(docs) == 0 {
		return nil, nil
	}
	if len(docs) != 1 || docs[0].Root.Kind != yamlfile.Map {
		return nil, fmt.Errorf("%s: want one map of settings, such as group: main", path)
	}
	var (
		out  []setting
		errs []error
	)
	for _, f := range docs[0].Root.Fields {
		s := setting{key: f.Key, line: f.Pos.Line, value: value{list: f.Value.Kind == yamlfile.List}}
		nodes := []*yamlfile.Node{f.Value}
		if s.value.list {
			nodes = f.Value.Items
		}
		bad := false
		for _, n := range nodes {
			if n.Kind == yamlfile.List || n.Kind == yamlfile.Map || n.Kind == yamlfile.Null {
				errs = append(errs, fmt.Errorf(`file %s:%d: %s: want one value or a list of values, got %s; "" is empty text`, path, n.Pos.Line, f.Key, n.Kind))
				bad = true
				continue
			}
			s.value.items = append(s.value.items, n.Text)
		}
		if !bad {
			out = append(out, s)
		}
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
		text := f.Value.String()
		if s, ok := f.Value.(pflag.SliceValue); ok {
			var items []string
			for _, item := range s.GetSlice() {
				items = append(items, quote(item))
			}
			text = "[" + strings.Join(items, ", ") + "]"
		} else if f.Value.Type() == "string" {
			text = quote(text)
		}
		if f.Name == "etcd-password" && f.Value.String() != "" && !strings.HasPrefix(f.Value.String(), "file:") {
			_, err = fmt.Fprintf(w, "# %s is set and not shown  # %s\n", f.Name, origins[f.Name])
			return
		}
		_, err = fmt.Fprintf(w, "%s: %s  # %s\n", f.Name, text, origins[f.Name])
	})
	return err
}

// quote gives text as a file may have it. Every JSON string is one of YAML.
func quote(s string) string {
	b, _ := json.Marshal(s) // a string always has a JSON form
	return string(b)
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
	if c.EmbeddedEtcd {
		addrs = append(addrs, struct{ key, addr string }{"embedded-etcd-listen", c.EtcdListen})
	}
	for n, a := range addrs {
		if a.addr == "" && a.key != "embedded-etcd-listen" {
			continue
		}
		if err := checkAddr(a.addr); err != nil {
			bad(a.key, "%v", err)
		}
		for _, b := range addrs[:n] {
			if a.addr == b.addr && !strings.HasSuffix(a.addr, ":0") {
				bad(a.key, "%s is the address of %s, too", a.addr, b.key)
			}
		}
	}
	if c.HTTP == "" && c.HTTPS == "" && c.H2C == "" {
		bad("http", "one of http, https and h2c must be given")
	}
	if c.HTTPS != "" && (c.TLSCert == "" || c.TLSKey == "") {
		bad("https", "needs tls-cert and tls-key")
	}
	if c.HTTPS == "" && (c.TLSCert != "" || c.TLSKey != "") {
		bad("tls-cert", "goes with https, which is not given")
	}
	if (c.EtcdCert == "") != (c.EtcdKey == "") {
		bad("etcd-cert", "goes with etcd-key")
	}
	if (c.EtcdUser == "") != (c.EtcdPassword == "") {
		bad("etcd-user", "goes with etcd-password")
	}
	if len(c.Endpoints) == 0 && !c.EmbeddedEtcd {
		bad("endpoints", "at least one is needed, such as 127.0.0.1:2379")
	}
	if slices.Contains(c.Endpoints, "") {
		bad("endpoints", "one of them is empty")
	}
	if strings.Trim(c.Prefix, "/") == "" {
		bad("prefix", "%q: want one of the fleet's own, such as /routerd", c.Prefix)
	}
	if c.StateDir == "" {
		bad("state-dir", "must be given: without it a start without etcd serves nothing")
	}
	for _, p := range c.TrustedProxies {
		if _, err := parsePrefix(p); err != nil {
			bad("trusted-proxies", "%v", err)
		}
	}
	for _, r := range []struct {
		key  string
		ok   bool
		want string
	}{
		{"join-timeout", c.JoinTimeout > 0, "more than 0"},
		{"lease-ttl", c.LeaseTTL >= 2*time.Second && c.LeaseTTL <= time.Hour, "2s to 1h"},
		{"read-header-timeout", c.ReadHeaderTimeout > 0, "more than 0"},
		{"idle-timeout", c.IdleTimeout > 0, "more than 0"},
		{"max-header-bytes", c.MaxHeaderBytes >= 1024 && c.MaxHeaderBytes <= 16<<20, "1024 to 16777216"},
		{"max-body-bytes", c.MaxBodyBytes >= 0, "0 or more"},
		{"max-connections", c.MaxConnections >= 0 && c.MaxConnections <= 1<<24, "0 to 16777216"},
		{"drain-timeout", c.DrainTimeout >= 0, "0 or more"},
		{"drain-delay", c.DrainDelay >= 0, "0 or more"},
		{"compile-memory", c.CompileMemory >= 16<<20, "16777216 or more"},
		{"compile-time", c.CompileTime > 0, "more than 0"},
		{"compile-percent", c.CompilePercent >= 1 && c.CompilePercent <= 100, "1 to 100"},
	} {
		if !r.ok {
			bad(r.key, "out of range: want %s", r.want)
		}
	}
	if _, err := c.level(); err != nil {
		errs = append(errs, err)
	}
	if !slices.Contains([]string{"text", "json"}, c.LogFormat) {
		bad("log-format", "%q: want text or json", c.LogFormat)
	}
	slices.SortFunc(errs, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return errors.Join(errs...)
}

func (c *Config) level() (slog.Level, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(c.LogLevel)); err != nil {
		return l, fmt.Errorf("log-level: %q: want debug, info, warn or error", c.LogLevel)
	}
	return l, nil
}

// checkAddr tells whether addr can be listened on, as far as it says itself.
func checkAddr(addr string) error {
	const want = "want host:port, such as 127.0.0.1:8080"
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("%q: %s", addr, want)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || strconv.FormatUint(n, 10) != port {
		return fmt.Errorf("%q: the port is a number up to 65535: %s", addr, want)
	}
	return nil
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
