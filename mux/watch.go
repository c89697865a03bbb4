package mux

import (
	"math/rand/v2"
	"time"
)

// How a link that has died is noticed. Whatever arrives is a sign of life; a
// ping is sent when nothing has arrived for a while, and a link on which one is
// out and nothing moves is dead. So none is sent while data flows, and of two
// nodes that have nothing to say one asks, and both know. No two waits are the
// same: at a steady beat pings would tell an observer what runs here.

const (
	// busyPause and idlePause bound a pause, in ticks, on a link with streams
	// and on one without. A ping follows a pause in which nothing arrived, so
	// it comes 1 to 2 pauses behind what came last: within 3 s with streams,
	// every 15 s or so without.
	busyPauseMin, busyPauseMax = 1.0, 1.5
	idlePauseMin, idlePauseMax = 8.0, 12.0

	deadTicks  = 9
	sweepTicks = 5
	idleTicks  = 3

	// A kernel goes on acknowledging small frames for a process that does not
	// read any more, so that alone is a sign of life only for so long. It is
	// long because a ping waits behind what a slow link has queued.
	silentTicks = 30
)

// A vigil is the state of watch.
type vigil struct {
	link    *link
	pong    chan time.Duration
	pinging bool
	heard   uint64 // bytes that had arrived when the pause began
	ticks   int
	in, out uint64 // bytes that had arrived, and were acknowledged, at the last tick
	still   int    // ticks in which nothing arrived
	quiet   int    // ticks with a ping out in which nothing moved at all
	silent  int    // ticks with a ping out in which nothing arrived
	unused  int    // ticks without streams, of a link that another replaces
}

// watch asks for signs of life, which also measures the round trip, and ends
// the link when there are none: nothing arrives, and the peer acknowledges
// nothing of what was sent. A link that is merely slow or loaded always moves.
// Ticks are counted, not time, so that a process that was stopped for a while
// does not take its own sleep for the peer's death.
func (l *link) watch() {
	v := &vigil{link: l, pong: make(chan time.Duration, 1)}
	ticker := time.NewTicker(l.mux.timing.tick)
	defer ticker.Stop()
	v.ping() // the handshake's round trip has its work in it
	pause := time.NewTimer(v.pause())
	defer pause.Stop()
	for {
		select {
		case <-ticker.C:
			if err := v.tick(); err != nil {
				l.fail(err)
				return
			}
			if v.unused >= idleTicks {
				l.close(errSurplus)
				return
			}
		case <-pause.C:
			if in := l.guard.bytesIn.Load(); in == v.heard || l.guard.awaitsPong() {
				v.ping()
			} else {
				v.heard = in
			}
			pause.Reset(v.pause())
		case <-l.expected:
			// The pause is one of a link without streams. Streams that come one
			// after the other ask once a tick: a peer takes so many pings only.
			if v.still > 0 {
				v.still = 0
				v.ping()
			}
			pause.Reset(v.pause())
		case rtt := <-v.pong:
			v.pinging = false
			l.measured(rtt)
		case <-l.dead:
			return
		}
	}
}

// ping asks for a sign of life, unless that was done and not answered.
func (v *vigil) ping() {
	if v.pinging {
		return
	}
	v.pinging, v.quiet, v.silent = true, 0, 0
	go func() {
		if rtt, err := v.link.ys.Ping(); err == nil {
			v.pong <- rtt
		}
	}()
}

// pause is how long to wait for what arrives unasked.
func (v *vigil) pause() time.Duration {
	least, most := idlePauseMin, idlePauseMax
	if v.link.load.Load() > 0 {
		least, most = busyPauseMin, busyPauseMax
	}
	tick := float64(v.link.mux.timing.tick)
	return time.Duration(tick * (least + rand.Float64()*(most-least)))
}

// tick looks at what has moved since the last one.
func (v *vigil) tick() error {
	l := v.link
	if v.ticks++; v.ticks%sweepTicks == 0 {
		l.guard.sweep(time.Now())
	}
	in, out := l.guard.bytesIn.Load(), l.acknowledged()
	arrived, moved := in != v.in, in != v.in || out != v.out
	v.in, v.out = in, out
	count := func(n *int, more bool) {
		if *n++; !more {
			*n = 0
		}
	}
	count(&v.still, !arrived)
	count(&v.quiet, v.pinging && !moved)
	count(&v.silent, v.pinging && !arrived)
	count(&v.unused, l.surplus.Load() && l.load.Load() == 0)
	if v.quiet >= deadTicks || v.silent >= silentTicks {
		return errDead
	}
	return nil
}

// expect tells watch that there are streams now, so that a link that has died
// unnoticed is found out as fast as one that had them.
func (l *link) expect() {
	select {
	case l.expected <- struct{}{}:
	default:
	}
}
