package rollout

import (
	"slices"
	"time"

	"routerd.dev/internal/analysis"
	"routerd.dev/internal/version"
)

// These are the records that a decision is made of, as they stand in etcd.
// Package store keeps them; only this package says what they mean.

// A Nonce names a prepared set of digests. It is random and never used twice.
type Nonce string

// A Fleet is the settings and the two revisions that belong to all groups.
type Fleet struct {
	ID        string      `json:"id"` // random, the same as in format
	Settings  Settings    `json:"settings"`
	Target    version.Ref `json:"target"`    // what publishing composes on
	Committed version.Ref `json:"committed"` // the newest revision that every group committed

	// Floor is the highest epoch of the groups that were retired: a group made
	// anew begins above it, for instances that remember.
	Floor int64 `json:"floor,omitempty"`
}

// MaxLead is the longest time from a commit to the instant it names, and that an
// instance waits for one.
const MaxLead = 100 * time.Millisecond

// Settings are an operator's choices for the whole fleet. The zero value is
// usable: each field says what zero stands for.
type Settings struct {
	PrepareTimeout time.Duration `json:"prepareTimeout,omitempty"` // a prepare that takes longer has stragglers; 0 for 2 min
	Lead           time.Duration `json:"lead,omitempty"`           // from commit to the instant it names, at most 100 ms; 0 for 10 ms and 50 µs an instance

	// Strategy is played by rollouts that name none; empty for all-at-once.
	// FirstUse is played instead of a quicker one where a revision needs a
	// capability that no revision of one of its groups needed before; empty for
	// no such rule.
	Strategy string `json:"strategy,omitempty"`
	FirstUse string `json:"firstUse,omitempty"`

	// MaxUnready is how many of a group may be out of traffic at once because they
	// cannot serve what is committed; empty for 1; never all.
	MaxUnready Quantity `json:"maxUnready,omitempty"`

	// HistoryLimit is how many revisions collection keeps, which the controller
	// then does by itself; 0: it does not, and routectl gc keeps 50.
	HistoryLimit int `json:"historyLimit,omitempty"`
}

// An Assignment is what a group serves. It changes only by a commit.
type Assignment struct {
	Group     string        `json:"group"`
	Epoch     int64         `json:"epoch"` // only grows
	Nonce     Nonce         `json:"nonce"` // in force: names Set
	Set       []version.Ref `json:"set"`   // what holding Nonce means; stable and candidate are in it
	Stable    version.Ref   `json:"stable"`
	Candidate *Candidate    `json:"candidate,omitempty"`

	// Back lists what was stable before, newest first: where a rollback goes.
	Back []version.Ref `json:"back,omitempty"`

	Instant  time.Time `json:"instant"`           // when to switch
	Ready    int       `json:"ready"`             // how many instances were ready at the commit
	Rollout  string    `json:"rollout,omitempty"` // the rollout that committed it
	Override *Override `json:"override,omitempty"`

	// Members is what the rule against mass lease loss counts from: how many
	// were registered at the last commit that was not itself made with fewer
	// than half of them. Zero stands for Ready.
	Members int `json:"members,omitempty"`

	// Against is what a commit that is watched is compared with: what was
	// stable before it. Instances then write a Measure.
	Against version.Ref `json:"against,omitzero"`

	// Recovered is the epoch at which an operator ended a freeze last: an
	// instance that is frozen follows again once it exceeds every epoch it served.
	Recovered int64 `json:"recovered,omitempty"`
}

// A Candidate is a second revision that takes a part of a group's traffic.
type Candidate struct {
	version.Ref
	Permyriad int      `json:"permyriad"` // share of requests, in 1/10000
	Salt      string   `json:"salt,omitempty"`
	Key       string   `json:"key,omitempty"`
	Instances []string `json:"instances,omitempty"` // or these instances by name, which serve nothing else
	Match     *Match   `json:"match,omitempty"`     // and these requests, whatever the share
}

// An Override records that a rule was set aside, by whom and for which
// instances.
type Override struct {
	Why       string   `json:"why"`
	Instances []string `json:"instances,omitempty"` // those that were not ready
}

// A Prepare asks a group's instances to hold a set.
type Prepare struct {
	Group   string        `json:"group"`
	Nonce   Nonce         `json:"nonce"`
	Set     []version.Ref `json:"set"`
	First   string        `json:"first,omitempty"` // while set, only this instance builds
	Rollout string        `json:"rollout"`

	// Evict names instances that were too slow: they make themselves unready,
	// say so by Ready.Evicted, and come back once they serve what is committed.
	Evict []string `json:"evict,omitempty"`
}

