package engine

import (
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"routerd.dev/internal/route"
	"routerd.dev/internal/token"
	"routerd.dev/internal/version"
)

// writeTokenKeys puts keys, made of the names, into a file.
func writeTokenKeys(t testing.TB, path string, names ...string) {
	t.Helper()
	var lines []string
	for _, name := range names {
		sum := sha256.Sum256([]byte(name))
		lines = append(lines, base64.StdEncoding.EncodeToString(sum[:]))
	}
	if err := os.WriteFile(path+".next", []byte(strings.Join(lines, "\n")), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".next", path); err != nil {
		t.Fatal(err)
	}
}

func tokenKeys(t testing.TB, names ...string) *token.Keys {
	t.Helper()
	path := filepath.Join(t.TempDir(), "keys")
	writeTokenKeys(t, path, names...)
	k, err := token.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// numbered is n engines that say which they are, with revisions from 1.
func numbered(t testing.TB, lib *Library, n int) []*Engine {
	out := make([]*Engine, n)
	for i := range out {
		out[i] = testEngine(t, lib, int64(i+1), "",
			route.Route{Name: "r", Prefix: "/", Action: respond(fmt.Sprint(i + 1))},
			route.Route{Name: "sees", Path: "/", Headers: []route.Condition{{Name: tokenHeader, Op: route.OpPresent}}, Action: respond("a route saw the token")},
			route.Route{Name: "tastes", Path: "/", Cookies: []route.Condition{{Name: "rt", Op: route.OpPresent}}, Action: respond("a route saw the cookie")},
		)
	}
	return out
}

// asked serves one request that brings these fields, without a network.
func asked(s *Switch, fields ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest("GET", "/", nil)
	for i := 0; i < len(fields); i += 2 {
		r.Header.Add(fields[i], fields[i+1])
	}
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	return w
}

func claimsFor(v *Serving, epoch int64, e *Engine) token.Claims {
	return token.Claims{Fleet: v.Fleet, Group: v.Group, Epoch: epoch, Digest: e.ref.Digest, Expires: time.Now().Add(time.Hour)}
}

// TestTokenUses brings every sort of token by header and by cookie, to
// instances that are strict and not.
func TestTokenUses(t *testing.T) {
	keys, foreign := tokenKeys(t, "a"), tokenKeys(t, "b")
	es := numbered(t, testLibrary(t), 5)
	now := &Serving{Fleet: "f", Group: "main", Instance: "i", Epoch: 10, Stable: es[0], Candidate: es[1], Held: map[version.Digest]*Engine{es[2].ref.Digest: es[2]}}
	c := func(epoch int64, e *Engine, edit func(*token.Claims)) string {
		claims := claimsFor(now, epoch, e)
		if edit != nil {
			edit(&claims)
		}
		return keys.Sign(claims)
	}
	for _, k := range []struct {
		name, text string
		use        string
		revision   int // that serves the request
		epoch      int64
	}{
		{"none", "", "", 1, 10},
		{"current", c(10, es[0], nil), "current", 1, 10},
		{"current, another digest", c(10, es[2], nil), "current", 1, 10},
		{"older", c(9, es[2], nil), "older", 1, 10},
		{"ahead, held", c(11, es[2], nil), "held", 3, 11},
		{"ahead, the candidate's", c(11, es[1], nil), "held", 2, 11},
		{"ahead, stable's", c(12, es[0], nil), "held", 1, 12},
		{"ahead, not held", c(11, es[3], nil), "missing", 1, 10},
		{"ahead, no digest", c(11, es[3], func(c *token.Claims) { c.Digest = version.Digest{} }), "missing", 1, 10},
		{"another group", c(11, es[2], func(c *token.Claims) { c.Group = "other" }), "foreign", 1, 10},
		{"another fleet", c(11, es[2], func(c *token.Claims) { c.Fleet = "other" }), "foreign", 1, 10},
		{"expired", c(11, es[2], func(c *token.Claims) { c.Expires = time.Now().Add(-time.Second) }), "expired", 1, 10},
		{"another key", foreign.Sign(claimsFor(now, 11, es[2])), "forged", 1, 10},
		{"nonsense", "hello", "forged", 1, 10},
	} {
		for _, strict := range []bool{false, true} {
			for _, field := range []string{tokenHeader, "Cookie"} {
				var rec Record
				behind := 0
				s := NewSwitch(FrontOptions{
					Token: keys, TokenCookie: "rt", Strict: strict, ResponseHeaders: true,
					Observer: observerFunc(func(r *Record) { rec = *r }), Behind: func() { behind++ },
				})
				s.Swap(now)
				var fields []string
				if field == tokenHeader && k.text != "" {
					fields = []string{field, k.text}
				} else if k.text != "" {
					fields = []string{field, "a=1; rt=" + k.text}
				}
				w := asked(s, fields...)
				at := fmt.Sprintf("%s by %s, strict %v", k.name, field, strict)
				use, status, body := k.use, 200, fmt.Sprint(k.revision)
				if k.use == "missing" && strict {
					use, status, body = "refused", 503, "503: this instance is behind what the client has seen\n"
				}
				if w.Code != status || w.Body.String() != body || rec.Token != use || rec.Epoch != k.epoch {
					t.Errorf("%s: %d %q, recorded %q at %d, want %d %q, %q at %d", at, w.Code, w.Body, rec.Token, rec.Epoch, status, body, use, k.epoch)
				}
				if got := w.Header().Get("Routerd-Epoch"); status == 200 && got != fmt.Sprint(k.epoch) {
					t.Errorf("%s: the response says epoch %q", at, got)
				}
				ahead := k.use == "held" || k.use == "missing"
				if (behind == 1) != ahead || behind > 1 {
					t.Errorf("%s: said to be behind %d times", at, behind)
				}
				if (w.Header().Get("Retry-After") == "1") != (status == 503) || (rec.Kind == "behind") != (status == 503) {
					t.Errorf("%s: %v, kind %q", at, w.Header(), rec.Kind)
				}
				claims, err := keys.Verify(w.Header().Get(tokenHeader), time.Now())
				switch set := w.Header().Values("Set-Cookie"); {
				case ahead && (w.Header().Get(tokenHeader) != k.text || set != nil):
					t.Errorf("%s: who saw more must keep its token: %v", at, w.Header())
				case !ahead && (err != nil || claims.Epoch != 10 || claims.Digest != es[0].ref.Digest || claims.Fleet != "f" || claims.Group != "main"):
					t.Errorf("%s: given %+v, %v", at, claims, err)
				case !ahead && (len(set) == 1) != (k.name != "current"):
					t.Errorf("%s: cookies %q", at, set)
				}
				counts := TokenCounts{}
				if n := map[string]*uint64{
					"held": &counts.Held, "missing": &counts.Missing, "refused": &counts.Refused, "current": &counts.Current,
					"older": &counts.Older, "foreign": &counts.Foreign, "expired": &counts.Expired, "forged": &counts.Forged,
				}[use]; n != nil {
					*n = 1
				}
				if got := s.TokenCounts(); got != counts {
					t.Errorf("%s: counted %+v", at, got)
				}
			}
		}
	}
}

// TestBestOfBothTokens has header and cookie disagree.
func TestBestOfBothTokens(t *testing.T) {
	keys := tokenKeys(t, "a")
	es := numbered(t, testLibrary(t), 3)
	now := &Serving{Fleet: "f", Group: "main", Epoch: 10, Stable: es[0], Held: map[version.Digest]*Engine{es[1].ref.Digest: es[1], es[2].ref.Digest: es[2]}}
	older, current, later, latest := keys.Sign(claimsFor(now, 9, es[0])), keys.Sign(claimsFor(now, 10, es[0])), keys.Sign(claimsFor(now, 11, es[1])), keys.Sign(claimsFor(now, 12, es[2]))
	for _, c := range []struct{ header, cookie, use, body string }{
		{later, latest, "held", "3"},
		{latest, later, "held", "3"},
		{"forged", later, "held", "2"},
		{later, "forged", "held", "2"},
		{older, "forged", "older", "1"},
		{"forged", current, "current", "1"},
	} {
		var rec Record
		s := NewSwitch(FrontOptions{Token: keys, TokenCookie: "rt", Observer: observerFunc(func(r *Record) { rec = *r })})
		s.Swap(now)
		w := asked(s, tokenHeader, c.header, "Cookie", "rt="+c.cookie)
		if rec.Token != c.use || w.Body.String() != c.body {
			t.Errorf("%.12s and %.12s: %s, %s", c.header, c.cookie, rec.Token, w.Body)
		}
	}
	s := NewSwitch(FrontOptions{Token: keys, TokenCookie: "rt"})
	s.Swap(now)
	if w := asked(s, tokenHeader, current, "Cookie", "rt="+older); len(w.Header()["Set-Cookie"]) != 1 {
		t.Error("a cookie that is older than the header stays")
	}
}

// TestTokensStayBetweenClientAndFront: an upstream sees none, and cannot set
// the header; other cookies of both sides are left alone; over TLS it is Secure.
func TestTokensStayBetweenClientAndFront(t *testing.T) {
	keys := tokenKeys(t, "a")
	var seen http.Header
	back := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen = r.Header.Clone()
		w.Header().Set(tokenHeader, "upstream's")
		w.Header().Add("Set-Cookie", "mine=1")
	}))
	t.Cleanup(back.Close)
	s, srv := startFront(t, FrontOptions{Token: keys, TokenCookie: "rt"})
	s.Swap(serving(testEngine(t, testLibrary(t), 1, back.URL, route.Route{Name: "all", Prefix: "/", Action: proxyTo("back")})))
	res := raw(t, srv, "GET / HTTP/1.1\r\nHost: a\r\nCookie: a=1; rt=x; b=\"2\"\r\nRouterd-Token: x\r\nRouterd-Token: y\r\n\r\n")
	if got := seen["Cookie"]; len(got) != 1 || got[0] != `a=1; b="2"` || seen[tokenHeader] != nil {
		t.Errorf("the upstream saw %v", seen)
	}
	text := res.Header.Get(tokenHeader)
	if _, err := keys.Verify(text, time.Now()); err != nil || len(res.Header[tokenHeader]) != 1 {
		t.Errorf("the client was given %q", res.Header[tokenHeader])
	}
	if got, want := res.Header["Set-Cookie"], "rt="+text+"; Path=/; HttpOnly; SameSite=Lax"; len(got) != 2 || got[0] != "mine=1" || got[1] != want {
		t.Errorf("cookies %q, want %q", got, want)
	}
	res = raw(t, srv, "GET / HTTP/1.1\r\nHost: a\r\nCookie: rt="+text+"\r\n\r\n")
	if got := res.Header["Set-Cookie"]; len(got) != 1 || res.Header.Get(tokenHeader) != text || seen["Cookie"] != nil {
		t.Errorf("a client that has its token: %v, the upstream saw %v", res.Header, seen)
	}

	r := httptest.NewRequest("GET", "/", nil)
	r.TLS = &tls.ConnectionState{}
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	if got := w.Header()["Set-Cookie"]; len(got) != 2 || !strings.HasSuffix(got[1], "; Secure") {
		t.Errorf("over TLS: %q", got)
	}

	nameless := serving(s.Serving().Stable)
	nameless.Group = strings.Repeat("g", 300) // more than a token can carry
	s.Swap(nameless)
	if res := raw(t, srv, "GET / HTTP/1.1\r\nHost: a\r\n\r\n"); res.StatusCode != 200 || res.Header[tokenHeader] != nil {
		t.Errorf("without a token: %v", res.Header)
	}

	s, srv = startFront(t, FrontOptions{})
	s.Swap(serving(testEngine(t, testLibrary(t), 1, back.URL, route.Route{Name: "all", Prefix: "/", Action: proxyTo("back")})))
	if res := raw(t, srv, "GET / HTTP/1.1\r\nHost: a\r\nCookie: rt=x\r\n\r\n"); res.Header.Get(tokenHeader) != "upstream's" || seen.Get("Cookie") != "rt=x" {
		t.Errorf("without keys: %v, the upstream saw %v", res.Header, seen)
	}
}

