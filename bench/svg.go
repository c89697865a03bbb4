package main

import (
	"fmt"
	"html"
	"io"
	"math"
	"strings"
)

// panel is one of the picture's two bar charts.
type panel struct {
	title  string
	bars   []bar // of each pair, from the top
	better string
}

type bar struct{ metric, label, colour string }

var panels = []panel{
	{"Throughput, MB/s", []bar{
		{"up1.rate", "1 connection", "#2563eb"},
		{"up8.rate", "8 connections", "#93c5fd"},
	}, "longer is better"},
	{"128-byte round trip, microseconds", []bar{
		{"rr1.p50", "median", "#c2410c"},
		{"rr1.p99", "99th percentile", "#fdba74"},
	}, "shorter is better"},
}

const (
	svgWidth   = 860
	panelWidth = 400
	labelWidth = 110
	valueWidth = 50
	barHeight  = 13
	groupGap   = 10
	headHeight = 78
)

// writeSVG draws the medians of throughput and latency for each pair, with a line from the lowest to the highest round.
func (r *report) writeSVG(w io.Writer) error {
	var pairs []string
	for _, p := range r.pairs {
		if p != direct && r.draws(p) {
			pairs = append(pairs, p)
		}
	}
	height := headHeight + len(pairs)*(2*barHeight+groupGap) + 30
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" font-family="sans-serif" font-size="12">`+"\n",
		svgWidth, height, svgWidth, height)
	b.WriteString(`<rect width="100%" height="100%" fill="#ffffff"/>` + "\n")
	for i, p := range panels {
		r.drawPanel(&b, p, pairs, 20+i*(panelWidth+30))
	}
	fmt.Fprintf(&b, `<text x="20" y="%d" fill="#6b7280" font-size="11">%s</text>`+"\n", height-12, html.EscapeString(fmt.Sprintf(
		"%s, %d cores, all on loopback; medians over the rounds (%d), lines from the lowest to the highest", r.Machine.CPU, r.Machine.Cores, r.Rounds)))
	b.WriteString("</svg>\n")
	_, err := io.WriteString(w, b.String())
	return err
}

// draws reports whether a pair has a bar in some panel.
func (r *report) draws(pair string) bool {
	for _, p := range panels {
		for _, bar := range p.bars {
			if r.value(bar.metric, pair) != nil {
				return true
			}
		}
	}
	return false
}

// value finds a metric of a pair, or nil.
func (r *report) value(metric, pair string) *summary {
	for _, res := range r.Results {
		if res.Metric == metric && res.Pair == pair {
			return res.Value
		}
	}
	return nil
}

func (r *report) drawPanel(b *strings.Builder, p panel, pairs []string, left int) {
	text := func(x, y float64, attrs, s string) {
		fmt.Fprintf(b, `<text x="%.1f" y="%.1f" %s>%s</text>`+"\n", x, y, attrs, html.EscapeString(s))
	}
	text(float64(left), 26, `font-size="15" font-weight="bold" fill="#111827"`, p.title)
	text(float64(left), 42, `font-size="11" fill="#6b7280"`, p.better)
	for i, bar := range p.bars {
		x := left + 130*i
		fmt.Fprintf(b, `<rect x="%d" y="52" width="10" height="10" fill="%s"/>`+"\n", x, bar.colour)
		text(float64(x+15), 61, `font-size="11" fill="#374151"`, bar.label)
	}
	most := r.largest(p, pairs)
	scale := float64(panelWidth-labelWidth-valueWidth) / most
	start := float64(left + labelWidth)
	for i, pair := range pairs {
		top := float64(headHeight + i*(2*barHeight+groupGap))
		weight := "normal"
		if strings.HasPrefix(pair, "sealane") {
			weight = "bold"
		}
		text(start-8, top+barHeight+4, `text-anchor="end" fill="#111827" font-weight="`+weight+`"`, pairLabel(pair))
		for j, bar := range p.bars {
			y := top + float64(j*barHeight)
			v := r.value(bar.metric, pair)
			if v == nil {
				text(start+4, y+10, `font-size="10" fill="#9ca3af"`, "not measured")
				continue
			}
			fmt.Fprintf(b, `<rect x="%.1f" y="%.1f" width="%.1f" height="%d" fill="%s"/>`+"\n", start, y, v.Median*scale, barHeight-1, bar.colour)
			fmt.Fprintf(b, `<line x1="%.1f" x2="%.1f" y1="%.1f" y2="%.1f" stroke="#111827" stroke-width="1"/>`+"\n",
				start+v.Min*scale, start+min(v.Max, most)*scale, y+barHeight/2, y+barHeight/2)
			text(start+min(v.Max, most)*scale+4, y+10, `font-size="10" fill="#374151"`, number(v.Median))
		}
	}
}

func pairLabel(pair string) string {
	if pair == relayPair {
		return "plain relays"
	}
	return pair
}

// largest is the end of a panel's scale: above every median, but not above every outlier.
func (r *report) largest(p panel, pairs []string) float64 {
	most := math.SmallestNonzeroFloat32
	for _, pair := range pairs {
		for _, bar := range p.bars {
			if v := r.value(bar.metric, pair); v != nil {
				most = max(most, min(v.Max, 1.25*v.Median))
			}
		}
	}
	return most
}
