package main

import (
	"fmt"
	"html"
	"math"
	"strconv"
	"strings"
)

// A curve is one quantity over the sizes of fleets.
type curve struct {
	name  string
	color string
	ys    []float64
}

// A panel is one diagram: curves over the number of instances.
type panel struct {
	title string // with the unit
	xs    []float64
	of    []curve
}

// Colours that people who see few of them tell apart (Okabe and Ito).
const (
	blue   = "#0072b2"
	orange = "#d55e00"
	green  = "#009e73"
	purple = "#aa4499"
)

// plot draws four diagrams as SVG.
func (r Report) plot() []byte {
	xs := make([]float64, len(r.Sizes))
	of := func(name, color string, y func(Size) float64) curve {
		c := curve{name: name, color: color}
		for _, s := range r.Sizes {
			c.ys = append(c.ys, y(s))
		}
		return c
	}
	for i, s := range r.Sizes {
		xs[i] = float64(s.Instances)
	}
	panels := []panel{
		{"etcd's processor time, % of one processor", xs, []curve{
			of("nothing happens", blue, func(s Size) float64 { return s.Idle.percent() }),
			of("peak, publish", green, func(s Size) float64 { return s.Publish.EtcdPeak }),
			of("peak, after an outage", orange, func(s Size) float64 { return s.Outage.EtcdPeak }),
		}},
		{"etcd's memory, MiB", xs, []curve{
			of("nothing happens", blue, func(s Size) float64 { return s.IdleMiB }),
			of("most, after an outage", orange, func(s Size) float64 { return s.Outage.EtcdMiB }),
		}},
		{"writes a second, nothing happens", xs, []curve{
			of("reports written", blue, func(s Size) float64 { return s.Idle.Puts / s.Idle.Seconds }),
			of("KiB stored", purple, func(s Size) float64 { return s.Idle.Stored / 1024 / s.Idle.Seconds }),
		}},
		{"seconds until the last instance", xs, []curve{
			of("has switched, publish", green, func(s Size) float64 { return s.Publish.Last / 1000 }),
			of("has switched, rollback", blue, func(s Size) float64 { return s.Rollback.Last / 1000 }),
			of("watches again, after an outage", orange, func(s Size) float64 { return s.Outage.Last / 1000 }),
			of("has joined again, leases lost", purple, func(s Size) float64 { return s.Leases.Last / 1000 }),
		}},
	}
	const width, height = 480, 320
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" font-family="sans-serif" font-size="12" fill="#222">`+"\n",
		2*width, 2*height, 2*width, 2*height)
	fmt.Fprintf(&b, `<title>One etcd and %d to %d instances of routerd</title>`+"\n", int(xs[0]), int(xs[len(xs)-1]))
	b.WriteString(`<rect width="100%" height="100%" fill="#fff"/>` + "\n")
	for i, p := range panels {
		fmt.Fprintf(&b, `<g transform="translate(%d %d)">`+"\n", i%2*width, i/2*height)
		p.draw(&b, width, height)
		b.WriteString("</g>\n")
	}
	b.WriteString("</svg>\n")
	return []byte(b.String())
}

// draw draws a panel of a size, in pixels.
func (p panel) draw(b *strings.Builder, width, height float64) {
	const left, right, top, bottom = 56, 20, 34, 46
	most := 0.0
	for _, c := range p.of {
		for _, y := range c.ys {
			most = max(most, y)
		}
	}
	step := niceStep(most)
	high := step * max(1, math.Ceil(most/step))
	wide := p.xs[len(p.xs)-1]
	x := func(v float64) float64 { return left + v/wide*(width-left-right) }
	y := func(v float64) float64 { return height - bottom - v/high*(height-top-bottom) }

	fmt.Fprintf(b, `<text x="%d" y="20" font-size="13" font-weight="bold">%s</text>`+"\n", left, html.EscapeString(p.title))
	for v := 0.0; v <= high*1.001; v += step {
		fmt.Fprintf(b, `<line x1="%d" x2="%.1f" y1="%.1f" y2="%.1f" stroke="#ddd"/>`, left, width-right, y(v), y(v))
		fmt.Fprintf(b, `<text x="%d" y="%.1f" text-anchor="end">%s</text>`+"\n", left-6, y(v)+4, number(v))
	}
	xStep := niceStep(wide)
	for v := 0.0; v <= wide*1.001; v += xStep {
		fmt.Fprintf(b, `<line x1="%.1f" x2="%.1f" y1="%.1f" y2="%.1f" stroke="#222"/>`, x(v), x(v), height-bottom, height-bottom+4)
		fmt.Fprintf(b, `<text x="%.1f" y="%.1f" text-anchor="middle">%s</text>`+"\n", x(v), height-bottom+18, number(v))
	}
	fmt.Fprintf(b, `<path d="M%d %d V%.1f H%.1f" fill="none" stroke="#222"/>`+"\n", left, top, height-bottom, width-right)
	fmt.Fprintf(b, `<text x="%.1f" y="%.1f" text-anchor="middle">instances</text>`+"\n", (left+width-right)/2, height-8)
	for i, c := range p.of {
		var points []string
		for j, v := range c.ys {
			points = append(points, fmt.Sprintf("%.1f,%.1f", x(p.xs[j]), y(v)))
			fmt.Fprintf(b, `<circle cx="%.1f" cy="%.1f" r="3" fill="%s"/>`, x(p.xs[j]), y(v), c.color)
		}
		fmt.Fprintf(b, `<polyline points="%s" fill="none" stroke="%s" stroke-width="2"/>`+"\n", strings.Join(points, " "), c.color)
		at := float64(top + 10 + 17*i)
		fmt.Fprintf(b, `<line x1="%d" x2="%d" y1="%.1f" y2="%.1f" stroke="%s" stroke-width="2"/>`, left+12, left+32, at, at, c.color)
		fmt.Fprintf(b, `<text x="%d" y="%.1f">%s</text>`+"\n", left+38, at+4, html.EscapeString(c.name))
	}
}

// niceStep is the distance of an axis' marks, of which there are four to ten:
// 1, 2 or 5 times a power of ten.
func niceStep(most float64) float64 {
	if most <= 0 {
		return 1
	}
	unit := math.Pow(10, math.Floor(math.Log10(most)))
	for _, f := range []float64{0.1, 0.2, 0.5, 1} {
		if most/(f*unit) <= 8 {
			return f * unit
		}
	}
	return 2 * unit
}

func number(v float64) string { return strconv.FormatFloat(math.Round(v*1000)/1000, 'f', -1, 64) }
