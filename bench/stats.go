package main

import (
	"math"
	"slices"
)

// tooWide is the spread from which a row says little.
const tooWide = 0.10

// summary of one number over the rounds.
type summary struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
	// Spread is the distance between the quartiles (of fewer than 4 values: the extremes), as a part of the median.
	Spread float64 `json:"spread"`

	low, high float64 // those quartiles
}

func summarize(v []float64) summary {
	v = slices.Clone(v)
	slices.Sort(v)
	s := summary{Median: quantile(v, 0.5), Min: v[0], Max: v[len(v)-1]}
	s.low, s.high = s.Min, s.Max
	if len(v) >= 4 {
		s.low, s.high = quantile(v, 0.25), quantile(v, 0.75)
	}
	if s.Median != 0 {
		s.Spread = (s.high - s.low) / math.Abs(s.Median)
	}
	return s
}

// quantile of sorted values, between two of them in proportion.
func quantile(sorted []float64, q float64) float64 {
	at := q * float64(len(sorted)-1)
	i := int(at)
	if i+1 == len(sorted) {
		return sorted[i]
	}
	return sorted[i] + (at-float64(i))*(sorted[i+1]-sorted[i])
}

// verdict compares a summary with a goal. It's "unclear" where the quartiles lie on both sides.
func verdict(s summary, bound float64, atLeast bool) string {
	good := func(v float64) bool {
		if atLeast {
			return v >= bound
		}
		return v <= bound
	}
	switch low, high := good(s.low), good(s.high); {
	case low && high:
		return "met"
	case !low && !high:
		return "missed"
	}
	return "unclear"
}
