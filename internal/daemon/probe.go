package daemon

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"routerd.dev/internal/store"
)

// ProbeOptions say what `routerd probe` asks and how.
type ProbeOptions struct {
	URL           string // empty for the instance's own admin listener
	Ready, Alive  bool   // which of its pages; neither is Ready
	Timeout       time.Duration
	CA, Cert, Key string // PEM files, for https
	ServerName    string // that the certificate must be for; empty for the URL's host
}

// Flags adds the options to fs, but for the URL.
func (o *ProbeOptions) Flags(fs *pflag.FlagSet) {
	fs.BoolVar(&o.Ready, "ready", false, "ask the instance whether it serves what it should (/readyz); the default")
	fs.BoolVar(&o.Alive, "alive", false, "ask only whether the process answers (/healthz)")
	fs.DurationVar(&o.Timeout, "timeout", 2*time.Second, "an answer that takes longer is none")
	fs.StringVar(&o.CA, "ca", "", "authority that signed the server's certificate, a PEM file; without, the system's")
	fs.StringVar(&o.Cert, "cert", "", "client certificate, a PEM file, for a server that asks for one")
	fs.StringVar(&o.Key, "key", "", "key of the client certificate, a PEM file")
	fs.StringVar(&o.ServerName, "server-name", "", "name that the server's certificate must be for; without, the URL's host")
}

// Check returns everything that is wrong with the options.
func (o *ProbeOptions) Check() error {
	var errs []error
	if o.Timeout <= 0 {
		errs = append(errs, fmt.Errorf("timeout: want more than 0, got %v", o.Timeout))
	}
	if o.Ready && o.Alive {
		errs = append(errs, errors.New("alive: asks another page than ready, so only one of them can be given"))
	}
	if o.URL != "" {
		u, err := url.Parse(o.URL)
		switch {
		case err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Hostname() == "":
			errs = append(errs, fmt.Errorf("%q: want a URL such as http://127.0.0.1:2381/health", o.URL))
		case o.Ready || o.Alive:
			errs = append(errs, errors.New("a URL names its own page, so it does not go with --ready or --alive"))
		}
	}
	return errors.Join(errs...)
}

// AdminURL is where the instance answers to this machine, on its admin listener.
func (c *Config) AdminURL() (string, error) {
	if c.Admin == "" {
		return "", errors.New("admin: the instance has no admin listener to ask; name a URL")
	}
	host, port, err := net.SplitHostPort(c.Admin)
	if err != nil {
		return "", fmt.Errorf("admin: %w", err)
	}
	// A listener on every address is asked on loopback.
	if ip := net.ParseIP(host); host == "" || ip.Equal(net.IPv4zero) {
		host = "127.0.0.1"
	} else if ip.Equal(net.IPv6zero) {
		host = "::1"
	}
	return "http://" + net.JoinHostPort(host, port), nil
}

// Probe asks once and returns the answer in one line. Whatever is not a 2xx
// within the time limit is an error. It takes no proxy and follows no redirect:
// the one that is asked must be well itself.
func Probe(ctx context.Context, cfg *Config, o ProbeOptions) (string, error) {
	target := o.URL
	if target == "" {
		admin, err := cfg.AdminURL()
		if err != nil {
			return "", err
		}
		if target = admin + "/readyz"; o.Alive {
			target = admin + "/healthz"
		}
	}
	creds, err := store.LoadTLS(o.CA, o.Cert, o.Key)
	if err != nil {
		return "", err
	}
	if creds == nil {
		creds = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	creds.ServerName = o.ServerName
	ctx, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	t := &http.Transport{TLSClientConfig: creds, DisableKeepAlives: true}
	client := &http.Client{Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, http.NoBody)
	if err != nil {
		return "", fmt.Errorf("ask %s: %w", target, err)
	}
	res, err := client.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return "", fmt.Errorf("%s: no answer within %v", target, o.Timeout)
		}
		return "", fmt.Errorf("%s: %w", target, errors.Unwrap(err)) // without the method and the URL again
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, 4<<10))
	if err != nil {
		return "", fmt.Errorf("%s: read the answer: %w", target, err)
	}
	line := strings.TrimSuffix(target+": "+res.Status+": "+gist(body), ": ")
	if res.StatusCode < 200 || res.StatusCode > 299 {
		return "", errors.New(line)
	}
	return line, nil
}

// gist is what an answer says, in one line: the reason that /readyz gives, else
// its beginning.
func gist(body []byte) string {
	text := string(body)
	var r struct{ Why, Reason string }
	if json.Unmarshal(body, &r) == nil && r.Why+r.Reason != "" {
		text = r.Why + r.Reason
	}
	const most = 200 // bytes
	text = strings.ToValidUTF8(strings.Join(strings.Fields(text), " "), "")
	if len(text) > most {
		text = strings.ToValidUTF8(text[:most], "") + "…"
	}
	return text
}
