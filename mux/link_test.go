package mux

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/yamux"

	"github.com/sealane/sealane/session"
)

// A middle forwards TCP connections and harms them.
type middle struct {
	ln     net.Listener
	target string

	mu     sync.Mutex
	conns  []*net.TCPConn
	frozen chan struct{} // nil, or closed when it thaws
	dials  atomic.Int64
	refuse atomic.Bool
}

func newMiddle(t testing.TB, target string) *middle {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	m := &middle{ln: ln, target: target}
	var wg sync.WaitGroup
	wg.Go(func() { m.serve(&wg) })
	t.Cleanup(func() {
		ln.Close()
		m.thaw()
		m.kill(0)
		wg.Wait()
	})
	return m
}

func (m *middle) addr() string { return m.ln.Addr().String() }

func (m *middle) serve(wg *sync.WaitGroup) {
	for {
		a, err := m.ln.Accept()
		if err != nil {
			return
		}
		m.dials.Add(1)
		if m.refuse.Load() {
			a.Close()
			continue
		}
		b, err := net.Dial("tcp", m.target)
		if err != nil {
			a.Close()
			continue
		}
		m.mu.Lock()
		m.conns = append(m.conns, a.(*net.TCPConn), b.(*net.TCPConn))
		m.mu.Unlock()
		wg.Go(func() { m.pump(a, b) })
		wg.Go(func() { m.pump(b, a) })
	}
}

func (m *middle) pump(dst, src net.Conn) {
	buf := make([]byte, 32<<10)
	for {
		n, err := src.Read(buf)
		m.mu.Lock()
		frozen := m.frozen
		m.mu.Unlock()
		if frozen != nil {
			<-frozen
		}
		if n > 0 {
			if _, err := dst.Write(buf[:n]); err != nil {
				src.Close()
				return
			}
		}
		if err != nil {
			dst.(*net.TCPConn).CloseWrite()
			return
		}
	}
}

// kill ends all connections: by RST with linger 0, else by FIN.
func (m *middle) kill(linger int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, c := range m.conns {
		c.SetLinger(linger)
		c.Close()
	}
	m.conns = nil
}

func (m *middle) freeze() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.frozen = make(chan struct{})
}

func (m *middle) thaw() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.frozen != nil {
		close(m.frozen)
		m.frozen = nil
	}
}

// pairThrough is pair with a middle on the link.
func pairThrough(t testing.TB, handler func(*Inbound)) (a, b *node, m *middle) {
	t.Helper()
	ka, kb := newKey(t), newKey(t)
	timing := fastTiming()
	timing.tick = 150 * time.Millisecond
	b = newTimedNode(t, timing, kb, []Peer{{Name: "a", Keys: []session.PublicKey{ka.Public()}}}, func(c *Config) { c.Handler = handler })
	m = newMiddle(t, b.addr)
	a = newTimedNode(t, timing, ka, []Peer{{Name: "b", Keys: []session.PublicKey{kb.Public()}, Addresses: []string{m.addr()}}}, nil)
	return a, b, m
}

