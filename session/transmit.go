package session

import (
	"errors"
	"fmt"
	"io"
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

// A Buffer holds the body of one record, with the room that sealing it in
// place takes.
type Buffer struct {
	plain [maxPlaintext + tagLen]byte
	end   int // of the body, in plain
}

var bufferPool = sync.Pool{New: func() any {
	b := new(Buffer)
	loan.End(b.plain[:])
	return b
}}

// NewBuffer returns an empty Buffer: from a pool, where QueueBuffer and Free
// put it back.
func NewBuffer() *Buffer {
	b := bufferPool.Get().(*Buffer)
	loan.Check(b.plain[:])
	b.end = recordHeader
	return b
}

// Free gives up a Buffer that was not queued.
func (b *Buffer) Free() {
	loan.End(b.plain[:])
	bufferPool.Put(b)
}

// Body is the room for the record's body: MaxBody bytes.
func (b *Buffer) Body() []byte { return b.plain[recordHeader:maxPlaintext] }

// add copies as much of p as there is room for behind the body.
func (b *Buffer) add(p []byte) int {
	n := copy(b.plain[b.end:maxPlaintext], p)
	b.end += n
	return n
}

// A transmitter is the writing half. What is queued gathers in one batch while
// the other is sealed and sent, by whoever came first: a caller of Flush that
// finds nobody sending, or else the flusher. So a lone writer's bytes leave
// without waking anybody, and those of many leave together.
type transmitter struct {
	writing sync.Mutex // held for a whole Queue: two never mix

	mu    sync.Mutex
	work  sync.Cond // the flusher may have something to do
	room  sync.Cond // the batch being filled was taken, or an end
	batch int       // the most that fill takes
	fill  []*Buffer
	spare []*Buffer // empty; fill's array after the next swap
	busy  bool      // somebody sends, and owns seal and out
	ended error     // what Queue returns; set by the first of shut and stop
	until time.Time // when sending has to be over, whatever moves; set by shut
	dead  bool      // stop was called: send nothing more

	seal sealer
	out  []byte // sealed bytes of one batch
	rest []byte // of out: what was not written yet
	last bool   // the sealed close is in out

	records atomic.Uint64
	bytes   atomic.Uint64
	taken   atomic.Uint64 // of bytes, what the transport has
	rekeys  atomic.Uint64
}

func (t *transmitter) init() {
	t.work.L, t.room.L = &t.mu, &t.mu
	t.batch = batchRecords
	t.fill = make([]*Buffer, 0, batchRecords)
	t.spare = make([]*Buffer, 0, batchRecords)
}

// Write queues p and sends it. The error of a failed send is that of a later
// call.
func (c *Conn) Write(p []byte) (int, error) {
	n, err := c.queue(p)
	c.Flush()
	return n, err
}

// Queue puts p, which it copies, into the records that leave next. It blocks
// while a whole batch of them waits. Somebody has to call Flush.
func (c *Conn) Queue(p []byte) error {
	_, err := c.queue(p)
	return err
}

func (c *Conn) queue(p []byte) (total int, err error) {
	t := &c.tx
	t.writing.Lock()
	defer t.writing.Unlock()
	t.mu.Lock()
	defer t.mu.Unlock()
	for len(p) > 0 && t.ended == nil {
		n := t.add(p)
		p = p[n:]
		total += n
		if n == 0 {
			t.await()
		}
	}
	return total, t.ended
}

// TryQueue is Queue for one that must not wait, nor send: it reports false,
// with nothing queued, if it would have to. The flusher sends what it queues.
func (c *Conn) TryQueue(p []byte) bool {
	t := &c.tx
	if !t.writing.TryLock() {
		return false
	}
	defer t.writing.Unlock()
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ended != nil || len(t.fill) == t.batch && maxPlaintext-t.fill[t.batch-1].end < len(p) {
		return false
	}
	for len(p) > 0 {
		p = p[t.add(p):]
	}
	t.work.Signal()
	return true
}

// QueueBuffer is Queue for the first n bytes of a Buffer's body, which is the
// Conn's from now on.
func (c *Conn) QueueBuffer(b *Buffer, n int) error {
	if n <= copyLimit {
		err := c.Queue(b.Body()[:n])
		b.Free()
		return err
	}
	b.end = recordHeader + n
	t := &c.tx
	t.writing.Lock()
	defer t.writing.Unlock()
	t.mu.Lock()
	defer t.mu.Unlock()
	for len(t.fill) == t.batch && t.ended == nil {
		t.await()
	}
	if t.ended != nil {
		b.Free()
		return t.ended
	}
	t.fill = append(t.fill, b)
	return nil
}

// add copies as much of p as there is room for into the last record, or into a
// new one if that one is full.
func (t *transmitter) add(p []byte) int {
	if n := len(t.fill); n > 0 {
		if m := t.fill[n-1].add(p); m > 0 || n == t.batch {
			return m
		}
	}
	b := NewBuffer()
	t.fill = append(t.fill, b)
	return b.add(p)
}

// await waits for room, with mu held. Whoever queued what fills the batch may
// not have come to Flush yet.
func (t *transmitter) await() {
	t.work.Signal()
	t.room.Wait()
}

// Flush sends what is queued, unless somebody is sending already: that one
// sees to it. A few bytes first let other goroutines run, which may have some
// to send along. It may block in the transport's Write.
func (c *Conn) Flush() {
	t := &c.tx
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.busy && len(t.fill) == 1 && t.fill[0].end <= copyLimit {
		t.mu.Unlock()
		runtime.Gosched()
		t.mu.Lock()
	}
	if t.busy || len(t.fill) == 0 || t.ended != nil {
		return
	}
	c.sendFill()
	if len(t.fill) > 0 || t.ended != nil {
		t.work.Signal()
	}
}

// sendFill sends one batch, with mu held except while it does. It reports
// whether that succeeded.
func (c *Conn) sendFill() bool {
	t := &c.tx
	batch := t.fill
	t.fill, t.spare = t.spare, nil
	t.busy = true
	t.room.Broadcast()
	t.mu.Unlock()
	err := c.send(batch)
	for i, b := range batch {
		b.Free()
		batch[i] = nil
	}
	if err != nil {
		c.writeFailed(err)
	}
	t.mu.Lock()
	t.spare = batch[:0]
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
		for t.busy || len(t.fill) == 0 && t.ended == nil {
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
		case len(t.fill) > 0:
			c.sendFill()
		case !t.last:
			c.sendClose()
		default:
			return
		}
	}
}

// drop frees what will not be sent.
func (t *transmitter) drop() {
	for _, b := range t.fill {
		b.Free()
	}
	t.fill = nil
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

// send seals a batch and writes it in one call.
func (c *Conn) send(batch []*Buffer) error {
	t := &c.tx
	err := c.writeNow(func(dst []byte) (_ []byte, err error) {
		for _, b := range batch {
			generation := t.seal.keys.generation
			if dst, err = t.seal.data(dst, b.plain[:], b.end); err != nil {
				return dst, err
			}
			t.rekeys.Add(uint64(t.seal.keys.generation - generation))
			t.records.Add(1)
			t.bytes.Add(uint64(b.end - recordHeader))
		}
		return dst, nil
	})
	t.taken.Store(t.bytes.Load())
	return err
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
