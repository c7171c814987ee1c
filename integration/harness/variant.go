package harness

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// A Variant is a source file that is built otherwise: its path in the module, or
// in Go's own tree after "GOROOT/", and an edit of its text.
type Variant struct {
	File string
	Edit func(src string) (string, error)
}

// Fewer is a routerd of an older build, which cannot do something.
func Fewer(capability string) Variant {
	return Variant{File: "internal/engine/capabilities.go", Edit: func(src string) (string, error) {
		const last = "return version.Supported(names)"
		if !strings.Contains(src, last) {
			return "", fmt.Errorf("%q is not in it any more", last)
		}
		return strings.Replace(src, last, fmt.Sprintf(`var fewer []string
	for _, c := range version.Supported(names) {
		if c != %q {
			fewer = append(fewer, c)
		}
	}
	return fewer`, capability), 1), nil
	}}
}

// ClockShift names the environment variable that says by how many seconds the
// clock of a WrongClock is ahead, or behind if it is negative.
const ClockShift = "CLOCK_SHIFT_SECONDS"

// WrongClock has every part of the program, Go's own libraries too, see a wall
// clock that is wrong. Time that passes is as long as ever.
func WrongClock() Variant {
	return Variant{File: "GOROOT/src/time/time.go", Edit: func(src string) (string, error) {
		const head, read = "import (\n", "sec, nsec, mono := runtimeNow()\n"
		if strings.Count(src, read) < 1 || !strings.Contains(src, head) {
			return "", fmt.Errorf("%q is not in it any more", strings.TrimSpace(read))
		}
		src = strings.Replace(src, head, head+"\t\"syscall\"\n", 1)
		src = strings.Replace(src, read, read+"\tsec += shifted()\n", 1)
		return src + `
var shift struct {
	known bool
	by    int64
}

// shifted is how far the clock is ahead, as the environment says.
func shifted() int64 {
	if !shift.known {
		text, _ := syscall.Getenv("` + ClockShift + `")
		behind := len(text) > 0 && text[0] == '-'
		var n int64
		for _, c := range []byte(text) {
			if c >= '0' && c <= '9' {
				n = n*10 + int64(c-'0')
			}
		}
		if behind {
			n = -n
		}
		shift.by, shift.known = n, true
	}
	return shift.by
}
`, nil
	}}
}

// BuildVariant builds a routerd with one file otherwise.
func BuildVariant(out string, v Variant) error {
	root, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return fmt.Errorf("find the project's root: %w", err)
	}
	path := filepath.Join(strings.TrimSpace(string(root)), v.File)
	if file, ok := strings.CutPrefix(v.File, "GOROOT/"); ok {
		goroot, err := exec.Command("go", "env", "GOROOT").Output()
		if err != nil {
			return fmt.Errorf("find Go's root: %w", err)
		}
		path = filepath.Join(strings.TrimSpace(string(goroot)), file)
	}
	src, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read %s: %w", v.File, err)
	}
	edited, err := v.Edit(string(src))
	if err != nil {
		return fmt.Errorf("edit %s: %w", v.File, err)
	}
	dir, err := os.MkdirTemp("", "variant-")
	if err != nil {
		return fmt.Errorf("build %s otherwise: %w", v.File, err)
	}
	defer os.RemoveAll(dir)
	overlay, err := json.Marshal(map[string]any{"Replace": map[string]string{path: filepath.Join(dir, "edited.go")}})
	if err != nil {
		return fmt.Errorf("build %s otherwise: %w", v.File, err)
	}
	for name, b := range map[string][]byte{"edited.go": []byte(edited), "overlay.json": overlay} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			return fmt.Errorf("build %s otherwise: %w", v.File, err)
		}
	}
	return build("./cmd/routerd", out, "nomsgpack", "-trimpath", "-overlay", filepath.Join(dir, "overlay.json"))
}