// TestTokensAreRenewed when a quarter of their life is over, or the keys
// change; instances give the same one meanwhile.
func TestTokensAreRenewed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys")
	writeTokenKeys(t, path, "a")
	keys, err := token.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	es := numbered(t, testLibrary(t), 2)
	synctest.Test(t, func(t *testing.T) {
		var fronts []*Switch
		for range 2 {
			s := NewSwitch(FrontOptions{Token: keys, TokenCookie: "rt", TokenLife: 40 * time.Minute})
			s.Swap(&Serving{Fleet: "f", Group: "main", Epoch: 1, Stable: es[0], Candidate: es[1], Permyriad: 0, Match: Match{Header: "X-Test"}})
			fronts = append(fronts, s)
		}
		give := func(s *Switch, fields ...string) string { return asked(s, fields...).Header().Get(tokenHeader) }
		first := give(fronts[0])
		time.Sleep(9 * time.Minute)
		if give(fronts[0]) != first || give(fronts[1]) != first {
			t.Error("within a quarter of its life there are two tokens")
		}
		if c, err := keys.Verify(give(fronts[0], "X-Test", "1"), time.Now()); err != nil || c.Digest != es[1].ref.Digest {
			t.Errorf("a tester was given %+v, %v", c, err)
		}
		time.Sleep(time.Minute)
		second := give(fronts[0])
		c, err := keys.Verify(second, time.Now())
		if second == first || err != nil || time.Until(c.Expires) != 40*time.Minute {
			t.Errorf("after a quarter: %+v, %v", c, err)
		}
		if w := asked(fronts[0], "Cookie", "rt="+first); w.Header().Get("Set-Cookie") != "" {
			t.Error("a cookie was replaced that is good for half its life")
		}
		time.Sleep(10 * time.Minute)
		if w := asked(fronts[0], "Cookie", "rt="+first); w.Header().Get("Set-Cookie") == "" {
			t.Error("a cookie that ends soon was left")
		}
		before := give(fronts[0])
		writeTokenKeys(t, path, "b", "a")
		time.Sleep(time.Second)
		after := give(fronts[0])
		if after == before {
			t.Error("still signed with the old key")
		}
		if _, err := tokenKeys(t, "b").Verify(after, time.Now()); err != nil {
			t.Errorf("signed with %v", err)
		}
	})
}

