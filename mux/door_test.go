package mux

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sealane/sealane/session"
	"github.com/sealane/sealane/session/container"
)

// A lobby is an acceptor without a network.
type lobby struct {
	*acceptor
	refused map[Limit]int
}

// newLobby is called in a bubble. handshakes is the limit.
func newLobby(t *testing.T, handshakes int) *lobby {
	l := &lobby{refused: map[Limit]int{}}
	m, err := New(Config{
		Session: session.Config{Key: newKey(t)}, Handshakes: handshakes,
		Hooks: Hooks{Refused: func(limit Limit) { l.refused[limit]++ }},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	l.acceptor = m.acceptor
	synctest.Wait()
	return l
}

// A guest is an arrival, and how its end looked to it.
type guest struct {
	*arrival
	ctx  context.Context
	done chan error // of Admit
}

// arrive is a connection from an IPv4 address.
func (l *lobby) arrive(t *testing.T, a, b, c, d int) *guest {
	ctx, cancel := context.WithCancelCause(t.Context())
	addr := &net.TCPAddr{IP: net.IPv4(byte(a), byte(b), byte(c), byte(d))}
	return &guest{arrival: l.enter(sourceOf(addr), cancel), ctx: ctx, done: make(chan error, 1)}
}

// knock completes its message 1, and tells whether it was seated at once.
func (g *guest) knock() bool {
	go func() { g.done <- g.Admit(g.ctx) }()
	synctest.Wait()
	return g.isSeated()
}

func (g *guest) isSeated() bool {
	select {
	case <-g.seated:
		return true
	default:
		return false
	}
}

// stall is to be seated, and to be answered, and to say nothing.
func (g *guest) stall(t *testing.T) *guest {
	t.Helper()
	if !g.knock() {
		t.Fatal("not seated")
	}
	g.Answered(nil)
	return g
}

func (g *guest) evicted() bool { return g.ctx.Err() != nil }

// TestGreedySourcesLoseTheirOwnSlots: however many connections one network
// opens, it ends none of another's.
func TestGreedySourcesLoseTheirOwnSlots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLobby(t, 8)
		var others, greedy []*guest
		for i := range 20 {
			others = append(others, l.arrive(t, 10, 0, i, 1))
		}
		neighbour := l.arrive(t, 10, 1, 1, 77)
		for range readingSlots + 500 {
			greedy = append(greedy, l.arrive(t, 10, 1, 1, 1))
		}
		if l.slots.Len() != readingSlots {
			t.Errorf("%d slots taken", l.slots.Len())
		}
		for i, g := range append(others, neighbour) {
			if g.evicted() {
				t.Errorf("%d lost its slot to others", i)
			}
		}
		for i, g := range greedy {
			if g.evicted() != (i < 500+21) {
				t.Fatalf("%d of the greedy: evicted %v", i, g.evicted())
			}
		}
		// What waits for a place is in its slot, and no better off.
		for i := range 9 {
			if seated := greedy[len(greedy)-1-i].knock(); seated != (i < 8) {
				t.Fatalf("%d: seated %v", i, seated)
			}
		}
		late := l.arrive(t, 10, 9, 9, 9)
		for range readingSlots {
			l.arrive(t, 10, 1, 1, 1)
		}
		if late.evicted() || !greedy[len(greedy)-9].evicted() {
			t.Error("the wrong one went")
		}
		if l.refused[LimitHalfOpen] == 0 {
			t.Error("not counted")
		}
	})
}

// TestSlotsEnd: a message 1 has its time; to wait for a place is another matter.
func TestSlotsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLobby(t, 1)
		l.arrive(t, 10, 0, 0, 1).stall(t)
		silent, waits := l.arrive(t, 10, 0, 0, 2), l.arrive(t, 10, 0, 0, 1)
		if waits.knock() {
			t.Fatal("two places")
		}
		time.Sleep(l.mux.timing.reading - time.Millisecond)
		synctest.Wait()
		if silent.evicted() {
			t.Error("ended too early")
		}
		time.Sleep(2 * time.Millisecond)
		synctest.Wait()
		if !silent.evicted() || waits.evicted() {
			t.Errorf("ended: the silent one %v, the one that waits %v", silent.evicted(), waits.evicted())
		}
	})
}

