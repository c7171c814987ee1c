package rollout

import (
	"bytes"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"routerd.dev/internal/version"
)

var update = flag.Bool("update", false, "rewrite testdata/*.txt with what Step does now")

// TestTranscripts plays testdata/*.txt. A file is commands, each block of them
// followed by a line ---- and what the controller did. The commands:
//
//	fleet GROUP=A,B… [stable=3,2,1] [fresh]  instances of groups, serving 3 after 2 and 1
//	publish N [groups=G,…] [wait] [timeout=D] [fewer] [from=PARENT]
//	switch N, rollback [N], abort [ID], retire G, recover [from=A]   the same options
//	build A…|*         they read, build, and say so       look A… reads only
//	late A…            builds what it read before, without reading again
//	refuse A N WHY     from now on A refuses revision N    poison A N  building N kills A
//	sick A N         A cannot have revision N any more
//	join A GROUP       starts an instance                  restart A   with another boot id
//	die A…             with its keys                       lapse A…    only the keys: lease lost
//	back               etcd restored from the backup       backup
//	after D            time passes                         step        run the controller
//	run D              both: the controller looks whenever it asked to, until D is over
//	show               groups, target, instances
//
// and those of doPlan. publish, switch: [strategy=NAME] [supersede] [revert=D] besides.
func TestTranscripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no transcripts: %v", err)
	}
	for _, f := range files {
		t.Run(strings.TrimSuffix(filepath.Base(f), ".txt"), func(t *testing.T) {
			want, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			p := &player{w: newWorld(), t: t}
			got := p.play(string(want))
			for _, b := range p.w.broken {
				t.Errorf("broken: %s", b)
			}
			if *update {
				if err := os.WriteFile(f, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if d := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(got, "\n")); d != "" {
				t.Errorf("go test -run Transcripts -update rewrites it (-want +got):\n%s", d)
			}
		})
	}
}

type player struct {
	w      *world
	told   string // of the rollout in the last change that said nothing else
	t      *testing.T
	ids    int
	backup *backup
}

// play runs the commands of a transcript and returns it with the output anew.
func (p *player) play(text string) string {
	var out strings.Builder
	skip := false
	var acc bytes.Buffer
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		switch {
		case line == "----":
			skip = true
			fmt.Fprintf(&out, "----\n%s\n", acc.String())
			acc.Reset()
		case skip && line == "":
			skip = false
		case skip:
		case line == "" || strings.HasPrefix(line, "#"):
			fmt.Fprintln(&out, line)
		default:
			fmt.Fprintln(&out, line)
			p.do(strings.Fields(line), &acc)
		}
	}
	return strings.TrimRight(out.String(), "\n") + "\n"
}

