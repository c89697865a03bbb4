package session

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sealane/sealane/session/loan"
)

const (
	// MaxBody is the most bytes that one record carries.
	MaxBody = maxBody

	// batchRecords is how many records gather while the ones before are sent:
	// 2 MiB. Fewer make more calls and changes of who runs (docs/performance.md).
	batchRecords = 32

	// copyLimit is the largest body that is copied into the record before it
	// to save one of its own.
	copyLimit = 8 << 10
)

// A transmitter is the writing half. What is queued gathers in one batch while
// the other is sealed and sent, by whoever came first: a caller of Flush that
// finds nobody sending, or else the flusher. So a lone writer's bytes leave
// without waking anybody, and those of many leave together.
//
// A batch has two parts: the lane, which leaves first, for what is small and
// must not wait, and the rest, in turn. Both are bounded by the time that the
// transport takes for them, and the batch is taken only once the kernel has
// little left to send: what comes into the lane waits for no more than that.
type transmitter struct {
	writing sync.Mutex // the turn; held for a whole Write: two never mix

	mu    sync.Mutex
	work  sync.Cond // the flusher may have something to do
	room  sync.Cond // the batch being filled was taken, or an end
	batch int       // the most records of one that wait in turn
	next  batch     // the one being filled
	spare []*Buffer // empty; next's array after the next swap
	busy  bool      // somebody sends, and owns seal, out, pace and kernel
	ended error     // what queueing returns; set by the first of shut and stop
	until time.Time // when sending has to be over, whatever moves; set by shut
	dead  bool      // stop was called: send nothing more

	seal   sealer
	out    []byte // sealed bytes of one batch
	rest   []byte // of out: what was not written yet
	last   bool   // the sealed close is in out
	pace   pace
	kernel unsentQueue

	amount  atomic.Int64 // the most bytes that gather: pace's
	records atomic.Uint64
	bytes   atomic.Uint64
	taken   atomic.Uint64 // of bytes, what the transport has
	rekeys  atomic.Uint64
}

func (t *transmitter) init(transport net.Conn) {
	t.work.L, t.room.L = &t.mu, &t.mu
	t.batch = batchRecords
	t.next = batch{number: 1, turn: make([]*Buffer, 0, batchRecords)}
	t.spare = make([]*Buffer, 0, batchRecords)
	t.amount.Store(int64(t.pace.amount()))
	t.kernel.init(transport)
}

// Write queues p and sends it. The error of a failed send is that of a later
// call.
func (c *Conn) Write(p []byte) (int, error) {
	n, err := c.queue(p)
	c.Flush()
	return n, err
}

// queue puts p, which it copies, into the records that leave next. It blocks
// while a whole batch of them waits. Somebody has to call Flush.
func (c *Conn) queue(p []byte) (total int, err error) {
	t := &c.tx
	t.writing.Lock()
	defer t.writing.Unlock()
	t.mu.Lock()
	defer t.mu.Unlock()
	for len(p) > 0 {
		if err := t.await(1); err != nil {
			return total, err
		}
		n := t.next.add(p[:min(len(p), max(1, int(t.amount.Load())-t.next.size))])
		p = p[n:]
		total += n
	}
	return total, t.ended
}

// Grain is the most that is worth queueing at once: more would keep others
// waiting for long.
func (c *Conn) Grain() int {
	n := int(c.tx.amount.Load())
	if c.info.padding > 0 {
		n = max(1, n/c.info.padding)*c.info.padding - recordHeader // full to the last byte
	}
	return min(n, MaxBody)
}

// BeginTurn waits until nobody else has the turn, and there is room for n bytes
// in the batch being filled. After it, without an error, comes EndTurn.
func (c *Conn) BeginTurn(n int) error {
	t := &c.tx
	t.writing.Lock()
	t.mu.Lock()
	defer t.mu.Unlock()
	err := t.await(n)
	if err != nil {
		t.writing.Unlock()
	}
	return err
}

// EndTurn lets others have their turn.
func (c *Conn) EndTurn() { c.tx.writing.Unlock() }

// await waits for room for n bytes, with mu held. Whoever queued what fills the
// batch may not have come to Flush yet.
func (t *transmitter) await(n int) error {
	for t.ended == nil && len(t.next.turn) > 0 && (t.next.size+n > int(t.amount.Load()) || t.next.full(n, t.batch)) {
		t.work.Signal()
		t.room.Wait()
	}
	return t.ended
}

