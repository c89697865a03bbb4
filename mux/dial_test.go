package mux

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sealane/sealane/session"
)

// TestFailedAttemptsHoldNoRoom: however often dialing fails, at whatever point,
// the links that are allowed may come up.
func TestFailedAttemptsHoldNoRoom(t *testing.T) {
	var dials atomic.Int64
	a, _ := pair(t, echo, func(c *Config) {
		c.Links = 2
		c.Dialer = func(ctx context.Context, network, address string) (net.Conn, error) {
			switch n := dials.Add(1); {
			case n > 8:
				return new(net.Dialer).DialContext(ctx, network, address)
			case n%2 == 0:
				x, y := net.Pipe()
				y.Close()
				return x, nil
			}
			return nil, errors.New("not now")
		}
	}, nil)
	open(t, a, "b").Close()
}

// A dying connection of an accepter ends instead of its second write, which is
// record 0.
type dying struct {
	net.Conn
	writes atomic.Int64
}

func (d *dying) Write(p []byte) (int, error) {
	if d.writes.Add(1) > 1 {
		d.Conn.Close()
		return 0, net.ErrClosed
	}
	return d.Conn.Write(p)
}

// A lossy listener accepts a number of dying connections first.
type lossy struct {
	net.Listener
	left atomic.Int64
}

func (l *lossy) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil && l.left.Add(-1) >= 0 {
		c = &dying{Conn: c}
	}
	return c, err
}

// TestDyingHandshakesHoldNoRoom: nor does what fails when a peer has its room.
func TestDyingHandshakesHoldNoRoom(t *testing.T) {
	key := newKey(t)
	b := newNode(t, newKey(t), []Peer{{Name: "a", Keys: []session.PublicKey{key.Public()}}}, func(c *Config) { c.Links = 2 })
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := &lossy{Listener: ln}
	l.left.Store(4)
	go b.Serve(l)
	b.addr = ln.Addr().String()
	for range 4 {
		if links, err := dialLinks(t, 1, key, b); len(links) != 0 || errors.Is(err, session.ErrNoRoom) {
			t.Fatalf("%d links, %v", len(links), err)
		}
	}
	eventually(t, "all of them are over", func() bool { return b.log.count("link refused") == 4 })
	if links, err := dialLinks(t, 2, key, b); len(links) != 2 {
		t.Fatalf("%d links, %v", len(links), err)
	}
}

// A closing connection tells when it is closed.
type closing struct {
	net.Conn
	once   sync.Once
	closed chan struct{}
}

func (c *closing) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

// TestLateConnectionsAreClosed: of two addresses the slower's connection, which
// comes when the other has one already.
func TestLateConnectionsAreClosed(t *testing.T) {
	ka, kb := newKey(t), newKey(t)
	b := newNode(t, kb, []Peer{{Name: "a", Keys: []session.PublicKey{ka.Public()}}}, func(c *Config) { c.Handler = echo })
	x, y := net.Pipe()
	defer y.Close()
	late := &closing{Conn: x, closed: make(chan struct{})}
	var dials atomic.Int64
	a := newNode(t, ka, []Peer{{Name: "b", Keys: []session.PublicKey{kb.Public()}, Addresses: []string{"192.0.2.1:1", "192.0.2.2:1"}}}, func(c *Config) {
		c.Dialer = func(ctx context.Context, network, _ string) (net.Conn, error) {
			if dials.Add(1) == 1 {
				<-ctx.Done()
				return late, nil
			}
			return new(net.Dialer).DialContext(ctx, network, b.addr)
		}
	})
	open(t, a, "b").Close()
	select {
	case <-late.closed:
	case <-time.After(deadline):
		t.Fatal("it is still open")
	}
}

// TestOneHostOfTwoFamilies: a name with an IPv4 and an IPv6 address gets one
// link.
func TestOneHostOfTwoFamilies(t *testing.T) {
	var asked, ups atomic.Int64
	var target string
	a, _ := pair(t, echo, func(c *Config) {
		target = c.Peers[0].Addresses[0]
		c.Peers[0].Addresses = []string{"host.example:1"}
		c.Resolver = func(context.Context, string) ([]netip.Addr, error) {
			asked.Add(1)
			return []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}, nil
		}
		c.Dialer = func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, target)
		}
		c.Hooks.LinkUp = func(string) { ups.Add(1) }
	}, nil)
	open(t, a, "b").Close()
	eventually(t, "it has looked for more addresses", func() bool { return asked.Load() >= 5 })
	if n := ups.Load(); n != 1 {
		t.Fatalf("%d links to one host", n)
	}
}

