package proxy

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sealane/sealane/mux"
)

// A closingConn tells when it is closed, and fails each write if it is to.
type closingConn struct {
	net.Conn
	once   sync.Once
	closed chan struct{}
	fail   error
}

func newClosingConn(c net.Conn, fail error) *closingConn {
	return &closingConn{Conn: c, closed: make(chan struct{}), fail: fail}
}

func (c *closingConn) Write(b []byte) (int, error) {
	if c.fail != nil {
		return 0, c.fail
	}
	return c.Conn.Write(b)
}

func (c *closingConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

func (c *closingConn) wantClosed(t testing.TB) {
	t.Helper()
	select {
	case <-c.closed:
	case <-time.After(patience):
		t.Error("the target was not closed")
	}
}

// Of two addresses that both answer, one is used, and the other is closed.
func TestLosingDialIsClosed(t *testing.T) {
	target := newTarget(t, "", echo)
	first, second := make(chan struct{}), make(chan struct{})
	loser := make(chan *closingConn, 1)
	d := dialer{dial: func(ctx context.Context, _, address string) (net.Conn, error) {
		c, err := net.Dial("tcp", target)
		if err != nil {
			return nil, err
		}
		if strings.HasPrefix(address, "192.0.2.1:") {
			close(first)
			<-second // answers once the other has won, whatever ctx says
			lost := newClosingConn(c, nil)
			loser <- lost
			return lost, nil
		}
		<-first
		return c, nil
	}}
	c, f := d.dialAny(t.Context(), []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")}, 80)
	if f != nil {
		t.Fatal(f)
	}
	defer c.Close()
	close(second)
	(<-loser).wantClosed(t)
	say(t, c, "the winner is not")
}

// A target that cannot be told where its stream comes from is closed.
func TestFailedHeaderClosesTarget(t *testing.T) {
	lost := errors.New("lost")
	target := newTarget(t, "", echo)
	services := serviceAt(t, target)
	services[0].ProxyProtocol = true
	conns := make(chan *closingConn, 1)
	n := newNodes(t, Config{Listeners: []Listener{listenOn(t, KindForward, "127.0.0.1:0")}}, Config{
		Services: services,
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			c, err := new(net.Dialer).DialContext(ctx, network, address)
			if err != nil {
				return nil, err
			}
			bad := newClosingConn(c, lost)
			conns <- bad
			return bad, nil
		},
	})
	wantDialReset(t, n.web.addr(0))
	(<-conns).wantClosed(t)
}

// What this node dials is reset by its close from the start, not from when a
// stream has it: that is how a killed process looks to its target.
func TestDialedTargetIsResetByItsClose(t *testing.T) {
	ended := make(chan error, 1)
	target := newTarget(t, "", func(c net.Conn) {
		_, err := io.Copy(io.Discard, c)
		ended <- err
	})
	c, f := newDialer(&Config{}).dialAny(t.Context(), []netip.Addr{netip.MustParseAddr("127.0.0.1")}, portOf(t, target))
	if f != nil {
		t.Fatal(f)
	}
	c.Close()
	if err := <-ended; !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the target saw %v, not a reset", err)
	}
}

