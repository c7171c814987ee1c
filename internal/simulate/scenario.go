package simulate

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"routerd.dev/internal/rollout"
)

// A Scenario is a fleet that serves revision 2, has served revision 1 before
// it, and is asked to switch to revision 3; and what happens meanwhile. Only
// Groups must be set.
type Scenario struct {
	Groups   map[string]int   `json:"groups"` // how many instances: canary-1, canary-2, …
	Plan     rollout.Strategy `json:"plan"`   // without waves: all at once
	Settings rollout.Settings `json:"settings,omitzero"`
	Revert   time.Duration    `json:"revert,omitempty"` // go back unless approved within this time
	Faults   []Fault          `json:"faults,omitempty"`
	Traffic  Traffic          `json:"traffic,omitzero"`
	Known    bool             `json:"known,omitempty"` // revision 3 was served before: no instance prepares it first
	Build    time.Duration    `json:"build,omitempty"` // how long an instance builds a revision; 0 for 300 ms
	Until    time.Duration    `json:"until,omitempty"` // when it is cut off at the latest; 0 for 1 h
	Seed     uint64           `json:"seed,omitempty"`  // of the traffic's chance
}

// validate says what is wrong with s, all of it.
func (s *Scenario) validate() error {
	var errs []error
	total := 0
	for _, g := range sorted(s.Groups) {
		if g == "" || s.Groups[g] < 1 {
			errs = append(errs, fmt.Errorf("group %q: want a name and at least one instance", g))
		}
		total += s.Groups[g]
	}
	if len(s.Groups) == 0 || len(s.Groups) > rollout.MaxGroups || total > maxInstances {
		errs = append(errs, fmt.Errorf("%d groups with %d instances: want 1 to 100 groups with at most %d", len(s.Groups), total, maxInstances))
	}
	if len(s.Plan.Waves) > 0 {
		for _, p := range s.Plan.Validate() {
			errs = append(errs, fmt.Errorf("plan: %s", p))
		}
	}
	for i, x := range s.Faults {
		if err := x.validate(s); err != nil {
			errs = append(errs, fmt.Errorf("fault %d: %w", i+1, err))
		}
	}
	return errors.Join(errs...)
}

const maxInstances = 1000

// FaultKind is what goes wrong, or what an operator does.
type FaultKind string

// The kinds. Which fields of a Fault each reads stands behind it.
const (
	FaultDie     FaultKind = "die"     // instance, for: then it starts again; without, it stays dead
	FaultRestart FaultKind = "restart" // instance: dies and starts again at once
	FaultJoin    FaultKind = "join"    // instance (a new name), group
	FaultRefuse  FaultKind = "refuse"  // instance: will not compile the new revision, from then on
	FaultPoison  FaultKind = "poison"  // instance: dies of the new revision; for: how long it then takes to start again, 1 s unless set
	FaultSlow    FaultKind = "slow"    // instance, factor: builds take so many times longer, 100 unless set
	FaultLapse   FaultKind = "lapse"   // instance: its lease is lost, it joins again

	FaultController FaultKind = "controller-die"    // for: until another is elected, 10 s unless set
	FaultDepose     FaultKind = "controller-change" // another is elected at once; the former one still tries to write
	FaultEtcd       FaultKind = "etcd-away"         // for: nobody reads or writes, 30 s unless set

	FaultErrors  FaultKind = "errors"  // rate: the part of the new revision's requests that fails; route: only there
	FaultLatency FaultKind = "latency" // factor: of the new revision's latency; route: only there

	FaultPause    FaultKind = "pause" // the operator
	FaultResume   FaultKind = "resume"
	FaultPromote  FaultKind = "promote" // full=true: every wave
	FaultApprove  FaultKind = "approve"
	FaultAbort    FaultKind = "abort"
	FaultRollback FaultKind = "rollback" // group: of it only
)

// needsInstance lists the kinds that are about an instance.
var needsInstance = []FaultKind{FaultDie, FaultRestart, FaultJoin, FaultRefuse, FaultPoison, FaultSlow, FaultLapse}

var kinds = append(needsInstance[:len(needsInstance):len(needsInstance)], FaultController, FaultDepose, FaultEtcd, FaultErrors, FaultLatency,
	FaultPause, FaultResume, FaultPromote, FaultApprove, FaultAbort, FaultRollback)

// A Fault happens at a time after the start.
type Fault struct {
	At       time.Duration `json:"at"`
	Kind     FaultKind     `json:"kind"`
	Instance string        `json:"instance,omitempty"`
	Group    string        `json:"group,omitempty"`
	For      time.Duration `json:"for,omitempty"`
	Rate     float64       `json:"rate,omitempty"` // 0 to 1
	Factor   float64       `json:"factor,omitempty"`
	Route    string        `json:"route,omitempty"`
	Full     bool          `json:"full,omitempty"`
}

// FaultKinds lists the kinds of faults there are.
func FaultKinds() []FaultKind { return slices.Clone(kinds) }

