package session

import (
	"fmt"
	"net"
	"sync"
	"sync/atomic"
)

// Sizes of the buffers between Write and the transport.
const (
	pendingRecords = 4 // that Write may run ahead of the transport, per batch
	recordRoom     = maxPlaintext + tagLen
)

// A transmitter is the writing half. Write fills one batch of records while
// the flusher seals and sends the other: whatever is written while a send is
// under way leaves in the next one, in as few records as it fits.
type transmitter struct {
	writing sync.Mutex // held for a whole Write: two never mix

	mu    sync.Mutex
	work  sync.Cond // there is something to send, or an end
	room  sync.Cond // the batch being filled was taken, or an end
	fill  *batch
	spare *batch // nil while the flusher has it
	ended error  // what Write returns; set by the first of shut and stop
	dead  bool   // stop was called: send nothing more

	seal sealer // the flusher's own once it runs
	out  []byte // sealed bytes of one batch

	records atomic.Uint64
	bytes   atomic.Uint64
	rekeys  atomic.Uint64
}

// A batch is plaintext in the making: record i's body starts at
// buf[i][recordHeader] and ends at used[i].
type batch struct {
	buf  [pendingRecords][]byte
	used [pendingRecords]int
	n    int // records begun
}

func (t *transmitter) init() {
	t.work.L, t.room.L = &t.mu, &t.mu
	t.fill, t.spare = new(batch), new(batch)
}

// add copies as much of p as there is room for.
func (b *batch) add(p []byte) int {
	total := 0
	for len(p) > 0 {
		if b.n == 0 || b.used[b.n-1] == maxPlaintext {
			if b.n == pendingRecords {
				break
			}
			if b.buf[b.n] == nil {
				b.buf[b.n] = make([]byte, recordRoom)
			}
			b.used[b.n] = recordHeader
			b.n++
		}
		last := b.n - 1
		n := copy(b.buf[last][b.used[last]:maxPlaintext], p)
		b.used[last] += n
		p = p[n:]
		total += n
	}
	return total
}

// Write queues p and returns; the error of a failed send is that of a later
// call. It blocks while two batches are on their way.
func (c *Conn) Write(p []byte) (int, error) { return c.WriteBuffers(p, nil) }

// WriteBuffers is Write for two pieces that should leave together, such as a
// frame's header and its body.
func (c *Conn) WriteBuffers(head, body []byte) (int, error) {
	t := &c.tx
	t.writing.Lock()
	defer t.writing.Unlock()
	t.mu.Lock()
	defer t.mu.Unlock()
	total := 0
	for _, p := range [2][]byte{head, body} {
		for len(p) > 0 {
			if t.ended != nil {
				return total, t.ended
			}
			n := t.fill.add(p)
			p = p[n:]
			total += n
			if len(p) > 0 {
				t.work.Signal()
				t.room.Wait()
			}
		}
	}
	if t.ended != nil {
		return total, t.ended
	}
	t.work.Signal()
	return total, nil
}

// shut ends writing: what is queued and a sealed close still go out. It
// reports whether it was the first to end it.
func (t *transmitter) shut() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ended != nil {
		return false
	}
	t.ended = net.ErrClosed
	t.work.Signal()
	t.room.Broadcast()
	return true
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

// take waits for something to send. It returns nil when nothing will follow,
// and whether the end should be sealed.
func (t *transmitter) take(done *batch) (next *batch, seal bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if done != nil {
		done.n = 0
		t.spare = done
	}
	for t.fill.n == 0 && t.ended == nil {
		t.work.Wait()
	}
	if t.dead || t.fill.n == 0 {
		return nil, !t.dead
	}
	next = t.fill
	t.fill, t.spare = t.spare, nil
	t.room.Broadcast()
	return next, false
}

// flushLoop seals and sends until the session ends. It owns the sealer.
func (c *Conn) flushLoop() {
	defer close(c.flusher)
	t := &c.tx
	defer t.seal.keys.erase()
	var b *batch
	for {
		var end bool
		b, end = t.take(b)
		if end {
			err := c.writeNow(func(dst []byte) ([]byte, error) { return t.seal.short(dst, typeClose, "") })
			if err != nil {
				c.fail(fmt.Errorf("write close: %w", err))
			}
			return
		}
		if b == nil {
			return
		}
		if err := c.send(b); err != nil {
			c.fail(fmt.Errorf("write: %w", err))
			return
		}
	}
}

// send seals a batch and writes it in one call.
func (c *Conn) send(b *batch) error {
	t := &c.tx
	return c.writeNow(func(dst []byte) (_ []byte, err error) {
		for i := range b.n {
			generation := t.seal.keys.generation
			if dst, err = t.seal.data(dst, b.buf[i], b.used[i]); err != nil {
				return dst, err
			}
			t.rekeys.Add(uint64(t.seal.keys.generation - generation))
			t.records.Add(1)
			t.bytes.Add(uint64(b.used[i] - recordHeader))
		}
		return dst, nil
	})
}

// writeNow puts the records that seal appends on the wire.
func (c *Conn) writeNow(seal func(dst []byte) ([]byte, error)) error {
	t := &c.tx
	out, err := seal(t.out[:0])
	if err != nil {
		return err
	}
	t.out = t.seal.enc.flush(out)
	_, err = c.transport.Write(t.out)
	return err
}
