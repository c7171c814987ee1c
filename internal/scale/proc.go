package main

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"strings"
	"time"
)

// Usage is what a process used.
type Usage struct {
	CPU time.Duration // in user space and in the kernel, since its start
	RSS int64         // bytes of memory at this moment
}

// tick is what Linux counts a process's time in, on every architecture that Go
// runs on.
const tick = 10 * time.Millisecond

// usageOf reads what a living process used.
func usageOf(pid int) (Usage, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return Usage{}, fmt.Errorf("ask what a process used (this needs Linux): %w", err)
	}
	return parseStat(b)
}

// parseStat reads proc_pid_stat(5).
func parseStat(b []byte) (Usage, error) {
	// The second field is the program's name, in parentheses, with whatever is in it.
	end := bytes.LastIndexByte(b, ')')
	if end < 0 {
		return Usage{}, fmt.Errorf("stat of a process: no name in %.80q", b)
	}
	fields := strings.Fields(string(b[end+1:])) // from the third, state, on
	const utime, stime, rss = 14 - 3, 15 - 3, 24 - 3
	if len(fields) <= rss {
		return Usage{}, fmt.Errorf("stat of a process: %d fields after the name in %.80q", len(fields), b)
	}
	var n [3]int64
	for i, at := range []int{utime, stime, rss} {
		v, err := strconv.ParseInt(fields[at], 10, 64)
		if err != nil {
			return Usage{}, fmt.Errorf("stat of a process: field %d: %w", at+3, err)
		}
		n[i] = v
	}
	return Usage{CPU: time.Duration(n[0]+n[1]) * tick, RSS: n[2] * int64(os.Getpagesize())}, nil
}

// freeAddrs returns loopback addresses that nobody listens on at this moment.
// Their ports are below those that the kernel gives to outgoing connections:
// one of two thousand clients could take it while its etcd is down.
func freeAddrs(n int) ([]string, error) {
	var addrs []string
	var err error
	for range 100 * n {
		addr := fmt.Sprintf("127.0.0.1:%d", 12000+rand.IntN(20000))
		var l net.Listener
		if l, err = net.Listen("tcp", addr); err != nil {
			continue
		}
		defer l.Close() // so that no address is given twice
		if addrs = append(addrs, addr); len(addrs) == n {
			return addrs, nil
		}
	}
	return nil, fmt.Errorf("find %d free ports: %w", n, err)
}

// loadAverage tells how busy the machine is, "" where that cannot be told.
func loadAverage() string {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return ""
	}
	fields := strings.Fields(string(text))
	return strings.Join(fields[:min(3, len(fields))], " ")
}
