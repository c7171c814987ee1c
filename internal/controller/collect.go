package controller

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"routerd.dev/internal/store"
)

// collectEvery is how often revisions beyond the history limit are collected.
const collectEvery = time.Hour

// collect runs gc about once an hour while the fleet has a history limit,
// until ctx ends. The first time is anywhere in the first hour, so that
// controllers that change often still get to it.
func (l *leader) collect(ctx context.Context) {
	wait := time.Minute + rand.N(collectEvery-time.Minute)
	for {
		pause(ctx, wait)
		if ctx.Err() != nil {
			return
		}
		wait = collectEvery + rand.N(collectEvery/10)
		if l.historyLimit.Load() <= 0 {
			continue
		}
		got, err := l.c.src.GC(ctx, l.c.o.ID, store.KeepPolicy{})
		switch {
		case err == nil:
			l.c.log.Info("collected", "revisions", got.Revisions, "manifests", got.Manifests, "chunks", got.Chunks,
				"rollouts", got.Rollouts, "audit", got.Audit, "kept", got.KeptRevisions)
		case ctx.Err() != nil:
			return
		case errors.Is(err, store.ErrBusy):
			l.c.log.Info("somebody else is collecting")
		default:
			l.c.log.Warn("cannot collect, trying again in an hour", "err", err)
		}
	}
}
