package session

import (
	"testing"
	"time"
)

// step is one batch: after a pause it is sent, which takes its time.
type step struct {
	pause, took time.Duration
	bytes       int
	unsent      int // bytes that the kernel then holds
	dry         bool
}

func repeat(n int, s step) []step {
	steps := make([]step, n)
	for i := range steps {
		steps[i] = s
	}
	return steps
}

// TestPace: what gathers is what the transport takes in queueTime, within
// bounds, soon after that has changed either way.
func TestPace(t *testing.T) {
	const ms = time.Millisecond
	fast := repeat(8, step{took: ms / 2, bytes: 512 << 10})
	slow := repeat(12, step{took: 8 * ms, bytes: 8000})
	for name, c := range map[string]struct {
		steps       []step
		least, most int
	}{
		"nothing known":                     {nil, firstAmount, firstAmount},
		"one batch says nothing":            {repeat(1, step{took: ms, bytes: 80_000}), firstAmount, firstAmount},
		"1 MB/s":                            {slow, 5_000, 7_000},
		"1 kB/s: not only headers":          {repeat(8, step{took: 4 * time.Second, bytes: 4000}), leastAmount, leastAmount},
		"fast":                              {fast, mostAmount, mostAmount},
		"fast, in no time at all":           {repeat(8, step{bytes: 512 << 10}), mostAmount, mostAmount},
		"fast becomes slow":                 {append(fast[:8:8], repeat(6, step{took: 8 * ms, bytes: 8000})...), 5_000, 7_000},
		"slow becomes fast":                 {append(slow[:12:12], repeat(3, step{took: ms / 2, bytes: 512 << 10})...), mostAmount, mostAmount},
		"a stall on a fast one":             {append(fast[:8:8], step{took: 300 * ms, bytes: 512 << 10}), mostAmount, mostAmount},
		"a buffer on the way of a slow one": {append(slow[:12:12], step{took: ms, bytes: 600 << 10}), 5_000, 7_000},
		"what is left unsent is not taken": {[]step{
			{took: 20 * ms, bytes: 400_000, unsent: 350_000}, {took: 20 * ms, unsent: 300_000},
			{took: 20 * ms, unsent: 250_000}, {took: 20 * ms, unsent: 200_000},
		}, 14_000, 16_000},
		"an idle hour":                     {append(slow[:12:12], repeat(4, step{dry: true, pause: time.Hour, took: 6 * ms, bytes: 8000})...), 5_000, 7_000},
		"a pause in which the kernel sent": {repeat(12, step{pause: 7 * ms, took: 1 * ms, bytes: 8000}), 5_000, 7_000},
		"a pause in which it had nothing":  {repeat(12, step{dry: true, pause: 100 * ms, took: 2 * ms, bytes: 8000}), 11_000, 13_000},
	} {
		var p pace
		now := time.Unix(1e9, 0)
		for _, s := range c.steps {
			from := now.Add(s.pause)
			now = from.Add(s.took)
			p.observe(s.bytes, s.unsent, s.dry, from, now)
		}
		if n := p.amount(); n < c.least || n > c.most {
			t.Errorf("%s: %d bytes gather, want %d to %d", name, n, c.least, c.most)
		}
	}
}
