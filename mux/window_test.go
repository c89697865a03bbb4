package mux

import (
	"math/rand/v2"
	"testing"
	"time"
)

// TestWindow goes through what may happen to a window, step by step.
func TestWindow(t *testing.T) {
	type state struct{ credit, promised, unread, beyond, level int }
	for name, c := range map[string]struct {
		level int
		steps func(w *recvWindow)
		want  state
		due   bool
	}{
		"new":                      {initialWindow, func(w *recvWindow) {}, state{initialWindow, initialWindow, 0, 0, initialWindow}, false},
		"new and low":              {floor, func(w *recvWindow) {}, state{initialWindow + 4, floor, 0, 0, floor}, false},
		"something came":           {floor, func(w *recvWindow) { w.arrive(1000, true) }, state{initialWindow - 996, floor - 1000, 1000, 0, floor}, false},
		"more than promised":       {floor, func(w *recvWindow) { w.arrive(floor+10, true) }, state{initialWindow - floor - 6, 0, floor + 10, 10, floor + 10}, false},
		"that is read":             {floor, func(w *recvWindow) { w.arrive(floor+10, true); w.pass(floor) }, state{initialWindow - floor - 6, 0, 10, 10, floor + 10}, true},
		"just less than half read": {floor, func(w *recvWindow) { w.arrive(floor, true); w.pass(floor/2 - 1) }, state{initialWindow + 4 - floor, 0, floor/2 + 1, 0, floor}, false},
		"half read":                {floor, func(w *recvWindow) { w.arrive(floor, true); w.pass(floor / 2) }, state{initialWindow + 4 - floor, 0, floor / 2, 0, floor}, true},
		"unwanted":                 {floor, func(w *recvWindow) { w.arrive(1000, false) }, state{initialWindow - 996, floor, 0, 0, floor}, false},
		"granted": {floor, func(w *recvWindow) { w.arrive(floor, true); w.pass(floor); w.grant(5000) },
			state{initialWindow + 4 - floor + 5000, 5000, 0, 0, 5000}, false},
		"what was granted stays": {initialWindow, func(w *recvWindow) { w.arrive(100, true); w.pass(100); w.grant(floor) },
			state{initialWindow - 100, initialWindow - 100, 0, 0, initialWindow - 100}, false},
		"beyond is not made good": {floor, func(w *recvWindow) { w.arrive(2*floor, true); w.pass(2 * floor); w.grant(floor) },
			state{initialWindow + 4 - floor, floor, 0, 0, floor}, false},
		"settled": {floor, func(w *recvWindow) { w.arrive(100, true); w.settle() }, state{initialWindow - 96, 0, 100, 0, 100}, false},
		"dropped": {floor, func(w *recvWindow) { w.arrive(2*floor, true); w.drop(); w.settle() }, state{initialWindow + 4 - 2*floor, 0, 0, 0, 0}, true},
	} {
		w := newWindow(c.level)
		c.steps(&w)
		if got := (state{w.credit, w.promised, w.unread, w.beyond, w.level}); got != c.want || w.due() != c.due {
			t.Errorf("%s: %+v, due %t; want %+v, %t", name, got, w.due(), c.want, c.due)
		}
	}
	w := newWindow(floor)
	if !w.arrive(int64(w.credit), true) || w.arrive(1, true) {
		t.Error("the window that yamux gives does not hold")
	}
}

// TestWindowGrows where half of it is read within two round trips.
func TestWindowGrows(t *testing.T) {
	now := time.Unix(0, 0)
	w := newWindow(initialWindow)
	for i, c := range []struct {
		read  int
		after time.Duration
		size  int
	}{
		{initialWindow/2 - 1, 0, initialWindow},
		{1, 0, 4 * initialWindow},
		{2 * initialWindow, 119 * time.Millisecond, 16 * initialWindow},
		{8 * initialWindow, 120 * time.Millisecond, 16 * initialWindow},
		{8 * initialWindow, 0, 64 * initialWindow},
		{maxWindow / 8, 0, maxWindow / 4 * 4},
		{maxWindow, 0, maxWindow},
	} {
		now = now.Add(c.after)
		w.pass(c.read)
		if w.grow(now, 50*time.Millisecond); w.size != c.size {
			t.Errorf("step %d: %d, want %d", i, w.size, c.size)
		}
	}
	if !w.proven() {
		t.Error("a stream that was read on and on is not proven")
	}
}

// TestWindowNeverStalls: whatever levels there is room for, who has read all
// that came, and sent all that was granted, is granted more.
func TestWindowNeverStalls(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		w := newWindow([]int{floor, modestWindow, initialWindow}[random.IntN(3)])
		for range 50 {
			n := w.promised - min(w.promised, frameHeaderLen)
			w.arrive(int64(n), true)
			for w.unread > 0 {
				w.pass(1 + random.IntN(w.unread))
				if w.due() {
					w.grant(max(w.kept(), floor, random.IntN(1<<random.IntN(23))))
				}
			}
			if w.promised <= frameHeaderLen {
				t.Fatalf("%+v", w)
			}
		}
	}
}

func TestFirstGrant(t *testing.T) {
	for _, level := range []int{floor, modestWindow, initialWindow} {
		if got := initialWindow + firstCredit(firstGrant(level)); got != level {
			t.Errorf("a window of %d is taken for %d", level, got)
		}
	}
	// What other nodes grant there is a grant.
	for _, n := range []int{256, 1000, 1 << 20} {
		if got := firstCredit(uint32(n)); got != n {
			t.Errorf("a grant of %d is taken for %d", n, got)
		}
	}
}
