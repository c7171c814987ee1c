package middleware

import (
	"net/http"
	"net/netip"
	"slices"
	"testing"
	"time"
)

// leanHeader is a Headers that is no http.Header, as a lean front end has.
type leanHeader struct{ fields []string } // name, value, name, value…

func (h *leanHeader) Get(name string) string {
	if vs := h.Values(name); len(vs) > 0 {
		return vs[0]
	}
	return ""
}

func (h *leanHeader) Values(name string) []string {
	var vs []string
	for i := 0; i < len(h.fields); i += 2 {
		if h.fields[i] == name {
			vs = append(vs, h.fields[i+1])
		}
	}
	return vs
}

func (h *leanHeader) Set(name, value string) {
	h.Del(name)
	h.Add(name, value)
}

func (h *leanHeader) Add(name, value string) { h.fields = append(h.fields, name, value) }

func (h *leanHeader) Del(name string) {
	for i := 0; i < len(h.fields); {
		if h.fields[i] == name {
			h.fields = slices.Delete(h.fields, i, i+2)
		} else {
			i += 2
		}
	}
}

func exchange() *Exchange {
	return &Exchange{
		Method: "GET", Scheme: "https", Host: "shop.example.com", Path: "/api/users/a%2Db", RawQuery: "q=1",
		Client: netip.MustParseAddr("192.0.2.7"),
		Header: http.Header{}, ResponseHeader: http.Header{},
		Params: []Param{{Name: "id", Value: "a-b", Raw: "a%2Db"}},
		Route:  "shop/user",
	}
}

// head makes a Head that must not have problems.
func head(t testing.TB, kind, config string, env Env) *Head {
	t.Helper()
	k, ok := registered[kind]
	if !ok {
		t.Fatalf("no kind %s", kind)
	}
	h, ps := k.New(config, env)
	if len(ps) > 0 {
		t.Fatalf("%s %.200s: %v", kind, config, ps)
	}
	return h
}

// clock is a time that stands still until it is moved.
type clock struct{ now time.Time }

func newClock() *clock { return &clock{now: time.Unix(1_800_000_000, 0)} }

func (c *clock) Now() time.Time { return c.now }
