package middleware

// Kinds returns every kind of middleware, sorted by name.
func Kinds() []Kind {
	return []Kind{
		headersKind(),
		ipAllowKind(),
		ipDenyKind(),
		rateLimitKind(),
		requestIDKind(),
		rewritePathKind(),
		stripPrefixKind(),
	}
}

// KindNames returns the name of every kind, sorted.
func KindNames() []string {
	var names []string
	for _, k := range Kinds() {
		names = append(names, k.Name)
	}
	return names
}
