package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"routerd.dev/internal/rollout"
	"routerd.dev/internal/store"
	"routerd.dev/internal/version"
)

func newPardonCmd(c *command) *cobra.Command {
	var message string
	cmd := &cobra.Command{
		Use:   "pardon DIGEST|REVISION -m WHY",
		Short: "Let a condemned revision be tried again",
		Long: `Let a condemned revision be tried again. A digest is condemned when instances
died while they were the first to prepare it; nothing prepares it from then on,
and publishing it is refused. Once pardoned it is prepared by one instance
first. status lists what is condemned; the first characters of a digest do.`,
		Example: `  routectl pardon 3f2a9c01b7d4 -m "the machine had run out of memory"`,
		Args:    usage(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if message == "" {
				return fail(ExitUsage, errors.New("a digest is pardoned for a reason"), "say which with -m")
			}
			return c.withStore(func(s *store.Store) error {
				ctx := cmd.Context()
				d, err := condemned(ctx, s, args[0])
				if err != nil {
					return err
				}
				if err := s.Pardon(ctx, d, c.env.author(), message); err != nil {
					return err
				}
				return c.print(pardoned{d}, func(w *table) {
					w.line("%s is condemned no more; routectl switch or publish tries it again", d.Short())
				})
			})
		},
		ValidArgsFunction: c.completeCondemned,
	}
	cmd.Flags().StringVarP(&message, "message", "m", "", "why, for the audit log")
	return cmd
}

// pardoned is what `pardon -o json` gives.
type pardoned struct {
	Digest version.Digest `json:"digest"`
}

// fewestDigits is how much of a digest names it at least: a shorter word of
// digits is the number of a revision.
const fewestDigits = 8

// condemned finds the condemned digest that a word names: its first
// characters, or the number of a revision that has it.
func condemned(ctx context.Context, s *store.Store, word string) (version.Digest, error) {
	all, err := s.Condemned(ctx)
	if err != nil {
		return version.Digest{}, err
	}
	var match []rollout.Condemned
	if len(word) >= fewestDigits {
		for _, d := range all {
			if strings.HasPrefix(d.Digest.String(), strings.ToLower(word)) {
				match = append(match, d)
			}
		}
	} else {
		rev, err := revision(ctx, s, word)
		if err != nil {
			return version.Digest{}, err
		}
		for _, d := range all {
			if d.Digest == rev.Digest {
				match = append(match, d)
			}
		}
	}
	switch len(match) {
	case 0:
		return version.Digest{}, fail(ExitFailed, fmt.Errorf("%s is not condemned", word), "routectl status lists what is")
	case 1:
		return match[0].Digest, nil
	}
	return version.Digest{}, fail(ExitUsage, fmt.Errorf("%s names %d condemned digests", word, len(match)), "give more of its characters")
}

func (c *command) completeCondemned(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return c.offer(cmd, func(ctx context.Context, s *store.Store) (out []string, err error) {
		all, err := s.Condemned(ctx)
		for _, d := range all {
			out = append(out, d.Digest.Short()+"\t"+d.Why)
		}
		return out, err
	})
}
