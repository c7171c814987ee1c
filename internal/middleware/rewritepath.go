package middleware

import (
	"regexp"
	"regexp/syntax"
	"slices"
	"strconv"
	"strings"

	"routerd.dev/internal/route"
)

type rewritePathConfig struct {
	To      string `json:"to,omitempty" jsonschema_description:"The new path; {name} stands for that parameter of the route, as it came. Either this, or regex and replace."`
	Regex   string `json:"regex,omitempty" jsonschema_description:"RE2 expression for the whole path in canonical form. A path that it does not match is left as it is."`
	Replace string `json:"replace,omitempty" jsonschema_description:"The new path for one that regex matched; $1 or ${name} stands for a group, $$ for a dollar sign."`
}

// Limits of a regular expression, so that no snapshot makes an instance spend
// much on compiling or running one.
const (
	maxRegexBytes = route.MaxRegexpBytes
	maxRegexInsts = route.MaxRegexpProgram
)

var _ = register(rewritePathKind())

func rewritePathKind() Kind {
	k := newKind("rewritePath",
		"Replaces the path that is forwarded, by a template or a regular expression. A result that is not a path is answered with 400.",
		func(c *rewritePathConfig, env Env, ps *problems) *Head {
			switch {
			case c.To != "" && c.Regex+c.Replace != "":
				ps.add("to", "keep one of them", "stands beside regex and replace")
				return nil
			case c.To != "":
				return rewriteByTemplate(c.To, env, ps)
			case c.Regex != "" && c.Replace != "":
				return rewriteByRegex(c, env, ps)
			default:
				ps.add("", "", "needs to, or both regex and replace")
				return nil
			}
		})
	k.params = func(config string) []string {
		var (
			c      rewritePathConfig
			ps     problems
			params []string
		)
		if decode(config, &c, &ps); len(ps) == 0 {
			for _, p := range parseTemplate(c.To, &ps) {
				if p.param != "" {
					params = append(params, p.param)
				}
			}
		}
		if len(ps) > 0 {
			return nil
		}
		slices.Sort(params)
		return slices.Compact(params)
	}
	return k
}

// A piece of a template is text as it is forwarded, or a parameter.
type piece struct{ text, param string }

func rewriteByTemplate(to string, env Env, ps *problems) *Head {
	pieces := parseTemplate(to, ps)
	if len(*ps) > 0 {
		return nil
	}
	var sample strings.Builder
	for _, p := range pieces {
		sample.WriteString(p.text)
		if p.param != "" {
			sample.WriteByte('x')
		}
	}
	checkPath("to", sample.String(), ps)
	return &Head{Request: func(x *Exchange) *Answer {
		var buf [256]byte
		path := buf[:0]
		for i := range pieces {
			if pieces[i].param == "" {
				path = append(path, pieces[i].text...)
				continue
			}
			p, ok := x.Param(pieces[i].param)
			if !ok {
				return &Answer{Status: 500, Body: "the route has no parameter for its path to be rewritten with\n"}
			}
			if path = append(path, p.Raw...); len(path) > route.MaxPathBytes {
				return badPath(route.PathTooLong) // however often the template repeats it
			}
		}
		return forward(x, string(path), env.Path)
	}}
}

func rewriteByRegex(c *rewritePathConfig, env Env, ps *problems) *Head {
	re := compileRegex(c.Regex, ps)
	// What stands in for a group may be anything, so only what holds for every
	// result can be checked here.
	if !strings.HasPrefix(c.Replace, "/") && !strings.HasPrefix(c.Replace, "$") {
		ps.add("replace", "", "does not begin with /")
	}
	if strings.ContainsAny(c.Replace, "?#") {
		ps.add("replace", "escape it, or leave the query as it is", "holds ? or #, which are not part of a path")
	}
	if re == nil {
		return nil
	}
	groups := groupsOf(re, c.Replace, ps)
	options := route.PathOptions{AllowEncodedSlash: true, MergeSlashes: true}
	return &Head{Request: func(x *Exchange) *Answer {
		path, err := route.CanonicalPath(x.Path, options)
		if err != nil {
			return badPath(err)
		}
		match := re.FindStringSubmatchIndex(path)
		if match == nil {
			return nil
		}
		size := 0
		for _, g := range groups {
			if size += match[2*g+1] - match[2*g]; size > route.MaxPathBytes {
				return badPath(route.PathTooLong) // before it is made: replace may repeat a group thousands of times
			}
		}
		return forward(x, string(re.ExpandString(nil, c.Replace, path, match)), env.Path)
	}}
}

