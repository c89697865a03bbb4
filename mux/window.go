package mux

import "time"

const (
	// maxWindow bounds the window that a stream is kept at.
	maxWindow = 64 << 20

	// grantStep is how much has to be free before it is granted, at most.
	grantStep = 2 << 20

	// provenBytes is more than the kernel's buffers take from a stream whose
	// reader stands still.
	provenBytes = 16 << 20

	// maxCredit is the largest window that a peer may grant.
	maxCredit = 1<<31 - 1
)

// A recvWindow is the arithmetic of what a stream may receive. It knows no
// lock, no clock and no account. Its bytes are those of DATA in yamux's sense:
// frames with their headers.
type recvWindow struct {
	credit   int // more than this is a violation
	promised int // of credit, what the sender was told that it may use
	unread   int // arrived, and not yet passed on or dropped
	beyond   int // of unread, what came although it was not promised
	level    int // what promised and unread together were last brought to

	size   int       // what level is to be, where there is room
	read   int       // since that was last looked at
	grown  time.Time // when that was
	passed uint64    // read in all
}

// newWindow is that of a new stream, which starts at a level. If its sender
// takes yamux's window all the same, that is no violation.
func newWindow(level int) recvWindow {
	return recvWindow{credit: initialWindow + int(firstGrant(level)), promised: level, level: level, size: initialWindow}
}

// firstGrant is the length of the header that opens or acknowledges a stream
// whose window starts at a level: it says how many KiB that is, and is 0 for the
// window that yamux gives (SPEC.md section 7).
func firstGrant(level int) uint32 {
	if level >= initialWindow {
		return 0
	}
	return uint32(level >> 10)
}

// firstCredit is by how much the first grant changes what may be sent.
func firstCredit(grant uint32) int {
	if grant == 0 || grant >= initialWindow>>10 {
		return int(grant)
	}
	return int(grant<<10) - initialWindow
}

// arrive takes n bytes that the peer has sent out of the window, and reports
// whether they fit. If nobody is to read them, they are gone.
func (w *recvWindow) arrive(n int64, wanted bool) bool {
	if n > int64(w.credit) {
		return false
	}
	w.credit -= int(n)
	if !wanted {
		return true
	}
	w.unread += int(n)
	more := int(n) - min(int(n), w.promised)
	w.promised -= int(n) - more
	w.beyond += more
	w.level += more
	return true
}

// pass notes that n bytes were read.
func (w *recvWindow) pass(n int) {
	w.unread = max(0, w.unread-n)
	w.beyond = min(w.beyond, w.unread)
	w.read += n
	w.passed += uint64(n)
}

// due reports whether enough was read that it is worth a header to grant more.
func (w *recvWindow) due() bool {
	return w.level-w.kept() >= min(w.level/2, grantStep)
}

// kept is what of level is left.
func (w *recvWindow) kept() int { return w.promised + w.unread }

// grow makes the window larger if half of it was read within two round trips.
func (w *recvWindow) grow(now time.Time, rtt time.Duration) {
	if w.read < w.size/2 {
		return
	}
	if w.grown.IsZero() || now.Sub(w.grown) < 2*rtt+20*time.Millisecond {
		w.size = min(4*w.size, maxWindow)
	}
	w.read, w.grown = 0, now
}

// proven reports whether the stream has a reader that goes on and on.
func (w *recvWindow) proven() bool { return w.passed >= provenBytes }

// grant brings the window to a level, and returns by how much the peer has to
// be told that it has grown. What was granted stays granted.
func (w *recvWindow) grant(level int) int {
	n := max(0, level-w.kept())
	w.credit += n
	w.promised += n
	w.level = w.kept()
	return n
}

// drop forgets what nobody will read.
func (w *recvWindow) drop() { w.unread, w.beyond = 0, 0 }

// settle gives back what was promised to a sender that will not use it.
func (w *recvWindow) settle() {
	w.promised = 0
	w.level = w.unread
}

// windowFor sizes a stream's window by the link's round trip: a bulk stream can
// fill 10 Gbit/s at any distance up to 50 ms, and near by has a deep window, so
// that neither side waits for the other. In the company of requests and answers
// it is kept just deep enough for 2.5 Gbit/s, as they wait behind what it has
// under way.
func windowFor(rtt time.Duration, company bool) int {
	least, perRTT := int64(4<<20), int64(rtt)*maxWindow/int64(50*time.Millisecond)
	if company {
		least, perRTT = companyWindow, perRTT/4
	}
	return int(max(least, min(maxWindow, perRTT)))
}
