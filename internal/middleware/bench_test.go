package middleware

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"testing"
)

// usual are the kinds on their usual path, and what it may allocate.
func usual() []struct {
	name, kind, config string
	allocs             float64
} {
	var many []string
	for i := range 1000 {
		many = append(many, netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}).String()+"/24")
	}
	many = append(many, "192.0.2.7")
	list, _ := json.Marshal(map[string]any{"clients": many})
	return []struct {
		name, kind, config string
		allocs             float64
	}{
		{"headers", "headers", `{"request":{"remove":["Cookie"],"set":{"X-A":"1","X-B":"2"}},"response":{"set":{"X-C":"3"}}}`, 0},
		{"ipAllow/1", "ipAllow", `{"clients":["192.0.2.0/24"]}`, 0},
		{"ipAllow/1001", "ipAllow", string(list), 0},
		{"ipDeny", "ipDeny", `{"clients":["10.0.0.0/8","192.168.0.0/16"]}`, 0},
		{"rateLimit/client", "rateLimit", `{"burst":1000000,"rate":9000000}`, 0},
		{"rateLimit/header", "rateLimit", `{"burst":1000000,"key":"header:X-Token","rate":9000000}`, 0},
		{"rateLimit/route", "rateLimit", `{"burst":1000000,"key":"route","rate":9000000}`, 0},
		{"requestID", "requestID", `{}`, 2},                             // the id and the slice that holds it
		{"rewritePath/to", "rewritePath", `{"to":"/v2/users/{id}"}`, 2}, // the path, and its canonical form, for the parameter came escaped
		{"rewritePath/regex", "rewritePath", `{"regex":"/api/(.*)","replace":"/$1"}`, 6},
		{"stripPrefix", "stripPrefix", `{"prefix":"/api"}`, 0},
	}
}

func TestUsualPathAllocates(t *testing.T) {
	for _, c := range usual() {
		h, x := head(t, c.kind, c.config, Env{}), exchange()
		path := x.Path
		if got := testing.AllocsPerRun(1000, func() { run(h, x, path) }); got > c.allocs {
			t.Errorf("%s allocates %v times, at most %v are allowed", c.name, got, c.allocs)
		}
	}
}

func run(h *Head, x *Exchange, path string) {
	x.Path = path
	if h.Request != nil {
		if a := h.Request(x); a != nil {
			panic(fmt.Sprintf("answered %+v", a))
		}
	}
	if h.Response != nil {
		h.Response(x)
	}
}

func BenchmarkHead(b *testing.B) {
	for _, c := range usual() {
		b.Run(c.name, func(b *testing.B) {
			h := head(b, c.kind, c.config, Env{})
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				x := exchange()
				path := x.Path
				for pb.Next() {
					run(h, x, path)
				}
			})
		})
	}
}

func BenchmarkTooMany(b *testing.B) {
	h, x := head(b, "rateLimit", oneAnHour, Env{}), exchange()
	h.Request(x)
	b.ReportAllocs()
	for b.Loop() {
		if h.Request(x) == nil {
			b.Fatal("passed")
		}
	}
}

func BenchmarkCheck(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if ps := Check("rateLimit", `{"burst":20,"key":"client","per":"1s","rate":100}`); len(ps) > 0 {
			b.Fatal(ps)
		}
	}
}
