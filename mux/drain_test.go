package mux

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sealane/sealane/session"
)

// slowPair is pair over a link that carries rate bytes a second.
func slowPair(t testing.TB, rate int, handler func(*Inbound)) (a, b *node) {
	t.Helper()
	ka, kb := newKey(t), newKey(t)
	b = newNode(t, kb, []Peer{{Name: "a", Keys: []session.PublicKey{ka.Public()}}}, func(c *Config) { c.Handler = handler })
	a = newNode(t, ka, []Peer{{Name: "b", Keys: []session.PublicKey{kb.Public()}, Addresses: []string{newSlowMiddle(t, b.addr, rate)}}}, nil)
	return a, b
}

// answeredStreams opens streams whose requests have ended, and whose answers, of n
// bytes each, have as well, as far as the answering node goes: most is queued.
func answeredStreams(t *testing.T, a *node, streams chan *Stream, count, n int) (nears []*Stream, want []byte) {
	t.Helper()
	want = randomBytes(1, n)
	var fars []*Stream
	for range count {
		near := open(t, a, "b")
		far := <-streams
		near.CloseWrite()
		if _, err := io.ReadAll(far); err != nil {
			t.Fatal(err)
		}
		nears, fars = append(nears, near), append(fars, far)
	}
	for _, far := range fars {
		if _, err := far.Write(want); err != nil {
			t.Fatal(err)
		}
		if err := far.CloseWrite(); err != nil {
			t.Fatal(err)
		}
	}
	return nears, want
}

// TestDrainWaitsUntilThePeerHasIt: END that is only queued is no end.
func TestDrainWaitsUntilThePeerHasIt(t *testing.T) {
	t.Parallel()
	handler, streams := accepted()
	a, b := slowPair(t, 600<<10, handler)
	nears, want := answeredStreams(t, a, streams, 8, 250<<10) // each may send 256 KiB at once
	drained := make(chan error, 1)
	go func() { drained <- b.Drain(testContext(t)) }()
	for i, s := range nears {
		if got, err := io.ReadAll(s); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("stream %d: %d bytes of %d, %v", i, len(got), len(want), err)
		}
	}
	if err := <-drained; err != nil {
		t.Fatal(err)
	}
}

// TestDrainCountsWhatThePeerLacks: at its deadline a drain ends, and says how
// many streams it cannot answer for.
func TestDrainCountsWhatThePeerLacks(t *testing.T) {
	t.Parallel()
	handler, streams := accepted()
	a, b, m := pairThrough(t, handler)
	var answers []*Stream
	for range 8 {
		near := open(t, a, "b")
		near.CloseWrite()
		far := <-streams
		if _, err := io.ReadAll(far); err != nil {
			t.Fatal(err)
		}
		answers = append(answers, far)
	}
	m.freeze()
	for _, far := range answers {
		if err := far.CloseWrite(); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(testContext(t), 100*time.Millisecond)
	defer cancel()
	begun := time.Now()
	var d *DrainError
	if err := b.Drain(ctx); !errors.As(err, &d) || d.Cut != 8 {
		t.Fatal(err)
	}
	if b.log.count(`"unconfirmed":8`) != 1 {
		t.Errorf("the link does not say so: %s", b.log)
	}
	if took := time.Since(begun); took > 100*time.Millisecond+2*(b.timing.cutGrace+b.timing.closeGrace) {
		t.Fatalf("the deadline passed %v ago", took)
	}
}

// TestDrainCountsLostStreams: a stream is not finished because its link died.
func TestDrainCountsLostStreams(t *testing.T) {
	handler, streams := accepted()
	a, b, m := pairThrough(t, handler)
	near := open(t, a, "b")
	far := <-streams
	near.CloseWrite()
	if _, err := io.ReadAll(far); err != nil {
		t.Fatal(err)
	}
	m.freeze()
	if err := far.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	drained := make(chan error, 1)
	go func() { drained <- b.Drain(testContext(t)) }()
	select {
	case err := <-drained:
		t.Fatalf("drained with an END on its way: %v", err)
	case <-time.After(200 * time.Millisecond):
	}
	m.kill(0)
	var d *DrainError
	if err := <-drained; !errors.As(err, &d) || d.Cut != 1 {
		t.Fatal(err)
	}
	if err := readError(t, near); !errors.Is(err, ErrTruncated) {
		t.Fatal(err)
	}
}

// TestDrainCountsTruncatedStreams: nor is one that its link took along in the
// midst of it, also if that was before the Mux itself came to drain.
func TestDrainCountsTruncatedStreams(t *testing.T) {
	for name, node := range map[string]func(a, b *node) *node{
		"opener":   func(a, _ *node) *node { return a },
		"accepter": func(_, b *node) *node { return b },
	} {
		for _, early := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s early=%v", name, early), func(t *testing.T) {
				handler, streams := accepted()
				a, b, m := pairThrough(t, handler)
				near := open(t, a, "b")
				far := <-streams
				n := node(a, b)
				n.Leave()
				drained := make(chan error, 1)
				drain := func() { drained <- n.Drain(testContext(t)) }
				if !early {
					go drain()
				}
				m.kill(0)
				for _, s := range []*Stream{near, far} {
					if err := readError(t, s); !errors.Is(err, ErrTruncated) {
						t.Fatal(err)
					}
				}
				if early {
					go drain()
				}
				var d *DrainError
				if err := <-drained; !errors.As(err, &d) || d.Cut != 1 {
					t.Fatal(err)
				}
			})
		}
	}
}

