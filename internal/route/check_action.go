package route

import (
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

func (c *routeChecker) action() {
	a := &c.r.Action
	n := 0
	for _, set := range []bool{a.Proxy != nil, a.Respond != nil, a.Redirect != nil} {
		if set {
			n++
		}
	}
	if n != 1 {
		message := "the route has no action"
		if n > 1 {
			message = "the route has more than one action"
		}
		c.fail("", message, "exactly one of proxy, respond and redirect")
	}
	if a.Proxy != nil {
		c.proxy(a.Proxy)
	}
	if a.Respond != nil {
		c.respond(a.Respond)
	}
	if a.Redirect != nil {
		c.redirect(a.Redirect)
	}
}

func (c *routeChecker) proxy(p *Proxy) {
	if _, ok := c.ix.upstreams[p.Upstream]; ok {
		c.ix.upstreams[p.Upstream] = true
	} else {
		message := fmt.Sprintf("the module has no upstream %s", p.Upstream)
		if p.Upstream == "" {
			message = "no upstream is named"
		}
		c.fail("proxy.upstream", message, oneOf("define it under upstreams:", c.ix.upstreams))
	}
	if p.Timeout != 0 {
		if message := checkTimeout(p.Timeout); message != "" {
			c.fail("proxy.timeout", message, fmt.Sprintf("from %s to %s, or leave it out for none", MinTimeout, MaxTimeout))
		}
	}
}

// oneOf is a hint that names what there is, when that is not much.
func oneOf(hint string, defined map[string]bool) string {
	if len(defined) == 0 || len(defined) > 10 {
		return hint
	}
	return hint + " or use " + strings.Join(slices.Sorted(maps.Keys(defined)), ", ")
}

func (c *routeChecker) respond(a *Respond) {
	if a.Status < 200 || a.Status > 599 {
		c.fail("respond.status", fmt.Sprintf("%d is not a status of a response", a.Status), "from 200 to 599")
	}
	if n := len(a.Body); n > MaxRespondBody {
		c.fail("respond.body", fmt.Sprintf("the body has %d bytes, more than %d", n, MaxRespondBody), "serve it from an upstream")
	}
	if a.Body != "" && (a.Status == 204 || a.Status == 304) {
		c.fail("respond.body", fmt.Sprintf("a response with status %d has no body", a.Status), "take it out, or use status 200")
	}
	checkHeaders(a.Headers, true, func(field, message, hint string) { c.fail("respond.headers"+field, message, hint) })
}

// checkHeaders holds the rules of literal header fields; of a response those
// that frame it are not an author's to set.
func checkHeaders(headers []Header, response bool, fail func(field, message, hint string)) {
	if n := len(headers); n > MaxHeaders {
		fail("", fmt.Sprintf("there are %d headers, more than %d", n, MaxHeaders), "")
	}
	for _, h := range headers {
		at := "." + h.Name
		switch {
		case !token(h.Name) || len(h.Name) > MaxNameBytes:
			fail(at, fmt.Sprintf("%q is not a header's name", h.Name), "letters, digits and - as a rule")
			continue
		case !canonicalHeader(h.Name):
			fail(at, fmt.Sprintf("%q is not in canonical form", h.Name), "normalize the table first")
		case response && framing(h.Name):
			fail(at, fmt.Sprintf("%s is set by routerd", h.Name), "take it out")
		}
		switch {
		case len(h.Value) > MaxHeaderValue:
			fail(at, fmt.Sprintf("the value is longer than %d bytes", MaxHeaderValue), "")
		case !fieldText(h.Value):
			fail(at, "the value has a control character, such as a line break, or white space around it", "take it out")
		case response && credential(h.Name):
			fail(at, "a literal secret: every snapshot and its history would hold the value of "+h.Name, "take it out: it is a header of requests")
		}
	}
}

// framing tells of the header fields that belong to a connection or say where
// a message ends.
func framing(name string) bool {
	switch name {
	case "Connection", "Content-Length", "Keep-Alive", "Proxy-Connection", "Te", "Trailer", "Transfer-Encoding", "Upgrade":
		return true
	}
	return false
}

func (c *routeChecker) redirect(a *Redirect) {
	switch a.Status {
	case 301, 302, 303, 307, 308:
	default:
		c.fail("redirect.status", fmt.Sprintf("%d is not a status of a redirect", a.Status), "301, 302, 303, 307 or 308")
	}
	const field = "redirect.to"
	parts, err := ParseTemplate(a.To)
	switch {
	case a.To == "":
		c.fail(field, "the redirect says not where to", "a path, or a whole URL; {name} stands for a parameter")
		return
	case len(a.To) > MaxRedirectTo:
		c.fail(field, fmt.Sprintf("longer than %d bytes", MaxRedirectTo), "")
		return
	case err != nil:
		c.fail(field, err.Error(), "{name} stands for a parameter of the path")
		return
	}
	if strings.ContainsFunc(a.To, func(r rune) bool { return r <= ' ' || r == 0x7f || r == '\\' }) {
		c.fail(field, "has a space, a backslash or a control character", "escape it, as %20")
	}
	if message, hint := checkDestination(a.To); message != "" {
		c.fail(field, message, hint)
	}
	if c.unreadable {
		return
	}
	names := c.ix.patterns[c.i].ParamNames()
	for _, part := range parts {
		if part.Param != "" && !slices.Contains(names, part.Param) {
			hint := "the path has no parameters"
			if len(names) > 0 {
				hint = "the path has " + strings.Join(names, ", ")
			}
			c.fail(field, fmt.Sprintf("names {%s}, which is no parameter of the path", part.Param), hint)
		}
	}
}

// checkDestination says what is wrong with where a redirect leads: a client
// must not be able to choose the host by what it asks for.
func checkDestination(to string) (message, hint string) {
	authority := ""
	lower := strings.ToLower(to)
	switch {
	case strings.HasPrefix(lower, "http://"), strings.HasPrefix(lower, "https://"):
		_, authority, _ = strings.Cut(to, "://")
		if authority == "" || strings.IndexByte("/?#", authority[0]) >= 0 {
			return "names no host", "such as https://example.com/"
		}
	case strings.HasPrefix(to, "//"):
		authority = to[2:]
		if authority == "" || authority[0] == '/' {
			return "names no host", "such as https://example.com/"
		}
	case strings.HasPrefix(to, "/"):
		return "", ""
	default:
		return "is neither a path nor an http or https URL", "begin with / or with https://"
	}
	if i := strings.IndexAny(authority, "/?#"); i >= 0 {
		authority = authority[:i]
	}
	switch {
	case strings.Contains(authority, "{"):
		return "has a parameter in its host, so a client could choose where it leads", "write the host out"
	case strings.Contains(authority, "@"):
		return "holds a user, perhaps with a literal secret", "take it out"
	}
	return "", ""
}

// ParseTemplate splits the To of a redirect, or the template of a rewrite, into
// literal text, as it is, and parameters. {name...} means {name}.
func ParseTemplate(s string) ([]Part, error) {
	var parts []Part
	for s != "" {
		open := strings.IndexAny(s, "{}")
		switch {
		case open < 0:
			return append(parts, Part{Literal: s}), nil
		case s[open] == '}':
			return nil, fmt.Errorf("has a } without its {: write %%7D for a literal one")
		case open > 0:
			parts = append(parts, Part{Literal: s[:open]})
		}
		end := strings.IndexByte(s[open:], '}')
		if end < 0 {
			return nil, fmt.Errorf("has a { without its }: write %%7B for a literal one")
		}
		name := strings.TrimSuffix(s[open+1:open+end], "...")
		if err := checkParam(name); err != nil {
			return nil, err
		}
		parts = append(parts, Part{Param: name})
		s = s[open+end+1:]
	}
	return parts, nil
}

func (v *validator) checkUpstreams(ix *moduleIndex) {
	m := ix.module
	for i := range m.Upstreams {
		u := &m.Upstreams[i]
		field := "upstreams." + u.Name
		v.checkName(m, field, "upstream", u.Name, i > 0 && m.Upstreams[i-1].Name == u.Name)
		if !ix.upstreams[u.Name] {
			v.warn(m, field, fmt.Sprintf("no route uses the upstream %s", u.Name), "use it or take it out")
		}
		v.checkUpstream(m, field, u)
	}
}

func (v *validator) checkUpstream(m *Module, field string, u *Upstream) {
	fail := func(name, message, hint string) { v.module(m, field+"."+name, message, hint) }
	switch n := len(u.Targets); {
	case n == 0:
		fail("targets", "the upstream has no targets", "name one, such as http://10.0.0.1:8080")
	case n > MaxTargets:
		fail("targets", fmt.Sprintf("there are %d targets, more than %d", n, MaxTargets), "put a balancer before them")
	}
	secure := false
	seen := make(map[string]bool, len(u.Targets))
	for j, t := range u.Targets {
		at := fmt.Sprintf("targets[%d]", j)
		secure = secure || strings.HasPrefix(t.URL, "https://")
		if message, hint := checkTarget(t.URL); message != "" {
			fail(at+".url", message, hint)
		} else if seen[t.URL] {
			fail(at+".url", t.URL+" stands twice", "give it a weight instead")
		}
		seen[t.URL] = true
		if t.Weight < 1 || t.Weight > MaxTargetWeight {
			fail(at+".weight", fmt.Sprintf("%d is out of range", t.Weight), fmt.Sprintf("from 1 to %d", MaxTargetWeight))
		}
	}
	switch {
	case u.HostMode > HostLiteral:
		fail("host", "unknown host mode", "the client's, the target's, or a name")
	case u.HostMode != HostLiteral && u.Host != "":
		fail("host", "a host is given but another is sent", "send it, or take it out")
	case u.HostMode == HostLiteral && !validAuthority(u.Host):
		fail("host", fmt.Sprintf("%q is not a host", u.Host), "a name, with a port if need be")
	}
	for _, d := range []struct {
		name  string
		value time.Duration
	}{
		{"timeouts.connect", u.ConnectTimeout},
		{"timeouts.response", u.ResponseTimeout},
		{"timeouts.idle", u.IdleTimeout},
	} {
		if message := checkTimeout(d.value); message != "" {
			fail(d.name, message, fmt.Sprintf("from %s to %s", MinTimeout, MaxTimeout))
		}
	}
	if u.MaxIdle < 1 || u.MaxIdle > MaxMaxIdle {
		fail("maxIdle", fmt.Sprintf("%d is out of range", u.MaxIdle), fmt.Sprintf("from 1 to %d", MaxMaxIdle))
	}
	switch {
	case u.TLS != TLS{} && !secure && len(u.Targets) > 0:
		v.warn(m, field+".tls", "no target is https, so this is without effect", "write https:// targets, or take it out")
	case u.TLS.Insecure:
		v.warn(m, field+".tls.insecure", "any certificate is accepted: whoever is in between can read and change everything", "name a caFile")
	}
	if s := u.TLS.ServerName; s != "" {
		if message, _ := checkHost(s); message != "" || strings.HasPrefix(s, "*") {
			fail("tls.serverName", fmt.Sprintf("%q is not a host", s), "the name in the target's certificate")
		}
	}
	if s := u.TLS.CAFile; s != "" && (!strings.HasPrefix(s, "/") || strings.ContainsRune(s, 0)) {
		fail("tls.caFile", fmt.Sprintf("%q is not an absolute path", s), "a file on each instance, from / on")
	}
}

// checkTarget says what is wrong with a target's URL, without repeating what
// may be a secret.
func checkTarget(text string) (message, hint string) {
	const example = "such as http://10.0.0.1:8080"
	if text == "" {
		return "the target has no URL", example
	}
	u, err := url.Parse(text)
	switch {
	case strings.Contains(text, "@") || err == nil && u.User != nil:
		return "a literal secret: the URL holds a user", "take it out; send credentials by a headers middleware, with " + secretReference
	case err != nil:
		return "not a URL", example
	case u.Scheme != "http" && u.Scheme != "https":
		return fmt.Sprintf("%q has not the scheme http or https", text), example
	case u.Path != "" || u.RawQuery != "" || u.Fragment != "" || u.ForceQuery || strings.HasSuffix(text, "#"):
		return fmt.Sprintf("%q has more than scheme, host and port", text), "change the path by a rewritePath middleware"
	case !validAuthority(u.Host):
		return fmt.Sprintf("%q names no valid host and port", text), example
	}
	return "", ""
}

// validAuthority tells whether s is a host, not a wildcard, with or without a
// port.
func validAuthority(s string) bool {
	host, port := s, ""
	if i := strings.LastIndexByte(s, ':'); i >= 0 && !strings.HasSuffix(s, "]") {
		host, port = s[:i], s[i+1:]
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return false
		}
	}
	message, _ := checkHost(strings.ToLower(host))
	return message == "" && !strings.HasPrefix(host, "*")
}

