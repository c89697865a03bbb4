package proxy

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/sealane/sealane/mux"
	"github.com/sealane/sealane/session"
)

// A sidecar is a Proxy over a real Mux.
type sidecar struct {
	*node
	mux  *mux.Mux
	cfg  mux.Config
	addr string // for links
}

func newSidecar(t testing.TB, name string, key *session.PrivateKey, peers []mux.Peer, cfg Config) *sidecar {
	t.Helper()
	s := &sidecar{}
	ready := make(chan struct{})
	log := &logBuffer{}
	s.cfg = mux.Config{
		Session: session.Config{Key: key}, Peers: peers, Log: zerolog.New(log),
		Handler: func(in *mux.Inbound) {
			<-ready
			s.Handle(in)
		},
	}
	m, err := mux.New(s.cfg)
	if err != nil {
		t.Fatal(err)
	}
	s.mux = m
	s.node = newNode(t, cfg, muxOpener{m})
	close(ready)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.addr = l.Addr().String()
	served := make(chan struct{})
	go func() {
		defer close(served)
		m.Serve(l)
	}()
	m.Start()
	t.Cleanup(func() {
		m.Close()
		l.Close()
		<-served
	})
	return s
}

// newSidecars makes two, web and db, with web dialing db through a middle
// that kill cuts.
func newSidecars(t testing.TB, web, db Config) (w, d *sidecar, kill func()) {
	t.Helper()
	keys := make([]*session.PrivateKey, 2)
	for i := range keys {
		var err error
		if keys[i], err = session.GenerateKey(); err != nil {
			t.Fatal(err)
		}
	}
	d = newSidecar(t, "db", keys[1], []mux.Peer{{Name: "web", Keys: []session.PublicKey{keys[0].Public()}}}, db)
	var mu sync.Mutex
	var conns []net.Conn
	middle := newTarget(t, "", func(c net.Conn) {
		far, err := net.Dial("tcp", d.addr)
		if err != nil {
			return
		}
		mu.Lock()
		conns = append(conns, c, far)
		mu.Unlock()
		go func() {
			io.Copy(far, c)
			far.Close()
		}()
		io.Copy(c, far)
		far.Close()
	})
	kill = func() {
		mu.Lock()
		defer mu.Unlock()
		for _, c := range conns {
			c.Close()
		}
		conns = nil
	}
	w = newSidecar(t, "web", keys[0], []mux.Peer{{Name: "db", Keys: []session.PublicKey{keys[1].Public()}, Addresses: []string{middle}}}, web)
	return w, d, kill
}

func TestOverMux(t *testing.T) {
	dns := &fakeDNS{}
	dns.set("app.test", "127.0.0.1")
	target := newTarget(t, "", echo)
	web, db, kill := newSidecars(t,
		Config{
			Listeners: []Listener{listenOn(t, KindForward, "127.0.0.1:0"), listenOn(t, KindSOCKS5, "127.0.0.1:0"), listenOn(t, KindForward, "unix:"+socketPath(t))},
			Routes:    []Route{routeTo(t, "*.test:*", Target{Peer: "db"})},
		},
		Config{
			Services: serviceAt(t, target), Resolve: dns.resolve,
			Egress: []EgressRule{egressFor(t, "web", "127.0.0.1:*")},
		})
	forward := web.node.addr(0)

	t.Run("forward", func(t *testing.T) { roundTrip(t, dialTo(t, "tcp", forward), "hello") })
	t.Run("unix", func(t *testing.T) { roundTrip(t, dialTo(t, "unix", web.node.addr(2)), "hello") })
	t.Run("socks5", func(t *testing.T) {
		code, c := exchange(t, web.node.addr(1), socksRequest(1, "app.test", portOf(t, target)))
		if code != 0 {
			t.Fatalf("reply %d", code)
		}
		roundTrip(t, c, "hello")
		if code, _ := exchange(t, web.node.addr(1), socksRequest(1, "app.test", closedPort(t))); code != 5 {
			t.Errorf("reply %d", code)
		}
		if code, _ := exchange(t, web.node.addr(1), socksRequest(1, "gone.test", 80)); code != 4 {
			t.Errorf("reply %d", code)
		}
	})
	t.Run("large", func(t *testing.T) {
		const size = 16 << 20
		c := dialTo(t, "tcp", forward)
		sent, got := sha256.New(), sha256.New()
		go func() {
			io.CopyN(io.MultiWriter(c, sent), rand.NewChaCha8([32]byte{}), size)
			c.(*net.TCPConn).CloseWrite()
		}()
		if n, err := io.Copy(got, c); err != nil || n != size {
			t.Fatalf("%d bytes, %v", n, err)
		}
		if string(got.Sum(nil)) != string(sent.Sum(nil)) {
			t.Error("the bytes differ")
		}
	})
	t.Run("app reset", func(t *testing.T) {
		c := dialTo(t, "tcp", forward)
		say(t, c, "x")
		from := c.LocalAddr().String()
		c.(*net.TCPConn).SetLinger(0)
		c.Close()
		db.log.want(t, "from="+from, "result=reset")
	})
	t.Run("link dies", func(t *testing.T) {
		c := dialTo(t, "tcp", forward)
		say(t, c, "x")
		half := dialTo(t, "unix", web.node.addr(2))
		say(t, half, "x")
		kill()
		wantReset(t, c)
		wantReset(t, half)
		web.log.want(t, "from="+c.LocalAddr().String(), "result=truncated")
		db.log.want(t, "from="+c.LocalAddr().String(), "result=truncated")
		// The next connection waits for the next link.
		roundTrip(t, dialTo(t, "tcp", forward), "and again")
	})
	t.Run("drain", func(t *testing.T) {
		c := dialTo(t, "tcp", forward)
		say(t, c, "x")
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		if cut := web.Drain(ctx); cut != 1 {
			t.Errorf("%d cut", cut)
		}
		wantReset(t, c)
		line := db.log.want(t, "from="+c.LocalAddr().String(), "result=cut")
		if line["reason"] != (&mux.ResetError{Code: mux.ResetShuttingDown, Remote: true}).Error() {
			t.Errorf("%v", line)
		}
	})
}

