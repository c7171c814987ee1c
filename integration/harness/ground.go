package harness

import "testing"

// A Ground is what a fleet stands on: containers on private networks, or
// processes on loopback with proxies between them. It runs nodes, breaks them, and
// breaks the network between them; what a node is, it does not know.
//
// What fails fails the test. All methods are called from the test's own goroutine.
type Ground interface {
	// Kind is "containers" or "processes".
	Kind() string

	// Place makes room for a node: its folder, and an address for each port. It runs nothing yet.
	Place(t testing.TB, node string, ports ...int)
	// Listen is what the node itself listens at for a port it was placed with.
	Listen(node string, port int) string
	// Inside is where a node reaches another's port, through the network that
	// Cut breaks; from is empty for what is told to everybody, as etcd's peer
	// addresses are.
	Inside(from, to string, port int) string
	// Outside is where the test reaches a node's port. Of an instance Cut does
	// not break it; of an etcd member it does where the test stands on the same
	// network.
	Outside(node string, port int) string
	// Dir is the node's folder as the test sees it, Path what a file in it is
	// called by the node. It outlives the node's process.
	Dir(node string) string
	Path(node, file string) string

	// Run starts a placed node, or starts it anew with another program.
	Run(t testing.TB, node string, p Program)
	// Start starts an ended node again as it was.
	Start(t testing.TB, node string)
	// Kill ends a node at once; Stop asks it to end (SIGTERM) and waits.
	Kill(t testing.TB, node string)
	Stop(t testing.TB, node string)
	// Pause stops a node in the midst of what it does; Resume lets it go on.
	Pause(t testing.TB, node string)
	Resume(t testing.TB, node string)
	// Running tells whether the node's process lives.
	Running(node string) bool
	// Log is everything the node wrote since it was first started.
	Log(node string) string

	// Cut breaks the network of a node, to and from all other nodes, until Mend.
	// A second Cut replaces the first.
	Cut(t testing.TB, node string, how Cut)
	Mend(t testing.TB, node string)
}

// A Program is what a node runs.
type Program struct {
	Binary string   // "routerd" or "etcd"
	File   string   // a program of its own, in the node's folder, in place of Binary; empty for none
	Args   []string // its paths are those of Path
	Env    []string // "KEY=value"
	Memory int64    // limit in bytes; 0 for none
}

// A Cut is how a network is broken.
type Cut int

const (
	CutBoth   Cut = iota // nothing passes, nobody is told: packets are lost
	CutIn                // what others send is lost, what the node sends arrives
	CutOut               // what the node sends is lost, what others send arrives
	CutOpen              // open connections are silent, new ones work (half-open)
	CutRefuse            // connections are reset, new ones are refused
	CutSlow              // everything passes, slowly: some hundred milliseconds a round trip
)
