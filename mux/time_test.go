package mux

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sealane/sealane/session"
)

// A pipeListener accepts the other ends of what its dial makes.
type pipeListener struct {
	conns chan net.Conn
	done  chan struct{}
}

func newPipeListener() *pipeListener {
	return &pipeListener{make(chan net.Conn), make(chan struct{})}
}

func (l *pipeListener) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	a, b := net.Pipe()
	select {
	case l.conns <- b:
		return a, nil
	case <-l.done:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	select {
	case <-l.done:
	default:
		close(l.done)
	}
	return nil
}

func (l *pipeListener) Addr() net.Addr { return streamAddr("pipe") }

// pipePair is two nodes in one process, without sockets and with all timers at
// their defaults.
func pipePair(t testing.TB, handler func(*Inbound), edit func(*Config)) (a, b *Mux) {
	t.Helper()
	ka, kb := newKey(t), newKey(t)
	l := newPipeListener()
	cb := Config{Session: session.Config{Key: kb}, Peers: []Peer{{Name: "a", Keys: []session.PublicKey{ka.Public()}}}, Handler: handler}
	ca := Config{
		Session: session.Config{Key: ka},
		Peers:   []Peer{{Name: "b", Keys: []session.PublicKey{kb.Public()}, Addresses: []string{"192.0.2.1:1"}}},
		Dialer:  l.dial,
	}
	if edit != nil {
		edit(&ca)
		edit(&cb)
	}
	var err error
	if b, err = New(cb); err != nil {
		t.Fatal(err)
	}
	b.Start()
	go b.Serve(l)
	if a, err = New(ca); err != nil {
		t.Fatal(err)
	}
	a.Start()
	return a, b
}

// inBubble runs a test under synctest, in a process of its own: yamux keeps
// timers in a pool, and one from outside a bubble is fatal inside.
func inBubble(t *testing.T, f func(*testing.T)) {
	const child = "SEALANE_TEST_BUBBLE"
	if os.Getenv(child) != "" {
		synctest.Test(t, f)
		return
	}
	t.Parallel()
	// Many hours of ticks take their time under the race detector.
	ctx, cancel := context.WithTimeout(context.Background(), 6*deadline)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), child+"=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// TestSilenceEndsNothing: half-closed and idle streams live as long as their
// apps want, whatever timers there are below.
func TestSilenceEndsNothing(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		up, down := randomBytes(1, 8<<20), randomBytes(2, 1<<20)
		got := make(chan []byte, 1)
		a, b := pipePair(t, func(in *Inbound) {
			s, err := in.Accept()
			if err != nil {
				return
			}
			all, err := io.ReadAll(s)
			if err != nil {
				t.Error(err)
			}
			got <- all
			time.Sleep(12 * time.Hour)
			s.Write(down)
			s.CloseWrite()
		}, nil)
		s, err := a.Open(context.Background(), "b", toEcho)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		s.Write(up)
		s.CloseWrite()
		back, err := io.ReadAll(s)
		if err != nil || !bytes.Equal(back, down) || !bytes.Equal(<-got, up) {
			t.Fatal(len(back), err)
		}
		if age := time.Since(a.Status()[0].Links[0].Since); age < 13*time.Hour {
			t.Fatalf("the link is %v old", age)
		}
		a.Close()
		b.Close()
	})
}

// A mutedConn stops delivering what it reads.
type mutedConn struct {
	net.Conn
	muted  *atomic.Bool
	closed chan struct{}
	once   sync.Once
}

func (c *mutedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if c.muted.Load() {
		<-c.closed
		return 0, net.ErrClosed
	}
	return n, err
}

