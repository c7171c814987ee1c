package middleware

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

// maxReference bounds what ${file:PATH} may bring in.
const maxReference = 16 << 10

// expand replaces ${env:NAME} and ${file:PATH} in a value by what the
// instance has; a file's last line break is dropped. Any other "${" is a
// problem. With CheckOnly, only the form is checked. No message holds a
// resolved value.
func expand(value, field string, env Env, ps *problems) string {
	var b strings.Builder
	rest := value
	for {
		before, after, found := strings.Cut(rest, "${")
		b.WriteString(before)
		if !found {
			return b.String()
		}
		ref, after, closed := strings.Cut(after, "}")
		scheme, name, colon := strings.Cut(ref, ":")
		if !closed || !colon || name == "" || (scheme != "env" && scheme != "file") {
			ps.add(field, "write ${env:NAME} or ${file:PATH}", "bad reference")
			return ""
		}
		rest = after
		if env.CheckOnly {
			continue
		}
		v, err := env.resolve(scheme, name)
		if err != nil {
			ps.add(field, "set it on this instance", "%v", err)
			continue
		}
		b.WriteString(v)
	}
}

func hasReference(value string) bool { return strings.Contains(value, "${") }

func (e Env) resolve(scheme, name string) (string, error) {
	if e.resolved != nil {
		*e.resolved = true
	}
	if scheme == "env" {
		v, ok := e.Lookup(name)
		if !ok {
			return "", fmt.Errorf("environment variable %s is not set", name)
		}
		return v, nil
	}
	b, err := e.ReadFile(name)
	if err != nil {
		return "", fmt.Errorf("read %s: %w", name, withoutPath(err))
	}
	if len(b) > maxReference {
		return "", fmt.Errorf("read %s: more than %d bytes", name, maxReference)
	}
	return strings.TrimSuffix(strings.TrimSuffix(string(b), "\n"), "\r"), nil
}

// withoutPath gives what went wrong without naming the file a second time.
func withoutPath(err error) error {
	var pe *os.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}

// readSmallFile reads a regular file, never more than maxReference and one:
// a snapshot must not make an instance read a device or fill its memory.
func readSmallFile(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("not a regular file")
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxReference+1))
}