// The header has one family for both addresses, whichever each is of.
func TestProxyHeaderFamilies(t *testing.T) {
	for _, src := range []string{"192.0.2.1:1000", "[2001:db8::1]:1000", "[::ffff:192.0.2.1]:1000"} {
		for _, dst := range []string{"10.0.0.1:5432", "[2001:db8::2]:5432", ""} {
			s, d := addrPort(src), addrPort(dst)
			b := appendProxyHeader(nil, unmapped(s), d, "web")
			addrs := map[byte]int{proxyTCP4: proxyTCP4Len, proxyTCP6: proxyTCP6Len}[b[13]]
			if want := proxyHeaderLen + addrs + 3 + len("web"); addrs == 0 || len(b) != want {
				t.Errorf("%s to %q: family %#x in %d bytes, want %d: % x", src, dst, b[13], len(b), want, b)
				continue
			}
			if v4 := unmapped(s).Addr().Is4() && (dst == "" || d.Addr().Is4()); v4 != (b[13] == proxyTCP4) {
				t.Errorf("%s to %q: family %#x", src, dst, b[13])
			}
			if !bytes.HasSuffix(b, []byte("\xe0\x00\x03web")) {
				t.Errorf("%s to %q: % x", src, dst, b)
			}
			if back, err := readProxyHeader(bytes.NewReader(b)); err != nil || back != unmapped(s) {
				t.Errorf("%s to %q reads back as %v, %v", src, dst, back, err)
			}
			// The destination, behind the source, and the ports.
			half := (addrs - 4) / 2
			to, _ := netip.AddrFromSlice(b[proxyHeaderLen+half : proxyHeaderLen+2*half])
			if dst != "" && to.Unmap() != d.Addr() || dst == "" && !to.IsUnspecified() {
				t.Errorf("%s to %q has the destination %v", src, dst, to)
			}
		}
	}
}

// An app that dies after it has ended its direction is noticed, although no
// limit is set and its target says nothing; so is a target at the other end.
func TestDeadAfterHalfClose(t *testing.T) {
	for _, who := range []string{"app", "target"} {
		t.Run(who, func(t *testing.T) {
			ended, die := make(chan struct{}), make(chan struct{})
			n := forwardNodes(t, newTarget(t, "", func(c net.Conn) {
				if who == "app" {
					io.Copy(io.Discard, c) // until the app's end
					close(ended)
				} else {
					c.(*net.TCPConn).CloseWrite()
				}
				<-die
				if who == "target" {
					c.(*net.TCPConn).SetLinger(0)
				}
			}), Timeouts{})
			c := dialTo(t, "tcp", n.web.addr(0))
			// The other, half-closed in the same way, lives on.
			bystander := forwardNodes(t, newTarget(t, "", func(c net.Conn) {
				io.Copy(io.Discard, c)
				<-die
				time.Sleep(100 * time.Millisecond) // ten sweeps
				io.WriteString(c, "the answer")
			}), Timeouts{})
			b := dialTo(t, "tcp", bystander.web.addr(0))
			halfClose(t, b)
			if who == "app" {
				halfClose(t, c)
				<-ended
				c.(*net.TCPConn).SetLinger(0)
				c.Close()
				n.web.log.want(t, "result=reset", "reason=the app is gone")
				n.db.log.want(t, "result=reset")
				close(die)
			} else {
				if _, err := io.ReadAll(c); err != nil {
					t.Fatal(err)
				}
				close(die)
				n.db.log.want(t, "result=reset")
				n.web.log.want(t, "result=reset")
			}
			if got, err := io.ReadAll(b); err != nil || string(got) != "the answer" {
				t.Errorf("the bystander got %q, %v", got, err)
			}
		})
	}
}

// The half-close clock starts with the half-close: a connection that was idle
// for longer is not cut by it.
func TestHalfCloseClockStartsAtTheEnd(t *testing.T) {
	const limit = 600 * time.Millisecond
	n := forwardNodes(t, newTarget(t, "", func(c net.Conn) {
		io.Copy(io.Discard, c)
		time.Sleep(limit / 4)
		io.WriteString(c, "the answer")
	}), Timeouts{HalfClose: limit})
	c := dialTo(t, "tcp", n.web.addr(0))
	io.WriteString(c, "request")
	time.Sleep(2 * limit) // idle, which has no limit
	halfClose(t, c)
	if got, err := io.ReadAll(c); err != nil || string(got) != "the answer" {
		t.Errorf("got %q, %v", got, err)
	}
}

