package route

import (
	"errors"
	"fmt"
	"net/netip"
	"net/textproto"
	"regexp/syntax"
	"strings"
)

// routeChecker checks one route by itself.
type routeChecker struct {
	*validator
	ix *moduleIndex
	i  int
	r  *Route

	unreadable bool // something that decides a match is wrong
}

// report tells of a problem with a field of the route, "" for the route as a whole.
func (c *routeChecker) report(severity Severity, field, message, hint string) {
	full := fmt.Sprintf("routes[%d]", c.i)
	if field != "" {
		full += "." + field
	}
	c.add(Problem{
		Severity: severity, Place: c.ix.module.Source.Place(full), Module: c.ix.module.Name,
		Route: c.r.Name, Field: full, Message: message, Hint: hint,
	})
}

func (c *routeChecker) fail(field, message, hint string) { c.report(Error, field, message, hint) }

// unread is fail for what decides a match: the route is then not compared
// with others, which would only say the same thing again.
func (c *routeChecker) unread(field, message, hint string) {
	c.unreadable = true
	c.fail(field, message, hint)
}

func (c *routeChecker) check() {
	switch first := c.ix.routes[c.r.Name]; {
	case c.r.Name == "":
		c.fail("name", "the route has no name", "give it one")
	case !validName(c.r.Name):
		c.fail("name", fmt.Sprintf("bad name %q", c.r.Name), nameHint(MaxNameBytes))
	case first != c.i:
		c.fail("name", fmt.Sprintf("the name %s stands twice in the module%s", c.r.Name,
			seenAt(c.ix.module, fmt.Sprintf("routes[%d].name", first))), "give one of them another name")
	}
	c.pattern()
	c.hosts()
	c.methods()
	c.conditions()
	if p := c.r.Priority; p > MaxPriority || p < MinPriority {
		c.unread("priority", fmt.Sprintf("%d is out of range", p), fmt.Sprintf("from %d to %d", MinPriority, MaxPriority))
	}
	c.middlewares()
	c.action()
	c.ix.valid[c.i] = !c.unreadable
}

func (c *routeChecker) pattern() {
	field, text := "path", c.r.Path
	switch {
	case c.r.Path != "" && c.r.Prefix != "":
		c.unread("", "both path and prefix are given", "keep the one that is meant; prefix: /x also takes /x itself")
		return
	case c.r.Path == "" && c.r.Prefix == "":
		c.unread("", "neither path nor prefix is given", "write path: /x, or prefix: / for every path")
		return
	case c.r.Prefix != "":
		field, text = "prefix", c.r.Prefix
	}
	p, err := c.r.Pattern()
	if err != nil {
		c.unread(field, fmt.Sprintf("%q %v", text, err), "")
		return
	}
	c.ix.patterns[c.i] = p
}

func (c *routeChecker) hosts() {
	if n := len(c.r.Hosts); n > MaxRouteHosts {
		c.unread("hosts", fmt.Sprintf("there are %d hosts, more than %d", n, MaxRouteHosts), "use a wildcard, or several routes")
	}
	for j, h := range c.r.Hosts {
		if message, hint := checkHost(h); message != "" {
			c.unread(fmt.Sprintf("hosts[%d]", j), message, hint)
		}
	}
}

// checkHost says what is wrong with a normalized host pattern, and the way out.
func checkHost(h string) (message, hint string) {
	switch h {
	case "":
		return "the host is empty", "leave hosts out for any"
	case "*":
		return "* stands beside other hosts, and takes what they take", "leave hosts out for any, or write a route for each"
	}
	if hint := mendHost(h); hint != "" {
		return fmt.Sprintf("%q is not a host", h), hint
	}
	return "", ""
}

// mendHost says how to write a host that is not one, and nothing of one that is.
func mendHost(h string) string {
	name := strings.TrimPrefix(h, "*.")
	switch {
	case strings.Contains(h, "/"):
		return "write the host alone, without scheme and path"
	case strings.Contains(name, "*"):
		return "a wildcard is *. and then a whole name, such as *.example.com"
	case h[0] == '[' && strings.HasSuffix(h, "]"):
		if a, err := netip.ParseAddr(h[1 : len(h)-1]); err != nil || !a.Is6() || a.String() != h[1:len(h)-1] {
			return "an IPv6 address stands in brackets, in its shortest form"
		}
		return ""
	case strings.Contains(h, ":"):
		return "leave the port out: hosts are matched without it"
	case len(name) > 253:
		return "a host name has at most 253 bytes"
	}
	size := 0
	for i := range len(name) {
		switch b := name[i]; {
		case b == '.':
			if size == 0 {
				return labelHint
			}
			size = 0
			continue
		case b >= 0x80:
			return "write an international name as it goes over the wire, xn--…"
		case !alphanumeric(b) && b != '-' && b != '_':
			return "letters, digits and - between dots"
		}
		if size++; size > 63 {
			return labelHint
		}
	}
	if size == 0 {
		return labelHint
	}
	return ""
}

const labelHint = "each label, between dots, has 1 to 63 bytes"

func (c *routeChecker) methods() {
	if n := len(c.r.Methods); n > MaxRouteMethods {
		c.unread("methods", fmt.Sprintf("there are %d methods, more than %d", n, MaxRouteMethods), "leave methods out for any")
	}
	for j, m := range c.r.Methods {
		field := fmt.Sprintf("methods[%d]", j)
		switch {
		case !token(m) || len(m) > MaxNameBytes:
			c.unread(field, fmt.Sprintf("%q is not a method", m), "such as GET; leave methods out for any")
		case m == "CONNECT":
			c.unread(field, "CONNECT is always answered 400", "routerd is no forward proxy: take it out")
		}
	}
}

