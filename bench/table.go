package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// writeTable prints the report for people.
func (r *report) writeTable(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s, %d cores, Linux %s, %s; interleaved rounds: %d, each measurement %.3g s\n\n",
		r.Machine.CPU, r.Machine.Cores, r.Machine.Kernel, r.Machine.Go, r.Rounds, r.Phase)
	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "what\tpair\tmedian\t\tspread\tx plain\tlowest..highest\tgoal\tverdict")
	last := ""
	for _, res := range r.Results {
		name := res.Name
		if name == last {
			name = ""
		} else if last != "" {
			fmt.Fprintln(t, "\t\t\t\t\t\t\t\t")
		}
		last = res.Name
		fmt.Fprintln(t, strings.Join(append([]string{name}, res.columns()...), "\t"))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	b.WriteString("\n" + r.legend())
	for line := range strings.Lines(b.String()) {
		if _, err := fmt.Fprintln(w, strings.TrimRight(line, " \n")); err != nil {
			return err
		}
	}
	return nil
}

// columns of a result after its name.
func (res result) columns() []string {
	if res.Value == nil {
		// A tab would make the column of medians as wide as the note.
		return []string{res.Pair + "  " + shorten(res.Note)}
	}
	c := []string{res.Pair, number(res.Value.Median), res.Unit, "", "", "", res.Goal, res.Verdict}
	if len(res.Values) > 1 {
		c[3] = fmt.Sprintf("%.0f%%", 100*res.Value.Spread)
	}
	if res.Note != "" {
		c[7] = strings.TrimSpace(c[7] + " " + shorten(res.Note))
	}
	if res.Ratio != nil {
		c[4] = fmt.Sprintf("%.2f", res.Ratio.Median)
		c[5] = fmt.Sprintf("%.2f..%.2f", res.Ratio.Min, res.Ratio.Max)
	}
	if res.Wide {
		c[3] += " ~"
	}
	return c
}

func shorten(s string) string {
	const most = 160
	if len(s) <= most {
		return s
	}
	return s[:most] + "..."
}

func number(v float64) string {
	switch {
	case v >= 100 || v <= -100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10 || v <= -10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

// legend explains the columns, and the noise of this run.
func (r *report) legend() string {
	var b strings.Builder
	b.WriteString("spread: distance of the quartiles (under 4 rounds: of the extremes), as a part of the median.\n")
	b.WriteString("x plain: median of the rounds' ratios to the two plain relays.\n")
	fmt.Fprintf(&b, "~: those ratios (or the values, where there are none) spread by over %.0f%%: too wide to conclude from small differences.\n", 100*tooWide)
	verdicts := make(map[string]int)
	for _, res := range r.Results {
		verdicts[res.Verdict]++
	}
	if !r.Short {
		fmt.Fprintf(&b, "goals: %d met, %d missed, %d unclear (the quartiles lie on both sides).\n",
			verdicts["met"], verdicts["missed"], verdicts["unclear"])
	}
	if len(r.Missing) > 0 {
		fmt.Fprintf(&b, "not installed, left out: %s\n", strings.Join(r.Missing, ", "))
	}
	if r.Short {
		b.WriteString("short form: shows that everything works; the figures mean nothing.\n")
	}
	fmt.Fprintf(&b, "noise: load average %s at the start; ", r.Machine.Load)
	fmt.Fprintf(&b, "unrelated processes took over 5%% of the CPU time in %d of %d measurements, at most %.0f%%.\n", r.Disturbed, r.Measured, 100*r.Others)
	if r.Measured > 0 && r.Disturbed*5 > r.Measured {
		b.WriteString("This machine was not quiet: take none of these figures seriously.\n")
	}
	return b.String()
}
