package session

import (
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// A Conn is one end of a session: a net.Conn over which only sealed containers
// travel. One goroutine may read while others write; Close and Abort may be
// called at any time.
//
// Deadlines are those of the transport, and an operation that misses one ends
// the session: half a record cannot be taken back. The transport's Write has to
// say how much it wrote before a deadline, as TCP's does: Close goes on there,
// time and again.
type Conn struct {
	transport *counter
	info      info
	tx        transmitter
	rx        receiver

	closing atomic.Bool // Close was called: Read ends without a verdict
	ended   atomic.Bool // the peer's close has come
	failed  sync.Once
	err     atomic.Pointer[error] // the first fatal error
	done    chan struct{}         // closed with it
	flusher chan struct{}         // closed when the flusher has ended; nil if it never ran
}

// info is what the handshake agreed on.
type info struct {
	peer      PublicKey
	cipher    string
	transform string
	padding   int
	rtt       time.Duration
}

// Stats are counts since the session began.
type Stats struct {
	RecordsIn, RecordsOut uint64 // data records
	BytesIn, BytesOut     uint64 // their plaintext, padding not counted
	TakenOut              uint64 // of BytesOut, what went into WireOut
	WireIn, WireOut       uint64 // bytes of the transport, handshake included
	RekeysIn, RekeysOut   uint64
	LastIn                time.Time // when the last byte came
}

// counter counts the bytes of a transport.
type counter struct {
	net.Conn
	in, out atomic.Uint64
	lastIn  atomic.Int64 // nanoseconds since 1970
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 {
		c.in.Add(uint64(n))
		c.lastIn.Store(time.Now().UnixNano())
	}
	return n, err
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.out.Add(uint64(n))
	return n, err
}

// A receiver is the reading half. Its mutex makes concurrent Reads legal.
type receiver struct {
	mu      sync.Mutex
	open    opener
	body    []byte // opened and not yet read, inside the decoder's buffer
	next    error  // what follows that, if ReadRecords has looked
	records atomic.Uint64
	bytes   atomic.Uint64
	rekeys  atomic.Uint64
}

// conclude makes the Conn that the handshake agreed on and erases its secrets.
func (h *handshake) conclude() *Conn {
	c := &Conn{
		transport: h.conn,
		info:      info{h.peer, h.choice.Cipher, h.choice.Transform, h.choice.Padding, h.rtt},
		done:      make(chan struct{}),
	}
	c.tx.init(h.conn.Conn)
	if h.cfg.batch > 0 {
		c.tx.batch = h.cfg.batch
	}
	out, in := &c.tx.seal, &c.rx.open
	sendSecret, receiveSecret := &h.k1, &h.k2
	if !h.initiator {
		sendSecret, receiveSecret = receiveSecret, sendSecret
	}
	if log := h.cfg.keyLog; log != nil {
		out.keys.log = func(n int, key []byte) { log(h.initiator, n, key) }
		in.keys.log = func(n int, key []byte) { log(!h.initiator, n, key) }
	}
	// The cipher is one of two whose keys have 32 bytes: neither init fails.
	if err := errors.Join(out.keys.init(c.info.cipher, sendSecret), in.keys.init(c.info.cipher, receiveSecret)); err != nil {
		panic("session: " + err.Error())
	}
	out.padding, in.padding = c.info.padding, c.info.padding
	out.limit = h.cfg.RekeyRecords
	if out.limit == 0 || out.limit > maxRecords {
		out.limit = maxRecords
	}
	out.enc = newEncoder(c.info.transform)
	in.dec = newDecoder(c.info.transform, h.texts, h.conn, h.initiator)
	h.erase()
	return c
}

// start lets data flow.
func (c *Conn) start() {
	c.flusher = make(chan struct{})
	go c.flushLoop()
}

// readVerdict reads the responder's record 0.
func (c *Conn) readVerdict() error {
	typ, body, err := c.rx.open.next()
	if err != nil {
		return streamError(err)
	}
	switch {
	case typ == typeClose && c.rx.open.dec.buffered():
		return violation(RuleClose, "bytes after the sealed close")
	case typ == typeClose:
		return ErrNoRoom
	case typ == typeControl:
		return verdictOf(body)
	}
	return violation(RuleControl, "the responder's first record is not its verdict")
}

func verdictOf(body []byte) error {
	switch string(body) {
	case controlOK:
		return nil
	case controlNotFound:
		return ErrNotFound
	}
	return violation(RuleControl, "a control record with another body")
}

// refuse tells an initiator why there is no session, by a control record with
// the given body or, if that is empty, by the close alone, and waits until it
// has had time to read that. Errors do not matter: it is over.
func (c *Conn) refuse(control string, door Door) {
	if door != nil {
		door.Settled()
	}
	c.transport.SetDeadline(time.Now().Add(refusalLinger))
	err := c.writeNow(func(dst []byte) (_ []byte, err error) {
		if control != "" {
			if dst, err = c.tx.seal.short(dst, typeControl, control); err != nil {
				return dst, err
			}
		}
		return c.tx.seal.short(dst, typeClose, "")
	})
	if err == nil {
		linger(c.transport.Conn)
	}
}

// Read reads what the peer wrote. See the package comment for its errors.
func (c *Conn) Read(p []byte) (int, error) {
	defer c.eraseIfEnded() // after the unlocking
	c.rx.mu.Lock()
	defer c.rx.mu.Unlock()
	if len(p) == 0 {
		return 0, c.Err()
	}
	if err := c.awaitData(); err != nil {
		return 0, err
	}
	n := copy(p, c.rx.body)
	c.rx.body = c.rx.body[n:]
	return n, nil
}

// ReadRecords is Read without the copy: it appends to bodies the bodies of the
// next record, or what Read has left of it, and of those behind it that have
// arrived as well, up to its capacity. They have at least one byte, and are
// lent until the next Read or ReadRecords: nothing writes to them before that.
func (c *Conn) ReadRecords(bodies [][]byte) ([][]byte, error) {
	defer c.eraseIfEnded()
	c.rx.mu.Lock()
	defer c.rx.mu.Unlock()
	for first := true; len(bodies) < cap(bodies); first = false {
		if first {
			if err := c.awaitData(); err != nil {
				return bodies, err
			}
		} else if !c.takeData() {
			break
		}
		bodies = append(bodies, c.rx.body)
		c.rx.body = nil
	}
	return bodies, nil
}

// Modest keeps the memory for reading at its least, at the cost of speed. It is
// called before the first Read.
func (c *Conn) Modest() {
	c.rx.mu.Lock()
	defer c.rx.mu.Unlock()
	c.rx.open.dec.modest()
}

// awaitData waits until there is something in rx.body.
func (c *Conn) awaitData() error {
	for {
		if err := c.Err(); err != nil {
			return err
		}
		if c.closing.Load() {
			return net.ErrClosed
		}
		if len(c.rx.body) > 0 {
			return nil
		}
		c.rx.open.dec.release()
		err := c.rx.next
		if err == nil {
			err = c.nextRecord()
		}
		if err == io.EOF {
			c.answerClose()
		}
		if err != nil {
			if v := (*Violation)(nil); c.closing.Load() && !errors.As(err, &v) {
				return net.ErrClosed // Close unblocked this Read, and does the rest
			}
			return c.fail(err)
		}
	}
}

// takeData puts the next data into rx.body if it is there, without an end to
// the loan of what is lent already. What else it finds is told behind that.
func (c *Conn) takeData() bool {
	for c.rx.next == nil && c.rx.open.dec.complete() {
		c.rx.next = c.nextRecord()
		if len(c.rx.body) > 0 {
			return true
		}
	}
	return false
}

// nextRecord reads one record: data, a rekey, which leaves rx.body empty, or
// the end, io.EOF.
func (c *Conn) nextRecord() error {
	typ, body, err := c.rx.open.next()
	if err != nil {
		return streamError(err)
	}
	switch typ {
	case typeData:
		c.rx.body = body
		c.rx.records.Add(1)
		c.rx.bytes.Add(uint64(len(body)))
		return nil
	case typeRekey:
		c.rx.rekeys.Add(1)
		return nil
	case typeClose:
		if c.rx.open.dec.buffered() {
			return violation(RuleClose, "bytes after the sealed close")
		}
		return io.EOF
	}
	return violation(RuleControl, "a control record after the first record")
}

// streamError turns an end of the transport into ErrTruncated: whatever ended,
// it was not a sealed close.
func streamError(err error) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return ErrTruncated
	}
	return err
}

