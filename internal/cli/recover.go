package cli

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"routerd.dev/internal/admin"
	"routerd.dev/internal/rollout"
	"routerd.dev/internal/store"
	"routerd.dev/internal/version"
)

func newRecoverCmd(c *command) *cobra.Command {
	var (
		from, groups []string
		message      string
		w            waiting
	)
	cmd := &cobra.Command{
		Use:   "recover [--from INSTANCE]…",
		Short: "End a freeze after etcd was wiped or restored from an older copy",
		Long: `End a freeze. Instances freeze, and serve on, when etcd knows less than they do:
it was wiped, or restored from an older copy.

Without --from, etcd is right: the groups' assignments as etcd has them get
epochs above everything that was ever served, and the instances follow.

With --from, the instance is right: what it serves is given back to etcd, as its
group's assignment and, unless etcd's is newer, as the fleet's target. INSTANCE
is a name that status lists, or the URL of an instance's admin listener; name
one instance of each group.`,
		Example: `  routectl recover --wait                               adopt what etcd has
  routectl recover --from edge-1 --from canary-1 --wait restore etcd from them
  routectl recover --from http://127.0.0.1:9080         an etcd that knows nobody`,
		Args: usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if len(from) > 0 && len(groups) > 0 {
				return fail(ExitUsage, errors.New("--group goes not with --from: each instance gives back its own group"), "")
			}
			return c.withStore(func(s *store.Store) error {
				if len(from) > 0 {
					return c.restore(cmd.Context(), s, from, message, w)
				}
				return c.adopt(cmd.Context(), s, groups, message, w)
			})
		},
	}
	cmd.Flags().StringArrayVar(&from, "from", nil, "restore etcd from this instance; may be repeated, once a group")
	cmd.Flags().StringSliceVarP(&groups, "group", "g", nil, "only these groups; may be repeated")
	cmd.Flags().StringVarP(&message, "message", "m", "", "why, for the audit log")
	_ = cmd.RegisterFlagCompletionFunc("group", c.completeGroups)
	w.flags(cmd)
	return cmd
}

// adopt asks the controller to make what etcd has the truth.
func (c *command) adopt(ctx context.Context, s *store.Store, groups []string, message string, w waiting) error {
	fleet, err := s.Fleet(ctx)
	if errors.Is(err, store.ErrNotInitialized) {
		return fail(ExitFailed, err, "etcd knows of no fleet to adopt; routectl recover --from URL restores it from an instance")
	} else if err != nil {
		return err
	}
	i := rollout.Intent{Kind: rollout.IntentRecover, Groups: groups, By: c.env.author(), Message: message}
	if err := w.apply(&i); err != nil {
		return err
	}
	if err := c.awaitMembers(ctx, s, groups); err != nil {
		return err
	}
	if i, err = s.PutIntent(ctx, i, nil, fleet.Target); err != nil {
		return err
	}
	if !w.wait {
		c.say("asked for recovery; routectl status --watch follows it")
	}
	return c.finish(ctx, s, i.ID, w, "recovered")
}

// rejoining is how long instances are waited for that etcd says there were: by
// then the lease has ended of those that are not there.
const rejoining = 10 * time.Second