// A Ready is what an instance says about prepared sets: it holds Nonce, or
// nothing (an empty Nonce), or refuses Nonce for the reason Why.
type Ready struct {
	Instance string `json:"instance"`
	Group    string `json:"group"`
	Nonce    Nonce  `json:"nonce,omitempty"`
	Refused  bool   `json:"refused,omitempty"`
	Why      string `json:"why,omitempty"`
	Evicted  bool   `json:"evicted,omitempty"` // it does not hold Nonce and takes no traffic: a commit may leave it behind

	// Lacks is what it cannot have of Nonce's set, and could not have of the set in
	// force either. It holds all else. Such an instance does not hold Nonce.
	Lacks []version.Digest `json:"lacks,omitempty"`
}

// Whole tells whether all of Nonce's set is held, in traffic.
func (r *Ready) Whole() bool { return !r.Refused && !r.Evicted && len(r.Lacks) == 0 }

// Equal tells whether r and o say the same.
func (r *Ready) Equal(o *Ready) bool {
	return r.Instance == o.Instance && r.Group == o.Group && r.Nonce == o.Nonce && r.Refused == o.Refused &&
		r.Why == o.Why && r.Evicted == o.Evicted && slices.Equal(r.Lacks, o.Lacks)
}

// An Instance is who takes part, written by itself under its lease.
type Instance struct {
	Instance     string    `json:"instance"`
	Group        string    `json:"group"`
	Boot         string    `json:"boot"` // random for each start: tells twins apart
	Former       []string  `json:"-"`    // boot ids of processes before this one, known to be dead
	Address      string    `json:"address"`
	Admin        string    `json:"admin,omitempty"`
	Version      string    `json:"version"`
	Capabilities []string  `json:"capabilities,omitempty"`
	Started      time.Time `json:"started"`
}

// Serving is what an instance serves at this moment: never what it was told to.
type Serving struct {
	Epoch    int64          `json:"epoch"`
	Revision int64          `json:"revision"`
	Digest   version.Digest `json:"digest"`
	Since    time.Time      `json:"since"`
}

// FrozenStoreWentBack begins Report.Frozen when etcd knows less than the
// instance does: an unknown fleet id, a missing group, a lower epoch.
const FrozenStoreWentBack = "store-went-back"

// A Report is what one instance says about itself, each few seconds and at
// each change.
type Report struct {
	Instance string           `json:"instance"`
	Group    string           `json:"group"`
	Boot     string           `json:"boot"`
	Time     time.Time        `json:"time"`
	Serving  *Serving         `json:"serving,omitempty"` // absent while it serves nothing
	Holds    []version.Digest `json:"holds"`
	Nonce    Nonce            `json:"nonce,omitempty"` // what its ready key says

	HighestEpoch    int64 `json:"highestEpoch"`    // ever seen
	HighestRevision int64 `json:"highestRevision"` // ever seen

	Preparing     *Progress        `json:"preparing,omitempty"`
	Refused       *Refusal         `json:"refused,omitempty"` // the newest
	Frozen        string           `json:"frozen,omitempty"`  // why it follows no commit: store-went-back, …
	Stale         string           `json:"stale,omitempty"`   // why what it knows may be old: no etcd since …
	Quarantined   []version.Digest `json:"quarantined,omitempty"`
	Pinned        version.Digest   `json:"pinned,omitzero"`
	SkewMicros    int64            `json:"skewMicros,omitempty"`    // last switch: actual − instant
	PrepareMicros int64            `json:"prepareMicros,omitempty"` // last prepare
	Evicted       bool             `json:"evicted,omitempty"`       // it took itself out of traffic, as it was told
	Lacks         []Lack           `json:"lacks,omitempty"`         // what it cannot have of the set in force
	Requests      int64            `json:"requests,omitempty"`      // since start
	Errors        int64            `json:"errors,omitempty"`        // 5xx since start
}

// A Lack is what an instance cannot have of the set in force. It tries again.
type Lack struct {
	version.Ref
	Why string `json:"why"`
}

// Progress tells how far a prepare is.
type Progress struct {
	Nonce  Nonce          `json:"nonce"`
	Digest version.Digest `json:"digest"`
	Stage  string         `json:"stage"` // waiting, fetching, compiling, testing
	Since  time.Time      `json:"since"`
}

// A Refusal tells what an instance would not prepare and why.
type Refusal struct {
	Nonce  Nonce          `json:"nonce"`
	Digest version.Digest `json:"digest"`
	Why    string         `json:"why"`
	Time   time.Time      `json:"time"`
}

// IntentKind is what an operator asked for.
type IntentKind string

