package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"routerd.dev/internal/agent"
	"routerd.dev/internal/version"
)

const (
	controlFile = "control.sock"
	// controlTime bounds an order: what is pinned may have to be compiled first.
	controlTime = 90 * time.Second
	maxOrder    = 64 << 10 // bytes of an order
)

// maxSocketPath is how long the kernel lets a unix socket's path be.
const maxSocketPath = len(syscall.RawSockaddrUnix{}.Path) - 1

// ControlPath is where this instance takes orders by `routerd ctl`.
func (c *Config) ControlPath() string {
	if c.Control != "" {
		return c.Control
	}
	return filepath.Join(c.StateDir, controlFile)
}

func checkControl(path string) error {
	if n := len(path); n > maxSocketPath {
		return fmt.Errorf("%s has %d bytes, the path of a unix socket at most %d: put it elsewhere with --control, such as --control /run/routerd.sock", path, n, maxSocketPath)
	}
	return nil
}

// listenControl opens the socket, which only this user may use. What a process
// that died left there is replaced; what is in use, or no socket, is not.
func listenControl(ctx context.Context, path string) (net.Listener, error) {
	fail := func(err error) (net.Listener, error) {
		return nil, fmt.Errorf("control: %w: --control puts the socket elsewhere", err)
	}
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return fail(err)
	case info.Mode().Type() != fs.ModeSocket:
		return fail(fmt.Errorf("%s exists and is no socket", path))
	default:
		if conn, err := net.DialTimeout("unix", path, time.Second); err == nil {
			conn.Close()
			return fail(fmt.Errorf("another process listens on %s", path))
		} else if !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, fs.ErrNotExist) {
			return fail(fmt.Errorf("look at %s: %w", path, err))
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fail(err)
		}
	}
	// On Linux the file gets the socket's mode, so it is never open to others,
	// not even for a moment.
	private := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) { _ = syscall.Fchmod(int(fd), 0o600) })
	}}
	l, err := private.Listen(ctx, "unix", path)
	if err != nil {
		return fail(err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return fail(err)
	}
	return l, nil // which removes its file when it is closed
}

// placeEvery is how often it is looked whether what this process needs in its
// state directory is there still.
const placeEvery = time.Second

// keepPlace puts the lock and the control socket back after somebody removed
// the state directory: whoever does expects it to be made anew, and without them
// it could not be given orders, nor would a second process be kept out. It
// returns when ctx has ended and the server was shut down.
func (i *instance) keepPlace(ctx context.Context) {
	var servers sync.WaitGroup
	defer servers.Wait()
	tick := time.NewTicker(placeEvery)
	defer tick.Stop()
	said := ""
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		restored, err := i.state.restore()
		if _, missing := os.Lstat(i.cfg.ControlPath()); err == nil && errors.Is(missing, fs.ErrNotExist) {
			var l net.Listener
			if l, err = listenControl(ctx, i.cfg.ControlPath()); err == nil {
				restored = true
				servers.Go(func() { _ = i.ctl[0].server.Serve(l) }) // it ends with the first one's
			}
		}
		switch {
		case err != nil && said != err.Error():
			said = err.Error()
			i.log.Error("the state directory was changed from outside and cannot be put right, trying again", "err", err)
		case err == nil && restored:
			said = ""
			i.log.Warn("the lock or the control socket was removed: put back", "state-dir", i.cfg.StateDir)
		}
	}
}

// A ControlStatus is what `routerd ctl status` shows.
type ControlStatus struct {
	agent.Status
	Readiness agent.Readiness `json:"readiness"`
	Pinnable  []version.Ref   `json:"pinnable"` // what it can be pinned to
}

// A PinOrder asks for a revision, by its number or the beginning of its digest.
type PinOrder struct {
	To  string `json:"to"`
	By  string `json:"by,omitempty"`
	Why string `json:"why,omitempty"`
}

// An orderly takes orders; *agent.Agent is one.
type orderly interface {
	Ready() agent.Readiness
	Status() agent.Status
	Pinnable(ctx context.Context) ([]version.Ref, error)
	Pin(ctx context.Context, to, by, why string) (agent.PinResult, error)
	Unpin(ctx context.Context) (agent.PinResult, error)
	Forgive(ctx context.Context) (agent.PinResult, error)
}