// TestBehindIsCalledNowAndThen, however many clients are ahead.
func TestBehindIsCalledNowAndThen(t *testing.T) {
	keys := tokenKeys(t, "a")
	es := numbered(t, testLibrary(t), 2)
	synctest.Test(t, func(t *testing.T) {
		called := 0
		s := NewSwitch(FrontOptions{Token: keys, Behind: func() { called++ }})
		v := &Serving{Fleet: "f", Group: "main", Epoch: 1, Stable: es[0]}
		s.Swap(v)
		ahead := keys.Sign(claimsFor(v, 2, es[1]))
		for range 1001 {
			asked(s, tokenHeader, ahead)
			time.Sleep(time.Millisecond)
		}
		if called != 11 {
			t.Errorf("called %d times in a second, want once in 100 ms", called)
		}
		if n := s.TokenCounts().Missing; n != 1001 {
			t.Errorf("counted %d", n)
		}
	})
}

// TestClientsDoNotGoBack moves clients between instances that follow their
// group at different speeds, with shares and testers, through switches and
// rollbacks. Whoever brings its token sees no lower epoch where digests are
// held, and one digest for as long as it sees one epoch of an instance that is
// behind.
func TestClientsDoNotGoBack(t *testing.T) {
	keys := tokenKeys(t, "a")
	es := numbered(t, testLibrary(t), 4)
	held := map[version.Digest]*Engine{}
	for _, e := range es {
		held[e.ref.Digest] = e
	}
	rapid.Check(t, func(t *rapid.T) {
		history := []*Serving{{Fleet: "f", Group: "main", Epoch: 1, Stable: es[0], Held: held}}
		const instances, clients = 3, 3
		var fronts [instances]*Switch
		var at [instances]int // in history
		var rec Record
		for i := range fronts {
			fronts[i] = NewSwitch(FrontOptions{Token: keys, TokenCookie: "rt", Strict: rapid.Bool().Draw(t, "strict"), Observer: observerFunc(func(r *Record) { rec = *r })})
			fronts[i].Swap(history[0])
		}
		var carried [clients]string // by cookie, by header
		var seen [clients]int64
		t.Repeat(map[string]func(*rapid.T){
			"commit": func(t *rapid.T) {
				v := &Serving{Fleet: "f", Group: "main", Epoch: int64(len(history) + 1), Stable: rapid.SampledFrom(es).Draw(t, "stable"), Held: held}
				if rapid.Bool().Draw(t, "candidate") {
					v.Candidate, v.Permyriad, v.Salt, v.Key = rapid.SampledFrom(es).Draw(t, "candidate's"), rapid.IntRange(0, 10000).Draw(t, "share"), "s", "header:X-User"
				}
				history = append(history, v)
			},
			"follow": func(t *rapid.T) {
				i := rapid.IntRange(0, instances-1).Draw(t, "instance")
				at[i] = rapid.IntRange(at[i], len(history)-1).Draw(t, "to")
				fronts[i].Swap(history[at[i]])
			},
			"ask": func(t *rapid.T) {
				i, c := rapid.IntRange(0, instances-1).Draw(t, "instance"), rapid.IntRange(0, clients-1).Draw(t, "client")
				fields := []string{"X-User", fmt.Sprint(c)}
				if c == 0 && carried[c] != "" {
					fields = append(fields, tokenHeader, carried[c])
				} else if carried[c] != "" {
					fields = append(fields, "Cookie", "rt="+carried[c])
				}
				w := asked(fronts[i], fields...)
				if w.Code != 200 || rec.Epoch < seen[c] || rec.Epoch < history[at[i]].Epoch {
					t.Fatalf("client %d saw epoch %d, and then %d (status %d) of an instance at %d", c, seen[c], rec.Epoch, w.Code, history[at[i]].Epoch)
				}
				of := history[rec.Epoch-1]
				if e := newServed(of).engineFor(headed("X-User", fmt.Sprint(c))); rec.Revision != e.ref || w.Body.String() != fmt.Sprint(e.ref.Number) {
					t.Fatalf("client %d got revision %d at epoch %d, which gives it %d", c, rec.Revision.Number, rec.Epoch, e.ref.Number)
				}
				seen[c] = rec.Epoch
				if c == 0 {
					carried[c] = w.Header().Get(tokenHeader)
					return
				}
				for _, k := range w.Result().Cookies() {
					carried[c] = k.Value
				}
			},
		})
	})
}

