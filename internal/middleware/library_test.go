package middleware

import (
	"strconv"
	"sync"
	"testing"
)

func take(t *testing.T, l *Library, scope, kind, config string) *Head {
	t.Helper()
	h, ps := l.Head(scope, kind, config)
	if len(ps) > 0 {
		t.Fatal(ps)
	}
	return h
}

const oneAnHour = `{"burst":1,"per":"1h","rate":1}`

// I9: an unchanged limiter of the next revision is the same object, so its
// count goes on; another scope or config is another.
func TestI9_LimitsOutliveASwitch(t *testing.T) {
	l := NewLibrary(Env{})
	before := take(t, l, "shop/a", "rateLimit", oneAnHour)
	if a := before.Request(exchange()); a != nil {
		t.Fatal(a)
	}
	l.Keep(func(h *Head) bool { return h == before })
	after := take(t, l, "shop/a", "rateLimit", oneAnHour)
	if after != before {
		t.Error("the same limiter is another object")
	}
	if a := after.Request(exchange()); a == nil {
		t.Error("the switch reset the limit")
	}
	if take(t, l, "shop/b", "rateLimit", oneAnHour) == before {
		t.Error("two scopes share a limiter")
	}
	if take(t, l, "shop/a", "rateLimit", `{"burst":1,"per":"1h","rate":2}`) == before {
		t.Error("two configs share a limiter")
	}
}

func TestLibraryKeepsWhatIsInUse(t *testing.T) {
	l := NewLibrary(Env{})
	a := take(t, l, "m/a", "rateLimit", oneAnHour)
	b := take(t, l, "m/b", "rateLimit", oneAnHour)
	if take(t, l, "m/a", "stripPrefix", `{"prefix":"/a"}`) != take(t, l, "m/b", "stripPrefix", `{"prefix":"/a"}`) {
		t.Error("a kind without state is not shared by scopes")
	}
	l.Keep(func(h *Head) bool { return h == a })
	if l.Len() != 1 {
		t.Errorf("%d heads kept, want 1", l.Len())
	}
	if take(t, l, "m/a", "rateLimit", oneAnHour) != a || take(t, l, "m/b", "rateLimit", oneAnHour) == b {
		t.Error("the wrong one was kept")
	}
	if h, ps := l.Head("m/a", "rateLimit", `{}`); h != nil || len(ps) == 0 {
		t.Errorf("a bad config gives %v, %v", h, ps)
	}
	if h, ps := l.Head("m/a", "nope", `{}`); h != nil || len(ps) != 1 {
		t.Errorf("an unknown kind gives %v, %v", h, ps)
	}
	if l.Len() != 2 {
		t.Errorf("%d heads kept, want 2: refused ones must not stay", l.Len())
	}
}

// A secret that was rotated is seen by the next prepare.
func TestLibraryResolvesReferencesAnew(t *testing.T) {
	token := "old"
	l := NewLibrary(Env{Lookup: func(string) (string, bool) { return token, true }})
	const config = `{"request":{"set":{"Authorization":"Bearer ${env:T}"}}}`
	for _, want := range []string{"old", "new"} {
		token = want
		x := exchange()
		take(t, l, "m/a", "headers", config).Request(x)
		if got := x.Header.Get("Authorization"); got != "Bearer "+want {
			t.Errorf("sent %q, want Bearer %s", got, want)
		}
	}
}

func TestLibraryGivesOneObjectToAll(t *testing.T) {
	l := NewLibrary(Env{})
	got := make([]*Head, 8)
	var wg sync.WaitGroup
	for i := range got {
		wg.Go(func() {
			for j := range 100 {
				h, _ := l.Head("m/"+strconv.Itoa(j), "rateLimit", oneAnHour)
				if j == 7 {
					got[i] = h
				}
				l.Len()
			}
		})
	}
	wg.Wait()
	for _, h := range got {
		if h == nil || h != got[0] {
			t.Fatal("two goroutines got two objects")
		}
	}
}
