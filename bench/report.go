package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
)

// report is all that a run found out; it's what -json writes.
type report struct {
	Machine   machine  `json:"machine"`
	Rounds    int      `json:"rounds"`
	Phase     float64  `json:"phase_seconds"`
	Short     bool     `json:"short"`
	Missing   []string `json:"not_installed,omitempty"`
	Results   []result `json:"results"`
	Others    float64  `json:"others_cpu_max"`            // largest part of the CPU time that unrelated processes took in a measurement
	Disturbed int      `json:"others_cpu_over_5_percent"` // measurements in which it was over 5 %
	Measured  int      `json:"measurements"`
	Failed    bool     `json:"failed"` // something that may not fail did

	pairs []string
}

type machine struct {
	CPU    string `json:"cpu"`
	Cores  int    `json:"cores"`
	Kernel string `json:"kernel"`
	Go     string `json:"go"`
	Load   string `json:"load_at_start"`
}

// result is one metric of one pair.
type result struct {
	Metric string    `json:"metric"`
	Name   string    `json:"name"`
	Unit   string    `json:"unit"`
	Pair   string    `json:"pair"`
	Values []float64 `json:"values,omitempty"`
	Value  *summary  `json:"value,omitempty"`
	// Ratio is the values' ratio to those of the plain relays in the same round.
	Ratio   *summary `json:"ratio,omitempty"`
	Goal    string   `json:"goal,omitempty"`
	Verdict string   `json:"verdict,omitempty"`
	Wide    bool     `json:"too_wide"`
	Note    string   `json:"note,omitempty"` // why there is no value, or not one for each round
}

// evaluate turns the samples into results, in the order of the table.
func (b *bench) evaluate(samples map[key][]sample) []result {
	var results []result
	for _, r := range b.rows {
		for _, m := range r.metrics {
			for _, p := range b.pairs {
				res := assess(m, p.Name, samples[key{r.id, p.Name}], samples[key{r.id, relayPair}])
				if res.Value != nil || res.Note != "" {
					results = append(results, res)
				}
			}
		}
	}
	return results
}

// assess one metric of one pair against the relays.
func assess(m metric, pair string, samples, relays []sample) result {
	res := result{Metric: m.id, Name: m.name, Unit: m.unit, Pair: pair}
	var ratios []float64
	for i, s := range samples {
		if res.Note == "" {
			res.Note = note(s)
		}
		v, ok := s.values[m.id]
		if !ok {
			continue
		}
		res.Values = append(res.Values, v)
		if i < len(relays) && pair != relayPair {
			if base := relays[i].values[m.id]; base > 0 {
				ratios = append(ratios, v/base)
			}
		}
	}
	if len(res.Values) == 0 {
		return res
	}
	value := summarize(res.Values)
	res.Value, res.Wide = &value, value.Spread > tooWide
	judged := &value
	if len(ratios) > 0 {
		ratio := summarize(ratios)
		res.Ratio, res.Wide = &ratio, ratio.Spread > tooWide
		if m.goal != nil && !m.goal.absolute {
			judged = &ratio
		}
	}
	if bound, ok := m.goal.bound(pair); ok && (m.goal.absolute || res.Ratio != nil) {
		res.Goal = m.goal.text(bound)
		res.Verdict = verdict(*judged, bound, m.goal.atLeast)
	}
	return res
}

func (g *goal) text(bound float64) string {
	sign, unit := "<=", "x"
	if g.atLeast {
		sign = ">="
	}
	if g.absolute {
		unit = ""
	}
	return fmt.Sprintf("%s %v%s", sign, bound, unit)
}

// note says why a sample has no values.
func note(s sample) string {
	switch {
	case s.skipped != "":
		return "left out: " + s.skipped
	case s.err != nil:
		return "failed: " + strings.ReplaceAll(s.err.Error(), "\n", "; ")
	}
	return ""
}

// withoutGoals takes the goals from the metrics: those of a full run say nothing about a short one.
func withoutGoals(rows []row) []row {
	for _, r := range rows {
		for i := range r.metrics {
			r.metrics[i].goal = nil
		}
	}
	return rows
}

// report sums up a run. Errors of foreign pairs are only shown.
func (b *bench) report(samples map[key][]sample) *report {
	rep := &report{
		Machine: describeMachine(), Rounds: b.rounds, Phase: b.set.phase.Seconds(), Results: b.evaluate(samples),
	}
	foreign := make(map[string]bool)
	for _, p := range b.pairs {
		foreign[p.Name] = p.foreign
		rep.pairs = append(rep.pairs, p.Name)
	}
	for k, all := range samples {
		for _, s := range all {
			if s.skipped != "" {
				continue
			}
			rep.Measured++
			rep.Others = max(rep.Others, s.others)
			if s.others > 0.05 {
				rep.Disturbed++
			}
			if s.err != nil && !foreign[k.pair] {
				rep.Failed = true
			}
		}
	}
	return rep
}

func describeMachine() machine {
	m := machine{CPU: "unknown", Cores: runtime.NumCPU(), Kernel: "unknown", Go: runtime.Version()}
	if b, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		m.Kernel = strings.TrimSpace(string(b))
	}
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(b)) {
			if name, value, _ := strings.Cut(line, ":"); strings.TrimSpace(name) == "model name" {
				m.CPU = strings.TrimSpace(value)
				break
			}
		}
	}
	return m
}

func (r *report) writeJSON(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(r)
}
