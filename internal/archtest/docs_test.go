package archtest

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"routerd.dev/internal/engine"
	"routerd.dev/internal/route"
	"routerd.dev/internal/routefile"
	"routerd.dev/internal/strategyfile"
)

// root is the project's folder.
const root = "../.."

// pages are the documents, by their path in the project.
func pages(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := fs.WalkDir(os.DirFS(root), ".", func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if e.IsDir() && path != "." && (strings.HasPrefix(e.Name(), ".") || e.Name() == "testdata" || e.Name() == "bin") {
			return fs.SkipDir
		}
		if strings.HasSuffix(path, ".md") {
			b, err := os.ReadFile(filepath.Join(root, path))
			if err != nil {
				return err
			}
			out[path] = string(b)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, must := range []string{"README.md", "ARCHITECTURE.md", "CHANGELOG.md", "docs/operations.md", "docs/concepts.md"} {
		if out[must] == "" {
			t.Errorf("%s is missing", must)
		}
	}
	return out
}

var fence = regexp.MustCompile("(?ms)^```([a-z]*)\n(.*?)^```$")

// TestRouteFilesOfDocumentsRun parses, compiles and tests every route file in
// the documents and the examples, and reads every strategy. A block that is a
// part of a file is put into an example where it says that it belongs.
func TestRouteFilesOfDocumentsRun(t *testing.T) {
	files, err := routefile.Read([]string{filepath.Join(root, "examples")}, strings.NewReader(""))
	if err != nil {
		t.Fatal(err)
	}
	run(t, files...)
	if files, err = routefile.Read([]string{filepath.Join(root, "deploy", "routes")}, strings.NewReader("")); err != nil {
		t.Fatal(err)
	}
	run(t, files...)
	found, strategies := 0, 0
	for path, text := range pages(t) {
		for _, m := range fence.FindAllStringSubmatch(text, -1) {
			switch {
			case m[1] != "yaml" || !strings.Contains(m[2], "apiVersion:"):
			case strings.Contains(m[2], "\nstrategy:"):
				strategies++
				if _, problems := strategyfile.Read(path, []byte(m[2])); len(problems) > 0 {
					t.Errorf("%v", problems)
				}
			default:
				found++
				run(t, routefile.File{Name: path, Data: []byte(m[2])})
			}
		}
	}
	if found == 0 || strategies == 0 {
		t.Errorf("%d route files and %d strategies were found in the documents: is the search right?", found, strategies)
	}
}

// TestREADMETour does with the example what the README tells to do.
func TestREADMETour(t *testing.T) {
	readme := pages(t)["README.md"]
	shop, err := os.ReadFile(filepath.Join(root, "examples", "shop.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	edited := string(shop)
	var parts []string
	for _, m := range fence.FindAllStringSubmatch(readme, -1) {
		if m[1] == "yaml" && strings.HasPrefix(m[2], "  - ") {
			parts = append(parts, m[2])
		}
	}
	if len(parts) != 2 {
		t.Fatalf("README has %d parts of route files, want a route and a test", len(parts))
	}
	edited = strings.Replace(edited, "\ntests:\n", "\n"+parts[0]+"\ntests:\n"+parts[1], 1)
	mods := run(t, routefile.File{Name: "shop.yaml as README edits it", Data: []byte(edited)})
	if len(mods) != 1 || !slices.ContainsFunc(mods[0].Routes, func(r route.Route) bool { return r.Name == "sale" }) {
		t.Error("the route of the README did not arrive in the module")
	}
}

func run(t *testing.T, files ...routefile.File) []*route.Module {
	t.Helper()
	mods, problems := routefile.Parse(files)
	problems = append(problems, engine.Check(&route.Table{Modules: mods})...)
	for _, p := range problems {
		t.Errorf("%v", p)
	}
	return mods
}

// TestLinksResolve follows every relative link of the documents, to a
// heading too.
func TestLinksResolve(t *testing.T) {
	all := pages(t)
	link := regexp.MustCompile(`\]\(([^)\s]+)\)`)
	for path, text := range all {
		for _, m := range link.FindAllStringSubmatch(fence.ReplaceAllString(text, ""), -1) {
			if strings.Contains(m[1], "://") || strings.HasPrefix(m[1], "mailto:") {
				continue
			}
			file, heading, _ := strings.Cut(m[1], "#")
			target := path
			if file != "" {
				target = filepath.ToSlash(filepath.Join(filepath.Dir(path), file))
			}
			if _, err := os.Stat(filepath.Join(root, target)); err != nil {
				t.Errorf("%s links to %s, which is not there", path, m[1])
			} else if heading != "" && !slices.Contains(headings(all[target]), heading) {
				t.Errorf("%s links to %s: there is no such heading", path, m[1])
			}
		}
	}
}

// headings gives the anchors that a page's headings have.
func headings(text string) []string {
	var out []string
	for _, m := range regexp.MustCompile(`(?m)^#+ (.*)$`).FindAllStringSubmatch(text, -1) {
		s := strings.ToLower(m[1])
		s = regexp.MustCompile(`[^\p{L}\p{N} _-]`).ReplaceAllString(s, "")
		out = append(out, strings.ReplaceAll(s, " ", "-"))
	}
	return out
}

// TestWhatDocumentsNameExists looks for every path of the project, make target,
// routectl command and Go test that the documents name.
func TestWhatDocumentsNameExists(t *testing.T) {
	makefile, err := os.ReadFile(filepath.Join(root, "Makefile"))
	if err != nil {
		t.Fatal(err)
	}
	targets := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^([a-z-]+):`).FindAllStringSubmatch(string(makefile), -1) {
		targets[m[1]] = true
	}
	var (
		code   = regexp.MustCompile("`([^`\n]+)`")
		target = regexp.MustCompile(`\bmake ([a-z-]+)`)
		inside = regexp.MustCompile(`^(?:cmd|internal|docs|deploy|schema|examples|integration|scripts)(?:/[\w./-]*)?$`)
		tests  = regexp.MustCompile(`\bTest[A-Z]\w+`)
		known  = testNames(t)
	)
	for path, text := range pages(t) {
		for _, m := range code.FindAllStringSubmatch(fence.ReplaceAllString(text, ""), -1) {
			for _, n := range target.FindAllStringSubmatch(m[1], -1) {
				if !targets[n[1]] {
					t.Errorf("%s names make %s: the Makefile has no such target", path, n[1])
				}
			}
			if inside.MatchString(m[1]) {
				if _, err := os.Stat(filepath.Join(root, m[1])); err != nil {
					t.Errorf("%s names %s, which is not there", path, m[1])
				}
			}
		}
		for _, m := range fence.FindAllStringSubmatch(text, -1) {
			for _, n := range regexp.MustCompile(`(?m)^make ([a-z-]+)`).FindAllStringSubmatch(m[2], -1) {
				if !targets[n[1]] {
					t.Errorf("%s names make %s: the Makefile has no such target", path, n[1])
				}
			}
		}
		for _, name := range tests.FindAllString(text, -1) {
			if !slices.ContainsFunc(known, func(k string) bool { return strings.HasPrefix(k, name) }) {
				t.Errorf("%s names %s: there is no such test", path, name)
			}
		}
	}
}

// testNames lists every test function of the project, those with build tags too.
func testNames(t *testing.T) []string {
	t.Helper()
	var names []string
	decl := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz|Benchmark)\w+)\(`)
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		b, err := os.ReadFile(path)
		for _, m := range decl.FindAllStringSubmatch(string(b), -1) {
			names = append(names, m[1])
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// TestREADMEBegins: who clones the project finds the two commands at once.
func TestREADMEBegins(t *testing.T) {
	lines := strings.Split(pages(t)["README.md"], "\n")
	top := strings.Join(lines[:min(10, len(lines))], "\n")
	for _, want := range []string{"make run", "make test"} {
		if !strings.Contains(top, want) {
			t.Errorf("the first lines of README.md do not name %q", want)
		}
	}
}
