package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Between these lines a document has what the program writes.
const (
	markBegin = "<!-- scale: begin; written by make scale -->"
	markEnd   = "<!-- scale: end -->"
)

// write puts the report into a folder of documents: scale/scale.json,
// scale/scale.svg, and the tables between the marks in scale.md.
func (r Report) write(dir string) error {
	document := filepath.Join(dir, "scale.md")
	old, err := os.ReadFile(document)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("write %s: there is none: name the folder with -dir", document)
	case err != nil:
		return err
	}
	text, err := between(old, r.markdown())
	if err != nil {
		return fmt.Errorf("write %s: %w", document, err)
	}
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(dir, "scale"), 0o755); err != nil {
		return err
	}
	for name, b := range map[string][]byte{
		document:                               text,
		filepath.Join(dir, "scale/scale.json"): append(data, '\n'),
		filepath.Join(dir, "scale/scale.svg"):  r.plot(),
	} {
		if err := os.WriteFile(name, b, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// between replaces what stands between the marks.
func between(document []byte, text string) ([]byte, error) {
	head, rest, begun := bytes.Cut(document, []byte(markBegin))
	_, tail, ended := bytes.Cut(rest, []byte(markEnd))
	if !begun || !ended {
		return nil, fmt.Errorf("want a line %q and below it a line %q", markBegin, markEnd)
	}
	return fmt.Appendf(nil, "%s%s\n\n%s\n%s%s", head, markBegin, text, markEnd, tail), nil
}

// A column of a table: what it is called and what it says of a size.
type column struct {
	head string
	cell func(Size) string
}

// table writes one line a size.
func (r Report) table(b *strings.Builder, columns []column) {
	row := func(cell func(column) string) {
		for _, c := range columns {
			b.WriteString("| " + cell(c) + " ")
		}
		b.WriteString("|\n")
	}
	row(func(c column) string { return c.head })
	row(func(column) string { return "---:" })
	for _, s := range r.Sizes {
		row(func(c column) string { return c.cell(s) })
	}
	b.WriteString("\n")
}

func instances(s Size) string { return thousands(s.Instances) }

func thousands(n int) string {
	if n < 1000 {
		return fmt.Sprint(n)
	}
	return fmt.Sprintf("%s,%03d", thousands(n/1000), n%1000)
}

// markdown is what the run found, for people.
func (r Report) markdown() string {
	var b strings.Builder
	members := "one member"
	if r.Members > 1 {
		members = fmt.Sprintf("%d members, added up,", r.Members)
	}
	fmt.Fprintf(&b, "Measured on %s with %s, %d processors for everything, load average before: %s. etcd: %s with its own defaults. A table of %d routes in %d modules.\n\n",
		r.Began.Format("2006-01-02"), r.Go, r.Processors, r.Load, members, r.Routes, r.Modules)

	fmt.Fprintf(&b, "While nothing happens (%.0f s):\n\n", r.IdleFor)
	r.table(&b, []column{
		{"instances", instances},
		{"etcd, % of a processor", func(s Size) string { return fmt.Sprintf("%.1f", s.Idle.percent()) }},
		{"ms of it an instance and second", func(s Size) string { return fmt.Sprintf("%.2f", 10*s.Idle.percent()/float64(s.Instances)) }},
		{"memory, MiB", func(s Size) string { return fmt.Sprintf("%.0f", s.IdleMiB) }},
		{"writes/s", func(s Size) string { return rate(s.Idle.Puts, s.Idle) }},
		{"stored, KiB/s", func(s Size) string { return rate(s.Idle.Stored/1024, s.Idle) }},
		{"sent + received, KiB/s", func(s Size) string { return rate((s.Idle.Sent+s.Idle.Received)/1024, s.Idle) }},
		{"a read, p99", func(s Size) string { return duration(s.Idle.AnswerP99) }},
	})

	b.WriteString("A switch: one route of one module changed; and a rollback, which prepares nothing. Since it was asked for:\n\n")
	r.table(&b, []column{
		{"instances", instances},
		{"half have switched", func(s Size) string { return duration(s.Publish.P50) }},
		{"the last has", func(s Size) string { return duration(s.Publish.Last) }},
		{"of it preparing", func(s Size) string { return duration(s.Prepared) }},
		{"commit", func(s Size) string { return duration(s.Commit) }},
		{"etcd, s of a processor", func(s Size) string { return fmt.Sprintf("%.2f", s.Publish.EtcdCPU) }},
		{"agents, s", func(s Size) string { return fmt.Sprintf("%.1f", s.Publish.AgentsCPU) }},
		{"rollback: half", func(s Size) string { return duration(s.Rollback.P50) }},
		{"rollback: last", func(s Size) string { return duration(s.Rollback.Last) }},
		{"routectl status", func(s Size) string { return duration(s.StatusMs) }},
	})

	fmt.Fprintf(&b, "Storms. Joining: all start at once. The first table: each fetches and compiles all of it. etcd killed: all connections cut, %.0f s later it is back; until every watch stands again. Leases: all revoked at once; until all have joined again:\n\n", r.AwayFor)
	var columns []column
	columns = append(columns, column{"instances", instances})
	for _, p := range []struct {
		name string
		of   func(Size) Phase
	}{
		{"join", func(s Size) Phase { return s.Join }},
		{"first table", func(s Size) Phase { return s.Load }},
		{"etcd killed", func(s Size) Phase { return s.Outage }},
		{"leases", func(s Size) Phase { return s.Leases }},
	} {
		columns = append(columns,
			column{p.name + ": last", func(s Size) string { return duration(p.of(s).Last) }},
			column{"etcd, s / peak %", func(s Size) string { return costs(p.of(s)) }},
			column{"a read, p99", func(s Size) string { return duration(p.of(s).AnswerP99) }})
	}
	r.table(&b, columns)
	return b.String()
}

// costs is etcd's processor time and peak; a phase may be too short for one.
func costs(p Phase) string {
	if p.EtcdPeak == 0 {
		return fmt.Sprintf("%.1f / –", p.EtcdCPU)
	}
	return fmt.Sprintf("%.1f / %.0f", p.EtcdCPU, p.EtcdPeak)
}

func rate(n float64, p Phase) string { return fmt.Sprintf("%.0f", n/p.Seconds) }

// duration is milliseconds in a unit that people read.
func duration(ms float64) string {
	switch {
	case ms < 10:
		return fmt.Sprintf("%.1f ms", ms)
	case ms < 1000:
		return fmt.Sprintf("%.0f ms", ms)
	default:
		return fmt.Sprintf("%.1f s", ms/1000)
	}
}
