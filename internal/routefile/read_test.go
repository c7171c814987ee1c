package routefile

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestRead(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"b.yaml", "a/z.yml", "a/c.JSON", "notes.txt", ".hidden.yaml", ".git/x.yaml", "empty/readme.md"} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	// As Kubernetes mounts a ConfigMap: the files are links.
	if err := os.Symlink(filepath.Join(dir, "b.yaml"), filepath.Join(dir, "a", "link.yaml")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(dir, "a"), filepath.Join(dir, "linked")); err != nil {
		t.Fatal(err)
	}
	read := func(paths ...string) (string, error) {
		for i, p := range paths {
			if p != "-" {
				paths[i] = filepath.Join(dir, p)
			}
		}
		files, err := Read(paths, strings.NewReader("stdin"))
		var got []string
		for _, f := range files {
			got = append(got, strings.TrimPrefix(f.Name, dir+"/")+"="+string(f.Data))
		}
		return strings.Join(got, " "), err
	}
	for _, c := range []struct {
		paths []string
		want  string
	}{
		{[]string{"."}, "a/c.JSON=a/c.JSON a/link.yaml=b.yaml a/z.yml=a/z.yml b.yaml=b.yaml"},
		{[]string{"b.yaml", "a", "./b.yaml"}, "b.yaml=b.yaml a/c.JSON=a/c.JSON a/link.yaml=b.yaml a/z.yml=a/z.yml"},
		{[]string{"linked"}, "linked/c.JSON=a/c.JSON linked/link.yaml=b.yaml linked/z.yml=a/z.yml"},
		{[]string{"-", "notes.txt"}, "standard input=stdin notes.txt=notes.txt"},
	} {
		got, err := read(c.paths...)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(c.want, got); d != "" {
			t.Error(d)
		}
	}
	if _, err := read(); err == nil {
		t.Error("no path is no error")
	}
	_, err := read("empty", "absent", "b.yaml")
	if err == nil {
		t.Fatal("an empty folder and an absent file are no error")
	}
	for _, want := range []string{"/empty: the folder has no route files (*.yaml, *.yml, *.json)", "/absent: no such file"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("lacks %q: %v", want, err)
		}
	}
}
