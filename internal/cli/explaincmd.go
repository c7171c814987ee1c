package cli

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/netip"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"routerd.dev/internal/engine"
	"routerd.dev/internal/route"
	"routerd.dev/internal/store"
	"routerd.dev/internal/version"
)

func newExplainCmd(c *command) *cobra.Command {
	var (
		headers []string
		client  string
		revName string
		files   []string
	)
	cmd := &cobra.Command{
		Use:   "explain METHOD URL",
		Short: "Say which route serves a request, and why the others do not",
		Long: `Say which route serves a request, its parameters, and for each route whose
pattern could take the path why it won or lost. The target decides, or the
revision or the files that are named. URL is absolute, or a path for a request
without a host.`,
		Example: `  routectl explain GET https://api.example.com/users/7
  routectl explain GET /users/7 -H 'X-Beta: 1' --revision 41
  routectl explain POST /orders -f shop.yaml -o json`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(files) > 0 && len(args) > 2 {
				return fail(ExitUsage, fmt.Errorf("%s takes METHOD and URL, and one path for each -f", cmd.CommandPath()), "repeat the flag: -f a.yaml -f b.yaml")
			}
			return usage(cobra.ExactArgs(2))(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			head := engine.HeadOf(strings.ToUpper(args[0]), args[1])
			header, err := parseHeaders(headers)
			if err != nil {
				return err
			}
			if host := header.Get("Host"); host != "" { // as servers see it: no header field
				head.Host = host
				header.Del("Host")
			}
			head.Header = header
			if client != "" {
				if head.Client, err = netip.ParseAddr(client); err != nil {
					return fail(ExitUsage, fmt.Errorf("--client: %w", err), "want an address such as 10.0.0.1")
				}
			}
			if len(files) > 0 && revName != "" {
				return fail(ExitUsage, errors.New("--revision and -f exclude each other"), "")
			}
			ref, t, err := c.tableToExplain(cmd.Context(), revName, files)
			if err != nil {
				return err
			}
			e, err := engine.Compile(cmd.Context(), ref, t, nil, engine.Options{})
			if err != nil {
				return err
			}
			x := e.Explain(&head)
			return c.print(x, func(w *table) { showExplanation(w, args, x) })
		},
	}
	fs := cmd.Flags()
	fs.StringArrayVarP(&headers, "header", "H", nil, "header of the request, 'Name: value'; may be repeated")
	fs.StringVar(&client, "client", "", "the client's address")
	fs.StringVar(&revName, "revision", "", "revision to ask; the target if absent")
	fs.StringArrayVarP(&files, "file", "f", nil, "ask this route file, or folder, or - for standard input, instead, without etcd; may be repeated")
	_ = cmd.RegisterFlagCompletionFunc("file", completeFiles)
	_ = cmd.RegisterFlagCompletionFunc("revision", c.completeRevisions(math.MaxInt))
	return cmd
}

func parseHeaders(list []string) (http.Header, error) {
	h := http.Header{}
	for _, kv := range list {
		name, value, ok := strings.Cut(kv, ":")
		if !ok || strings.TrimSpace(name) == "" {
			return nil, fail(ExitUsage, fmt.Errorf("-H %q: want 'Name: value'", kv), "")
		}
		h.Add(strings.TrimSpace(name), strings.TrimSpace(value))
	}
	return h, nil
}

// tableToExplain is the table that files hold, or that of a revision.
func (c *command) tableToExplain(ctx context.Context, name string, files []string) (ref version.Ref, t *route.Table, err error) {
	if len(files) > 0 {
		mods, err := c.readFiles(files)
		return ref, &route.Table{Modules: mods}, err
	}
	if name == "" {
		name = "target"
	}
	err = c.withStore(func(s *store.Store) error {
		rev, err := revision(ctx, s, name)
		if err != nil {
			return err
		}
		ref = rev.Ref()
		t, err = loadRevision(ctx, s, ref)
		return err
	})
	return ref, t, err
}

func showExplanation(w *table, args []string, x engine.Explanation) {
	switch {
	case x.Route != "":
		w.line("%s %s is served by %s: %s", strings.ToUpper(args[0]), args[1], x.Route, x.Action)
		for _, name := range sorted(x.Params) {
			w.line("  %s = %s", name, strconv.Quote(x.Params[name]))
		}
	default:
		w.line("%s %s is answered %d: %s", strings.ToUpper(args[0]), args[1], x.Status, x.Why)
		if len(x.Allow) > 0 {
			w.line("  allowed: %s", strings.Join(x.Allow, ", "))
		}
	}
	if x.Revision != 0 {
		w.line("by revision %d", x.Revision)
	}
	if len(x.Considered) == 0 {
		w.line("no route has a pattern for this path")
		return
	}
	w.line("")
	w.row("ROUTE", "HOST", "METHODS", "PATH", "VERDICT", "WHY")
	for _, r := range x.Considered {
		w.row(r.Route, r.Host, r.Methods, r.Path, r.Verdict, r.Why)
	}
}
