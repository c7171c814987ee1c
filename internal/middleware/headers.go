package middleware

import (
	"maps"
	"net/http"
	"net/textproto"
	"slices"
	"strings"
)

type headersConfig struct {
	Request  headerEdits `json:"request,omitzero" jsonschema_description:"Edits of the request's header before it is sent on."`
	Response headerEdits `json:"response,omitzero" jsonschema_description:"Edits of the response's header before it is sent back."`
}

type headerEdits struct {
	Remove []string          `json:"remove,omitempty" jsonschema_description:"Names whose fields are dropped; done first."`
	Set    map[string]string `json:"set,omitempty" jsonschema_description:"Fields that replace those of the same name; done second. Values may hold ${env:NAME} and ${file:PATH}, read on each instance."`
	Add    map[string]string `json:"add,omitempty" jsonschema_description:"Fields that join those of the same name; done last. Values as in set."`
}

var _ = register(headersKind())

func headersKind() Kind {
	return newKind("headers",
		"Removes, sets and adds header fields of the request and of the response.",
		func(c *headersConfig, env Env, ps *problems) *Head {
			if c.Request.empty() && c.Response.empty() {
				ps.add("", "name request or response, with remove, set or add", "no edits")
			}
			request := c.Request.compile("request", env, ps)
			response := c.Response.compile("response", env, ps)
			h := &Head{}
			if len(request) > 0 {
				h.Request = func(x *Exchange) *Answer { apply(request, x.Header); return nil }
			}
			if len(response) > 0 {
				h.Response = func(x *Exchange) { apply(response, x.ResponseHeader) }
			}
			return h
		})
}

func (e headerEdits) empty() bool { return len(e.Remove)+len(e.Set)+len(e.Add) == 0 }

type headerOp uint8

const (
	opRemove headerOp = iota
	opSet
	opAdd
)

type headerEdit struct {
	op     headerOp
	name   string
	values []string // one value; shared by every request, its capacity is its length
}

// compile turns edits into steps: remove, then set, then add, each sorted by
// name, for the order of fields of different names says nothing.
func (e headerEdits) compile(path string, env Env, ps *problems) []headerEdit {
	var edits []headerEdit
	for _, name := range e.Remove {
		if canonical, ok := headerName(name, join(path, "remove"), ps); ok {
			edits = append(edits, headerEdit{op: opRemove, name: canonical})
		}
	}
	for _, m := range []struct {
		op     headerOp
		key    string
		fields map[string]string
	}{{opSet, "set", e.Set}, {opAdd, "add", e.Add}} {
		seen := map[string]bool{}
		for _, name := range slices.Sorted(maps.Keys(m.fields)) {
			field := join(join(path, m.key), name)
			canonical, ok := headerName(name, field, ps)
			if !ok {
				continue
			}
			if seen[canonical] {
				ps.add(field, "names are equal but for case", "stands twice")
				continue
			}
			seen[canonical] = true
			value := m.fields[name]
			if isSecret(canonical, value) {
				ps.add(field, "write ${env:NAME} or ${file:PATH}, which each instance resolves", "a literal secret")
				continue
			}
			before := len(*ps)
			value = expand(value, field, env, ps)
			if len(*ps) == before && !validHeaderValue(value) {
				ps.add(field, "", "value holds a control character")
			}
			edits = append(edits, headerEdit{op: m.op, name: canonical, values: []string{value}})
		}
	}
	return edits
}

// apply runs the steps. Into an http.Header, values are put without copying;
// nobody may write into the slices of a header, only replace them.
func apply(edits []headerEdit, h Headers) {
	if std, ok := h.(http.Header); ok {
		for i := range edits {
			e := &edits[i]
			switch have := std[e.name]; {
			case e.op == opRemove:
				delete(std, e.name)
			case e.op == opSet || len(have) == 0:
				std[e.name] = e.values
			default:
				std[e.name] = append(have, e.values[0])
			}
		}
		return
	}
	for i := range edits {
		switch e := &edits[i]; e.op {
		case opRemove:
			h.Del(e.name)
		case opSet:
			h.Set(e.name, e.values[0])
		case opAdd:
			h.Add(e.name, e.values[0])
		}
	}
}

// headerName brings a name to its MIME form, and reports what is none or what
// is not a middleware's to edit.
func headerName(name, field string, ps *problems) (string, bool) {
	if !validHeaderName(name) {
		ps.add(field, "", "%.80q is not a header name", name)
		return "", false
	}
	canonical := textproto.CanonicalMIMEHeaderKey(name)
	switch canonical {
	case "Connection", "Content-Length", "Keep-Alive", "Proxy-Connection", "Te", "Trailer", "Transfer-Encoding", "Upgrade":
		ps.add(field, "", "%s belongs to the connection and is routerd's to set", canonical)
		return "", false
	case "Host":
		ps.add(field, "set the host of the upstream instead", "Host cannot be edited")
		return "", false
	}
	return canonical, true
}

// validHeaderName tells whether s is a token of RFC 9110, section 5.6.2.
func validHeaderName(s string) bool {
	for i := range len(s) {
		c := s[i]
		letterOrDigit := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !letterOrDigit && strings.IndexByte("!#$%&'*+-.^_`|~", c) < 0 {
			return false
		}
	}
	return s != "" && len(s) <= 256
}

func validHeaderValue(s string) bool {
	for i := range len(s) {
		if c := s[i]; c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}

// isSecret tells whether a value stands literally where a credential belongs,
// or looks like one by the marks that issuers give theirs.
func isSecret(canonical, value string) bool {
	if value == "" || hasReference(value) {
		return false
	}
	switch canonical {
	case "Authorization", "Proxy-Authorization", "Cookie", "X-Api-Key", "Api-Key", "Apikey", "X-Auth-Token",
		"X-Access-Token", "X-Vault-Token", "Private-Token", "X-Amz-Security-Token":
		return true
	}
	for _, mark := range []string{"-----BEGIN ", "ghp_", "github_pat_", "glpat-", "sk_live_", "rk_live_", "xoxb-", "xoxp-", "AKIA", "eyJhbGciOi"} {
		if strings.Contains(value, mark) {
			return true
		}
	}
	return false
}