func (c *routeChecker) conditions() {
	if n := len(c.r.Headers) + len(c.r.Query) + len(c.r.Cookies); n > MaxConditions {
		c.unread("", fmt.Sprintf("there are %d conditions, more than %d", n, MaxConditions), "join some into an expression")
	}
	for j := range c.r.Headers {
		c.condition("headers", j, &c.r.Headers[j])
	}
	for j := range c.r.Query {
		c.condition("query", j, &c.r.Query[j])
	}
	for j := range c.r.Cookies {
		c.condition("cookies", j, &c.r.Cookies[j])
	}
	if n := len(c.r.Clients); n > MaxClients {
		c.unread("clients", fmt.Sprintf("there are %d address ranges, more than %d", n, MaxClients), "join ranges")
	}
	for j, p := range c.r.Clients {
		if !p.IsValid() {
			c.unread(fmt.Sprintf("clients[%d]", j), "not an address range", "such as 10.0.0.0/8 or 2001:db8::/32")
		}
	}
}

func (c *routeChecker) condition(list string, j int, cond *Condition) {
	fail := func(field, message, hint string) {
		c.unread(fmt.Sprintf("%s[%d].%s", list, j, field), message, hint)
	}
	switch name := cond.Name; {
	case name == "":
		fail("name", "the condition has no name", "name what it asks about")
	case len(name) > MaxNameBytes:
		fail("name", fmt.Sprintf("the name is longer than %d bytes", MaxNameBytes), "")
	case list == "query":
		// Any text can be a query parameter's name.
	case !token(name):
		fail("name", fmt.Sprintf("%q cannot be a name here", name), "letters, digits and - as a rule")
	case list == "headers" && name == "Host":
		fail("name", "the Host is not among the headers", "use hosts")
	}
	if len(cond.Value) > MaxConditionValue {
		c.unread(fmt.Sprintf("%s[%d]", list, j), fmt.Sprintf("the value is longer than %d bytes", MaxConditionValue), "")
		return
	}
	field := "equal"
	switch cond.Op {
	case OpPresent:
		if cond.Value != "" {
			fail("present", "a condition that asks for presence has a value", "leave it out, or ask for equality")
		}
	case OpEqual, OpPrefix:
		if cond.Op == OpPrefix {
			field = "prefix"
		}
		if list != "query" && !fieldText(strings.TrimRight(cond.Value, " ")) {
			fail(field, "no value can hold control characters or begin with white space", "take them out")
		}
	case OpRegexp:
		err, known := c.regexps[cond.Value]
		if !known {
			_, _, err = CompileRegexp(cond.Value)
			c.regexps[cond.Value] = err
		}
		if err != nil {
			fail("regex", err.Error(), "an RE2 expression, which is anchored at both ends by itself")
		}
	default:
		c.unread(fmt.Sprintf("%s[%d]", list, j), "the condition does not say how it compares", "present, equal, prefix or regex")
	}
	if list == "headers" && (cond.Op == OpEqual || cond.Op == OpPrefix) && credential(cond.Name) {
		if scheme := strings.TrimRight(cond.Value, " "); strings.Contains(scheme, " ") || cond.Op == OpEqual && scheme != "" {
			fail(field, fmt.Sprintf("a literal secret: every snapshot and its history would hold the value of %s", cond.Name),
				"ask for its presence or for a prefix such as \"Bearer \"; a credential is for a middleware or the upstream to check")
		}
	}
}

// checkRegexp holds the limits of an expression, and that it stands by itself:
// a text such as a)(b is only whole with something around it. It returns how
// many instructions the expression takes.
func checkRegexp(expr string) (int, error) {
	if len(expr) > MaxRegexpBytes {
		return 0, fmt.Errorf("the expression is longer than %d bytes", MaxRegexpBytes)
	}
	re, err := syntax.Parse(expr, syntax.Perl)
	if err != nil {
		var se *syntax.Error
		if errors.As(err, &se) {
			return 0, fmt.Errorf("bad expression: %s: %q", se.Code, se.Expr)
		}
		return 0, fmt.Errorf("bad expression: %w", err)
	}
	prog, err := syntax.Compile(re.Simplify())
	if err != nil {
		return 0, fmt.Errorf("bad expression: %w", err)
	}
	n := len(prog.Inst)
	if n > MaxRegexpProgram {
		return 0, fmt.Errorf("the expression takes %d instructions, more than %d", n, MaxRegexpProgram)
	}
	return n, nil
}

func (c *routeChecker) middlewares() {
	if n := len(c.r.Middlewares); n > MaxRouteMiddlewares {
		c.fail("middlewares", fmt.Sprintf("there are %d middlewares, more than %d", n, MaxRouteMiddlewares), "join some")
	}
	for j := range c.r.Middlewares {
		w := &c.r.Middlewares[j]
		field := fmt.Sprintf("middlewares[%d]", j)
		switch {
		case w.Use != "" && (w.Kind != "" || w.Config != ""):
			c.fail(field, "both use and a kind are given", "refer to a middleware of the module, or write one here")
		case w.Use != "":
			if _, ok := c.ix.middlewares[w.Use]; !ok {
				c.fail(field+".use", fmt.Sprintf("the module has no middleware %s", w.Use), oneOf("define it under middlewares:", c.ix.middlewares))
				continue
			}
			c.ix.middlewares[w.Use] = true
		case w.Kind == "":
			c.fail(field, "the middleware has neither use nor a kind", "name a kind, such as rateLimit:")
		default:
			checkConfig(w.Config, func(path, message, hint string) {
				c.fail(field+"."+w.Kind+path, message, hint)
			})
		}
	}
}

// canonicalHeader tells whether the name is as Normalize leaves it.
func canonicalHeader(name string) bool { return textproto.CanonicalMIMEHeaderKey(name) == name }
