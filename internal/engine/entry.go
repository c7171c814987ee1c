package engine

import (
	"cmp"
	"slices"

	"routerd.dev/internal/middleware"
	"routerd.dev/internal/proxy"
	"routerd.dev/internal/route"
)

// An entry is a route made ready: what deciding and carrying out need of it,
// worked out once. It belongs to its module's part and is shared by all host
// trees and revisions that have the module.
//
// What nearly every decision reads stands first and fills one cache line.
type entry struct {
	route   *route.Route
	name    string      // module/name
	conds   *conditions // nil for none
	params  []param
	methods methodSet
	n       uint8 // segments of the pattern
	wildAt  uint8 // see shape
	mixedTo uint8 // see shape
	rest    rest
	simple  bool // whatever Gin finds for the path and takes the method is taken

	priority int32
	index    int32 // in the module
	part     *part
	rank     string   // level 3 of the order
	others   []string // methods without a bit
	mixed    []mixed

	chain    []*middleware.Head // outermost first
	upstream *proxy.Upstream    // of a proxy action, nil in an engine without a library
	location *location          // of a redirect action
}

// before tells whether e wins over o by host tree, priority and path alone:
// all that is left to compare between leaves of different shapes.
func (e *entry) before(o *entry) bool {
	if e.priority != o.priority {
		return e.priority > o.priority
	}
	return e.rank < o.rank
}

// compareEntries is the order of matching within one host pattern, for any
// method but HEAD.
func compareEntries(a, b *entry) int {
	if a.priority != b.priority {
		return cmp.Compare(b.priority, a.priority)
	}
	if a.rank != b.rank {
		return cmp.Compare(a.rank, b.rank)
	}
	if c := compareConditions(a, b); c != 0 {
		return c
	}
	return cmp.Or(cmp.Compare(a.part.module.Name, b.part.module.Name), cmp.Compare(a.index, b.index))
}

func compareConditions(a, b *entry) int {
	x, y := a.route, b.route
	return cmp.Or(
		cmp.Compare(min(1, len(y.Methods)), min(1, len(x.Methods))),
		cmp.Compare(len(y.Headers), len(x.Headers)),
		cmp.Compare(len(y.Query), len(x.Query)),
		cmp.Compare(len(y.Cookies), len(x.Cookies)),
		cmp.Compare(min(1, len(y.Clients)), min(1, len(x.Clients))),
	)
}

// A methodSet is the methods that a route takes, one bit each.
type methodSet uint16

const (
	bitGet methodSet = 1 << iota
	bitHead
	bitPost
	bitPut
	bitPatch
	bitDelete
	bitOptions
	bitTrace
	bitOther // all methods without a bit, or some that entry.others names
	bitLent  // HEAD is in the set only because GET is
)

const anyMethod = bitLent - 1

func methodBit(method string) methodSet {
	switch method {
	case "GET":
		return bitGet
	case "POST":
		return bitPost
	case "HEAD":
		return bitHead
	case "PUT":
		return bitPut
	case "PATCH":
		return bitPatch
	case "DELETE":
		return bitDelete
	case "OPTIONS":
		return bitOptions
	case "TRACE":
		return bitTrace
	default:
		return bitOther
	}
}

// methodsOf gives the set of a route's methods, and those without a bit.
func methodsOf(names []string) (set methodSet, others []string) {
	if len(names) == 0 {
		return anyMethod, nil
	}
	for _, name := range names {
		bit := methodBit(name)
		set |= bit
		if bit == bitOther {
			others = append(others, name)
		}
	}
	if set&(bitGet|bitHead) == bitGet {
		set |= bitHead | bitLent
	}
	return set, others
}

// takesMethod tells whether e takes a method, whose bit is given.
func (e *entry) takesMethod(bit methodSet, name string) bool {
	return e.methods&bit != 0 && (bit != bitOther || e.others == nil || slices.Contains(e.others, name))
}