// groupsOf gives the groups that replace refers to, each as often as it does. It
// reports those that the expression lacks: regexp would put nothing for them,
// and reads $1x as the group 1x.
func groupsOf(re *regexp.Regexp, replace string, ps *problems) (groups []int) {
	for rest := replace; ; {
		_, after, found := strings.Cut(rest, "$")
		if !found {
			return groups
		}
		if strings.HasPrefix(after, "$") {
			rest = after[1:]
			continue
		}
		name, braced := strings.CutPrefix(after, "{")
		end := 0
		for end < len(name) && (name[end] == '_' || name[end] >= '0' && name[end] <= '9' || name[end] >= 'a' && name[end] <= 'z' || name[end] >= 'A' && name[end] <= 'Z') {
			end++
		}
		if end == 0 || braced && !strings.HasPrefix(name[end:], "}") {
			ps.add("replace", "write $1, ${name}, or $$ for a dollar sign", "bad reference to a group")
			return nil
		}
		n, err := strconv.Atoi(name[:end])
		if err != nil {
			n = re.SubexpIndex(name[:end])
		}
		if n < 0 || n > re.NumSubexp() {
			ps.add("replace", "write ${1} where a letter or digit follows", "regex has no group %s", name[:end])
			return nil
		}
		groups = append(groups, n)
		rest = name[end:]
	}
}

func compileRegex(expr string, ps *problems) *regexp.Regexp {
	if len(expr) > maxRegexBytes {
		ps.add("regex", "", "has %d bytes, at most %d are allowed", len(expr), maxRegexBytes)
		return nil
	}
	anchored := `\A(?:` + expr + `)\z`
	if _, err := syntax.Parse(expr, syntax.Perl); err != nil {
		ps.add("regex", "", "%v", err)
		return nil
	}
	parsed, err := syntax.Parse(anchored, syntax.Perl)
	if err != nil {
		ps.add("regex", "", "%v", err)
		return nil
	}
	prog, err := syntax.Compile(parsed.Simplify())
	if err != nil || len(prog.Inst) > maxRegexInsts {
		ps.add("regex", "use fewer or smaller repetitions", "is too large")
		return nil
	}
	re, err := regexp.Compile(anchored)
	if err != nil {
		ps.add("regex", "", "%v", err)
		return nil
	}
	return re
}

// forward sets the path, if it is one by the rules of the listener.
func forward(x *Exchange, path string, o route.PathOptions) *Answer {
	if err := route.CheckRewrite(path, o); err != nil {
		return badPath(err)
	}
	x.Path = path
	return nil
}

func badPath(err error) *Answer {
	return &Answer{Status: 400, Body: "the rewritten path is not valid: " + err.Error() + "\n"}
}

func checkPath(field, path string, ps *problems) {
	if err := route.CheckRewrite(path, route.PathOptions{}); err != nil {
		ps.add(field, "", "%v", err)
	}
}

// parseTemplate cuts a template at its parameters. Text is escaped where it
// may not stand raw in a path; escapes are kept.
func parseTemplate(to string, ps *problems) []piece {
	var pieces []piece
	for rest := to; rest != ""; {
		text, after, found := strings.Cut(rest, "{")
		if strings.ContainsAny(text, "?#}") {
			ps.add("to", "escape it, or leave the query as it is", "holds one of ?, # and }")
			return nil
		}
		if text != "" {
			pieces = append(pieces, piece{text: escapePath(text)})
		}
		if !found {
			return pieces
		}
		name, after, closed := strings.Cut(after, "}")
		name = strings.TrimSuffix(name, "...")
		if !closed || name == "" || strings.ContainsAny(name, "{/") {
			ps.add("to", "write {name}", "bad parameter")
			return nil
		}
		pieces = append(pieces, piece{param: name})
		rest = after
	}
	return pieces
}

func escapePath(text string) string {
	segments := strings.Split(text, "/")
	for i, s := range segments {
		parts := strings.Split(s, "%") // an escape stays; a bad one is found by checkPath
		for j := range parts {
			parts[j] = route.EncodeParam(parts[j])
		}
		segments[i] = strings.Join(parts, "%")
	}
	return strings.Join(segments, "/")
}
