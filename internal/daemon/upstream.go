package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/spf13/pflag"
)

// UpstreamOptions are the settings of `routerd upstream`.
type UpstreamOptions struct {
	Listen string
	Name   string
}

// Flags adds the settings to fs.
func (o *UpstreamOptions) Flags(fs *pflag.FlagSet) {
	fs.StringVar(&o.Listen, "listen", "127.0.0.1:9001", "address to answer at")
	fs.StringVar(&o.Name, "name", "A", "what it calls itself in its answers")
}

// Check returns what is wrong with the settings.
func (o *UpstreamOptions) Check() error {
	if err := checkAddr(o.Listen); err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	return nil
}

// Upstream runs an example upstream until ctx ends. Where it listens is written
// to out.
func Upstream(ctx context.Context, o UpstreamOptions, out io.Writer) error {
	if err := o.Check(); err != nil {
		return err
	}
	l, err := listen("listen", o.Listen)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "upstream %s answers at http://%s\n", o.Name, l.Addr())
	return serveUpstream(ctx, l, o.Name)
}

// serveUpstream answers on l until ctx ends, and closes it.
func serveUpstream(ctx context.Context, l net.Listener, name string) error {
	srv := &http.Server{Handler: exampleUpstream(name), ReadHeaderTimeout: 10 * time.Second}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("example upstream %s: %w", name, err)
	}
	return nil
}

// exampleUpstream says what it was asked, and streams the time at /events.
func exampleUpstream(name string) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		fmt.Fprintf(w, "upstream %s was asked %s %s for %s\n", name, r.Method, r.URL.RequestURI(), r.Host)
	})
	mux.HandleFunc("/events", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		flush := http.NewResponseController(w)
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			if _, err := io.WriteString(w, "data: "+time.Now().Format(time.TimeOnly)+"\n\n"); err != nil {
				return
			}
			if err := flush.Flush(); err != nil {
				return
			}
			select {
			case <-r.Context().Done():
				return
			case <-tick.C:
			}
		}
	})
	return mux
}
