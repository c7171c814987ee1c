package rollout

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

// AllAtOnce is the name of the strategy without steps: one wave over every
// group and one commit.
const AllAtOnce = "all-at-once"

// BuiltinNames lists the strategies that every fleet has, the quickest first.
func BuiltinNames() []string { return []string{AllAtOnce, "waves", "canary", "linear"} }

// Builtin returns the strategy of that name which every fleet has. A stored
// strategy of the same name goes before it.
func Builtin(name string) (Strategy, bool) {
	switch name {
	case AllAtOnce:
		return Strategy{
			Name: name, Description: "every group at once, as soon as all instances are ready",
			Waves: []Wave{{Groups: []string{everyOther}, Steps: []PlanStep{commitStep()}}},
		}, true
	case "waves":
		return Strategy{
			Name: name, Description: "group after group, the group canary first, each watched for five minutes",
			Waves: []Wave{
				{Name: "canary", Groups: []string{"canary"}, Steps: []PlanStep{commitStep(), bakeStep(5 * time.Minute)}},
				{Name: "rest", Groups: []string{everyOther}, OneByOne: true, Steps: []PlanStep{commitStep(), bakeStep(5 * time.Minute)}},
			},
		}, true
	case "canary":
		return Strategy{
			Name: name, Description: "one instance of each group, then a quarter of the clients, each compared with stable; then all, watched for five minutes",
			Waves: []Wave{{Groups: []string{everyOther}, Steps: []PlanStep{
				{Canary: &CanaryStep{Instances: "1"}},
				analysisStep(),
				shareStep(25), analysisStep(),
				commitStep(), bakeStep(5 * time.Minute),
			}}},
		}, true
	case "linear":
		return Strategy{
			Name: name, Description: "a tenth, a quarter and a half of the clients, each compared with stable; then all, watched for five minutes",
			Waves: []Wave{{Groups: []string{everyOther}, Steps: []PlanStep{
				shareStep(10), analysisStep(),
				shareStep(25), analysisStep(),
				shareStep(50), analysisStep(),
				commitStep(), bakeStep(5 * time.Minute),
			}}},
		}, true
	}
	return Strategy{}, false
}

// everyOther stands in a wave for the groups that no other wave names.
const everyOther = "*"

func shareStep(percent float64) PlanStep { return PlanStep{Share: &ShareStep{Percent: percent}} }
func analysisStep() PlanStep             { return PlanStep{Analysis: &AnalysisStep{}} }
func commitStep() PlanStep               { return PlanStep{Commit: &CommitStep{}} }
func bakeStep(d time.Duration) PlanStep  { return PlanStep{Bake: &BakeStep{For: Duration(d)}} }

// Of is how many of n instances q stands for: a part is rounded up, a number
// may exceed n, and no quantity is 0. It fails on what is neither.
func (q Quantity) Of(n int) (int, error) {
	if q == "" {
		return 0, nil
	}
	if part, ok := strings.CutSuffix(string(q), "%"); ok {
		p, err := permyriad(part)
		if err != nil {
			return 0, fmt.Errorf("quantity %.40q: %w", string(q), err)
		}
		return (n*p + 9999) / 10000, nil
	}
	v, err := strconv.ParseUint(string(q), 10, 31)
	if err != nil {
		return 0, fmt.Errorf("quantity %.40q: want a number of instances like 2, or a part like 25%%", string(q))
	}
	return int(v), nil
}

// permyriad reads a percentage, as 12.5, in 1/10000. It is exact: no float
// says how many instances there are.
func permyriad(s string) (int, error) {
	whole, frac, dot := strings.Cut(s, ".")
	w, err := strconv.ParseUint(whole, 10, 16)
	f, ferr := uint64(0), error(nil)
	if dot {
		f, ferr = strconv.ParseUint((frac + "0")[:min(2, len(frac)+1)], 10, 16)
	}
	if err != nil || ferr != nil || len(frac) > 2 || dot && frac == "" || w > 100 || w == 100 && f > 0 {
		return 0, fmt.Errorf("want 0%% to 100%%, in steps of 0.01")
	}
	return int(100*w + f), nil
}

// key is what tells clients apart in s.
func (s *ShareStep) key() string { return cmp.Or(s.Key, "client") }

func sorted[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
