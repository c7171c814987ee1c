//go:build integration

package integration

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"testing"
	"time"

	"routerd.dev/integration/harness"
)

// Built once for all tests of the package, by TestMain.
var bin harness.Binaries

var (
	changes = flag.Int("changes", 30, "publishes and rollbacks in a row; make soak takes 200")
	built   = flag.String("bin", "", "folder with routerd, routectl and etcd; empty to build them")
	seed    = flag.Uint64("seed", 0, "of the random choices; 0 for a new one, which is printed")
)

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, os.Interrupt, syscall.SIGTERM)
	// No container is started to clean up: every test removes what it made.
	if err := os.Setenv("TESTCONTAINERS_RYUK_DISABLED", "true"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	dir, err := os.MkdirTemp("", "routerd-it")
	if err == nil {
		err = os.Setenv("TMPDIR", dir) // so that all of it can be removed at once
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	go func() {
		<-interrupted
		signal.Stop(interrupted) // a second one ends it at once
		fmt.Fprintln(os.Stderr, "interrupted: removing containers, networks and images")
		if err := harness.Sweep(composeProject()); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		_ = os.RemoveAll(dir) // processes that run still may write to it; they end with this one
		os.Exit(130)
	}()
	if *built != "" {
		bin = harness.In(*built)
		return m.Run()
	}
	if bin, err = harness.Build(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// random returns a source of choices that -seed repeats.
func random(t *testing.T) *rand.Rand {
	t.Helper()
	s := *seed
	if s == 0 {
		s = uint64(time.Now().UnixNano()) % 1e9
	}
	t.Logf("choices: -seed %d repeats them", s)
	return rand.New(rand.NewPCG(s, s))
}

func median(ds []time.Duration) time.Duration {
	if len(ds) == 0 {
		return 0
	}
	return slices.Sorted(slices.Values(ds))[len(ds)/2].Round(time.Millisecond)
}
