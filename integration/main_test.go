//go:build integration

package integration

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"testing"
	"time"

	"routerd.dev/integration/harness"
)

// Built once for all tests of the package, by TestMain.
var bin harness.Binaries

var (
	changes = flag.Int("changes", 30, "publishes and rollbacks in a row; make soak takes 200")
	strikes = flag.Int("strikes", 6, "processes killed during publishes; make soak takes 30")
	built   = flag.String("bin", "", "folder with routerd, routectl and etcd; empty to build them")
	seed    = flag.Uint64("seed", 0, "of the random choices; 0 for a new one, which is printed")
)

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	// No container is started to clean up: every test removes what it made.
	if err := os.Setenv("TESTCONTAINERS_RYUK_DISABLED", "true"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if *built != "" {
		bin = harness.In(*built)
		return m.Run()
	}
	dir, err := os.MkdirTemp("", "routerd-integration")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
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
