package daemon

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
	"pgregory.net/rapid"
)

func settings(t testing.TB, args ...string) (*Config, *pflag.FlagSet) {
	t.Helper()
	var c Config
	fs := pflag.NewFlagSet("serve", pflag.ContinueOnError)
	c.Flags(fs)
	if err := fs.Parse(args); err != nil {
		t.Fatal(err)
	}
	return &c, fs
}

func write(t testing.TB, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestFileThenEnvironmentThenFlag(t *testing.T) {
	c, fs := settings(t, "--group", "of-flag", "--endpoints", "f1:1,f2:2")
	path := write(t, "c.yaml", `
group: of-file
instance: of-file
prefix: /of-file
endpoints: [a:1]
trusted-proxies: [10.0.0.0/8, "::1"]
lease-ttl: 15s
max-header-bytes: 4096
controller: true
http: ""
`)
	origins, err := Load(fs, path, []string{"ROUTERD_GROUP=of-env", "ROUTERD_INSTANCE=of-env", "ROUTERD_TRUSTED_PROXIES=192.0.2.1, 192.0.2.2", "HOME=/", "ROUTERD_CONFIG=x"})
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range []struct {
		setting   string
		got, want any
		from      Origin
	}{
		{"group", c.Group, "of-flag", "flag"},
		{"instance", c.Instance, "of-env", "env ROUTERD_INSTANCE"},
		{"prefix", c.Prefix, "/of-file", Origin("file " + path + ":4")},
		{"endpoints", c.Endpoints, []string{"f1:1", "f2:2"}, "flag"},
		{"trusted-proxies", c.TrustedProxies, []string{"192.0.2.1", "192.0.2.2"}, "env ROUTERD_TRUSTED_PROXIES"},
		{"lease-ttl", c.LeaseTTL, 15 * time.Second, Origin("file " + path + ":7")},
		{"max-header-bytes", c.MaxHeaderBytes, 4096, Origin("file " + path + ":8")},
		{"controller", c.Controller, true, Origin("file " + path + ":9")},
		{"http", c.HTTP, "", Origin("file " + path + ":10")},
		{"state-dir", c.StateDir, "/var/lib/routerd", "default"},
	} {
		if !reflect.DeepEqual(g.got, g.want) || origins[g.setting] != g.from {
			t.Errorf("%s is %v of %q, want %v of %q", g.setting, g.got, origins[g.setting], g.want, g.from)
		}
	}
}

// TestLoadReportsEverything: each key that is unknown and each value that
// cannot be taken is named with its place, also where a stronger value hides it.
func TestLoadReportsEverything(t *testing.T) {
	_, fs := settings(t, "--lease-ttl", "5s")
	path := write(t, "c.yaml", `
gruop: x
lease-ttl: soon
group: [a, b]
idle-timeout:
prefix: {a: b}
max-header-bytes: many
config: other
`)
	_, err := Load(fs, path, []string{"ROUTERD_STATEDIR=/x", "ROUTERD_CONTROLLER=perhaps", "ROUTERD_PRINT_CONFIG=1", "ROUTERD_state_dir=/x"})
	if err == nil {
		t.Fatal("all of it was taken")
	}
	for _, want := range []string{
		path + ":2: gruop: no such setting; is it group?",
		path + `:3: lease-ttl: "soon": want a duration`,
		path + ":4: group: want one value, got a list",
		path + ":5: idle-timeout: want one value",
		path + ":6: prefix: want one value",
		path + `:7: max-header-bytes: "many": want a whole number`,
		path + ":8: config: no such setting",
		"env ROUTERD_STATEDIR: statedir: no such setting; is it state-dir?",
		`env ROUTERD_CONTROLLER: controller: "perhaps": want true or false`,
		"env ROUTERD_PRINT_CONFIG: print-config: no such setting",
		"env ROUTERD_state_dir: state-dir: no such setting",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("not said: %s\nin:\n%v", want, err)
		}
	}
}

