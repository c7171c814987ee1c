package version

import (
	"cmp"
	"strconv"
	"strings"
	"time"

	"routerd.dev/internal/route"
)

// fieldList collects what an item holds, in writing order, leaving out what is
// empty. Two items are equal if and only if their lists are.
type fieldList []field

func (l *fieldList) put(path, text string) {
	if text != "" {
		*l = append(*l, field{path, text})
	}
}

// quoted puts text that may hold anything, marked off so that it cannot be
// taken for other text; plain text stays as it is.
func (l *fieldList) quoted(path, text string) { l.put(path, quote(text)) }

func quote(s string) string {
	if s == "" {
		return ""
	}
	if strings.ContainsAny(s, ", \"") || strconv.Quote(s) != `"`+s+`"` {
		return strconv.Quote(s)
	}
	return s
}

func (l *fieldList) number(path string, n int) {
	if n != 0 {
		l.put(path, strconv.Itoa(n))
	}
}

func (l *fieldList) duration(path string, d time.Duration) {
	if d != 0 {
		l.put(path, d.String())
	}
}

func (l *fieldList) list(path string, list []string) {
	texts := make([]string, len(list))
	for i, s := range list {
		if texts[i] = quote(s); s == "" {
			texts[i] = `""`
		}
	}
	l.put(path, strings.Join(texts, ", "))
}

func index(path string, i int) string { return path + "[" + strconv.Itoa(i) + "]" }

func upstreamFields(u *route.Upstream) []field {
	var l fieldList
	for i, t := range u.Targets {
		l.put(index("targets", i), strings.TrimSpace(quote(t.URL)+" weight "+strconv.Itoa(t.Weight)))
	}
	if u.HostMode != route.HostClient {
		l.put("hostMode", map[route.HostMode]string{route.HostTarget: "target", route.HostLiteral: "literal"}[u.HostMode])
	}
	l.quoted("host", u.Host)
	l.duration("connectTimeout", u.ConnectTimeout)
	l.duration("responseTimeout", u.ResponseTimeout)
	l.duration("idleTimeout", u.IdleTimeout)
	l.number("maxIdle", u.MaxIdle)
	l.quoted("tls.serverName", u.TLS.ServerName)
	l.quoted("tls.caFile", u.TLS.CAFile)
	if u.TLS.Insecure {
		l.put("tls.insecure", "true")
	}
	return l
}

func middlewareFields(m *route.NamedMiddleware) []field {
	var l fieldList
	l.quoted("kind", m.Kind)
	l.put("config", m.Config)
	return l
}

func routeFieldTexts(r *route.Route) []field {
	var l fieldList
	l.list("hosts", r.Hosts)
	l.list("methods", r.Methods)
	l.quoted("path", r.Path)
	l.quoted("prefix", r.Prefix)
	l.conditions("headers", r.Headers)
	l.conditions("query", r.Query)
	l.conditions("cookies", r.Cookies)
	clients := make([]string, len(r.Clients))
	for i, p := range r.Clients {
		clients[i] = p.String()
	}
	l.list("clients", clients)
	l.number("priority", r.Priority)
	for i, m := range r.Middlewares {
		path := index("middlewares", i)
		l.quoted(path+".use", m.Use)
		switch {
		case m.Kind != "":
			l.put(path+"."+m.Kind, cmp.Or(m.Config, "(none)"))
		case m.Use == "" || m.Config != "":
			l.put(path+".", cmp.Or(m.Config, "(none)")) // no use, no kind: not valid, but something
		}
	}
	l.action(&r.Action)
	return l
}

func (l *fieldList) action(a *route.Action) {
	if p := a.Proxy; p != nil {
		l.put("proxy.upstream", strconv.Quote(p.Upstream))
		l.duration("proxy.timeout", p.Timeout)
	}
	if p := a.Respond; p != nil {
		l.put("respond.status", strconv.Itoa(p.Status))
		l.headers("respond.headers", p.Headers)
		l.quoted("respond.body", p.Body)
	}
	if p := a.Redirect; p != nil {
		l.put("redirect.to", strconv.Quote(p.To))
		l.number("redirect.status", p.Status)
	}
}

func (l *fieldList) conditions(path string, list []route.Condition) {
	for i, c := range list {
		op := map[route.Op]string{route.OpPresent: "present", route.OpEqual: "equal", route.OpPrefix: "prefix", route.OpRegexp: "regexp"}[c.Op]
		text := quote(c.Name) + " " + op
		if c.Value != "" || c.Op != route.OpPresent {
			text += " " + strconv.Quote(c.Value)
		}
		l.put(index(path, i), text)
	}
}

func (l *fieldList) headers(path string, list []route.Header) {
	for i, h := range list {
		l.put(index(path, i), quote(h.Name)+": "+strconv.Quote(h.Value))
	}
}

func testFields(t *route.Test) []field {
	var l fieldList
	l.quoted("name", t.Name)
	l.quoted("method", t.Method)
	l.quoted("url", t.URL)
	l.headers("headers", t.Headers)
	if t.Client.IsValid() {
		l.put("client", t.Client.String())
	}
	l.quoted("route", t.Route)
	for i, p := range t.Params {
		l.put(index("params", i), quote(p.Name)+"="+strconv.Quote(p.Value))
	}
	l.number("status", t.Status)
	return l
}
