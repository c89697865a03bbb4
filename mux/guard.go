package mux

import (
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sealane/sealane/session"
	"github.com/sealane/sealane/session/loan"
)

const (
	// maxUnacked is how many streams this node has waiting for the peer's
	// ACK; a peer that has twice as many is no sealane. yamuxBacklog is above
	// both, so that yamux itself never refuses a stream.
	maxUnacked   = 256
	yamuxBacklog = 1024

	// yamuxWindow makes yamux send a window update when it accepts a stream,
	// also if FIN came first: outbound makes the ACK of it. Windows are the
	// guard's own business.
	yamuxWindow = 2 * initialWindow

	// maxGaps bounds how far ids may overtake each other.
	maxGaps = 1024

	// lateAfterReset is how long after a RST was sent, and answered by a pong,
	// what the peer had under way may still come.
	lateAfterReset = 5 * time.Second

	// closeTimeout is how long a peer may leave a stream's FIN unanswered.
	closeTimeout = time.Minute
)

// transport is what the guard needs of a session.Conn.
type transport interface {
	ReadRecords(bodies [][]byte) ([][]byte, error)
	Grain() int
	BeginTurn(n int) error
	EndTurn()
	QueueBuffer(b *session.Buffer, n int) (session.Mark, error)
	QueueFirst(p []byte, behind session.Mark) error
	TryFirst(p []byte, behind session.Mark, wake bool) (session.Mark, bool)
	Flush()
	FlushFirst()
	Close() error
	Abort(error)
}

// A guard stands between a session and its yamux connection. yamux keeps the
// streams' lives: it opens, accepts and closes them, and pings. The guard
// carries what is in them: bodies of DATA go to their streams and grants are
// its own business, and yamux sees neither, but headers that open, acknowledge,
// end or reset a stream.
//
// Inbound, a record is checked whole, headers and frames, before anybody gets
// a byte of it; the link is aborted if hashicorp/yamux behind a guard would not
// have written it. Outbound, the guard makes that true of this node: header and
// body leave together, and nothing but RST follows a stream's FIN, whatever
// yamux's callers race to write.
type guard struct {
	conn    transport
	odd     bool // streams that this node opens have odd ids
	account *account
	hooks   guardHooks
	rtt     atomic.Int64 // least round trip seen, in nanoseconds

	bytesOut atomic.Uint64
	pinged   atomic.Uint64 // bytesOut behind the last ping
	closing  atomic.Bool   // closeConn was called

	// Inbound, used by yamux's one reader only.
	held     [yamuxHeaderLen]byte // the start of a header whose rest has not come
	heldLen  int
	bodyIn   int64 // bytes left of the DATA body that is coming in
	bodyFlow *flow // whom it is for; nil: for a stream that was forgotten
	bodySkip bool  // nobody wants it
	bodyEnds bool  // its header ended the stream, too
	records  [session.MaxRecords][]byte
	events   []event
	bodies   [][]byte // of events of one flow
	readErr  error
	readDone chan struct{} // closed when Read has returned its error
	readOnce sync.Once

	// Outbound. writeMu is taken before mu and held while a header is queued,
	// so that what the flows say is what the wire says. Who has much to send
	// waits for its turn before that: what is small does not wait behind them.
	writeMu sync.Mutex
	small   []byte // where small frames and headers are made

	mu        sync.Mutex
	flows     map[uint32]*flow
	lastIn    uint32              // highest id that the peer opened
	gaps      map[uint32]struct{} // lower ones that it has not opened yet
	lastOut   uint32              // highest id that this node opened
	unackedIn int
	overdrawn bool // the peer took more than it was granted, and its account has no more
	resets    int  // flows with a localRST
	refusals  refusals
	inject    []byte // headers for yamux
	pings     map[uint32]time.Time
	pongsDue  int
	goneAway  bool      // the peer sent go away
	quick     time.Time // when requests or answers came last
	company   bool      // that was a moment ago
	synRate   bucket
	rstRate   bucket
	pingRate  bucket

	// opens holds an element for each stream opened here and not yet acknowledged.
	opens chan struct{}
}

// errPeerFault is not a violation: it says that the peer saw one, or its own fault.
var errPeerFault = errors.New("the peer's yamux reported an error")

