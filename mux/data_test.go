package mux

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sealane/sealane/session"
)

// TestBadFrameHidesItsRecord: of a record with a frame that may not be there,
// the app gets nothing, not even what stood before it.
func TestBadFrameHidesItsRecord(t *testing.T) {
	p := dialRaw(t, nil)
	s := p.open(t, toEcho)
	b := p.accepted(t)
	body := "\x03\x00\x00\x06secret" + "\x09\x00\x00\x01x"
	p.conn.Write([]byte(header(yamuxData, 0, s.StreamID(), len(body)) + body))
	n, err := b.Read(make([]byte, 100))
	if n != 0 || !errors.Is(err, ErrTruncated) {
		t.Fatalf("%d bytes, %v", n, err)
	}
	p.endsWith(t, RuleFrameType, b)
}

// A trickle is a Sink that takes a little without waiting, now and then.
type trickle struct {
	bytes.Buffer
	direct int // bytes that came by TryWrite
	turn   int
	err    error
}

func (k *trickle) TryWrite(pieces [][]byte) (n int, err error) {
	k.turn++
	room := []int{0, 1, 1000, 1 << 20}[k.turn%4]
	for _, p := range pieces {
		p = p[:min(len(p), room-n)]
		k.Write(p)
		n += len(p)
	}
	k.direct += n
	return n, k.err
}

// TestSink: whatever a sink takes at once, all bytes reach it in order.
func TestSink(t *testing.T) {
	a, b := streamPair(t)
	want := randomBytes(1, 5<<20)
	go func() {
		for rest, n := want, 1; len(rest) > 0; n = n*5%300_007 + 1 {
			n = min(n, len(rest))
			a.Write(rest[:n])
			rest = rest[n:]
		}
		a.CloseWrite()
	}()
	k := new(trickle)
	n, err := b.WriteTo(k)
	if err != nil || n != int64(len(want)) || !bytes.Equal(k.Bytes(), want) {
		t.Fatalf("%d bytes, %v", n, err)
	}
	if k.direct == 0 || k.direct == len(want) {
		t.Fatalf("%d of %d bytes came without waiting: nothing was tested", k.direct, len(want))
	}
	if used, _ := b.link.mux.Unread(); used != 0 {
		t.Fatalf("%d bytes unread", used)
	}
}

// TestSinkFails: the error of a sink is that of WriteTo.
func TestSinkFails(t *testing.T) {
	a, b := streamPair(t)
	k := &trickle{err: errTest}
	go a.Write([]byte("x"))
	if _, err := b.WriteTo(k); err != errTest {
		t.Fatal(err)
	}
}

// A pond is a LazyReader that always has something.
type pond struct{ most int }

func (p *pond) Read([]byte) (int, error) { panic("not lazy") }

func (p *pond) ReadLazy(take func() [][]byte, drop func()) (n int, err error) {
	rooms := take()
	p.most = max(p.most, len(rooms))
	for _, r := range rooms {
		n += len(r)
	}
	return n, nil
}

// TestReadFromIsBounded: streams that could all send read no more than what
// the peer has room for, and share a link's buffers.
func TestReadFromIsBounded(t *testing.T) {
	handler, streams := accepted()
	a, b := pair(t, handler, nil, nil)
	x := open(t, a, "b")
	far := <-streams
	p := new(pond)
	done := make(chan int64, 1)
	go func() {
		n, _ := x.ReadFrom(p)
		done <- n
	}()
	eventually(t, "the window is full", func() bool { return x.link.guard.credit(x.flow) <= frameHeaderLen })
	if used, _ := b.Unread(); used > initialWindow+64<<10 {
		t.Fatalf("%d bytes unread", used)
	}
	// With all buffers taken it waits, and goes on when there is one.
	pool := &x.link.buffers
	if n := pool.get(1 << 20); n != linkBuffers {
		t.Fatalf("%d buffers of a stream that waits for its peer", linkBuffers-n)
	}
	drained := make(chan struct{})
	go func() {
		io.CopyN(io.Discard, far, initialWindow/2)
		pool.put(linkBuffers)
		io.CopyN(io.Discard, far, 8<<20)
		close(drained)
	}()
	select {
	case <-drained:
	case <-time.After(deadline):
		t.Fatal("it waits on")
	}
	far.Reset(ResetApp)
	<-done
	if p.most != maxBurst {
		t.Errorf("%d buffers at most in one read", p.most)
	}
	eventually(t, "all buffers are back", func() bool {
		pool.mu.Lock()
		defer pool.mu.Unlock()
		return pool.left == linkBuffers
	})
}

// TestQueueCountsMemory: the budget knows what a queue takes, whatever the
// sizes of the pieces.
func TestQueueCountsMemory(t *testing.T) {
	q := queue{unread: new(atomic.Int64)}
	var want []byte
	for n := range 300 {
		p := randomBytes(uint64(n), n*n)
		want = append(want, p...)
		q.add(p)
	}
	if used := q.unread.Load(); used < int64(len(want)) || used > int64(len(want))+64<<10 {
		t.Fatalf("%d bytes take %d", len(want), used)
	}
	got := make([]byte, 0, len(want))
	for b := make([]byte, 70_001); !q.empty(); {
		if len(got)%2 == 0 {
			got = append(got, b[:q.read(b)]...)
			continue
		}
		c := q.pop()
		got = append(got, c.bytes()...)
		q.free(c)
	}
	if !bytes.Equal(got, want) || q.unread.Load() != 0 {
		t.Fatalf("%d bytes of %d, %d still counted", len(got), len(want), q.unread.Load())
	}
}

