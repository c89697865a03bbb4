package mux

import (
	"os"
	"sync"
	"time"
)

// The guard does the flow control. On the wire a stream's window starts as
// yamux's does, and grows as far as the link's round trip asks for and the
// memory budget allows. Grants are due when what arrived has been passed on.

const (
	// minWindow and maxWindow bound the window that the guard keeps a stream at.
	minWindow = 64 << 10
	maxWindow = 64 << 20

	// grantStep is how much has to be free before it is granted, at most.
	grantStep = 2 << 20

	// smallFrame and smallRun say when a flow counts as company: after so many
	// frames below that size in a row. It stays that for companyStays.
	smallFrame   = 8 << 10
	smallRun     = 3
	companyStays = 100 * time.Millisecond

	// maxCredit is the largest window that a peer may grant.
	maxCredit = 1<<31 - 1
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

// read tells the guard that a stream has passed on n bytes, or dropped them,
// and grants the peer a new window when half of it is free. It may block.
func (g *guard) read(f *flow, n int) {
	if g.unreadLess(f, n) {
		g.grant(f)
	}
}

// freed is read for the link's reader, which must not block.
func (g *guard) freed(f *flow, n int) {
	if !g.unreadLess(f, n) || g.tryGrant(f) {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if !f.granting {
		f.granting = true
		go g.grant(f)
	}
}

// unreadLess reports whether a grant is due.
func (g *guard) unreadLess(f *flow, n int) bool {
	if n == 0 {
		return false
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	f.unread = max(0, f.unread-n)
	f.read += n
	return g.due(f)
}

// grant grants what is due.
func (g *guard) grant(f *flow) {
	defer g.conn.Flush()
	// Grant and FIN must not pass each other: writeMu covers both.
	g.writeMu.Lock()
	defer g.writeMu.Unlock()
	if free := g.widen(f); free > 0 {
		g.queue(appendHeader(g.header[:0], yamuxWindowUpdate, 0, f.id, uint32(free))) // the link's reader sees the error, too
	}
}

// tryGrant is grant without waiting. It reports whether that was possible.
func (g *guard) tryGrant(f *flow) bool {
	if !g.writeMu.TryLock() {
		return false
	}
	defer g.writeMu.Unlock()
	free := g.widen(f)
	if free == 0 {
		return true
	}
	if g.conn.TryQueue(appendHeader(g.header[:0], yamuxWindowUpdate, 0, f.id, uint32(free))) {
		g.bytesOut.Add(yamuxHeaderLen)
		return true
	}
	g.mu.Lock()
	f.recvCredit -= free
	g.mu.Unlock()
	return false
}

// widen takes a new window for a flow, if one is due, and returns by how much
// the peer has to be told that it has grown.
func (g *guard) widen(f *flow) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	f.granting = false
	if !g.due(f) {
		return 0
	}
	// Windows shrink, with the budget: what was granted stays granted.
	free := max(0, g.grow(f)-f.recvCredit-f.unread)
	f.recvCredit += free
	return free
}

// desert tells who waits for a grant that the peer has finished the stream. It
// comes after what the peer sent before that, of which RESET says more.
func (g *guard) desert(f *flow) {
	g.mu.Lock()
	defer g.mu.Unlock()
	f.deserted = true
	f.more.Broadcast()
}

// endArrived tells the guard that END has come: no grant is due any more.
func (g *guard) endArrived(f *flow) {
	g.mu.Lock()
	defer g.mu.Unlock()
	f.ended = true
}

// due tells whether what may be granted to a flow is worth a header.
func (g *guard) due(f *flow) bool {
	if f.localFin || f.remoteFin || f.ended || f.dead || g.flows[f.id] != f {
		return false
	}
	window := g.window(f)
	return window-f.recvCredit-f.unread >= min(window/2, grantStep)
}

// window is what a flow may have now.
func (g *guard) window(f *flow) int {
	return g.budget.window(min(f.window, windowFor(time.Duration(g.rtt.Load()), g.company)))
}

// grow makes a flow's window larger if half of it was read within two round
// trips, and returns what it may have now.
func (g *guard) grow(f *flow) int {
	now := time.Now()
	g.company = now.Sub(g.quick) < companyStays
	if f.read >= f.window/2 {
		if f.grown.IsZero() || now.Sub(f.grown) < 2*time.Duration(g.rtt.Load())+20*time.Millisecond {
			f.window = min(4*f.window, maxWindow)
		}
		f.read, f.grown = 0, now
	}
	return g.window(f)
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

// windowFor sizes a stream's window by the link's round trip: a bulk stream can
// fill 10 Gbit/s at any distance up to 50 ms, and near by has a deep window, so
// that neither side waits for the other. In the company of requests and answers
// it is kept just deep enough for 2.5 Gbit/s, as they wait behind what it has
// under way.
func windowFor(rtt time.Duration, company bool) int {
	least, perRTT := int64(4<<20), int64(rtt)*maxWindow/int64(50*time.Millisecond)
	if company {
		least, perRTT = minWindow, perRTT/4
	}
	return int(max(least, min(maxWindow, perRTT)))
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
