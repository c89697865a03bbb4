package session

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/sealane/sealane/session/container"
)

// TestConcurrentWritesDoNotMix: each Write's bytes stay together, however
// large, as those of any net.Conn.
func TestConcurrentWritesDoNotMix(t *testing.T) {
	i, r := pair(t, nil)
	const writers, writes, size = 4, 5, 700_001
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			p := bytes.Repeat([]byte{byte(w)}, size)
			for range writes {
				if _, err := i.Write(append(binary.BigEndian.AppendUint32(nil, uint32(w)), p...)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	buf := make([]byte, 4+size)
	for range writers * writes {
		if _, err := io.ReadFull(r, buf); err != nil {
			t.Fatal(err)
		}
		w := buf[3]
		if binary.BigEndian.Uint32(buf) != uint32(w) || bytes.Count(buf[4:], []byte{w}) != size {
			t.Fatal("two writes are mixed")
		}
	}
	wg.Wait()
}

// TestBuffersDoNotMix: a buffer does not come between the pieces of a write that
// waits for room.
func TestBuffersDoNotMix(t *testing.T) {
	i, r := pair(t, nil)
	const size = 16 << 20
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := i.Write(bytes.Repeat([]byte{'a'}, size)); err != nil {
			t.Error(err)
		}
	})
	got := make([]byte, size)
	if _, err := io.ReadFull(r, got[:1]); err != nil { // the write has begun
		t.Fatal(err)
	}
	const buffers = 8
	for range buffers {
		wg.Go(func() {
			b := NewBuffer()
			n := copy(b.Body(), bytes.Repeat([]byte{'b'}, MaxBody))
			if err := queueBuffer(i, b, n); err != nil {
				t.Error(err)
			}
			i.Flush()
		})
	}
	if _, err := io.ReadFull(r, got[1:]); err != nil || bytes.IndexByte(got, 'b') >= 0 {
		t.Errorf("%v; a buffer comes %d bytes into the write of %d", err, bytes.IndexByte(got, 'b'), size)
	}
	if _, err := io.ReadFull(r, make([]byte, buffers*MaxBody)); err != nil {
		t.Error(err)
	}
	wg.Wait()
}

// TestNothingAfterTheEnd: once the session has ended, Read gives no byte, not
// even of a record that was opened before.
func TestNothingAfterTheEnd(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(c *Conn){
		"Abort": func(c *Conn) { c.Abort(nil) },
		"Close": func(c *Conn) { c.Close() },
	} {
		i, r := pair(t, nil)
		if _, err := i.Write([]byte("two bytes")); err != nil {
			t.Fatal(err)
		}
		if n, err := r.Read(make([]byte, 2)); n != 2 || err != nil {
			t.Fatal(n, err)
		}
		go i.Close()
		end(r)
		if n, err := r.Read(make([]byte, 100)); n != 0 || !errors.Is(err, net.ErrClosed) {
			t.Errorf("%s: read %d bytes, %v", name, n, err)
		}
	}
}

// TestReadWhileClosing: while Close waits for the peer's end, a Read returns
// at once.
func TestReadWhileClosing(t *testing.T) {
	i, _ := pair(t, nil)
	closed := make(chan struct{})
	go func() { i.Close(); close(closed) }()
	<-i.flusher
	for open := true; open; {
		start := time.Now()
		if _, err := i.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
			t.Fatal(err)
		}
		if d := time.Since(start); d > closeWait/2 {
			t.Fatalf("returned after %v", d)
		}
		select {
		case <-closed:
			open = false
		default:
		}
	}
}

// TestKeysAreErased looks for the keys where they were, however the session
// ended.
func TestKeysAreErased(t *testing.T) {
	ends := map[string]func(i, r *Conn){
		"abort":          func(i, r *Conn) { r.Abort(nil) },
		"close":          func(i, r *Conn) { r.Close() },
		"the peer's end": func(i, r *Conn) { i.Close() },
		"truncation":     func(i, r *Conn) { i.transport.Close() },
		"violation":      func(i, r *Conn) { i.transport.Write([]byte("?")) },
	}
	for name, end := range ends {
		i, r := pair(t, nil)
		read := make(chan struct{})
		go func() {
			defer close(read)
			r.Read(make([]byte, 1))
		}()
		end(i, r)
		<-read
		<-r.Done()
		<-r.flusher
		r.rx.mu.Lock()
		if r.rx.open.keys.aead != nil || r.rx.open.keys.next != [32]byte{} {
			t.Errorf("%s: the receiving keys are still there", name)
		}
		r.rx.mu.Unlock()
		if r.tx.seal.keys.aead != nil || r.tx.seal.keys.next != [32]byte{} {
			t.Errorf("%s: the sending keys are still there", name)
		}
	}
}

