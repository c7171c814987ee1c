// Command bench measures routerd in one run and prints what it found, each
// figure beside the goal it has and, where there is one, beside what it is to
// be compared with in the same run: plain Gin, or nginx. Speed is shown and
// never gates: it fails only when something breaks.
//
// A machine that others use too is slow in some moments. What is compared
// therefore takes turns, medians are reported, and a ratio is the median of the
// ratios of neighbours.
//
// # Sections
//
// One file each: engine, snapshot, change, switch, heads, proxy, prepare. -only
// selects some of them, -quick takes fewer rounds and smaller tables.
//
// # Processes
//
// What runs in a process of its own in production does so here: etcd, nginx,
// the router that is under load, a backend. Those that are not nginx or wrk are
// this program again, as `bench child KIND`. All listen on loopback only; each
// ends with the bench, by its own id, and temporary files go with it.
package main
