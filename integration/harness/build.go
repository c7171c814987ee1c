package harness

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Binaries are static programs built for a test.
type Binaries struct {
	RouterdPath, RoutectlPath, EtcdPath string
}

// In returns the binaries that were built into dir.
func In(dir string) Binaries {
	return Binaries{
		RouterdPath: filepath.Join(dir, "routerd"), RoutectlPath: filepath.Join(dir, "routectl"), EtcdPath: filepath.Join(dir, "etcd"),
	}
}

// Build builds routerd, routectl and a real etcd from the module's own
// dependencies into dir.
func Build(dir string) (Binaries, error) {
	b := In(dir)
	for pkg, out := range map[string]string{
		"./cmd/routerd": b.RouterdPath, "./cmd/routectl": b.RoutectlPath, "go.etcd.io/etcd/server/v3": b.EtcdPath,
	} {
		if err := build(pkg, out, "nomsgpack"); err != nil {
			return b, err
		}
	}
	return b, nil
}

// BuildRouterd builds another routerd, with one more build tag.
func BuildRouterd(out, tag string) error { return build("./cmd/routerd", out, "nomsgpack,"+tag) }

func build(pkg, out, tags string, flags ...string) error {
	root, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return fmt.Errorf("find the project's root: %w", err)
	}
	cmd := exec.Command("go", append(append([]string{"build", "-tags", tags, "-o", out}, flags...), pkg)...)
	cmd.Dir = strings.TrimSpace(string(root))
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if said, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build %s: %w\n%s", pkg, err, said)
	}
	return nil
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
