package main

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// row is one workload and what it measures.
type row struct {
	id      string
	metrics []metric
	run     func(*cell) (values, error)
	flight  int // if not 0: through a forwarder that delays, with so many bytes under way at most
	held    int // connections that it holds
	rounds  int // at most, 0 for no limit: for rows that take long and vary little
	timeout time.Duration
}

// values are what a row measured, by the metric's id.
type values map[string]float64

// metric is one line of the table for each pair.
type metric struct {
	id   string
	name string
	unit string
	goal *goal
}

// goal is a bound for a sealane pair, on its ratio to the plain relays or on the value itself.
type goal struct {
	json, packed float64
	atLeast      bool
	absolute     bool
}

// bound is the goal's number for a pair.
func (g *goal) bound(pair string) (float64, bool) {
	switch {
	case g == nil:
		return 0, false
	case pair == "sealane-json":
		return g.json, true
	case pair == "sealane-packed":
		return g.packed, true
	}
	return 0, false
}

func atLeast(json, packed float64) *goal { return &goal{json: json, packed: packed, atLeast: true} }
func atMost(json, packed float64) *goal  { return &goal{json: json, packed: packed} }
func absolute(g *goal) *goal             { g.absolute = true; return g }

// settings are the sizes of a run.
type settings struct {
	phase, warm       time.Duration // a measured phase, and the load before it
	farPhase, farWarm time.Duration // the same where a round trip is long
	idle, hold        int           // connections held
	settle            time.Duration // how long resident memory may take to settle
}

func fullSettings(phase time.Duration) settings {
	return settings{
		phase: phase, warm: phase / 5, farPhase: phase, farWarm: phase,
		idle: 8000, hold: 18000, settle: 20 * time.Second,
	}
}

// shortSettings only shows that every row works.
func shortSettings() settings {
	return settings{
		phase: 100 * time.Millisecond, warm: 20 * time.Millisecond,
		farPhase: 300 * time.Millisecond, farWarm: 100 * time.Millisecond,
		idle: 100, hold: 300, settle: 0,
	}
}

func allRows(set settings, flight int) []row {
	return slices.Concat(transferRows(), farRows(flight), messageRows(), heldRows(set))
}

func transferRows() []row {
	var rows []row
	add := func(id, name string, conns int, up bool, goals, cpu *goal) {
		rows = append(rows, row{id: id, run: transferRow(id, conns, up), metrics: []metric{
			{id + ".rate", name, "MB/s", goals},
			{id + ".cpu", name + ", CPU", "CPU s/GB", cpu},
			{id + ".peak", name + ", highest memory", "MiB", nil},
		}})
	}
	add("up1", "1 conn up", 1, true, atLeast(0.55, 0.68), atMost(2.1, 1.8))
	add("down1", "1 conn down", 1, false, atLeast(0.55, 0.68), atMost(2.1, 1.8))
	add("up8", "8 conns up", 8, true, atLeast(0.52, 0.65), nil)
	add("down8", "8 conns down", 8, false, atLeast(0.52, 0.65), nil)
	return rows
}

// farRows put 50 ms of round trip between the proxies.
func farRows(flight int) []row {
	far := func(id, name string, up bool, flight int) row {
		return row{id: id, flight: flight, run: transferRow(id, 1, up), metrics: []metric{
			{id + ".rate", name, "MB/s", atLeast(0.9, 0.9)},
		}}
	}
	window := fmt.Sprintf(", %.3g MiB under way", float64(flight)/(1<<20))
	return []row{
		far("farup", "1 conn up, 50 ms away", true, anyRate),
		far("fardown", "1 conn down, 50 ms away", false, anyRate),
		far("wanup", "1 conn up, 50 ms away"+window, true, flight),
		far("wandown", "1 conn down, 50 ms away"+window, false, flight),
	}
}

func messageRows() []row {
	return []row{
		{id: "rr1", run: echoRow("rr1", 1), metrics: []metric{
			{"rr1.p50", "128-byte round trip, 1 conn, p50", "us", atMost(1.1, 1.1)},
			{"rr1.p99", "128-byte round trip, 1 conn, p99", "us", nil},
		}},
		{id: "rr64", run: echoRow("rr64", 64), metrics: []metric{
			{"rr64.ops", "128-byte round trips, 64 conns", "/s", atLeast(1, 1)},
			{"rr64.p99", "128-byte round trip, 64 conns, p99", "us", nil},
		}},
		{id: "connect", run: connectRow, metrics: []metric{
			{"connect.ops", "connect, 64 bytes, close, 16 at a time", "/s", atLeast(1.1, 1.1)},
		}},
		{id: "mixed", run: mixedRow, metrics: []metric{
			{"mixed.alone", "round trip alone, p99", "us", nil},
			{"mixed.beside", "round trip beside a bulk upload, p99", "us", nil},
			{"mixed.times", "the same, times alone", "x", absolute(atMost(3, 3))},
			{"mixed.rate", "the bulk upload beside it", "MB/s", nil},
		}},
	}
}

func heldRows(set settings) []row {
	return []row{
		{id: "idle", run: heldRow("idle", set.idle, 16), held: set.idle, rounds: 2, timeout: 4 * time.Minute, metrics: []metric{
			{"idle.each", fmt.Sprintf("memory of one of %d idle conns", set.idle), "KiB", absolute(atMost(12, 12))},
			{"idle.all", fmt.Sprintf("memory with %d idle conns", set.idle), "MiB", nil},
		}},
		{id: "hold", run: heldRow("hold", set.hold, 1), held: set.hold, rounds: 1, timeout: 4 * time.Minute, metrics: []metric{
			{"hold.count", "idle conns held by one link", "conns",
				absolute(atLeast(float64(set.hold), float64(set.hold)))},
			{"hold.each", fmt.Sprintf("memory of one of %d idle conns", set.hold), "KiB", nil},
		}},
	}
}

// suits reports whether the row means anything for a pair.
func (r row) suits(p pairSpec) bool {
	if r.flight == 0 && r.held == 0 {
		return true
	}
	isDirect := len(p.Commands) == 0 // no link to delay, no proxy that has memory
	return !isDirect && (r.id != "hold" || p.Mux)
}

// tooBig tells why the row can't be done with a pair on this machine, or "".
func (r row) tooBig(p pairSpec, descriptors int) string {
	const spare = 200 // descriptors that are not connections
	need := r.held + spare
	if !p.Mux {
		need += r.held // a proxy has both ends of each connection
	}
	if r.held > 0 && need > descriptors {
		return fmt.Sprintf("needs %d descriptors, the limit is %d", need, descriptors)
	}
	return ""
}

// chooseRows returns the rows that ids lists, or all.
func chooseRows(all []row, ids string) ([]row, error) {
	if ids == "" {
		return all, nil
	}
	var chosen []row
	for id := range strings.SplitSeq(ids, ",") {
		named := func(r row) bool { return r.id == id }
		at := slices.IndexFunc(all, named)
		if at < 0 {
			return nil, fmt.Errorf("no row %q; there are %s", id, strings.Join(rowIDs(all), ", "))
		}
		if slices.ContainsFunc(chosen, named) {
			return nil, fmt.Errorf("row %q is named twice", id)
		}
		chosen = append(chosen, all[at])
	}
	return chosen, nil
}

func rowIDs(rows []row) []string {
	var ids []string
	for _, r := range rows {
		ids = append(ids, r.id)
	}
	return ids
}
