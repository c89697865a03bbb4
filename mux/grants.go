package mux

import (
	"os"
	"sync"
	"time"

	"github.com/sealane/sealane/session"
)

// The guard does the flow control. On the wire a stream's window starts as
// yamux's does, or lower, and grows as far as the link's round trip asks
// for and the peer's account allows. Grants are due when what arrived has been
// passed on.

const (
	// smallFrame and smallRun say when a flow counts as company: after so many
	// frames below that size in a row. It stays that for companyStays, and keeps
	// others at companyWindow.
	smallFrame    = 8 << 10
	smallRun      = 3
	companyStays  = 100 * time.Millisecond
	companyWindow = 64 << 10
)

// credit is how many bytes may be sent without waiting for a grant.
func (g *guard) credit(f *flow) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return f.sendCredit
}

// awaitCredit waits until at least n bytes may be sent, and returns how many
// may. It fails with os.ErrDeadlineExceeded, or errFlowOver if nobody will
// grant that.
func (g *guard) awaitCredit(f *flow, n int) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for {
		switch {
		case f.localFin || f.dead:
			return 0, errFlowOver
		case f.sendCredit >= n:
			return f.sendCredit, nil
		case f.deserted:
			return 0, errFlowOver
		case f.writeBy.passed():
			return 0, os.ErrDeadlineExceeded
		}
		f.more.Wait()
	}
}

// setWriteBy sets the time until which awaitCredit waits.
func (g *guard) setWriteBy(f *flow, t time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	f.writeBy.set(t, &f.more)
}

// desert tells who waits for a grant that the peer has finished the stream. It
// comes after what the peer sent before that, of which RESET says more.
func (g *guard) desert(f *flow) {
	g.mu.Lock()
	defer g.mu.Unlock()
	f.deserted = true
	f.more.Broadcast()
}

// credited takes a grant from the peer.
func (f *flow) credited(h yamuxHeader) error {
	if int64(f.sendCredit)+int64(h.length) > maxCredit {
		return violation(RuleYamuxWindow, "a window of more than 2 GiB")
	}
	if h.flags&(flagSYN|flagACK) != 0 {
		f.sendCredit += firstCredit(h.length)
	} else {
		f.sendCredit += int(h.length)
	}
	if h.length > 0 {
		f.more.Broadcast()
	}
	return nil
}

// arrived takes the body of a DATA header out of its flow's window.
func (g *guard) arrived(f *flow, length int64) error {
	before := f.window.level
	if !f.window.arrive(length, !f.localFin && !f.dead) {
		return violation(RuleYamuxWindow, "more data than the window")
	}
	if f.window.level != before {
		g.account.move(before, f.window.level)
		g.overdrawn = g.overdrawn || g.account.over()
	}
	return nil
}

// read tells the guard that a stream has passed on n bytes, or dropped them,
// and grants the peer a new window when half of it is free. It may block.
func (g *guard) read(f *flow, n int) {
	if g.passed(f, n) {
		g.grant(f)
	}
}

// freed is read for the link's reader, which must not block.
func (g *guard) freed(f *flow, n int) {
	if !g.passed(f, n) || g.tryGrant(f) {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if !f.granting {
		f.granting = true
		go g.grant(f)
	}
}

// passed reports whether a grant is due.
func (g *guard) passed(f *flow, n int) bool {
	if n == 0 {
		return false
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	f.window.pass(n)
	if f.ended {
		g.settle(f)
	}
	return g.due(f)
}

// grant grants what is due.
func (g *guard) grant(f *flow) {
	defer g.conn.FlushFirst()
	// Grant and FIN must not pass each other: writeMu covers both.
	g.writeMu.Lock()
	defer g.writeMu.Unlock()
	g.grantDue(f)
}

// grantDue is grant with writeMu held. Somebody has to call FlushFirst.
func (g *guard) grantDue(f *flow) {
	if owed := g.widen(f); owed > 0 {
		g.told(f, owed)
		g.queue(nil, appendHeader(g.small[:0], yamuxWindowUpdate, 0, f.id, uint32(owed))) // the link's reader sees the error, too
	}
}

// tryGrant is grant without waiting. It reports whether that was possible.
func (g *guard) tryGrant(f *flow) bool {
	if !g.writeMu.TryLock() {
		return false
	}
	defer g.writeMu.Unlock()
	owed := g.widen(f)
	if owed == 0 {
		return true
	}
	g.small = appendHeader(g.small[:0], yamuxWindowUpdate, 0, f.id, uint32(owed))
	if _, ok := g.conn.TryFirst(g.small, session.Mark{}, true); !ok {
		return false
	}
	g.told(f, owed)
	g.bytesOut.Add(yamuxHeaderLen)
	return true
}

// widen makes a flow's window wider, if that is due, and returns what the peer
// has to be told.
func (g *guard) widen(f *flow) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	f.granting = false
	if !g.open(f) {
		return 0
	}
	if w := &f.window; w.due() {
		now := time.Now()
		g.company = now.Sub(g.quick) < companyStays
		rtt := time.Duration(g.rtt.Load())
		w.grow(now, rtt)
		want := min(w.size, windowFor(rtt, g.company))
		f.owed += w.grant(g.account.widen(w.level, w.kept(), want, w.proven()))
	}
	return f.owed
}

// told notes that a grant is on its way.
func (g *guard) told(f *flow, n int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	f.owed -= n
}

// due reports whether the peer has to be told of a grant.
func (g *guard) due(f *flow) bool { return g.open(f) && (f.owed > 0 || f.window.due()) }

// open reports whether the peer may still send what it is granted. Nothing goes
// before ACK.
func (g *guard) open(f *flow) bool {
	return (f.outbound || f.acked) && !f.localFin && !f.remoteFin && !f.ended && !f.dead && g.flows[f.id] == f
}

// endArrived tells the guard that END has come: no grant is due any more.
func (g *guard) endArrived(f *flow) {
	g.mu.Lock()
	defer g.mu.Unlock()
	f.ended = true
	g.settle(f)
}

// settle gives back what a flow does not need any more, with mu held.
func (g *guard) settle(f *flow) {
	before := f.window.level
	f.window.settle()
	if g.flows[f.id] == f {
		g.account.move(before, f.window.level)
	}
}

// heard notes whether a flow carries requests and answers: small frames alone.
func (g *guard) heard(f *flow, length uint32) {
	if length >= smallFrame {
		f.small = 0
		return
	}
	if f.small++; f.small >= smallRun {
		g.quick = time.Now()
		g.company = true
	}
}

// measured takes a round trip of the link.
func (g *guard) measured(rtt time.Duration) {
	if old := g.rtt.Load(); rtt > 0 && (old == 0 || int64(rtt) < old) {
		g.rtt.Store(int64(rtt))
	}
}

// An expiry is a time after which waiting on a condition is over.
type expiry struct {
	at    time.Time
	timer *time.Timer
}

// set is called with c.L held.
func (e *expiry) set(t time.Time, c *sync.Cond) {
	if e.timer != nil {
		e.timer.Stop()
		e.timer = nil
	}
	e.at = t
	if left := time.Until(t); !t.IsZero() && left > 0 {
		e.timer = time.AfterFunc(left, func() {
			c.L.Lock()
			defer c.L.Unlock()
			c.Broadcast()
		})
	}
	c.Broadcast()
}

func (e *expiry) passed() bool { return !e.at.IsZero() && !time.Now().Before(e.at) }