func (c *mutedConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

// TestDeadPeerIsNoticed: within seconds, with all timers at their defaults,
// although what is sent is still taken.
func TestDeadPeerIsNoticed(t *testing.T) {
	t.Run("with nothing to say", func(t *testing.T) { testDeadPeer(t, false, 20*time.Second) })
	t.Run("with ever more to say", func(t *testing.T) { testDeadPeer(t, true, 40*time.Second) })
}

func testDeadPeer(t *testing.T, talk bool, limit time.Duration) {
	inBubble(t, func(t *testing.T) {
		handler, streams := accepted()
		var muted atomic.Bool
		a, b := pipePair(t, handler, func(c *Config) {
			if dial := c.Dialer; dial != nil {
				c.Dialer = func(ctx context.Context, network, address string) (net.Conn, error) {
					conn, err := dial(ctx, network, address)
					if err != nil {
						return nil, err
					}
					return &mutedConn{Conn: conn, muted: &muted, closed: make(chan struct{})}, nil
				}
			}
		})
		s, err := a.Open(context.Background(), "b", toEcho)
		if err != nil {
			t.Fatal(err)
		}
		far := <-streams
		time.Sleep(time.Minute)
		muted.Store(true)
		begun := time.Now()
		var talking sync.WaitGroup
		defer talking.Wait()
		if talk {
			talking.Go(func() {
				for err := error(nil); err == nil; time.Sleep(time.Second) {
					_, err = s.Write([]byte("x"))
				}
			})
		}
		if _, err := io.Copy(io.Discard, s); !errors.Is(err, errDead) {
			t.Fatal(err)
		}
		if took := time.Since(begun); took > limit {
			t.Fatalf("took %v", took)
		}
		if _, err := io.Copy(io.Discard, far); !errors.Is(err, ErrTruncated) {
			t.Fatal(err)
		}
		muted.Store(false)
		a.Close()
		b.Close()
	})
}

// A beat collects when pings were answered on a link, whoever sent them.
type beat struct {
	mu    sync.Mutex
	times []time.Time
}

func (b *beat) listen(c *Config) {
	c.Hooks.RTT = func(string, time.Duration) {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.times = append(b.times, time.Now())
	}
}

// pauses are the times between pings since the first ones, at link-up.
func (b *beat) pauses() (list []time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := 2; i < len(b.times); i++ {
		list = append(list, b.times[i].Sub(b.times[i-1]))
	}
	return list
}

// TestPings: how often a link is asked for a sign of life, with all timers at
// their defaults. No two pauses are alike.
func TestPings(t *testing.T) {
	for name, c := range map[string]struct {
		stream, data bool
		least, most  time.Duration // a minute's pings
	}{
		"no stream":      {false, false, 3, 6},
		"a silent one":   {true, false, 20, 40},
		"data both ways": {true, true, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T) { testPings(t, c.stream, c.data, float64(c.least), float64(c.most)) })
		})
	}
}

func testPings(t *testing.T, stream, data bool, least, most float64) {
	const minutes = 30
	var b beat
	m, n := pipePair(t, echo, b.listen)
	defer n.Close()
	defer m.Close()
	s, err := m.Open(context.Background(), "b", toEcho)
	if err != nil {
		t.Fatal(err)
	}
	if !stream {
		s.Close()
	}
	for range minutes * 60 * 2 {
		if data {
			if _, err := s.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Read(make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(500 * time.Millisecond)
	}
	pauses := b.pauses()
	if rate := float64(len(pauses)) / minutes; rate < least || rate > most {
		t.Errorf("%.1f pings a minute", rate)
	}
	alike := make(map[time.Duration]int)
	for _, p := range pauses {
		if stream && p > 3100*time.Millisecond {
			t.Errorf("nothing was heard for %v", p)
		}
		if alike[p.Round(time.Millisecond)]++; alike[p.Round(time.Millisecond)] > 10 {
			t.Fatalf("%v again and again", p)
		}
	}
}

// TestOpenFindsADeadLink: a stream that is opened on a link that died while it
// had none does not wait for the next ping.
func TestOpenFindsADeadLink(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var muted atomic.Bool
		down := make(chan struct{}, 10)
		a, b := pipePair(t, echo, func(c *Config) {
			if dial := c.Dialer; dial != nil {
				c.Hooks.LinkDown = func(string) { down <- struct{}{} }
				c.Dialer = func(ctx context.Context, network, address string) (net.Conn, error) {
					conn, err := dial(ctx, network, address)
					if err != nil {
						return nil, err
					}
					return &mutedConn{Conn: conn, muted: &muted, closed: make(chan struct{})}, nil
				}
			}
		})
		defer b.Close()
		defer a.Close()
		s, err := a.Open(context.Background(), "b", toEcho)
		if err != nil {
			t.Fatal(err)
		}
		s.Close()
		for i := range 20 {
			time.Sleep(time.Minute + time.Duration(i)*700*time.Millisecond)
			muted.Store(true)
			time.Sleep(2500 * time.Millisecond) // a silence
			begun := time.Now()
			ctx, cancel := context.WithTimeout(context.Background(), 25*time.Second)
			go a.Open(ctx, "b", toEcho)
			<-down
			if took := time.Since(begun); took > 15*time.Second+2*maxTick*time.Second {
				t.Fatalf("took %v", took)
			}
			muted.Store(false)
			<-ctx.Done()
			cancel()
		}
	})
}