// TestHandshakeSecretsAreErased: no key of a handshake is left when it is over.
func TestHandshakeSecretsAreErased(t *testing.T) {
	for _, initiator := range []bool{true, false} {
		a, b := memPair()
		ic, rc := seededConfigs("erase", TransformJSON, cipherAES)
		h := &handshake{cfg: ic, conn: &counter{Conn: a}, texts: container.NewReader(a)}
		role, other := func() (*Conn, error) { return h.initiate(rc.Key.Public()) }, func() (*Conn, error) { return Respond(deadline(t), b, rc) }
		if !initiator {
			h = &handshake{cfg: rc, conn: &counter{Conn: b}, texts: container.NewReader(b)}
			role, other = func() (*Conn, error) { return h.respond(deadline(t)) }, func() (*Conn, error) { return Initiate(deadline(t), a, rc.Key.Public(), ic) }
		}
		done := make(chan *Conn)
		go func() { c, _ := other(); done <- c }()
		c, err := role()
		if err != nil {
			t.Fatal(err)
		}
		c.Abort(nil)
		if c := <-done; c != nil {
			c.Abort(nil)
		}
		if h.k1 != [32]byte{} || h.k2 != [32]byte{} || h.noise != nil || h.dh != nil {
			t.Errorf("initiator %v: secrets are left", initiator)
		}
	}
}

// TestStress lets everything happen at once and then ends it in one of several
// ways: nothing hangs, and goleak finds nothing left.
func TestStress(t *testing.T) {
	rounds := 12
	if long() {
		rounds = 120
	}
	for round := range rounds {
		transform := []string{TransformJSON, TransformPacked, TransformGzip}[round%3]
		i, r := pair(t, func(ic, rc *Config) {
			ic.Transform, rc.Transform = transform, transform
			ic.RekeyRecords, rc.RekeyRecords = 3, 4
		})
		var wg sync.WaitGroup
		for _, c := range []*Conn{i, r} {
			for range 2 {
				wg.Go(func() {
					p := make([]byte, 100_000)
					for {
						if _, err := c.Write(p[:rand.IntN(len(p))]); err != nil {
							return
						}
					}
				})
				wg.Go(func() {
					p := make([]byte, 50_000)
					for {
						if _, err := c.Read(p); err != nil {
							return
						}
						c.Stats()
					}
				})
			}
		}
		for i.Stats().RecordsIn < 5 || r.Stats().RecordsIn < 5 {
			time.Sleep(100 * time.Microsecond)
		}
		for k := range 3 {
			wg.Go(func() {
				switch (round + k) % 6 {
				case 0:
					i.Close()
				case 1:
					r.Close()
				case 2:
					i.Abort(errors.New("enough"))
				case 3:
					r.transport.Close()
				case 4:
					i.transport.Write([]byte("{"))
				case 5:
					i.transport.Conn.(*net.TCPConn).CloseWrite()
				}
			})
		}
		ended := make(chan struct{})
		go func() { wg.Wait(); close(ended) }()
		select {
		case <-ended:
		case <-time.After(30 * time.Second):
			t.Fatalf("round %d hangs", round)
		}
		i.Close()
		r.Close()
		for _, c := range []*Conn{i, r} {
			<-c.flusher
			if c.Err() == nil {
				t.Fatalf("round %d: an end without an error", round)
			}
		}
	}
}

// memSession is a session over memory, whose writes never wait: what one end
// has written is there for the other.
func memSession(t *testing.T, transform string) (i, r *Conn, wire net.Conn) {
	t.Helper()
	a, b := memPair()
	ic, rc := configs(t)
	ic.Transform, rc.Transform = transform, transform
	e := shake(t, a, b, ic, rc)
	if e.iErr != nil || e.rErr != nil {
		t.Fatal(e.iErr, e.rErr)
	}
	t.Cleanup(func() { e.i.Abort(nil); e.r.Abort(nil) })
	return e.i, e.r, a
}