// memory joins two nodes without sockets: a Dialer and a Listener.
type memory chan net.Conn

func (m memory) dial(context.Context, string, string) (net.Conn, error) {
	a, b := net.Pipe()
	m <- b
	return a, nil
}

func (m memory) Accept() (net.Conn, error) {
	c, ok := <-m
	if !ok {
		return nil, net.ErrClosed
	}
	return c, nil
}

func (m memory) Close() error   { return nil }
func (m memory) Addr() net.Addr { return streamAddr("memory") }

// TestFiftyThousandStreams holds as many over one link in memory, and each
// still carries bytes.
func TestFiftyThousandStreams(t *testing.T) {
	count := 50_000
	if raceDetector {
		count = 2000
	}
	limit := func(c *Config) { c.StreamsPerPeer, c.Memory = count, 512<<20 }
	handler, streams := accepted()
	a, b := pair(t, handler, limit, limit)
	link := make(memory, 1)
	defer close(link)
	go b.Serve(link)
	key := newKey(t)
	b.Update(Config{Session: session.Config{Key: b.key}, StreamsPerPeer: count, Memory: 512 << 20, Peers: []Peer{
		{Name: "a", Keys: []session.PublicKey{a.key.Public()}}, {Name: "c", Keys: []session.PublicKey{key.Public()}}}})
	c := newNode(t, key, []Peer{{Name: "b", Keys: []session.PublicKey{b.key.Public()}, Addresses: []string{"127.0.0.1:1"}}}, func(cfg *Config) {
		limit(cfg)
		cfg.Dialer = link.dial
	})
	var mu sync.Mutex
	var near, far []*Stream
	var wg sync.WaitGroup
	go func() {
		for s := range streams {
			mu.Lock()
			far = append(far, s)
			mu.Unlock()
		}
	}()
	defer close(streams)
	for range 16 {
		wg.Go(func() {
			for range count / 16 {
				s, err := c.Open(testContext(t), "b", toEcho)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				near = append(near, s)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	eventually(t, "all are accepted", func() bool { mu.Lock(); defer mu.Unlock(); return len(far) == count/16*16 })
	if links := c.allLinks(); len(links) != 1 {
		t.Fatalf("%d links", len(links))
	}
	for i, s := range near {
		if _, err := s.Write([]byte{byte(i)}); err != nil {
			t.Fatal(err)
		}
	}
	for _, s := range far {
		s.SetReadDeadline(time.Now().Add(deadline))
		if _, err := io.ReadFull(s, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	if err := near[0].Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		t.Fatal(err)
	}
}

// A quitter is a LazyReader that has something, and resets its stream before it
// can be sent.
type quitter struct{ stream *Stream }

func (q quitter) Read([]byte) (int, error) { panic("not lazy") }

func (q quitter) ReadLazy(take func() [][]byte, drop func()) (n int, err error) {
	rooms := take()
	for _, r := range rooms {
		n += len(r)
	}
	if len(rooms) > 1 { // a whole burst
		q.stream.Reset(ResetApp)
	}
	return n, nil
}

// TestResetGivesItsBuffersBack: however many streams end with something read
// and not sent, the link has buffers for the next.
func TestResetGivesItsBuffersBack(t *testing.T) {
	a, _ := pair(t, func(in *Inbound) {
		if s, err := in.Accept(); err == nil {
			n, _ := io.Copy(io.Discard, s)
			s.Write([]byte{byte(n)})
			s.CloseWrite()
		}
	}, nil, nil)
	for range 2 * linkBuffers {
		s := open(t, a, "b")
		if _, err := s.ReadFrom(quitter{s}); err == nil {
			t.Fatal("not reset")
		}
	}
	s := open(t, a, "b")
	sent := make(chan error, 1)
	go func() {
		_, err := s.ReadFrom(bytes.NewReader(make([]byte, 100_007)))
		s.CloseWrite()
		sent <- err
	}()
	select {
	case err := <-sent:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(deadline):
		t.Fatal("the link has no buffers left")
	}
	want := []byte{byte(100_007 & 0xff)}
	if got, err := io.ReadAll(s); err != nil || !bytes.Equal(got, want) {
		t.Fatal(got, err)
	}
}

// A thirsty LazyReader always has something, and says when it got no buffer.
type thirsty struct {
	pond
	none chan struct{}
}

func (r *thirsty) ReadLazy(take func() [][]byte, drop func()) (int, error) {
	n, err := r.pond.ReadLazy(take, drop)
	if n == 0 {
		select {
		case r.none <- struct{}{}:
		default:
		}
	}
	return n, err
}

// TestBufferOfWhoHasLeft: a stream that waits for a buffer of its link gets the
// one that came when another, which had waited for longer, was over.
func TestBufferOfWhoHasLeft(t *testing.T) {
	handler, streams := accepted()
	a, _ := pair(t, handler, nil, nil)
	first, second := open(t, a, "b"), open(t, a, "b")
	<-streams
	<-streams
	pool := &first.link.buffers
	pool.get(linkBuffers)
	sent := second.flow
	for _, s := range []*Stream{first, second} {
		r := &thirsty{none: make(chan struct{}, 1)}
		go s.ReadFrom(r)
		<-r.none
		time.Sleep(10 * time.Millisecond) // nothing shows that it waits; without that the test finds nothing
	}
	first.Reset(ResetApp)
	pool.put(1)
	eventually(t, "the second sends", func() bool { return second.link.guard.credit(sent) < initialWindow/2 })
	second.Reset(ResetApp)
}