// TestDrainDoesNotCountWhatThePeerGaveUp: a stream that the peer gave up is
// not lost with its link, however soon that ends behind it.
func TestDrainDoesNotCountWhatThePeerGaveUp(t *testing.T) {
	handler, streams := accepted()
	a, b, _ := pairThrough(t, handler)
	var nears []*Stream
	for range 200 {
		nears = append(nears, open(t, a, "b"))
		<-streams
	}
	b.Leave()
	for _, s := range nears {
		s.abort(errors.New("the app has gone"), false)
	}
	eventually(t, "all were given up", func() bool { return a.streams.Load() == 0 })
	a.Close()
	if err := b.Drain(testContext(t)); err != nil {
		t.Fatal(err)
	}
}

// TestReplacedLinkWaitsUntilThePeerHasIt: a link that another one replaces is
// closed when its streams have arrived.
func TestReplacedLinkWaitsUntilThePeerHasIt(t *testing.T) {
	t.Parallel()
	handler, streams := accepted()
	a, b := slowPair(t, 800<<10, handler)
	nears, want := answeredStreams(t, a, streams, 8, 250<<10)
	old := nears[0].link
	next := newKey(t)
	if err := b.Update(Config{Session: session.Config{Key: next}, Peers: []Peer{{Name: "a", Keys: []session.PublicKey{a.key.Public()}}}}); err != nil {
		t.Fatal(err)
	}
	for i, s := range nears {
		if got, err := io.ReadAll(s); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("stream %d: %d bytes of %d, %v", i, len(got), len(want), err)
		}
	}
	eventually(t, "the old link is closed", func() bool { return old.cause() != nil })
}

// A queueSpy sees what is queued on a session.
type queueSpy struct {
	*session.Conn
	queued func(p []byte)
}

func (c *queueSpy) QueueFirst(p []byte, behind session.Mark) error {
	c.queued(p)
	return c.Conn.QueueFirst(p, behind)
}

// TestGoAwayComesFirst: no stream is closed unanswered before the go away that
// tells the peer to open it elsewhere.
func TestGoAwayComesFirst(t *testing.T) {
	a, b := pair(t, echo, nil, nil)
	near, far := tcpPair(t)
	peer := make(chan *session.Conn, 1)
	go func() {
		c, err := session.Initiate(testContext(t), near, b.key.Public(), session.Config{Key: a.key})
		if err != nil {
			t.Error(err)
		}
		peer <- c
	}()
	conn, err := session.Respond(testContext(t), far, b.config().Session)
	if err != nil {
		t.Fatal(err)
	}
	var l *link
	early := make(chan bool, 1)
	spy := &queueSpy{conn, func(p []byte) {
		if parseHeader(p).kind == yamuxGoAway {
			l.mu.Lock()
			defer l.mu.Unlock()
			early <- l.leaving
		}
	}}
	if l, err = newLink(b.peerByKey(a.key.Public()), spy, far, false, "a"); err != nil {
		t.Fatal(err)
	}
	defer (<-peer).Abort(nil)
	go l.run()
	l.leave()
	if <-early {
		t.Error("streams are closed unanswered before the peer knows why")
	}
	<-l.told
	l.fail(errTest)
	<-l.done
}