// A reload tells the mux first that a peer is gone: its streams were cut by it,
// and nothing was lost on the way.
func TestOverMuxPeerRemoved(t *testing.T) {
	t.Parallel()
	web, _, _ := newSidecars(t, Config{Listeners: []Listener{listenOn(t, KindForward, "127.0.0.1:0")}},
		Config{Services: serviceAt(t, newTarget(t, "", echo))})
	c := dialTo(t, "tcp", web.node.addr(0))
	say(t, c, "x")
	cfg := web.cfg
	cfg.Peers = nil
	if err := web.mux.Update(cfg); err != nil {
		t.Fatal(err)
	}
	wantReset(t, c)
	web.log.want(t, "from="+c.LocalAddr().String(), "result=cut")
}

// A target that reads nothing holds up its own stream alone, and its app's
// death is noticed.
func TestOverMuxBackpressure(t *testing.T) {
	stop := make(chan struct{})
	defer close(stop)
	web, db, _ := newSidecars(t,
		Config{Listeners: []Listener{listenOn(t, KindForward, "127.0.0.1:0")}},
		Config{Services: serviceAt(t, newTarget(t, "", func(c net.Conn) {
			b := make([]byte, 1)
			io.ReadFull(c, b)
			if b[0] == 's' {
				<-stop
			}
			echo(c)
		}))})
	stalled := dialTo(t, "tcp", web.node.addr(0))
	io.WriteString(stalled, "s")
	writeUntilStuck(t, stalled)
	healthy := dialTo(t, "tcp", web.node.addr(0))
	io.WriteString(healthy, "h")
	say(t, healthy, "alive")
	from := stalled.LocalAddr().String()
	stalled.(*net.TCPConn).SetLinger(0)
	stalled.Close()
	web.log.want(t, "from="+from, "result=reset")
	// If the RESET has no room in the stream's window, what the peer sees of
	// it is a stream that broke off (SPEC.md section 7).
	line := db.log.want(t, "from="+from, "message=connection finished")
	if r := line["result"]; r != "reset" && r != "truncated" {
		t.Errorf("%v", line)
	}
}

// Many at once, each ended in its own way: every one ends in time and without
// a wrong byte.
func TestOverMuxChurn(t *testing.T) {
	web, db, _ := newSidecars(t,
		Config{Listeners: []Listener{listenOn(t, KindForward, "127.0.0.1:0")}},
		Config{Services: serviceAt(t, newTarget(t, "", echo))})
	var wg sync.WaitGroup
	for i := range 120 {
		wg.Go(func() {
			c, err := net.Dial("tcp", web.node.addr(0))
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(patience))
			size := rand.IntN(200_000)
			sent, got := sha256.New(), sha256.New()
			go func() {
				io.CopyN(io.MultiWriter(c, sent), rand.NewChaCha8([32]byte{byte(i)}), int64(size))
				if i%3 != 0 {
					c.(*net.TCPConn).CloseWrite()
				} else {
					c.(*net.TCPConn).SetLinger(0)
					c.Close()
				}
			}()
			n, err := io.Copy(got, c)
			switch {
			case i%3 == 0:
				if err == nil || !errors.Is(err, net.ErrClosed) && !errors.Is(err, syscall.ECONNRESET) {
					t.Errorf("after its own reset an app read %v", err)
				}
			case err != nil || int(n) != size || string(got.Sum(nil)) != string(sent.Sum(nil)):
				t.Errorf("%d of %d bytes, %v", n, size, err)
			}
		})
	}
	wg.Wait()
	for _, n := range []*sidecar{web, db} {
		eventually(t, "no stream is left", func() bool { return len(n.running(nil)) == 0 })
	}
}
