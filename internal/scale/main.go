package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"routerd.dev/internal/buildinfo"
)

// options say what is measured.
type options struct {
	sizes   []int
	members int           // of etcd
	each    int           // agents a process
	modules int           // of the table
	routes  int           // of the table
	idle    time.Duration // how long the fleet is watched doing nothing
	away    time.Duration // how long etcd is
}

// A Report is one run of the program.
type Report struct {
	Build      string    `json:"build"`
	Go         string    `json:"go"`
	Processors int       `json:"processors"`
	Load       string    `json:"load"` // average of the machine before
	Began      time.Time `json:"began"`
	Members    int       `json:"members"` // of etcd
	Modules    int       `json:"modules"`
	Routes     int       `json:"routes"`
	IdleFor    float64   `json:"idleSeconds"`
	AwayFor    float64   `json:"awaySeconds"`
	Took       float64   `json:"seconds"`
	Sizes      []Size    `json:"sizes"`
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := start(ctx, os.Args[1:])
	stop()
	switch {
	case errors.Is(err, flag.ErrHelp):
		os.Exit(2)
	case err != nil:
		fmt.Fprintln(os.Stderr, "scale:", err)
		os.Exit(1)
	}
}

func start(ctx context.Context, args []string) error {
	if len(args) == 2 && args[0] == "child" {
		return runChild(ctx, args[1], os.Stdin, os.Stdout)
	}
	fs := flag.NewFlagSet("scale", flag.ContinueOnError)
	sizes := fs.String("n", "50,100,200,500,1000,2000", "sizes of the fleet, separated by commas")
	o := options{}
	fs.IntVar(&o.members, "members", 1, "members of etcd, 1 or 3; what they use is added up")
	fs.IntVar(&o.each, "each", 500, "agents in one process")
	fs.IntVar(&o.modules, "modules", 20, "modules of the table")
	fs.IntVar(&o.routes, "routes", 500, "routes of the table")
	fs.DurationVar(&o.idle, "idle", 15*time.Second, "how long the fleet is watched doing nothing")
	fs.DurationVar(&o.away, "away", 3*time.Second, "how long etcd is away")
	dir := fs.String("dir", "", "write scale.json and scale.svg into `DIR`/scale and the table into DIR/scale.md; empty for the table on standard output")
	if err := fs.Parse(args); err != nil {
		return err
	}
	for text := range strings.SplitSeq(*sizes, ",") {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > 9999 {
			return fmt.Errorf("-n %s: want numbers from 1 to 9999, separated by commas", *sizes)
		}
		o.sizes = append(o.sizes, n)
	}
	if o.members < 1 || o.each < 1 || o.modules < 1 || o.routes < o.modules {
		return errors.New("-members, -each and -modules are at least 1, -routes at least as many as -modules")
	}
	r, err := measureAll(ctx, o, os.Stderr)
	if len(r.Sizes) == 0 {
		return err
	}
	if *dir == "" { // what was measured before something went wrong is good all the same
		_, werr := io.WriteString(os.Stdout, r.markdown())
		return errors.Join(err, werr)
	}
	return errors.Join(err, r.write(*dir))
}

func measureAll(ctx context.Context, o options, log io.Writer) (Report, error) {
	log = &inTurn{w: log}
	r := Report{
		Build: buildinfo.Version(), Go: runtime.Version(), Processors: runtime.NumCPU(), Load: loadAverage(),
		Began: time.Now().UTC().Truncate(time.Second), Members: o.members, Modules: o.modules, Routes: o.routes,
		IdleFor: o.idle.Seconds(), AwayFor: o.away.Seconds(),
	}
	for _, n := range o.sizes {
		s, err := measureSize(ctx, o, n, log)
		if err != nil {
			r.Took = time.Since(r.Began).Seconds()
			return r, err
		}
		r.Sizes = append(r.Sizes, s)
	}
	r.Took = time.Since(r.Began).Seconds()
	return r, nil
}

// inTurn writes for one after the other: each child has a goroutine that
// copies what it says.
type inTurn struct {
	mu sync.Mutex
	w  io.Writer
}

func (i *inTurn) Write(b []byte) (int, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.w.Write(b)
}
