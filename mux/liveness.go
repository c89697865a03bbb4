package mux

import "time"

// How a link that has died is noticed. Whatever arrives is a sign of life; a
// ping is sent when nothing has arrived for a while, and a link on which one is
// out and nothing moves is dead. So none is sent while data flows, and of two
// nodes that have nothing to say one asks, and both know. No two waits are the
// same: at a steady beat pings would tell an observer what runs here.

const (
	// A tick takes 1 to maxTick times the Mux's. A pause is a tick on a link
	// with streams, and idlePauseMin to idlePauseMax times the Mux's on one
	// without. A ping follows a pause in which nothing arrived, so it comes 1
	// to 2 pauses behind what came last: within 3 s with streams, every 15 s or
	// so without.
	maxTick                    = 1.5
	idlePauseMin, idlePauseMax = 7.5, 11.5

	// spareTicks is how long a link that takes no more streams stays without any.
	spareTicks = 3
)

// An observation is what a link shows at a tick. Positions and counts are of
// bytes since the link began.
type observation struct {
	after time.Duration // how long the tick was meant to take
	luck  float64       // from 0 to 1, drawn anew each time

	in       uint64 // what has arrived
	acked    uint64 // what the peer's kernel has acknowledged of what was sent
	segments uint32 // how many it has, those behind one that was lost among them
	wire     uint64 // what the transport has taken of what was sent
	plain    uint64 // how much plaintext was in that
	ping     uint64 // how much plaintext was queued before and with the last ping

	busy  bool // there are streams
	asks  bool // only a pong frees what waits for it
	spare bool // to be closed when there are no streams
}

// A verdict is what is to be done with a link.
type verdict int

const (
	alive   verdict = iota
	ask             // send a ping
	dead            // end it
	surplus         // close it, it is of no use any more
)

// A liveness asks for signs of life, and finds that there are none: nothing
// arrives, and the peer acknowledges nothing of what was sent. A link that is
// merely slow or loaded always moves. The times of ticks are added up as they
// were meant, so that a process that was stopped for a while does not take its
// own sleep for the peer's death.
type liveness struct {
	limit time.Duration // how long nothing may move with a ping out
	scale time.Duration // the Mux's tick

	last   observation
	heard  bool          // something has arrived in this pause
	rest   time.Duration // of this pause
	still  time.Duration // in which nothing arrived
	unused time.Duration // without streams, of a link to be closed

	// With a ping out.
	asked  bool
	before uint64        // where the ping before it was
	placed bool          // it has left, and
	place  uint64        // it is with the peer's kernel when this is acknowledged
	quiet  time.Duration // in which nothing moved at all
	silent time.Duration // since it is there, in which nothing arrived
}

// tick looks at what has moved since the last one.
func (v *liveness) tick(o observation) verdict {
	arrived := o.in != v.last.in
	moved := arrived || o.acked != v.last.acked || o.segments != v.last.segments
	v.last = o
	count := func(sum *time.Duration, more bool) {
		if *sum += o.after; !more {
			*sum = 0
		}
	}
	count(&v.still, !arrived)
	count(&v.unused, o.spare && !o.busy)
	count(&v.quiet, v.asked && !moved)
	count(&v.silent, v.asked && !arrived && v.delivered(o))
	v.heard = v.heard || arrived
	switch {
	// A kernel goes on acknowledging small frames for a process that does not
	// read any more, so what it acknowledges behind the ping is a sign of life
	// only for so long. What it does before that brings the ping there.
	case v.quiet >= v.limit, v.silent >= 2*v.limit:
		return dead
	case v.unused >= spareTicks*v.scale:
		return surplus
	}
	if v.rest -= o.after; v.rest > 0 {
		return alive
	}
	wanted := !v.heard || o.asks
	v.pause(o)
	if wanted {
		return v.ask(o)
	}
	return alive
}

// delivered tells whether the ping that is out has reached the peer's kernel.
// Where it is in what was sent is known once the transport has taken it: not
// behind all that the transport has taken by then.
func (v *liveness) delivered(o observation) bool {
	if !v.placed && o.ping != v.before && o.plain >= o.ping {
		v.placed, v.place = true, o.wire
	}
	return v.placed && o.acked >= v.place
}

// pause begins to wait for what arrives unasked.
func (v *liveness) pause(o observation) {
	v.heard, v.rest = false, 0
	if !o.busy {
		v.rest = time.Duration(float64(v.scale) * (idlePauseMin + o.luck*(idlePauseMax-idlePauseMin)))
	}
}

// ask asks for a sign of life, unless that was done and not answered.
func (v *liveness) ask(o observation) verdict {
	if v.asked {
		return alive
	}
	v.asked, v.before, v.placed = true, o.ping, false
	v.quiet, v.silent = 0, 0
	return ask
}

// expect is for streams that come to a link without any: if it has died
// unnoticed, that is found out as fast as on one that had them. Streams that
// come one after the other ask once a tick: a peer takes so many pings only.
func (v *liveness) expect(o observation) verdict {
	v.rest = 0 // the pause was one of a link without streams
	if v.still == 0 {
		return alive
	}
	v.still = 0
	return v.ask(o)
}

// answered notes a pong.
func (v *liveness) answered() { v.asked = false }
