package history

import "time"

// A Response is one answer of the fleet to the load, or what came instead.
type Response struct {
	Asked, Got time.Duration // since the history's start, by the clock that never goes back
	Instance   string        // that was asked
	Group      string        // of that instance
	Route      string        // that was asked for: own or echo
	Err        string        // why it is not a good answer; "" when it is
	Epoch      int64         // as the answer says; 0 when it does not
	Revision   int64         // as the answer says
	Client     int32         // who asked
	Mark       int32         // that all marks of a good answer bear
	Status     int16
	Fault      Fault
	Excused    bool // the test had the instance down at some moment between Asked and Got
}

// A Fault is how an answer is not good.
type Fault uint8

// The faults.
const (
	FaultNone    Fault = iota
	FaultFailed        // no answer, or not a 200 of that instance
	FaultMixed         // marks of two revisions in one answer
	FaultNoRoute       // a route that every revision has is gone
)
