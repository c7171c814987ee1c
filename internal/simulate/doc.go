// Package simulate plays a fleet in memory: an etcd that holds the records and
// carries out changes under the conditions of the real one, instances that
// look, build, say what they hold, switch, report, refuse, die and come back,
// and controllers that ask rollout.Step. It serves two: routectl rollout
// simulate, by Run, and the tests' exhaustive exploration of what may happen in
// a fleet.
//
// # Run
//
// A Scenario is a fleet that serves revision 2 everywhere, and 1 before it. At
// +0s an operator has it switch to revision 3 by Scenario.Plan, or all at once
// when the plan has no waves. Instances are named after their group: canary-1,
// main-1, main-2. Faults happen at their time: ParseFault reads one from a
// command line, Fault's kinds say what each is about and which words it takes.
// Traffic says what clients ask, how often it fails and how much worse the new
// revision does on the routes that it changes; the zero value is moderate and
// harmless.
//
//	f, err := simulate.ParseFault("at=30s kind=errors rate=0.05")
//	t := simulate.Run(simulate.Scenario{Groups: map[string]int{"canary": 1, "main": 3}, Plan: plan, Faults: []simulate.Fault{f}})
//	fmt.Print(t) // or json.Marshal(t)
//
// The Transcript ends soon after the rollout has, when every fault came, or at
// Scenario.Until. Its Error says why a scenario cannot be played: all that is
// wrong with it, a line each. Broken lists laws that did not hold, which is
// a defect of routerd, never of a scenario.
//
// Times are those of a fleet in one data center: a watch takes 5 ms, a build
// Scenario.Build, a dead process loses its keys after 10 s. Checks that a plan
// would ask of others are not asked: a step with some waits for an operator.
//
// # Exploration
//
// The tests try every order in which instances, controllers and an operator can
// act, within bounds on how many die, join, lose their lease or refuse, and
// hold the laws of laws.go in each state: I2, I3 and I4 of ARCHITECTURE.md,
// that a nonce names one set and is never used again, that what is served is in
// the set, that an abort which etcd has wins, that a share never exceeds its
// step, that each instance has one of hold, prepare, activate and release for
// each revision, that an end is final. Without faults it ends, or waits for an
// operator or for data.
//
// What an instance cannot tell others is not told apart in larger explorations:
// there it builds once it has said what it can say without, and reports at once.
// Each deed stands apart in a smaller one. Instances of a group are not taken for
// each other: who prepares first is chosen by name. The state of etcd going back,
// and clocks that differ, are not explored; package rollout's tests have them.
//
// # Invariants
//
//   - The same Scenario gives the same Transcript, byte for byte.
//   - A Fleet and its Clone share nothing that either can change.
//
// # Concurrency
//
// Run may be called from many goroutines at once. A Fleet is for one.
package simulate