// TestLinkDeath: however a link dies, streams end with an error at both ends
// and never with a clean end, and the next link comes up.
func TestLinkDeath(t *testing.T) {
	t.Parallel()
	for name, kill := range map[string]func(*middle){
		"RST":    func(m *middle) { m.kill(0) },
		"FIN":    func(m *middle) { m.kill(-1) },
		"freeze": func(m *middle) { m.freeze() },
	} {
		t.Run(name, func(t *testing.T) {
			handler, streams := accepted()
			a, b, m := pairThrough(t, handler)
			var ends []*Stream
			for _, situation := range []string{"idle", "loaded", "half closed"} {
				x := open(t, a, "b")
				y := <-streams
				ends = append(ends, x, y)
				switch situation {
				case "loaded":
					go io.Copy(x, endless{})
					go io.Copy(io.Discard, y)
				case "half closed":
					x.CloseWrite()
					if _, err := io.ReadAll(y); err != nil {
						t.Fatal(err)
					}
				}
			}
			kill(m)
			for i, s := range ends {
				if i == 5 { // its reading has ended
					eventually(t, "the stream is aborted", func() bool { return s.Err() != nil })
					continue
				}
				if err := readError(t, s); !errors.Is(err, ErrTruncated) {
					t.Errorf("end %d: %v", i, err)
				}
			}
			m.thaw()
			s := open(t, a, "b")
			s.Write([]byte("x"))
			y := <-streams
			if _, err := io.ReadFull(y, make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			eventually(t, "only that stream is left", func() bool { return a.streams.Load() == 1 && b.streams.Load() == 1 })
			eventually(t, "the link is logged", func() bool {
				return a.log.count("link up") == 2 && a.log.count("link down") == 1 && b.log.count("link down") == 1
			})
			if n := len(a.Violations()) + len(b.Violations()); n != 0 {
				t.Errorf("%d violations", n)
			}
		})
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

// TestCompleteStreamSurvivesItsLink: what arrived whole before the link died
// is whole.
func TestCompleteStreamSurvivesItsLink(t *testing.T) {
	handler, streams := accepted()
	a, _, m := pairThrough(t, handler)
	x := open(t, a, "b")
	y := <-streams
	if err := y.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(x); err != nil {
		t.Fatal(err)
	}
	want := randomBytes(1, 100_000)
	x.Write(want)
	x.CloseWrite()
	eventually(t, "all has arrived", func() bool {
		y.mu.Lock()
		defer y.mu.Unlock()
		return y.endIn
	})
	m.kill(0)
	eventually(t, "the link is dead", func() bool { return y.link.cause() != nil })
	got, err := io.ReadAll(y)
	if err != nil || !bytes.Equal(got, want) {
		t.Fatal(len(got), err)
	}
}

// TestLoadedLinkIsNotDead: a link whose reader is slow moves, if little, and
// pings wait behind much data.
func TestLoadedLinkIsNotDead(t *testing.T) {
	handler, streams := accepted()
	ka, kb := newKey(t), newKey(t)
	timing := fastTiming()
	timing.tick = 50 * time.Millisecond
	b := newTimedNode(t, timing, kb, []Peer{{Name: "a", Keys: []session.PublicKey{ka.Public()}}}, func(c *Config) { c.Handler = handler })
	slow := newSlowMiddle(t, b.addr, 3<<20)
	a := newTimedNode(t, timing, ka, []Peer{{Name: "b", Keys: []session.PublicKey{kb.Public()}, Addresses: []string{slow}}}, nil)
	x := open(t, a, "b")
	go io.Copy(x, endless{})
	go io.Copy(io.Discard, <-streams)
	for begun := time.Now(); time.Since(begun) < 4*deadTicks*timing.tick; {
		if err := x.Err(); err != nil {
			t.Fatalf("after %v: %v", time.Since(begun), err)
		}
		time.Sleep(10 * time.Millisecond)
	}
	x.Close()
}

// newSlowMiddle forwards at most so many bytes a second each way, from sockets
// that hold little.
func newSlowMiddle(t testing.TB, target string, rate int) string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	done := make(chan struct{})
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			d, err := net.Dial("tcp", target)
			if err != nil {
				c.Close()
				continue
			}
			pump := func(dst, src net.Conn) {
				defer dst.Close()
				src.(*net.TCPConn).SetReadBuffer(64 << 10)
				buf := make([]byte, 16<<10)
				for {
					n, err := src.Read(buf)
					if n > 0 {
						dst.Write(buf[:n])
					}
					if err != nil {
						return
					}
					select {
					case <-time.After(time.Duration(n) * time.Second / time.Duration(rate)):
					case <-done:
						return
					}
				}
			}
			wg.Go(func() { pump(c, d) })
			wg.Go(func() { pump(d, c) })
		}
	})
	t.Cleanup(func() { ln.Close(); close(done); wg.Wait() })
	return ln.Addr().String()
}

func TestReconnects(t *testing.T) {
	a, _, m := pairThrough(t, echo)
	open(t, a, "b").Close()
	m.refuse.Store(true)
	m.kill(0)
	before := m.dials.Load()
	eventually(t, "it was tried again", func() bool { return m.dials.Load() >= before+3 })
	if a.log.count("no link") != 1 {
		t.Errorf("log: %s", a.log)
	}
	ctx, cancel := context.WithTimeout(testContext(t), 50*time.Millisecond)
	defer cancel()
	if _, err := a.Open(ctx, "b", toEcho); !errors.Is(err, ErrNoLink) || !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	m.refuse.Store(false)
	open(t, a, "b").Close()
}