// fail ends the session with err unless it has ended already, and returns the
// error it ended with.
func (c *Conn) fail(err error) error {
	c.failed.Do(func() {
		c.err.Store(&err)
		close(c.done)
		c.transport.Close()
		c.tx.stop(err)
		if c.flusher == nil {
			c.tx.seal.keys.erase()
		}
	})
	c.eraseIfEnded()
	return c.Err()
}

// eraseIfEnded erases the receiving keys once the session has ended. A reader
// that holds the lock at this moment erases them when it returns.
func (c *Conn) eraseIfEnded() {
	if c.Err() != nil && c.rx.mu.TryLock() {
		c.rx.open.keys.erase()
		c.rx.mu.Unlock()
	}
}

// Abort ends the session at once with err: no sealed close, so the peer sees
// ErrTruncated. Blocked calls return err.
func (c *Conn) Abort(err error) {
	if err == nil {
		err = net.ErrClosed
	}
	c.fail(err)
}

// Err is nil while the session lives, then the error it ended with: io.EOF
// after the peer's sealed close, net.ErrClosed after Close.
func (c *Conn) Err() error {
	if err := c.err.Load(); err != nil {
		return *err
	}
	return nil
}

// Done is closed when the session has ended.
func (c *Conn) Done() <-chan struct{} { return c.done }

