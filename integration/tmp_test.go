//go:build integration

package integration

import (
	"os/exec"
	"testing"
	"time"
	"fmt"
	"os"
)

func TestTmp(t *testing.T) {
	s := newSite(t)
	show := func(what string) {
		i := s.Instances[0]
		out, _ := exec.Command("sh", "-c", fmt.Sprintf("ss -tnp state all | grep pid=%d, | awk '{print $1}' | sort | uniq -c | tr '\n' ' '", i.Pid())).CombinedOutput()
		v, _ := i.Vitals()
		t.Logf("%s: %s %v", what, out, v)
	}
	show("start")
	stop := s.load(t, 300)
	time.Sleep(3*time.Second)
	if os.Getenv("CHANGES") != "" {
		for range 10 { s.publish("--wait") }
	}
	stop()
	show("loaded")
	s.hangUp()
	show("hangUp")
	for range 4 { time.Sleep(4*time.Second); show("later") }
	stop = s.load(t, 20)
	time.Sleep(3*time.Second)
	stop()
	show("again")
	for range 3 { time.Sleep(4*time.Second); show("later") }
}
