package mux

import (
	"testing"
	"time"
)

// A moment is n ticks of a second each, in each of which so many bytes move.
type moment struct {
	n          int
	in, acked  uint64
	sent       uint64 // what the transport takes more, beside acked
	segments   uint32
	ping, pong bool // before them: the ping that was asked for is queued, and is answered
	expect     bool // before them: streams come
}

// walk plays moments, and returns the verdicts that are not alive, each with its
// tick.
func walk(v *liveness, o observation, moments []moment) (verdicts map[int]verdict) {
	verdicts = make(map[int]verdict)
	tick := 0
	note := func(d verdict) {
		if d != alive {
			verdicts[tick] = d
		}
	}
	for _, s := range moments {
		if s.ping {
			o.ping += 12
		}
		if s.pong {
			v.answered()
		}
		if s.expect {
			o.busy = true
			note(v.expect(o))
		}
		for range s.n {
			tick++
			o.after = time.Second
			o.in += s.in
			o.acked += s.acked
			o.segments += s.segments
			o.wire += s.acked + s.sent
			o.plain = o.wire
			note(v.tick(o))
		}
	}
	return verdicts
}

// TestLiveness walks a link of which the limit is 15 s.
func TestLiveness(t *testing.T) {
	busy := observation{busy: true}
	for name, c := range map[string]struct {
		at      observation
		moments []moment
		want    map[int]verdict
	}{
		"data arrives": {busy, []moment{{n: 100, in: 1}}, nil},
		"nothing moves, and no ping could be queued": {busy, []moment{{n: 16}}, map[int]verdict{1: ask, 16: dead}},
		"an outage of 9 s":                           {busy, []moment{{n: 1}, {n: 9, ping: true}, {n: 1, in: 1, acked: 12}, {n: 30, in: 1, pong: true}}, map[int]verdict{1: ask}},
		"an outage of 20 s":                          {busy, []moment{{n: 1}, {n: 15, ping: true}}, map[int]verdict{1: ask, 16: dead}},
		"a ping is answered, and another one asked for": {busy, []moment{{n: 1}, {n: 1, ping: true, in: 24}, {n: 1, pong: true}, {n: 1, ping: true}},
			map[int]verdict{1: ask, 3: ask}},
		// 4 MB are queued ahead of the ping, at 12 kB/s.
		"an upload of 12 kB/s": {busy, []moment{{n: 1, acked: 12_000, sent: 4_000_000}, {n: 330, ping: true, acked: 12_000}, {n: 1, in: 12}, {n: 9, pong: true, in: 1}},
			map[int]verdict{1: ask}},
		"an upload behind a loss that is not mended yet": {busy, []moment{{n: 1, sent: 100_000}, {n: 20, ping: true, segments: 1}, {n: 1, acked: 100_012, in: 1}},
			map[int]verdict{1: ask}},
		"an upload that stops": {busy, []moment{{n: 1, acked: 12_000, sent: 4_000_000}, {n: 100, ping: true, acked: 12_000}, {n: 15}},
			map[int]verdict{1: ask, 116: dead}},
		"a ping that yamux has not written yet is behind what moves": {busy, []moment{{n: 500, acked: 12_000}}, map[int]verdict{1: ask}},
		"a download of little, behind which the pong is":             {busy, []moment{{n: 1}, {n: 500, ping: true, in: 1}}, map[int]verdict{1: ask}},
		// Its kernel takes the ping and what comes behind, and nobody answers.
		"a process that stands still": {busy, []moment{{n: 1, acked: 100}, {n: 30, ping: true, acked: 100}}, map[int]verdict{1: ask, 31: dead}},
		"a link without streams":      {observation{}, []moment{{n: 8}, {n: 24, in: 1}}, map[int]verdict{1: ask}},
		"streams come to it after a silence": {observation{}, []moment{{n: 1}, {n: 2, ping: true, in: 1}, {n: 2, pong: true}, {n: 1, expect: true}},
			map[int]verdict{1: ask, 5: ask}},
		"they come where something has just arrived": {observation{}, []moment{{n: 1}, {n: 2, ping: true, in: 1}, {n: 1, pong: true, in: 1, expect: true}},
			map[int]verdict{1: ask}},
		"one to be closed, without streams": {observation{spare: true}, []moment{{n: 3, in: 1}}, map[int]verdict{3: surplus}},
		"one to be closed, with streams":    {observation{spare: true, busy: true}, []moment{{n: 30, in: 1}}, nil},
		"a reset waits for a pong":          {observation{busy: true, asks: true}, []moment{{n: 1, in: 1}}, map[int]verdict{1: ask}},
	} {
		t.Run(name, func(t *testing.T) {
			v := &liveness{limit: 15 * time.Second, scale: time.Second}
			got := walk(v, c.at, c.moments)
			for tick := range 600 {
				if got[tick] != c.want[tick] {
					t.Fatalf("at tick %d: verdict %d, want %d; all: %v", tick, got[tick], c.want[tick], got)
				}
			}
		})
	}
}

// TestIdlePauses: on a link without streams a pause is drawn anew each time.
func TestIdlePauses(t *testing.T) {
	for luck, want := range map[float64]int{0: 8, 0.5: 10, 1: 12} {
		v := &liveness{limit: 15 * time.Second, scale: time.Second}
		got := walk(v, observation{luck: luck}, []moment{{n: 1}, {n: 1, ping: true, in: 12, pong: true}, {n: 40}})
		// The first pause has heard the pong, the second one nothing.
		if got[1+2*want] != ask {
			t.Errorf("luck %v: %v", luck, got)
		}
	}
}
