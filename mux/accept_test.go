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

// TestFloodOfStrangers: silent, slow, endless and garbage connections, many
// more than there are places for, keep no legitimate link from coming up.
func TestFloodOfStrangers(t *testing.T) {
	ka, kb := newKey(t), newKey(t)
	b := newNode(t, kb, []Peer{{Name: "a", Keys: []session.PublicKey{ka.Public()}}}, func(c *Config) { c.Handler = echo })
	stop := make(chan struct{})
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
				c, err := net.Dial("tcp", b.addr)
				if err != nil {
					return
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
		return b.acceptor.reading.Len() == 0 && b.acceptor.handshakes == 0 && len(b.acceptor.sources) == 0
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

func TestReadingSlots(t *testing.T) {
	var refused []Limit
	m, err := New(Config{Session: session.Config{Key: newKey(t)}, Handshakes: 8, Hooks: Hooks{Refused: func(l Limit) { refused = append(refused, l) }}})
	if err != nil {
		t.Fatal(err)
	}
	m.timing.reading = time.Hour
	a := m.acceptor
	source := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}) }
	gone := make(map[*arrival]error)
	enter := func(src netip.Addr) *arrival {
		var v *arrival
		v = a.enter(src, func(err error) { gone[v] = err })
		return v
	}
	// One source gets so many; then its own oldest goes.
	greedy := enter(source(0))
	for range slotsPerSource - 1 {
		enter(source(0))
	}
	if len(gone) != 0 {
		t.Fatal("evicted too early")
	}
	enter(source(0))
	if len(gone) != 1 || gone[greedy] != errEvicted {
		t.Fatal("the source's oldest is still there")
	}
	// With all slots taken, the oldest of all goes.
	all := []*arrival{}
	for i := range readingSlots - slotsPerSource {
		all = append(all, enter(source(1+i/100)))
	}
	if len(gone) != 1 {
		t.Fatal("evicted while there was room")
	}
	last := enter(source(500))
	if len(gone) != 2 || a.reading.Len() != readingSlots {
		t.Fatalf("%d evicted, %d slots taken", len(gone), a.reading.Len())
	}
	// Handshakes are bounded for each source, and in all.
	if err := a.admit(greedy); err != errEvicted {
		t.Fatal(err)
	}
	admitted := 0
	for _, v := range all[:300] {
		if err := a.admit(v); err == nil {
			admitted++
		} else if err != errHandshakes {
			t.Fatal(err)
		}
	}
	if admitted != 6 { // 2 for each of 3 sources
		t.Fatalf("admitted %d", admitted)
	}
	for _, v := range all[300:] {
		a.admit(v)
	}
	if a.handshakes != 8 {
		t.Fatalf("%d handshakes", a.handshakes)
	}
	if err := a.admit(last); err != errHandshakes {
		t.Fatal(err)
	}
	for _, v := range all {
		a.leave(v)
	}
	a.leave(last)
	if err := a.admit(enter(source(500))); err != nil {
		t.Fatal(err)
	}
	for e := a.reading.Front(); e != nil; e = a.reading.Front() {
		a.leave(e.Value.(*arrival))
	}
	if len(refused) == 0 || a.handshakes != 1 || len(a.sources) != 1 {
		t.Fatalf("%d refusals, %d handshakes, %d sources left", len(refused), a.handshakes, len(a.sources))
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
	for text, want := range map[string]string{
		"10.0.0.1:5":               "10.0.0.1",
		"[::ffff:10.0.0.1]:5":      "10.0.0.1",
		"[2001:db8:0:1:2:3:4:5]:5": "2001:db8:0:1::",
		"[fe80::1%lo]:5":           "fe80::",
	} {
		a := net.TCPAddrFromAddrPort(netip.MustParseAddrPort(text))
		if got := sourceOf(a).String(); got != want {
			t.Errorf("%s: %s, want %s", text, got, want)
		}
	}
	if sourceOf(&net.UnixAddr{}).IsValid() {
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
