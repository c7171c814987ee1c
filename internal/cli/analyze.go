package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"routerd.dev/internal/analysis"
	"routerd.dev/internal/rollout"
	"routerd.dev/internal/store"
)

// A recording is what instances counted, as `rollout record` writes it and
// `rollout analyze -f` reads it: a comparison, or the measures it is made of.
type recording struct {
	Rollout    string              `json:"rollout,omitempty"`
	Revision   int64               `json:"revision,omitempty"`
	Time       time.Time           `json:"time,omitzero"`
	Config     analysis.Config     `json:"config,omitzero"`
	Comparison *recordedComparison `json:"comparison,omitempty"`
	Measures   []rollout.Measure   `json:"measures,omitempty"` // of each instance, where Comparison came from
}

// recordedComparison is an analysis.Comparison by its names in files.
type recordedComparison struct {
	Groups  map[string]analysis.Sample `json:"groups"`
	Seconds float64                    `json:"seconds"`
	Wanted  map[string]int             `json:"wanted,omitempty"`
	Keyless bool                       `json:"keyless,omitempty"`
	Before  bool                       `json:"before,omitempty"`
}

func (r *recordedComparison) comparison() analysis.Comparison {
	return analysis.Comparison{Groups: r.Groups, Seconds: r.Seconds, Wanted: r.Wanted, Keyless: r.Keyless, Before: r.Before}
}

// analyzing is the flags of analyze.
type analyzing struct {
	file string
	code bool
	set  analysis.Config // those of its fields whose flag was given
}

func newAnalyzeCmd(c *command) *cobra.Command {
	var a analyzing
	cmd := &cobra.Command{
		Use:   "analyze [ROLLOUT] | -f FILE",
		Short: "Judge what instances counted, as a rollout does",
		Long: `Judge what instances counted, as a rollout does: of a rollout under way, what
they report at this moment, or of a file, what record wrote. Nothing follows
from it, so that another confidence or other minimums can be tried.

It ends with 0 whatever the verdict is; with --exit-code, 1 stands for fail and
5 for inconclusive.

A file holds what record writes, a config and a comparison,
{"config": …, "comparison": {"groups": …, "seconds": …}}, or a list of the
measures of instances.`,
		Example: `  routectl rollout analyze
  routectl rollout analyze --confidence 0.95 -o json
  routectl rollout record > measures.json; routectl rollout analyze -f measures.json`,
		Args:              usage(cobra.MaximumNArgs(1)),
		ValidArgsFunction: c.completeRollouts,
	}
	fs := cmd.Flags()
	fs.StringVarP(&a.file, "file", "f", "", "recorded measures, or - for standard input")
	fs.BoolVar(&a.code, "exit-code", false, "end with 1 for fail and 5 for inconclusive")
	fs.Float64Var(&a.set.Confidence, "confidence", analysis.DefaultConfidence, "of analyses of a candidate that is no worse, this part does not fail; without, as the strategy says")
	fs.Float64Var(&a.set.MinSeconds, "min-seconds", 60, "no pass before; without, as the strategy says")
	fs.Uint64Var(&a.set.MinRequests, "min-requests", 500, "requests of each side before a pass; without, as the strategy says")
	fs.Uint64Var(&a.set.MinRouteRequests, "min-route-requests", 50, "requests of the candidate on each changed route before a pass; without, as the strategy says")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		var rec recording
		var err error
		switch {
		case a.file != "" && len(args) > 0:
			return fail(ExitUsage, errors.New("a rollout and -f name two things to judge"), "leave one out")
		case a.file != "":
			rec, err = c.readRecording(a.file)
		default:
			err = c.withStore(func(s *store.Store) error {
				rec, err = c.record(cmd.Context(), s, args)
				return err
			})
		}
		if err != nil {
			return err
		}
		if err := a.override(cmd, &rec.Config); err != nil {
			return err
		}
		return c.judge(rec, a.code)
	}
	return cmd
}

// override puts the flags that were given into a config.
func (a *analyzing) override(cmd *cobra.Command, to *analysis.Config) error {
	given := cmd.Flags().Changed
	if given("confidence") {
		to.Confidence = a.set.Confidence
	}
	if given("min-seconds") {
		to.MinSeconds = a.set.MinSeconds
	}
	if given("min-requests") {
		to.MinRequests = a.set.MinRequests
	}
	if given("min-route-requests") {
		to.MinRouteRequests = a.set.MinRouteRequests
	}
	if wrong := to.Validate(); len(wrong) > 0 {
		return fail(ExitUsage, errors.New(strings.Join(wrong, "; ")), "")
	}
	return nil
}

