package middleware

import (
	"hash/maphash"
	"math"
	"net/netip"
	"net/textproto"
	"strconv"
	"strings"
	"time"

	"routerd.dev/internal/route"
)

type rateLimitConfig struct {
	Rate  float64  `json:"rate" jsonschema:"required" jsonschema_description:"How many requests a key may make in the time that per names; more than 0."`
	Per   Duration `json:"per,omitempty" jsonschema:"type=string" jsonschema_description:"The time that rate counts for, 1ms to 24h. Default: 1s."`
	Burst int      `json:"burst,omitempty" jsonschema_description:"How many requests may come at once, 1 to 1000000. Default: rate, rounded up."`
	Key   string   `json:"key,omitempty" jsonschema_description:"What has a limit of its own: client (an IPv4 address, or the /64 network of an IPv6 address), header:NAME (the first value of that field; all requests without one count together), or route. Default: client."`
}

// The limits of a limit.
const (
	maxBurst = 1_000_000
	maxPer   = Duration(24 * time.Hour)
	minPer   = Duration(time.Millisecond)
	maxRate  = 1e7 // requests a second: an interval is a whole number of nanoseconds
)

var _ = register(rateLimitKind())

func rateLimitKind() Kind {
	k := newKind("rateLimit",
		"Lets each key make so many requests in a time, by a token bucket on this instance; more are answered with 429, Retry-After and RateLimit. The count survives switches as long as the limit is not changed.",
		func(c *rateLimitConfig, env Env, ps *problems) *Head {
			if c.Per == 0 {
				c.Per = Duration(time.Second)
			}
			if c.Burst == 0 && c.Rate > 0 && c.Rate <= maxBurst {
				c.Burst = int(math.Ceil(c.Rate))
			}
			if !(c.Rate > 0) {
				ps.add("rate", "", "must be > 0")
			}
			if c.Per < minPer || c.Per > maxPer {
				ps.add("per", "", "must be from 1ms to 24h")
			}
			if c.Burst < 1 || c.Burst > maxBurst {
				ps.add("burst", "", "must be from 1 to %d", maxBurst)
			}
			interval := float64(c.Per) / c.Rate // nanoseconds a token
			if len(*ps) == 0 && (interval < 1e9/maxRate || interval*float64(c.Burst) > float64(365*24*time.Hour)) {
				ps.add("rate", "", "is out of range with this per and burst")
			}
			key := rateKey(c.Key, ps)
			if len(*ps) > 0 {
				return nil
			}
			l := newLimiter(time.Duration(interval), c.Burst, env)
			policy := `"rateLimit";q=` + strconv.Itoa(c.Burst) + `;w=` + strconv.Itoa(int(math.Ceil(interval*float64(c.Burst)/1e9)))
			return &Head{
				Request: func(x *Exchange) *Answer {
					wait := l.take(key(x))
					if wait <= 0 {
						return nil
					}
					return tooMany(policy, wait)
				},
				release: l.release,
			}
		})
	k.Scoped = true
	return k
}

// tooMany tells the client when to come again, by RFC 9110's Retry-After and
// the fields of the IETF draft on rate limits.
func tooMany(policy string, wait time.Duration) *Answer {
	seconds := strconv.FormatInt(int64((wait+time.Second-1)/time.Second), 10)
	return &Answer{
		Status: 429,
		Header: []route.Header{
			{Name: "Ratelimit", Value: `"rateLimit";r=0;t=` + seconds},
			{Name: "Ratelimit-Policy", Value: policy},
			{Name: "Retry-After", Value: seconds},
		},
		Body: "too many requests\n",
	}
}

// rateKey returns the function that names a request's bucket. Keys are hashed
// with a seed of this process: two that meet share a bucket, which nobody
// outside can bring about.
func rateKey(key string, ps *problems) func(*Exchange) uint64 {
	seed := maphash.MakeSeed()
	switch {
	case key == "" || key == "client":
		return func(x *Exchange) uint64 {
			b := network(x.Client).As16()
			return maphash.Bytes(seed, b[:])
		}
	case key == "route":
		return func(x *Exchange) uint64 { return maphash.String(seed, x.Route) }
	case strings.HasPrefix(key, "header:") && validHeaderName(key[len("header:"):]):
		name := textproto.CanonicalMIMEHeaderKey(key[len("header:"):])
		if name == "Host" { // net/http keeps it apart from the others
			return func(x *Exchange) uint64 { return maphash.String(seed, x.Host) }
		}
		return func(x *Exchange) uint64 { return maphash.String(seed, x.Header.Get(name)) }
	default:
		ps.add("key", "write client, route or header:NAME", "%.80q is not known", key)
		return nil
	}
}

// network is whom a limit is for: an IPv6 client has a whole /64 to call from.
func network(a netip.Addr) netip.Addr {
	a = a.Unmap()
	if !a.Is6() {
		return a
	}
	b := a.As16()
	clear(b[8:])
	return netip.AddrFrom16(b)
}
