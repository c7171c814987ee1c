package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"runtime/pprof"
	"slices"
	"strings"
	"syscall"
	"time"

	"routerd.dev/internal/buildinfo"
)

// A section is one subject that is measured.
type section struct {
	name, title string
	run         func(context.Context, *bench) ([]Figure, error)
}

func sections() []section {
	return []section{
		{"engine", "The engine beside plain Gin, on the same paths", measureEngine},
		{"snapshot", "A snapshot of 100,000 routes", measureSnapshot},
		{"change", "One route changed in 100,000 (100 modules of 10 hosts and 1,000 routes)", measureChange},
		{"switch", "A switch of 1,000 routes, each of them changed, by 1, 5 and 50 instances", measureSwitch},
		{"heads", "What a head middleware adds to a request", measureHeads},
		{"proxy", "Proxying beside nginx", measureProxy},
		{"prepare", "Requests at half load while 100,000 routes are prepared", measurePrepare},
	}
}

// A bench is one run: how much is asked of it, and where its files are.
type bench struct {
	quick bool
	dir   string // temporary
	log   io.Writer
}

// say tells whoever waits what is going on.
func (b *bench) say(format string, args ...any) { fmt.Fprintf(b.log, "bench: "+format+"\n", args...) }

// of returns full, or quick in a quick run.
func (b *bench) of(full, quick int) int {
	if b.quick {
		return quick
	}
	return full
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	switch {
	case errors.Is(err, flag.ErrHelp):
		os.Exit(2)
	case err != nil:
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out, log io.Writer) (err error) {
	if len(args) > 0 && args[0] == "child" {
		return runChild(ctx, args[1:], os.Stdin, out)
	}
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	fs.SetOutput(log)
	only := fs.String("only", "", "sections to run, separated by commas; all when empty")
	quick := fs.Bool("quick", false, "fewer rounds and smaller tables: shows that everything runs")
	format := fs.String("o", "text", "text or json")
	profile := fs.String("cpuprofile", "", "write a CPU profile of this process to `FILE`")
	if err := fs.Parse(args); err != nil {
		return err
	}
	wanted, err := choose(*only)
	if err != nil {
		return err
	}
	if *format != "text" && *format != "json" {
		return fmt.Errorf("-o %s: want text or json", *format)
	}
	if *profile != "" {
		f, err := os.Create(*profile)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	b := &bench{quick: *quick, log: log}
	if b.dir, err = os.MkdirTemp("", "routerd-bench-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(b.dir)) }()

	r, broken := b.measure(ctx, wanted)
	if *format == "json" {
		enc := json.NewEncoder(out)
		enc.SetIndent("", "  ")
		err = enc.Encode(r)
	} else {
		err = r.write(out)
	}
	return errors.Join(err, broken)
}

func choose(only string) ([]section, error) {
	all := sections()
	if only == "" {
		return all, nil
	}
	var some []section
	for name := range strings.SplitSeq(only, ",") {
		i := slices.IndexFunc(all, func(s section) bool { return s.name == name })
		if i < 0 {
			var names []string
			for _, s := range all {
				names = append(names, s.name)
			}
			return nil, fmt.Errorf("-only %s: there is no such section; there are %s", name, strings.Join(names, ", "))
		}
		some = append(some, all[i])
	}
	return some, nil
}

// measure runs sections one after the other. One that breaks leaves the others
// alone; its error is in the report, and returned.
func (b *bench) measure(ctx context.Context, wanted []section) (Report, error) {
	r := Report{
		Build: buildinfo.Version(), Go: runtime.Version(), Processors: runtime.GOMAXPROCS(0), Load: loadAverage(),
		Began: time.Now().UTC().Truncate(time.Second), Quick: b.quick,
	}
	var broken []error
	for _, s := range wanted {
		if ctx.Err() != nil {
			broken = append(broken, context.Cause(ctx))
			break
		}
		b.say("%s …", s.name)
		began := time.Now()
		figures, err := s.run(ctx, b)
		p := Part{Section: s.name, Title: s.title, Seconds: time.Since(began).Round(100 * time.Millisecond).Seconds(), Figures: figures}
		if skipped := (*skip)(nil); errors.As(err, &skipped) {
			p.Skipped = skipped.why
		} else if err != nil {
			p.Error = err.Error()
			broken = append(broken, fmt.Errorf("%s: %w", s.name, err))
		}
		r.Parts = append(r.Parts, p)
		runtime.GC() // the next section begins without this one's garbage
	}
	return r, errors.Join(broken...)
}

// A skip is the error of a section that cannot run on this machine.
type skip struct{ why string }

func (s *skip) Error() string { return s.why }