// TestOpenAsksAtOnce: whoever opens a stream after a silence asks for a sign of
// life with it.
func TestOpenAsksAtOnce(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var b beat
		m, n := pipePair(t, echo, b.listen)
		defer n.Close()
		defer m.Close()
		last := func() time.Time {
			b.mu.Lock()
			defer b.mu.Unlock()
			return b.times[len(b.times)-1]
		}
		asked := 0
		for i := range 30 {
			time.Sleep(time.Minute + time.Duration(i)*700*time.Millisecond)
			if time.Since(last()) < 2*maxTick*time.Second {
				continue // that was no silence: a whole tick of it has to be over
			}
			begun := time.Now()
			s, err := m.Open(context.Background(), "b", toEcho)
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(10 * time.Millisecond)
			if last().Before(begun) {
				t.Fatal("nobody asked")
			}
			s.Close()
			asked++
		}
		if asked < 10 {
			t.Fatalf("only %d silences", asked)
		}
	})
}

// A pausedConn neither takes nor delivers anything for a while.
type pausedConn struct {
	net.Conn
	until  *atomic.Int64 // nanoseconds since 1970
	closed chan struct{}
	once   sync.Once
}

func (c *pausedConn) pause() {
	select {
	case <-time.After(time.Until(time.Unix(0, c.until.Load()))):
	case <-c.closed:
	}
}

func (c *pausedConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

func (c *pausedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.pause()
	return n, err
}

func (c *pausedConn) Write(p []byte) (int, error) {
	c.pause()
	return c.Conn.Write(p)
}

// TestOutage: a link survives an outage that is shorter than LinkTimeout, and
// none that is much longer.
func TestOutage(t *testing.T) {
	for name, c := range map[string]struct {
		limit, outage time.Duration
		survives      bool
	}{
		"9 s":               {0, 9 * time.Second, true},
		"20 s":              {0, 20 * time.Second, false},
		"20 s, within 30 s": {30 * time.Second, 20 * time.Second, true},
		"9 s, of 3 s":       {3 * time.Second, 9 * time.Second, false},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T) { testOutage(t, c.limit, c.outage, c.survives) })
		})
	}
}

func testOutage(t *testing.T, limit, outage time.Duration, survives bool) {
	var until atomic.Int64
	a, b := pipePair(t, echo, func(c *Config) {
		c.LinkTimeout = limit
		if dial := c.Dialer; dial != nil {
			c.Dialer = func(ctx context.Context, network, address string) (net.Conn, error) {
				conn, err := dial(ctx, network, address)
				return &pausedConn{Conn: conn, until: &until, closed: make(chan struct{})}, err
			}
		}
	})
	defer b.Close()
	defer a.Close()
	s, err := a.Open(context.Background(), "b", toEcho)
	if err != nil {
		t.Fatal(err)
	}
	for range 20 {
		if _, err := s.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(700 * time.Millisecond)
	}
	until.Store(time.Now().Add(outage).UnixNano())
	s.Write([]byte("x"))
	if _, err = s.Read(make([]byte, 1)); survives && err != nil || !survives && !errors.Is(err, errDead) {
		t.Error(err)
	}
}