// guardHooks must not block.
type guardHooks struct {
	goAway    func()      // the peer sent go away
	ended     func(error) // nothing more comes
	overdrawn func()      // the peer's account has no room for what has come beyond what was granted
	// opened makes the receiver of a new flow, or tells which limit refuses a
	// stream that the peer opens. It is called with mu held.
	opened func(*flow) (receiver, Limit)
}

// A receiver takes what arrives for a flow. The link's one reader calls it, and
// it must not block.
type receiver interface {
	// check appends what is in p to events, or finds that it may not be there.
	check(p []byte, events []event) ([]event, error)
	// takeData takes bodies of DATA, which are lent until it returns, and
	// returns how many bytes of the window that has freed.
	takeData(bodies [][]byte) int
	// take acts on any other event.
	take(e event)
	// over says that the flow is forgotten, and whether the peer has taken all
	// that was sent there. It is called with mu held.
	over(taken bool)
}

// An event is a frame, or a part of a DATA frame, that has arrived.
type event struct {
	flow  *flow
	kind  byte   // a frame's type, or eventFin
	body  []byte // of DATA: inside the record
	spent int    // bytes of the window that went into what is not in body
}

// eventFin is the end of a yamux stream, by FIN or RST.
const eventFin byte = 0xff

// A flow is a stream as the wire shows it. The guard's mu protects it.
type flow struct {
	id       uint32
	outbound bool // opened by this node
	acked    bool

	localFin, remoteFin bool
	localRST            time.Time // when this node gave up waiting for FIN; zero: not
	closing             time.Time // when localFin was sent

	sendCredit int       // granted by the peer and not yet used
	more       sync.Cond // sendCredit has grown, or never will; its L is the guard's mu
	writeBy    expiry    // of who waits for that
	first      uint32    // the grant that opens or acknowledges it
	window     recvWindow
	owed       int  // granted, and the peer has not been told
	small      int  // frames in a row
	granting   bool // a goroutine is about to grant

	last session.Mark // of its DATA; protected by writeMu

	deserted bool // remoteFin, once its stream knows

	ended bool // END has come: no grants are due any more
	taken bool // forgotten, and the peer has all that was sent
	dead  bool // the stream was aborted: what still comes is dropped
	to    receiver
}

// newFlow adds a flow, with mu held, unless a limit refuses it.
func (g *guard) newFlow(id uint32, outbound bool) (f *flow, refused Limit) {
	f = &flow{id: id, outbound: outbound, sendCredit: initialWindow}
	f.more.L = &g.mu
	if f.to, refused = g.hooks.opened(f); refused != "" {
		return nil, refused
	}
	f.window = newWindow(g.account.begin())
	f.first = firstGrant(f.window.level)
	g.flows[id] = f
	return f, ""
}

func newGuard(conn transport, client bool, a *account, hooks guardHooks) *guard {
	return &guard{
		conn:     conn,
		odd:      client,
		account:  a,
		hooks:    hooks,
		readDone: make(chan struct{}),
		flows:    make(map[uint32]*flow),
		gaps:     make(map[uint32]struct{}),
		pings:    make(map[uint32]time.Time),
		synRate:  bucket{rate: 20000, burst: 60000},
		rstRate:  bucket{rate: 20000, burst: 60000},
		pingRate: bucket{rate: 10, burst: 100},
		opens:    make(chan struct{}, maxUnacked),
	}
}

// Read takes in records and gives yamux the headers that it has to see.
func (g *guard) Read(p []byte) (int, error) {
	if len(p) < yamuxHeaderLen {
		return 0, io.ErrShortBuffer // yamux reads through a bufio.Reader of 4 KiB
	}
	for {
		if g.readErr != nil {
			// All that came before has reached its streams by now.
			g.hooks.ended(g.readErr)
			g.readOnce.Do(func() { close(g.readDone) })
			return 0, g.readErr
		}
		if n := g.takeInjected(p); n > 0 {
			return n, nil
		}
		records, err := g.conn.ReadRecords(g.records[:0])
		if err == nil {
			if err = g.accept(records); err != nil {
				g.conn.Abort(err)
			}
		}
		g.readErr = err
	}
}

