package main

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"routerd.dev/internal/cli"
	"routerd.dev/internal/daemon"
)

// routectlPage describes every command of routectl, in the order of its help.
func routectlPage() []byte {
	root := cli.New(cli.Env{Getenv: func(string) string { return "" }})
	var b bytes.Buffer
	b.WriteString(generated + "# routectl\n\n")
	prose(&b, root.Long)
	b.WriteString("## Flags of every command\n\nAn environment variable stands in for a flag that is not given.\n\n")
	flagTable(&b, root.PersistentFlags(), "ROUTECTL_")
	b.WriteString(codesTable)
	for _, c := range root.Commands() {
		command(&b, c, 2)
	}
	return b.Bytes()
}

// codesTable is what scripts rely on.
const codesTable = `
ROUTECTL_AUTHOR is who a revision is by; without it, user@host.

## Exit codes

| code | means |
|---|---|
| 0 | done |
| 1 | failed: etcd, a file that cannot be read, a refusal by an instance, a rollout that went back |
| 2 | the command line is wrong |
| 3 | the routes, or a strategy, are wrong |
| 4 | somebody else changed it first, or a flag must allow it |
| 5 | not every instance got there in time |
| 6 | ` + "`diff --exit-code`" + ` found differences |

Standard output is data, in the form that ` + "`-o`" + ` asks for; errors, warnings and progress go to standard error.

`

func command(b *bytes.Buffer, c *cobra.Command, level int) {
	fmt.Fprintf(b, "%s %s\n\n```\n%s\n```\n\n", strings.Repeat("#", level), c.CommandPath(), c.UseLine())
	text := c.Long
	if text == "" {
		text = c.Short + "."
	}
	prose(b, text)
	if c.LocalNonPersistentFlags().HasAvailableFlags() {
		flagTable(b, c.LocalNonPersistentFlags(), "")
		b.WriteByte('\n')
	}
	if c.Example != "" {
		lines := strings.Split(c.Example, "\n")
		for i := range lines {
			lines[i] = strings.TrimPrefix(lines[i], "  ")
		}
		fmt.Fprintf(b, "```\n%s\n```\n\n", strings.Join(lines, "\n"))
	}
	for _, sub := range c.Commands() {
		command(b, sub, level+1)
	}
}

// prose writes a help text: what is indented there is a block here.
func prose(b *bytes.Buffer, text string) {
	for p := range strings.SplitSeq(text, "\n\n") {
		if strings.HasPrefix(p, "  ") {
			p = "```\n" + strings.ReplaceAll(strings.TrimPrefix(p, "  "), "\n  ", "\n") + "\n```"
		}
		b.WriteString(p + "\n\n")
	}
}

