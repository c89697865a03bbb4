package mux

import (
	"bytes"
	"context"
	"crypto/sha256"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sealane/sealane/session"
)

// TestFaults kills links at random moments under load. Every transfer is whole
// or ends with an error, at both ends.
func TestFaults(t *testing.T) {
	const kills = 40
	var whole, failed, wrong, believed atomic.Int64
	check := func(s *Stream) {
		h := sha256.New()
		var head [32]byte
		_, err := io.ReadFull(s, head[:])
		if err == nil {
			_, err = s.WriteTo(h)
		}
		switch {
		case err != nil:
			failed.Add(1)
			s.Close()
		case !bytes.Equal(h.Sum(nil), head[:]):
			wrong.Add(1)
		default:
			whole.Add(1)
			s.CloseWrite()
		}
	}
	a, b, m := pairThrough(t, func(in *Inbound) {
		if s, err := in.Accept(); err == nil {
			check(s)
		}
	})
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for i := range 16 {
		payload := randomBytes(uint64(i), 10_000*(i+1)*(i+1))
		head := sha256.Sum256(payload)
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				s, err := a.Open(testContext(t), "b", toEcho)
				if err != nil {
					continue // its link died twice
				}
				s.Write(head[:])
				s.ReadFrom(bytes.NewReader(payload))
				if s.CloseWrite() == nil {
					// A clean end here means that the far end has it whole.
					if _, err := io.Copy(io.Discard, s); err == nil {
						believed.Add(1)
					}
				}
				s.Close()
			}
		})
	}
	r := rand.New(rand.NewPCG(1, 2))
	for i := range kills {
		time.Sleep(time.Duration(r.IntN(40)) * time.Millisecond)
		m.kill(i%2 - 1)
	}
	close(stop)
	wg.Wait()
	eventually(t, "no stream is left", func() bool { return a.streams.Load() == 0 && b.streams.Load() == 0 })
	t.Logf("%d kills: %d transfers whole, %d failed, %d wrong, %d ended cleanly for their sender",
		kills, whole.Load(), failed.Load(), wrong.Load(), believed.Load())
	if wrong.Load() > 0 || believed.Load() > whole.Load() || whole.Load() == 0 || failed.Load() == 0 {
		t.Fatal("see above")
	}
	if len(a.Violations())+len(b.Violations()) > 0 {
		t.Fatal(a.Violations(), b.Violations())
	}
}

// A stalling conn takes nothing any more from a moment on.
type stalling struct {
	net.Conn
	stalled *atomic.Bool
	closed  chan struct{}
	once    sync.Once
}

func (c *stalling) Write(p []byte) (int, error) {
	if c.stalled.Load() {
		<-c.closed
		return 0, net.ErrClosed
	}
	return c.Conn.Write(p)
}

func (c *stalling) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

// TestWhatYamuxGivesUp ends the link: it would accept no more streams, or ask
// for no more signs of life.
func TestWhatYamuxGivesUp(t *testing.T) {
	for what, tick := range map[string]time.Duration{"accepting streams": time.Hour, "ping": 20 * time.Millisecond} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			var stalled atomic.Bool
			timing := fastTiming()
			timing.tick, timing.yamux = tick, 500*time.Millisecond
			a := timedRawResponder(t, timing, func(c *Config) {
				c.LinkTimeout = time.Hour
				c.Dialer = func(ctx context.Context, network, address string) (net.Conn, error) {
					conn, err := new(net.Dialer).DialContext(ctx, network, address)
					return &stalling{Conn: conn, stalled: &stalled, closed: make(chan struct{})}, err
				}
			}, func(i int, l *rawLink) {
				if i > 0 {
					return
				}
				l.serve(1, func(l *rawLink) {
					stalled.Store(true)
					if what != "ping" {
						l.write(syn(2))
					}
				})
			})
			eventually(t, "the link is down", func() bool { return a.log.count("link down") > 0 })
			if a.log.count(`"reason":"yamux gave up `+what) != 1 {
				t.Error("not for that reason")
			}
			stalled.Store(false)
		})
	}
}

// TestDeathBesideAnEndThatIsLate: a link that takes nothing any more is found
// dead in time although it is full and a stream's end was not answered for long.
// What is due for that stream has to wait behind all that is queued; the look for
// signs of life has not.
func TestDeathBesideAnEndThatIsLate(t *testing.T) {
	t.Parallel()
	var stalled atomic.Bool
	ka, kb := newKey(t), newKey(t)
	handler, streams := accepted()
	b := newNode(t, kb, []Peer{{Name: "a", Keys: []session.PublicKey{ka.Public()}}}, func(c *Config) {
		c.Handler, c.LinkTimeout = handler, time.Hour
	})
	timing := fastTiming()
	timing.tick = 100 * time.Millisecond
	a := newTimedNode(t, timing, ka, []Peer{{Name: "b", Keys: []session.PublicKey{kb.Public()}, Addresses: []string{b.addr}}}, func(c *Config) {
		c.LinkTimeout = 2 * time.Second
		c.Dialer = func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := new(net.Dialer).DialContext(ctx, network, address)
			return &stalling{Conn: conn, stalled: &stalled, closed: make(chan struct{})}, err
		}
	})
	late := open(t, a, "b")
	far := <-streams // whose app reads nothing
	late.Write(make([]byte, 100_000))
	late.CloseWrite()
	far.CloseWrite()
	if _, err := io.Copy(io.Discard, late); err != nil {
		t.Fatal(err)
	}
	var full []*Stream
	for range 32 {
		full = append(full, open(t, a, "b"))
	}
	l := a.allLinks()[0]
	eventually(t, "its end is out", func() bool {
		l.guard.mu.Lock()
		defer l.guard.mu.Unlock()
		return late.flow.localFin
	})
	stalled.Store(true)
	var writers sync.WaitGroup
	for _, s := range full {
		writers.Go(func() { s.Write(make([]byte, initialWindow)) })
	}
	l.guard.mu.Lock()
	late.flow.closing = time.Now().Add(-2 * closeTimeout)
	l.guard.mu.Unlock()
	select {
	case <-l.dead:
	case <-time.After(8 * time.Second):
		t.Error("the link's death goes unnoticed")
		l.fail(errDead)
	}
	writers.Wait()
	stalled.Store(false)
}
