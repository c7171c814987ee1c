package rollout

import (
	"fmt"
	"math"
	"net/url"
	"slices"
	"strings"
	"time"

	"routerd.dev/internal/analysis"
)

// Validate returns every problem of s, each as "field.path: what", in the
// order of the fields; none for a strategy that can be played.
func (s *Strategy) Validate() []string {
	var p problems
	if !validName(s.Name) {
		p.add("name", "%.40q: want 1 to 63 letters, digits, dots, dashes or underscores, the first a letter or digit", s.Name)
	}
	if len(s.Waves) == 0 {
		p.add("waves", "want at least one")
	}
	p.groups(s.Waves)
	steps := 0
	for _, w := range s.Waves {
		steps += len(w.Steps)
	}
	if steps > maxSteps {
		p.add("waves", "%d steps in all: want at most %d, for every rollout keeps a copy of its strategy", steps, maxSteps)
	}
	for i := range s.Waves {
		p.wave(fmt.Sprintf("waves[%d]", i), &s.Waves[i])
	}
	p.policies(s)
	return p
}

// maxSteps bounds a strategy: each rollout keeps a copy of its own, which every
// write of its progress writes again.
const maxSteps = 200

type problems []string

func (p *problems) add(path, format string, a ...any) {
	*p = append(*p, path+": "+fmt.Sprintf(format, a...))
}

func validName(s string) bool {
	plain := func(c byte) bool { return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' }
	if s == "" || len(s) > 63 || !plain(s[0]) {
		return false
	}
	for i := range len(s) {
		if !plain(s[i]) && !strings.ContainsRune("._-", rune(s[i])) {
			return false
		}
	}
	return true
}

// groups finds groups that two waves would move.
func (p *problems) groups(waves []Wave) {
	in := make(map[string]string)
	for i, w := range waves {
		path := fmt.Sprintf("waves[%d].groups", i)
		if len(w.Groups) == 0 {
			p.add(path, `want names of groups, or "*" for those that no other wave names`)
		}
		for j, g := range w.Groups {
			at := fmt.Sprintf("%s[%d]", path, j)
			first, twice := in[g]
			switch {
			case g != everyOther && !validName(g):
				p.add(at, "%.40q is no name of a group", g)
			case twice && g == everyOther:
				p.add(at, `there is a "*" already, at %s`, first)
			case twice:
				p.add(at, "group %s is in a wave already, at %s", g, first)
			default:
				in[g] = at
			}
		}
	}
}

func (p *problems) policies(s *Strategy) {
	if !slices.Contains([]Straggler{"", StragglerAbort, StragglerWait, StragglerEvict}, s.Straggler) {
		p.add("straggler", "%.40q: want abort, wait or evict", s.Straggler)
	}
	p.duration("prepareTimeout", s.PrepareTimeout)
	p.quantity("maxUnready", s.MaxUnready, false)
	if !slices.Contains([]Loss{"", LossHold, LossRollback}, s.OnControllerLoss) {
		p.add("onControllerLoss", "%.40q: want hold or rollback", s.OnControllerLoss)
	}
	p.duration("controllerGrace", s.ControllerGrace)
	if g := time.Duration(s.ControllerGrace); g > 0 && g < leastGrace {
		p.add("controllerGrace", "%v: want at least %v, in which a controller looks after it again", g, leastGrace)
	}
}

// A walk is what the steps before one mean for it.
type walk struct {
	canary    Quantity
	share     float64 // -1 before the first
	key       string
	matched   bool
	candidate bool // some requests reach it
	commit    string
}

func (p *problems) wave(path string, w *Wave) {
	if len(w.Steps) == 0 {
		p.add(path+".steps", "want steps, one of them a commit")
		return
	}
	at := walk{share: -1}
	for i := range w.Steps {
		p.step(fmt.Sprintf("%s.steps[%d]", path, i), &w.Steps[i], &at)
	}
	if at.commit == "" {
		p.add(path+".steps", "want a commit: without it the wave's groups never serve the revision for good")
	}
}

// kinds names what s is; one, if it is right.
func (s *PlanStep) kinds() []string {
	var out []string
	for _, k := range []struct {
		name string
		set  bool
	}{
		{"canary", s.Canary != nil},
		{"share", s.Share != nil},
		{"match", s.Match != nil},
		{"analysis", s.Analysis != nil},
		{"pause", s.Pause != nil},
		{"commit", s.Commit != nil},
		{"bake", s.Bake != nil},
	} {
		if k.set {
			out = append(out, k.name)
		}
	}
	return out
}

// Kind names what s does: canary, share, match, analysis, pause, commit or
// bake.
func (s *PlanStep) Kind() string { return strings.Join(s.kinds(), " and ") }

func (p *problems) step(path string, s *PlanStep, at *walk) {
	kinds := s.kinds()
	switch {
	case len(kinds) == 0:
		p.add(path, "want one of canary, share, match, analysis, pause, commit and bake")
		return
	case len(kinds) > 1:
		p.add(path, "%s in one step: make each a step of its own", strings.Join(kinds, " and "))
		return
	}
	path += "." + kinds[0]
	if at.commit != "" && (s.Canary != nil || s.Share != nil || s.Match != nil) {
		p.add(path, "comes after the commit, when there is no candidate any more")
	}
	switch {
	case s.Canary != nil:
		p.canary(path, s.Canary, at)
	case s.Share != nil:
		p.share(path, s.Share, at)
	case s.Match != nil:
		p.match(path, s.Match, at)
	case s.Analysis != nil:
		p.analysis(path, s.Analysis, at)
	case s.Pause != nil:
		p.pause(path, s.Pause, at)
	case s.Commit != nil:
		if at.commit != "" {
			p.add(path, "the wave commits already, at %s", at.commit)
			return
		}
		at.commit = path
	case s.Bake != nil:
		p.bake(path, s.Bake, at)
	}
}

func (p *problems) canary(path string, s *CanaryStep, at *walk) {
	if at.share >= 0 {
		p.add(path, "comes after a share: clients would go back to stable")
	}
	path += ".instances"
	p.quantity(path, s.Instances, true)
	if at.canary != "" && less(s.Instances, at.canary) {
		p.add(path, "%s after %s: who is a canary stays one", s.Instances, at.canary)
	}
	at.canary, at.candidate = s.Instances, true
}

// less tells that a is fewer than b in every group; a number and a part are
// not compared.
func less(a, b Quantity) bool {
	if strings.HasSuffix(string(a), "%") != strings.HasSuffix(string(b), "%") {
		return false
	}
	x, err := a.Of(10000)
	y, berr := b.Of(10000)
	return err == nil && berr == nil && x < y
}

func (p *problems) share(path string, s *ShareStep, at *walk) {
	switch {
	case !(s.Percent >= 0 && s.Percent <= 100): // also not a number
		p.add(path+".percent", "%v: want 0 to 100", s.Percent)
	case math.Abs(s.Percent*100-math.Round(s.Percent*100)) > 1e-6:
		p.add(path+".percent", "%v: want steps of 0.01", s.Percent)
	case s.Percent <= at.share:
		p.add(path+".percent", "%v after %v: a share only grows", s.Percent, at.share)
	}
	if why := keyProblem(s.key()); why != "" {
		p.add(path+".key", "%.60q: %s", s.Key, why)
	}
	if at.share >= 0 && s.key() != at.key {
		p.add(path+".key", "%.60q after %.60q: another key would send clients back to stable", s.key(), at.key)
	}
	at.share, at.key, at.candidate = s.Percent, s.key(), true
}

// keyProblem says what is wrong with the key of a share.
func keyProblem(key string) string {
	kind, name, _ := strings.Cut(key, ":")
	switch {
	case key == "client", (kind == "header" || kind == "cookie") && isToken(name):
		return ""
	case kind == "header", kind == "cookie":
		return "want " + kind + ":NAME, a name of letters, digits and dashes"
	}
	return "want client, header:NAME or cookie:NAME"
}

// isToken tells whether s may name a header or a cookie (RFC 9110, 5.6.2).
func isToken(s string) bool {
	for i := range len(s) {
		c := s[i]
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0) {
			return false
		}
	}
	return s != "" && len(s) <= 256
}

