package mux

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"
)

// Constants of yamux's wire form.
const (
	yamuxHeaderLen = 12

	yamuxData         = 0
	yamuxWindowUpdate = 1
	yamuxPing         = 2
	yamuxGoAway       = 3

	flagSYN = 1
	flagACK = 2
	flagFIN = 4
	flagRST = 8

	// initialWindow is what yamux lets a new stream send unasked.
	initialWindow = 256 << 10
)

const (
	// minWindow and maxWindow bound the window that the guard keeps a stream
	// at. yamuxWindow is what yamux is told: it renews a window once half of it
	// was read, so that twice maxWindow keeps its own account above the guard's.
	minWindow   = 64 << 10
	maxWindow   = 16 << 20
	yamuxWindow = 2 * maxWindow

	// maxCredit is the largest window that a peer may grant.
	maxCredit = 1<<31 - 1

	// maxUnacked is how many streams this node has waiting for the peer's
	// ACK; a peer that has twice as many is no sealane. yamuxBacklog is above
	// both, so that yamux itself never refuses a stream.
	maxUnacked   = 256
	yamuxBacklog = 1024

	// maxFlows bounds the streams a link remembers, closing ones among them.
	maxFlows = 1 << 17

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
	Read([]byte) (int, error)
	WriteBuffers(head, body []byte) (int, error)
	Close() error
	Abort(error)
}

// A guard stands between a session and its yamux connection. Inbound, no byte
// of a header that hashicorp/yamux behind a guard would not have written
// reaches yamux; the link is aborted instead. Outbound, it makes that true of
// this node: header and body leave in one write, and nothing but RST follows a
// stream's FIN, whatever yamux's callers race to write.
//
// The guard also does the flow control. yamux believes in windows of
// yamuxWindow; on the wire a stream's window grows from yamux's initial one as
// far as the link's round trip asks for and the memory budget allows. Grants
// are due when a Stream has read (consumed), and leave from there.
type guard struct {
	conn   transport
	odd    bool // streams that this node opens have odd ids
	budget *budget
	hooks  guardHooks
	rtt    atomic.Int64 // least round trip seen, in nanoseconds

	bytesIn, bytesOut atomic.Uint64
	closing           atomic.Bool // closeConn was called

	// Inbound, used by yamux's one reader only.
	held     [yamuxHeaderLen]byte // the start of a header whose rest has not come
	heldLen  int
	bodyIn   int  // bytes left of the DATA body that is coming in
	skipBody bool // that body is for a stream that is over
	readErr  error
	readDone chan struct{} // closed when Read has returned its error
	readOnce sync.Once

	// Outbound. writeMu is taken before mu and held while the session writes.
	writeMu  sync.Mutex
	header   [yamuxHeaderLen]byte // the header being written; DATA's waits for its body
	bodyOut  int                  // length of the body that yamux writes next
	dropBody bool

	mu        sync.Mutex
	flows     map[uint32]*flow
	lastIn    uint32              // highest id that the peer opened
	gaps      map[uint32]struct{} // lower ones that it has not opened yet
	lastOut   uint32              // highest id that this node opened
	unackedIn int
	inject    []byte // headers for yamux that the peer did not send
	pings     map[uint32]time.Time
	pongsDue  int
	goneAway  bool // the peer sent go away
	left      bool // this node sent go away
	synRate   bucket
	rstRate   bucket
	pingRate  bucket

	// opens holds an element for each stream opened here and not yet acknowledged.
	opens chan struct{}
}

// errPeerFault is not a violation: it says that the peer saw one, or its own fault.
var errPeerFault = errors.New("the peer's yamux reported an error")

// guardHooks are called without locks and must not block.
type guardHooks struct {
	goAway func()      // the peer sent go away
	ended  func(error) // nothing more comes
}

// A flow is a stream as the wire shows it. The guard's mu protects it.
type flow struct {
	id       uint32
	outbound bool // opened by this node
	acked    bool

	localFin, remoteFin bool
	localRST            time.Time // when this node gave up waiting for FIN; zero: not
	closing             time.Time // when localFin was sent

	sendCredit int // granted by the peer and not yet used
	recvCredit int // granted to the peer and not yet used
	unread     int // arrived and not yet read
	window     int // what recvCredit and unread together are kept at
	granted    time.Time
	busy       bool // read from since the last sweep

	ended  bool    // the stream has read END: what still comes needs a reader
	dead   bool    // the stream was aborted: what still comes is dropped
	stream *Stream // whom to tell about the end; nil until attached
	wake   func()  // whom to tell that something came; nil unless it sleeps
}