// TestPastFailuresAreForgiven: an address that has had a link since it failed
// comes before one that has not.
func TestPastFailuresAreForgiven(t *testing.T) {
	ka, kb := newKey(t), newKey(t)
	b := newNode(t, kb, []Peer{{Name: "a", Keys: []session.PublicKey{ka.Public()}}}, func(c *Config) { c.Handler = echo })
	m := newMiddle(t, b.addr)
	// One of each family, so that one link is enough.
	const dead, alive = "[2001:db8::1]:1", "192.0.2.1:1"
	failed := make(chan struct{}) // the dead one has
	var mu sync.Mutex
	var order []string
	a := newNode(t, ka, []Peer{{Name: "b", Keys: []session.PublicKey{kb.Public()}, Addresses: []string{dead, alive}}}, func(c *Config) {
		c.Dialer = func(ctx context.Context, network, address string) (net.Conn, error) {
			mu.Lock()
			first := true
			for _, other := range order {
				first = first && other != address
			}
			order = append(order, address)
			mu.Unlock()
			if address == dead {
				if !first {
					<-ctx.Done() // it does not fail a second time
					return nil, ctx.Err()
				}
				defer close(failed)
				return nil, errors.New("dead")
			}
			if first {
				<-failed
				time.Sleep(50 * time.Millisecond) // after that was noted
				return nil, errors.New("not yet")
			}
			return new(net.Dialer).DialContext(ctx, network, m.addr())
		}
	})
	open(t, a, "b").Close()
	mu.Lock()
	order = []string{dead, alive} // neither is the first time any more
	mu.Unlock()
	m.kill(0)
	eventually(t, "it is dialed again", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(order) > 2
	})
	mu.Lock()
	defer mu.Unlock()
	if order[2] != alive {
		t.Errorf("%s comes first, which never answered", order[2])
	}
}

// TestEachLinkIsRedialedSoon: that links have died before is no reason to wait,
// if they were of use.
func TestEachLinkIsRedialedSoon(t *testing.T) {
	t.Parallel()
	ka, kb := newKey(t), newKey(t)
	b := newNode(t, kb, []Peer{{Name: "a", Keys: []session.PublicKey{ka.Public()}}}, func(c *Config) { c.Handler = echo })
	m := newMiddle(t, b.addr)
	timing := fastTiming()
	timing.backoffMax = time.Hour
	a := newTimedNode(t, timing, ka, []Peer{{Name: "b", Keys: []session.PublicKey{kb.Public()}, Addresses: []string{m.addr()}}}, nil)
	for range 16 { // the last wait would be minutes
		open(t, a, "b").Close()
		var links []*link
		eventually(t, "it has lasted as long as a wait", func() bool {
			links = a.allLinks()
			return len(links) == 1 && links[0].served() > 2*timing.backoffMin
		})
		m.kill(0)
		<-links[0].done
	}
	open(t, a, "b").Close()
}

// TestNewLinksBesideDrainingOnes: with a new key each address gets a new link,
// while the old ones still have streams.
func TestNewLinksBesideDrainingOnes(t *testing.T) {
	t.Parallel()
	ka, next := newKey(t), newKey(t)
	kb := newKey(t)
	peer := Peer{Name: "b", Keys: []session.PublicKey{kb.Public()}}
	for range 2 {
		b := newNode(t, kb, []Peer{{Name: "a", Keys: []session.PublicKey{ka.Public(), next.Public()}}}, func(c *Config) { c.Handler = echo })
		peer.Addresses = append(peer.Addresses, b.addr)
	}
	a := newNode(t, ka, []Peer{peer}, nil)
	eventually(t, "each address has a link", func() bool { return len(linkAddresses(a)) == 2 })
	var held []*Stream
	for range 2 {
		held = append(held, open(t, a, "b"))
	}
	cfg := a.config()
	cfg.Session.Key = next
	a.update(t, cfg)
	eventually(t, "each address has a new link", func() bool { return len(linkAddresses(a)) == 2 })
	// Two that met at one address part again.
	eventually(t, "the old links are there, too", func() bool { return len(a.Status()[0].Links) == 4 })
	for _, s := range held {
		s.Write([]byte("x"))
		s.CloseWrite()
		if got, err := io.ReadAll(s); err != nil || string(got) != "x" {
			t.Error(string(got), err)
		}
	}
}

// TestTrafficOutlivesItsLink: what a peer's counters say never goes back.
func TestTrafficOutlivesItsLink(t *testing.T) {
	a, _, m := pairThrough(t, echo)
	s := open(t, a, "b")
	if _, err := s.Write(randomBytes(1, 100_000)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(s, make([]byte, 100_000)); err != nil {
		t.Fatal(err)
	}
	before := a.Status()[0]
	m.kill(0)
	eventually(t, "the link is gone", func() bool {
		return len(a.Status()[0].Links) == 0 || a.Status()[0].Links[0].Since != before.Links[0].Since
	})
	if after := a.Status()[0]; after.BytesIn < before.BytesIn || after.BytesOut < before.BytesOut {
		t.Errorf("%d bytes in and %d out have become %d and %d", before.BytesIn, before.BytesOut, after.BytesIn, after.BytesOut)
	}
}