func TestUnknownKeyIsTriedRarely(t *testing.T) {
	kb := newKey(t)
	b := newNode(t, kb, nil, nil)
	m := newMiddle(t, b.addr)
	a := newNode(t, newKey(t), []Peer{{Name: "b", Keys: []session.PublicKey{kb.Public()}, Addresses: []string{m.addr()}}}, func(c *Config) {})
	eventually(t, "the verdict is logged", func() bool { return strings.Contains(a.log.String(), session.ErrNotFound.Error()) })
	// The usual backoff would have tried 10 times by now.
	time.Sleep(a.timing.notFoundMin / 2)
	if n := m.dials.Load(); n > 2 {
		t.Fatalf("dialed %d times", n)
	}
	eventually(t, "the stranger is logged", func() bool { return b.log.count(a.key.Public().String()) > 0 })
	eventually(t, "it is tried again", func() bool { return m.dials.Load() > 1 })
}

// TestNextKey: a peer with two keys is found whichever it uses.
func TestNextKey(t *testing.T) {
	for i := range 2 {
		ka, keys := newKey(t), []*session.PrivateKey{newKey(t), newKey(t)}
		b := newNode(t, keys[i], []Peer{{Name: "a", Keys: []session.PublicKey{newKey(t).Public(), ka.Public()}}}, func(c *Config) { c.Handler = echo })
		a := newNode(t, ka, []Peer{{Name: "b", Keys: []session.PublicKey{keys[0].Public(), keys[1].Public()}, Addresses: []string{b.addr}}}, nil)
		s := open(t, a, "b")
		s.CloseWrite()
		if _, err := io.ReadAll(s); err != nil {
			t.Fatal(err)
		}
		if len(a.Status()[0].Links) != 1 {
			t.Fatal("not one link")
		}
	}
}

func TestWrongKeyIsRejected(t *testing.T) {
	results := make(chan LinkResult, 1000)
	b := newNode(t, newKey(t), nil, nil)
	a := newNode(t, newKey(t), []Peer{{Name: "b", Keys: []session.PublicKey{newKey(t).Public()}, Addresses: []string{b.addr}}}, func(c *Config) {
		c.Hooks.LinkResult = func(_ string, r LinkResult) { results <- r }
	})
	if r := <-results; r != LinkRejected {
		t.Fatal(r)
	}
	eventually(t, "it is logged", func() bool { return a.log.count("not the configured key of b, or nothing in common") == 1 })
	if got := a.Ready(); len(got) != 1 || got[0] != "b" {
		t.Fatal(got)
	}
}

// exits starts nodes with one key, each behind a middle, and a node that
// knows them as one peer with all their addresses.
func exits(t *testing.T, n int, handler func(i int) func(*Inbound), edit func(*Peer, *Config)) (a *node, bs []*node, ms []*middle) {
	t.Helper()
	ka, kb := newKey(t), newKey(t)
	peer := Peer{Name: "b", Keys: []session.PublicKey{kb.Public()}}
	for i := range n {
		b := newNode(t, kb, []Peer{{Name: "a", Keys: []session.PublicKey{ka.Public()}}}, func(c *Config) { c.Handler = handler(i) })
		bs = append(bs, b)
		ms = append(ms, newMiddle(t, b.addr))
		peer.Addresses = append(peer.Addresses, ms[i].addr())
	}
	a = newNode(t, ka, []Peer{peer}, func(c *Config) {
		if edit != nil {
			edit(&c.Peers[0], c)
		}
	})
	return a, bs, ms
}

func linkAddresses(n *node) map[string]int {
	found := make(map[string]int)
	for _, l := range n.Status()[0].Links {
		if l.State == LinkStateUp {
			found[l.Address]++
		}
	}
	return found
}

// TestSeveralAddresses: a peer with several addresses gets links to several,
// and the loss of one is not seen.
func TestSeveralAddresses(t *testing.T) {
	a, _, ms := exits(t, 2, func(int) func(*Inbound) { return echo }, nil)
	both := func() bool { return len(linkAddresses(a)) == 2 }
	eventually(t, "each address has a link", both)
	if n := len(a.Status()[0].Links); n != 2 {
		t.Fatalf("%d links", n)
	}
	ms[0].refuse.Store(true)
	ms[0].kill(0)
	eventually(t, "the link is gone", func() bool { return len(linkAddresses(a)) == 1 })
	for range 20 {
		s := open(t, a, "b")
		s.CloseWrite()
		if _, err := io.ReadAll(s); err != nil {
			t.Fatal(err)
		}
	}
	ms[0].refuse.Store(false)
	eventually(t, "each address has a link again", both)
}

