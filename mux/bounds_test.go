package mux

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sealane/sealane/session"
)

// TestUnreadStreamStopsOnlyItself: neighbours on the same link go on, and what
// is held back is no more than a window.
func TestUnreadStreamStopsOnlyItself(t *testing.T) {
	handler, streams := accepted()
	a, b := pair(t, handler, nil, nil)
	for range 20 {
		x := open(t, a, "b")
		<-streams // and never read
		go io.Copy(x, endless{})
		eventually(t, "its window is full", func() bool { return x.link.guard.credit(x.flow) <= frameHeaderLen })
	}
	// What is counted is memory, which comes in chunks.
	const most = 20 * (initialWindow + 64<<10)
	x := open(t, a, "b")
	y := <-streams
	want := randomBytes(1, 3<<20)
	go func() { x.Write(want); x.CloseWrite() }()
	got, err := io.ReadAll(y)
	if err != nil || !bytes.Equal(got, want) {
		t.Fatal(len(got), err)
	}
	if used, _ := b.Unread(); used < 20*(initialWindow-64<<10) || used > most {
		t.Fatalf("%d bytes unread", used)
	}
}

// TestMemoryIsGranted: windows shrink until the memory is full of them, then
// new streams are refused, and no stream is reset that nobody reads.
func TestMemoryIsGranted(t *testing.T) {
	const limit = 1 << 20
	handler, streams := accepted()
	refused := make(chan Limit, 1000)
	a, b := pair(t, handler, nil, func(c *Config) {
		c.Memory = limit
		c.Hooks.Refused = func(l Limit) { refused <- l }
	})
	good := open(t, a, "b")
	goodFar := <-streams
	var idle []*Stream
	for {
		x, err := a.Open(testContext(t), "b", toEcho)
		var answer *OpenError
		if errors.As(err, &answer) && answer.Status == StatusOverloaded {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		<-streams
		idle = append(idle, x)
		go io.Copy(x, endless{})
	}
	if n := len(idle); n < limit/2/floor || n > limit/floor {
		t.Fatalf("refused after %d streams", n)
	}
	if l := <-refused; l != LimitMemory {
		t.Fatal(l)
	}
	for _, x := range idle {
		eventually(t, "its window is full", func() bool { return x.link.guard.credit(x.flow) <= frameHeaderLen })
	}
	if granted := b.Granted(); granted > limit {
		t.Fatalf("%d bytes granted", granted)
	}
	if used, _ := b.Unread(); used > limit {
		t.Fatalf("%d bytes of memory", used)
	}
	var oe *OpenError
	if _, err := b.Open(testContext(t), "a", toEcho); !errors.As(err, &oe) || oe.Status != StatusOverloaded {
		t.Fatal(err)
	}
	want := randomBytes(1, 2<<20)
	go func() { good.Write(want); good.CloseWrite() }()
	if got, err := io.ReadAll(goodFar); err != nil || !bytes.Equal(got, want) {
		t.Fatal(len(got), err)
	}
	for _, x := range idle {
		if err := x.Err(); err != nil {
			t.Fatal(err)
		}
		x.Reset(ResetApp)
	}
	goodFar.CloseWrite()
	io.Copy(io.Discard, good)
	eventually(t, "nothing is held", func() bool { used, _ := b.Unread(); return used == 0 && b.Granted() == 0 })
	open(t, a, "b").Close()
}

func TestStreamsPerPeer(t *testing.T) {
	handler, _ := accepted()
	a, b := pair(t, handler, func(c *Config) { c.Handler = handler }, func(c *Config) { c.StreamsPerPeer = 10 })
	var held []*Stream
	for range 9 {
		held = append(held, open(t, a, "b"))
	}
	held = append(held, open(t, b, "a")) // both directions count
	var oe *OpenError
	for range 100 {
		if _, err := a.Open(testContext(t), "b", toEcho); !errors.As(err, &oe) || oe.Status != StatusOverloaded {
			t.Fatal(err)
		}
	}
	if _, err := b.Open(testContext(t), "a", toEcho); !errors.As(err, &oe) || oe.Status != StatusOverloaded {
		t.Fatal(err)
	}
	held[0].Close()
	eventually(t, "there is room", func() bool { return b.streams.Load() == 9 })
	open(t, b, "a").Close()
	if len(a.Violations())+len(b.Violations()) > 0 {
		t.Fatal(a.Violations(), b.Violations())
	}
}

// TestReload: what a new configuration does not take away goes on untouched.
func TestReload(t *testing.T) {
	keys := []*session.PrivateKey{newKey(t), newKey(t), newKey(t)}
	hub := newNode(t, newKey(t), nil, func(c *Config) { c.Handler = echo })
	peers := func(names ...string) (list []Peer) {
		for _, name := range names {
			list = append(list, Peer{Name: name, Keys: []session.PublicKey{keys[name[0]-'0'].Public()}})
		}
		return list
	}
	update := func(key *session.PrivateKey, list []Peer) {
		t.Helper()
		if err := hub.Update(Config{Session: session.Config{Key: key}, Peers: list}); err != nil {
			t.Fatal(err)
		}
	}
	update(hub.key, peers("0", "1"))
	spokes := make([]*node, 3)
	streams := make([]*Stream, 3)
	for i, k := range keys {
		spokes[i] = newNode(t, k, []Peer{{Name: "hub", Keys: []session.PublicKey{hub.key.Public()}, Addresses: []string{hub.addr}}}, nil)
		if i < 2 {
			streams[i] = open(t, spokes[i], "hub")
		}
	}
	alive := func(s *Stream) {
		t.Helper()
		if _, err := s.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(s, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	for range 10 {
		update(hub.key, peers("0", "1"))
		alive(streams[0])
		alive(streams[1])
	}
	// A peer comes and one goes.
	update(hub.key, peers("0", "2"))
	if err := readError(t, streams[1]); err == nil {
		t.Fatal("the stream of a removed peer ended cleanly")
	}
	alive(streams[0])
	streams[2] = open(t, spokes[2], "hub")
	alive(streams[2])
	// A key goes: its links do, too. The other links stay.
	next := newKey(t)
	list := peers("0", "2")
	list[0].Keys = []session.PublicKey{next.Public()}
	update(hub.key, list)
	if err := readError(t, streams[0]); err == nil {
		t.Fatal("the stream of a removed key ended cleanly")
	}
	alive(streams[2])
	// The identity changes: running links stay on the old one.
	update(newKey(t), list)
	alive(streams[2])
	// A bad configuration changes nothing.
	if err := hub.Update(Config{Session: session.Config{Key: hub.key}, Peers: append(peers("2"), peers("2")...)}); err == nil {
		t.Fatal("two peers with one name")
	}
	alive(streams[2])
	var names []string
	for _, p := range hub.Status() {
		names = append(names, p.Name)
	}
	if !slices.Equal(names, []string{"0", "2"}) {
		t.Fatal(names)
	}
}

// TestKeyRotation: the peer lists the next key, the node switches, the peer
// drops the old one; nothing fails meanwhile.
func TestKeyRotation(t *testing.T) {
	t.Parallel()
	ka, next := newKey(t), newKey(t)
	kb := newKey(t)
	both := []Peer{{Name: "a", Keys: []session.PublicKey{ka.Public(), next.Public()}}}
	b := newNode(t, kb, both, func(c *Config) { c.Handler = echo })
	toB := []Peer{{Name: "b", Keys: []session.PublicKey{kb.Public()}, Addresses: []string{b.addr}}}
	a := newNode(t, ka, toB, nil)
	old := open(t, a, "b")
	if err := a.Update(Config{Session: session.Config{Key: next}, Peers: toB}); err != nil {
		t.Fatal(err)
	}
	// A new link takes the new key; the old one, and its stream, are not touched.
	for _, l := range a.allLinks() {
		l.retire()
	}
	eventually(t, "the link with the new key is up", func() bool { return len(linkAddresses(a)) == 1 })
	fresh := open(t, a, "b")
	if fresh.link == old.link {
		t.Fatal("on the old link")
	}
	old.Write([]byte("x"))
	old.CloseWrite()
	if got, err := io.ReadAll(old); err != nil || string(got) != "x" {
		t.Fatal(got, err)
	}
	if err := b.Update(Config{Session: session.Config{Key: kb}, Peers: []Peer{{Name: "a", Keys: []session.PublicKey{next.Public()}}}}); err != nil {
		t.Fatal(err)
	}
	fresh.Write([]byte("x"))
	fresh.CloseWrite()
	if got, err := io.ReadAll(fresh); err != nil || string(got) != "x" {
		t.Fatal(got, err)
	}
}

func TestDrain(t *testing.T) {
	handler, streams := accepted()
	a, b := pair(t, handler, func(c *Config) { c.Handler = handler }, nil)
	x := open(t, a, "b")
	y := <-streams
	result := make(chan error, 1)
	go func() { result <- b.Drain(testContext(t)) }()
	eventually(t, "the link drains", func() bool { return len(linkAddresses(a)) == 0 })
	ctx, cancel := context.WithTimeout(testContext(t), 50*time.Millisecond)
	defer cancel()
	if _, err := a.Open(ctx, "b", toEcho); !errors.Is(err, ErrNoLink) {
		t.Fatal(err)
	}
	// The node that drains may still open.
	z := open(t, b, "a")
	z.Write([]byte("out"))
	z.CloseWrite()
	zFar := <-streams
	zFar.CloseWrite()
	if got, err := io.ReadAll(zFar); err != nil || string(got) != "out" {
		t.Fatal(got, err)
	}
	if _, err := io.ReadAll(z); err != nil {
		t.Fatal(err)
	}
	want := randomBytes(1, 1<<20)
	go func() { x.Write(want); x.CloseWrite() }()
	if got, err := io.ReadAll(y); err != nil || !bytes.Equal(got, want) {
		t.Fatal(len(got), err)
	}
	select {
	case err := <-result:
		t.Fatalf("drained with a stream left: %v", err)
	default:
	}
	y.CloseWrite()
	if _, err := io.ReadAll(x); err != nil {
		t.Fatal(err)
	}
	if err := <-result; err != nil {
		t.Fatal(err)
	}
	if _, err := b.Open(testContext(t), "a", toEcho); !errors.Is(err, ErrClosed) {
		t.Fatal(err)
	}
	if err := b.Drain(testContext(t)); !errors.Is(err, ErrClosed) {
		t.Fatal(err)
	}
}

func TestDrainCuts(t *testing.T) {
	handler, streams := accepted()
	a, b := pair(t, handler, nil, nil)
	var ends []*Stream
	for range 5 {
		ends = append(ends, open(t, a, "b"))
		<-streams
	}
	ctx, cancel := context.WithCancel(testContext(t))
	cancel()
	var d *DrainError
	if err := b.Drain(ctx); !errors.As(err, &d) || d.Cut != 5 {
		t.Fatal(err)
	}
	for _, s := range ends {
		var r *ResetError
		if err := readError(t, s); !errors.As(err, &r) || r.Code != ResetShuttingDown {
			t.Fatal(err)
		}
	}
}

// TestChurn opens, half-closes, resets and abandons streams, and nothing is
// left; goleak looks at the goroutines.
func TestChurn(t *testing.T) {
	a, b := pair(t, echo, func(c *Config) { c.Handler = echo }, nil)
	var wg sync.WaitGroup
	for i := range 8 {
		from, to := a, "b"
		if i%2 == 1 {
			from, to = b, "a"
		}
		wg.Go(func() {
			for j := range 60 {
				ctx, cancel := context.WithCancel(testContext(t))
				if j%5 == 4 {
					cancel()
				}
				s, err := from.Open(ctx, to, toEcho)
				cancel()
				if err != nil {
					continue
				}
				switch j % 5 {
				case 0:
					s.CloseWrite()
					io.Copy(io.Discard, s)
				case 1:
					s.Write(make([]byte, 5000))
					s.Reset(ResetApp)
				case 2:
					s.Write(make([]byte, 100_000))
					s.Close()
				case 3:
					s.CloseWrite()
					s.Close()
				}
			}
		})
	}
	wg.Wait()
	for _, n := range []*node{a, b} {
		eventually(t, "nothing is left", func() bool {
			flows := 0
			for _, l := range n.allLinks() {
				l.guard.mu.Lock()
				flows += len(l.guard.flows)
				l.guard.mu.Unlock()
			}
			used, _ := n.Unread()
			return n.streams.Load() == 0 && flows == 0 && used == 0
		})
		for _, l := range n.allLinks() {
			if len(l.guard.opens) != 0 || l.guard.unackedIn != 0 || l.ys.NumStreams() != 0 {
				t.Fatal("a stream is still counted")
			}
		}
		if len(n.Violations()) > 0 {
			t.Fatal(n.Violations())
		}
	}
}

func TestConfigIsChecked(t *testing.T) {
	k, other := newKey(t), newKey(t)
	pub := []session.PublicKey{other.Public()}
	for want, cfg := range map[string]Config{
		"no key":            {},
		"without a name":    {Session: session.Config{Key: k}, Peers: []Peer{{Keys: pub}}},
		"two peers":         {Session: session.Config{Key: k}, Peers: []Peer{{Name: "a", Keys: pub}, {Name: "a", Keys: pub}}},
		"has no key":        {Session: session.Config{Key: k}, Peers: []Peer{{Name: "a"}}},
		"own key":           {Session: session.Config{Key: k}, Peers: []Peer{{Name: "a", Keys: []session.PublicKey{k.Public()}}}},
		"have the same key": {Session: session.Config{Key: k}, Peers: []Peer{{Name: "a", Keys: pub}, {Name: "b", Keys: pub}}},
		"missing port":      {Session: session.Config{Key: k}, Peers: []Peer{{Name: "a", Keys: pub, Addresses: []string{"host"}}}},
	} {
		if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

// TestFewerLinks: a configuration with fewer links retires the others. Their
// streams finish, no new ones come, and then they are closed.
func TestFewerLinks(t *testing.T) {
	t.Parallel()
	a, b := pair(t, echo, func(c *Config) { c.Peers[0].Links = 4 }, nil)
	links := func(n int) {
		t.Helper()
		cfg := a.config()
		cfg.Peers[0].Links = n
		if err := a.Update(cfg); err != nil {
			t.Fatal(err)
		}
	}
	up := func() int { return linkAddresses(a)[b.addr] }
	eventually(t, "four links are up", func() bool { return up() == 4 })
	var held []*Stream
	for range 4 {
		held = append(held, open(t, a, "b")) // one on each
	}
	links(1)
	eventually(t, "one link takes streams", func() bool { return up() == 1 })
	if n := len(a.allLinks()); n != 4 {
		t.Fatalf("%d links of 4 that have streams", n)
	}
	for range 8 {
		if s := open(t, a, "b"); !s.link.usable() {
			t.Fatal("a new stream on a link that is to go")
		} else {
			s.Close()
		}
	}
	for _, s := range held {
		s.Write([]byte("x"))
		s.CloseWrite()
		if got, err := io.ReadAll(s); err != nil || string(got) != "x" {
			t.Fatal(got, err)
		}
	}
	eventually(t, "one link is left at both ends", func() bool { return len(a.allLinks()) == 1 && len(b.allLinks()) == 1 })
	links(3)
	eventually(t, "three links are up", func() bool { return up() == 3 })
}
