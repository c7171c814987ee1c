package check

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"routerd.dev/internal/rollout"
)

const (
	// MaxBody is how many bytes an answer may have.
	MaxBody = 1 << 20
	// DefaultEvery is how often a check is asked that does not say.
	DefaultEvery = 10 * time.Second
	// DefaultTimeout is how long an answer may take if the check does not say.
	DefaultTimeout = 5 * time.Second

	maxRedirects = 5
)

// Ask asks once, for as long as c.Timeout says at most. ok is false when there
// is an answer without a value; value is always a number that JSON can say: what is
// infinite becomes the largest number there is.
func Ask(ctx context.Context, c rollout.Check) (value float64, ok bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, cmp.Or(time.Duration(c.Timeout), DefaultTimeout))
	defer cancel()
	p, err := providerOf(c)
	if err == nil {
		value, ok, err = p.ask(ctx)
	}
	if err != nil {
		return 0, false, fmt.Errorf("check %s: %w", c.Name, err)
	}
	if !ok || math.IsNaN(value) {
		return 0, false, nil
	}
	return max(-math.MaxFloat64, min(value, math.MaxFloat64)), true, nil
}

// A provider is a system that can be asked for a number. Another one is a file
// with its type, a field of rollout.Check and a line of providerOf: time limit,
// names and what counts as a value are Ask's.
type provider interface {
	// ask asks once, until ctx ends. ok is false when the answer has no value;
	// NaN counts as that, too, and the value may be infinite.
	ask(ctx context.Context) (value float64, ok bool, err error)
}

// providerOf is the one that a check names; a strategy's checks name one each.
func providerOf(c rollout.Check) (provider, error) {
	switch {
	case c.Web != nil:
		return (*web)(c.Web), nil
	case c.Prometheus != nil:
		return (*prometheus)(c.Prometheus), nil
	}
	return nil, errors.New("it asks nothing: want web or prometheus")
}

// An answer is what came back, bounded.
type answer struct {
	status int
	body   []byte
}

// send sends one request. Each has a connection of its own: checks are seconds
// apart, and a system's balancer gets to choose each time.
func send(ctx context.Context, method, address string, headers map[string]string) (answer, error) {
	req, err := http.NewRequestWithContext(ctx, method, address, nil)
	if err != nil {
		return answer{}, fmt.Errorf("make the request: %w", err)
	}
	for name, v := range headers {
		if v, err = headerValue(v); err != nil {
			return answer{}, fmt.Errorf("header %s: %w", name, err)
		}
		if strings.EqualFold(name, "Host") {
			req.Host = v
			continue
		}
		req.Header.Set(name, v)
	}
	transport := &http.Transport{Proxy: http.ProxyFromEnvironment, DisableKeepAlives: true, MaxResponseHeaderBytes: 64 << 10}
	defer transport.CloseIdleConnections()
	client := http.Client{Transport: transport, CheckRedirect: stayOnHost}
	resp, err := client.Do(req)
	if err != nil {
		return answer{}, short(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, MaxBody+1))
	switch {
	case err != nil:
		return answer{}, fmt.Errorf("read the answer: %w", err)
	case len(body) > MaxBody:
		return answer{}, fmt.Errorf("the answer has more than %d bytes", MaxBody)
	}
	return answer{status: resp.StatusCode, body: body}, nil
}

// short leaves the address out of an error: its query may hold a secret, and
// errors are kept in etcd.
func short(err error) error {
	var u *url.Error
	if !errors.As(err, &u) {
		return err
	}
	if u.Timeout() {
		return errors.New("no answer in time")
	}
	return u.Err
}

// stayOnHost lets a redirect lead nowhere but to the same host, and not from
// https to http: the headers may hold a secret.
func stayOnHost(req *http.Request, via []*http.Request) error {
	from := via[0].URL
	switch {
	case req.URL.Host != from.Host:
		return fmt.Errorf("redirected from %s to another host, %s: name that in the check", from.Host, req.URL.Host)
	case req.URL.Scheme != from.Scheme && req.URL.Scheme != "https":
		return fmt.Errorf("redirected from https to %s", req.URL.Scheme)
	case len(via) > maxRedirects:
		return fmt.Errorf("redirected more than %d times", maxRedirects)
	}
	return nil
}

// headerValue reads what env:NAME stands for.
func headerValue(v string) (string, error) {
	name, fromEnv := strings.CutPrefix(v, "env:")
	if !fromEnv {
		return v, nil
	}
	if strings.HasPrefix(name, "ROUTERD_") && !strings.HasPrefix(name, "ROUTERD_CHECK_") {
		return "", fmt.Errorf("%s is routerd's own and not for checks: put the secret into ROUTERD_CHECK_NAME, or a variable of another name", name)
	}
	value, ok := os.LookupEnv(name)
	if !ok {
		return "", fmt.Errorf("the controller has no environment variable %s", name)
	}
	return value, nil
}

// told gives the beginning of an answer for an error, in one line.
func (a answer) told() string {
	text := strings.Join(strings.Fields(strings.ToValidUTF8(string(a.body[:min(len(a.body), 200)]), "")), " ")
	if text == "" {
		return fmt.Sprintf("answered %d", a.status)
	}
	return fmt.Sprintf("answered %d: %s", a.status, text)
}
