package middleware

import (
	"encoding/hex"
	"math/rand/v2"
	"net/http"
)

type requestIDConfig struct {
	Header string `json:"header,omitempty" jsonschema_description:"Name of the header field that carries the id. Default: X-Request-Id."`
	Trust  bool   `json:"trust,omitempty" jsonschema_description:"Keep an id that the client sent, if it is 1 to 128 letters, digits or -_.:/+=. Otherwise it is replaced."`
}

var _ = register(requestIDKind())

func requestIDKind() Kind {
	return newKind("requestID",
		"Gives each request an id of 32 hexadecimal digits, in a header field of the request and of the response.",
		func(c *requestIDConfig, _ Env, ps *problems) *Head {
			name := "X-Request-Id"
			if c.Header != "" {
				name, _ = headerName(c.Header, "header", ps)
			}
			return &Head{
				Request: func(x *Exchange) *Answer {
					if !c.Trust || !acceptableID(x.Header.Get(name)) {
						setHeader(x.Header, name, newRequestID())
					}
					return nil
				},
				Response: func(x *Exchange) {
					if std, ok := x.Header.(http.Header); ok {
						if res, ok := x.ResponseHeader.(http.Header); ok {
							if v := std[name]; len(v) > 0 {
								res[name] = v[:1:1]
							}
							return
						}
					}
					x.ResponseHeader.Set(name, x.Header.Get(name))
				},
			}
		})
}

// newRequestID takes its bits from the runtime's ChaCha8 generators, one for
// each thread: unique for all purposes, and no lock.
func newRequestID() string {
	var raw [16]byte
	hi, lo := rand.Uint64(), rand.Uint64()
	for i := range 8 {
		raw[i], raw[8+i] = byte(hi>>(8*i)), byte(lo>>(8*i))
	}
	var text [32]byte
	hex.Encode(text[:], raw[:])
	return string(text[:])
}

// acceptableID keeps a client from putting more than an id into logs and
// upstream headers.
func acceptableID(s string) bool {
	for i := range len(s) {
		c := s[i]
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' {
			continue
		}
		switch c {
		case '-', '_', '.', ':', '/', '+', '=':
		default:
			return false
		}
	}
	return s != "" && len(s) <= 128
}

// setHeader replaces the fields of a canonical name by one.
func setHeader(h Headers, name, value string) {
	if std, ok := h.(http.Header); ok {
		std[name] = []string{value}
		return
	}
	h.Set(name, value)
}