// TestTokensUnderSwitches has clients ask while epochs come, for the race
// detector, and holds I1 for those who are ahead: what says one revision is of it.
func TestTokensUnderSwitches(t *testing.T) {
	keys := tokenKeys(t, "a")
	es := numbered(t, testLibrary(t), 2)
	held := map[version.Digest]*Engine{es[0].ref.Digest: es[0], es[1].ref.Digest: es[1]}
	var fronts [2]*Switch
	for i := range fronts {
		fronts[i] = NewSwitch(FrontOptions{Token: keys, ResponseHeaders: true, Behind: func() {}})
	}
	swap := func(epoch int64) {
		for _, s := range fronts {
			s.Swap(&Serving{Fleet: "f", Group: "main", Epoch: epoch, Stable: es[epoch%2], Candidate: es[(epoch+1)%2], Permyriad: 5000, Held: held})
		}
	}
	swap(1)
	var clients sync.WaitGroup
	var stop atomic.Bool
	for c := range 4 {
		clients.Go(func() {
			carried, last := "", ""
			for i := c; !stop.Load(); i++ {
				fields := []string{"X-User", fmt.Sprint(c)}
				if carried != "" {
					fields = append(fields, tokenHeader, carried)
				}
				w := asked(fronts[i%2], fields...)
				epoch := fmt.Sprintf("%08s", w.Header().Get("Routerd-Epoch"))
				if w.Body.String() != w.Header().Get("Routerd-Revision") || epoch < last {
					t.Errorf("epoch %s after %s, revision %s says %s", epoch, last, w.Header().Get("Routerd-Revision"), w.Body)
					return
				}
				carried, last = w.Header().Get(tokenHeader), epoch
			}
		})
	}
	for epoch := int64(2); epoch < 300 || fronts[0].TokenCounts().Current < 500 && !t.Failed(); epoch++ {
		swap(epoch)
		asked(fronts[0])
	}
	stop.Store(true)
	clients.Wait()
}