// ParseFault reads a fault in words of the form name=value, in any order:
// at=30s kind=die instance=canary-1. The names are those of Fault's fields; at
// and kind must be there. Whether it fits a scenario is told by Run.
func ParseFault(s string) (Fault, error) {
	var f Fault
	seen := map[string]bool{}
	for _, word := range strings.Fields(s) {
		name, value, ok := strings.Cut(word, "=")
		if !ok || value == "" {
			return f, fmt.Errorf("fault %.80q: %.40q: want name=value, as at=30s kind=die instance=canary-1", s, word)
		}
		if seen[name] {
			return f, fmt.Errorf("fault %.80q: %s stands there twice", s, name)
		}
		seen[name] = true
		if err := f.set(name, value); err != nil {
			return f, fmt.Errorf("fault %.80q: %s=%.40s: %w", s, name, value, err)
		}
	}
	if !seen["at"] || f.Kind == "" {
		return f, fmt.Errorf("fault %.80q: want at least at= and kind=, as at=30s kind=die instance=canary-1", s)
	}
	return f, nil
}

func (f *Fault) set(name, value string) (err error) {
	switch name {
	case "at":
		f.At, err = parseDuration(value)
	case "kind":
		f.Kind = FaultKind(value)
		if !slices.Contains(kinds, f.Kind) {
			return fmt.Errorf("want one of %s", kindNames())
		}
	case "instance":
		f.Instance = value
	case "group":
		f.Group = value
	case "for":
		f.For, err = parseDuration(value)
	case "rate":
		if f.Rate, err = strconv.ParseFloat(value, 64); err != nil || !(f.Rate >= 0 && f.Rate <= 1) {
			return errors.New("want a part of all requests, 0 to 1")
		}
	case "factor":
		if f.Factor, err = strconv.ParseFloat(value, 64); err != nil || !(f.Factor > 0 && f.Factor <= 1e6) {
			return errors.New("want a number above 0")
		}
	case "route":
		f.Route = value
	case "full":
		if f.Full, err = strconv.ParseBool(value); err != nil {
			return errors.New("want true or false")
		}
	default:
		return errors.New("want one of at, kind, instance, group, for, rate, factor, route and full")
	}
	return err
}

func parseDuration(s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 {
		return 0, errors.New("want a duration like 30s or 1m30s")
	}
	return d, nil
}

func kindNames() string {
	out := make([]string, len(kinds))
	for i, k := range kinds {
		out[i] = string(k)
	}
	return strings.Join(out, ", ")
}

// String gives the form that ParseFault reads.
func (f Fault) String() string {
	out := []string{"at=" + f.At.String(), "kind=" + string(f.Kind)}
	add := func(name, value string, set bool) {
		if set {
			out = append(out, name+"="+value)
		}
	}
	add("instance", f.Instance, f.Instance != "")
	add("group", f.Group, f.Group != "")
	add("for", f.For.String(), f.For > 0)
	add("rate", strconv.FormatFloat(f.Rate, 'g', -1, 64), f.Rate > 0)
	add("factor", strconv.FormatFloat(f.Factor, 'g', -1, 64), f.Factor > 0)
	add("route", f.Route, f.Route != "")
	add("full", "true", f.Full)
	return strings.Join(out, " ")
}

// validate tells whether f is about what s has.
func (f Fault) validate(s *Scenario) error {
	switch {
	case !slices.Contains(kinds, f.Kind):
		return fmt.Errorf("kind %.40q: want one of %s", string(f.Kind), kindNames())
	case f.At < 0 || f.For < 0:
		return errors.New("a time before the start")
	case f.Kind == FaultJoin && (s.has(f.Instance) || f.Instance == "" || f.Group == ""):
		return errors.New("join: want a group, and an instance that is not there yet")
	case f.Kind != FaultJoin && slices.Contains(needsInstance, f.Kind) && !s.has(f.Instance) && !s.joins(f.Instance):
		return fmt.Errorf("there is no instance %.80q: they are named like %s-1", f.Instance, cmp.Or(first(sorted(s.Groups)), "main"))
	case f.Kind == FaultErrors && f.Rate == 0:
		return errors.New("errors: want rate, a part of all requests")
	case f.Kind == FaultLatency && f.Factor == 0:
		return errors.New("latency: want factor")
	case f.Kind == FaultRollback && f.Group != "" && s.Groups[f.Group] == 0:
		return fmt.Errorf("there is no group %.80q", f.Group)
	}
	return nil
}

func (s *Scenario) has(instance string) bool {
	i := strings.LastIndexByte(instance, '-')
	if i < 0 {
		return false
	}
	n, err := strconv.Atoi(instance[i+1:])
	return err == nil && n >= 1 && n <= s.Groups[instance[:i]] && instance == name(instance[:i], n)
}

func (s *Scenario) joins(instance string) bool {
	return slices.ContainsFunc(s.Faults, func(f Fault) bool { return f.Kind == FaultJoin && f.Instance == instance })
}

func name(group string, n int) string { return group + "-" + strconv.Itoa(n) }

func first(all []string) string {
	if len(all) == 0 {
		return ""
	}
	return all[0]
}
