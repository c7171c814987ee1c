package engine

import (
	"routerd.dev/internal/middleware"
	"routerd.dev/internal/version"
)

// Capabilities lists what this build can serve, sorted: a snapshot that needs
// anything else is refused.
func Capabilities() []string {
	kinds := middleware.Kinds()
	names := make([]string, len(kinds))
	for i, k := range kinds {
		names[i] = k.Name
	}
	return version.Supported(names)
}
