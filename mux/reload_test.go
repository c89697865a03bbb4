package mux

import (
	"errors"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sealane/sealane/session"
)

// update gives a node another configuration.
func (n *node) update(t testing.TB, cfg Config) {
	t.Helper()
	if err := n.Update(cfg); err != nil {
		t.Fatal(err)
	}
}

// TestReloadedLimits: new limits hold without a restart.
func TestReloadedLimits(t *testing.T) {
	greedy, modest := newKey(t), newKey(t)
	peers := []Peer{{Name: "greedy", Keys: []session.PublicKey{greedy.Public()}}, {Name: "modest", Keys: []session.PublicKey{modest.Public()}}}
	b := newNode(t, newKey(t), peers, nil)
	b.update(t, Config{Session: session.Config{Key: b.key}, Peers: peers, Links: 4, Memory: 12345})
	if _, limit := b.Unread(); limit != 12345 {
		t.Errorf("the limit of memory is %d", limit)
	}
	// Of four links each has two.
	if links, err := dialLinks(t, 5, greedy, b); len(links) != 2 || !errors.Is(err, session.ErrNoRoom) {
		t.Errorf("%d links, then %v", len(links), err)
	}
	if links, err := dialLinks(t, 2, modest, b); len(links) != 2 {
		t.Errorf("%d links for the other, then %v", len(links), err)
	}
}

// A watched connection tells of its first read and its first write.
type watched struct {
	net.Conn
	read, wrote atomic.Bool
}

func (w *watched) Read(p []byte) (int, error) {
	n, err := w.Conn.Read(p)
	w.read.Store(true)
	return n, err
}

func (w *watched) Write(p []byte) (int, error) {
	n, err := w.Conn.Write(p)
	w.wrote.Store(true)
	return n, err
}

