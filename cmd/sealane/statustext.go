package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

const (
	clearScreen = "\x1b[H\x1b[2J"

	green  = "\x1b[32m"
	red    = "\x1b[31m"
	yellow = "\x1b[33m"
	bold   = "\x1b[1m"
	plain  = "\x1b[0m"
)

// A cell is a piece of text with a colour for terminals.
type cell struct {
	text, colour string
	right        bool // aligned right: a number
}

// A printer writes aligned tables. Colours are added after the alignment, so
// that the text is the same without them.
type printer struct {
	w      io.Writer
	colour bool
}

func (p printer) paint(c cell) string {
	if !p.colour || c.colour == "" || c.text == "" {
		return c.text
	}
	return c.colour + c.text + plain
}

func (p printer) table(head []string, rows [][]cell) {
	for _, row := range rows {
		for i := range row {
			row[i].text = printable(row[i].text)
		}
	}
	width := make([]int, len(head))
	for i, h := range head {
		width[i] = utf8.RuneCountInString(h)
	}
	for _, row := range rows {
		for i, c := range row {
			width[i] = max(width[i], utf8.RuneCountInString(c.text))
		}
	}
	line := func(row []cell) {
		var b strings.Builder
		for i, c := range row {
			space := strings.Repeat(" ", width[i]-utf8.RuneCountInString(c.text))
			if c.right {
				b.WriteString("  " + space + p.paint(c))
			} else {
				b.WriteString("  " + p.paint(c) + space)
			}
		}
		fmt.Fprintln(p.w, strings.TrimRight(b.String(), " "))
	}
	first := make([]cell, len(head))
	for i, h := range head {
		first[i] = cell{text: h, colour: bold, right: len(rows) > 0 && rows[0][i].right}
	}
	line(first)
	for _, row := range rows {
		line(row)
	}
}

func (p printer) title(format string, args ...any) {
	fmt.Fprintf(p.w, "\n%s\n", p.paint(cell{text: fmt.Sprintf(format, args...), colour: bold}))
}

// writeReport shows a report on a terminal. before is an earlier one to take
// rates from, or nil.
func writeReport(w io.Writer, r, before *report, colour bool) {
	p := printer{w, colour}
	state := cell{text: "ready", colour: green}
	switch {
	case r.Draining:
		state = cell{text: "draining", colour: yellow}
	case !r.Ready:
		state = cell{text: "not ready: waiting for " + strings.Join(r.Pending, ", "), colour: yellow}
	}
	fmt.Fprintf(w, "sealane %s, up %s, %s\n", r.Version, age(r.Now.Sub(r.Started).Seconds()), p.paint(state))
	fmt.Fprintf(w, "config %s, revision %s, loaded %s; %s, %d refused\n", r.Config.File, r.Config.Revision,
		r.Config.Loaded.Local().Format(time.DateTime), count(int(r.Config.Reloads), "reload"), r.Config.Failed)
	if r.Config.Error != "" {
		fmt.Fprintln(w, p.paint(cell{text: "the last reload was refused: " + r.Config.Error, colour: red}))
	}
	p.peers(r, before)
	p.listeners(r)
	p.totals(r)
	p.events(r)
}

func (p printer) peers(r, before *report) {
	p.title("Peers")
	var rows [][]cell
	for _, peer := range r.Peers {
		state := cell{text: "up", colour: green}
		switch {
		case !peer.Up && peer.Dialed:
			state = cell{text: "down", colour: red}
		case !peer.Up:
			state = cell{text: "not connected", colour: yellow}
		}
		in, out := peer.rates(r, before)
		row := []cell{
			{text: peer.Name}, state, {text: linkSummary(peer)}, {text: roundTrip(peer), right: true},
			{text: strconv.Itoa(peer.Streams), right: true},
			{text: bytesText(float64(peer.BytesIn)), right: true}, {text: bytesText(float64(peer.BytesOut)), right: true},
			{text: in, right: true}, {text: out, right: true},
		}
		rows = append(rows, row)
	}
	p.table([]string{"PEER", "STATE", "LINKS", "RTT", "OPEN", "IN", "OUT", "IN/S", "OUT/S"}, rows)
}

