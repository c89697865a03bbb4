package main

import (
	"bytes"
	"errors"
	"math"
	"strings"
	"testing"
)

func TestSummarize(t *testing.T) {
	for _, tt := range []struct {
		in                     []float64
		median, low, high, min float64
	}{
		{[]float64{5}, 5, 5, 5, 5},
		{[]float64{4, 2}, 3, 2, 4, 2},
		{[]float64{9, 1, 5}, 5, 1, 9, 1},
		{[]float64{1, 2, 3, 4, 100}, 3, 2, 4, 1},
		{[]float64{4, 3, 2, 1}, 2.5, 1.75, 3.25, 1},
	} {
		s := summarize(tt.in)
		if s.Median != tt.median || s.low != tt.low || s.high != tt.high || s.Min != tt.min {
			t.Errorf("%v: %+v", tt.in, s)
		}
		if want := (tt.high - tt.low) / tt.median; math.Abs(s.Spread-want) > 1e-9 {
			t.Errorf("%v: spread %v, want %v", tt.in, s.Spread, want)
		}
	}
}

func TestVerdict(t *testing.T) {
	s := summarize([]float64{0.5, 0.6, 0.7})
	for _, tt := range []struct {
		bound   float64
		atLeast bool
		want    string
	}{
		{0.4, true, "met"}, {0.8, true, "missed"}, {0.65, true, "unclear"},
		{0.4, false, "missed"}, {0.8, false, "met"}, {0.65, false, "unclear"},
	} {
		if got := verdict(s, tt.bound, tt.atLeast); got != tt.want {
			t.Errorf("%+v: %s", tt, got)
		}
	}
}

func of(v ...float64) []sample {
	var samples []sample
	for _, v := range v {
		samples = append(samples, sample{values: values{"m": v}})
	}
	return samples
}

func TestAssess(t *testing.T) {
	relays := of(1000, 2000, 1000)
	m := metric{"m", "metric", "MB/s", atLeast(0.55, 0.68)}

	// The machine was twice as fast in one round: the ratios don't show it.
	res := assess(m, "sealane-json", of(600, 1200, 600), relays)
	if res.Ratio.Median != 0.6 || res.Ratio.Spread > 1e-9 || res.Wide || res.Verdict != "met" || res.Goal != ">= 0.55x" {
		t.Errorf("%+v, ratio %+v", res, res.Ratio)
	}
	if res := assess(m, "sealane-packed", of(600, 1200, 600), relays); res.Verdict != "missed" {
		t.Errorf("%+v", res)
	}
	if res := assess(m, "sealane-json", of(300, 1200, 600), relays); !res.Wide || res.Verdict != "unclear" {
		t.Errorf("%+v", res)
	}
	if res := assess(m, "haproxy", of(600), relays); res.Goal != "" || res.Ratio.Median != 0.6 {
		t.Errorf("%+v", res)
	}
	if res := assess(m, relayPair, relays, relays); res.Ratio != nil || !res.Wide {
		t.Errorf("%+v", res)
	}
	if res := assess(m, "sealane-json", of(600), nil); res.Ratio != nil || res.Verdict != "" {
		t.Errorf("a ratio to nothing: %+v", res)
	}
	m.goal = absolute(atMost(12, 12))
	if res := assess(m, "sealane-json", of(11), nil); res.Verdict != "met" || res.Goal != "<= 12" {
		t.Errorf("%+v", res)
	}
	bad := append(of(11), sample{err: errors.New("first\nsecond")})
	if res := assess(m, "sealane-json", bad, nil); res.Value == nil || res.Note != "failed: first; second" {
		t.Errorf("%+v", res)
	}
}

func TestTable(t *testing.T) {
	one := assess(metric{"m", "some metric", "MB/s", atLeast(0.5, 0.5)}, "sealane-json", of(60, 30), of(100, 100))
	two := result{Name: "some metric", Pair: "stunnel", Note: "failed: " + strings.Repeat("x", 1000)}
	rep := &report{Rounds: 2, Results: []result{one, two}, Missing: []string{"spiped"}, Measured: 4, Disturbed: 3, Others: 0.5}
	var b bytes.Buffer
	if err := rep.writeTable(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"45.0", "67% ~", "0.45", "0.30..0.60", ">= 0.5x", "unclear", "failed: xxx", "left out: spiped", "not quiet", "goals: 0 met, 0 missed, 1 unclear",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, &b)
		}
	}
	for line := range strings.Lines(b.String()) {
		if len(line) > 300 {
			t.Errorf("a line of %d characters", len(line))
		}
	}
}

func TestSVGWithGaps(t *testing.T) {
	rep := &report{pairs: []string{direct, relayPair, "a<b"}, Results: []result{
		{Metric: "up1.rate", Pair: relayPair, Value: &summary{Median: 2, Min: 1, Max: 3}},
		{Metric: "rr1.p50", Pair: "a<b", Value: &summary{Median: 2, Min: 1, Max: 3}},
	}}
	var b bytes.Buffer
	if err := rep.writeSVG(&b); err != nil {
		t.Fatal(err)
	}
	if err := wellFormed(b.Bytes()); err != nil {
		t.Error(err)
	}
	if n := strings.Count(b.String(), "not measured"); n != 6 {
		t.Errorf("%d gaps", n)
	}
	if strings.Contains(b.String(), direct) {
		t.Error("draws a pair without values")
	}
}