// TestDeadAddressCostsNoTime: the next address is tried when one does not
// answer.
func TestDeadAddressCostsNoTime(t *testing.T) {
	begun := make(chan string, 100)
	ka, kb := newKey(t), newKey(t)
	b := newNode(t, kb, []Peer{{Name: "a", Keys: []session.PublicKey{ka.Public()}}}, func(c *Config) { c.Handler = echo })
	const dead = "192.0.2.1:1"
	a := newNode(t, ka, []Peer{{Name: "b", Keys: []session.PublicKey{kb.Public()}, Addresses: []string{dead, b.addr}}}, func(c *Config) {
		c.Dialer = func(ctx context.Context, network, address string) (net.Conn, error) {
			begun <- address
			if address == dead {
				<-ctx.Done()
				return nil, ctx.Err()
			}
			return new(net.Dialer).DialContext(ctx, network, address)
		}
	})
	open(t, a, "b").Close()
}

// TestNamesAreLookedUpAnew: a name that moves is found where it went.
func TestNamesAreLookedUpAnew(t *testing.T) {
	ka, kb := newKey(t), newKey(t)
	peers := []Peer{{Name: "a", Keys: []session.PublicKey{ka.Public()}}}
	b1 := newNode(t, kb, peers, func(c *Config) { c.Handler = echo })
	b2 := newNode(t, kb, peers, func(c *Config) { c.Handler = echo })
	var address atomic.Value
	address.Store(netip.MustParseAddr("127.0.0.1"))
	var moved atomic.Bool
	port := netip.MustParseAddrPort(b1.addr).Port()
	a := newNode(t, ka, []Peer{{Name: "b", Keys: []session.PublicKey{kb.Public()}, Addresses: []string{fmt.Sprintf("b.test:%d", port)}}}, func(c *Config) {
		c.Resolver = func(ctx context.Context, host string) ([]netip.Addr, error) {
			if host != "b.test" {
				return nil, errors.New("what name is that?")
			}
			return []netip.Addr{address.Load().(netip.Addr)}, nil
		}
		c.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
			if strings.HasPrefix(addr, "127.9.9.9:") {
				moved.Store(true)
				addr = b2.addr
			}
			return new(net.Dialer).DialContext(ctx, network, addr)
		}
	})
	open(t, a, "b").Close()
	address.Store(netip.MustParseAddr("127.9.9.9"))
	b1.Close()
	open(t, a, "b").Close()
	if !moved.Load() {
		t.Fatal("not moved")
	}
}

// TestLeastLoaded: streams are spread over the links.
func TestLeastLoaded(t *testing.T) {
	handler, _ := accepted()
	a, _ := pair(t, handler, func(c *Config) { c.Peers[0].Links = 4 }, nil)
	eventually(t, "four links are up", func() bool { return len(a.Status()[0].Links) == 4 })
	for range 40 {
		open(t, a, "b")
	}
	for _, l := range a.Status()[0].Links {
		if l.Streams != 10 {
			t.Fatalf("a link has %d streams", l.Streams)
		}
	}
}

// TestBothDial: two nodes that dial each other keep both links, and each uses
// its own.
func TestBothDial(t *testing.T) {
	ka, kb := newKey(t), newKey(t)
	a := newNode(t, ka, nil, nil)
	handler, _ := accepted()
	b := newNode(t, kb, []Peer{{Name: "a", Keys: []session.PublicKey{ka.Public()}, Addresses: []string{a.addr}}}, func(c *Config) { c.Handler = handler })
	if err := a.Update(Config{
		Session: session.Config{Key: ka},
		Peers:   []Peer{{Name: "b", Keys: []session.PublicKey{kb.Public()}, Addresses: []string{b.addr}}},
	}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "both have two links", func() bool { return len(a.Status()[0].Links) == 2 && len(b.Status()[0].Links) == 2 })
	for range 10 {
		open(t, a, "b")
	}
	for _, l := range a.Status()[0].Links {
		if want := map[bool]int{true: 10, false: 0}[l.Dialed]; l.Streams != want {
			t.Fatalf("dialed %t: %d streams", l.Dialed, l.Streams)
		}
	}
}