func (g *guard) takeInjected(p []byte) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	n := copy(p[:len(p)/yamuxHeaderLen*yamuxHeaderLen], g.inject)
	if g.inject = g.inject[n:]; len(g.inject) == 0 {
		g.inject = nil // a burst's is not kept
	}
	return n
}

// accept checks records, and hands out what is in them if all of it is right.
func (g *guard) accept(records [][]byte) error {
	for _, r := range records {
		if err := g.check(r); err != nil {
			g.mu.Lock()
			g.inject = nil
			g.mu.Unlock()
			return err
		}
		if len(g.events) >= maxEvents {
			g.deliver()
		}
	}
	g.deliver()
	return nil
}

// maxEvents bounds the events that are kept, and is more than records of bulk
// have in them.
const maxEvents = 1024

// deliver hands out what was checked. What tiny frames have made of the list
// of events is not kept.
func (g *guard) deliver() {
	g.reclaim()
	for rest := g.events; len(rest) > 0; {
		if rest[0].kind == frameData {
			rest = g.giveData(rest)
			continue
		}
		rest[0].flow.to.take(rest[0])
		g.freed(rest[0].flow, rest[0].spent)
		rest = rest[1:]
	}
	clear(g.events)
	g.events = g.events[:0]
	if cap(g.events) > 2*maxEvents {
		g.events = nil
	}
	g.answerRefused()
}

// reclaim has a peer pay that took more than it was granted.
func (g *guard) reclaim() {
	g.mu.Lock()
	overdrawn := g.overdrawn
	g.overdrawn = false
	g.mu.Unlock()
	if overdrawn {
		g.hooks.overdrawn()
	}
}

// giveData hands out DATA of one flow together, and returns the events behind
// it.
func (g *guard) giveData(events []event) []event {
	f := events[0].flow
	g.bodies = g.bodies[:0]
	freed := 0
	for len(events) > 0 && len(g.bodies) < maxVector {
		e := events[0]
		if e.flow != f || e.kind != frameData {
			break
		}
		g.bodies = append(g.bodies, e.body)
		freed += e.spent
		events = events[1:]
	}
	g.freed(f, freed+f.to.takeData(g.bodies))
	for _, b := range g.bodies {
		loan.End(b)
	}
	clear(g.bodies)
	return events
}

// maxVector is how many pieces are written to an app in one call.
const maxVector = 64

// check goes through a record, header by header.
func (g *guard) check(p []byte) (err error) {
	for len(p) > 0 {
		if g.bodyIn > 0 {
			n := int(min(g.bodyIn, int64(len(p))))
			if !g.bodySkip {
				if g.events, err = g.bodyFlow.to.check(p[:n], g.events); err != nil {
					return err
				}
			}
			g.bodyIn -= int64(n)
			p = p[n:]
		} else {
			n := copy(g.held[g.heldLen:], p)
			g.heldLen += n
			p = p[n:]
			if g.heldLen < yamuxHeaderLen {
				return nil
			}
			g.heldLen = 0
			if err := g.inbound(parseHeader(g.held[:])); err != nil {
				return err
			}
		}
		if g.bodyIn == 0 && g.bodyEnds {
			g.bodyEnds = false
			g.events = append(g.events, event{flow: g.bodyFlow, kind: eventFin})
		}
	}
	return nil
}

// Write takes the headers that yamux writes. yamux shuts down when it returns
// an error, so the streams are woken before that, once they have all that came.
func (g *guard) Write(p []byte) (int, error) {
	err := g.write(p)
	if err != nil {
		if !g.closing.Load() { // else it is refused because of that, which has its time
			g.conn.Abort(err)
		}
		select {
		case <-g.readDone:
		case <-time.After(time.Second):
			g.hooks.ended(err)
		}
		return 0, err
	}
	return len(p), nil
}