func (p *player) do(f []string, out *bytes.Buffer) {
	w := p.w
	args, opt := f[1:], map[string]string{}
	if f[0] != "fleet" && f[0] != "strategy" {
		args = slices.DeleteFunc(slices.Clone(args), func(a string) bool {
			k, v, ok := strings.Cut(a, "=")
			if ok || a == "wait" || a == "fewer" || a == "full" || a == "supersede" {
				opt[k] = v
				return true
			}
			return false
		})
	}
	each := func(do func(*inst)) {
		if slices.Equal(args, []string{"*"}) {
			args = w.names()
		}
		for _, n := range args {
			if i := w.fleetOf[n]; i == nil {
				p.t.Fatalf("no instance %s", n)
			} else {
				do(i)
			}
		}
	}
	if p.doPlan(append([]string{f[0]}, args...), opt, out) {
		return
	}
	switch f[0] {
	case "fleet":
		p.fleet(args)
	case "publish":
		n := p.number(args[0])
		parent := w.fleet.Target.Number
		needs := w.revisions[n].Needs
		w.publish(n)
		if s := opt["from"]; s != "" {
			parent = p.number(s)
		}
		r := w.revisions[n]
		r.Parent, r.Needs = parent, needs
		w.revisions[n] = r
		p.ask(IntentSwitch, args, opt)
	case "switch", "rollback", "recover":
		p.ask(IntentKind(f[0]), args, opt)
	case "abort":
		if len(args) > 0 {
			opt["rollout"] = args[0]
		}
		p.ask(IntentAbort, nil, opt)
	case "retire":
		opt["groups"] = strings.Join(args, ",")
		p.ask(IntentRetire, nil, opt)
	case "build":
		each(func(i *inst) {
			if i.up {
				w.look(i)
				w.act(i)
			}
		})
	case "look":
		each(w.look)
	case "late":
		each(w.act)
	case "refuse":
		w.bad[args[0]+"/"+args[1]] = strings.Join(args[2:], " ")
	case "sick":
		w.sicken(w.fleetOf[args[0]], p.number(args[1]))
	case "poison":
		w.poison[args[0]+"/"+args[1]] = true
	case "join":
		w.start(args[0], args[1])
	case "restart":
		each(func(i *inst) { w.start(i.name, i.group) })
	case "die":
		each(w.die)
	case "lapse":
		each(w.forget)
	case "backup":
		p.backup = w.save()
	case "back":
		w.restore(p.backup)
	case "after":
		d, err := time.ParseDuration(args[0])
		if err != nil {
			p.t.Fatal(err)
		}
		w.now = w.now.Add(d)
	case "step":
		next := w.step(func(c Change) { p.print(out, c) })
		if !next.IsZero() {
			fmt.Fprintf(out, "look again at +%v\n", next.Sub(epoch0))
		}
	case "run":
		d, err := time.ParseDuration(args[0])
		if err != nil {
			p.t.Fatal(err)
		}
		p.run(out, w.now.Add(d))
	case "show":
		p.show(out)
	default:
		p.t.Fatalf("unknown command %q", f)
	}
}

func (p *player) number(s string) int64 {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		p.t.Fatal(err)
	}
	return n
}

func (p *player) ask(kind IntentKind, args []string, opt map[string]string) {
	p.ids++
	in := Intent{ID: fmt.Sprintf("r%d", p.ids), Kind: kind, Rollout: opt["rollout"], From: opt["from"]}
	if kind != IntentRecover {
		in.From = ""
	}
	if len(args) > 0 {
		in.To = ref(p.number(args[0]))
	}
	if g := opt["groups"]; g != "" {
		in.Groups = strings.Split(g, ",")
	}
	if _, ok := opt["wait"]; ok {
		in.Straggler = StragglerWait
	}
	_, in.AllowFewer = opt["fewer"]
	in.Timeout, _ = time.ParseDuration(opt["timeout"])
	in.Strategy = opt["strategy"]
	_, in.Supersede = opt["supersede"]
	in.Revert, _ = time.ParseDuration(opt["revert"])
	p.w.ask(in)
}

// fleet sets up a fleet that has been running: every instance holds and serves.
func (p *player) fleet(args []string) {
	w := p.w
	var stable []version.Ref
	for _, a := range args {
		k, v, _ := strings.Cut(a, "=")
		if k != "stable" {
			continue
		}
		for _, n := range strings.Split(v, ",") {
			stable = append(stable, ref(p.number(n)))
			w.served[ref(p.number(n)).Digest] = true
			w.publish(p.number(n))
		}
		w.fleet.Target, w.fleet.Committed = stable[0], stable[0]
	}
	for _, a := range args {
		g, v, _ := strings.Cut(a, "=")
		if g == "stable" {
			continue
		}
		names := strings.Split(v, ",")
		as := Assignment{Group: g, Epoch: 10, Nonce: Nonce("in-force-" + g), Ready: len(names), Members: len(names)}
		if len(stable) > 0 {
			as.Stable, as.Back = stable[0], slices.Clone(stable[1:])
			as.Set = (&draft{v: w.view()}).setOf(as.Stable, version.Ref{}, as.Back)
		}
		w.groups[g] = as
		for _, n := range names {
			i := w.start(n, g)
			w.look(i)
			w.act(i)
		}
	}
}