// A target that was connected for nobody, because its peer had given up, is reset.
func TestAbandonedTargetIsClosed(t *testing.T) {
	target := newTarget(t, "", echo)
	dialing, connect := make(chan struct{}), make(chan struct{})
	conns := make(chan *closingConn, 1)
	n := newNodes(t, Config{Listeners: []Listener{listenOn(t, KindForward, "127.0.0.1:0")}, Timeouts: Timeouts{Dial: 50 * time.Millisecond}}, Config{
		Services: serviceAt(t, target),
		Dial: func(_ context.Context, network, address string) (net.Conn, error) {
			close(dialing)
			<-connect // although the context has long ended
			c, err := net.Dial(network, address)
			if err != nil {
				return nil, err
			}
			late := newClosingConn(c, nil)
			conns <- late
			return late, nil
		},
	})
	c := dialTo(t, "tcp", n.web.addr(0))
	<-dialing
	wantReset(t, c)
	close(connect)
	(<-conns).wantClosed(t)
	n.db.log.want(t, "result=reset", "via=service")
}

// Where the answer cannot be written, what was opened for it is reset.
func TestUnwritableAnswerResetsTarget(t *testing.T) {
	for _, kind := range []Kind{KindSOCKS5, KindConnect} {
		t.Run(string(kind), func(t *testing.T) {
			ended := make(chan error, 1)
			target := newTarget(t, "", func(c net.Conn) {
				_, err := io.Copy(io.Discard, c)
				ended <- err
			})
			n := newNodes(t, Config{Routes: []Route{routeTo(t, "*:*", Target{Peer: "db"})}},
				Config{Egress: []EgressRule{egressFor(t, "web", "127.0.0.1:*")}})
			app, ours := net.Pipe()
			defer app.Close()
			request := "CONNECT " + target + " HTTP/1.1\r\n\r\n"
			answers := 0
			if kind == KindSOCKS5 {
				request = "\x05\x01\x00" + string(socksRequest(1, "127.0.0.1", portOf(t, target)))
				answers = 1 // the choice of a method
			}
			go io.WriteString(app, request)
			cfg := listenOn(t, kind, "127.0.0.1:0")
			l := &listener{p: n.web.Proxy, cfg: &cfg, counts: new(counts)}
			if !n.web.enter() {
				t.Fatal("closed")
			}
			l.now.Add(1)
			n.web.serve(string(kind), l.release, func(rec *record) { l.handle(&cfg, rec, &mutedConn{Conn: ours, left: answers}) })
			if err := <-ended; !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the target saw %v, not a reset", err)
			}
			n.web.log.want(t, "result=reset")
			n.db.log.want(t, "result=reset")
		})
	}
}

// A mutedConn takes some writes and fails all others.
type mutedConn struct {
	net.Conn
	left int
}

func (c *mutedConn) Write(b []byte) (int, error) {
	if c.left == 0 {
		return 0, syscall.EPIPE
	}
	c.left--
	return len(b), nil
}

// A quitter is an OPEN that its peer gives up between the dial and the answer.
type quitter struct{ *fakeInbound }

func (quitter) Accept() (stream, error) { return nil, errors.New("given up") }

// A target whose stream is given up after it was connected sees a reset: nobody
// has said that what it got is all.
func TestTargetOfAGivenUpStreamIsReset(t *testing.T) {
	ended := make(chan error, 1)
	n := newNode(t, Config{Services: serviceAt(t, newTarget(t, "", func(c net.Conn) {
		_, err := io.Copy(io.Discard, c)
		ended <- err
	}))}, &fakeLink{})
	n.serveInbound(quitter{&fakeInbound{peer: "web", open: mux.Open{To: "app"}, ctx: t.Context()}})
	if err := <-ended; !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the target saw %v, not a reset", err)
	}
	n.log.want(t, "result=reset", "via=service")
}