// TestReloadSeatsWhoWaits: a handshake that waits for a place gets one that a
// reload has made.
func TestReloadSeatsWhoWaits(t *testing.T) {
	key := newKey(t)
	peers := []Peer{{Name: "a", Keys: []session.PublicKey{key.Public()}}}
	timing := fastTiming()
	timing.reading, timing.stalled, timing.stalledAlike = time.Hour, time.Hour, time.Hour
	cfg := Config{Session: session.Config{Key: newKey(t)}, Peers: peers, Handshakes: 1, HandshakeTimeout: time.Hour}
	b := newTimedNode(t, timing, cfg.Session.Key, peers, func(c *Config) { c.Handshakes, c.HandshakeTimeout = 1, time.Hour })
	dial := func() *watched {
		c, err := net.Dial("tcp", b.addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return &watched{Conn: c}
	}
	staller := dial()
	go session.Initiate(testContext(t), mute{staller}, b.key.Public(), session.Config{Key: key})
	eventually(t, "the only place is taken", staller.read.Load)
	waiting, linked := dial(), make(chan error, 1)
	go func() {
		s, err := session.Initiate(testContext(t), waiting, b.key.Public(), session.Config{Key: key})
		if err == nil {
			s.Abort(nil)
		}
		linked <- err
	}()
	eventually(t, "another one is about to wait", waiting.wrote.Load)
	time.Sleep(100 * time.Millisecond) // less would only show less
	if waiting.read.Load() {
		t.Fatal("it did not have to wait")
	}
	cfg.Handshakes = 2
	b.update(t, cfg)
	if err := <-linked; err != nil {
		t.Fatal(err)
	}
}

// TestReloadWithTheSameKey: links stay as they are, although the key was read
// anew.
func TestReloadWithTheSameKey(t *testing.T) {
	a, b := pair(t, echo, nil, nil)
	open(t, a, "b").Close()
	before := a.Status()[0].Links[0]
	for _, n := range []*node{a, b} {
		key, err := session.ParsePrivateKey(n.key.PEM())
		if err != nil {
			t.Fatal(err)
		}
		cfg := n.config()
		cfg.Session.Key = key
		n.update(t, cfg)
	}
	open(t, a, "b").Close()
	after := a.Status()[0].Links
	if len(after) != 1 || after[0].State != LinkStateUp || after[0].Since != before.Since {
		t.Fatalf("the link was %v, there are %v", before, after)
	}
	if after := b.Status()[0].Links; len(after) != 1 || after[0].State != LinkStateUp {
		t.Fatalf("the other end has %v", after)
	}
}

// TestAddressesComeBack: a peer whose addresses were taken away is dialed again
// when it has some.
func TestAddressesComeBack(t *testing.T) {
	t.Parallel()
	a, _, m := pairThrough(t, echo)
	open(t, a, "b").Close()
	cfg := a.config()
	peer := cfg.Peers[0]
	peer.Addresses = nil
	cfg.Peers = []Peer{peer}
	a.update(t, cfg)
	m.kill(0)
	eventually(t, "the link is gone", func() bool { return len(a.Status()[0].Links) == 0 })
	dials := m.dials.Load()
	time.Sleep(5 * a.timing.backoffMax) // less would only show less
	if n := m.dials.Load(); n != dials {
		t.Fatalf("dialed %d times without an address", n-dials)
	}
	peer.Addresses = []string{m.addr()}
	cfg.Peers = []Peer{peer}
	a.update(t, cfg)
	open(t, a, "b").Close()
}

// duringHandshake makes a node that does something between a peer's handshake
// and its link, and a peer that links to it.
func duringHandshake(t *testing.T, do func(b *node), up func()) (b *node, conn *session.Conn) {
	t.Helper()
	key := newKey(t)
	var armed atomic.Pointer[node]
	b = newNode(t, newKey(t), []Peer{{Name: "a", Keys: []session.PublicKey{key.Public()}}}, func(c *Config) {
		c.Hooks.Handshake = func(time.Duration) { do(armed.Load()) }
		c.Hooks.LinkUp = func(string) { up() }
	})
	armed.Store(b)
	return b, stranger(t, b, key)
}

// TestRemovedDuringTheHandshake: a peer that a reload removes gets no link,
// whenever that is.
func TestRemovedDuringTheHandshake(t *testing.T) {
	var ups atomic.Int64
	_, conn := duringHandshake(t, func(b *node) { b.update(t, Config{Session: session.Config{Key: b.key}}) }, func() { ups.Add(1) })
	conn.SetReadDeadline(time.Now().Add(deadline))
	if _, err := io.Copy(io.Discard, conn); err != nil {
		t.Errorf("the link ended with %v", err)
	}
	if ups.Load() != 0 {
		t.Error("a link of a peer that is none was up")
	}
}

// TestLinkOfADrainingNode: a link that comes up when a drain has begun tells
// the peer to open no streams, and the drain does not wait for it.
func TestLinkOfADrainingNode(t *testing.T) {
	t.Parallel()
	b, conn := duringHandshake(t, func(b *node) { b.Leave() }, func() {})
	conn.SetReadDeadline(time.Now().Add(deadline))
	var got []byte
	for buf := make([]byte, 4096); len(got) < 2*yamuxHeaderLen; {
		n, err := conn.Read(buf)
		if err != nil {
			t.Fatalf("%v behind %q", err, got)
		}
		got = append(got, buf[:n]...)
	}
	if kinds := []byte{got[1], got[yamuxHeaderLen+1]}; kinds[0] != yamuxGoAway && kinds[1] != yamuxGoAway {
		t.Errorf("headers of types %v", kinds)
	}
	begun := time.Now()
	if err := b.Drain(testContext(t)); err != nil {
		t.Error(err)
	}
	if took := time.Since(begun); took > deadline/2 {
		t.Errorf("drained in %v", took)
	}
}

// TestKeyGoesInAHandshake: what came on a link whose key is no peer's any more
// by the time that it is up does not stay in the peer's account.
func TestKeyGoesInAHandshake(t *testing.T) {
	keys := []*session.PrivateKey{newKey(t), newKey(t)}
	peers := []Peer{{Name: "a", Keys: []session.PublicKey{keys[0].Public()}}}
	b := newNode(t, newKey(t), peers, nil)
	p := b.peers["a"]
	near, far := net.Pipe()
	accepted := make(chan *session.Conn)
	go func() {
		c, err := session.Respond(testContext(t), far, session.Config{Key: b.key, Authorize: func(session.PublicKey) bool { return true }})
		if err != nil {
			t.Error(err)
		}
		accepted <- c
	}()
	conn, err := session.Initiate(testContext(t), near, b.key.Public(), session.Config{Key: keys[0]})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Abort(nil)
	l, err := newLink(p, <-accepted, far, false, "pipe")
	if err != nil {
		t.Fatal(err)
	}
	conn.Write([]byte(syn(1) + syn(3)))
	eventually(t, "streams have come", func() bool { return p.account.count() == 2 })
	peers[0].Keys[0] = keys[1].Public()
	b.update(t, Config{Session: session.Config{Key: b.key}, Peers: peers})
	go io.Copy(io.Discard, conn)
	if err := p.register(l); !errors.Is(err, errNotPeer) {
		t.Fatal(err)
	}
	eventually(t, "the account is empty", func() bool {
		p.account.all.mu.Lock()
		defer p.account.all.mu.Unlock()
		return p.account.streams == 0 && p.account.flows == 0 && p.account.held == 0
	})
}