func (c *command) judge(rec recording, code bool) error {
	res := analysis.Judge(rec.Config, rec.Comparison.comparison())
	if res.Findings == nil {
		res.Findings = []analysis.Finding{}
	}
	if err := c.print(res, func(w *table) { evidenceTable(w, &res) }); err != nil {
		return err
	}
	switch {
	case code && res.Verdict == analysis.Fail:
		return fail(ExitFailed, errQuiet, "")
	case code && res.Verdict == analysis.Inconclusive:
		return fail(ExitNotReached, errQuiet, "")
	}
	return nil
}

func newRecordCmd(c *command) *cobra.Command {
	return &cobra.Command{
		Use:   "record [ROLLOUT]",
		Short: "Write down what instances counted, for analyze -f",
		Long: `Write down what the instances of a rollout under way counted until now, as JSON
on standard output: for analyze -f, or to be kept beside an incident.`,
		Example:           `  routectl rollout record > measures.json`,
		Args:              usage(cobra.MaximumNArgs(1)),
		ValidArgsFunction: c.completeRollouts,
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.withStore(func(s *store.Store) error {
				rec, err := c.record(cmd.Context(), s, args)
				if err != nil {
					return err
				}
				b, err := json.MarshalIndent(rec, "", " ")
				if err != nil {
					return fmt.Errorf("write measures: %w", err)
				}
				return c.write(append(b, '\n'))
			})
		},
	}
}

// record reads what the instances of a rollout count at this moment, in what it
// compares: its candidate with stable, or what it committed with what was
// before.
func (c *command) record(ctx context.Context, s *store.Store, args []string) (recording, error) {
	r, err := steered(ctx, s, args)
	if err != nil {
		return recording{}, err
	}
	v, err := s.View(ctx)
	if err != nil {
		return recording{}, err
	}
	rec := recorded(v, &r, c.env.Now())
	if len(rec.Comparison.Groups) == 0 {
		return rec, fail(ExitFailed, fmt.Errorf("rollout %s compares nothing now: no group has a candidate, nor is one watched after a commit", r.ID),
			"routectl rollout status shows at which step it is")
	}
	return rec, nil
}

// recorded gathers what counts for a rollout at its present step.
func recorded(v *rollout.View, r *rollout.Rollout, now time.Time) recording {
	c, measures := rollout.Compared(v, r, now)
	return recording{
		Rollout: r.ID, Revision: r.To.Number, Time: now.UTC(), Config: r.JudgedBy(), Measures: measures,
		Comparison: &recordedComparison{Groups: c.Groups, Seconds: c.Seconds, Wanted: c.Wanted, Keyless: c.Keyless, Before: c.Before},
	}
}

// readRecording reads a recording, or a list of measures.
func (c *command) readRecording(path string) (rec recording, err error) {
	files, err := c.read([]string{path})
	if err != nil {
		return rec, err
	}
	if len(files) != 1 {
		return rec, fail(ExitUsage, fmt.Errorf("%s holds %d files", path, len(files)), "name one file of measures")
	}
	bad := func(err error) error {
		return fail(ExitInvalid, fmt.Errorf("read %s: %w", files[0].Name, err), "routectl rollout record writes such a file")
	}
	switch data := bytes.TrimSpace(files[0].Data); {
	case len(data) == 0:
		err = errors.New("it is empty")
	case data[0] == '[':
		err = strictly(data, &rec.Measures)
	default:
		err = strictly(data, &rec)
	}
	if err != nil {
		return rec, bad(err)
	}
	if rec.Comparison == nil {
		if len(rec.Measures) == 0 {
			return rec, bad(errors.New("it holds neither a comparison nor measures"))
		}
		rec.Comparison = compared(rec.Measures)
	}
	return rec, nil
}

// strictly decodes one JSON document without fields that v does not have.
func strictly(data []byte, v any) error {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return err
	}
	if _, err := dec.Token(); err != io.EOF {
		return errors.New("more follows after the document")
	}
	return nil
}

// compared adds measures up. They are of one commit in each group: of those of
// several the newest count.
func compared(all []rollout.Measure) *recordedComparison {
	of := &recordedComparison{Groups: map[string]analysis.Sample{}}
	epochs := map[string]int64{}
	for _, m := range all {
		epochs[m.Group] = max(epochs[m.Group], m.Epoch)
	}
	current := slices.DeleteFunc(slices.Clone(all), func(m rollout.Measure) bool { return m.Epoch != epochs[m.Group] })
	for _, m := range current {
		s := of.Groups[m.Group]
		s.Merge(&m.Sample)
		of.Groups[m.Group] = s
		of.Seconds = max(of.Seconds, m.Time.Sub(m.Since).Seconds())
	}
	return of
}
