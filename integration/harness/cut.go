package harness

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
)

// loss is the part of packets with content that CutSlow loses in each
// direction: TCP sends them again after 200 ms and more.
const loss = "0.3"

// A pair is the two ends of a connection.
type pair struct{ local, remote netip.AddrPort }

// rules are those of iptables that break the network with a subnet: of the
// chains INPUT and OUTPUT, in the form of iptables-restore.
func rules(how Cut, subnet string, silent []pair) (out []string) {
	in, ret := "-A INPUT -s "+subnet+" ", "-A OUTPUT -d "+subnet+" "
	switch how {
	case CutBoth:
		return []string{in + "-j DROP", ret + "-j DROP"}
	case CutIn:
		return []string{in + "-j DROP"}
	case CutOut:
		return []string{ret + "-j DROP"}
	case CutOpen:
		for _, p := range silent {
			out = append(out,
				fmt.Sprintf("-A INPUT -p tcp -s %s -d %s --sport %d --dport %d -j DROP", p.remote.Addr(), p.local.Addr(), p.remote.Port(), p.local.Port()),
				fmt.Sprintf("-A OUTPUT -p tcp -s %s -d %s --sport %d --dport %d -j DROP", p.local.Addr(), p.remote.Addr(), p.local.Port(), p.remote.Port()))
		}
		return out
	case CutRefuse:
		for _, chain := range []string{in, ret} {
			out = append(out,
				chain+"-p tcp --tcp-flags RST RST -j ACCEPT", // or a refusal would be lost itself
				chain+"-p tcp -j REJECT --reject-with tcp-reset",
				chain+"-j DROP")
		}
		return out
	case CutSlow:
		for _, chain := range []string{in, ret} {
			out = append(out, chain+"-p tcp -m length --length 80: -m statistic --mode random --probability "+loss+" -j DROP")
		}
		return out
	default:
		panic(fmt.Sprintf("no cut %d", how))
	}
}

// filter puts rules in place of those that the node's namespace has; none
// for an open network.
func (g *containers) filter(node string, rules []string) error {
	var b strings.Builder
	b.WriteString("*filter\n:INPUT ACCEPT\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\n")
	for _, r := range rules {
		b.WriteString(r + "\n")
	}
	b.WriteString("COMMIT\n")
	_, err := g.netns(node, b.String(), "iptables-restore", "-w")
	return err
}

// connections are what the node has open on the control network.
func (g *containers) connections(node string) ([]pair, error) {
	pid, err := g.pid(node)
	if err != nil {
		return nil, err
	}
	var all []pair
	for _, table := range []string{"tcp", "tcp6"} {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", pid, table))
		if err != nil {
			return nil, err
		}
		for line := range strings.Lines(string(b)) {
			f := strings.Fields(line) // number, addresses, state, …
			if len(f) < 4 || f[3] == "0A" || !strings.Contains(f[1], ":") {
				continue // the head, or a listener
			}
			local, err := kernelAddr(f[1])
			if err != nil {
				return nil, err
			}
			remote, err := kernelAddr(f[2])
			if err != nil {
				return nil, err
			}
			if g.control.subnet.Contains(remote.Addr()) {
				all = append(all, pair{local: local, remote: remote})
			}
		}
	}
	return all, nil
}

// kernelAddr reads an address as /proc/net/tcp and tcp6 have it: words of the
// machine's order, of which the last is the IPv4 address.
func kernelAddr(s string) (netip.AddrPort, error) {
	addr, port, ok := strings.Cut(s, ":")
	if !ok || len(addr) < 8 {
		return netip.AddrPort{}, fmt.Errorf("no address: %q", s)
	}
	word, err := strconv.ParseUint(addr[len(addr)-8:], 16, 32)
	if err != nil {
		return netip.AddrPort{}, err
	}
	p, err := strconv.ParseUint(port, 16, 16)
	if err != nil {
		return netip.AddrPort{}, err
	}
	ip := netip.AddrFrom4([4]byte{byte(word), byte(word >> 8), byte(word >> 16), byte(word >> 24)})
	return netip.AddrPortFrom(ip, uint16(p)), nil
}

// command runs a program of the machine; the error says what is missing.
func command(ctx context.Context, stdin string, line ...string) (string, error) {
	for _, name := range line {
		switch name {
		case "nsenter", "iptables-restore":
			if _, err := exec.LookPath(name); err != nil {
				return "", fmt.Errorf("%w: cuts of a container's network need nsenter (package util-linux) and iptables (package iptables), and root", err)
			}
		}
	}
	cmd := exec.CommandContext(ctx, line[0], line[1:]...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		why := ""
		if os.Getuid() != 0 {
			why = " (this needs root)"
		}
		return "", fmt.Errorf("%s: %w%s: %s", strings.Join(line, " "), err, why, out)
	}
	return string(out), nil
}