// TestReadRecords: records that are there come together, each whole, and what
// ends the session behind them is told only after they were.
func TestReadRecords(t *testing.T) {
	for _, transform := range []string{TransformJSON, TransformPacked, TransformGzip} {
		for end, rule := range map[string]Rule{"close": "", "garbage": container.RuleForm} {
			i, r, wire := memSession(t, transform)
			want := [][]byte{randomBytes(1, 10), randomBytes(2, MaxBody), randomBytes(3, 1)}
			for _, p := range want {
				i.tx.amount.Store(mostAmount) // as on a fast path: it is one record
				if _, err := i.Write(p); err != nil {
					t.Fatal(err)
				}
				for i.tx.sending() { // the flusher, if it has only now begun
					runtime.Gosched()
				}
			}
			if end == "close" {
				go i.Close()
				<-i.flusher
			} else {
				garbage := `{"sdmp":{"version":"0.13","schemas":["x`
				switch transform {
				case TransformPacked:
					rule = RulePackedLength
				case TransformGzip:
					garbage, rule = "\xff\xff", RuleGzipData
				}
				wire.Write([]byte(garbage))
			}
			var got [][]byte
			var err error
			for calls := 0; err == nil; calls++ {
				var bodies [][]byte
				bodies, err = r.ReadRecords(make([][]byte, 0, MaxRecords))
				if err != nil && len(bodies) > 0 {
					t.Fatalf("%s: records and %v", transform, err)
				}
				for _, b := range bodies {
					got = append(got, bytes.Clone(b))
				}
			}
			if !slices.EqualFunc(got, want, bytes.Equal) {
				t.Errorf("%s, %s: %d records", transform, end, len(got))
			}
			if end == "close" && err != io.EOF || ruleOf(err) != rule {
				t.Errorf("%s, %s: %v, want %q", transform, end, err, rule)
			}
		}
	}
}

// TestQueueWaitsForFlush: what is queued leaves with the next Flush, in one
// record; TryFirst waits for nothing, and the flusher sees to the sending.
func TestQueueWaitsForFlush(t *testing.T) {
	i, r, _ := memSession(t, TransformPacked)
	read := func() string {
		t.Helper()
		bodies, err := r.ReadRecords(make([][]byte, 0, 1))
		if err != nil {
			t.Fatal(err)
		}
		return string(bodies[0])
	}
	if err := errors.Join(queue(i, "a"), queue(i, "b")); err != nil {
		t.Fatal(err)
	}
	if n := i.Stats().RecordsOut; n != 0 {
		t.Fatalf("%d records left before Flush", n)
	}
	i.Flush()
	if got := read(); got != "ab" {
		t.Fatalf("%q", got)
	}
	if _, ok := i.TryFirst([]byte("d"), Mark{}, true); !ok {
		t.Fatal("an idle session does not take a byte")
	}
	if got := read(); got != "d" {
		t.Fatalf("%q", got)
	}
	i.Abort(nil)
	if _, ok := i.TryFirst([]byte("f"), Mark{}, true); ok || queue(i, "f") == nil || i.QueueFirst([]byte("f"), Mark{}) == nil {
		t.Fatal("a dead session takes bytes")
	}
}

// queue has p sent in turn.
func queue(c *Conn, p string) error {
	_, err := c.queue([]byte(p))
	return err
}

// queueBuffer is QueueBuffer with the turn around it.
func queueBuffer(c *Conn, b *Buffer, n int) error {
	if err := c.BeginTurn(n); err != nil {
		b.Free()
		return err
	}
	defer c.EndTurn()
	_, err := c.QueueBuffer(b, n)
	return err
}

// TestQueueBuffer: buffers keep their order among small pieces, and block when
// a batch is full until it was taken.
func TestQueueBuffer(t *testing.T) {
	i, r := pair(t, nil)
	var want []byte
	done := make(chan []byte)
	go func() {
		var got []byte
		for {
			bodies, err := r.ReadRecords(make([][]byte, 0, MaxRecords))
			for _, b := range bodies {
				got = append(got, b...)
			}
			if err != nil {
				done <- got
				return
			}
		}
	}()
	for n := range 40 {
		p := randomBytes(uint64(n), []int{1, copyLimit, copyLimit + 1, MaxBody}[n%4])
		want = append(want, p...)
		b := NewBuffer()
		copy(b.Body(), p)
		if err := queueBuffer(i, b, len(p)); err != nil {
			t.Fatal(err)
		}
	}
	i.Close()
	if got := <-done; !bytes.Equal(got, want) {
		t.Fatalf("%d bytes of %d", len(got), len(want))
	}
}

// sending reports whether something is queued or on its way.
func (t *transmitter) sending() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.busy || !t.next.empty()
}
