package version

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"routerd.dev/internal/route"
)

// What a record is. Within a module, records stand in this order.
const (
	tagUpstream byte = iota + 1
	tagMiddleware
	tagRoute
	tagTest
)

// Which fields of a route follow. A field is written when it is not empty, and
// only then.
const (
	hasHosts = 1 << iota
	hasMethods
	hasPath
	hasPrefix
	hasHeaders
	hasQuery
	hasCookies
	hasClients
	hasPriority
	hasMiddlewares
	hasProxy
	hasRespond
	hasRedirect
	allFields = 1<<iota - 1
)

// minRecord is the least that a record takes: its tag, a name and flags.
const minRecord = 3

func (w *writer) upstream(u *route.Upstream) error {
	if u.HostMode > route.HostLiteral {
		return fmt.Errorf("host mode %d is not known", u.HostMode)
	}
	w.byte(tagUpstream)
	w.string(u.Name)
	w.uvarint(uint64(len(u.Targets)))
	for i := range u.Targets {
		w.string(u.Targets[i].URL)
		w.int(int64(u.Targets[i].Weight))
	}
	w.byte(byte(u.HostMode))
	w.string(u.Host)
	w.int(int64(u.ConnectTimeout))
	w.int(int64(u.ResponseTimeout))
	w.int(int64(u.IdleTimeout))
	w.int(int64(u.MaxIdle))
	w.string(u.TLS.ServerName)
	w.string(u.TLS.CAFile)
	insecure := byte(0)
	if u.TLS.Insecure {
		insecure = 1
	}
	w.byte(insecure)
	return nil
}

func (d *moduleReader) upstream(u *route.Upstream) {
	r := &d.reader
	u.Name = r.string()
	u.Targets = make([]route.Target, r.count(2))
	for i := range u.Targets {
		u.Targets[i] = route.Target{URL: r.string(), Weight: r.word()}
		d.need.target(u.Targets[i].URL)
	}
	if len(u.Targets) == 0 {
		u.Targets = nil
	}
	u.HostMode = route.HostMode(r.byte())
	if u.HostMode > route.HostLiteral {
		r.fail("host mode %d is not known", u.HostMode)
	}
	u.Host = r.string()
	u.ConnectTimeout = time.Duration(r.int())
	u.ResponseTimeout = time.Duration(r.int())
	u.IdleTimeout = time.Duration(r.int())
	u.MaxIdle = r.word()
	u.TLS.ServerName = r.string()
	u.TLS.CAFile = r.string()
	switch r.byte() {
	case 0:
	case 1:
		u.TLS.Insecure = true
	default:
		r.fail("truth value is neither 0 nor 1")
	}
}

func (w *writer) middleware(m *route.NamedMiddleware) {
	w.byte(tagMiddleware)
	w.string(m.Name)
	w.symbol(m.Kind)
	w.symbol(m.Config)
}

func (d *moduleReader) middleware(m *route.NamedMiddleware) {
	*m = route.NamedMiddleware{Name: d.string(), Kind: d.symbol(), Config: d.symbol()}
	d.need.kind(m.Kind)
}

func routeFields(rt *route.Route) uint64 {
	var f uint64
	for i, has := range [...]bool{
		len(rt.Hosts) > 0, len(rt.Methods) > 0, rt.Path != "", rt.Prefix != "",
		len(rt.Headers) > 0, len(rt.Query) > 0, len(rt.Cookies) > 0, len(rt.Clients) > 0,
		rt.Priority != 0, len(rt.Middlewares) > 0,
		rt.Action.Proxy != nil, rt.Action.Respond != nil, rt.Action.Redirect != nil,
	} {
		if has {
			f |= 1 << i
		}
	}
	return f
}

func (w *writer) route(rt *route.Route) error {
	fields := routeFields(rt)
	w.byte(tagRoute)
	w.uvarint(fields)
	w.string(rt.Name)
	w.symbolList(rt.Hosts)
	w.symbolList(rt.Methods)
	if fields&hasPath != 0 {
		w.string(rt.Path)
	}
	if fields&hasPrefix != 0 {
		w.string(rt.Prefix)
	}
	for _, cs := range [...][]route.Condition{rt.Headers, rt.Query, rt.Cookies} {
		if err := w.conditions(cs); err != nil {
			return err
		}
	}
	if fields&hasClients != 0 {
		w.uvarint(uint64(len(rt.Clients)))
		for _, p := range rt.Clients {
			if !p.IsValid() {
				return errors.New("client prefix is not valid")
			}
			w.addr(p.Addr())
			w.byte(byte(p.Bits()))
		}
	}
	if fields&hasPriority != 0 {
		w.int(int64(rt.Priority))
	}
	if fields&hasMiddlewares != 0 {
		w.uvarint(uint64(len(rt.Middlewares)))
		for i := range rt.Middlewares {
			m := &rt.Middlewares[i]
			w.symbol(m.Use)
			w.symbol(m.Kind)
			w.symbol(m.Config)
		}
	}
	w.action(&rt.Action)
	return nil
}

func (w *writer) action(a *route.Action) {
	if p := a.Proxy; p != nil {
		w.symbol(p.Upstream)
		w.int(int64(p.Timeout))
	}
	if p := a.Respond; p != nil {
		w.int(int64(p.Status))
		w.headers(p.Headers)
		w.string(p.Body)
	}
	if p := a.Redirect; p != nil {
		w.string(p.To)
		w.int(int64(p.Status))
	}
}

