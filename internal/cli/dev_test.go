package cli_test

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"routerd.dev/internal/cli"
	"routerd.dev/internal/daemon"
)

// TestSessionOfDev: what `routerd dev` prints to try is a whole session: a
// request explained, a route added to the file, its difference, its publishing,
// and back.
func TestSessionOfDev(t *testing.T) {
	shop, err := os.ReadFile(filepath.Join("..", "..", "examples", "shop.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "shop.yaml")
	if err := os.WriteFile(file, shop, 0o600); err != nil {
		t.Fatal(err)
	}
	any := "127.0.0.1:0"
	ctx, stop := context.WithCancel(t.Context())
	out, said := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		o := daemon.DevOptions{HTTP: any, Admin: any, Etcd: any, Upstreams: any, Instances: 2, Routes: []string{file}, LogLevel: "error"}
		ended <- daemon.Dev(ctx, o, said)
		_ = said.Close()
	}()
	defer func() {
		stop()
		go func() { _, _ = io.Copy(io.Discard, out) }()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	var text bytes.Buffer
	for buf := make([]byte, 4096); !strings.Contains(text.String(), "Ctrl-C"); {
		n, err := out.Read(buf)
		if err != nil {
			t.Fatalf("the fleet ended: %v\n%s", err, text.String())
		}
		text.Write(buf[:n])
	}

	edited := strings.Replace(string(shop), "\nroutes:\n", "\nroutes:\n  - {name: sale, path: /sale, respond: {body: sale}}\n", 1)
	if err := os.WriteFile(file, []byte(edited), 0o600); err != nil {
		t.Fatal(err)
	}
	lines := regexp.MustCompile(`(?m)^  \./bin/routectl (.*?)(?: +#.*)?$`).FindAllStringSubmatch(text.String(), -1)
	wants := []string{`GET / is answered 404`, `\+ route sale`, `switched: revision 2`, `rolled back: revision 1`}
	if len(lines) != len(wants) {
		t.Fatalf("%d commands, want %d:\n%s", len(lines), len(wants), text.String())
	}
	for i, line := range lines {
		var args []string
		for _, word := range regexp.MustCompile(`"[^"]*"|\S+`).FindAllString(line[1], -1) {
			args = append(args, strings.Trim(word, `"`))
		}
		var out, talk bytes.Buffer
		env := cli.Env{Stdin: strings.NewReader(""), Stdout: &out, Stderr: &talk, Getenv: func(string) string { return "" }, Now: time.Now}
		if code := cli.Run(t.Context(), env, args); code != cli.ExitDone || !regexp.MustCompile(wants[i]).MatchString(out.String()) {
			t.Fatalf("%s ended with %d, want 0 and %s:\n%s%s", line[1], code, wants[i], out.String(), talk.String())
		}
	}
}