// QueueBuffer queues the first n bytes of a Buffer's body, which is the Conn's
// from now on. It does not wait: it is for who has the turn. Somebody has to
// call Flush.
func (c *Conn) QueueBuffer(b *Buffer, n int) (Mark, error) {
	t := &c.tx
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.ended != nil:
		b.Free()
		return Mark{}, t.ended
	case n <= copyLimit:
		t.next.append(b.Body()[:n])
		b.Free()
	default:
		b.end = recordHeader + n
		t.next.turn = append(t.next.turn, b)
		t.next.size += n
	}
	return Mark{t.next.number, true}, nil
}

// QueueFirst puts p, which it copies, in front of all that was not queued so,
// but never in front of what got the mark behind. It waits while as much is
// there as the transport takes at once. Somebody has to call Flush, or
// FlushFirst.
func (c *Conn) QueueFirst(p []byte, behind Mark) error {
	t := &c.tx
	t.mu.Lock()
	defer t.mu.Unlock()
	for t.ended == nil && !t.next.first(p, behind, t.laneSize()) {
		t.work.Signal()
		t.room.Wait()
	}
	return t.ended
}

// TryFirst is QueueFirst for what may go another way: it reports false, with
// nothing queued, if it would have to wait, if what got the mark behind has not
// left, or if half of the place in front is taken. With wake, the flusher sends
// it.
func (c *Conn) TryFirst(p []byte, behind Mark, wake bool) (Mark, bool) {
	t := &c.tx
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ended != nil || behind.batch == t.next.number || !t.next.first(p, behind, t.laneSize()/2) {
		return Mark{}, false
	}
	if wake {
		t.work.Signal()
	}
	return Mark{batch: t.next.number}, true
}

// laneSize is the most bytes in the lane. As much as may gather behind them:
// whatever there is in front, the rest gets half of the transport.
func (t *transmitter) laneSize() int {
	return int(min(maxBody, max(2*leastAmount, t.amount.Load())))
}

// Flush sends what is queued, unless somebody is sending already: that one
// sees to it. A few bytes first let other goroutines run, which may have some
// to send along. It may block in the transport's Write.
func (c *Conn) Flush() { c.flush(true) }

// FlushFirst is Flush for who has queued nothing but with QueueFirst or
// TryFirst: if more is to be sent, others do it.
func (c *Conn) FlushFirst() { c.flush(false) }

func (c *Conn) flush(all bool) {
	t := &c.tx
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.busy && !t.next.empty() && t.next.size+t.next.lane.size() <= copyLimit {
		t.mu.Unlock()
		runtime.Gosched()
		t.mu.Lock()
	}
	if t.busy || t.next.empty() || t.ended != nil {
		return
	}
	if all || len(t.next.turn) == 0 {
		c.sendNext()
	}
	if !t.next.empty() || t.ended != nil {
		t.work.Signal()
	}
}

// sendNext sends one batch, with mu held except while it does. It reports
// whether that succeeded.
func (c *Conn) sendNext() bool {
	t := &c.tx
	t.busy = true
	begun := time.Now()
	dry := true
	if len(t.next.turn) > 0 && t.ended == nil {
		unsent, amount := t.kernel.bytes(), int(t.amount.Load())
		if dry = unsent == 0; unsent > amount/2 {
			t.mu.Unlock()
			t.kernel.await(amount / 2) // and only then take what has come until then
			t.mu.Lock()
		}
	}
	b := t.next
	t.next, t.spare = batch{number: b.number + 1, turn: t.spare}, nil
	t.room.Broadcast()
	t.mu.Unlock()
	err := c.send(b)
	if b.size > 0 && err == nil {
		t.observe(b.size, dry, begun)
	}
	if err != nil {
		c.writeFailed(err)
	}
	t.mu.Lock()
	t.spare = b.turn[:0]
	t.busy = false
	return err == nil
}

// stop ends everything: nothing more is sent.
func (t *transmitter) stop(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ended == nil {
		t.ended = err
	}
	t.dead = true
	t.work.Signal()
	t.room.Broadcast()
}

