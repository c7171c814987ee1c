//go:build integration

package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"routerd.dev/integration/harness"
)

// A quay is docker-compose.yml's fleet under a project's name of its own, on
// free ports, from images of the binaries under test.
type quay struct {
	project string
	env     []string          // what Compose and the scripts read
	ports   map[string]string // README's address of an instance to the one it has here
	wrong   string            // the command that did not do what it should, and why
}

// composeProject is the name of this process's fleet.
func composeProject() string { return fmt.Sprintf("routerd-test-%d", os.Getpid()) }

// newQuay builds the images. Where Docker or Compose is missing the test is
// skipped, but in CI it fails. Everything is removed at the end.
func newQuay(t *testing.T) *quay {
	t.Helper()
	q := &quay{project: composeProject(), ports: map[string]string{}}
	q.env = append(os.Environ(), "COMPOSE_PROJECT_NAME="+q.project, "NAME="+q.project, "VERSION=test",
		"FLEET_IMAGE="+q.project+":test", "FLEET_ETCD_IMAGE="+q.project+"-etcd:test")
	for _, needed := range []string{"docker info", "deploy/compose version", "make --version", "curl --version"} {
		switch out, err := q.sh(t.Context(), needed); {
		case err == nil:
		case os.Getenv("CI") != "":
			t.Fatalf("CI needs %s: %v\n%s", needed, err, out)
		default:
			t.Skipf("no Docker with Compose, nothing was tested: %s: %v\n%s", needed, err, out)
		}
	}
	for n, name := range []string{"CANARY_1", "MAIN_1", "MAIN_2", "EDGE_1"} {
		addr := harness.FreeAddr(t)
		_, port, _ := net.SplitHostPort(addr)
		q.env = append(q.env, name+"_PORT="+port)
		q.ports[fmt.Sprintf("127.0.0.1:%d", 8081+n)] = addr
	}
	q.images(t)
	t.Cleanup(func() {
		if t.Failed() {
			out, _ := q.sh(context.Background(), "deploy/compose ps; deploy/compose logs --no-color --tail 30")
			t.Logf("the fleet:\n%s\n%s", out, q.wrong)
		}
		if out, err := q.sh(context.Background(), "make --no-print-directory down"); err != nil {
			t.Errorf("make down: %v\n%s", err, out)
		}
	})
	return q
}

// images makes them of the binaries that all tests run.
func (q *quay) images(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	for _, path := range []string{bin.RouterdPath, bin.RoutectlPath, bin.EtcdPath} {
		b, err := os.ReadFile(path)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, filepath.Base(path)), b, 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		if out, err := q.sh(context.Background(), "docker rmi --force $NAME:test $NAME-etcd:test"); err != nil {
			t.Errorf("remove the images: %v\n%s", err, out)
		}
	})
	if out, err := q.sh(t.Context(), "BINARIES="+dir+" make --no-print-directory image"); err != nil {
		t.Fatalf("make image: %v\n%s", err, out)
	}
}

// sh runs a command in the project's folder and returns what it says: first
// what it tells a person, then its output. Docker carries the two side by side,
// so that their order is not that of the command in the container.
func (q *quay) sh(ctx context.Context, command string) (string, error) {
	for readme, here := range q.ports {
		command = strings.ReplaceAll(command, readme, here)
	}
	cmd := exec.CommandContext(ctx, "sh", "-c", command)
	cmd.Dir, cmd.Env = "..", q.env
	var out, told bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &told
	err := cmd.Run()
	return told.String() + out.String(), err
}

// A step is a command of a transcript, and what it shows.
type step struct {
	command string
	shown   []string
}

// transcript reads the console blocks under a heading of README.md.
func transcript(t *testing.T, heading string) []step {
	t.Helper()
	b, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, text, found := strings.Cut(string(b), "\n"+heading+"\n")
	if !found {
		t.Fatalf("README.md has no heading %q", heading)
	}
	text, _, _ = strings.Cut(text, "\n## ")
	var steps []step
	for _, block := range regexp.MustCompile("(?s)\n```console\n(.*?)\n```").FindAllStringSubmatch(text, -1) {
		for line := range strings.Lines(block[1]) {
			line = strings.TrimRight(line, "\n")
			command, is := strings.CutPrefix(line, "$ ")
			switch {
			case is:
				steps = append(steps, step{command: command})
			case len(steps) == 0:
				t.Fatalf("README.md shows %q before any command", line)
			case strings.TrimSpace(line) != "":
				last := &steps[len(steps)-1]
				last.shown = append(last.shown, line)
			}
		}
	}
	return steps
}