// awaitMembers waits until as many instances are back as the groups had. A
// recovery is for the groups that are frozen at that moment, and just after
// etcd was restored every instance still has to join again, and to tell that it
// is.
func (c *command) awaitMembers(ctx context.Context, s *store.Store, groups []string) error {
	until, said := time.Now().Add(rejoining), ""
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		v, err := s.View(ctx)
		if err != nil {
			return nil // a record that cannot be read is no reason not to recover; what else it is, the intent meets too
		}
		back := map[string]int{}
		for name, r := range v.Reports {
			if _, registered := v.Instances[name]; registered {
				back[r.Group]++
			}
		}
		var away []string
		for _, g := range sorted(v.Groups) {
			if n := v.Groups[g].Members - back[g]; n > 0 && (len(groups) == 0 || slices.Contains(groups, g)) {
				away = append(away, fmt.Sprintf("%d of group %s", n, g))
			}
		}
		if len(away) == 0 {
			return nil
		}
		if time.Now().After(until) {
			c.say("not there: %s; who of them comes back frozen needs another routectl recover", strings.Join(away, ", "))
			return nil
		}
		if text := strings.Join(away, ", "); text != said {
			said = text
			c.doing("waiting for who was there before: %s", text)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// restore gives etcd back what the instances hold.
func (c *command) restore(ctx context.Context, s *store.Store, from []string, message string, w waiting) error {
	v, err := s.View(ctx)
	if errors.Is(err, store.ErrNotInitialized) {
		v = &rollout.View{}
	} else if err != nil && (v == nil || !errors.Is(err, store.ErrCorrupt)) { // else all but the fleet is there, which Recover puts back
		return err
	}
	req := store.RecoverRequest{By: c.env.author(), Why: message}
	seen, instances := map[string]string{}, []string{}
	for _, name := range from {
		h, err := c.holding(ctx, v, name)
		if err != nil {
			return err
		}
		if req.FleetID != "" && req.FleetID != h.Fleet {
			return fail(ExitFailed, fmt.Errorf("%s is of fleet %s, the instances before it of fleet %s", name, h.Fleet, req.FleetID), "")
		}
		if other := seen[h.Group]; other != "" {
			return fail(ExitUsage, fmt.Errorf("%s and %s are both of group %s", other, name, h.Group), "name one instance of each group")
		}
		seen[h.Group], req.FleetID = name, h.Fleet
		if err := checkHolding(v, &h); err != nil {
			return fmt.Errorf("restore from %s: %w", name, err)
		}
		if err := addHolding(ctx, &req, v, h); err != nil {
			return fmt.Errorf("restore from %s: %w", name, err)
		}
		instances = append(instances, h.Instance)
	}
	done, err := s.Recover(ctx, req)
	if err != nil {
		return err
	}
	if w.wait {
		if err := c.awaitGroups(ctx, s, req.Groups, instances, w.timeout); err != nil {
			return err
		}
	}
	return c.print(done, func(t *table) {
		if done.Created {
			t.line("fleet %s is back in etcd", req.FleetID)
		}
		t.line("groups restored: %s", strings.Join(done.Groups, ", "))
	})
}

// holding asks an instance, by its name or the URL of its admin listener, for
// what it serves.
func (c *command) holding(ctx context.Context, v *rollout.View, name string) (h admin.Holding, err error) {
	base := strings.TrimSuffix(name, "/")
	if !strings.Contains(name, "://") {
		i, ok := v.Instances[name]
		switch {
		case !ok:
			return h, fail(ExitUsage, fmt.Errorf("etcd knows no instance %q", name), "name the URL of its admin listener instead, such as http://127.0.0.1:9080")
		case i.Admin == "":
			return h, fail(ExitFailed, fmt.Errorf("instance %s has no admin listener", name), "start it with --admin")
		}
		base = "http://" + i.Admin
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+"/v1/holding", nil)
	if err != nil {
		return h, fail(ExitUsage, fmt.Errorf("--from %s: %w", name, err), "")
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return h, fail(ExitFailed, fmt.Errorf("ask %s: %w", name, err), "the admin listener is on loopback by default: run this on the instance's machine, with --from http://127.0.0.1:9080")
	}
	defer resp.Body.Close()
	const most = 2 << 30 // base64 of the largest snapshot
	body := io.LimitReader(resp.Body, most)
	if resp.StatusCode != http.StatusOK {
		why, _ := io.ReadAll(io.LimitReader(body, 4<<10))
		return h, fmt.Errorf("ask %s: %s: %s", name, resp.Status, strings.TrimSpace(string(why)))
	}
	if err := json.NewDecoder(body).Decode(&h); err != nil {
		return h, fmt.Errorf("ask %s: %w", name, err)
	}
	return h, nil
}

// checkHolding refuses an answer that no instance of this fleet gives: what it
// says becomes keys and numbers in etcd, from which the fleet counts on.
func checkHolding(v *rollout.View, h *admin.Holding) error {
	epoch := store.Believable(v.Groups[h.Group].Epoch)
	number := store.Believable(max(v.Fleet.Target.Number, v.Fleet.Committed.Number))
	if err := errors.Join(store.CheckName("group", h.Group), store.CheckName("instance", h.Instance)); err != nil {
		return err
	}
	switch {
	case h.HighestEpoch < 0 || h.HighestEpoch > epoch:
		return fmt.Errorf("epoch %d: no fleet counted so", h.HighestEpoch)
	case h.Serving.Number < 1 || h.Serving.Number > number:
		return fmt.Errorf("revision %d: no fleet counted so", h.Serving.Number)
	case h.HighestRevision < 0 || h.HighestRevision > number:
		return fmt.Errorf("highest revision %d: no fleet counted so", h.HighestRevision)
	}
	return nil
}

// addHolding verifies what an instance gave and adds it to the request, as an
// assignment whose epoch is above every one that the group ever served.
func addHolding(ctx context.Context, req *store.RecoverRequest, v *rollout.View, h admin.Holding) error {
	chunks := version.MapFetcher{}
	for text, packed := range h.Chunks {
		d, err := version.ParseDigest(text)
		if err != nil {
			return err
		}
		chunks[d] = packed
	}
	t, _, err := version.Load(ctx, h.Serving.Digest, h.Manifest, chunks, nil)
	if err != nil {
		return err
	}
	snap, err := version.Encode(t)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(req.Snapshots, func(s *version.Snapshot) bool { return s.Digest == snap.Digest }) {
		req.Snapshots = append(req.Snapshots, snap)
	}
	same := func(r version.Revision) bool { return r.Number == h.Serving.Number }
	if i := slices.IndexFunc(req.Revisions, same); i < 0 {
		req.Revisions = append(req.Revisions, version.Revision{
			Number: h.Serving.Number, Digest: snap.Digest, Author: req.By, Time: time.Now().UTC(),
			Message: "restored from " + h.Instance, Modules: snap.Manifest.ModuleDigests(), Routes: snap.Manifest.Routes(),
			Needs: slices.Clone(snap.Manifest.Capabilities),
		})
	} else if was := req.Revisions[i].Digest; was != snap.Digest {
		return fail(ExitConflict, fmt.Errorf("revision %d is %s there, and %s on an instance named before it", h.Serving.Number, snap.Digest.Short(), was.Short()),
			"restore from the one that is right; routectl recover then has the other group follow")
	}
	if h.Serving.Number > req.Target.Number {
		req.Target = h.Serving
	}
	req.Highest = max(req.Highest, h.HighestRevision)
	epoch := max(h.HighestEpoch, v.Groups[h.Group].Epoch)
	for _, r := range v.Reports {
		if r.Group == h.Group {
			epoch = max(epoch, r.HighestEpoch)
		}
		req.Highest = max(req.Highest, r.HighestRevision)
	}
	req.Replace = append(req.Replace, h.Group) // also one whose record cannot be read; a higher epoch stops it
	req.Groups = append(req.Groups, rollout.Assignment{
		Group: h.Group, Epoch: epoch + 1, Recovered: epoch + 1, Nonce: rollout.Nonce(rand.Text()),
		Set: []version.Ref{h.Serving}, Stable: h.Serving, Instant: time.Now().UTC(),
		Override: &rollout.Override{Why: "restored from " + h.Instance},
	})
	return nil
}

// awaitGroups waits until every registered instance of the groups serves the
// epoch that was restored, and so do those that gave it back: in an etcd that was
// wiped nobody is registered at first.
func (c *command) awaitGroups(ctx context.Context, s *store.Store, groups []rollout.Assignment, from []string, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	c.say("restored; waiting until every registered instance of %s serves it", strings.Join(groupNames(groups), ", "))
	said := ""
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	behind := []string{"nothing is known yet"}
	for len(behind) > 0 {
		select {
		case <-ctx.Done():
			return fail(ExitNotReached, fmt.Errorf("not recovered after %v: %s", timeout, strings.Join(behind, ", ")), "routectl status --watch")
		case <-tick.C:
		}
		v, err := s.View(ctx)
		if err != nil {
			behind = []string{err.Error()}
			continue
		}
		behind = nil
		for _, name := range from {
			if _, ok := v.Instances[name]; !ok {
				behind = append(behind, name+" (not registered)")
			}
		}
		for _, g := range groups {
			for _, name := range sorted(v.Instances) {
				i, r := v.Instances[name], v.Reports[name]
				if i.Group == g.Group && (r.Frozen != "" || r.Serving == nil || r.Serving.Epoch < g.Epoch) {
					behind = append(behind, name)
				}
			}
		}
		if text := strings.Join(behind, ", "); text != said && text != "" {
			said = text
			c.say("  waiting for %s", text)
		}
	}
	return nil
}

func groupNames(groups []rollout.Assignment) []string {
	names := make([]string, len(groups))
	for i, g := range groups {
		names[i] = g.Group
	}
	return names
}
