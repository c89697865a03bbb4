package mux

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"github.com/sealane/sealane/session"
)

// TestOpensThatGiveUpOnABusyLink: apps that give up while a link is too busy to
// open their streams leave nothing behind, neither a place nor a stream.
func TestOpensThatGiveUpOnABusyLink(t *testing.T) {
	busy, quiet := make(chan struct{}), make(chan struct{})
	a := rawResponder(t, nil, func(_ int, l *rawLink) {
		l.each(func(h yamuxHeader, body []byte) {
			switch {
			case h.flags == flagSYN:
				l.write(ack(h.id))
			case h.kind == yamuxData && len(body) > 0 && body[0] == frameOpen:
				l.opened(h.id)
				if h.id == 1 {
					l.write(more(1, 64<<20))
					close(busy)
					<-quiet
				}
			}
		})
	})
	s := open(t, a, "raw")
	<-busy
	var wg sync.WaitGroup
	wg.Go(func() { s.Write(make([]byte, 32<<20)) }) // until the link takes no more
	eventually(t, "the link is full", func() bool {
		before := a.Status()[0].Links[0].BytesOut
		time.Sleep(50 * time.Millisecond)
		return before > 0 && a.Status()[0].Links[0].BytesOut == before
	})
	for range 2 { // as many as have a place
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		var opens sync.WaitGroup
		for range maxUnacked + 10 {
			opens.Go(func() {
				if _, err := a.Open(ctx, "raw", toEcho); !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("opened on a busy link: %v", err)
				}
			})
		}
		opens.Wait()
		cancel()
	}
	close(quiet)
	open(t, a, "raw").Close()
	s.Close()
	wg.Wait()
	eventually(t, "no stream is left", func() bool { return a.Status()[0].Streams == 0 })
}

// opened accepts a stream that is acknowledged already.
func (l *rawLink) opened(id uint32) { l.write(dataOf(id, appendOpened(nil, StatusOK, ""))) }

// TestStreamsThatEndBeforeTheirACK: a peer may give up as many as it likes.
func TestStreamsThatEndBeforeTheirACK(t *testing.T) {
	key := newKey(t)
	b := knows(t, key)
	conn := stranger(t, b, key)
	var last uint32
	for range 10 {
		var record strings.Builder
		for range 100 {
			last += 2
			record.WriteString(syn(last-1) + rst(last-1))
		}
		if _, err := conn.Write([]byte(record.String())); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := conn.Write([]byte(ping(flagSYN, 7))); err != nil {
		t.Fatal(err)
	}
	conn.SetReadDeadline(time.Now().Add(deadline))
	buf, got := make([]byte, 4096), ""
	for !strings.Contains(got, ping(flagACK, 7)) {
		n, err := conn.Read(buf)
		if err != nil {
			t.Fatalf("%v; violations %v", err, b.Violations())
		}
		got += string(buf[:n])
	}
	noViolations(t, b)
}

// TestSecondGrantOnABusyLink: each time that there is no room for a grant it is
// made later.
func TestSecondGrantOnABusyLink(t *testing.T) {
	g, w := testGuard()
	play(g, w, steps(in(syn(1)), out(ack(1))))
	for range 3 {
		w.text, w.full = "", true
		f := g.flows[1]
		g.mu.Lock()
		n := f.window.credit
		g.mu.Unlock()
		if _, err := play(g, w, in(data(1, n))); err != nil {
			t.Fatal(err)
		}
		g.freed(f, n)
		eventually(t, "the peer may send again", func() bool {
			g.writeMu.Lock() // so that the grant is queued, too
			defer g.writeMu.Unlock()
			g.mu.Lock()
			defer g.mu.Unlock()
			return f.window.credit > 0
		})
	}
}

// TestSkippedLinesAreCountedOnce: the line behind those that were left out says
// how many, and no other does.
func TestSkippedLinesAreCountedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out syncBuffer
		log := newLimitedLog(zerolog.New(&out))
		for range 15 {
			log.warn("kind").Msg("burst")
		}
		for range 2 {
			time.Sleep(time.Minute)
			log.warn("kind").Msg("later")
		}
		var skipped []int
		for d := json.NewDecoder(strings.NewReader(out.String())); d.More(); {
			var line struct{ Skipped int }
			if err := d.Decode(&line); err != nil {
				t.Fatal(err)
			}
			skipped = append(skipped, line.Skipped)
		}
		if len(skipped) != 12 || skipped[10] != 5 || skipped[11] != 0 {
			t.Fatalf("lines say that %v were left out", skipped)
		}
	})
}

