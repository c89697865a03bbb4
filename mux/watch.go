package mux

import (
	"math/rand/v2"
	"time"
)

const sweepTicks = 5

// sweep ends streams whose end the peer does not answer, one sweep at a time.
// That may wait for as long as the link is full, and watch must not.
func (l *link) sweep() {
	late := l.guard.late(time.Now())
	if len(late) > 0 && l.sweeping.CompareAndSwap(false, true) {
		go func() {
			defer l.sweeping.Store(false)
			l.guard.giveUp(late)
		}()
	}
}

// watch lets a liveness look at the link, and does what it says. A ping also
// measures the round trip. Nothing here may wait for the link to take something.
func (l *link) watch() {
	tick := l.mux.timing.tick
	v := &liveness{limit: l.mux.config().LinkTimeout, scale: tick, last: l.observe(0)}
	pongs := make(chan time.Duration, 1)
	v.ask(v.last)
	go l.ping(pongs) // the handshake's round trip has its work in it
	draw := func() time.Duration { return time.Duration(float64(tick) * (1 + rand.Float64()*(maxTick-1))) }
	wait := draw()
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for ticks := 1; ; {
		next := alive
		select {
		case <-timer.C:
			if ticks++; ticks%sweepTicks == 0 {
				l.sweep()
			}
			if limit := l.mux.config().LinkTimeout; limit != v.limit {
				v.limit = limit
				tuneSocket(l.raw, limit)
			}
			next = v.tick(l.observe(wait))
			wait = draw()
			timer.Reset(wait)
		case <-l.expected:
			next = v.expect(l.observe(0))
		case rtt := <-pongs:
			v.answered()
			l.measured(rtt)
		case <-l.dead:
			return
		}
		switch next {
		case ask:
			go l.ping(pongs)
		case dead:
			l.fail(errDead)
			return
		case surplus:
			l.close(errSurplus)
			return
		}
	}
}

func (l *link) observe(after time.Duration) observation {
	ping := l.guard.pinged.Load()
	stats := l.conn.Stats()
	acked, segments, ok := tcpAcked(l.raw)
	if !ok {
		acked = stats.WireOut // what this kernel has taken
	}
	return observation{
		after: after, luck: rand.Float64(),
		in: stats.WireIn, acked: acked, segments: segments, wire: stats.WireOut, plain: stats.TakenOut, ping: ping,
		busy: l.load.Load() > 0, asks: l.guard.awaitsPong(), spare: l.surplus.Load(),
	}
}

// ping asks for a sign of life and passes on how long it took.
func (l *link) ping(pongs chan<- time.Duration) {
	rtt, err := l.ys.Ping()
	if err != nil {
		l.yamuxFailed("ping", err)
		return
	}
	pongs <- rtt
}

// expect tells watch that there are streams now.
func (l *link) expect() {
	select {
	case l.expected <- struct{}{}:
	default:
	}
}