// control answers on the socket. Who can open it may give orders.
func control(a orderly, log *slog.Logger) http.Handler {
	mux := http.NewServeMux()
	answer := func(w http.ResponseWriter, v any, err error) {
		code := http.StatusOK
		if err != nil {
			code, v = http.StatusConflict, map[string]string{"error": err.Error()}
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		_ = json.NewEncoder(w).Encode(v)
	}
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), time.Second)
		defer cancel()
		refs, err := a.Pinnable(ctx)
		if err != nil { // it is ending: all else is known
			log.Debug("what can be pinned is not known", "err", err)
		}
		answer(w, ControlStatus{Status: a.Status(), Readiness: a.Ready(), Pinnable: refs}, nil)
	})
	mux.HandleFunc("POST /v1/pin", func(w http.ResponseWriter, r *http.Request) {
		var o PinOrder
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxOrder)).Decode(&o); err != nil || o.To == "" {
			answer(w, nil, errors.New("want an object with to, the number or digest of a revision"))
			return
		}
		log.Warn("ordered to pin", "to", o.To, "by", o.By, "why", o.Why)
		ctx, cancel := context.WithTimeout(r.Context(), controlTime)
		defer cancel()
		res, err := a.Pin(ctx, o.To, o.By, o.Why)
		answer(w, res, err)
	})
	mux.HandleFunc("POST /v1/unpin", func(w http.ResponseWriter, r *http.Request) {
		log.Warn("ordered to unpin")
		ctx, cancel := context.WithTimeout(r.Context(), controlTime)
		defer cancel()
		res, err := a.Unpin(ctx)
		answer(w, res, err)
	})
	mux.HandleFunc("POST /v1/forgive", func(w http.ResponseWriter, r *http.Request) {
		log.Warn("ordered to forgive")
		ctx, cancel := context.WithTimeout(r.Context(), controlTime)
		defer cancel()
		res, err := a.Forgive(ctx)
		answer(w, res, err)
	})
	return mux
}

// controlServer bounds everything, as the admin's.
func (c *Config) controlServer(log *slog.Logger) *http.Server {
	srv := c.adminServer(log)
	srv.WriteTimeout = controlTime + 10*time.Second
	return srv
}

// A Controls gives orders to an instance on this machine, by its socket.
type Controls struct{ Socket string }

// Status asks how the instance is.
func (c Controls) Status(ctx context.Context) (s ControlStatus, err error) {
	return s, c.ask(ctx, http.MethodGet, "/v1/status", nil, &s)
}

// Pin has it serve a revision, whatever is committed.
func (c Controls) Pin(ctx context.Context, o PinOrder) (r agent.PinResult, err error) {
	return r, c.ask(ctx, http.MethodPost, "/v1/pin", o, &r)
}

// Unpin has it serve what its group is assigned.
func (c Controls) Unpin(ctx context.Context) (r agent.PinResult, err error) {
	return r, c.ask(ctx, http.MethodPost, "/v1/unpin", struct{}{}, &r)
}

// Forgive has it end every quarantine.
func (c Controls) Forgive(ctx context.Context) (r agent.PinResult, err error) {
	return r, c.ask(ctx, http.MethodPost, "/v1/forgive", struct{}{}, &r)
}

func (c Controls) ask(ctx context.Context, method, path string, order, result any) error {
	if err := checkControl(c.Socket); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, controlTime+10*time.Second)
	defer cancel()
	t := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", c.Socket)
	}}
	defer t.CloseIdleConnections()
	body, err := json.Marshal(order)
	if err != nil {
		return fmt.Errorf("encode the order: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://routerd"+path, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("ask %s: %w", c.Socket, err)
	}
	res, err := (&http.Client{Transport: t}).Do(req)
	if err != nil {
		return fmt.Errorf("no routerd answers at %s: is it running, and is this its socket? --state-dir, --control or --config name another: %w", c.Socket, errors.Unwrap(err))
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, 64<<20))
	if err != nil {
		return fmt.Errorf("read what routerd says: %w", err)
	}
	if res.StatusCode != http.StatusOK {
		var e struct{ Error string }
		if json.Unmarshal(b, &e) != nil || e.Error == "" {
			e.Error = res.Status
		}
		return errors.New(e.Error)
	}
	if err := json.Unmarshal(b, result); err != nil {
		return fmt.Errorf("read what routerd says: %w", err)
	}
	return nil
}