// echoes keeps n clients at work, each with one echo after the other, until
// stop is called; done, if not nil, counts the echoes. None may fail.
func echoes(t *testing.T, a *node, n int, done *atomic.Int64) (stop func()) {
	t.Helper()
	ended := make(chan struct{})
	var clients sync.WaitGroup
	for range n {
		clients.Go(func() {
			for {
				select {
				case <-ended:
					return
				default:
				}
				s, err := a.Open(testContext(t), "b", toEcho)
				if err != nil {
					t.Error(err)
					return
				}
				s.Write([]byte("x"))
				s.CloseWrite()
				if got, err := io.ReadAll(s); err != nil || string(got) != "x" {
					t.Errorf("read %q, %v", got, err)
				}
				if done != nil {
					done.Add(1)
				}
			}
		})
	}
	return func() {
		close(ended)
		clients.Wait()
	}
}

// TestGoAwayRetry: while one of two exits drains, no stream fails to open.
func TestGoAwayRetry(t *testing.T) {
	a, bs, _ := exits(t, 2, func(int) func(*Inbound) { return echo }, nil)
	eventually(t, "each address has a link", func() bool { return len(linkAddresses(a)) == 2 })
	held := make([]*Stream, 2)
	for i := range held {
		held[i] = open(t, a, "b") // one on each link
	}
	stop := echoes(t, a, 4, nil)
	drained := make(chan error, 1)
	go func() { drained <- bs[0].Drain(testContext(t)) }()
	eventually(t, "the link drains", func() bool { return len(linkAddresses(a)) == 1 })
	// What runs goes on until it is done.
	for _, s := range held {
		if _, err := s.Write([]byte("y")); err != nil {
			t.Fatal(err)
		}
		s.CloseWrite()
		if got, err := io.ReadAll(s); err != nil || string(got) != "y" {
			t.Fatal(got, err)
		}
	}
	if err := <-drained; err != nil {
		t.Fatal(err)
	}
	stop()
}

// TestUnansweredOpenIsRetriedOnce: a link that dies before the answer.
func TestUnansweredOpenIsRetriedOnce(t *testing.T) {
	asked := make(chan *Inbound, 10)
	release := make(chan struct{})
	a, _, m := pairThrough(t, func(in *Inbound) {
		asked <- in
		<-release
	})
	defer close(release)
	result := make(chan error, 1)
	go func() {
		s, err := a.Open(testContext(t), "b", toEcho)
		if err == nil {
			s.Close()
		}
		result <- err
	}()
	<-asked
	m.kill(0)
	in := <-asked // it came again, on another link
	if _, err := in.Accept(); err != nil {
		t.Fatal(err)
	}
	if err := <-result; err != nil {
		t.Fatal(err)
	}
	go func() {
		_, err := a.Open(testContext(t), "b", toEcho)
		result <- err
	}()
	for range 2 {
		<-asked
		m.kill(0)
	}
	if err := <-result; !errors.Is(err, errUnanswered) || !errors.Is(err, ErrTruncated) {
		t.Fatal(err)
	}
}

// TestUnansweredOpenGoesElsewhere: the retry of a stream whose link died does
// not go to the same node's next link, which may die just so.
func TestUnansweredOpenGoesElsewhere(t *testing.T) {
	var dying atomic.Int64
	dying.Store(-1)
	a, _, ms := exits(t, 2, func(i int) func(*Inbound) {
		return func(in *Inbound) {
			if dying.Load() == int64(i) {
				in.stream.link.raw.Close()
				return
			}
			echo(in)
		}
	}, func(p *Peer, _ *Config) { p.Links = 3 })
	var links map[string]int
	eventually(t, "each address has a link, and one has two", func() bool {
		links = linkAddresses(a)
		return len(links) == 2 && len(a.allLinks()) == 3
	})
	twice := 0
	if links[ms[1].addr()] == 2 {
		twice = 1
	}
	for range 6 { // two on each link, of which those of the two links end
		if s := open(t, a, "b"); s.link.address == ms[twice].addr() {
			s.Reset(ResetApp)
		} else {
			defer s.Close()
		}
	}
	eventually(t, "the two have less to do", func() bool {
		for _, l := range a.allLinks() {
			if l.address == ms[twice].addr() && l.load.Load() > 0 {
				return false
			}
		}
		return true
	})
	dying.Store(int64(twice))
	open(t, a, "b").Close()
}

