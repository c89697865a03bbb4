package main

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/sealane/sealane/session"
)

// A load keeps connections through a forward busy with random data, and
// compares what comes back from the echo server behind it.
type load struct {
	t       *testing.T
	address string
	stop    chan struct{}
	busy    sync.WaitGroup
	rounds  atomic.Int64
	opened  atomic.Int64
}

func newLoad(t *testing.T, address string) *load {
	return &load{t: t, address: address, stop: make(chan struct{})}
}

// roundTripData sends a block and reads it back.
func roundTripData(c net.Conn, random *rand.ChaCha8) error {
	sent := make([]byte, 1+random.Uint64()%8192)
	random.Read(sent)
	wrote := make(chan error, 1)
	go func() {
		_, err := c.Write(sent)
		wrote <- err
	}()
	got := make([]byte, len(sent))
	if _, err := io.ReadFull(c, got); err != nil {
		return err
	}
	if sha256.Sum256(got) != sha256.Sum256(sent) {
		return fmt.Errorf("%d bytes came back changed, equal to the first difference at %d", len(got), differ(got, sent))
	}
	return <-wrote
}

func differ(a, b []byte) int {
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return len(a)
}

// running says whether the load goes on.
func (l *load) running() bool {
	select {
	case <-l.stop:
		return false
	default:
		return true
	}
}

// lasting keeps n connections open and busy.
func (l *load) lasting(n int) {
	for i := range n {
		l.busy.Go(func() {
			random := rand.NewChaCha8([32]byte{byte(i), byte(i >> 8)})
			l.connection(random, func() bool { return l.running() })
		})
	}
}

// short opens n connections at a time, each for one exchange.
func (l *load) short(n int) {
	for i := range n {
		l.busy.Go(func() {
			random := rand.NewChaCha8([32]byte{byte(i), 'n'})
			for l.running() {
				once := true
				l.connection(random, func() bool { defer func() { once = false }(); return once })
			}
		})
	}
}

// connection opens a connection, uses it while more says so, and ends it
// properly.
func (l *load) connection(random *rand.ChaCha8, more func() bool) {
	c, err := net.Dial("tcp", l.address)
	if err != nil {
		l.t.Errorf("connect: %v", err)
		return
	}
	defer c.Close()
	l.opened.Add(1)
	for more() {
		if err := roundTripData(c, random); err != nil {
			l.t.Errorf("connection from %v: %v", c.LocalAddr(), err)
			return
		}
		l.rounds.Add(1)
	}
	c.(*net.TCPConn).CloseWrite()
	if rest, err := io.ReadAll(c); err != nil || len(rest) > 0 {
		l.t.Errorf("connection from %v: %d bytes and %v at its end", c.LocalAddr(), len(rest), err)
	}
}

// progress waits until some more exchanges are done.
func (l *load) progress(more int64) {
	l.t.Helper()
	want := l.rounds.Load() + more
	eventually(l.t, func() string {
		if got := l.rounds.Load(); got < want && !l.t.Failed() {
			return fmt.Sprintf("%d exchanges, want %d", got, want)
		}
		return ""
	})
}

func (l *load) end() {
	close(l.stop)
	l.busy.Wait()
	l.t.Logf("%d exchanges over %d connections", l.rounds.Load(), l.opened.Load())
}

// edit replaces text in the sidecar's config.
func (s *sidecar) edit(old, new string) {
	s.t.Helper()
	path := filepath.Join(s.dir, "sealane.yaml")
	text, err := os.ReadFile(path)
	if err != nil {
		s.t.Fatal(err)
	}
	if !bytes.Contains(text, []byte(old)) {
		s.t.Fatalf("no %q in the config:\n%s", old, text)
	}
	write(s.t, path, strings.Replace(string(text), old, new, 1), 0o644)
}

// reload sends the signal and waits until the config was reloaded.
func (s *sidecar) reload() {
	s.t.Helper()
	before := len(s.lines("config reloaded"))
	s.signal(syscall.SIGHUP)
	s.waitFor("config reloaded", before+1)
}

// TestReloadUnderLoad: twenty reloads under 200 busy connections hurt none.
func TestReloadUnderLoad(t *testing.T) {
	t.Parallel()
	near, far := pair(t, "")
	l := newLoad(t, near.forward())
	l.lasting(200)
	l.short(4)
	l.progress(1000)
	near.edit("admin:", "timeouts: {idle: 0s}\nadmin:")
	for i := range 10 {
		near.edit("idle: ", fmt.Sprintf("half_close: %dm, idle: ", i+1))
		if i%2 == 1 {
			near.edit("listeners:\n", "listeners:\n  - socks5: 127.0.0.1:0\n")
			near.edit("  - socks5: 127.0.0.1:0\n", "")
		}
		near.reload()
		near.edit(fmt.Sprintf("half_close: %dm, ", i+1), "")
		l.progress(200)
		far.edit("allow: [near]", "allow: [ near ]")
		far.reload()
		far.edit("allow: [ near ]", "allow: [near]")
		l.progress(200)
	}
	l.end()
}

// TestLinkTimeout: a link to a node that stands still ends after timeouts.link,
// which a reload has changed.
func TestLinkTimeout(t *testing.T) {
	t.Parallel()
	near, far := pair(t, "")
	if err := talk(dial(t, near.forward()), "a connection\n"); err != nil {
		t.Fatal(err)
	}
	near.edit("admin:", "timeouts: {link: 3s}\nadmin:")
	near.reload()
	begun := time.Now()
	far.signal(syscall.SIGSTOP)
	defer far.signal(syscall.SIGCONT)
	if reason := near.waitFor("link down", 1)["reason"]; reason != "no sign of life from the peer" {
		t.Errorf("the link ended: %v", reason)
	}
	if took := time.Since(begun); took > 14*time.Second { // the default is 15 s
		t.Errorf("after %v", took)
	}
}

// TestRotation changes the key of the node that is dialed, and then of the one
// that dials, under load and without an error: the peer lists the next key,
// the node switches, and once no link is left on the old key the peer drops it.
func TestRotation(t *testing.T) {
	t.Parallel()
	near, far := pair(t, "")
	l := newLoad(t, near.forward())
	l.short(8)
	l.progress(100)
	for _, step := range []struct{ node, peer *sidecar }{{far, near}, {near, far}} {
		old := fmt.Sprint(step.node.waitFor("started", 1)["public_key"])
		next := newKey(t)
		rotate(t, step.node, step.peer, old, next, l)
	}
	l.end()
}

// rotate is the procedure of the documentation.
func rotate(t *testing.T, node, peer *sidecar, old string, next *session.PrivateKey, l *load) {
	t.Helper()
	name := next.Public().String()
	peer.edit(`"`+old+`"`, `"`+old+`", "`+name+`"`)
	peer.reload()
	l.progress(100)
	downs := len(peer.lines("link down"))
	write(t, filepath.Join(node.dir, "node.key"), string(next.PEM()), 0o600)
	node.reload()
	eventually(t, func() string {
		if len(peer.lines("link down")) == downs {
			return "the link with the old key is still there"
		}
		return ""
	})
	l.progress(100)
	peer.edit(`"`+old+`", `, "")
	peer.reload()
	l.progress(100)
}