// What differs from run to run, and from README's. What is told of revisions
// and of how many instances serve one has to be as it is shown.
var varying = []struct {
	what *regexp.Regexp
	is   string
}{
	{regexp.MustCompile(`^Date: .*`), "Date"},
	{regexp.MustCompile(`\b\d{8}T\d{6}\.\d+-[0-9a-f]+\b`), "ROLLOUT"},
	{regexp.MustCompile(`\b127\.0\.0\.1:\d+`), "ADDRESS"},
	{regexp.MustCompile(`\([0-9a-f]{12}\)`), "(DIGEST)"},
	{regexp.MustCompile(`\(\d+ bytes\)`), "(BYTES)"},
	{regexp.MustCompile(`\d+(\.\d+)? ?m?s$`), "TIME"},
	{regexp.MustCompile(`^(Routerd-Epoch|Content-Length): \d+`), "$1"}, // an answer may name an address
	{regexp.MustCompile(`\s+`), " "},
}

// like says what keeps an output from being as it is shown, "" for nothing. A
// line … stands for any lines. What takes over a second says so, in a line that
// ends in …; it need not be shown.
func like(shown []string, output string) string {
	masked := func(line string) string {
		for _, v := range varying {
			line = v.what.ReplaceAllString(line, v.is)
		}
		return strings.TrimSpace(line)
	}
	var lines []string
	for line := range strings.Lines(output) {
		if line = masked(strings.TrimRight(line, "\r\n")); line != "" && !strings.HasSuffix(line, " …") {
			lines = append(lines, line)
		}
	}
	at, skip := 0, false
	for _, s := range shown {
		if s == "…" {
			skip = true
			continue
		}
		want := masked(s)
		found := slices.Index(lines[at:], want)
		if found < 0 || found > 0 && !skip {
			return fmt.Sprintf("line %q is not where it is shown", want)
		}
		at, skip = at+found+1, false
	}
	if at < len(lines) && !skip {
		return fmt.Sprintf("line %q is not shown", lines[at])
	}
	return ""
}

// TestREADMEWithDocker does what the README does, command by command.
func TestREADMEWithDocker(t *testing.T) {
	start := time.Now()
	q := newQuay(t)
	steps := transcript(t, "## With Docker")
	if len(steps) < 15 {
		t.Fatalf("the README has %d commands: is it still the transcript of a publish, an etcd member stopped, a canary, a rollback?", len(steps))
	}
	if out, err := q.sh(t.Context(), "deploy/compose -f docker-compose.yml -f deploy/compose.observability.yml config"); err != nil || !strings.Contains(out, "OTEL_") {
		t.Errorf("Compose does not read deploy/compose.observability.yml: %v\n%s", err, out)
	}
	for _, s := range steps {
		began := time.Now()
		out, wrong := q.do(t, s)
		if wrong != "" {
			q.wrong = fmt.Sprintf("$ %s: %s", s.command, wrong)
			t.Fatalf("$ %s\n%s\n\n%s; README shows:\n%s", s.command, out, wrong, strings.Join(s.shown, "\n"))
		}
		t.Logf("%5.1f s  $ %s", time.Since(began).Seconds(), s.command)
		if s.command == "make up" {
			q.confined(t)
			q.ownKeysOnly(t)
		}
	}
	t.Logf("%.1f s in all", time.Since(start).Seconds())
	if out, err := q.sh(t.Context(), "docker ps -aq --filter label=com.docker.compose.project=$COMPOSE_PROJECT_NAME; "+
		"docker volume ls -q --filter label=com.docker.compose.project=$COMPOSE_PROJECT_NAME; "+
		// One that Docker 20.10 holds on to by mistake is not ours to answer for.
		"docker network ls -q --filter label=com.docker.compose.project=$COMPOSE_PROJECT_NAME | while read -r n; do "+
		"case $(docker network rm $n 2>&1) in *'has active endpoints'*) ;; *) echo $n ;; esac; done"); err != nil || out != "" {
		t.Errorf("make down left something: %v\n%s", err, out)
	}
}

// do runs a command. One that only looks is asked again for some seconds: what it
// is to see may take a moment.
func (q *quay) do(t *testing.T, s step) (out, wrong string) {
	t.Helper()
	again := time.Now().Add(15 * time.Second)
	looks := strings.HasPrefix(s.command, "curl ") || strings.HasSuffix(s.command, " status")
	for {
		out, err := q.sh(t.Context(), s.command)
		if wrong = like(s.shown, out); err != nil {
			wrong = err.Error()
		}
		if wrong == "" || !looks || time.Now().After(again) {
			return out, wrong
		}
		select {
		case <-t.Context().Done():
			return out, wrong
		case <-time.After(250 * time.Millisecond):
		}
	}
}

// A box is what Docker says of a container.
type box struct {
	Name   string
	Config struct {
		User   string
		Labels map[string]string
	}
	HostConfig struct {
		ReadonlyRootfs bool
		CapDrop        []string
		CapAdd         []string
		SecurityOpt    []string
		Privileged     bool
		PortBindings   map[string][]struct{ HostIp string }
		RestartPolicy  struct{ Name string }
	}
}

