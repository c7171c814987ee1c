package daemon

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"

	"routerd.dev/internal/store"
)

// Check returns everything that is wrong with the settings, each with the name
// of its setting.
func (c *Config) Check() error {
	var errs []error
	bad := func(key, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s: %s", key, fmt.Sprintf(format, args...)))
	}
	for key, v := range map[string]string{"group": c.Group, "instance": c.Instance} {
		if err := store.CheckName(key, v); err != nil {
			bad(key, "%v", err)
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
	if c.StateDir != "" {
		if err := checkControl(c.ControlPath()); err != nil {
			bad("control", "%v", err)
		}
	}
	c.checkSecrets(bad)
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

// checkSecrets looks at what goes with keys; the files are read later.
func (c *Config) checkSecrets(bad func(key, format string, args ...any)) {
	if c.TokenKey == "" && c.TokenCookie != "" {
		bad("token-cookie", "goes with token-key, which is not given")
	}
	if c.TokenKey == "" && c.TokenStrict {
		bad("token-strict", "goes with token-key, which is not given")
	}
	if c.TokenCookie != "" && !httpguts.ValidHeaderFieldName(c.TokenCookie) { // a cookie's name is such a token, too
		bad("token-cookie", "%q: want a cookie's name, such as routerd-token", c.TokenCookie)
	}
	for _, s := range c.NotifyURLs {
		u, err := url.Parse(s)
		if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
			bad("notify-url", "want http://host/path or https://host/path") // not shown: it may be secret
		}
	}
	if (len(c.NotifyURLs) > 0) != (c.NotifyKey != "") {
		bad("notify-key", "goes with notify-url: by it the receiver tells who speaks")
	}
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