func TestFilesThatAreNoSettings(t *testing.T) {
	for text, want := range map[string]string{
		"- a\n":                "want one map of settings",
		"group: a\ngroup: b\n": "group",
		"group: [\n":           "c.yaml",
		"a: 1\n---\nb: 1\n":    "want one map of settings",
	} {
		_, fs := settings(t)
		if _, err := Load(fs, write(t, "c.yaml", text), nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want it to say %q", text, err, want)
		}
	}
	_, fs := settings(t)
	if _, err := Load(fs, write(t, "c.yaml", "# nothing yet\n"), nil); err != nil {
		t.Errorf("a file without settings: %v", err)
	}
	if _, err := Load(fs, filepath.Join(t.TempDir(), "none"), nil); err == nil || !strings.Contains(err.Error(), "read configuration") {
		t.Errorf("a missing file: %v", err)
	}
}

// TestServiceLinksAreNoSettings: in a namespace with a Service named routerd,
// Kubernetes gives every pod variables that begin like ours.
func TestServiceLinksAreNoSettings(t *testing.T) {
	_, fs := settings(t)
	_, err := Load(fs, "", []string{
		"ROUTERD_SERVICE_HOST=10.0.0.1", "ROUTERD_SERVICE_PORT=80", "ROUTERD_SERVICE_PORT_HTTP=80", "ROUTERD_PORT=tcp://10.0.0.1:80",
		"ROUTERD_PORT_80_TCP=tcp://10.0.0.1:80", "ROUTERD_PORT_80_TCP_PROTO=tcp", "ROUTERD_PORT_80_TCP_PORT=80", "ROUTERD_PORT_80_TCP_ADDR=10.0.0.1",
		"ROUTERD_ADMIN_SERVICE_HOST=10.0.0.1", "ROUTERD_ADMIN_PORT_9080_TCP=tcp://10.0.0.1:9080",
	})
	if err != nil {
		t.Error(err)
	}
	fs.VisitAll(func(f *pflag.Flag) {
		_, fs := settings(t)
		_, err := Load(fs, "", []string{envName(f.Name) + "=\x00"})
		if f.Value.Type() == "bool" && err == nil {
			t.Errorf("%s is taken for a service link", f.Name)
		}
	})
}

// TestPrintedConfigIsTheConfig: what --print-config shows is a file that gives
// the same settings, whatever they are, but for secrets.
func TestPrintedConfigIsTheConfig(t *testing.T) {
	text := rapid.StringMatching(`[ -~äß€\t]{0,12}`)
	rapid.Check(t, func(rt *rapid.T) {
		c, fs := settings(t)
		fs.VisitAll(func(f *pflag.Flag) {
			if !rapid.Bool().Draw(rt, "set "+f.Name) {
				return
			}
			var err error
			switch f.Value.Type() {
			case "bool":
				err = fs.Set(f.Name, fmt.Sprint(rapid.Bool().Draw(rt, f.Name)))
			case "int", "int64":
				err = fs.Set(f.Name, fmt.Sprint(rapid.Int32().Draw(rt, f.Name)))
			case "duration":
				err = fs.Set(f.Name, time.Duration(rapid.Int64().Draw(rt, f.Name)).String())
			case "string":
				v := text.Draw(rt, f.Name)
				if f.Name == "etcd-password" {
					v = "file:" + v
				}
				err = fs.Set(f.Name, v)
			case "stringSlice", "stringArray":
				err = f.Value.(pflag.SliceValue).Replace(rapid.SliceOfN(text, 1, 3).Draw(rt, f.Name))
			default:
				rt.Fatalf("%s has a type that this test does not know: %s", f.Name, f.Value.Type())
			}
			if err != nil {
				rt.Fatal(err)
			}
		})
		var shown bytes.Buffer
		if err := PrintConfig(&shown, fs, map[string]Origin{"group": "file /a b#c.yaml:1"}); err != nil {
			rt.Fatal(err)
		}
		again, fs2 := settings(t)
		if _, err := Load(fs2, write(t, "c.yaml", shown.String()), nil); err != nil {
			rt.Fatalf("%v in:\n%s", err, shown.String())
		}
		c.NotifyURLs = nil // secret
		for _, list := range []*[]string{&c.Endpoints, &c.TrustedProxies, &again.Endpoints, &again.TrustedProxies, &again.NotifyURLs} {
			if len(*list) == 0 {
				*list = nil
			}
		}
		if !reflect.DeepEqual(c, again) {
			rt.Fatalf("got  %+v\nwant %+v\nof:\n%s", again, c, shown.String())
		}
	})
}

