package harness

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
)

// dialled finds the node whose process is at the other end of a connection that
// was accepted; "" when none of them is, or it is gone already. The kernel
// knows whose socket has the connection's two addresses: that is asked (Linux),
// since what is said on the connection may be encrypted.
func (g *processes) dialled(c net.Conn) string {
	local, ok := c.RemoteAddr().(*net.TCPAddr) // of who dialled
	remote, ok2 := c.LocalAddr().(*net.TCPAddr)
	if !ok || !ok2 {
		return ""
	}
	socket := socketOf(local.Port, remote.Port)
	if socket == "" {
		return ""
	}
	g.mu.Lock()
	pids := map[string]int{}
	for name, n := range g.nodes {
		if n.p != nil {
			pids[name] = n.p.Pid()
		}
	}
	g.mu.Unlock()
	for name, pid := range pids {
		fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
		if err != nil {
			continue
		}
		for _, fd := range fds {
			if to, err := os.Readlink(fd); err == nil && to == socket {
				return name
			}
		}
	}
	return ""
}

// socketOf is what a descriptor of the socket with these ports on loopback links
// to; "" when there is none.
func socketOf(local, remote int) string {
	b, err := os.ReadFile("/proc/net/tcp")
	if err != nil {
		return ""
	}
	ends := fmt.Sprintf(" 0100007F:%04X 0100007F:%04X ", local, remote)
	_, rest, ok := strings.Cut(string(b), ends)
	if !ok {
		return ""
	}
	line, _, _ := strings.Cut(rest, "\n")
	f := strings.Fields(line) // state, queues, timer, retransmits, uid, timeout, inode
	if len(f) > 6 && f[6] != "0" {
		return "socket:[" + f[6] + "]"
	}
	return ""
}
