// Package archtest holds the tests of the project's shape: who may import
// whom, and that what the documents name exists.
package archtest

import (
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "routerd.dev/"

// tiers is the table of ARCHITECTURE.md: imports go only to lower tiers.
var tiers = map[string]int{
	"internal/printable":    0,
	"internal/route":        1,
	"internal/buildinfo":    1,
	"internal/yamlfile":     1,
	"internal/routefile":    2,
	"internal/version":      2,
	"internal/analysis":     2,
	"internal/token":        3,
	"internal/rollout":      3,
	"internal/proxy":        3,
	"internal/middleware":   3,
	"internal/engine":       4,
	"internal/store":        4,
	"internal/strategyfile": 4,
	"internal/simulate":     4,
	"internal/check":        4,
	"internal/agent":        5,
	"internal/controller":   5,
	"internal/admin":        6,
	"internal/telemetry":    6,
	"internal/daemon":       7,
	"internal/cli":          7,
	"cmd/routerd":           8,
	"cmd/routectl":          8,
	// What only developers run stands above everything.
	"internal/archtest":   9,
	"internal/bench":      9,
	"internal/gendocs":    9,
	"internal/scale":      9,
	"integration":         9,
	"integration/harness": 8,
	"integration/history": 7,
	"examples":            1,
}

// homes says which packages alone may import what begins with the key, and why.
var homes = map[string]struct {
	packages []string
	why      string
}{
	"github.com/gin-gonic/gin":     {[]string{"internal/engine", "internal/bench"}, "an engine is what Gin is wrapped in; nobody else knows it"},
	"go.etcd.io/etcd/client/v3":    {[]string{"internal/store", "integration", "integration/harness"}, "records, fencing and retries live in one place"},
	"go.etcd.io/etcd/server/v3":    {[]string{"internal/daemon", "internal/bench", "internal/scale"}, "only dev and --embedded-etcd run an etcd"},
	"github.com/spf13/cobra":       {[]string{"internal/cli", "internal/gendocs", "cmd/routerd", "cmd/routectl"}, "commands are a way in, not a dependency"},
	"github.com/goccy/go-yaml":     {[]string{"internal/yamlfile"}, "strictness and places are decided once"},
	"go.opentelemetry.io/otel/sdk": {[]string{"internal/telemetry"}, "lower tiers are given the API's values"},
}

// pure packages decide and do nothing else: no clock, context, log, lock or I/O.
var pure = map[string][]string{
	"internal/rollout":  {"context", "log", "log/slog", "os", "net", "net/http", "sync", "sync/atomic", "math/rand", "math/rand/v2", "crypto/rand"},
	"internal/analysis": {"context", "log", "log/slog", "os", "net", "net/http", "sync", "sync/atomic", "math/rand", "math/rand/v2", "crypto/rand"},
	"internal/simulate": {"context", "log", "log/slog", "os", "net", "net/http", "sync", "sync/atomic", "crypto/rand"},
	"internal/route":    {"context", "log", "log/slog", "os", "net/http", "sync"},
}

type listed struct {
	ImportPath, Dir                    string
	Imports, TestImports, XTestImports []string
	GoFiles                            []string
}

func packages(t *testing.T) []listed {
	t.Helper()
	out, err := exec.Command("go", "list", "-tags", "nomsgpack,integration", "-json=ImportPath,Dir,Imports,GoFiles", module+"...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var all []listed
	for dec := json.NewDecoder(strings.NewReader(string(out))); dec.More(); {
		var p listed
		if err := dec.Decode(&p); err != nil {
			t.Fatalf("go list: %v", err)
		}
		all = append(all, p)
	}
	return all
}

func TestImportsGoToLowerTiers(t *testing.T) {
	for _, p := range packages(t) {
		name := strings.TrimPrefix(p.ImportPath, module)
		tier, ok := tiers[name]
		if !ok {
			t.Errorf("%s: in no tier; add it to the table here and in ARCHITECTURE.md", name)
			continue
		}
		for _, imp := range p.Imports {
			other, ours := strings.CutPrefix(imp, module)
			if !ours {
				continue
			}
			if tiers[other] >= tier {
				t.Errorf("%s (tier %d) imports %s (tier %d): imports go only to lower tiers", name, tier, other, tiers[other])
			}
		}
	}
}

func TestSingleHomes(t *testing.T) {
	for _, p := range packages(t) {
		name := strings.TrimPrefix(p.ImportPath, module)
		for _, imp := range p.Imports {
			for lib, home := range homes {
				if (imp == lib || strings.HasPrefix(imp, lib+"/")) && !slices.Contains(home.packages, name) {
					t.Errorf("%s imports %s, whose home is %v: %s", name, imp, home.packages, home.why)
				}
			}
		}
	}
}

func TestPurePackagesDoNoIO(t *testing.T) {
	for _, p := range packages(t) {
		name := strings.TrimPrefix(p.ImportPath, module)
		for _, imp := range p.Imports {
			if slices.Contains(pure[name], imp) {
				t.Errorf("%s imports %s: it decides, others act", name, imp)
			}
		}
		if pure[name] == nil {
			continue
		}
		for _, call := range calls(t, p) {
			if call == "time.Now" || call == "time.Since" || call == "time.Sleep" {
				t.Errorf("%s calls %s: time is an argument", name, call)
			}
		}
	}
}

// TestNoInitNoBareGo holds two habits that hide work: init functions, and
// goroutines outside the packages whose charter is to run something.
func TestNoInitNoBareGo(t *testing.T) {
	mayGo := []string{
		"internal/proxy", "internal/store", "internal/agent", "internal/controller", "internal/admin",
		"internal/telemetry", "internal/daemon", "internal/cli", "internal/bench", "integration", "integration/harness", "cmd/routerd", "cmd/routectl",
	}
	for _, p := range packages(t) {
		name := strings.TrimPrefix(p.ImportPath, module)
		for _, f := range p.GoFiles {
			file := parse(t, filepath.Join(p.Dir, f))
			ast.Inspect(file, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.FuncDecl:
					if n.Recv == nil && n.Name.Name == "init" {
						t.Errorf("%s/%s: func init: say it where it is used", name, f)
					}
				case *ast.GoStmt:
					if !slices.Contains(mayGo, name) {
						t.Errorf("%s/%s: a go statement: this package runs nothing of its own", name, f)
					}
				}
				return true
			})
		}
	}
}

func calls(t *testing.T, p listed) []string {
	t.Helper()
	var out []string
	for _, f := range p.GoFiles {
		ast.Inspect(parse(t, filepath.Join(p.Dir, f)), func(n ast.Node) bool {
			if sel, ok := n.(*ast.SelectorExpr); ok {
				if x, ok := sel.X.(*ast.Ident); ok {
					out = append(out, x.Name+"."+sel.Sel.Name)
				}
			}
			return true
		})
	}
	return out
}

func parse(t *testing.T, path string) *ast.File {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	return file
}