func (p *problems) match(path string, s *MatchStep, at *walk) {
	if at.matched {
		p.add(path, "there is a match already: testers stay testers until the commit")
	}
	at.matched, at.candidate = true, true
	switch {
	case (s.Header == "") == (s.Cookie == ""):
		p.add(path, "want either a header or a cookie")
	case s.Header != "" && !isToken(s.Header):
		p.add(path+".header", "%.60q is no name of a header", s.Header)
	case s.Cookie != "" && !isToken(s.Cookie):
		p.add(path+".cookie", "%.60q is no name of a cookie", s.Cookie)
	}
}

func (p *problems) analysis(path string, s *AnalysisStep, at *walk) {
	switch {
	case at.commit != "":
		p.add(path, "comes after the commit: watch what is committed with bake")
	case !at.candidate:
		p.add(path, "nothing reaches the candidate yet: put a canary, share or match before it")
	}
	p.config(path, &s.Config)
	p.duration(path+".inconclusiveLimit", s.InconclusiveLimit)
	p.checks(path+".checks", s.Checks)
}

func (p *problems) config(path string, c *analysis.Config) {
	for _, problem := range c.Validate() {
		field, what, _ := strings.Cut(problem, ": ")
		p.add(path+"."+field, "%s", what)
	}
}

func (p *problems) pause(path string, s *PauseStep, at *walk) {
	p.duration(path+".for", s.For)
	if s.For == 0 && !s.Approval {
		p.add(path, "never ends: want for, approval or both")
	}
	switch {
	case s.Otherwise != "" && s.Otherwise != OtherwiseRollback && s.Otherwise != OtherwiseContinue:
		p.add(path+".otherwise", "%.40q: want rollback or continue", s.Otherwise)
	case s.Otherwise != "" && !(s.Approval && s.For > 0):
		p.add(path+".otherwise", "means nothing without both approval and for")
	}
	if s.Unjudged && !at.candidate && at.commit == "" {
		p.add(path+".unjudged", "means nothing before anything reaches the candidate")
	}
}

