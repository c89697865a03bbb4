package mux

import (
	"bytes"
	"context"
	"flag"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"github.com/sealane/sealane/session"
)

func TestMain(m *testing.M) {
	flag.Set("test.parallel", "8") // those that say so wait more than they work
	goleak.VerifyTestMain(m)
}

// fastTiming is defaultTiming for a test that waits for timers.
func fastTiming() timing {
	t := defaultTiming
	t.tick = 500 * time.Millisecond
	t.backoffMin, t.backoffMax = 10*time.Millisecond, 100*time.Millisecond
	t.notFoundMin, t.notFoundMax = 200*time.Millisecond, time.Second
	t.stagger = 30 * time.Millisecond
	t.lookAgain = 100 * time.Millisecond
	return t
}

// deadTicks is how many ticks nothing may move on a test's links with a ping out.
const deadTicks = 9

// deadline bounds what a test waits for. It is never waited out by a test
// that passes.
const deadline = 20 * time.Second

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	t.Cleanup(cancel)
	return ctx
}

// eventually waits until a condition holds.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	end := time.Now().Add(deadline)
	for !cond() {
		if time.Now().After(end) {
			t.Fatalf("waited in vain until %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func newKey(t testing.TB) *session.PrivateKey {
	t.Helper()
	k, err := session.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// A node is a Mux with a listener.
type node struct {
	*Mux
	key  *session.PrivateKey
	addr string
	ln   net.Listener
	log  *syncBuffer
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func (b *syncBuffer) count(s string) int { return bytes.Count([]byte(b.String()), []byte(s)) }

// newNode makes a node that knows peers and is started. edit may change its
// Config first.
func newNode(t testing.TB, key *session.PrivateKey, peers []Peer, edit func(*Config)) *node {
	t.Helper()
	return newTimedNode(t, fastTiming(), key, peers, edit)
}

func newTimedNode(t testing.TB, timing timing, key *session.PrivateKey, peers []Peer, edit func(*Config)) *node {
	t.Helper()
	n := &node{key: key, log: new(syncBuffer)}
	cfg := Config{LinkTimeout: deadTicks * timing.tick, Session: session.Config{Key: key}, Peers: peers, Log: zerolog.New(n.log).Level(zerolog.DebugLevel)}
	if edit != nil {
		edit(&cfg)
	}
	m, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	m.timing = timing
	n.Mux = m
	n.listen(t, "127.0.0.1:0")
	m.Start()
	t.Cleanup(func() {
		m.Close()
		if t.Failed() {
			t.Logf("log of a node:\n%s", n.log)
		}
	})
	return n
}

func (n *node) listen(t testing.TB, addr string) {
	t.Helper()
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	n.ln, n.addr = ln, ln.Addr().String()
	go n.Serve(ln)
}

// echo answers a stream with what it is sent.
func echo(in *Inbound) {
	s, err := in.Accept()
	if err != nil {
		return
	}
	if _, err := io.Copy(s, s); err != nil {
		s.Reset(ResetApp)
		return
	}
	s.CloseWrite()
}

// pair makes two nodes: a dials b, which hands streams to handler.
func pair(t testing.TB, handler func(*Inbound), editA, editB func(*Config)) (a, b *node) {
	t.Helper()
	ka, kb := newKey(t), newKey(t)
	b = newNode(t, kb, []Peer{{Name: "a", Keys: []session.PublicKey{ka.Public()}}}, func(c *Config) {
		c.Handler = handler
		if editB != nil {
			editB(c)
		}
	})
	a = newNode(t, ka, []Peer{{Name: "b", Keys: []session.PublicKey{kb.Public()}, Addresses: []string{b.addr}}}, editA)
	return a, b
}

var toEcho = Open{To: "echo", From: "127.0.0.1:1", Via: "forward"}

func open(t testing.TB, n *node, peer string) *Stream {
	t.Helper()
	s, err := n.Open(testContext(t), peer, toEcho)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func randomBytes(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 7))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

func TestEcho(t *testing.T) {
	a, b := pair(t, echo, nil, nil)
	for _, size := range []int{0, 1, 100, maxChunk, maxChunk + 1, 3 << 20} {
		s := open(t, a, "b")
		want := randomBytes(uint64(size), size)
		go func() {
			s.Write(want)
			s.CloseWrite()
		}()
		got, err := io.ReadAll(s)
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("%d bytes: got %d, %v", size, len(got), err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "no streams are left", func() bool { return a.streams.Load() == 0 && b.streams.Load() == 0 })
	if used, _ := a.Unread(); used != 0 {
		t.Fatalf("%d bytes unread on no streams", used)
	}
	for _, n := range []*node{a, b} {
		if len(n.Violations()) > 0 {
			t.Fatalf("violations: %v", n.Violations())
		}
	}
}