func newGuard(conn transport, client bool, b *budget, hooks guardHooks) *guard {
	return &guard{
		conn:     conn,
		odd:      client,
		budget:   b,
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

// Read gives yamux checked bytes only. It checks them where they lie: a header
// whose end has not come is held back, and what is not for yamux is cut out.
func (g *guard) Read(p []byte) (int, error) {
	if len(p) < 2*yamuxHeaderLen {
		return 0, io.ErrShortBuffer // yamux reads through a bufio.Reader of 4 KiB
	}
	for {
		if g.readErr != nil {
			// All that came before has reached its streams by now.
			g.hooks.ended(g.readErr)
			g.readOnce.Do(func() { close(g.readDone) })
			return 0, g.readErr
		}
		if g.bodyIn == 0 {
			if n := g.takeInjected(p); n > 0 {
				return n, nil
			}
		}
		n := copy(p, g.held[:g.heldLen])
		g.heldLen = 0
		m, err := g.conn.Read(p[n:])
		g.bytesIn.Add(uint64(m))
		kept, bad := g.filter(p[:n+m])
		if bad != nil {
			g.conn.Abort(bad)
			err = bad
		}
		g.readErr = err
		if kept > 0 {
			return kept, nil
		}
	}
}

func (g *guard) takeInjected(p []byte) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	n := copy(p[:len(p)/yamuxHeaderLen*yamuxHeaderLen], g.inject)
	g.inject = g.inject[n:]
	return n
}

// filter checks the headers in p, moves what yamux may see to its front and
// returns the length of that.
func (g *guard) filter(p []byte) (int, error) {
	w := 0
	for r := 0; r < len(p); {
		if g.bodyIn > 0 {
			n := min(g.bodyIn, len(p)-r)
			if !g.skipBody {
				if w != r {
					copy(p[w:], p[r:r+n])
				}
				w += n
			}
			r += n
			g.bodyIn -= n
			continue
		}
		if len(p)-r < yamuxHeaderLen {
			g.heldLen = copy(g.held[:], p[r:])
			break
		}
		pass, err := g.inbound(parseHeader(p[r:]))
		if err != nil {
			return 0, err
		}
		if pass {
			w += copy(p[w:], p[r:r+yamuxHeaderLen])
		}
		r += yamuxHeaderLen
	}
	return w, nil
}

type yamuxHeader struct {
	version, kind byte
	flags         uint16
	id, length    uint32
}

func parseHeader(b []byte) yamuxHeader {
	return yamuxHeader{
		version: b[0],
		kind:    b[1],
		flags:   binary.BigEndian.Uint16(b[2:]),
		id:      binary.BigEndian.Uint32(b[4:]),
		length:  binary.BigEndian.Uint32(b[8:]),
	}
}

func appendHeader(b []byte, kind byte, flags uint16, id, length uint32) []byte {
	b = append(b, 0, kind)
	b = binary.BigEndian.AppendUint16(b, flags)
	b = binary.BigEndian.AppendUint32(b, id)
	return binary.BigEndian.AppendUint32(b, length)
}

// inbound checks one header and tells whether yamux is to see it.
func (g *guard) inbound(h yamuxHeader) (pass bool, err error) {
	if h.version != 0 {
		return false, violation(RuleYamuxVersion, fmt.Sprintf("yamux version %d", h.version))
	}
	switch h.kind {
	case yamuxPing:
		return true, g.inboundPing(h)
	case yamuxGoAway:
		return true, g.inboundGoAway(h)
	case yamuxData, yamuxWindowUpdate:
	default:
		return false, violation(RuleYamuxType, fmt.Sprintf("yamux type %d", h.kind))
	}
	if err := checkShape(h); err != nil {
		return false, err
	}

	g.mu.Lock()
	var s *Stream // to be told, once mu is free
	afterEnd := false
	f, err := g.inboundFlow(h)
	if err == nil && f != nil {
		pass, s, err = g.inboundStream(f, h)
		afterEnd = f.ended && h.kind == yamuxData && h.length > 0
	}
	if h.kind == yamuxData && err == nil {
		g.bodyIn, g.skipBody = int(h.length), !pass
	}
	g.mu.Unlock()
	if s != nil {
		s.wake(afterEnd)
	}
	return pass, err
}

// checkShape knows which flags go together. Any type of header may open,
// acknowledge, end or reset its stream, and a header that only ends one may
// still carry data or a grant (yamux specification, "Flag Field").
func checkShape(h yamuxHeader) error {
	if h.id == 0 {
		return violation(RuleYamuxStream, "stream id 0")
	}
	const known = flagSYN | flagACK | flagFIN | flagRST
	const both = flagFIN | flagRST
	if h.flags&^known != 0 || h.flags&flagSYN != 0 && h.flags&(flagACK|flagRST) != 0 || h.flags&both == both {
		return violation(RuleYamuxFlags, fmt.Sprintf("flags %#x", h.flags))
	}
	return nil
}

// inboundFlow finds the flow of a header. It returns nil, without an error, if
// the header is to be ignored.
func (g *guard) inboundFlow(h yamuxHeader) (*flow, error) {
	if h.flags&flagRST != 0 && !g.rstRate.take() {
		return nil, violation(RuleYamuxRate, "too many RST")
	}
	own := h.id%2 == 1 == g.odd
	if h.flags&flagSYN != 0 {
		return g.inboundSYN(h, own)
	}
	if f := g.flows[h.id]; f != nil {
		return f, nil
	}
	if own && h.id > g.lastOut || !own && !g.wasOpened(h.id) {
		return nil, violation(RuleYamuxStream, "a stream that was never opened")
	}
	switch {
	case h.flags&flagRST != 0 || h.kind == yamuxWindowUpdate && h.flags == 0:
		// The peer gave up on a FIN just as it was sent, or read on after its own.
		return nil, nil
	case h.flags&flagFIN != 0:
		return nil, violation(RuleYamuxFin, "a FIN for a stream that is over")
	}
	return nil, violation(RuleYamuxStream, "a stream that is over")
}

func (g *guard) inboundSYN(h yamuxHeader, own bool) (*flow, error) {
	switch {
	case own:
		return nil, violation(RuleYamuxParity, "SYN with an id of this node's parity")
	case g.wasOpened(h.id):
		return nil, violation(RuleYamuxReuse, "SYN with an id that is not new")
	case !g.synRate.take():
		return nil, violation(RuleYamuxRate, "too many SYN")
	case g.unackedIn >= 2*maxUnacked:
		return nil, violation(RuleYamuxBacklog, "too many streams without ACK")
	case len(g.flows) >= maxFlows:
		return nil, violation(RuleYamuxBacklog, "too many streams")
	}
	g.markOpened(h.id)
	g.unackedIn++
	f := &flow{id: h.id, sendCredit: initialWindow, recvCredit: initialWindow, window: initialWindow}
	g.flows[h.id] = f
	return f, nil
}

// wasOpened reports whether the peer has opened a stream with this id.
func (g *guard) wasOpened(id uint32) bool {
	_, gap := g.gaps[id]
	return id <= g.lastIn && !gap
}

// markOpened notes a new id. A peer's ids may overtake each other on their way
// to the wire, so those that it has skipped may still come, as far as maxGaps
// remembers them.
func (g *guard) markOpened(id uint32) {
	if id <= g.lastIn {
		delete(g.gaps, id)
		return
	}
	first := id % 2 // the ids of one parity start at 1 or 2
	if first == 0 {
		first = 2
	}
	if g.lastIn > 0 {
		first = g.lastIn + 2
	}
	g.lastIn = id
	if id-first > 2*maxGaps {
		clear(g.gaps)
		first = id - 2*maxGaps
	}
	for skipped := first; skipped < id && len(g.gaps) < 2*maxGaps; skipped += 2 {
		g.gaps[skipped] = struct{}{}
	}
}

// inboundStream checks a header against its flow. The stream it returns is to
// be told that the peer finished it, or sent it something after END.
func (g *guard) inboundStream(f *flow, h yamuxHeader) (pass bool, tell *Stream, err error) {
	ends := h.flags & (flagFIN | flagRST)
	if f.remoteFin && ends&flagRST == 0 && (h.kind == yamuxData || ends != 0) {
		return false, nil, violation(RuleYamuxFin, "data or FIN after FIN")
	}
	if err := g.checkACK(f, h); err != nil {
		return false, nil, err
	}
	if h.kind == yamuxData {
		pass, tell, err = g.inboundData(f, int64(h.length))
	} else {
		// yamux no longer knows a stream that this node has reset.
		pass, err = f.localRST.IsZero(), f.credit(int64(h.length))
	}
	if err != nil || ends == 0 {
		return pass, tell, err
	}
	f.remoteFin = true
	f.rouse()
	if !pass && f.localRST.IsZero() {
		// The body goes nowhere, but yamux has to see the end.
		g.inject = appendHeader(g.inject, yamuxWindowUpdate, ends, f.id, 0)
	}
	if ends&flagRST != 0 || f.localFin {
		g.forget(f)
	}
	return pass, f.stream, nil
}

// inboundData takes the body of a DATA header out of the window, and tells
// whether anybody still reads it.
func (g *guard) inboundData(f *flow, length int64) (pass bool, tell *Stream, err error) {
	if length > int64(f.recvCredit) {
		return false, nil, violation(RuleYamuxWindow, "more data than the window")
	}
	f.recvCredit -= int(length)
	if f.localFin || f.dead {
		return false, nil, nil
	}
	f.unread += int(length)
	g.budget.add(int(length))
	f.rouse()
	if f.ended && length > 0 {
		tell = f.stream
	}
	return true, tell, nil
}

// credit takes a grant from the peer.
func (f *flow) credit(length int64) error {
	if int64(f.sendCredit)+length > maxCredit {
		return violation(RuleYamuxWindow, "a window of more than 2 GiB")
	}
	f.sendCredit += int(length)
	return nil
}

// checkACK holds an accepter to ACK (or RST) first and never again. A plain
// yamux that sees FIN before it has accepted the stream forgets the ACK.
func (g *guard) checkACK(f *flow, h yamuxHeader) error {
	switch {
	case h.flags&flagACK != 0 && (!f.outbound || f.acked):
		return violation(RuleYamuxAck, "ACK where none is due")
	case h.flags&flagACK != 0:
		f.acked = true
		g.opened()
	case f.outbound && !f.acked && h.flags&flagRST == 0 && !f.localFin:
		return violation(RuleYamuxAck, "a header before ACK")
	}
	return nil
}

// forget removes a flow for which nothing more may come.
func (g *guard) forget(f *flow) {
	if g.flows[f.id] != f {
		return
	}
	delete(g.flows, f.id)
	g.budget.release(f.unread)
	f.unread = 0
	if f.acked {
		return
	}
	if f.outbound {
		g.opened()
	} else {
		g.unackedIn--
	}
}

// opened gives back the place among opens that a stream's opener took.
func (g *guard) opened() {
	select {
	case <-g.opens:
	default:
	}
}

func (g *guard) inboundPing(h yamuxHeader) error {
	if h.id != 0 {
		return violation(RuleYamuxPing, "ping with a stream id")
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	switch h.flags {
	case flagSYN:
		g.pongsDue++
		if !g.pingRate.take() || g.pongsDue > int(g.pingRate.burst) {
			return violation(RuleYamuxRate, "too many pings")
		}
	case flagACK:
		sent, ok := g.pings[h.length]
		if !ok {
			return violation(RuleYamuxPing, "an answer to no ping")
		}
		delete(g.pings, h.length)
		g.forgetReset(sent)
	default:
		return violation(RuleYamuxFlags, fmt.Sprintf("ping with flags %#x", h.flags))
	}
	return nil
}

// forgetReset forgets flows that were reset before a ping that is now
// answered: the peer has seen the RST, and has had time to send what it had
// under way.
func (g *guard) forgetReset(before time.Time) {
	for _, f := range g.flows {
		if !f.localRST.IsZero() && f.localRST.Before(before.Add(-lateAfterReset)) {
			g.forget(f)
		}
	}
}

func (g *guard) inboundGoAway(h yamuxHeader) error {
	const normal, internalError = 0, 2
	if h.flags != 0 {
		return violation(RuleYamuxFlags, fmt.Sprintf("go away with flags %#x", h.flags))
	}
	if h.id != 0 || h.length > internalError {
		return violation(RuleYamuxGoAway, "go away with a stream id or an unknown reason")
	}
	g.mu.Lock()
	again := g.goneAway
	g.goneAway = true
	g.mu.Unlock()
	if again {
		return violation(RuleYamuxGoAway, "a second go away")
	}
	if h.length != normal {
		return errPeerFault // yamux would end the link the hard way
	}
	g.hooks.goAway()
	return nil
}

// Write takes what yamux writes: a header, or the body of the DATA header
// before it. yamux shuts down when it returns an error, so the streams are
// woken before that, once they have all that came.
func (g *guard) Write(p []byte) (int, error) {
	n, err := g.write(p)
	if err != nil {
		g.conn.Abort(err)
		select {
		case <-g.readDone:
		case <-time.After(time.Second):
			g.hooks.ended(err)
		}
	}
	return n, err
}

func (g *guard) write(p []byte) (int, error) {
	g.writeMu.Lock()
	defer g.writeMu.Unlock()
	if g.bodyOut > 0 {
		return g.writeBody(p)
	}
	if len(p) != yamuxHeaderLen {
		return 0, errors.New("mux: yamux wrote something other than a header")
	}
	h := parseHeader(p)
	g.mu.Lock()
	pass := g.outbound(&h)
	g.mu.Unlock()
	if h.kind == yamuxData && h.length > 0 {
		g.bodyOut, g.dropBody = int(h.length), !pass
		copy(g.header[:], p)
		return len(p), nil
	}
	if !pass {
		return len(p), nil
	}
	return len(p), g.send(appendHeader(g.header[:0], h.kind, h.flags, h.id, h.length), nil)
}

// writeBody sends the held header and its body as one.
func (g *guard) writeBody(p []byte) (int, error) {
	if len(p) != g.bodyOut {
		return 0, errors.New("mux: yamux wrote a body of another length than its header's")
	}
	g.bodyOut = 0
	if g.dropBody {
		return len(p), nil
	}
	return len(p), g.send(g.header[:], p)
}

func (g *guard) send(head, body []byte) error {
	n, err := g.conn.WriteBuffers(head, body)
	g.bytesOut.Add(uint64(n))
	return err
}

// outbound follows what this node sends, and tells whether it may be sent.
// Grants of yamux's own are taken out: see consumed.
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
		g.flows[h.id] = &flow{
			id: h.id, outbound: true,
			sendCredit: initialWindow, recvCredit: initialWindow, window: initialWindow,
		}
		h.length = 0
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
	case h.kind == yamuxData:
		f.sendCredit -= int(h.length)
	case h.flags == flagACK:
		f.acked = true
		g.unackedIn--
		h.length = 0
	case h.flags == flagFIN:
		f.localFin = true
		f.closing = time.Now()
		if f.remoteFin {
			g.forget(f)
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

// closeConn sends a sealed close, which can take a second.
func (g *guard) closeConn() {
	g.closing.Store(true)
	g.conn.Close()
}

// attach tells a flow whose stream it is. It returns nil if the flow is over.
func (g *guard) attach(id uint32, s *Stream) *flow {
	g.mu.Lock()
	defer g.mu.Unlock()
	f := g.flows[id]
	if f != nil {
		f.stream = s
	}
	return f
}

// finished tells whether the peer has finished the flow.
func (g *guard) finished(f *flow) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return f.remoteFin
}

// waiting tells whether there is something to read, or will be at once.
func (g *guard) waiting(f *flow) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return f.unread > 0
}

// canSend tells whether n bytes may be sent without waiting for a grant.
func (g *guard) canSend(f *flow, n int) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return f.sendCredit >= n
}

