package controller

import (
	"bytes"
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"
)

// NotifyOptions say whom to tell what becomes of rollouts. The zero value
// tells nobody.
type NotifyOptions struct {
	URLs []string // http or https; each is told everything, one after the other
	Key  []byte   // signs what is told; none: it is not signed

	Timeout time.Duration // of one try; 0 for 5 s
	Backoff time.Duration // after the first try that fails, doubling; 0 for 1 s
	Queue   int           // how many wait for a URL at most: the oldest go first; 0 for 100
}

const (
	// SignatureHeader is t=UNIX,v1=HEX: HEX is HMAC-SHA256, by the key, of the
	// same UNIX time in decimal, a dot and the body.
	SignatureHeader = "Routerd-Signature"

	notifyTries = 5
	// notifyGrace is for what waits still when the controller ends: one try each.
	notifyGrace = 2 * time.Second
)

// A notifier tells webhooks about events. What it cannot say within its tries
// is lost: etcd and the log have it.
type notifier struct {
	o      NotifyOptions
	log    *slog.Logger
	m      *meters
	client *http.Client
	doors  []*door
}

// A door is one webhook with what waits for it.
type door struct {
	url  string
	name string // for the log: a webhook's path is a secret, often

	mu    sync.Mutex
	queue []message
	ready chan struct{} // has room for one
}

type message struct {
	event, id string
	body      []byte
}

func newNotifier(o NotifyOptions, log *slog.Logger, m *meters) (*notifier, error) {
	o.Timeout, o.Backoff, o.Queue = cmp.Or(o.Timeout, 5*time.Second), cmp.Or(o.Backoff, time.Second), cmp.Or(o.Queue, 100)
	n := &notifier{o: o, log: log, m: m, client: &http.Client{
		Transport: &http.Transport{Proxy: http.ProxyFromEnvironment, MaxIdleConnsPerHost: 1, IdleConnTimeout: time.Minute},
		Timeout:   o.Timeout,
		// A redirect would take the event to somebody who was not named.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
	for i, s := range o.URLs {
		u, err := url.Parse(s)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
			return nil, fmt.Errorf("notify: webhook %d is no URL: want http://HOST/PATH or https://HOST/PATH", i+1)
		}
		n.doors = append(n.doors, &door{url: s, name: u.Scheme + "://" + u.Host, ready: make(chan struct{}, 1)})
	}
	return n, nil
}

// put leaves an event for every webhook. It never waits.
func (n *notifier) put(ctx context.Context, e Event) {
	if len(n.doors) == 0 {
		return
	}
	body, err := json.Marshal(e)
	if err != nil {
		n.log.Error("cannot tell webhooks", "event", e.Event, "rollout", e.Rollout, "err", err)
		return
	}
	for _, d := range n.doors {
		if lost, dropped := d.put(message{e.Event, e.ID, body}, n.o.Queue); dropped {
			n.m.notified(ctx, "dropped")
			n.log.Warn("webhook is too slow, the oldest event is dropped", "webhook", d.name, "event", lost.event, "id", lost.id)
		}
	}
}

func (d *door) put(m message, most int) (lost message, dropped bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.queue = append(d.queue, m)
	if len(d.queue) > most {
		lost, dropped = d.queue[0], true
		d.queue = append([]message(nil), d.queue[1:]...)
	}
	select {
	case d.ready <- struct{}{}:
	default:
	}
	return lost, dropped
}

func (d *door) take() (message, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.queue) == 0 {
		return message{}, false
	}
	m := d.queue[0]
	d.queue = d.queue[1:]
	return m, true
}

// run tells until ctx ends, then what waits still, for notifyGrace at most.
func (n *notifier) run(ctx context.Context) {
	var wg sync.WaitGroup
	for _, d := range n.doors {
		wg.Go(func() { n.serve(ctx, d) })
	}
	wg.Wait()
	n.client.CloseIdleConnections()
}

func (n *notifier) serve(ctx context.Context, d *door) {
	grace, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	ended := context.AfterFunc(ctx, func() { time.AfterFunc(notifyGrace, cancel) })
	defer ended()
	for {
		m, ok := d.take()
		switch {
		case ok:
			n.tell(ctx, grace, d, m)
			continue
		case ctx.Err() != nil:
			return
		}
		select {
		case <-d.ready:
		case <-ctx.Done():
		}
	}
}

// tell tries until it is said, or often enough. Once ctx ended it tries only
// once more, until grace ends.
func (n *notifier) tell(ctx, grace context.Context, d *door, m message) {
	log := n.log.With("webhook", d.name, "event", m.event, "id", m.id)
	wait := n.o.Backoff
	for try := 1; ; try++ {
		last := try == notifyTries || ctx.Err() != nil
		err := n.post(grace, d.url, m.body)
		switch {
		case err == nil:
			n.m.notified(grace, "sent")
			return
		case last:
			n.m.notified(grace, "failed")
			log.Error("webhook was not told", "tries", try, "err", err)
			return
		}
		log.Warn("webhook does not take it, trying again", "try", try, "err", err, "in", wait)
		pause(ctx, wait/2+rand.N(wait/2+1))
		wait *= 2
	}
}

func (n *notifier) post(ctx context.Context, to string, body []byte) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, to, bytes.NewReader(body))
	if err != nil {
		return short(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "routerd")
	if len(n.o.Key) > 0 {
		req.Header.Set(SignatureHeader, Sign(n.o.Key, time.Now(), body))
	}
	resp, err := n.client.Do(req)
	if err != nil {
		return short(err)
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10)) // so that the connection can be used again
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("answered %d", resp.StatusCode)
	}
	return nil
}

// short leaves the address out, which may be a secret.
func short(err error) error {
	if u, ok := err.(*url.Error); ok {
		if u.Timeout() {
			return context.DeadlineExceeded
		}
		return u.Err
	}
	return err
}

// Sign gives the value of SignatureHeader for a body that is sent at a time.
func Sign(key []byte, at time.Time, body []byte) string {
	t := strconv.FormatInt(at.Unix(), 10)
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(t + "."))
	mac.Write(body)
	return "t=" + t + ",v1=" + hex.EncodeToString(mac.Sum(nil))
}