// TestEveryLinkLeaves: a stream goes on to the next link for as long as the
// one before it goes away.
func TestEveryLinkLeaves(t *testing.T) {
	ka, kb := newKey(t), newKey(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer ln.Close()
	var asked atomic.Int64
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { leaveTwice(t, c, kb, ka.Public(), &asked) })
		}
	})
	a := newNode(t, ka, []Peer{{Name: "b", Keys: []session.PublicKey{kb.Public()}, Addresses: []string{ln.Addr().String()}, Links: 3}}, nil)
	defer a.Close()
	eventually(t, "three links", func() bool { return len(a.allLinks()) == 3 })
	open(t, a, "b").Close()
	if n := asked.Load(); n != 3 {
		t.Errorf("opened %d times, want 3", n)
	}
}

// leaveTwice is a peer that goes away when it is asked for a stream, and the
// third time answers.
func leaveTwice(t *testing.T, c net.Conn, key *session.PrivateKey, peer session.PublicKey, asked *atomic.Int64) {
	defer c.Close()
	conn, err := session.Respond(testContext(t), c, session.Config{Key: key, Authorize: func(k session.PublicKey) bool { return k == peer }})
	if err != nil {
		t.Error(err)
		return
	}
	ys, err := yamux.Server(conn, yamuxTestConfig())
	if err != nil {
		t.Error(err)
		return
	}
	defer ys.Close()
	s, err := ys.AcceptStream()
	if err != nil {
		return
	}
	defer s.Close()
	if asked.Add(1) < 3 {
		if err := ys.GoAway(); err != nil {
			t.Error(err)
		}
		return
	}
	s.Write(appendOpened(nil, StatusOK, ""))
	io.Copy(io.Discard, s)
}

// A target that refuses behind one of a peer's addresses may be there behind
// another: its app is just starting or ending there.
func TestRefusedIsTriedElsewhere(t *testing.T) {
	ka, kb := newKey(t), newKey(t)
	var asked [2]atomic.Int64
	var alive atomic.Bool
	alive.Store(true)
	replica := func(i int, serves func() bool) *node {
		return newNode(t, kb, []Peer{{Name: "a", Keys: []session.PublicKey{ka.Public()}}}, func(c *Config) {
			c.Handler = func(in *Inbound) {
				asked[i].Add(1)
				if serves() {
					echo(in)
					return
				}
				in.Refuse(StatusRefused, "connection refused")
			}
		})
	}
	b0 := replica(0, func() bool { return false })
	b1 := replica(1, alive.Load)
	a := newNode(t, ka, []Peer{{Name: "b", Keys: []session.PublicKey{kb.Public()}, Addresses: []string{b0.addr, b1.addr}, Links: 2}}, nil)
	eventually(t, "links to both", func() bool { return len(linkAddresses(a)) == 2 })
	for range 10 {
		open(t, a, "b").Close()
	}
	if asked[0].Load() == 0 {
		t.Error("the refusing one was never asked")
	}
	if asked[1].Load() != 10 {
		t.Errorf("the other one was asked %d times", asked[1].Load())
	}

	alive.Store(false)
	before := asked[0].Load() + asked[1].Load()
	_, err := a.Open(testContext(t), "b", toEcho)
	var answer *OpenError
	if !errors.As(err, &answer) || answer.Status != StatusRefused {
		t.Errorf("with both refusing: %v", err)
	}
	if n := asked[0].Load() + asked[1].Load() - before; n != 2 {
		t.Errorf("with both refusing, %d were asked", n)
	}
}

// TestResetBeforeACKTakesNoPlace: a peer that resets each stream before it has
// acknowledged it does not use up the streams that may wait for that.
func TestResetBeforeACKTakesNoPlace(t *testing.T) {
	var kind atomic.Bool
	n := rawResponder(t, nil, func(_ int, l *rawLink) {
		l.each(func(h yamuxHeader, _ []byte) {
			switch {
			case h.flags != flagSYN:
			case kind.Load():
				l.answer(h.id)
			default:
				l.write(rst(h.id))
			}
		})
	})
	for range 2 * maxUnacked {
		if _, err := n.Open(testContext(t), "raw", toEcho); err == nil {
			t.Fatal("a stream that was reset is open")
		}
	}
	kind.Store(true)
	open(t, n, "raw").Close()
}
