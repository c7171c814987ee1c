package main

import (
	"fmt"
	"io"
	"math"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

// A Report is one run's figures. It is what -o json prints.
type Report struct {
	Build      string    `json:"build"`
	Go         string    `json:"go"`
	Processors int       `json:"processors"`     // that this process may use
	Load       string    `json:"load,omitempty"` // average of the machine when the run began
	Began      time.Time `json:"began"`
	Quick      bool      `json:"quick,omitempty"`
	Parts      []Part    `json:"sections"`
}

// A Part is what one section found.
type Part struct {
	Section string   `json:"section"`
	Title   string   `json:"title"`
	Seconds float64  `json:"seconds"`
	Skipped string   `json:"skipped,omitempty"`
	Error   string   `json:"error,omitempty"`
	Figures []Figure `json:"figures"`
}

// A Figure is one thing that was measured.
type Figure struct {
	Name   string  `json:"name"`
	Value  float64 `json:"value"`
	Unit   string  `json:"unit,omitempty"`
	Beside *Beside `json:"beside,omitempty"`
	Goal   string  `json:"goal,omitempty"`
	Met    *bool   `json:"met,omitempty"` // absent without a goal
	Note   string  `json:"note,omitempty"`
}

// Beside is what a figure is compared with, measured in the same run.
type Beside struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Ratio float64 `json:"ratio"` // of the figure to this
}

func figure(name string, value float64, unit string) Figure {
	return Figure{Name: name, Value: value, Unit: unit}
}

// beside compares with value; ratio is given because that of two medians is
// not the median of the ratios.
func (f Figure) beside(name string, value, ratio float64) Figure {
	f.Beside = &Beside{Name: name, Value: value, Ratio: ratio}
	return f
}

func (f Figure) note(format string, args ...any) Figure {
	f.Note = fmt.Sprintf(format, args...)
	return f
}

func (f Figure) judged(goal string, met bool) Figure {
	f.Goal, f.Met = goal, &met
	return f
}

// atMost, ratioAtMost and ratioAtLeast are goals.
func (f Figure) atMost(most float64) Figure {
	return f.judged("≤ "+quantity(most, f.Unit), f.Value <= most)
}

func (f Figure) ratioAtMost(most float64) Figure {
	return f.judged("≤ "+short(most)+"×", f.Beside.Ratio <= most)
}

func (f Figure) ratioAtLeast(least float64) Figure {
	return f.judged("≥ "+short(least)+"×", f.Beside.Ratio >= least)
}

// short prints three digits, without an exponent.
func short(v float64) string {
	if v == 0 || math.IsNaN(v) || math.IsInf(v, 0) {
		return strconv.FormatFloat(v, 'f', -1, 64)
	}
	digits := max(0, 2-int(math.Floor(math.Log10(math.Abs(v)))))
	s := strconv.FormatFloat(v, 'f', min(digits, 4), 64)
	if strings.Contains(s, ".") {
		s = strings.TrimRight(strings.TrimRight(s, "0"), ".")
	}
	return s
}

func quantity(v float64, unit string) string {
	if unit == "" {
		return short(v)
	}
	return short(v) + " " + unit
}

// write prints the report for people.
func (r Report) write(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "routerd %s, %s, %d processors, %s\n", r.Build, r.Go, r.Processors, r.Began.Format(time.RFC3339))
	if r.Load != "" {
		fmt.Fprintf(&b, "load average of the machine at the start: %s\n", r.Load)
	}
	if r.Quick {
		b.WriteString("a quick run: few rounds, small tables; good for nothing but seeing that it runs\n")
	}
	met, of := 0, 0
	for _, p := range r.Parts {
		p.write(&b)
		for _, f := range p.Figures {
			if f.Met != nil {
				of++
				if *f.Met {
					met++
				}
			}
		}
	}
	fmt.Fprintf(&b, "\n%d of %d goals met\n", met, of)
	_, err := io.WriteString(w, b.String())
	return err
}

func (p Part) write(b *strings.Builder) {
	fmt.Fprintf(b, "\n%s: %s (%.0f s)\n", strings.ToUpper(p.Section), p.Title, p.Seconds)
	t := tabwriter.NewWriter(b, 0, 0, 2, ' ', 0)
	for _, f := range p.Figures {
		beside, ratio, verdict := "", "", ""
		if f.Beside != nil {
			beside = f.Beside.Name + " " + quantity(f.Beside.Value, f.Unit)
			ratio = short(f.Beside.Ratio) + "×"
		}
		switch {
		case f.Met == nil:
		case *f.Met:
			verdict = "met"
		default:
			verdict = "MISSED"
		}
		line := strings.Join([]string{"  " + f.Name, quantity(f.Value, f.Unit), beside, ratio, f.Goal, verdict, f.Note}, "\t")
		fmt.Fprintln(t, strings.TrimRight(line, "\t"))
	}
	_ = t.Flush() // a Builder takes everything
	if p.Skipped != "" {
		fmt.Fprintf(b, "  *** SKIPPED: %s ***\n", p.Skipped)
	}
	if p.Error != "" {
		fmt.Fprintf(b, "  *** BROKEN: %s ***\n", p.Error)
	}
}

// loadAverage tells how busy the machine is, "" where that cannot be told.
func loadAverage() string {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return ""
	}
	fields := strings.Fields(string(text))
	return strings.Join(fields[:min(3, len(fields))], " ")
}