// endSeen tells the guard that a stream has read END. The result tells
// whether something has already come after it.
func (g *guard) endSeen(f *flow) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	f.ended = true
	return f.unread > 0
}

// consumed tells the guard that a stream has read n bytes, and grants the peer
// a new window when half of it is free.
func (g *guard) consumed(f *flow, n int) {
	g.mu.Lock()
	n = min(n, f.unread)
	f.unread -= n
	f.busy = true
	g.budget.release(n)
	due := g.due(f)
	g.mu.Unlock()
	if !due {
		return
	}
	// Grant and FIN must not pass each other: writeMu covers both.
	g.writeMu.Lock()
	defer g.writeMu.Unlock()
	g.mu.Lock()
	free := 0
	if g.due(f) {
		// Windows shrink, with the budget: what was granted stays granted.
		free = max(0, g.grow(f)-f.recvCredit-f.unread)
		f.recvCredit += free
	}
	g.mu.Unlock()
	if free > 0 {
		var b [yamuxHeaderLen]byte
		g.send(appendHeader(b[:0], yamuxWindowUpdate, 0, f.id, uint32(free)), nil) // yamux sees the error, too
	}
}

// due tells whether what may be granted to a flow is worth a header.
func (g *guard) due(f *flow) bool {
	if f.localFin || f.remoteFin || f.ended || f.dead || g.flows[f.id] != f {
		return false
	}
	window := g.budget.window(f.window)
	return window-f.recvCredit-f.unread >= window/2
}

