package daemon

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"routerd.dev/internal/engine"
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
	NotifyURLs  []string // who is told what becomes of rollouts, while this instance is the controller
	NotifyKey   string   // file of the key that signs what they are told
	StateDir    string
	Control     string // unix socket; empty for one in StateDir
	JoinTimeout time.Duration
	LeaseTTL    time.Duration

	TokenKey    string // file; empty for no tokens
	TokenCookie string
	TokenStrict bool

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

	leeway *engine.Leeway // of the process, whose instances share it; nil for none
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

	fs.BoolVar(&c.Controller, "controller", false, "stand for election as the fleet's controller (where etcd controls access, its user needs the role that routectl etcd setup --controller gives)")
	fs.StringArrayVar(&c.NotifyURLs, "notify-url", nil, "while this instance is the controller, tell this address what becomes of rollouts; may be repeated")
	fs.StringVar(&c.NotifyKey, "notify-key", "", "file with the key that signs what notify-url is told")
	fs.StringVar(&c.StateDir, "state-dir", "/var/lib/routerd", "where what was served is remembered, for starting without etcd")
	fs.StringVar(&c.Control, "control", "", "unix socket for routerd ctl; empty for control.sock under the state directory")
	fs.DurationVar(&c.JoinTimeout, "join-timeout", 10*time.Second, "how long a start waits for etcd before it serves from the state directory")
	fs.DurationVar(&c.LeaseTTL, "lease-ttl", 10*time.Second, "an instance that etcd has not heard of for this long counts as gone")

	fs.StringVar(&c.TokenKey, "token-key", "", "file of the keys of tokens, by which clients do not go back in time when they move between instances; read again when it changes; empty for no tokens")
	fs.StringVar(&c.TokenCookie, "token-cookie", "", "carry the token in a cookie of this name, besides the header Routerd-Token")
	fs.BoolVar(&c.TokenStrict, "token-strict", false, "answer 503 to a client that saw a later epoch whose revision this instance does not hold, instead of serving what it has")

	fs.StringSliceVar(&c.TrustedProxies, "trusted-proxies", nil, "CIDRs of proxies whose X-Forwarded-* are believed")
	fs.BoolVar(&c.ResponseHeaders, "response-headers", false, "say in Routerd-* headers of each answer which route, revision, epoch, group and instance gave it")
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
// namespace, here for one whose name begins with routerd: they are nobody's
// settings.
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
		if isSecret(f) {
			_, err = fmt.Fprintf(w, "# %s is set and not shown  # %s\n", f.Name, origins[f.Name])
			return
		}
		_, err = fmt.Fprintf(w, "%s: %s  # %s\n", f.Name, text, origins[f.Name])
	})
	return err
}

// isSecret tells whether a setting's value is not to be shown. Addresses that
// are told things often have a password in them.
func isSecret(f *pflag.Flag) bool {
	switch f.Name {
	case "etcd-password":
		return f.Value.String() != "" && !strings.HasPrefix(f.Value.String(), "file:")
	case "notify-url":
		s, ok := f.Value.(pflag.SliceValue)
		return !ok || len(s.GetSlice()) > 0
	}
	return false
}

// quote gives text as a file may have it. Every JSON string is one of YAML.
func quote(s string) string {
	b, _ := json.Marshal(s) // a string always has a JSON form
	return string(b)
}