// symbolList and conditions write nothing for an empty list: the route's flags
// say that it is.
func (w *writer) symbolList(list []string) {
	if len(list) == 0 {
		return
	}
	w.uvarint(uint64(len(list)))
	for _, s := range list {
		w.symbol(s)
	}
}

func (w *writer) conditions(list []route.Condition) error {
	if len(list) == 0 {
		return nil
	}
	w.uvarint(uint64(len(list)))
	for i := range list {
		c := &list[i]
		if c.Op < route.OpPresent || c.Op > route.OpRegexp {
			return fmt.Errorf("condition on %q: operator %d is not known", c.Name, c.Op)
		}
		w.symbol(c.Name)
		w.byte(byte(c.Op))
		w.string(c.Value)
	}
	return nil
}

func (w *writer) headers(list []route.Header) {
	w.uvarint(uint64(len(list)))
	for i := range list {
		w.symbol(list[i].Name)
		w.symbol(list[i].Value)
	}
}

func (d *moduleReader) route(rt *route.Route) {
	r := &d.reader
	fields := r.uvarint()
	if fields > allFields {
		r.fail("route has fields that this build does not know (%#x)", fields&^uint64(allFields))
		return
	}
	rt.Name = r.string()
	if fields&hasHosts != 0 {
		rt.Hosts = d.symbolList()
	}
	if fields&hasMethods != 0 {
		rt.Methods = d.symbolList()
	}
	d.need.fields |= fields
	if fields&hasPath != 0 {
		rt.Path = r.string()
		d.need.pattern(rt.Path)
	}
	if fields&hasPrefix != 0 {
		rt.Prefix = r.string()
		d.need.pattern(rt.Prefix)
	}
	if fields&hasHeaders != 0 {
		rt.Headers = d.conditions()
	}
	if fields&hasQuery != 0 {
		rt.Query = d.conditions()
	}
	if fields&hasCookies != 0 {
		rt.Cookies = d.conditions()
	}
	if fields&hasClients != 0 {
		rt.Clients = d.clients()
	}
	if fields&hasPriority != 0 {
		rt.Priority = r.word()
	}
	if fields&hasMiddlewares != 0 {
		rt.Middlewares = d.links.take(r.count(3))
		for i := range rt.Middlewares {
			rt.Middlewares[i] = route.Middleware{Use: r.symbol(), Kind: r.symbol(), Config: r.symbol()}
			d.need.kind(rt.Middlewares[i].Kind)
		}
	}
	d.action(fields, &rt.Action)
	if r.err == nil && routeFields(rt) != fields {
		r.fail("route names a field that is empty")
	}
}

func (d *moduleReader) action(fields uint64, a *route.Action) {
	r := &d.reader
	if fields&hasProxy != 0 {
		p := route.Proxy{Upstream: r.symbol(), Timeout: time.Duration(r.int())}
		if d.proxy == nil || *d.proxy != p {
			d.proxy = new(p)
		}
		a.Proxy = d.proxy
	}
	if fields&hasRespond != 0 {
		a.Respond = d.responds.one()
		*a.Respond = route.Respond{Status: r.word(), Headers: d.headerList(), Body: r.string()}
	}
	if fields&hasRedirect != 0 {
		a.Redirect = &route.Redirect{To: r.string(), Status: r.word()}
	}
}

func (d *moduleReader) symbolList() []string {
	n := d.count(1)
	if n == 1 {
		i := d.symbolIndex()
		if d.err != nil {
			return nil
		}
		return d.symbols[i : i+1 : i+1]
	}
	list := d.lists.take(n)
	for i := range list {
		list[i] = d.symbol()
	}
	return list
}

func (d *moduleReader) conditions() []route.Condition {
	list := d.conds.take(d.count(3))
	for i := range list {
		c := route.Condition{Name: d.symbol(), Op: route.Op(d.byte()), Value: d.string()}
		if c.Op < route.OpPresent || c.Op > route.OpRegexp {
			d.fail("operator %d is not known", c.Op)
		}
		d.need.condition(c.Op)
		list[i] = c
	}
	return list
}

func (d *moduleReader) headerList() []route.Header {
	list := d.fields.take(d.count(2))
	for i := range list {
		list[i] = route.Header{Name: d.symbol(), Value: d.symbol()}
	}
	return list
}

func (d *moduleReader) clients() []netip.Prefix {
	list := make([]netip.Prefix, d.count(2))
	for i := range list {
		addr := d.addr()
		list[i] = netip.PrefixFrom(addr, int(d.byte()))
		if !list[i].IsValid() {
			d.fail("client prefix is not valid")
		}
	}
	return list
}

func (w *writer) test(t *route.Test) error {
	if t.Client.Zone() != "" {
		return fmt.Errorf("client address %s has a zone", t.Client)
	}
	w.byte(tagTest)
	w.string(t.Name)
	w.symbol(t.Method)
	w.string(t.URL)
	w.headers(t.Headers)
	w.addr(t.Client)
	w.symbol(t.Route)
	w.uvarint(uint64(len(t.Params)))
	for i := range t.Params {
		w.symbol(t.Params[i].Name)
		w.string(t.Params[i].Value)
	}
	w.int(int64(t.Status))
	return nil
}

func (d *moduleReader) test(t *route.Test) {
	t.Name = d.string()
	t.Method = d.symbol()
	t.URL = d.string()
	t.Headers = d.headerList()
	t.Client = d.addr()
	t.Route = d.symbol()
	if n := d.count(2); n > 0 {
		t.Params = make([]route.Param, n)
		for i := range t.Params {
			t.Params[i] = route.Param{Name: d.symbol(), Value: d.string()}
		}
	}
	t.Status = d.word()
}