// The end of a drain, and Close, end dials for peers, which may hang for as
// long as the config says.
func TestShutdownEndsDials(t *testing.T) {
	for name, end := range map[string]func(*node){
		"close": func(n *node) { n.Close() },
		"drain": func(n *node) {
			ctx, cancel := context.WithCancel(context.Background())
			cancel()
			n.Drain(ctx)
		},
	} {
		t.Run(name, func(t *testing.T) {
			dialing, tooLate := make(chan struct{}), make(chan struct{})
			n := newNodes(t, Config{Listeners: []Listener{listenOn(t, KindForward, "127.0.0.1:0")}}, Config{
				Services: serviceAt(t, "127.0.0.1:1"), Timeouts: Timeouts{Dial: time.Hour},
				Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
					close(dialing)
					select {
					case <-ctx.Done():
						return nil, ctx.Err()
					case <-tooLate:
						return nil, errors.New("hung")
					}
				},
			})
			dialTo(t, "tcp", n.web.addr(0))
			<-dialing
			ended := make(chan struct{})
			go func() {
				end(n.db)
				close(ended)
			}()
			select {
			case <-ended:
			case <-time.After(patience):
				t.Error("it waits for the dial")
			}
			close(tooLate)
			n.db.log.want(t, "result=cut", "via=service")
		})
	}
}

// A target of a direct route that has ended its direction and then dies is
// noticed, although its app says nothing. One that only has ended is let be.
func TestDirectTargetDiesAfterItsEnd(t *testing.T) {
	die, answers := make(chan struct{}), make(chan string, 2)
	target := newTarget(t, "", func(c net.Conn) {
		b := make([]byte, 1)
		io.ReadFull(c, b)
		c.(*net.TCPConn).CloseWrite()
		if <-die; b[0] == 'd' {
			c.(*net.TCPConn).SetLinger(0)
			return
		}
		rest, _ := io.ReadAll(c)
		answers <- string(rest)
	})
	n := newNode(t, Config{
		Listeners: []Listener{listenOn(t, KindSOCKS5, "127.0.0.1:0")},
		Routes:    []Route{routeTo(t, "127.0.0.1:*", Target{Direct: true})},
	}, &fakeLink{})
	open := func(first string) net.Conn {
		code, c := exchange(t, n.addr(0), socksRequest(1, "127.0.0.1", portOf(t, target)))
		if code != 0 {
			t.Fatalf("reply %d", code)
		}
		io.WriteString(c, first)
		wantEOF(t, c)
		return c
	}
	dead, bystander := open("d"), open("b")
	close(die)
	n.log.want(t, "result=reset", "reason=the target is gone")
	eventually(t, "the app hears of it", func() bool {
		_, err := dead.Write([]byte("x"))
		return err != nil
	})
	if _, err := io.WriteString(bystander, "still here"); err != nil {
		t.Fatal(err)
	}
	halfClose(t, bystander)
	if got := <-answers; got != "still here" {
		t.Errorf("the bystander's target got %q", got)
	}
}

// A target that is connected although its dial was to end has come too late for
// a proxy that closes: it is reset, and Close does not wait for it.
func TestTargetThatComesAfterClose(t *testing.T) {
	ended := make(chan error, 1)
	target := newTarget(t, "", func(c net.Conn) {
		_, err := io.Copy(io.Discard, c)
		ended <- err
	})
	dialing := make(chan struct{})
	n := newNodes(t, Config{Listeners: []Listener{listenOn(t, KindForward, "127.0.0.1:0")}}, Config{
		Services: serviceAt(t, target), Timeouts: Timeouts{Dial: time.Hour},
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			close(dialing)
			<-ctx.Done()
			return net.Dial(network, address)
		},
	})
	c := dialTo(t, "tcp", n.web.addr(0))
	<-dialing
	closed := make(chan struct{})
	go func() {
		n.db.Close()
		close(closed)
	}()
	select {
	case <-closed:
	case <-time.After(patience):
		c.Close() // which lets it end
		t.Fatal("Close waits for the stream")
	}
	if err := <-ended; !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the target saw %v, not a reset", err)
	}
	wantReset(t, c)
	n.db.log.want(t, "result=cut", "reason=cut: shutting down")
}