func (g *guard) write(p []byte) error {
	if len(p) != yamuxHeaderLen || p[1] == yamuxData {
		return errors.New("mux: yamux wrote something other than a header")
	}
	h := parseHeader(p)
	g.writeMu.Lock()
	g.mu.Lock()
	f := g.flows[h.id]
	pass := g.outbound(&h)
	g.mu.Unlock()
	var err error
	if pass {
		err = g.queue(f, appendHeader(g.small[:0], h.kind, h.flags, h.id, h.length))
		if h.kind == yamuxPing && h.flags == flagSYN {
			g.pinged.Store(g.bytesOut.Load())
		}
		if f != nil && h.flags == flagACK {
			g.grantDue(f) // what was read before that
		}
	}
	g.writeMu.Unlock()
	if h.kind == yamuxPing || h.flags != flagSYN {
		g.conn.FlushFirst() // but OPEN follows SYN and takes it along
	}
	return err
}

// queue puts what is small on its way, with writeMu held: ahead of everything
// but what its flow, if it is of one, has sent before.
func (g *guard) queue(f *flow, p []byte) error {
	g.small = p // perhaps larger than it was
	g.bytesOut.Add(uint64(len(p)))
	var behind session.Mark
	if f != nil {
		behind = f.last
	}
	return g.conn.QueueFirst(p, behind)
}

// maxSmall is the most bytes of DATA, headers and all, that may leave ahead of
// what waits for its turn.
const maxSmall = 2 << 10

// sendBuffer sends n bytes of a buffer, of which the first yamuxHeaderLen are
// free for the header, as DATA of a flow that has credit for the rest. The
// buffer is gone. Somebody has to call Flush, or, if it reports that they left
// ahead of others, FlushFirst.
func (g *guard) sendBuffer(f *flow, b *session.Buffer, n int) (ahead bool, err error) {
	appendHeader(b.Body()[:0], yamuxData, 0, f.id, uint32(n-yamuxHeaderLen))
	if n <= maxSmall {
		if ahead, err = g.sendAhead(f, b.Body()[:n]); ahead || err != nil {
			b.Free()
			return ahead, err
		}
	}
	if err = g.conn.BeginTurn(n); err != nil {
		b.Free()
		return false, err
	}
	defer g.conn.EndTurn()
	g.writeMu.Lock()
	defer g.writeMu.Unlock()
	if !g.spend(f, n-yamuxHeaderLen) {
		b.Free()
		return false, errFlowOver
	}
	g.bytesOut.Add(uint64(n))
	f.last, err = g.conn.QueueBuffer(b, n)
	return false, err
}

// sendAhead sends a small frame with its header ahead of others, unless there
// is no room, or something of its flow waits already: of a flow that sends much
// in small pieces, no more than one goes ahead at a time.
func (g *guard) sendAhead(f *flow, p []byte) (bool, error) {
	g.writeMu.Lock()
	defer g.writeMu.Unlock()
	if !g.spend(f, len(p)-yamuxHeaderLen) {
		return false, errFlowOver
	}
	mark, ahead := g.conn.TryFirst(p, f.last, false)
	if ahead {
		f.last = mark
		g.bytesOut.Add(uint64(len(p)))
	} else {
		g.spend(f, -(len(p) - yamuxHeaderLen)) // nothing was
	}
	return ahead, nil
}

// sendSmall sends a few bytes of frames other than DATA, which it copies.
func (g *guard) sendSmall(f *flow, p []byte) error {
	g.writeMu.Lock()
	defer g.writeMu.Unlock()
	if !g.spend(f, len(p)) {
		return errFlowOver
	}
	return g.queue(f, append(appendHeader(g.small[:0], yamuxData, 0, f.id, uint32(len(p))), p...))
}

// spend takes n bytes off a flow's credit, unless nothing may be sent there
// any more.
func (g *guard) spend(f *flow, n int) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if f.localFin || g.flows[f.id] != f {
		return false
	}
	f.sendCredit -= n
	return true
}

var errFlowOver = errors.New("the stream is over")