func TestSecretsAreNotShown(t *testing.T) {
	_, fs := settings(t, "--etcd-user", "u", "--etcd-password", "hunter2", "--notify-url", "https://hook/hunter2")
	origins, err := Load(fs, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	var shown bytes.Buffer
	if err := PrintConfig(&shown, fs, origins); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(shown.String(), "hunter2") || !strings.Contains(shown.String(), "# etcd-password is set and not shown  # flag") ||
		!strings.Contains(shown.String(), "# notify-url is set and not shown  # flag") {
		t.Errorf("shown:\n%s", shown.String())
	}
}

func TestDefaultsAreAllRight(t *testing.T) {
	c, _ := settings(t, "--instance", "a")
	if err := c.Check(); err != nil {
		t.Error(err)
	}
}

func TestCheckReportsEverything(t *testing.T) {
	for _, c := range []struct {
		args string
		says []string
	}{
		{"--group a/b --instance= --prefix / --state-dir=", []string{`group: group name "a/b"`, `instance: instance name ""`, "prefix:", "state-dir: must be given"}},
		{"--group -x --instance .a", []string{`group: group name "-x"`, `instance: instance name ".a"`, "beginning with a letter or a digit"}},
		{"--http= --admin 127.0.0.1", []string{"http: one of http, https and h2c", `admin: "127.0.0.1": want host:port`}},
		{"--http :99999 --h2c :http", []string{`http: ":99999": the port`, `h2c: ":http": the port`}},
		{"--http :80 --admin :80", []string{"admin: :80 is the address of http, too"}},
		{"--https :443", []string{"https: needs tls-cert and tls-key"}},
		{"--tls-cert x", []string{"tls-cert: goes with https"}},
		{"--etcd-cert x --etcd-user u", []string{"etcd-cert: goes with etcd-key", "etcd-user: goes with etcd-password"}},
		{"--endpoints=", []string{"endpoints: at least one"}},
		{"--trusted-proxies 10.0.0.0/8,home", []string{`trusted-proxies: "home"`}},
		{"--lease-ttl 1s --join-timeout 0s --idle-timeout -1s --max-header-bytes 1 --compile-percent 101 --drain-timeout -1s", []string{
			"lease-ttl: out of range: want 2s to 1h", "join-timeout: out", "idle-timeout: out", "max-header-bytes: out", "compile-percent: out of range: want 1 to 100", "drain-timeout: out",
		}},
		{"--log-level loud --log-format xml", []string{`log-level: "loud"`, `log-format: "xml"`}},
		{"--embedded-etcd --embedded-etcd-listen x", []string{`embedded-etcd-listen: "x"`}},
	} {
		cfg, _ := settings(t, append([]string{"--instance", "a"}, strings.Fields(c.args)...)...)
		err := cfg.Check()
		for _, want := range c.says {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v, want it to say %q", c.args, err, want)
			}
		}
	}
}

func TestDevChecks(t *testing.T) {
	for args, want := range map[string]string{
		"--instances 0":               "instances: want 1 to 20, got 0",
		"--http nowhere":              `http: "nowhere": want host:port`,
		"--admin 127.0.0.1:65535":     "admin: 127.0.0.1:65535: 3 ports are needed",
		"--upstreams 127.0.0.1:65535": "upstreams:",
		"--empty --routes x":          "empty:",
		"--log-level loud":            "log-level:",
	} {
		var o DevOptions
		fs := pflag.NewFlagSet("dev", pflag.ContinueOnError)
		o.Flags(fs)
		if err := fs.Parse(strings.Fields(args)); err != nil {
			t.Fatal(err)
		}
		if err := o.Check(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want it to say %q", args, err, want)
		}
	}
}