// TestOpensLeaveWithTheLink: whoever waits for a place on a link whose peer
// goes away does not wait on, however many they are.
func TestOpensLeaveWithTheLink(t *testing.T) {
	const opens = 3 * maxUnacked
	waiting := make(chan struct{})
	n := rawResponder(t, nil, func(i int, l *rawLink) {
		syns := 0
		l.each(func(h yamuxHeader, _ []byte) {
			switch {
			case h.flags != flagSYN:
			case i > 0:
				l.answer(h.id)
			default:
				if syns++; syns == maxUnacked {
					<-waiting
					l.write(away() + repeat(maxUnacked, func(i int) string { return rst(uint32(2*i + 1)) }))
				}
			}
		})
	})
	done := make(chan error, opens)
	for range opens {
		go func() {
			_, err := n.Open(testContext(t), "raw", toEcho)
			done <- err
		}()
	}
	eventually(t, "all are counted", func() bool { return n.streams.Load() == opens })
	close(waiting)
	for range opens {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
}

// TestNothingIsOpenedBehindGoAway: not even while only the guard knows of it,
// and there are places.
func TestNothingIsOpenedBehindGoAway(t *testing.T) {
	a, b := pair(t, echo, nil, nil)
	open(t, a, "b").Close()
	l := a.allLinks()[0]
	l.peerLeft()
	frame, err := appendOpen(nil, toEcho)
	if err != nil {
		t.Fatal(err)
	}
	for range 100 {
		if err := l.peer.acquireStream(); err != nil {
			t.Fatal(err)
		}
		if _, err := l.request(testContext(t), frame); !errors.Is(err, errGoAway) {
			t.Fatalf("the request ended with %v", err)
		}
	}
	if n := len(l.guard.opens); n != 0 {
		t.Errorf("%d places are lost", n)
	}
	eventually(t, "no stream is counted", func() bool { return a.streams.Load() == 0 && b.streams.Load() == 0 })
}

// TestRollingRestarts: two nodes behind one name end one after the other, each
// as soon as it has drained, and others take their places. No stream is lost
// that was opened meanwhile, however many wait for their answers.
func TestRollingRestarts(t *testing.T) {
	ka, kb := newKey(t), newKey(t)
	exit := func() *node {
		return newNode(t, kb, []Peer{{Name: "a", Keys: []session.PublicKey{ka.Public()}}}, func(c *Config) { c.Handler = echo })
	}
	places := map[string]*atomic.Pointer[node]{"192.0.2.1:1": {}, "192.0.2.2:1": {}}
	peer := Peer{Name: "b", Keys: []session.PublicKey{kb.Public()}}
	for address, place := range places {
		place.Store(exit())
		peer.Addresses = append(peer.Addresses, address)
	}
	a := newNode(t, ka, []Peer{peer}, func(c *Config) {
		c.Dialer = func(ctx context.Context, network, address string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, places[address].Load().addr)
		}
	})
	both := func() bool { return len(linkAddresses(a)) == 2 }
	eventually(t, "both are up", both)
	var done atomic.Int64
	stop := echoes(t, a, 400, &done)
	for range 4 {
		for _, place := range places {
			old, before := place.Load(), done.Load()
			place.Store(exit())
			if err := old.Drain(testContext(t)); err != nil {
				t.Error(err)
			}
			eventually(t, "both are up again, and at work", func() bool { return both() && done.Load() > before+400 })
		}
	}
	stop()
	t.Logf("%d streams", done.Load())
}

// TestDrainTellsFirst: with nothing left to finish, a congested link is not
// closed before its go away is on the way: streams that come just then would be
// taken for lost, not for refused.
func TestDrainTellsFirst(t *testing.T) {
	a, b := pair(t, echo, nil, nil)
	open(t, a, "b").Close()
	eventually(t, "nothing is left", func() bool { return b.streams.Load() == 0 })
	here, there := b.allLinks()[0], a.allLinks()[0]
	here.guard.writeMu.Lock() // as somebody has it who waits for the peer
	drained := make(chan error, 1)
	go func() { drained <- b.Drain(testContext(t)) }()
	select {
	case <-drained:
		t.Error("drained, and nobody was told")
	case <-time.After(100 * time.Millisecond):
	}
	here.guard.writeMu.Unlock()
	if err := <-drained; err != nil {
		t.Fatal(err)
	}
	<-there.done
	if !there.left.Load() {
		t.Error("the link was closed without a go away")
	}
}