// outbound follows what this node sends, and tells whether it may be sent.
// Grants of yamux's own are taken out.
func (g *guard) outbound(h *yamuxHeader) bool {
	switch h.kind {
	case yamuxPing:
		if h.flags == flagSYN {
			g.pings[h.length] = time.Now()
		} else {
			g.pongsDue--
		}
		return true
	case yamuxGoAway:
		return true
	}
	if h.flags == flagSYN {
		g.lastOut = h.id
		f, _ := g.newFlow(h.id, true)
		h.length = f.first
		return true
	}
	f := g.flows[h.id]
	if f == nil || f.localFin {
		return false
	}
	if !f.outbound && !f.acked && h.kind == yamuxWindowUpdate {
		// Accepting a stream always sends a window update, but yamux leaves
		// the ACK away if FIN came first.
		h.flags = flagACK
	}
	switch {
	case h.flags == flagACK:
		f.acked = true
		g.unackedIn--
		h.length = f.first
	case h.flags == flagFIN:
		f.localFin = true
		f.closing = time.Now()
		if f.remoteFin {
			g.forget(f, true)
		}
	case h.flags == 0:
		return false
	}
	return true
}

// Close is called by yamux once it shuts down, and must not take time: until
// it returns, every Read and Write that waits in yamux spins.
func (g *guard) Close() error {
	if !g.closing.Load() {
		g.conn.Abort(nil)
	}
	return nil
}

// closeConn sends a sealed close, which takes for as long as bytes move.
func (g *guard) closeConn() {
	g.closing.Store(true)
	g.conn.Close()
}

// receiver returns what takes a flow's bytes, nil if the flow is over.
func (g *guard) receiver(id uint32) receiver {
	g.mu.Lock()
	defer g.mu.Unlock()
	if f := g.flows[id]; f != nil {
		return f.to
	}
	return nil
}

// over tells whether a flow is forgotten, and whether the peer has taken all
// that was sent there.
func (g *guard) over(f *flow) (over, taken bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.flows[f.id] != f, f.taken
}

// goAway tells the peer to open no more streams. yamux itself is not told, as
// it would answer late SYNs from its read loop, where writing can dead-lock two
// nodes that drain.
func (g *guard) goAway() error {
	defer g.conn.FlushFirst()
	g.writeMu.Lock()
	defer g.writeMu.Unlock()
	g.mu.Lock()
	g.refusals.leaving = true
	g.mu.Unlock()
	return g.queue(nil, appendHeader(g.small[:0], yamuxGoAway, 0, 0, 0))
}

// late returns the streams whose FIN the peer does not answer.
func (g *guard) late(now time.Time) (late []*flow) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, f := range g.flows {
		if f.localFin && f.localRST.IsZero() && now.Sub(f.closing) > closeTimeout {
			late = append(late, f)
		}
	}
	return late
}

// giveUp ends late streams: yamux is told the FIN that did not come, the peer
// gets RST.
func (g *guard) giveUp(late []*flow) {
	defer g.conn.FlushFirst()
	g.writeMu.Lock()
	defer g.writeMu.Unlock()
	for _, f := range late {
		if g.endLate(f) {
			g.queue(f, appendHeader(g.small[:0], yamuxWindowUpdate, flagRST, f.id, 0))
		}
	}
}

// endLate tells yamux the FIN that a flow waits for in vain, if it still does.
func (g *guard) endLate(f *flow) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.flows[f.id] != f || f.remoteFin {
		return false
	}
	f.localRST = time.Now()
	g.resets++
	g.inject = appendHeader(g.inject, yamuxWindowUpdate, flagFIN, f.id, 0)
	return true
}

// awaitsPong tells whether there are flows that only a ping's answer forgets.
func (g *guard) awaitsPong() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.resets > 0
}

// offender returns the flow of which most came although it was not promised,
// of those that are not aborted already, and how much that is.
func (g *guard) offender() (to receiver, beyond int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, f := range g.flows {
		if !f.dead && f.window.beyond > beyond {
			to, beyond = f.to, f.window.beyond
		}
	}
	return to, beyond
}

// abandon drops what still comes for an aborted stream, and wakes who waits
// to send there.
func (g *guard) abandon(f *flow) {
	g.mu.Lock()
	defer g.mu.Unlock()
	f.dead = true
	f.window.drop()
	g.settle(f)
	f.more.Broadcast()
}

// end forgets all flows once the link is dead.
func (g *guard) end() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, f := range g.flows {
		g.forget(f, f.remoteFin)
	}
	g.account.forgive(len(g.refusals.open))
	g.refusals = refusals{}
}
