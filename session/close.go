package session

import (
	"errors"
	"io"
	"net"
	"os"
	"time"
)

// A close goes on for as long as anything moves, as what was queued before it
// may be megabytes on a slow path: closeTries of closeTick without anything,
// closeWait in all, end it (SPEC.md section 4). It is not the time that is
// counted but the tries, so that a machine that was busy with others does not
// take that for the peer's silence.
const (
	closeWait  = time.Second
	closeTries = 10
	closeTick  = closeWait / closeTries

	// CloseLimit is the most that Close takes from a peer that always takes a
	// little. Abort ends it sooner.
	CloseLimit = 5 * time.Minute
)

// Close sends what was written and the sealed close, waits for the peer's end,
// and closes the transport. It gives up after a second in which nothing moved,
// and says so with an error if not everything was sent by then; CloseLimit
// bounds it. Blocked calls return at once with net.ErrClosed. A second Close
// waits for the first.
func (c *Conn) Close() error {
	c.closing.Store(true)
	if c.shut(CloseLimit) {
		c.transport.SetReadDeadline(time.Unix(1, 0)) // unblock Read
		c.rx.mu.Lock()
		//lint:ignore SA2001 whoever holds it is waited for: that Read is over, and none follows
		c.rx.mu.Unlock()
		c.awaitEnd()
		c.fail(net.ErrClosed)
	}
	<-c.done
	<-c.flusher
	if err := c.Err(); err != net.ErrClosed && err != io.EOF {
		return err
	}
	return nil
}

// answerClose sends this side's close after the peer's. The peer drops what
// comes before it and waits for that alone, so this takes a second at most.
func (c *Conn) answerClose() {
	c.ended.Store(true)
	if c.shut(closeWait) {
		<-c.flusher
		c.fail(io.EOF)
	}
}

// shut ends writing: what is queued and a sealed close still go out, for at
// most limit. Who is sending returns at once, and the flusher goes on. It
// reports whether it was the first to end it.
func (c *Conn) shut(limit time.Duration) bool {
	t := &c.tx
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ended != nil {
		return false
	}
	t.ended = net.ErrClosed
	t.until = time.Now().Add(limit)
	c.transport.SetWriteDeadline(time.Unix(1, 0))
	t.work.Signal()
	t.room.Broadcast()
	return true
}

// push writes the rest of what is sealed, for as long as the transport takes
// some of it. Each try begins with a write that does not wait: a kernel says
// that there is room only once there is much.
func (c *Conn) push() error {
	t := &c.tx
	for idle := 0; len(t.rest) > 0; idle++ {
		before := c.moved()
		c.transport.SetWriteDeadline(time.Now().Add(closeTick))
		err := c.writeRest()
		if c.moved() != before {
			idle = 0
		}
		if err != nil && (!errors.Is(err, os.ErrDeadlineExceeded) || idle >= closeTries || !time.Now().Before(t.until)) {
			return err
		}
	}
	return nil
}

// A movement is what changes while bytes move: what the transport has given and
// taken, and what of that the peer's kernel has not acknowledged.
type movement struct {
	in, out uint64
	unacked int
}

func (c *Conn) moved() movement {
	return movement{c.transport.in.Load(), c.transport.out.Load(), unacked(c.transport.Conn)}
}

// awaitEnd drops what the peer still sends until its end. It begins while the
// flusher sends: a peer whose writes wait may not read. And it goes on while
// the kernel still has something to send: a transport that is closed with
// something unread, or gets something later, is reset, and drops that.
func (c *Conn) awaitEnd() {
	dropped := make([]byte, 32<<10)
	for idle := 0; idle < closeTries && time.Now().Before(c.tx.until); idle++ {
		before := c.moved()
		c.transport.SetReadDeadline(time.Now().Add(closeTick))
		if _, err := c.transport.Read(dropped); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		select {
		case <-c.flusher:
		default:
			idle = 0 // the flusher counts
		}
		if c.moved() != before {
			idle = 0
		}
	}
	<-c.flusher
}