// The kinds of intents.
const (
	IntentSwitch   IntentKind = "switch"   // move groups to To
	IntentRollback IntentKind = "rollback" // move groups to To, or to what was stable before
	IntentAbort    IntentKind = "abort"    // end the rollout Rollout, keep what is committed
	IntentRecover  IntentKind = "recover"  // end a freeze
	IntentRetire   IntentKind = "retire"   // forget a group that has no instances
	IntentPromote  IntentKind = "promote"  // end the waiting of Rollout's present step; with Full, commit every wave
	IntentPause    IntentKind = "pause"    // hold Rollout
	IntentResume   IntentKind = "resume"   // end a hold
	IntentApprove  IntentKind = "approve"  // what Rollout's pause waits for
)

// Straggler is what happens with instances that are not ready in time.
type Straggler string

// The straggler policies. Empty stands for abort.
const (
	StragglerAbort Straggler = "abort"
	StragglerWait  Straggler = "wait"
	StragglerEvict Straggler = "evict" // told to take no traffic, then left behind, on record
)

// An Intent is what an operator asked, until the controller has taken it up as
// a rollout of the same id.
type Intent struct {
	ID         string        `json:"id"`
	Kind       IntentKind    `json:"kind"`
	To         version.Ref   `json:"to,omitzero"`         // zero for a rollback to what was stable before
	Groups     []string      `json:"groups,omitempty"`    // none for all
	PrevTarget version.Ref   `json:"prevTarget,omitzero"` // target before this intent's transaction
	Straggler  Straggler     `json:"straggler,omitempty"`
	Timeout    time.Duration `json:"timeout,omitempty"`    // for preparing; 0 for the fleet's setting
	AllowFewer bool          `json:"allowFewer,omitempty"` // commit though fewer than half of the last commit's members are registered
	Rollout    string        `json:"rollout,omitempty"`    // what abort, promote, pause, resume and approve are about; empty for the only one in progress
	Strategy   string        `json:"strategy,omitempty"`   // switch: its name; empty for the fleet's default
	Supersede  bool          `json:"supersede,omitempty"`  // switch: also end a rollout over the same groups that has steps
	Revert     time.Duration `json:"revert,omitempty"`     // switch: go back unless approved within this time of the last commit
	Full       bool          `json:"full,omitempty"`       // promote
	From       string        `json:"from,omitempty"`       // recover: from this instance, empty to adopt what etcd has
	By         string        `json:"by"`
	Message    string        `json:"message,omitempty"`
	Time       time.Time     `json:"time"`
}

// Phase is where a rollout stands.
type Phase string

// The phases. Those from PhaseDone on are final.
const (
	PhasePending    Phase = "pending"
	PhaseFirst      Phase = "first"      // one instance prepares a digest never served
	PhasePreparing  Phase = "preparing"  // all prepare
	PhaseCommitting Phase = "committing" // all are ready, or a rollback waits for stragglers
	PhaseRunning    Phase = "running"    // a step of its plan is under way
	PhaseReturning  Phase = "returning"  // it goes back
	PhaseDone       Phase = "done"
	PhaseRefused    Phase = "refused"     // an instance refused, or the digest is condemned
	PhaseAborted    Phase = "aborted"     // by an operator, a straggler or a lost group
	PhaseSuperseded Phase = "superseded"  // by a later intent
	PhaseRolledBack Phase = "rolled-back" // its groups are where they were: it failed, or was aborted after a commit
)

// Final tells whether a rollout in this phase has ended.
func (p Phase) Final() bool {
	switch p {
	case PhaseDone, PhaseRefused, PhaseAborted, PhaseSuperseded, PhaseRolledBack:
		return true
	}
	return false
}

