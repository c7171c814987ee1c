package middleware

import (
	"net/netip"
	"strconv"
	"strings"

	"github.com/gaissmai/bart"
)

// scanAtMost is how many prefixes are compared one by one; more go into a
// trie.
const scanAtMost = 8

// An ipList answers whether an address is in one of its prefixes. An address
// mapped into IPv6 counts as the IPv4 address it is; zones are left out.
type ipList struct {
	few  []netip.Prefix
	many *bart.Lite
}

func (l *ipList) contains(a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	if l.many != nil {
		return l.many.Contains(a)
	}
	for _, p := range l.few {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

func newIPList(clients []string, ps *problems) *ipList {
	if len(clients) == 0 {
		ps.add("clients", "list addresses or CIDR ranges", "is required")
	}
	l := &ipList{}
	for i, s := range clients {
		field := "clients[" + strconv.Itoa(i) + "]"
		p, err := parseClient(s)
		if err != nil {
			ps.add(field, "write an address or a range such as 10.0.0.0/8", "%.80q is neither an address nor a range", s)
			continue
		}
		if p != p.Masked() {
			ps.add(field, "write "+p.Masked().String(), "%s has bits beyond its length", s)
			continue
		}
		l.few = append(l.few, p)
	}
	if len(l.few) > scanAtMost {
		l.many = &bart.Lite{}
		for _, p := range l.few {
			l.many.Insert(p)
		}
		l.few = nil
	}
	return l
}

func parseClient(s string) (netip.Prefix, error) {
	if !strings.Contains(s, "/") {
		a, err := netip.ParseAddr(s)
		a = a.Unmap().WithZone("")
		return netip.PrefixFrom(a, a.BitLen()), err
	}
	p, err := netip.ParsePrefix(s)
	if err == nil && p.Addr().Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p, err
}

// refusal is what a client that may not pass is answered. It is shared by all
// requests: answers are read only.
func refusal() *Answer { return &Answer{Status: 403, Body: "forbidden\n"} }
