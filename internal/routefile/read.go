package routefile

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"routerd.dev/internal/yamlfile"
)

// A File is one source of routes: its name for people, and its bytes.
type File struct {
	Name string
	Data []byte
}

// Read reads what paths name: files, folders with every *.yaml, *.yml and
// *.json below them in the order of their names, and "-" for stdin. What is
// hidden (.git) is passed over, and a file that is named twice is read once. No
// path, a folder without route files, and what cannot be read are errors, all
// of them reported. At most yamlfile.MaxBytes and one byte are read of a file.
func Read(paths []string, stdin io.Reader) ([]File, error) {
	if len(paths) == 0 {
		return nil, errors.New("read route files: no path given; name files, folders, or - for standard input")
	}
	var files []File
	var errs []error
	seen := map[string]bool{}
	add := func(name string, open func() (io.ReadCloser, error)) {
		if seen[name] {
			return
		}
		seen[name] = true
		data, err := readAll(open)
		if err != nil {
			errs = append(errs, fmt.Errorf("read %s: %w", name, err))
			return
		}
		files = append(files, File{Name: name, Data: data})
	}
	for _, path := range paths {
		if path == "-" {
			add("standard input", func() (io.ReadCloser, error) { return io.NopCloser(stdin), nil })
			continue
		}
		names, err := expand(path)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		for _, name := range names {
			add(name, func() (io.ReadCloser, error) { return os.Open(name) })
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return files, nil
}

func readAll(open func() (io.ReadCloser, error)) ([]byte, error) {
	r, err := open()
	if err != nil {
		return nil, cause(err)
	}
	defer r.Close()
	data, err := io.ReadAll(io.LimitReader(r, yamlfile.MaxBytes+1))
	if err != nil {
		return nil, cause(err)
	}
	return data, nil
}

// cause takes the path off an error that is wrapped with it again.
func cause(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}

// expand gives the files that a path stands for.
func expand(path string) ([]string, error) {
	path = filepath.Clean(path)
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, cause(err))
	}
	if !info.IsDir() {
		return []string{path}, nil
	}
	var names []string
	// os.DirFS follows a link that path itself may be.
	err = fs.WalkDir(os.DirFS(path), ".", func(name string, e fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return fmt.Errorf("read %s: %w", filepath.Join(path, name), cause(err))
		case name != "." && strings.HasPrefix(e.Name(), "."):
			if e.IsDir() {
				return fs.SkipDir
			}
		case !e.IsDir() && isRouteFile(name):
			names = append(names, filepath.Join(path, filepath.FromSlash(name)))
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("read %s: the folder has no route files (*.yaml, *.yml, *.json)", path)
	}
	slices.Sort(names)
	return names, nil
}

func isRouteFile(name string) bool {
	switch strings.ToLower(filepath.Ext(name)) {
	case ".yaml", ".yml", ".json":
		return true
	}
	return false
}