// BenchmarkTokens is BenchmarkSwitch's request without tokens, with them for a
// client that brings none, its token as header or as cookie among others, and
// one of a later epoch.
func BenchmarkTokens(b *testing.B) {
	keys := tokenKeys(b, "a")
	es := numbered(b, testLibrary(b), 2)
	v := &Serving{Fleet: "f", Group: "main", Epoch: 10, Stable: es[0], Held: map[version.Digest]*Engine{es[1].ref.Digest: es[1]}}
	current, ahead := keys.Sign(claimsFor(v, 10, es[0])), keys.Sign(claimsFor(v, 11, es[1]))
	for _, c := range []struct {
		name         string
		keys         *token.Keys
		field, value string
	}{
		{name: "off"},
		{name: "none", keys: keys},
		{name: "header", keys: keys, field: tokenHeader, value: current},
		{name: "cookie", keys: keys, field: "Cookie", value: "rt=" + current},
		{name: "cookies", keys: keys, field: "Cookie", value: "a=1; rt=" + current + "; b=2"},
		{name: "ahead", keys: keys, field: tokenHeader, value: ahead},
		{name: "forged", keys: keys, field: tokenHeader, value: "B" + current[1:]},
	} {
		b.Run(c.name, func(b *testing.B) {
			s := NewSwitch(FrontOptions{Token: c.keys, TokenCookie: "rt"})
			s.Swap(v)
			w := &lookup{header: http.Header{}}
			r := &http.Request{Method: "GET", URL: &url.URL{}, RequestURI: "/users/17?a=b", Host: "a.test", RemoteAddr: "192.0.2.1:1234", Header: http.Header{}, Proto: "HTTP/1.1"}
			values := []string{c.value}
			b.ReportAllocs()
			for b.Loop() {
				clear(w.header)
				if values[0] = c.value; c.field != "" {
					r.Header[c.field] = values
				}
				s.ServeHTTP(w, r)
			}
		})
	}
}