func (p *problems) bake(path string, s *BakeStep, at *walk) {
	if at.commit == "" {
		p.add(path, "comes before the commit: compare a candidate with analysis")
	}
	p.duration(path+".for", s.For)
	if s.For == 0 && s.Requests == 0 && len(s.Checks) == 0 {
		p.add(path, "is over before anything is counted: want for, requests or checks")
	}
	if s.Config != nil {
		p.config(path+".analysis", s.Config)
	}
	p.checks(path+".checks", s.Checks)
}

func (p *problems) checks(path string, checks []Check) {
	names := make(map[string]bool)
	for i := range checks {
		p.check(fmt.Sprintf("%s[%d]", path, i), &checks[i], names)
	}
}

func (p *problems) check(path string, c *Check, names map[string]bool) {
	switch {
	case !validName(c.Name):
		p.add(path+".name", "%.40q: want 1 to 63 letters, digits, dots, dashes or underscores", c.Name)
	case names[c.Name]:
		p.add(path+".name", "%s is the name of another check of this step", c.Name)
	}
	names[c.Name] = true
	switch {
	case (c.Web == nil) == (c.Prometheus == nil):
		p.add(path, "want either web or prometheus")
	case c.Web != nil:
		p.url(path+".web.url", c.Web.URL)
		if c.Web.Method != "" && !isToken(c.Web.Method) {
			p.add(path+".web.method", "%.40q is no method", c.Web.Method)
		}
		p.headers(path+".web.headers", c.Web.Headers)
	default:
		p.url(path+".prometheus.address", c.Prometheus.Address)
		if strings.TrimSpace(c.Prometheus.Query) == "" {
			p.add(path+".prometheus.query", "want a query")
		}
		p.headers(path+".prometheus.headers", c.Prometheus.Headers)
	}
	p.duration(path+".every", c.Every)
	p.duration(path+".timeout", c.Timeout)
	p.bounds(path, c)
}

func (p *problems) bounds(path string, c *Check) {
	for _, b := range []struct {
		name string
		v    *float64
	}{{"min", c.Min}, {"max", c.Max}} {
		if b.v != nil && (math.IsNaN(*b.v) || math.IsInf(*b.v, 0)) {
			p.add(path+"."+b.name, "want a number")
		}
	}
	switch {
	case c.Min == nil && c.Max == nil:
		p.add(path, "want min, max or both: without them every answer passes")
	case c.Min != nil && c.Max != nil && *c.Min > *c.Max:
		p.add(path+".min", "%v is more than max, %v", *c.Min, *c.Max)
	}
	for _, n := range []struct {
		name string
		v    int
	}{
		{"failureLimit", c.FailureLimit},
		{"errorLimit", c.ErrorLimit},
		{"inconclusiveLimit", c.InconclusiveLimit},
		{"passes", c.Passes},
	} {
		if n.v < 0 {
			p.add(path+"."+n.name, "%d: want at least 0", n.v)
		}
	}
}

func (p *problems) url(path, s string) {
	u, err := url.Parse(s)
	switch {
	case err != nil:
		p.add(path, "%.200q is no URL", s)
	case u.Scheme != "http" && u.Scheme != "https" || u.Host == "":
		p.add(path, "%.200q: want http://HOST or https://HOST, and a path", s)
	case u.User != nil:
		p.add(path, "holds a user or password: put it into a header, as env:NAME")
	}
}

// headers refuses what is no header, and secrets that stand in the strategy.
func (p *problems) headers(path string, h map[string]string) {
	for _, name := range sorted(h) {
		at, v := path+"."+name, h[name]
		env, fromEnv := strings.CutPrefix(v, "env:")
		switch secret := strings.ToLower(name); {
		case !isToken(name):
			p.add(at, "is no name of a header")
		case strings.ContainsAny(v, "\r\n\x00"):
			p.add(at, "holds a line break")
		case fromEnv && (!isToken(env) || strings.ContainsAny(env, "=$%")):
			p.add(at, "want env:NAME, the name of the controller's environment variable")
		case !fromEnv && (secret == "authorization" || secret == "cookie" || secret == "proxy-authorization"):
			p.add(at, "is a secret, and strategies are stored in plain: use env:NAME")
		}
	}
}

func (p *problems) duration(path string, d Duration) {
	if d < 0 {
		p.add(path, "%v: want at least 0", time.Duration(d))
	}
}

func (p *problems) quantity(path string, q Quantity, atLeastOne bool) {
	n, err := q.Of(10000)
	switch {
	case err != nil:
		p.add(path, "%v", err)
	case n == 0 && (atLeastOne || q != ""):
		p.add(path, "%.40q: want at least one", q)
	}
}