func linkSummary(p peerReport) string {
	if len(p.Links) == 0 {
		return firstOf(p.Problem, "-")
	}
	var links []string
	for _, l := range p.Links {
		direction := "from "
		if l.Dialed {
			direction = "to "
		}
		links = append(links, fmt.Sprintf("%s%s %s %s %s", direction, l.Address, l.Transform, l.Cipher, age(l.AgeSeconds)))
	}
	return strings.Join(links, ", ")
}

// roundTrip is the best round trip of the peer's links.
func roundTrip(p peerReport) string {
	best := 0.0
	for _, l := range p.Links {
		if l.RTTSeconds > 0 && (best == 0 || l.RTTSeconds < best) {
			best = l.RTTSeconds
		}
	}
	if best == 0 {
		return "-"
	}
	return fmt.Sprintf("%.2fms", best*1000)
}

// rates are the peer's bytes per second since the report before.
func (p peerReport) rates(now, before *report) (in, out string) {
	if before == nil {
		return "-", "-"
	}
	span := now.Now.Sub(before.Now).Seconds()
	i := slices.IndexFunc(before.Peers, func(o peerReport) bool { return o.Name == p.Name })
	if i < 0 || span <= 0 || before.Peers[i].BytesIn > p.BytesIn || before.Peers[i].BytesOut > p.BytesOut {
		return "-", "-"
	}
	old := before.Peers[i]
	return bytesText(float64(p.BytesIn-old.BytesIn) / span), bytesText(float64(p.BytesOut-old.BytesOut) / span)
}

func (p printer) listeners(r *report) {
	var rows [][]cell
	if r.Listen != "" {
		rows = append(rows, []cell{{text: "links"}, {text: r.Listen}, {text: "peers"}, {text: "-", right: true}})
	}
	for _, l := range r.Listeners {
		rows = append(rows, []cell{{text: l.Kind}, {text: l.Address}, {text: firstOf(l.To, "by route")}, {text: strconv.FormatInt(l.Open, 10), right: true}})
	}
	for _, s := range r.Services {
		rows = append(rows, []cell{{text: "service"}, {text: s.Name}, {text: "for " + strings.Join(s.Allow, ", ")}, {text: "-", right: true}})
	}
	p.title("Listeners and services")
	p.table([]string{"KIND", "ADDRESS", "LEADS TO", "OPEN"}, rows)
}

func (p printer) totals(r *report) {
	p.title("Connections: %d open", r.Streams.Open)
	var rows [][]cell
	for _, result := range slices.Sorted(maps.Keys(r.Streams.Ended)) {
		if n := r.Streams.Ended[result]; n > 0 {
			rows = append(rows, []cell{{text: strings.ReplaceAll(result, "_", " ")}, {text: strconv.FormatUint(n, 10), right: true}})
		}
	}
	for _, rule := range slices.Sorted(maps.Keys(r.Violations)) {
		if n := r.Violations[rule]; n > 0 {
			rows = append(rows, []cell{{text: "violation of " + rule, colour: red}, {text: strconv.FormatUint(n, 10), right: true}})
		}
	}
	p.table([]string{"ENDED", "COUNT"}, rows)
}

// shownEvents is how many events fit on a terminal beside the rest.
const shownEvents = 10

func (p printer) events(r *report) {
	p.title("Recent refusals, violations and links")
	var rows [][]cell
	for _, e := range r.Events[:min(len(r.Events), shownEvents)] {
		kind := cell{text: e.Kind}
		if e.Kind == eventViolation {
			kind.colour = red
		}
		text := e.Text
		if e.Count > 1 {
			text += fmt.Sprintf(" (%d times)", e.Count)
		}
		rows = append(rows, []cell{{text: e.Time.Local().Format(time.TimeOnly)}, kind, {text: firstOf(e.Peer, "-")}, {text: text}})
	}
	p.table([]string{"TIME", "WHAT", "PEER", "REASON"}, rows)
}

// printable keeps what others chose from steering the terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return utf8.RuneError
		}
		return r
	}, s)
}

func bytesText(n float64) string {
	units := []string{"B", "kB", "MB", "GB", "TB", "PB", "EB"}
	i := 0
	for n >= 1000 && i < len(units)-1 {
		n /= 1000
		i++
	}
	if i == 0 {
		return fmt.Sprintf("%.0fB", n)
	}
	return fmt.Sprintf("%.1f%s", n, units[i])
}

func age(seconds float64) string {
	return time.Duration(seconds * float64(time.Second)).Truncate(time.Second).String()
}
