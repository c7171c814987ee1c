package check

import (
	"time"

	"routerd.dev/internal/rollout"
)

// Passes tells whether a value is within the check's bounds.
func Passes(c rollout.Check, value float64) bool {
	return (c.Min == nil || value >= *c.Min) && (c.Max == nil || value <= *c.Max)
}

// Count adds what Ask returned at a time to what was answered before. What
// stands in a row ends with an answer that passes. An answer with a value, too,
// ends a row of errors and one of answers without; but neither of these ends a
// row of failures, so that a system that fails cannot hide it by stuttering.
func Count(r rollout.CheckResult, c rollout.Check, at time.Time, value float64, ok bool, err error) rollout.CheckResult {
	r.Asked, r.Value, r.Error = at, nil, ""
	switch {
	case err != nil:
		r.Error = bound(err.Error())
		r.Errors++
		return r
	case !ok:
		r.Errors = 0
		r.Inconclusive++
		return r
	}
	r.Value = &value
	r.Errors, r.Inconclusive = 0, 0
	if Passes(c, value) {
		r.Passed++
		r.Failed = 0
	} else {
		r.Failed++
	}
	return r
}

// bound keeps an error short, for it is kept in etcd.
func bound(s string) string {
	const most = 500
	if len(s) <= most {
		return s
	}
	return s[:most] + "…"
}