func (v *validator) checkTest(ix *moduleIndex, i int) {
	m, t := ix.module, &ix.module.Tests[i]
	field := fmt.Sprintf("tests[%d].", i)
	fail := func(name, message, hint string) { v.module(m, field+name, message, hint) }
	if len(t.Name) > 4*MaxNameBytes {
		fail("name", fmt.Sprintf("longer than %d bytes", 4*MaxNameBytes), "")
	}
	if !token(t.Method) || len(t.Method) > MaxNameBytes {
		fail("request.method", fmt.Sprintf("%q is not a method", t.Method), "such as GET")
	}
	u, err := url.Parse(t.URL)
	switch {
	case t.URL == "":
		fail("request.url", "the test asks for nothing", "a path, or a whole URL")
	case len(t.URL) > 2*MaxPathBytes:
		fail("request.url", fmt.Sprintf("longer than %d bytes", 2*MaxPathBytes), "")
	case strings.HasPrefix(t.URL, "/"):
		// May be what url.Parse refuses: a test for 400.
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "":
		if t.Status != 400 {
			fail("request.url", fmt.Sprintf("%q is neither a path nor an http or https URL", t.URL), "such as /users/1 or http://example.com/users/1")
		}
	case u.User != nil:
		fail("request.url", "a literal secret: the URL holds a user", "take it out")
	}
	checkHeaders(t.Headers, false, func(name, message, hint string) { fail("request.headers"+name, message, hint) })
	for _, h := range t.Headers {
		if credential(h.Name) && h.Name != "Cookie" {
			v.warn(m, field+"request.headers."+h.Name, "every snapshot and its history holds this value", "make sure it is made up")
		}
	}
	switch {
	case t.Route == "" && t.Status == 0:
		fail("expect", "the test expects nothing", "name a route, or a status of 400, 404 or 405 for none")
	case t.Route != "" && t.Status != 0:
		fail("expect.status", "the test expects both a route and none", "take one out")
	case t.Status != 0 && t.Status != 400 && t.Status != 404 && t.Status != 405:
		fail("expect.status", fmt.Sprintf("%d is not a status for no route", t.Status), "400, 404 or 405; for a route's own answer name the route")
	case t.Route != "":
		v.checkTestRoute(ix, t, field)
	}
	if len(t.Params) > 0 && t.Route == "" {
		fail("expect.params", "parameters are expected but no route", "name the route")
	}
}

func (v *validator) checkTestRoute(ix *moduleIndex, t *Test, field string) {
	m, name, target := ix.module, t.Route, ix
	if module, rest, ok := strings.Cut(t.Route, "/"); ok {
		name, target = rest, v.modules[module]
		if target == nil {
			v.warn(m, field+"expect.route", fmt.Sprintf("the table has no module %s, so this test cannot pass", module), "publish that module first")
			return
		}
	}
	at, ok := target.routes[name]
	if !ok {
		v.module(m, field+"expect.route", fmt.Sprintf("the module %s has no route %s", target.module.Name, name), "name one of its routes")
		return
	}
	p, err := target.module.Routes[at].Pattern()
	if err != nil {
		return // reported with the route
	}
	names := p.ParamNames()
	for j, param := range t.Params {
		if !slices.Contains(names, param.Name) {
			v.module(m, field+"expect.params."+param.Name, fmt.Sprintf("the route %s has no parameter %s", t.Route, param.Name),
				"name a parameter of "+p.String())
		} else if j > 0 && t.Params[j-1].Name == param.Name {
			v.module(m, field+"expect.params."+param.Name, fmt.Sprintf("the parameter %s stands twice", param.Name), "take one out")
		}
	}
}
