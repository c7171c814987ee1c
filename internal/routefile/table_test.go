package routefile

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"routerd.dev/internal/route"
)

func TestParseTable(t *testing.T) {
	routes, ps := ParseTable("t.txt", strings.NewReader("# a table\n\nGET /users/{id}\nget /users/id # the same name\n  POST\t/users\r\nGET /c%23d\n"))
	if len(ps) > 0 {
		t.Fatal(ps)
	}
	var got []string
	for _, r := range routes {
		got = append(got, r.Name+" "+strings.Join(r.Methods, ",")+" "+r.Path)
	}
	want := []string{"get-users-id GET /users/{id}", "get-users-id-2 GET /users/id", "post-users POST /users", "get-c-23d GET /c%23d"}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestParseTableReportsEveryLine(t *testing.T) {
	_, ps := ParseTable("t.txt", strings.NewReader("GET\nGET /a b\n/a GET\nGET /a/{b\nGET /x\nGET /y\nget /x\n"))
	got := ps.Error()
	for _, want := range []string{
		"t.txt:1: want METHOD /path, got \"GET\"",
		"t.txt:2: want METHOD /path, got \"GET /a b\"",
		"t.txt:3: \"/a\" is not a method",
		"t.txt:4: path /a/{b: ",
		"t.txt:7: GET /x stands twice (first at line 5)",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("lacks %q:\n%s", want, got)
		}
	}
	if len(ps) != 5 {
		t.Errorf("got %d problems:\n%s", len(ps), got)
	}
	for _, empty := range []string{"", "# nothing\n"} {
		if _, ps := ParseTable("t.txt", strings.NewReader(empty)); ps.Error() != "t.txt: the table has no routes (a line is METHOD /path, such as GET /users/{id})" {
			t.Errorf("%q: %v", empty, ps)
		}
	}
	if _, ps := ParseTable("t.txt", strings.NewReader("GET /a\nGET /"+strings.Repeat("x", maxTableLine))); len(ps) != 1 || ps[0].Place.Line != 2 {
		t.Errorf("an endless line: %v", ps)
	}
}

// A table becomes a module whose names are unique and that can be written.
func TestATableIsAModule(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		lines := rapid.SliceOfNDistinct(rapid.StringMatching(`(GET|POST) (/[a-c{}.]{1,4}){1,3}`), 1, 20, rapid.ID[string]).Draw(t, "lines")
		routes, ps := ParseTable("t", strings.NewReader(strings.Join(lines, "\n")))
		if len(routes)+len(ps) != len(lines) {
			t.Fatalf("%d lines, %d routes, %v", len(lines), len(routes), ps)
		}
		seen := map[string]bool{}
		for i := range routes {
			if seen[routes[i].Name] {
				t.Fatalf("two are named %s", routes[i].Name)
			}
			seen[routes[i].Name] = true
			routes[i].Action.Respond = &route.Respond{Body: "x"}
		}
		if len(routes) == 0 {
			return
		}
		m := &route.Module{Name: "m", Routes: routes}
		route.NormalizeModule(m)
		b, err := Encode(m)
		if err != nil {
			t.Fatal(err)
		}
		got, ps := Parse([]File{{Name: "t", Data: b}})
		if len(ps) > 0 || same(m, got[0]) != "" {
			t.Fatalf("%v %s", ps, same(m, got[0]))
		}
	})
}