// flushLoop sends what nobody else does, until the session ends, and then the
// sealed close.
func (c *Conn) flushLoop() {
	defer close(c.flusher)
	t := &c.tx
	t.mu.Lock()
	defer t.mu.Unlock()
	defer t.seal.keys.erase()
	for {
		for t.busy || t.next.empty() && t.ended == nil {
			t.work.Wait()
		}
		if t.ended != nil {
			c.transport.SetWriteDeadline(time.Now().Add(closeTick)) // after shut's, under the same lock
		}
		switch {
		case t.dead:
			t.drop()
			return
		case len(t.rest) > 0:
			c.sendRest()
		case !t.next.empty():
			c.sendNext()
		case !t.last:
			c.sendClose()
		default:
			return
		}
	}
}

// drop frees what will not be sent.
func (t *transmitter) drop() {
	if t.next.lane != nil {
		t.next.lane.Free()
	}
	for _, b := range t.next.turn {
		b.Free()
	}
	t.next = batch{}
}

// sendRest goes on where shut stopped a sender, with mu held except while it
// does.
func (c *Conn) sendRest() {
	t := &c.tx
	t.busy = true
	t.mu.Unlock()
	if err := c.push(); err != nil {
		c.writeFailed(err)
	}
	t.mu.Lock()
	t.busy = false
}

// sendClose sends the sealed close, with mu held except while it does.
func (c *Conn) sendClose() {
	t := &c.tx
	t.busy, t.last = true, true
	t.mu.Unlock()
	err := c.writeNow(func(dst []byte) ([]byte, error) { return t.seal.short(dst, typeClose, "") })
	if err != nil {
		c.writeFailed(err)
	}
	t.mu.Lock()
	t.busy = false
}

// writeFailed ends the session with a write's error, unless the peer's close
// says better why it ends.
func (c *Conn) writeFailed(err error) {
	if c.ended.Load() {
		c.fail(io.EOF)
		return
	}
	c.fail(fmt.Errorf("write: %w", err))
}

// send seals a batch, which it frees, and writes it in one call.
func (c *Conn) send(b batch) error {
	t := &c.tx
	err := c.writeNow(func(dst []byte) (_ []byte, err error) {
		if b.lane != nil {
			dst, err = t.sealData(dst, b.lane)
		}
		for i, buf := range b.turn {
			if err == nil {
				dst, err = t.sealData(dst, buf)
			} else {
				buf.Free()
			}
			b.turn[i] = nil
		}
		return dst, err
	})
	t.taken.Store(t.bytes.Load())
	return err
}

// sealData seals the record in b, and frees that.
func (t *transmitter) sealData(dst []byte, b *Buffer) ([]byte, error) {
	defer b.Free()
	generation := t.seal.keys.generation
	dst, err := t.seal.data(dst, b.plain[:], b.end)
	if err != nil {
		return dst, err
	}
	t.rekeys.Add(uint64(t.seal.keys.generation - generation))
	t.records.Add(1)
	t.bytes.Add(uint64(b.end - recordHeader))
	return dst, nil
}

// observe tells the pace of a batch with so many bytes that wait in turn, which
// was to be sent since a time, when the kernel had nothing or something left.
// What the wire takes for them is theirs.
func (t *transmitter) observe(size int, dry bool, begun time.Time) {
	unsent := int(int64(t.kernel.bytes()) * int64(size) / int64(len(t.out)))
	t.pace.observe(size, unsent, dry, begun, time.Now())
	amount := t.pace.amount()
	t.amount.Store(int64(amount))
	t.kernel.follow(amount / 2)
}

// writeNow puts the records that seal appends on the wire.
func (c *Conn) writeNow(seal func(dst []byte) ([]byte, error)) error {
	t := &c.tx
	out, err := seal(t.out[:0])
	if err != nil {
		return err
	}
	t.out = t.seal.enc.flush(out)
	t.rest = t.out
	if err = c.writeRest(); t.stoppedBy(err) {
		return nil
	}
	return err
}

// writeRest writes what is sealed, in one call.
func (c *Conn) writeRest() error {
	t := &c.tx
	n, err := c.transport.Write(t.rest)
	if t.rest = t.rest[n:]; len(t.rest) == 0 {
		loan.End(t.out)
	}
	return err
}

// stoppedBy reports whether a Write's error is a deadline of shut or of the
// flusher behind it, which goes on with the rest.
func (t *transmitter) stoppedBy(err error) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return errors.Is(err, os.ErrDeadlineExceeded) && t.ended != nil
}
