package proxy

import (
	"context"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"
)

// hangingDial is a Config.Dial that hangs until it is released or given up.
type hangingDial struct {
	waiting atomic.Int64
	release chan struct{}
}

func newHangingDial() *hangingDial { return &hangingDial{release: make(chan struct{})} }

func (d *hangingDial) dial(ctx context.Context, network, address string) (net.Conn, error) {
	d.waiting.Add(1)
	defer d.waiting.Add(-1)
	select {
	case <-d.release:
		return new(net.Dialer).DialContext(ctx, network, address)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

const longDial = 5 * time.Minute // longer than any test's patience

// hangingSidecars have an exit whose dials hang.
func hangingSidecars(t *testing.T, listeners ...Listener) (web, db *sidecar, d *hangingDial) {
	d = newHangingDial()
	web, db, _ = newSidecars(t,
		Config{Listeners: listeners, Routes: []Route{routeTo(t, "*:*", Target{Peer: "db"})}, Timeouts: Timeouts{Dial: longDial}},
		Config{
			Services: serviceAt(t, newTarget(t, "", echo)), Egress: []EgressRule{egressFor(t, "web", "127.0.0.1:*")},
			Dial: d.dial, Timeouts: Timeouts{Dial: longDial},
		})
	return web, db, d
}

func streamsOf(s *sidecar) (n int) {
	for _, p := range s.mux.Status() {
		n += p.Streams
	}
	return n
}

// 300 apps that connect and reset while the exit's dial hangs leave nothing
// behind at either end, whatever kind of listener they came through.
func TestGoneAppEndsItsDial(t *testing.T) {
	path := socketPath(t)
	web, db, d := hangingSidecars(t,
		listenOn(t, KindForward, "127.0.0.1:0"), listenOn(t, KindSOCKS5, "127.0.0.1:0"), listenOn(t, KindConnect, "127.0.0.1:0"),
		listenOn(t, KindForward, "unix:"+path))
	hello := []string{"GET / HTTP/1.1\r\n\r\n", "\x05\x01\x00\x05\x01\x00\x01\x7f\x00\x00\x01\x00\x50", "CONNECT 127.0.0.1:80 HTTP/1.1\r\n\r\n"}
	const apps = 300
	var conns []net.Conn
	for i := range apps {
		var c net.Conn
		if i%4 == 3 {
			c = dialTo(t, "unix", path)
		} else {
			c = dialTo(t, "tcp", web.node.addr(i%4))
			io.WriteString(c, hello[i%4])
		}
		conns = append(conns, c)
	}
	// One that has only ended its direction has not gone.
	patient := dialTo(t, "tcp", web.node.addr(0))
	io.WriteString(patient, "patient")
	halfClose(t, patient)
	// And one that has ended its direction may go later.
	late := dialTo(t, "tcp", web.node.addr(0))
	halfClose(t, late)
	fireAndForget := dialTo(t, "unix", path)
	io.WriteString(fireAndForget, "to be delivered")
	fireAndForget.Close()
	eventually(t, "every dial hangs", func() bool { return d.waiting.Load() == apps+3 })
	for _, c := range conns {
		if tc, ok := c.(*net.TCPConn); ok {
			tc.SetLinger(0)
		}
		c.Close()
	}
	late.(*net.TCPConn).SetLinger(0)
	late.Close()
	eventually(t, "the dials of the apps that have gone end", func() bool { return d.waiting.Load() == 2 })
	eventually(t, "the streams are gone", func() bool { return streamsOf(web) == 2 && streamsOf(db) == 2 })
	eventually(t, "the connections are gone", func() bool {
		var open int64
		for _, l := range web.Status() {
			open += l.Open
		}
		return open == 2
	})
	web.log.want(t, "via=forward", "result=reset", "reason=the app went away before it was answered")
	db.log.want(t, "via=service", "result=reset", "reason=the peer gave up before its target was connected")
	close(d.release)
	if got, err := io.ReadAll(patient); err != nil || string(got) != "patient" {
		t.Errorf("the app that waited got %q, %v", got, err)
	}
	web.log.want(t, "via=forward", "message=connection finished", "bytes_out=15")
}

// What this node dials itself is given up, too.
func TestGoneAppEndsDirectDial(t *testing.T) {
	d := newHangingDial()
	n := newNode(t, Config{
		Listeners: []Listener{listenOn(t, KindConnect, "127.0.0.1:0")},
		Routes:    []Route{routeTo(t, "127.0.0.1:*", Target{Direct: true})},
		Dial:      d.dial, Timeouts: Timeouts{Dial: longDial},
	}, &fakeLink{})
	c := dialTo(t, "tcp", n.addr(0))
	io.WriteString(c, "CONNECT 127.0.0.1:80 HTTP/1.1\r\n\r\n")
	eventually(t, "the dial hangs", func() bool { return d.waiting.Load() == 1 })
	c.(*net.TCPConn).SetLinger(0)
	c.Close()
	eventually(t, "the dial ends", func() bool { return d.waiting.Load() == 0 })
}

// Nor does an app that has gone wait for a link.
func TestGoneAppWaitsForNoLink(t *testing.T) {
	n := forwardNodes(t, newTarget(t, "", echo), Timeouts{Dial: longDial})
	n.link.set(func(l *fakeLink) { l.down = true })
	c := dialTo(t, "tcp", n.web.addr(0))
	eventually(t, "the connection is served", func() bool { return n.web.Status()[0].Open == 1 })
	c.(*net.TCPConn).SetLinger(0)
	c.Close()
	eventually(t, "the connection is gone", func() bool { return n.web.Status()[0].Open == 0 })
}

// A connection that was watched can still sleep and wake.
func TestWatchedConnectionSleeps(t *testing.T) {
	n := forwardNodes(t, newTarget(t, "", echo), Timeouts{})
	c := dialTo(t, "tcp", n.web.addr(0))
	for range 3 {
		say(t, c, "awake")
		seen := 0 // in a row: one that cannot sleep tries again and again
		eventually(t, "it sleeps", func() bool {
			for _, s := range n.web.running(nil) {
				if seen++; s.up.Load() != asleep {
					seen = 0
				}
			}
			return seen == 30
		})
	}
}
