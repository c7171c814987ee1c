package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"routerd.dev/examples"
	"routerd.dev/internal/engine"
	"routerd.dev/internal/rollout"
	"routerd.dev/internal/route"
	"routerd.dev/internal/routefile"
	"routerd.dev/internal/store"
	"routerd.dev/internal/version"
)

// firstRevision publishes what the options name, unless the data directory
// holds a fleet with a history, and waits until every instance serves.
func (o *DevOptions) firstRevision(ctx context.Context, f *devFleet, out io.Writer) error {
	s := f.instances[0].store
	// The instances make the fleet too; whoever comes first does.
	if _, _, err := s.Init(ctx); err != nil {
		return err
	}
	head, err := s.Head(ctx)
	if err != nil {
		return err
	}
	switch {
	case head == 0 && o.Empty:
		return nil
	case head == 0:
		// Publishing to groups that do not exist yet would switch nothing.
		if err := waitFor(ctx, f.instances, joined); err != nil {
			return errors.New("the instances did not join: --log-level info says more")
		}
		if err := o.publishFirst(ctx, s, f.upstreams); err != nil {
			return err
		}
	case len(o.Routes) > 0:
		fmt.Fprintf(out, "routerd: %s holds %d revisions already: --routes is not published; routectl publish does\n", o.DataDir, head)
	}
	if err := waitFor(ctx, f.instances, ready); err != nil {
		for _, i := range f.instances {
			if r := i.agent.Ready(); !r.Ready {
				return fmt.Errorf("%s does not serve: %s", i.cfg.Instance, r.Why)
			}
		}
		return err
	}
	return nil
}

func (o *DevOptions) publishFirst(ctx context.Context, s *store.Store, ups []net.Listener) error {
	files, err := o.files(ups)
	if err != nil {
		return err
	}
	mods, problems := routefile.Parse(files)
	t := &route.Table{Modules: mods}
	if err := append(problems, engine.Check(t)...).Err(); err != nil {
		return err
	}
	snap, err := version.Encode(t)
	if err != nil {
		return err
	}
	_, err = s.Publish(ctx, store.PublishRequest{
		Snapshot: snap, Author: "routerd dev", Message: "the first routes",
		Intent: &rollout.Intent{Kind: rollout.IntentSwitch},
	})
	return err
}

// files are the route files that were named, or the examples, with the
// upstreams' real addresses in them.
func (o *DevOptions) files(ups []net.Listener) ([]routefile.File, error) {
	if len(o.Routes) > 0 {
		return routefile.Read(o.Routes, strings.NewReader(""))
	}
	names, err := fs.Glob(examples.Files, "*.yaml")
	if err != nil {
		return nil, err
	}
	addr := strings.NewReplacer(examples.UpstreamA, ups[0].Addr().String(), examples.UpstreamB, ups[1].Addr().String())
	var out []routefile.File
	for _, name := range names {
		b, err := examples.Files.ReadFile(name)
		if err != nil {
			return nil, err
		}
		out = append(out, routefile.File{Name: "examples/" + name, Data: []byte(addr.Replace(string(b)))})
	}
	return out, nil
}

// joined tells whether every instance is admitted to its group: only then does
// a commit wait for it.
func joined(instances []*instance) bool {
	for _, i := range instances {
		if s := i.agent.Status(); !s.Joined || s.Ready == "" {
			return false
		}
	}
	return true
}

func ready(instances []*instance) bool {
	for _, i := range instances {
		if !i.agent.Ready().Ready {
			return false
		}
	}
	return true
}

// waitFor waits for at most half a minute.
func waitFor(ctx context.Context, instances []*instance, cond func([]*instance) bool) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	return poll(ctx, func() bool { return cond(instances) })
}

// listenUpstreams binds the two example upstreams.
func (o *DevOptions) listenUpstreams() ([]net.Listener, error) {
	var ls []net.Listener
	for n := range 2 {
		addr, err := portUp(o.Upstreams, n)
		if err != nil {
			closeAll(ls)
			return nil, err
		}
		l, err := listen("upstreams", addr)
		if err != nil {
			closeAll(ls)
			return nil, err
		}
		ls = append(ls, l)
	}
	return ls, nil
}

// serveUpstreams answers on both until ctx ends.
func serveUpstreams(ctx context.Context, ls []net.Listener) error {
	var g errgroup.Group
	for n, l := range ls {
		g.Go(func() error { return serveUpstream(ctx, l, string(rune('A'+n))) })
	}
	return g.Wait()
}
