package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestExitCodes(t *testing.T) {
	taken := filepath.Join(t.TempDir(), "routerd.yaml")
	if err := os.WriteFile(taken, []byte("group: edge\nhtpp: \":80\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args string
		code int
		says string
	}{
		{"", exitDone, "routerd serve"},
		{"serve --help", exitDone, "--print-config"},
		{"bogus", exitUsage, `unknown command "bogus"`},
		{"serve bogus", exitUsage, "--help"},
		{"serve --bogus", exitUsage, "unknown flag: --bogus"},
		{"serve --http nowhere", exitUsage, "http"},
		{"serve --print-config --config " + taken, exitUsage, taken + ":2: htpp: no such setting"},
		{"serve --config /nowhere/routerd.yaml", exitUsage, "read configuration"},
		{"ctl", exitDone, "unpin"},
		{"ctl bogus", exitUsage, `unknown command "bogus"`},
		{"ctl forgive --control /nowhere/s.sock", exitFailed, "no routerd answers at /nowhere/s.sock"},
		{"ctl pin", exitUsage, "want one revision or digest"},
		{"ctl status --control /nowhere/s.sock", exitFailed, "no routerd answers at /nowhere/s.sock"},
		{"ctl unpin --state-dir /nowhere/" + strings.Repeat("d", 120), exitFailed, "--control"},
		{"probe --help", exitDone, "--alive"},
		{"probe one two", exitUsage, "at most one URL"},
		{"probe 127.0.0.1:1", exitUsage, "want a URL"},
		{"probe http://127.0.0.1:1/", exitFailed, "connection refused"},
		{"probe --admin 127.0.0.1:1", exitFailed, "http://127.0.0.1:1/readyz"},
		{"probe --admin nowhere", exitFailed, "admin"},
		{"probe --timeout 0s", exitUsage, "timeout"},
		{"probe --config /nowhere/routerd.yaml", exitUsage, "read configuration"},
		{"upstream --listen nowhere", exitUsage, "listen"},
		{"upstream bogus", exitUsage, "unknown command"},
		{"dev --instances 0", exitUsage, "want 1 to 20"},
		{"dev --empty --routes x", exitUsage, "empty"},
	} {
		var out, talk bytes.Buffer
		if code := run(t.Context(), strings.Fields(c.args), &out, &talk); code != c.code {
			t.Errorf("routerd %s: exit code %d, want %d; it said:\n%s", c.args, code, c.code, talk.String())
		}
		if said := out.String() + talk.String(); !strings.Contains(said, c.says) {
			t.Errorf("routerd %s: does not say %q:\n%s", c.args, c.says, said)
		}
		if c.code != exitDone && out.Len() > 0 {
			t.Errorf("routerd %s: an error is on standard output:\n%s", c.args, out.String())
		}
	}
}

func TestPrintConfigSaysWhereFrom(t *testing.T) {
	t.Setenv("ROUTERD_GROUP", "edge")
	file := filepath.Join(t.TempDir(), "routerd.yaml")
	if err := os.WriteFile(file, []byte("group: main\nstate-dir: /srv/routerd\netcd-user: u\netcd-password: hidden\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var out, talk bytes.Buffer
	if code := run(t.Context(), []string{"serve", "--print-config", "--config", file, "--http", ":8000"}, &out, &talk); code != exitDone {
		t.Fatalf("exit code %d: %s", code, talk.String())
	}
	for _, want := range []string{
		`group: "edge"  # env ROUTERD_GROUP`,
		`state-dir: "/srv/routerd"  # file ` + file + `:2`,
		`http: ":8000"  # flag`,
		`lease-ttl: 10s  # default`,
	} {
		if !strings.Contains(out.String(), want+"\n") {
			t.Errorf("no line %q in:\n%s", want, out.String())
		}
	}
	if strings.Contains(out.String(), "hidden") {
		t.Error("the password is shown")
	}
}