// flagTable lists flags by name; with env, beside each the variable that
// stands in for it.
func flagTable(b *bytes.Buffer, fs *pflag.FlagSet, env string) {
	head, rule := "| flag | default | means |\n", "|---|---|---|\n"
	if env != "" {
		head, rule = "| flag | variable | default | means |\n", "|---|---|---|---|\n"
	}
	b.WriteString(head + rule)
	fs.VisitAll(func(f *pflag.Flag) {
		if f.Hidden || f.Name == "help" {
			return
		}
		name := "`--" + f.Name + "`"
		if f.Shorthand != "" {
			name = "`-" + f.Shorthand + "`, " + name
		}
		if env != "" {
			name += " | `" + env + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_")) + "`"
		}
		fmt.Fprintf(b, "| %s | %s | %s |\n", name, defaultOf(f), strings.ReplaceAll(f.Usage, "|", "\\|"))
	})
}

func defaultOf(f *pflag.Flag) string {
	switch s := strings.Trim(f.DefValue, "[]"); {
	case f.Name == "instance":
		return "the host's name"
	case s == "" || s == "false":
		return ""
	default:
		return "`" + s + "`"
	}
}

// routerdPage describes the commands of routerd and every setting.
func routerdPage() []byte {
	var cfg daemon.Config
	settings := pflag.NewFlagSet("", pflag.ContinueOnError)
	cfg.Flags(settings)
	var b bytes.Buffer
	b.WriteString(generated + routerdIntro)
	settings.SortFlags = false
	flagTable(&b, settings, "ROUTERD_")
	of := func(add func(*pflag.FlagSet)) {
		fs := pflag.NewFlagSet("", pflag.ContinueOnError)
		add(fs)
		fs.SortFlags = false
		flagTable(&b, fs, "")
	}
	b.WriteString(routerdDev)
	of(new(daemon.DevOptions).Flags)
	b.WriteString(routerdCtl + routerdProbe)
	of(new(daemon.ProbeOptions).Flags)
	b.WriteString(routerdUpstream)
	of(new(daemon.UpstreamOptions).Flags)
	return b.Bytes()
}

const routerdIntro = `# routerd

Exit codes: 0 ended as asked, 1 failed, 2 the command line or the settings are wrong.

## routerd serve

` + "```" + `
routerd serve [--config FILE] [--print-config] [flags]
` + "```" + `

Runs one instance of a fleet until SIGTERM or SIGINT, and then drains it:
readiness goes, requests finish within ` + "`--drain-timeout`" + `, the lease is given back. A second signal ends it at once.

Every setting has one name as a key of the configuration file, as an
environment variable and as a flag. A flag is stronger than the environment, the environment than the
file. An unknown key or variable is an error. ` + "`--print-config`" + ` shows every setting with where it came from, and ends.
The file is named by ` + "`--config`" + ` or ROUTERD_CONFIG and is one YAML map:

` + "```yaml" + `
group: edge
endpoints: [etcd1:2379, etcd2:2379, etcd3:2379]
http: ":80"
state-dir: /var/lib/routerd
` + "```" + `

`

const routerdDev = `
Telemetry is exported by the standard OTEL_ variables of OpenTelemetry; [metrics.md](metrics.md) lists what there is.

## routerd dev

` + "```" + `
routerd dev [flags]
` + "```" + `

Runs a whole fleet in one process: an etcd, instances in two groups behind one
front port that balances over them, two example upstreams, and the examples published as revision 1. It needs no set-up and
leaves nothing behind; ` + "`make run`" + ` starts it.

`

const routerdCtl = `
## routerd ctl

` + "```" + `
routerd ctl status [--json]
routerd ctl pin REVISION|DIGEST [-m WHY] [--by WHO]
routerd ctl unpin
routerd ctl forgive
` + "```" + `

Orders to the instance on this machine, by its unix socket (` + "`--control`" + `, by default control.sock in the state directory, which only
the instance's user may open). They need no etcd: this is the way out when a revision does harm and etcd cannot be written.
` + "`--state-dir`, `--control` and `--config`" + ` say which instance is meant, and the environment variables of ` + "`serve`" + ` are read too.

` + "`pin`" + ` serves a revision that the instance holds in memory or remembers on disk, named by its number or the beginning of its digest (four
digits at least), whatever is committed, until ` + "`unpin`" + `. A restart does not end it. The instance keeps following the epochs of its group, prepares what it is
asked to, stays ready, takes part in no analysis and is never evicted. It says that it is pinned in ` + "`/readyz`, `/v1/status`" + `, its report to the fleet, the metric
` + "`routerd.pinned`" + `, and once a minute in the log. Other instances are not touched: pin each. A pin to what can no longer be had after a restart is not
obeyed, and the log says so: serving what the group is assigned is better than serving nothing.

` + "`forgive`" + ` ends every quarantine of the instance: what crashed it is tried again, at once where it is what the group is assigned. Two crashes
more bring the quarantine back.

` + "`status`" + ` shows what is served, the pin, and what the instance can be pinned to.
`

const routerdProbe = `
## routerd probe

` + "```" + `
routerd probe [URL] [flags]
` + "```" + `

A health check for containers and scripts, which needs neither shell nor curl: it asks once, says the answer in one line, and ends with 0
when it was a 2xx, and with 1 when it was anything else or too late. It follows no redirect and takes no proxy.

Without a URL it asks the instance on this machine: ` + "`/readyz`" + ` of its admin listener, or ` + "`/healthz`" + ` with ` + "`--alive`" + `. It finds the listener as
` + "`serve`" + ` does, by ROUTERD_ADMIN, ROUTERD_CONFIG or ` + "`--config`" + `, or by ` + "`--admin`" + `; so give settings to a container by environment or file, and its health
check sees them too. A container is to be restarted when it is not alive, and to get no requests while it is not ready: an instance that waits for
etcd is alive.

` + "```" + `
routerd probe
routerd probe --alive --timeout 1s
routerd probe http://127.0.0.1:2381/health
routerd probe https://etcd-1:2379/health --ca ca.pem --cert probe.pem --key probe-key.pem
` + "```" + `

The third asks an etcd that has ` + "`--listen-metrics-urls http://127.0.0.1:2381`" + `, the fourth one that asks for client certificates.

`

const routerdUpstream = `
## routerd upstream

` + "```" + `
routerd upstream [flags]
` + "```" + `

An example upstream, to have something to send requests to: it says what it was asked, and streams the time at ` + "`/events`" + `. ` + "`dev`" + ` runs two of them.

`
