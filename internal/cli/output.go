package cli

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"routerd.dev/internal/printable"
	"routerd.dev/internal/yamlfile"
)

// print writes a value in the form -o asks for: the table that show writes, or
// the value itself as JSON or YAML.
func (c *command) print(value any, show func(w *table)) error {
	var b []byte
	var err error
	switch c.output {
	case "json":
		b, err = yamlfile.EncodeJSON(value)
	case "yaml":
		if b, err = yamlfile.Encode(value); c.printed {
			b = append([]byte("---\n"), b...)
		}
	default:
		w := &table{}
		w.tabs = tabwriter.NewWriter(&w.out, 0, 8, 2, ' ', 0)
		show(w)
		if err = w.tabs.Flush(); err == nil {
			b = []byte(trimRight(w.out.String()))
		}
	}
	if err != nil {
		return fmt.Errorf("write output: %w", err)
	}
	c.printed = true
	return c.write(b)
}

// write puts data on standard output.
func (c *command) write(b []byte) error {
	c.doing("")
	if _, err := c.env.Stdout.Write(b); err != nil {
		return fmt.Errorf("write output: %w", err)
	}
	return nil
}

// say tells a person something, on standard error.
func (c *command) say(format string, args ...any) {
	c.talk.Lock()
	defer c.talk.Unlock()
	c.quiet()
	fmt.Fprintf(c.env.Stderr, format+"\n", plainArgs(args)...)
}

// noticeable is how long something may take before a person is told what it is.
const noticeable = time.Second

// doing notes what is being done from now on, which is said if it takes long
// and nothing else is said meanwhile; "" for nothing.
func (c *command) doing(format string, args ...any) {
	c.talk.Lock()
	defer c.talk.Unlock()
	c.quiet()
	if format == "" {
		return
	}
	var timer *time.Timer
	timer = time.AfterFunc(noticeable, func() {
		c.talk.Lock()
		defer c.talk.Unlock()
		if c.slow == timer { // it may have ended while this waited
			fmt.Fprintf(c.env.Stderr, format+" …\n", plainArgs(args)...)
		}
	})
	c.slow = timer
}

func (c *command) quiet() {
	if c.slow != nil {
		c.slow.Stop()
		c.slow = nil
	}
}

// A table is output in aligned columns.
type table struct {
	out  strings.Builder
	tabs *tabwriter.Writer
}

// row writes one line; cells are aligned with those above and below.
func (t *table) row(cells ...any) {
	for i, cell := range plainArgs(cells) {
		if i > 0 {
			fmt.Fprint(t.tabs, "\t")
		}
		fmt.Fprint(t.tabs, cell)
	}
	fmt.Fprintln(t.tabs)
}

// line writes text that takes no part in the columns.
func (t *table) line(format string, args ...any) {
	_ = t.tabs.Flush() // into a strings.Builder, which does not fail
	fmt.Fprintf(&t.out, format+"\n", plainArgs(args)...)
}

// text writes lines that were made elsewhere.
func (t *table) text(lines string) {
	for line := range strings.Lines(lines) {
		t.line("%s", strings.TrimSuffix(line, "\n"))
	}
}

// plainArgs are the arguments of a format, with all but numbers made plain.
func plainArgs(args []any) []any {
	out := slices.Clone(args)
	for i, a := range out {
		if v := reflect.ValueOf(a); !v.CanInt() && !v.CanUint() && !v.CanFloat() {
			out[i] = printable.Text(fmt.Sprint(a))
		}
	}
	return out
}

func trimRight(s string) string {
	lines := strings.Split(s, "\n")
	for i := range lines {
		lines[i] = strings.TrimRight(lines[i], " ")
	}
	return strings.Join(lines, "\n")
}
