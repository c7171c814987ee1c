package admin

import (
	"net"
	"net/http"
	"net/netip"
	"strings"
)

// guard keeps other sites' pages out. On loopback it asks for a Host that only
// somebody on this machine means: an address, or localhost. A page of a site whose
// name was made to resolve to 127.0.0.1 says that name.
func guard(local bool, h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if local && !localHost(r.Host) {
			problem(w, http.StatusMisdirectedRequest, "this listener is on loopback and answers to localhost and to addresses only; --admin HOST:PORT opens another")
			return
		}
		if site := r.Header.Get("Sec-Fetch-Site"); site == "cross-site" && strings.HasPrefix(r.URL.Path, "/debug/") {
			problem(w, http.StatusForbidden, "a profile is not made for another site")
			return
		}
		h.ServeHTTP(w, r)
	})
}

func localHost(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	if host == "" { // HTTP/1.0, as some probes speak
		return true
	}
	if _, err := netip.ParseAddr(strings.Trim(host, "[]")); err == nil {
		return true
	}
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	return host == "localhost" || strings.HasSuffix(host, ".localhost")
}