// TestStalledHandshakesMakeWay: four networks hold all places, and wait for
// more. One from a fifth gets the first place that can be had, which is that of
// the oldest of the network with the most that has waited for a second.
func TestStalledHandshakesMakeWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLobby(t, 64)
		var stalled, queued []*guest
		for i := range 64 {
			network := i % 4
			if i == 63 {
				network = 2 // which now holds one more than the others
			}
			stalled = append(stalled, l.arrive(t, 10, 0, network, i).stall(t))
		}
		for i := range 32 {
			g := l.arrive(t, 10, 0, i%2, 100+i)
			if g.knock() {
				t.Fatal("65 places")
			}
			queued = append(queued, g)
		}
		honest := l.arrive(t, 10, 0, 9, 1)
		if honest.knock() {
			t.Fatal("somebody went who had just come")
		}
		time.Sleep(l.mux.timing.stalled)
		synctest.Wait()
		if !honest.isSeated() || !stalled[2].evicted() {
			t.Fatalf("seated %v, the oldest of the greediest evicted %v", honest.isSeated(), stalled[2].evicted())
		}
		if l.refused[LimitHandshakes] != 1 || countSeated(queued) != 0 {
			t.Errorf("%d were ended for one, and %d others seated", l.refused[LimitHandshakes], countSeated(queued))
		}
		// Those that are as greedy as the ones they wait for gain nothing yet.
		l.leave(honest.arrival)
		time.Sleep(l.mux.timing.stalled)
		synctest.Wait()
		again := l.arrive(t, 10, 0, 9, 1)
		if !again.knock() {
			t.Error("not at once")
		}
		if n := countSeated(queued); n != 1 { // the place that the honest one left
			t.Errorf("%d of the queue have a place", n)
		}
		time.Sleep(2 * l.mux.timing.stalledAlike)
		synctest.Wait()
		if n := countSeated(queued); n != 32 {
			t.Errorf("%d of the queue have a place in the end", n)
		}
	})
}

func countSeated(all []*guest) (n int) {
	for _, g := range all {
		if g.isSeated() {
			n++
		}
	}
	return n
}

// TestHostsShareTheirNetwork: in one network it is the hosts that count.
func TestHostsShareTheirNetwork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLobby(t, 8)
		for range 8 {
			l.arrive(t, 10, 0, 0, 1).stall(t)
		}
		var queued []*guest
		for range 30 {
			g := l.arrive(t, 10, 0, 0, 1)
			g.knock()
			queued = append(queued, g)
		}
		time.Sleep(l.mux.timing.stalled)
		other := l.arrive(t, 10, 0, 0, 2)
		if !other.knock() || countSeated(queued) != 0 {
			t.Errorf("seated %v, of the greedy host %d", other.isSeated(), countSeated(queued))
		}
	})
}

// TestACrowdBehindOneAddress: 500 that come at once are seated one after the
// other; nobody is sent away, and nobody who is slow to answer is thrown out.
func TestACrowdBehindOneAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLobby(t, 64)
		var wg sync.WaitGroup
		var seated atomic.Int64
		for range 500 {
			g := l.arrive(t, 10, 0, 0, 1)
			wg.Go(func() {
				defer l.leave(g.arrival)
				if g.Admit(g.ctx) != nil {
					return
				}
				seated.Add(1)
				g.Answered(nil)
				select {
				case <-time.After(1500 * time.Millisecond): // a slow path, and a busy host
				case <-g.ctx.Done():
					seated.Add(-1)
				}
			})
		}
		wg.Wait()
		if seated.Load() != 500 || len(l.refused) != 0 {
			t.Errorf("%d of 500 came in; refused %v", seated.Load(), l.refused)
		}
		if l.slots.Len()+l.places.Len()+len(l.nets)+len(l.hosts) != 0 {
			t.Error("something is still held")
		}
	})
}

// TestPlacesAreGivenBackBeforeLingering, and how many linger is bounded.
func TestPlacesAreGivenBackBeforeLingering(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLobby(t, 1)
		first := l.arrive(t, 10, 0, 0, 1).stall(t)
		next := l.arrive(t, 10, 0, 0, 1)
		next.knock()
		first.Settled()
		if !next.isSeated() || first.evicted() {
			t.Fatal("the place is still held")
		}
		for range maxLingering {
			l.arrive(t, 10, 0, 0, 1).Settled() // garbage, never seated
		}
		if l.lingering.Len() != maxLingering || !first.evicted() {
			t.Errorf("%d linger", l.lingering.Len())
		}
	})
}

// A mute connection lets message 1 out, and nothing in until it ends.
type mute struct{ net.Conn }

func (m mute) Read(p []byte) (int, error) {
	for {
		if _, err := m.Conn.Read(p); err != nil {
			return 0, err
		}
	}
}

// dialFrom connects from a loopback address.
func dialFrom(ctx context.Context, from net.IP, to string) (net.Conn, error) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: from}, Control: reuseAddr}
	return d.DialContext(ctx, "tcp4", to)
}

// stallers keep handshakes stalled, from four networks, that know the node's
// key, and dial again as fast as they are dropped.
func stallers(ctx context.Context, wg *sync.WaitGroup, n int, b *node) (dialed *atomic.Int64) {
	dialed = new(atomic.Int64)
	key, _ := session.GenerateKey()
	for i := range n {
		from := net.IPv4(127, 1, byte(i%4), byte(1+i/4))
		wg.Go(func() {
			for ctx.Err() == nil {
				c, err := dialFrom(ctx, from, b.addr)
				if err != nil {
					continue
				}
				dialed.Add(1)
				session.Initiate(ctx, mute{c}, b.key.Public(), session.Config{Key: key})
				c.Close()
			}
		})
	}
	return dialed
}