// grow returns a flow's window, twice as large as before if the peer used that
// up within a few round trips.
func (g *guard) grow(f *flow) int {
	now := time.Now()
	rtt := time.Duration(g.rtt.Load())
	if f.granted.IsZero() || now.Sub(f.granted) < 4*rtt+20*time.Millisecond {
		// The round trip is the least seen so far: a later one may ask for less.
		f.window = max(f.window, min(2*f.window, windowFor(rtt)))
	}
	f.granted = now
	return g.budget.window(f.window)
}

// windowFor sizes a stream's window by the link's round trip: a stream can
// then fill 2.5 Gbit/s at any distance up to 50 ms.
func windowFor(rtt time.Duration) int {
	const lowest = 1 << 20
	return int(max(lowest, min(maxWindow, int64(rtt)*maxWindow/int64(50*time.Millisecond))))
}

// goAway tells the peer to open no more streams, once. yamux itself is not
// told, as it would answer late SYNs from its read loop, where writing can
// dead-lock two nodes that drain.
func (g *guard) goAway() error {
	g.writeMu.Lock()
	defer g.writeMu.Unlock()
	if g.left {
		return nil
	}
	g.left = true
	return g.send(appendHeader(nil, yamuxGoAway, 0, 0, 0), nil)
}

// sweep runs every few seconds. It frees the buffers of idle streams, and
// ends streams whose FIN the peer does not answer: yamux is told the FIN that
// did not come, the peer gets RST.
func (g *guard) sweep(now time.Time) {
	var idle []*Stream
	var late []*flow
	g.mu.Lock()
	for _, f := range g.flows {
		if f.stream != nil && f.unread == 0 && !f.busy && !f.localFin {
			idle = append(idle, f.stream)
		}
		f.busy = false
		if f.localFin && f.localRST.IsZero() && now.Sub(f.closing) > closeTimeout {
			late = append(late, f)
		}
	}
	g.mu.Unlock()
	for _, s := range idle {
		s.ys.Shrink()
	}
	if len(late) == 0 {
		return
	}
	g.writeMu.Lock()
	defer g.writeMu.Unlock()
	var resets []byte
	g.mu.Lock()
	for _, f := range late {
		if g.flows[f.id] == f && !f.remoteFin {
			f.localRST = time.Now()
			g.inject = appendHeader(g.inject, yamuxWindowUpdate, flagFIN, f.id, 0)
			resets = appendHeader(resets, yamuxWindowUpdate, flagRST, f.id, 0)
		}
	}
	g.mu.Unlock()
	if len(resets) > 0 {
		g.send(resets, nil)
	}
}

// largest returns the stream with the most unread bytes, of those that are
// not aborted already.
func (g *guard) largest() (s *Stream, unread int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, f := range g.flows {
		if f.stream != nil && !f.dead && f.unread > unread {
			s, unread = f.stream, f.unread
		}
	}
	return s, unread
}

// abandon drops what still comes for an aborted stream.
func (g *guard) abandon(f *flow) {
	g.mu.Lock()
	defer g.mu.Unlock()
	f.dead = true
}

// end forgets all flows once the link is dead.
func (g *guard) end() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, f := range g.flows {
		g.forget(f)
	}
}

// measured takes a round trip of the link.
func (g *guard) measured(rtt time.Duration) {
	if old := g.rtt.Load(); rtt > 0 && (old == 0 || int64(rtt) < old) {
		g.rtt.Store(int64(rtt))
	}
}

// A bucket is a token bucket. It starts full.
type bucket struct {
	rate, burst float64
	used        float64
	last        time.Time
}

func (b *bucket) take() bool {
	now := time.Now()
	if !b.last.IsZero() {
		b.used = max(0, b.used-b.rate*now.Sub(b.last).Seconds())
	}
	b.last = now
	if b.used+1 > b.burst {
		return false
	}
	b.used++
	return true
}
