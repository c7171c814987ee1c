package cli

import (
	"fmt"
	"strings"

	"routerd.dev/internal/route"
)

// orAny shows a list of which none stands for any.
func orAny(list []string) string {
	if len(list) == 0 {
		return "any"
	}
	return strings.Join(list, ",")
}

func pathOf(r *route.Route) string {
	if r.Prefix != "" {
		return r.Prefix + " (prefix)"
	}
	return r.Path
}

// actionOf says in a few words what a route does.
func actionOf(r *route.Route) string {
	switch a := r.Action; {
	case a.Proxy != nil:
		return "proxy " + a.Proxy.Upstream
	case a.Redirect != nil:
		return fmt.Sprintf("redirect %d %s", a.Redirect.Status, a.Redirect.To)
	case a.Respond != nil:
		return fmt.Sprintf("respond %d", a.Respond.Status)
	}
	return "-"
}
