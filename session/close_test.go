package session

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// A trickle is a path that takes a piece each 50 ms, until it takes no more. It
// is for a bubble of testing/synctest.
type trickle struct {
	*memConn
	mu       sync.Mutex
	piece    int
	left     int // before it stops
	deadline time.Time
}

func (c *trickle) SetWriteDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.deadline = t
	return nil
}

func (c *trickle) Write(p []byte) (n int, err error) {
	for n < len(p) {
		c.mu.Lock()
		late := !c.deadline.IsZero() && !time.Now().Before(c.deadline)
		k := min(c.piece, c.left, len(p)-n)
		c.mu.Unlock()
		if late {
			return n, os.ErrDeadlineExceeded
		}
		if _, err := c.memConn.Write(p[n : n+k]); err != nil {
			return n, err
		}
		c.left -= k
		n += k
		time.Sleep(50 * time.Millisecond)
	}
	return n, nil
}

// slow makes c's path slow, from now on.
func slow(c *Conn, piece, left int) {
	c.tx.amount.Store(mostAmount) // the path was fast until then
	c.transport.Conn = &trickle{memConn: c.transport.Conn.(*memConn), piece: piece, left: left}
}

// A received is all that a reader got, and how it ended.
type received struct {
	data []byte
	err  error
}

func receiveAll(r io.Reader) chan received {
	got := make(chan received, 1)
	go func() {
		data, err := io.ReadAll(r)
		got <- received{data, err}
	}()
	return got
}

// TestCloseOnASlowPath: what was queued arrives, and the end behind it, while
// the path takes something each second.
func TestCloseOnASlowPath(t *testing.T) {
	for _, transform := range []string{TransformJSON, TransformPacked, TransformGzip} {
		synctest.Test(t, func(t *testing.T) {
			i, r, _ := memSession(t, transform)
			slow(i, 10_000, 1<<30)
			data := randomBytes(1, 1<<20)
			got := receiveAll(reader(r, true))
			for rest := data; len(rest) > 0; rest = rest[1<<17:] {
				if _, err := i.queue(rest[:1<<17]); err != nil {
					t.Fatal(err)
				}
			}
			start := time.Now()
			if err := i.Close(); err != nil {
				t.Errorf("%s: close: %v", transform, err)
			}
			if end := <-got; !bytes.Equal(end.data, data) || end.err != nil {
				t.Errorf("%s: %d of %d bytes, %v", transform, len(end.data), len(data), end.err)
			}
			if d := time.Since(start); d < 5*time.Second {
				t.Errorf("%s: the path was not slow: %v", transform, d)
			}
		})
	}
}

// TestCloseOnAPathThatStops: a second without any progress is enough, and the
// error says that not everything was sent.
func TestCloseOnAPathThatStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i, r, _ := memSession(t, TransformPacked)
		slow(i, 10_000, 600_000) // 3 s
		got := receiveAll(reader(r, true))
		if _, err := i.queue(randomBytes(1, 1<<20)); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		if err := i.Close(); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("close: %v", err)
		}
		if d := time.Since(start); d < 3*time.Second || d > 3*time.Second+2*closeWait {
			t.Errorf("closed after %v", d)
		}
		if end := <-got; !errors.Is(end.err, ErrTruncated) {
			t.Errorf("the peer sees %v", end.err)
		}
	})
}

// TestCloseIsBounded: a peer that always takes a little, and one that sends
// without end, hold a close for so long and no longer. Abort ends it at once.
func TestCloseIsBounded(t *testing.T) {
	for name, path := range map[string]func(i, r *Conn){
		"takes a byte": func(i, _ *Conn) { slow(i, 1, 1<<30) },
		"sends for ever": func(_, r *Conn) {
			go func() {
				for {
					if _, err := r.Write([]byte("more")); err != nil {
						return
					}
					time.Sleep(500 * time.Millisecond)
				}
			}()
		},
	} {
		for _, abort := range []time.Duration{0, 40 * time.Second} {
			synctest.Test(t, func(t *testing.T) {
				i, r, _ := memSession(t, TransformPacked)
				path(i, r)
				if _, err := i.queue(randomBytes(1, 1<<20)); err != nil {
					t.Fatal(err)
				}
				want := CloseLimit
				if abort > 0 {
					want = abort
					time.AfterFunc(abort, func() { i.Abort(context.Canceled) })
				}
				start := time.Now()
				err := i.Close()
				if d := time.Since(start); d < want || d > want+2*closeTick {
					t.Errorf("%s: closed after %v, want %v", name, d, want)
				}
				if abort > 0 && err != context.Canceled {
					t.Errorf("%s: aborted with %v", name, err)
				}
				r.Abort(nil)
				time.Sleep(time.Second) // the writer notices
			})
		}
	}
}

// TestAnswerIsQuick: the answer to a close, which the peer waits for and whose
// data it drops, takes a second at most, and does not hide the peer's close.
func TestAnswerIsQuick(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i, r, _ := memSession(t, TransformPacked)
		slow(r, 10_000, 1<<30)
		if _, err := r.queue(randomBytes(1, 1<<20)); err != nil {
			t.Fatal(err)
		}
		go i.Close()
		start := time.Now()
		if n, err := r.Read(make([]byte, 1)); n != 0 || err != io.EOF {
			t.Errorf("%d bytes, %v; want io.EOF", n, err)
		}
		if d := time.Since(start); d > closeWait+3*closeTick {
			t.Errorf("answered after %v", d)
		}
	})
}