func (p *player) print(out *bytes.Buffer, c Change) {
	fmt.Fprintf(out, "change\n")
	for _, a := range c.Groups {
		fmt.Fprintf(out, "  group %s: %s\n", a.Group, assignment(a))
		if o := a.Override; o != nil {
			fmt.Fprintf(out, "    override, without %v: %s\n", o.Instances, o.Why)
		}
	}
	for _, g := range c.Retire {
		fmt.Fprintf(out, "  group %s: gone\n", g)
	}
	if f := c.Fleet; f != nil {
		fmt.Fprintf(out, "  fleet: target %d, committed %d\n", f.Target.Number, f.Committed.Number)
	}
	for _, x := range c.Prepares {
		fmt.Fprintf(out, "  prepare %s: %s %v", x.Group, x.Nonce, numbers(x.Set))
		if x.First != "" {
			fmt.Fprintf(out, " by %s first", x.First)
		}
		if len(x.Evict) > 0 {
			fmt.Fprintf(out, ", evicting %v", x.Evict)
		}
		fmt.Fprintln(out)
	}
	for _, g := range c.Withdraw {
		fmt.Fprintf(out, "  withdraw %s\n", g)
	}
	for _, x := range c.Condemn {
		fmt.Fprintf(out, "  condemn %s: %s\n", p.name(x.Digest), x.Why)
	}
	for _, d := range c.Serve {
		fmt.Fprintf(out, "  served %s\n", p.name(d))
	}
	for _, r := range c.Rollouts {
		fmt.Fprintf(out, "  rollout %s: %s", r.ID, r.Phase)
		fmt.Fprint(out, place(r))
		if why := saidOf(r); why != "" {
			fmt.Fprintf(out, ": %s", why)
		}
		fmt.Fprintln(out)
		p.printPlan(out, c, r)
	}
	for _, g := range slices.Sorted(maps.Keys(c.Ready)) {
		fmt.Fprintf(out, "  only if all of %s hold %s\n", g, c.Ready[g])
	}
	for _, g := range c.Empty {
		fmt.Fprintf(out, "  only if nobody is registered in %s\n", g)
	}
}

func (p *player) name(d version.Digest) string {
	for n, r := range p.w.revisions {
		if r.Digest == d {
			return fmt.Sprint(n)
		}
	}
	return d.Short()
}

func numbers(refs []version.Ref) []int64 {
	out := make([]int64, len(refs))
	for i, r := range refs {
		out[i] = r.Number
	}
	return out
}

func assignment(a Assignment) string {
	return fmt.Sprintf("epoch %d, stable %d, set %s %v, back %v, ready %d%s", a.Epoch, a.Stable.Number, a.Nonce, numbers(a.Set), numbers(a.Back), a.Ready, candidateText(a))
}

func (p *player) show(out *bytes.Buffer) {
	w := p.w
	for _, g := range slices.Sorted(maps.Keys(w.groups)) {
		fmt.Fprintf(out, "group %s: %s\n", g, assignment(w.groups[g]))
	}
	fmt.Fprintf(out, "target %d, committed %d\n", w.fleet.Target.Number, w.fleet.Committed.Number)
	for _, n := range w.names() {
		i := w.fleetOf[n]
		switch r, ok := w.ready[i.group][n]; {
		case !i.up:
			fmt.Fprintf(out, "%s is down\n", n)
		case i.frozen:
			fmt.Fprintf(out, "%s is frozen, serves %d since epoch %d\n", n, i.stable.Number, i.epoch)
		case !ok:
			fmt.Fprintf(out, "%s is not registered, serves %d since epoch %d\n", n, i.stable.Number, i.epoch)
		case len(r.Lacks) > 0:
			fmt.Fprintf(out, "%s holds %s but for %s, out of traffic %v, serves %d since epoch %d\n", n, r.Nonce, p.name(r.Lacks[0]), r.Evicted, i.stable.Number, i.epoch)
		case r.Evicted:
			fmt.Fprintf(out, "%s is evicted, serves %d since epoch %d\n", n, i.stable.Number, i.epoch)
		case r.Refused:
			fmt.Fprintf(out, "%s refused %s, serves %d since epoch %d\n", n, r.Nonce, i.stable.Number, i.epoch)
		default:
			fmt.Fprintf(out, "%s holds %s, serves %d since epoch %d\n", n, r.Nonce, i.stable.Number, i.epoch)
		}
	}
}