// A Rollout moves groups from one revision to another. Its deadlines are
// absolute, so that any controller can go on with it.
type Rollout struct {
	Intent
	Phase        Phase            `json:"phase"`
	Why          string           `json:"why,omitempty"`        // what happened, or what it waits for, naming instances
	Nonces       map[string]Nonce `json:"nonces,omitempty"`     // by group, of the prepare under way
	First        string           `json:"first,omitempty"`      // the instance asked first
	FirstBoot    string           `json:"firstBoot,omitempty"`  // its boot id then: another one means that it died
	FirstTried   []string         `json:"firstTried,omitempty"` // those that died while first
	Deadline     time.Time        `json:"deadline,omitzero"`    // of the present phase
	Epochs       map[string]int64 `json:"epochs,omitempty"`     // what was committed, by group
	Started      time.Time        `json:"started"`
	Ended        time.Time        `json:"ended,omitzero"`
	SupersededBy string           `json:"supersededBy,omitempty"`

	// Goals says where each group of a rollback goes; fixed when it is taken up.
	Goals map[string]version.Ref `json:"goals,omitempty"`

	// Plan is the strategy as it was when the rollout was taken up; nil for a
	// switch in one step. Cursor says where in it the rollout is.
	Plan     *Strategy              `json:"plan,omitempty"`
	Cursor   Cursor                 `json:"cursor,omitzero"`
	Origin   map[string]version.Ref `json:"origin,omitempty"`   // what was stable at the start, by group
	Salt     string                 `json:"salt,omitempty"`     // of its shares
	Hold     *Hold                  `json:"hold,omitempty"`     // it waits for an operator
	Alive    time.Time              `json:"alive,omitzero"`     // a controller that comes later than this found it left alone
	Evidence *analysis.Result       `json:"evidence,omitempty"` // the newest analysis
	Judged   time.Time              `json:"judged,omitzero"`    // when Evidence was found
	Return   *Return                `json:"return,omitempty"`   // its way back, once
	Canaries map[string]Canary      `json:"canaries,omitempty"` // who serves the candidate, by instance
	Note     string                 `json:"note,omitempty"`     // why it was taken up as it was, if not as asked

	// Target is what this rollout stands for as target. When it does not
	// succeed and Target is still the fleet's, the fleet's becomes PrevTarget.
	Target version.Ref `json:"target,omitzero"`
}

// A Cursor is a place in a plan.
type Cursor struct {
	Wave  int       `json:"wave"`
	Step  int       `json:"step"`
	Since time.Time `json:"since,omitzero"`  // when the step began
	Epoch int64     `json:"epoch,omitempty"` // of the newest commit that it made in this wave
	// Approved: the pause has what it waits for. It ends with the step.
	Approved bool `json:"approved,omitempty"`
	// Confirmed: what Intent.Revert asks for was said, at whatever step after
	// the last commit.
	Confirmed bool `json:"confirmed,omitempty"`
}

// A Canary is an instance that serves the candidate by name, as it was when
// it became one.
type Canary struct {
	Boot string    `json:"boot"`          // another one means that it died
	Gone time.Time `json:"gone,omitzero"` // since when its ready key is gone
}

// A Condemned digest is never prepared again.
type Condemned struct {
	Digest version.Digest `json:"digest"`
	Why    string         `json:"why"`
	Time   time.Time      `json:"time"`
}

// An AuditEntry is who did what and why, written in the transaction that did it.
type AuditEntry struct {
	Time    time.Time   `json:"time"`
	Who     string      `json:"who"`
	What    string      `json:"what"` // publish, switch, prepare, commit, withdraw, …
	Why     string      `json:"why,omitempty"`
	Rollout string      `json:"rollout,omitempty"`
	Groups  []string    `json:"groups,omitempty"`
	To      version.Ref `json:"to,omitzero"`
}

// A View is every record that decides what happens next, read at one revision
// of etcd.
type View struct {
	At         int64  // etcd's revision at which it was read
	Seed       string // random, new with each view, without spaces: fresh nonces are made of it
	Fleet      Fleet
	Groups     map[string]Assignment
	Prepares   map[string]Prepare          // by group
	Ready      map[string]map[string]Ready // by group, then instance
	Instances  map[string]Instance
	Reports    map[string]Report
	Intents    []Intent  // in the order in which etcd took them, and they are answered
	Rollouts   []Rollout // those not final, by start, then id
	Condemned  map[version.Digest]Condemned
	Served     map[version.Digest]bool    // the fleet has served it
	Baked      map[version.Digest]bool    // a rollout of it was done
	Strategies map[string]Strategy        // by name; the built-in ones are not among them
	Measures   map[string]Measure         // by instance
	Checks     map[string]Checks          // by rollout
	Revisions  map[int64]version.Revision // those that an intent, rollout or fleet names
}

// A Change is one transaction of the controller. It is carried out wholly or
// not at all, and only if no group, prepare, intent or the fleet changed since
// View.At and the controller still holds its term.
type Change struct {
	Groups   []Assignment     // put
	Retire   []string         // groups to delete
	Fleet    *Fleet           // put, if not nil
	Prepares []Prepare        // put
	Withdraw []string         // groups whose prepare is deleted
	Rollouts []Rollout        // put
	Done     []string         // intents to delete
	Condemn  []Condemned      // put
	Serve    []version.Digest // mark as served
	Bake     []version.Digest // mark as baked
	Ready    map[string]Nonce // every registered instance of the group must hold the nonce
	Empty    []string         // groups that must have no registered instance
	Settled  []string         // groups with an override: no instance may have said anything since View.At
	Audit    []AuditEntry
}