// TestSecondCloseWaits: however many call Close, what was written arrives, and
// none returns before the session has ended.
func TestSecondCloseWaits(t *testing.T) {
	rounds := 20
	if raceDetector {
		rounds = 5
	}
	for round := range rounds {
		i, r := pair(t, nil)
		go func() { // the peer still sends
			for {
				if _, err := r.Write(make([]byte, 100_000)); err != nil {
					return
				}
			}
		}()
		data := randomBytes(uint64(round), 3<<20)
		sent := make(chan error, 1)
		go func() {
			_, err := i.Write(data)
			sent <- err
		}()
		got := receiveAll(reader(r, true))
		if err := <-sent; err != nil {
			t.Fatal(err)
		}
		var closers sync.WaitGroup
		for range 3 {
			closers.Go(func() {
				if err := i.Close(); err != nil {
					t.Errorf("round %d: close: %v", round, err)
				}
				if i.Err() == nil {
					t.Errorf("round %d: Close has returned, and the session goes on", round)
				}
			})
		}
		closers.Wait()
		if end := <-got; !bytes.Equal(end.data, data) || end.err != nil {
			t.Fatalf("round %d: %d of %d bytes, %v", round, len(end.data), len(data), end.err)
		}
	}
}

// TestCloseAgainstAWriter: a peer that reads only once its own bytes are
// written gets everything, as Close reads while it sends.
func TestCloseAgainstAWriter(t *testing.T) {
	i, r := pair(t, nil)
	const size = 32 << 20 // more than all buffers between them hold
	wrote := make(chan error, 1)
	go func() {
		_, err := r.Write(make([]byte, size))
		wrote <- err
	}()
	data := fillPath(t, i)
	closed := make(chan error, 1)
	go func() { closed <- i.Close() }()
	if err := <-wrote; err != nil {
		t.Fatalf("the peer's write: %v", err)
	}
	end := <-receiveAll(reader(r, true))
	if !bytes.Equal(end.data, data) || end.err != nil {
		t.Errorf("%d of %d bytes, %v", len(end.data), len(data), end.err)
	}
	if err := <-closed; err != nil {
		t.Error(err)
	}
}

// fillPath queues bytes until all buffers are full, and returns them.
func fillPath(t *testing.T, c *Conn) (data []byte) {
	t.Helper()
	full := make(chan struct{})
	go func() {
		defer close(full)
		for before := uint64(0); c.Stats().WireOut != before || before == 0; { // 100 ms without a byte
			before = c.Stats().WireOut
			time.Sleep(100 * time.Millisecond)
		}
	}()
	piece := randomBytes(1, 60_000)
	for {
		if tryQueue(c, piece) {
			data = append(data, piece...)
			continue
		}
		select {
		case <-full:
			return data
		case <-time.After(time.Millisecond):
		}
	}
}

// tryQueue queues a record's bytes if there is room.
func tryQueue(c *Conn, p []byte) bool {
	t := &c.tx
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.next.size > 0 && t.next.size+len(p) > int(t.amount.Load()) {
		return false
	}
	t.next.append(p)
	t.work.Signal()
	return true
}

// A sipping conn reads little at a time.
type sipping struct {
	net.Conn
	pause time.Duration
}

func (c *sipping) Read(p []byte) (int, error) {
	time.Sleep(c.pause)
	return c.Conn.Read(p[:min(len(p), 100_000)])
}

// TestCloseWaitsForTheKernel: what the kernel has taken and not yet sent is
// lost if the socket is closed and something comes from the peer after that.
func TestCloseWaitsForTheKernel(t *testing.T) {
	t.Parallel()
	a, b := tcpPair(t)
	b.(*net.TCPConn).SetReadBuffer(64 << 10)
	a.(*net.TCPConn).SetWriteBuffer(2 << 20)
	ic, rc := configs(t)
	ic.Transform, rc.Transform = TransformPacked, TransformPacked
	sip := &sipping{Conn: b}
	e := shake(t, a, sip, ic, rc)
	if err := errors.Join(e.iErr, e.rErr); err != nil {
		t.Fatal(err)
	}
	defer e.r.Abort(nil)
	sip.pause = 30 * time.Millisecond // 3 MB/s, or less
	data := fillPath(t, e.i)
	closed := make(chan error, 1)
	go func() { closed <- e.i.Close() }()
	// Halfway, when all is in the kernel, a byte comes from the peer.
	got := make([]byte, 0, len(data))
	bodies := make([][]byte, 0, MaxRecords)
	said := false
	for {
		next, err := e.r.ReadRecords(bodies)
		for _, body := range next {
			got = append(got, body...)
		}
		if err != nil {
			if err != io.EOF || !bytes.Equal(got, data) {
				t.Errorf("%d of %d bytes, %v", len(got), len(data), err)
			}
			break
		}
		if !said && len(got) > len(data)*3/4 {
			said = true
			if _, err := e.r.Write([]byte("x")); err != nil {
				t.Errorf("after %d bytes: %v", len(got), err)
			}
		}
	}
	if err := <-closed; err != nil {
		t.Error(err)
	}
}