// A narrow connection takes, once it is slow, a kilobyte each 50 ms.
type narrow struct {
	net.Conn
	slow   atomic.Bool
	pieces atomic.Int64

	mu      sync.Mutex
	writeBy time.Time
}

func (c *narrow) SetDeadline(t time.Time) error {
	c.SetWriteDeadline(t)
	return c.SetReadDeadline(t)
}

func (c *narrow) SetWriteDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.writeBy = t
	return nil
}

func (c *narrow) Write(p []byte) (n int, err error) {
	for n < len(p) {
		c.mu.Lock()
		late := !c.writeBy.IsZero() && !time.Now().Before(c.writeBy)
		c.mu.Unlock()
		if late {
			return n, os.ErrDeadlineExceeded
		}
		piece := len(p) - n
		if c.slow.Load() {
			piece = min(piece, 1<<10)
			time.Sleep(50 * time.Millisecond)
			c.pieces.Add(1)
		}
		m, err := c.Conn.Write(p[n : n+piece])
		n += m
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// TestCloseOnASlowLink: a node that ends gives what is queued a moment, and not
// as long as a slow peer takes.
func TestCloseOnASlowLink(t *testing.T) {
	t.Parallel()
	handler, streams := accepted()
	var path atomic.Pointer[narrow]
	a, _ := pair(t, handler, func(c *Config) {
		c.Dialer = func(ctx context.Context, network, address string) (net.Conn, error) {
			c, err := new(net.Dialer).DialContext(ctx, network, address)
			n := &narrow{Conn: c}
			path.Store(n)
			return n, err
		}
	}, nil)
	// Each writer waits while its own bytes are sent, or others' are.
	var writers sync.WaitGroup
	for range 8 {
		s := open(t, a, "b")
		<-streams
		writers.Go(func() {
			for !path.Load().slow.Load() {
				time.Sleep(time.Millisecond)
			}
			s.Write(make([]byte, 60<<10)) // 3 s
		})
	}
	path.Load().slow.Store(true)
	eventually(t, "much is queued", func() bool { return path.Load().pieces.Load() >= 10 })
	begun := time.Now()
	a.Close()
	writers.Wait()
	if took := time.Since(begun); took > 3*a.timing.closeGrace {
		t.Fatalf("closed in %v", took)
	}
}

// TestPeerThatOnlyTakes: a link whose peer sends nothing for a while, but
// acknowledges what it gets, is not dead.
func TestPeerThatOnlyTakes(t *testing.T) {
	t.Parallel()
	taken, nodes := make(chan struct{}), make(chan *node, 1)
	a := rawResponder(t, nil, func(i int, l *rawLink) {
		l.each(func(h yamuxHeader, body []byte) {
			if h.flags == flagSYN {
				l.write(ack(h.id) + more(h.id, 1<<30))
			}
			if h.kind != yamuxData || len(body) == 0 || body[0] != frameOpen || i > 0 {
				return
			}
			l.opened(h.id)
			buf := make([]byte, 16<<10)
			for end := time.Now().Add((deadTicks + 5) * 500 * time.Millisecond); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
				if _, err := l.conn.Read(buf); err != nil {
					t.Errorf("the link ended: %v", err)
					break
				}
			}
			if a := <-nodes; a.log.count("link down") != 0 {
				t.Errorf("the link ended: %s", a.log)
			}
			close(taken)
		})
	})
	nodes <- a
	s := open(t, a, "raw")
	go io.Copy(s, endless{})
	<-taken
	s.Close()
}

// TestReplacedLinksAreCountedOnce: the limit on links holds however often a
// silent one made way.
func TestReplacedLinksAreCountedOnce(t *testing.T) {
	key := newKey(t)
	timing := fastTiming()
	timing.silent = 0
	timing.tick = time.Hour
	b := newTimedNode(t, timing, newKey(t), []Peer{{Name: "a", Keys: []session.PublicKey{key.Public()}}}, func(c *Config) { c.Links = 2 })
	for i := range 12 {
		if _, err := dialLinks(t, 1, key, b); err != nil {
			t.Fatal(err)
		}
		eventually(t, "it is up", func() bool { return b.log.count("link up") == i+1 })
	}
	// The last handshakes may still be ending here when their initiators are done.
	eventually(t, "two are left", func() bool { return len(b.Status()[0].Links) == 2 })
}
