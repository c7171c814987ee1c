package daemon

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"routerd.dev/internal/token"
)

const (
	// keysEvery is how often it is looked whether the token keys can be used.
	keysEvery = 10 * time.Second
	maxSecret = 64 << 10
)

// watchKeys says in the log when the file of the token keys cannot be used any
// more, and when it can again.
func watchKeys(ctx context.Context, keys *token.Keys, log *slog.Logger) {
	tick := time.NewTicker(keysEvery)
	defer tick.Stop()
	said := ""
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		keys.Generation(time.Now()) // also without traffic
		now := ""
		if err := keys.Err(); err != nil {
			now = err.Error()
		}
		switch {
		case now == said:
		case now == "":
			log.Info("the token keys can be used again")
		default:
			log.Error("the token keys cannot be used as they are now, those before stay in use", "err", now)
		}
		said = now
	}
}

// readSecret reads a file that only its owner may read. White space around what
// is in it does not count.
func readSecret(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular() || info.Size() > maxSecret:
		return nil, fmt.Errorf("%s is not a file of at most %d bytes", path, maxSecret)
	case info.Mode().Perm()&0o077 != 0:
		return nil, fmt.Errorf("%s is open to others than its owner (mode %04o): chmod 600 it, and choose a new secret if others could read it", path, info.Mode().Perm())
	}
	b, err := io.ReadAll(io.LimitReader(f, maxSecret))
	if err != nil {
		return nil, err
	}
	if b = bytes.TrimSpace(b); len(b) == 0 {
		return nil, fmt.Errorf("%s is empty", path)
	}
	return b, nil
}