// TestNewLinksDuringStalledHandshakes: honest set-ups from a fifth network
// succeed at once.
func TestNewLinksDuringStalledHandshakes(t *testing.T) {
	t.Parallel()
	if raceDetector {
		t.Skip("what it measures is the time that others leave")
	}
	key := newKey(t)
	b := newTimedNode(t, defaultTiming, newKey(t), []Peer{{Name: "a", Keys: []session.PublicKey{key.Public()}}}, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	dialed := stallers(ctx, &wg, 96, b)
	eventually(t, "all places are stalled for a while", func() bool {
		b.acceptor.mu.Lock()
		defer b.acceptor.mu.Unlock()
		n := 0
		for e := b.acceptor.places.Front(); e != nil; e = e.Next() {
			if v := e.Value.(*arrival); v.stage == answered && time.Since(v.since) > time.Second {
				n++
			}
		}
		return n >= 32
	})
	const setups = 133
	var took []time.Duration
	var failed []error
	for range setups {
		begun := time.Now()
		c, err := dialFrom(ctx, net.IPv4(127, 2, 0, 1), b.addr)
		if err != nil {
			t.Fatal(err)
		}
		s, err := session.Initiate(ctx, c, b.key.Public(), session.Config{Key: key})
		if err != nil {
			failed = append(failed, err)
			continue
		}
		took = append(took, time.Since(begun))
		s.Close()
	}
	slices.Sort(took)
	t.Logf("%d of %d set-ups succeeded at once, the median in %v, the slowest in %v; %d stalled connections so far",
		len(took), setups, took[len(took)/2], took[len(took)-1], dialed.Load())
	if len(took) < setups*95/100 {
		t.Errorf("%d failed: %v", len(failed), errors.Join(failed...))
	}
}

// TestDecoysAreCountedAtOnce: the rule that a first message has broken is
// counted and logged when it was answered, once, although the answer does not
// show it and the connection goes on.
func TestDecoysAreCountedAtOnce(t *testing.T) {
	b := newNode(t, newKey(t), nil, nil)
	c, err := net.Dial("tcp", b.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	share := randomBytes(1, container.ShareLen)
	share[31] &= 0x7f
	c.Write(container.AppendShare(nil, share))
	answer := make([]byte, container.ShareTextLen)
	if _, err := io.ReadFull(c, answer); err != nil {
		t.Fatal(err)
	}
	counted := func() bool { return b.Violations()[session.RuleSeal] == 1 && b.log.count("handshake-seal") == 1 }
	eventually(t, "it is counted", counted)
	c.Write(container.AppendSealed(nil, new([container.IVLen]byte), randomBytes(2, 5184)))
	rest, err := io.ReadAll(c)
	if err != nil || string(rest) != container.BadRequest {
		t.Errorf("%q, %v", rest, err)
	}
	eventually(t, "the connection has ended", func() bool {
		b.acceptor.mu.Lock()
		defer b.acceptor.mu.Unlock()
		return b.acceptor.lingering.Len()+b.acceptor.places.Len() == 0
	})
	b.Close()
	if !counted() {
		t.Errorf("counted %v, logged %d times", b.Violations(), b.log.count("handshake-seal"))
	}
}

// TestFiveHundredNodesAtOnce: behind one address, all are up.
func TestFiveHundredNodesAtOnce(t *testing.T) {
	const nodes = 500
	keys := make([]*session.PrivateKey, nodes)
	var peers []Peer
	for i := range keys {
		keys[i] = newKey(t)
		peers = append(peers, Peer{Name: fmt.Sprint(i), Keys: []session.PublicKey{keys[i].Public()}})
	}
	b := newTimedNode(t, defaultTiming, newKey(t), peers, nil)
	ctx, cancel := context.WithCancel(testContext(t))
	defer cancel()
	begun := time.Now()
	var wg sync.WaitGroup
	errs := make(chan error, nodes)
	for _, key := range keys {
		wg.Go(func() {
			var s *session.Conn
			err := errors.New("never tried")
			for attempt := 0; err != nil && attempt < 10; attempt++ { // as nodes do, if the machine is that slow
				var c net.Conn
				if c, err = dialFrom(ctx, net.IPv4(127, 3, 0, 1), b.addr); err == nil {
					s, err = session.Initiate(ctx, c, b.key.Public(), session.Config{Key: key})
				}
			}
			errs <- err
			if err == nil {
				<-ctx.Done()
				s.Abort(nil)
			}
		})
	}
	for range nodes {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	t.Logf("%d links after %v", nodes, time.Since(begun))
	cancel()
	wg.Wait()
}
