package harness

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Binaries are static programs built for a test.
type Binaries struct {
	Dir, RouterdPath, RoutectlPath, EtcdPath string
}

// Build builds routerd, routectl and a real etcd from the module's own
// dependencies.
func Build(t *testing.T) Binaries {
	t.Helper()
	dir := t.TempDir()
	root := Root(t)
	for _, pkg := range []string{"./cmd/routerd", "./cmd/routectl", "go.etcd.io/etcd/server/v3"} {
		out := filepath.Join(dir, filepath.Base(pkg))
		if strings.HasPrefix(pkg, "go.etcd.io") {
			out = filepath.Join(dir, "etcd")
		}
		cmd := exec.Command("go", "build", "-tags", "nomsgpack", "-o", out, pkg)
		cmd.Dir = root
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if b, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("go build %s: %v\n%s", pkg, err, b)
		}
	}
	return Binaries{
		Dir: dir, RouterdPath: filepath.Join(dir, "routerd"),
		RoutectlPath: filepath.Join(dir, "routectl"), EtcdPath: filepath.Join(dir, "etcd"),
	}
}

// Root is the project's root folder.
func Root(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		t.Fatalf("find the project's root: %v", err)
	}
	return strings.TrimSpace(string(out))
}

// Routectl runs routectl and returns its standard output; the error holds
// what it said.
func (b Binaries) Routectl(endpoints []string, stdin string, args ...string) (string, error) {
	args = append([]string{"--endpoints", strings.Join(endpoints, ",")}, args...)
	cmd := exec.Command(b.RoutectlPath, args...)
	cmd.Stdin = strings.NewReader(stdin)
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("routectl %s: %w: %s", strings.Join(args, " "), err, stderr.String())
	}
	return stdout.String(), nil
}