// confined looks at every container: nothing may be more than it needs.
func (q *quay) confined(t *testing.T) {
	t.Helper()
	out, err := q.sh(t.Context(), "docker inspect $(docker ps -aq --filter label=com.docker.compose.project=$COMPOSE_PROJECT_NAME)")
	var boxes []box
	if err == nil {
		err = json.Unmarshal([]byte(out), &boxes)
	}
	if err != nil || len(boxes) != 13 {
		t.Fatalf("%d containers, want 13: %v\n%s", len(boxes), err, out)
	}
	for _, b := range boxes {
		service, h := b.Config.Labels["com.docker.compose.service"], b.HostConfig
		user, added := "65532:65532", 0
		if service == "certs" { // who gives keys to their holders
			user, added = "0:0", 1
		}
		if b.Config.User != user || !h.ReadonlyRootfs || h.Privileged || !slices.Contains(h.CapDrop, "ALL") || len(h.CapAdd) != added ||
			!slices.Contains(h.SecurityOpt, "no-new-privileges:true") || h.RestartPolicy.Name == "" {
			t.Errorf("%s is not confined: user %s, %+v", service, b.Config.User, h)
		}
		for port, to := range h.PortBindings {
			for _, p := range to {
				if p.HostIp != "127.0.0.1" {
					t.Errorf("%s: port %s is open to %q, not to loopback alone", service, port, p.HostIp)
				}
			}
		}
	}
	if out, err := q.sh(t.Context(), "docker run --rm --entrypoint /bin/sh $FLEET_IMAGE -c true"); err == nil || !strings.Contains(out, "no such file") {
		t.Errorf("the image has a shell: %v %s", err, out)
	}
}

// ownKeysOnly looks into the volumes: an instance finds its own key, and
// neither another's nor the authority's.
func (q *quay) ownKeysOnly(t *testing.T) {
	t.Helper()
	for _, service := range []string{"canary-1", "main-2", "etcd-3"} {
		out, err := q.sh(t.Context(), "docker cp $(docker ps -q --filter label=com.docker.compose.project=$COMPOSE_PROJECT_NAME --filter label=com.docker.compose.service="+
			service+"):/pki - | tar -tv | grep -v /$")
		if err != nil {
			t.Errorf("look at the keys of %s: %v\n%s", service, err, out)
			continue
		}
		var files []string
		for line := range strings.Lines(out) {
			f := strings.Fields(line)
			files = append(files, f[len(f)-1]+" "+f[0])
		}
		slices.Sort(files)
		want := []string{"pki/" + service + "-key.pem -rw-------", "pki/" + service + ".pem -rw-r--r--", "pki/ca.pem -rw-r--r--"}
		slices.Sort(want)
		if !slices.Equal(files, want) {
			t.Errorf("%s holds %q, want %q", service, files, want)
		}
	}
}

// TestComposeLostEtcd deletes etcd's data under a fleet that serves on: the
// one-shots make no other fleet, `make up` says so, and the instances give etcd
// back what they serve.
func TestComposeLostEtcd(t *testing.T) {
	q := newQuay(t)
	for _, s := range []struct {
		command string
		fails   bool
		says    string // an expression
	}{
		{"make --no-print-directory up", false, "a fleet in three groups is serving"},
		{"ROUTECTL_AS=nobody deploy/routectl status", true, "publisher, operator or reader"},
		{"ROUTECTL_AT=main-9 deploy/routectl status", true, "main-1 main-2"},
		{"deploy/compose rm -sf etcd-1 etcd-2 etcd-3 certs setup init publish", false, ""},
		{"docker volume rm ${COMPOSE_PROJECT_NAME}_etcd-1 ${COMPOSE_PROJECT_NAME}_etcd-2 ${COMPOSE_PROJECT_NAME}_etcd-3", false, ""},
		{"make --no-print-directory up", true, "hint: routectl recover --from URL(?s:.*)etcd has lost it|etcd has lost it(?s:.*)hint: routectl recover --from URL"},
		{"curl -sf http://127.0.0.1:8082/products/7", false, "upstream A"},
		{"ROUTECTL_AS=operator ROUTECTL_AT=canary-1 deploy/routectl recover --from http://127.0.0.1:9080", false, "is back in etcd"},
		{"ROUTECTL_AS=operator ROUTECTL_AT=main-1 deploy/routectl recover --from http://127.0.0.1:9080", false, "restored: main"},
		{"ROUTECTL_AS=operator ROUTECTL_AT=edge-1 deploy/routectl recover --from http://127.0.0.1:9080 --wait", false, "restored: edge"},
		{"make --no-print-directory up", false, "a fleet in three groups is serving"},
	} {
		out, err := q.sh(t.Context(), s.command)
		if (err != nil) != s.fails || !regexp.MustCompile(s.says).MatchString(out) {
			t.Fatalf("$ %s: %v, want failure %v and %q\n%s", s.command, err, s.fails, s.says, out)
		}
	}
}