// Peer is the peer's static key, as proved in the handshake.
func (c *Conn) Peer() PublicKey { return c.info.peer }

// Cipher, Transform and Padding are what the handshake chose.
func (c *Conn) Cipher() string    { return c.info.cipher }
func (c *Conn) Transform() string { return c.info.transform }
func (c *Conn) Padding() int      { return c.info.padding }

// RTT is the time from one handshake message to its answer.
func (c *Conn) RTT() time.Duration { return c.info.rtt }

// Stats returns the counts so far.
func (c *Conn) Stats() Stats {
	return Stats{
		RecordsIn: c.rx.records.Load(), RecordsOut: c.tx.records.Load(),
		BytesIn: c.rx.bytes.Load(), BytesOut: c.tx.bytes.Load(),
		TakenOut: c.tx.taken.Load(), // before WireOut, which is to have all of it
		WireIn:   c.transport.in.Load(), WireOut: c.transport.out.Load(),
		RekeysIn: c.rx.rekeys.Load(), RekeysOut: c.tx.rekeys.Load(),
		LastIn: time.Unix(0, c.transport.lastIn.Load()),
	}
}

// LocalAddr and RemoteAddr are those of the transport.
func (c *Conn) LocalAddr() net.Addr  { return c.transport.LocalAddr() }
func (c *Conn) RemoteAddr() net.Addr { return c.transport.RemoteAddr() }

func (c *Conn) SetDeadline(t time.Time) error      { return c.transport.SetDeadline(t) }
func (c *Conn) SetReadDeadline(t time.Time) error  { return c.transport.SetReadDeadline(t) }
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.transport.SetWriteDeadline(t) }

var _ net.Conn = (*Conn)(nil)
