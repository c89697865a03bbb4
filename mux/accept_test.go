package mux

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sealane/sealane/session"
	"github.com/sealane/sealane/session/container"
)

// TestFloodOfStrangers: silent, slow, endless and garbage connections of a
// neighbour, many more than there are places for, keep no legitimate link from
// coming up.
func TestFloodOfStrangers(t *testing.T) {
	ka, kb := newKey(t), newKey(t)
	b := newNode(t, kb, []Peer{{Name: "a", Keys: []session.PublicKey{ka.Public()}}}, func(c *Config) { c.Handler = echo })
	ctx, stop := testContext(t), make(chan struct{})
	var wg sync.WaitGroup
	flood := func(talk func(c net.Conn)) {
		wg.Go(func() {
			var conns []net.Conn
			defer func() {
				for _, c := range conns {
					c.Close()
				}
			}()
			for {
				select {
				case <-stop:
					return
				default:
				}
				c, err := dialFrom(ctx, net.IPv4(127, 0, 0, 2), b.addr)
				if err != nil {
					continue
				}
				talk(c)
				if conns = append(conns, c); len(conns) > 500 {
					conns[0].Close()
					conns = conns[1:]
				}
			}
		})
	}
	share := string(container.AppendShare(nil, randomBytes(1, container.ShareLen)))
	flood(func(net.Conn) {})
	flood(func(c net.Conn) { c.Write([]byte(share[:5])) })
	flood(func(c net.Conn) { c.Write([]byte("GET / HTTP/1.1\r\n\r\n")) })
	flood(func(c net.Conn) { c.Write([]byte(share)) })
	for range 5 {
		a := newNode(t, ka, []Peer{{Name: "b", Keys: []session.PublicKey{kb.Public()}, Addresses: []string{b.addr}}}, nil)
		open(t, a, "b").Close()
		a.Close()
	}
	close(stop)
	wg.Wait()
	eventually(t, "all places are free", func() bool {
		b.acceptor.mu.Lock()
		defer b.acceptor.mu.Unlock()
		a := b.acceptor
		return a.slots.Len()+a.places.Len()+a.lingering.Len()+len(a.nets)+len(a.hosts) == 0
	})
	if n := b.log.count("\n"); n > 100 {
		t.Errorf("strangers caused %d lines", n)
	}
	if n := b.Violations()[container.RuleForm]; n == 0 {
		t.Errorf("garbage was not counted: %v", b.Violations())
	}
	if n := b.log.count("GET"); n > 0 {
		t.Error("a stranger's bytes are in the log")
	}
}

func TestSlowFirstMessage(t *testing.T) {
	timing := fastTiming()
	timing.reading = 50 * time.Millisecond
	b := newTimedNode(t, timing, newKey(t), nil, nil)
	c, err := net.Dial("tcp", b.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.Write([]byte(`{"sdmp"`))
	c.SetReadDeadline(time.Now().Add(deadline))
	if got, err := io.ReadAll(c); len(got) > 0 || err != nil && !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("%q, %v", got, err)
	}
}

func TestSources(t *testing.T) {
	for text, want := range map[string][2]string{
		"10.0.0.1:5":               {"10.0.0.0/24", "10.0.0.1/32"},
		"[::ffff:10.0.0.1]:5":      {"10.0.0.0/24", "10.0.0.1/32"},
		"[2001:db8:0:1:2:3:4:5]:5": {"2001:db8::/48", "2001:db8:0:1::/64"},
		"[fe80::1%lo]:5":           {"fe80::/48", "fe80::/64"},
	} {
		s := sourceOf(net.TCPAddrFromAddrPort(netip.MustParseAddrPort(text)))
		if got := [2]string{s.net.String(), s.host.String()}; got != want {
			t.Errorf("%s: %s, want %s", text, got, want)
		}
	}
	if s := sourceOf(&net.UnixAddr{}); s.net.IsValid() || s.host.IsValid() {
		t.Error("a Unix socket has a source")
	}
}

// flakyListener fails to accept for a while, as when descriptors run out.
type flakyListener struct {
	net.Listener
	failures int
}

func (l *flakyListener) Accept() (net.Conn, error) {
	if l.failures > 0 {
		l.failures--
		return nil, &net.OpError{Op: "accept", Err: syscall.EMFILE}
	}
	return l.Listener.Accept()
}

func TestAcceptSurvivesErrors(t *testing.T) {
	ka, kb := newKey(t), newKey(t)
	b := newNode(t, kb, []Peer{{Name: "a", Keys: []session.PublicKey{ka.Public()}}}, func(c *Config) { c.Handler = echo })
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- b.Serve(&flakyListener{ln, 5}) }()
	a := newNode(t, ka, []Peer{{Name: "b", Keys: []session.PublicKey{kb.Public()}, Addresses: []string{ln.Addr().String()}}}, nil)
	open(t, a, "b").Close()
	if !strings.Contains(b.log.String(), "cannot accept links") {
		t.Error("not logged")
	}
	b.Close()
	if err := <-served; err != nil {
		t.Fatal(err)
	}
}

func TestLinkLimit(t *testing.T) {
	ka, kb := newKey(t), newKey(t)
	refused := make(chan Limit, 1000)
	b := newNode(t, kb, []Peer{{Name: "a", Keys: []session.PublicKey{ka.Public()}}}, func(c *Config) {
		c.Links = 2
		c.Handler = echo
		c.Hooks.Refused = func(l Limit) { refused <- l }
	})
	a := newNode(t, ka, []Peer{{Name: "b", Keys: []session.PublicKey{kb.Public()}, Addresses: []string{b.addr}, Links: 3}}, nil)
	if l := <-refused; l != LimitLinks {
		t.Fatal(l)
	}
	open(t, a, "b").Close()
	eventually(t, "two links are up", func() bool { return len(b.Status()[0].Links) == 2 })
}
