package mux

import (
	"sync"
	"sync/atomic"
)

const (
	// floor is what a stream may always hold: granted to its sender and not yet
	// arrived, or arrived and not yet read.
	floor = 4 << 10

	// modestWindow is what a stream starts with beside not too many others.
	modestWindow = 16 << 10

	// maxClosing is how many streams a peer may have that this node has ended
	// and the peer has not, or the other way round, beside those that it has.
	maxClosing = 8192

	// crowd is by how many streams the memory is divided that no stream's
	// window grows into: the least that each gets while that is more than floor.
	crowd = 2048
)

// accounts is the memory that the streams of all peers may hold. What was
// granted counts from then on, not from when it arrives: it cannot be taken
// back.
//
// Half of the limit is divided among the peers of the configuration, of whom
// none can take another's share: those that are active now would be too few to
// divide it by, as one that becomes active would find its share granted. The
// other half is for who comes first, beyond its share. With a floor for each
// peer where that is more than its share, so much is held at worst.
type accounts struct {
	unread atomic.Int64 // bytes of memory in the streams' queues

	mu       sync.Mutex
	limit    int64
	held     int64 // of all accounts
	reserved int64 // of all accounts, the share where that is more than what is held
}

// An account is a peer's. Its streams are refused, and their windows shrink, as
// it fills; a peer that takes more than it was granted pays with that stream.
type account struct {
	all     *accounts
	share   int64 // what no other peer can take
	held    int64 // the floors of its streams, and what they have above that
	streams int   // open, whoever opened them
	flows   int   // streams that a link remembers: open or closing
	refused int   // streams without a flow: refused, and the peer has not ended them
}

func newAccounts(limit int64) *accounts { return &accounts{limit: limit} }

// account returns the account of a new peer.
func (c *accounts) account() *account { return &account{all: c} }

// resize sets the limit, and each account's share of it. An account that is not
// in the list keeps what it holds.
func (c *accounts) resize(limit int64, list []*account) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.limit = limit
	for _, a := range list {
		a.setShare(max(floor, limit/int64(2*len(list))))
	}
}

// dissolve takes a removed peer's share away from it.
func (a *account) dissolve() {
	a.all.mu.Lock()
	defer a.all.mu.Unlock()
	a.setShare(0)
}

func (a *account) setShare(share int64) {
	a.all.reserved += max(share, a.held) - max(a.share, a.held)
	a.share = share
}

// hold adds to what an account holds, with mu held.
func (a *account) hold(n int64) {
	a.all.held += n
	a.all.reserved += max(a.share, a.held+n) - max(a.share, a.held)
	a.held += n
}

// left is how much more an account may hold, with mu held: of its share, and of
// what is nobody's share. Below zero it has taken more than it was granted.
func (a *account) left() int64 {
	free := a.all.limit - a.all.reserved
	if a.held < a.share {
		return max(0, free) + a.share - a.held
	}
	return free
}

// open counts a stream and its floor. If a limit forbids that it returns which;
// most is the limit on streams.
func (a *account) open(most int) (refused Limit) {
	a.all.mu.Lock()
	defer a.all.mu.Unlock()
	switch {
	case a.streams >= most, a.flows >= most+maxClosing:
		return LimitStreams
	case a.left() < floor:
		return LimitMemory
	}
	a.streams++
	a.hold(floor)
	return ""
}

// close gives back what open took.
func (a *account) close() {
	a.all.mu.Lock()
	defer a.all.mu.Unlock()
	a.streams--
	a.hold(-floor)
}

// begin counts a flow, and returns the window that it starts with. The one that
// yamux gives it unasked cannot be taken back from those that make no use of it,
// so they get it only while all is an eighth full at most.
func (a *account) begin() (level int) {
	a.all.mu.Lock()
	defer a.all.mu.Unlock()
	a.flows++
	level = floor
	switch all := a.held + a.left(); {
	case a.held+initialWindow <= all/8:
		level = initialWindow
	case a.held+modestWindow <= all/4:
		level = modestWindow
	}
	a.hold(above(level))
	return level
}

// end gives back what a flow took, which holds level bytes.
func (a *account) end(level int) {
	a.all.mu.Lock()
	defer a.all.mu.Unlock()
	a.flows--
	a.hold(-above(level))
}

// move changes what a flow holds.
func (a *account) move(from, to int) {
	if above(from) == above(to) {
		return
	}
	a.all.mu.Lock()
	defer a.all.mu.Unlock()
	a.hold(above(to) - above(from))
}

// widen has a flow that held from bytes, and of which have are left, hold as
// many as it wants, or as there is room for, and returns how many that is. A
// proven reader gets room that others do not.
func (a *account) widen(from, have, want int, proven bool) (to int) {
	if want <= floor && have <= floor && from <= floor {
		return floor
	}
	a.all.mu.Lock()
	defer a.all.mu.Unlock()
	a.hold(-above(from))
	to = max(have, min(want, allowance(a.held, a.left(), proven)))
	a.hold(above(to))
	return to
}

// allowance is what a flow may hold where an account holds so much and has so much
// left: a quarter of what is left of the first half of all, so that it takes
// many to exhaust that, and then the second half's part for each of a crowd.
// The last of the first half is for proven readers.
func allowance(held, left int64, proven bool) int {
	all := held + left
	free := left - all/2
	if !proven {
		free -= all / 8
	}
	return int(min(maxWindow, max(floor, free/4, left/crowd))) // an int may have 32 bits
}

// above is what a flow holds beside the floor, which is its stream's.
func above(level int) int64 { return int64(max(0, level-floor)) }

// over tells whether an account holds more than it may.
func (a *account) over() bool {
	a.all.mu.Lock()
	defer a.all.mu.Unlock()
	return a.left() < 0
}

// refuse counts a stream that gets no flow, unless there are too many.
func (a *account) refuse() bool {
	a.all.mu.Lock()
	defer a.all.mu.Unlock()
	if a.refused >= maxRefused {
		return false
	}
	a.refused++
	return true
}

// forgive gives back what refuse took, n times.
func (a *account) forgive(n int) {
	a.all.mu.Lock()
	defer a.all.mu.Unlock()
	a.refused -= n
}

// count is how many streams are open.
func (a *account) count() int {
	a.all.mu.Lock()
	defer a.all.mu.Unlock()
	return a.streams
}

// total is what all accounts hold, and their limit.
func (c *accounts) total() (held, limit int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.held, c.limit
}
