// Command scale measures what one etcd carries: it runs fleets of 50 to 2,000
// real agents (store, engine, switch; no HTTP) on one etcd, takes them through
// joining, idling, publishing, a rollback, an outage of etcd and the loss of all
// leases, and writes what etcd spent into docs/scale.
//
// # What carries over
//
// etcd is a process of its own, so its processor time and memory are known
// whatever else the machine does. The agents share the machine with it: on a
// small one they need most of its processors, so that times (until all have
// joined, until the last has switched) are upper bounds, and say more about the
// machine than about etcd. Each report says what the agents used.
//
// # Processes
//
// etcd, the controller and a few hundred agents each are this program again, as
// `scale child KIND`. A child is told what to do by lines on its standard input
// and ends when that input does. All listen on loopback only. State directories
// are in memory where Linux has a place for it: two thousand machines have two
// thousand disks.
//
// It needs Linux, for /proc.
package main
