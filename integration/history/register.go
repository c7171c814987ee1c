package history

import (
	"fmt"
	"math"
	"time"

	"github.com/anishathalye/porcupine"
)

// An Op is one call of routectl by one of several that publish and read at the
// same time.
type Op struct {
	Client       int
	Call, Return time.Duration
	Kind         OpKind
	Expect       int64   // of a publish: the target it was to compose on; 0 for any
	Outcome      Outcome // what routectl said
	Revision     int64   // published, or read
}

// An OpKind is what an Op does.
type OpKind string

// The kinds of Op.
const (
	OpPublish OpKind = "publish"
	OpTarget  OpKind = "read target" // what publishing composes on
	OpHead    OpKind = "read head"   // the newest revision of the history
)

// An Outcome is what became of an Op.
type Outcome string

// The outcomes.
const (
	Done    Outcome = "done"
	Refused Outcome = "refused" // the target is another, and nothing was written
	Unknown Outcome = "unknown" // it may have been done, or may yet be
)

// A head is the part of the fleet's records that publishers share.
type head struct{ newest, target int64 }

// Linearizable tells whether the publishes and reads could have happened one
// after the other, each at a moment between its call and its return, on a
// history that begins with the revision first and gives each publish the next
// number: the target a register with compare-and-set, the history a counter. No
// controller may have taken a target back meanwhile. ok is false too when that
// could not be decided in time.
func Linearizable(first int64, ops []Op, within time.Duration) (ok bool, why string) {
	model := porcupine.NondeterministicModel{
		Init: func() []any { return []any{head{first, first}} },
		Step: func(state, input, _ any) []any {
			var out []any
			for _, s := range input.(Op).step(state.(head)) {
				out = append(out, s)
			}
			return out
		},
	}
	var in []porcupine.Operation
	for _, o := range ops {
		end := int64(o.Return)
		if o.Outcome == Unknown {
			if o.Kind != OpPublish {
				continue // a read that nobody saw says nothing
			}
			end = math.MaxInt64
		}
		in = append(in, porcupine.Operation{ClientId: o.Client, Input: o, Call: int64(o.Call), Output: nil, Return: end})
	}
	switch res := porcupine.CheckOperationsTimeout(model.ToModel(), in, within); res {
	case porcupine.Ok:
		return true, ""
	case porcupine.Illegal:
		return false, fmt.Sprintf("no order of the %d publishes and reads explains what they were told", len(in))
	default:
		return false, fmt.Sprintf("not decided within %v", within)
	}
}

// step lists the states in which the records may be once o has happened;
// none when o cannot have been told what it was told.
func (o Op) step(s head) []head {
	after := head{s.newest + 1, s.newest + 1}
	fits := o.Expect == 0 || o.Expect == s.target
	switch {
	case o.Kind == OpTarget && o.Revision == s.target, o.Kind == OpHead && o.Revision == s.newest:
		return []head{s}
	case o.Kind != OpPublish:
		return nil
	case o.Outcome == Done && fits && o.Revision == after.newest:
		return []head{after}
	case o.Outcome == Refused && (o.Expect == 0 || !fits):
		return []head{s}
	case o.Outcome == Unknown && fits:
		return []head{s, after}
	case o.Outcome == Unknown:
		return []head{s}
	}
	return nil
}
