package proxy

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sealane/sealane/mux"
)

func forwardNodes(t testing.TB, target string, timeouts Timeouts) *pairOfNodes {
	return newNodes(t,
		Config{Listeners: []Listener{listenOn(t, KindForward, "127.0.0.1:0")}, Timeouts: timeouts},
		Config{Services: serviceAt(t, target), Timeouts: timeouts})
}

func TestForward(t *testing.T) {
	n := forwardNodes(t, newTarget(t, "", echo), Timeouts{})
	c := dialTo(t, "tcp", n.web.addr(0))
	roundTrip(t, c, "hello")
	if o := n.link.lastOpen(t); o != (mux.Open{To: "app", From: c.LocalAddr().String(), Via: "forward"}) {
		t.Errorf("opened %+v", o)
	}
	line := n.web.log.want(t, "message=connection finished")
	for key, want := range map[string]any{
		"via": "forward", "peer": "db", "target": "app", "from": c.LocalAddr().String(), "bytes_in": 5., "bytes_out": 5., "result": "ok",
	} {
		if line[key] != want {
			t.Errorf("log field %s is %v, want %v", key, line[key], want)
		}
	}
	line = n.db.log.want(t, "message=connection finished")
	for key, want := range map[string]any{"via": "service", "peer": "web", "target": "app", "opened_via": "forward", "result": "ok"} {
		if line[key] != want {
			t.Errorf("log field %s is %v, want %v", key, line[key], want)
		}
	}
	if n.web.tally.get(n.web.tally.bytes, "db out") != 5 || n.web.tally.get(n.web.tally.bytes, "db in") != 5 {
		t.Errorf("counted bytes %v", n.web.tally.bytes)
	}
	if n.web.tally.get(n.web.tally.results, "forward ok") != 1 || n.web.tally.get(n.web.tally.open, "db forward") != 0 {
		t.Errorf("counted %v, open %v", n.web.tally.results, n.web.tally.open)
	}
}

func TestForwardLargeBothWays(t *testing.T) {
	const size = 24 << 20
	n := forwardNodes(t, newTarget(t, "", echo), Timeouts{})
	c := dialTo(t, "tcp", n.web.addr(0))
	sent := sha256.New()
	done := make(chan error, 1)
	go func() {
		_, err := io.CopyN(io.MultiWriter(c, sent), rand.NewChaCha8([32]byte{}), size)
		if err == nil {
			err = c.(*net.TCPConn).CloseWrite()
		}
		done <- err
	}()
	got := sha256.New()
	if _, err := io.Copy(got, c); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Sum(nil), sent.Sum(nil)) {
		t.Error("the bytes differ")
	}
}

func TestByteAtATime(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			path := ""
			if network == "unix" {
				path = socketPath(t)
			}
			n := forwardNodes(t, newTarget(t, path, echo), Timeouts{})
			c := dialTo(t, "tcp", n.web.addr(0))
			for i := range 300 {
				say(t, c, string(rune('a'+i%26)))
			}
			roundTrip(t, c, "end")
		})
	}
}

// One direction's end leaves the other open, in either order.
func TestHalfClose(t *testing.T) {
	targetEnds := make(chan struct{})
	clientEnded := make(chan string, 1)
	n := forwardNodes(t, newTarget(t, "", func(c net.Conn) {
		io.WriteString(c, "greeting")
		c.(*net.TCPConn).CloseWrite()
		<-targetEnds
		rest, _ := io.ReadAll(c)
		clientEnded <- string(rest)
	}), Timeouts{})
	c := dialTo(t, "tcp", n.web.addr(0))
	got, err := io.ReadAll(c)
	if err != nil || string(got) != "greeting" {
		t.Fatalf("got %q, %v", got, err)
	}
	close(targetEnds)
	io.WriteString(c, "and the rest")
	halfClose(t, c)
	select {
	case got := <-clientEnded:
		if got != "and the rest" {
			t.Errorf("after its own end the target got %q", got)
		}
	case <-time.After(patience):
		t.Fatal("the target never saw the client's end")
	}
	n.web.log.want(t, "result=ok")
	n.db.log.want(t, "result=ok")
}

func TestAppResetReachesTarget(t *testing.T) {
	ended := make(chan error, 1)
	n := forwardNodes(t, newTarget(t, "", func(c net.Conn) {
		_, err := io.Copy(io.Discard, c)
		ended <- err
	}), Timeouts{})
	c := dialTo(t, "tcp", n.web.addr(0))
	io.WriteString(c, "half a request")
	eventually(t, "bytes at the exit", func() bool { return n.db.tally.get(n.db.tally.bytes, "web in") > 0 })
	c.(*net.TCPConn).SetLinger(0)
	c.Close()
	if err := <-ended; !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the target saw %v, not a reset", err)
	}
	n.web.log.want(t, "result=reset")
	n.db.log.want(t, "result=reset", "reason=stream reset by the peer: "+mux.ResetApp.String())
}

func TestTargetResetReachesApp(t *testing.T) {
	n := forwardNodes(t, newTarget(t, "", func(c net.Conn) {
		io.WriteString(c, "half an answer")
		io.ReadFull(c, make([]byte, 1))
		c.(*net.TCPConn).SetLinger(0)
	}), Timeouts{})
	c := dialTo(t, "tcp", n.web.addr(0))
	hear(t, c, "half an answer")
	io.WriteString(c, "x")
	wantReset(t, c)
	n.db.log.want(t, "result=reset")
}

// A dead link must never look like an end of file.
func TestDeadLinkResetsBothApps(t *testing.T) {
	ended := make(chan error, 1)
	n := forwardNodes(t, newTarget(t, "", func(c net.Conn) {
		io.WriteString(c, "half an answer")
		_, err := io.Copy(io.Discard, c)
		ended <- err
	}), Timeouts{})
	c := dialTo(t, "tcp", n.web.addr(0))
	hear(t, c, "half an answer")
	n.link.lastPair().kill()
	wantReset(t, c)
	if err := <-ended; !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the target saw %v, not a reset", err)
	}
	n.web.log.want(t, "result=truncated")
	n.db.log.want(t, "result=truncated")
}

// Nor may it after one direction ended: here the answer is still to come.
func TestDeadLinkAfterHalfClose(t *testing.T) {
	stop := make(chan struct{})
	n := forwardNodes(t, newTarget(t, "", func(c net.Conn) {
		io.Copy(io.Discard, c)
		<-stop
	}), Timeouts{})
	defer close(stop)
	c := dialTo(t, "tcp", n.web.addr(0))
	halfClose(t, c)
	eventually(t, "the end at the exit", func() bool {
		for _, s := range n.db.running(nil) {
			return s.ended.Load() == 1
		}
		return false
	})
	n.link.lastPair().kill()
	wantReset(t, c)
}

// While the app reads nothing, the reset must reach it all the same.
func TestResetReachesStalledApp(t *testing.T) {
	n := forwardNodes(t, newTarget(t, "", func(c net.Conn) {
		c.Write(make([]byte, 64<<20))
	}), Timeouts{})
	c := dialTo(t, "tcp", n.web.addr(0))
	c.(*net.TCPConn).SetReadBuffer(4 << 10)
	waitStalled(t, n.web)
	n.link.lastPair().kill()
	n.web.log.want(t, "result=truncated")
	wantReset(t, c)
}

// waitStalled waits until the only stream moves no more bytes to the app.
func waitStalled(t testing.TB, n *node) {
	t.Helper()
	last, since := -1, time.Now()
	eventually(t, "the stream stalls", func() bool {
		if now := n.tally.get(n.tally.bytes, "db in"); now != last {
			last, since = now, time.Now()
		}
		return last > 0 && time.Since(since) > 200*time.Millisecond
	})
}

// A target that stops reading stops the sender, and nobody else.
func TestBackpressure(t *testing.T) {
	stop := make(chan struct{})
	n := forwardNodes(t, newTarget(t, "", func(c net.Conn) {
		b := make([]byte, 1)
		io.ReadFull(c, b)
		if b[0] == 's' {
			<-stop
			return
		}
		echo(c)
	}), Timeouts{})
	defer close(stop)
	stalled := dialTo(t, "tcp", n.web.addr(0))
	io.WriteString(stalled, "s")
	var sent int64
	var mu sync.Mutex
	go func() {
		for {
			k, err := stalled.Write(make([]byte, 64<<10))
			mu.Lock()
			sent += int64(k)
			mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	last, since := int64(-1), time.Now()
	eventually(t, "the sender stops", func() bool {
		mu.Lock()
		defer mu.Unlock()
		if sent != last {
			last, since = sent, time.Now()
		}
		return time.Since(since) > 300*time.Millisecond
	})
	if last > 64<<20 {
		t.Errorf("the sender got rid of %d bytes", last)
	}
	healthy := dialTo(t, "tcp", n.web.addr(0))
	io.WriteString(healthy, "e")
	say(t, healthy, "still alive")
}

func TestIdleTimeout(t *testing.T) {
	n := forwardNodes(t, newTarget(t, "", echo), Timeouts{Idle: 150 * time.Millisecond})
	c := dialTo(t, "tcp", n.web.addr(0))
	say(t, c, "x")
	wantReset(t, c)
	if len(n.web.log.lines(t, "result=timed_out"))+len(n.db.log.lines(t, "result=timed_out")) == 0 {
		n.web.log.want(t, "result=timed_out")
	}
}

func TestHalfCloseTimeout(t *testing.T) {
	stop := make(chan struct{})
	n := forwardNodes(t, newTarget(t, "", func(c net.Conn) {
		io.Copy(io.Discard, c)
		<-stop
	}), Timeouts{HalfClose: 150 * time.Millisecond})
	defer close(stop)
	open := dialTo(t, "tcp", n.web.addr(0))
	io.WriteString(open, "x")
	c := dialTo(t, "tcp", n.web.addr(0))
	halfClose(t, c)
	wantReset(t, c)
	// The one that is not half-closed has no limit.
	open.SetReadDeadline(time.Now().Add(400 * time.Millisecond))
	if _, err := open.Read(make([]byte, 1)); !isTimeout(err) {
		t.Errorf("the open connection ended with %v", err)
	}
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}

// An app that dies while nothing is read from it, because it had ended its
// direction or because its bytes are stuck, is noticed by the sweeper.
func TestDeadAppIsSwept(t *testing.T) {
	t.Parallel()
	stop := make(chan struct{})
	n := forwardNodes(t, newTarget(t, "", func(c net.Conn) { <-stop }), Timeouts{})
	defer close(stop)
	c := dialTo(t, "tcp", n.web.addr(0))
	writeUntilStuck(t, c)
	c.(*net.TCPConn).SetLinger(0)
	c.Close()
	n.web.log.want(t, "result=reset", "reason=the app is gone")
	n.db.log.want(t, "result=reset")
}

// writeUntilStuck writes until the other side has long taken nothing more.
func writeUntilStuck(t testing.TB, c net.Conn) {
	t.Helper()
	for {
		c.SetWriteDeadline(time.Now().Add(500 * time.Millisecond))
		if _, err := c.Write(make([]byte, 64<<10)); isTimeout(err) {
			return
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

func TestFailedDialResets(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	n := forwardNodes(t, l.Addr().String(), Timeouts{})
	wantDialReset(t, n.web.addr(0))
	n.web.log.want(t, "message=connection refused", "result=refused")
	n.db.log.want(t, "message=connection refused", "result=refused")
}

func TestWaitsForLink(t *testing.T) {
	n := forwardNodes(t, newTarget(t, "", echo), Timeouts{Dial: 300 * time.Millisecond})
	n.link.set(func(l *fakeLink) { l.down = true })
	wantDialReset(t, n.web.addr(0))
	n.web.log.want(t, "result=no_link")

	c := dialTo(t, "tcp", n.web.addr(0))
	n.link.set(func(l *fakeLink) { l.down = false })
	roundTrip(t, c, "at last")
}

func TestUnixBothSides(t *testing.T) {
	path := socketPath(t)
	target := newTarget(t, socketPath(t), echo)
	n := newNodes(t,
		Config{Listeners: []Listener{listenOn(t, KindForward, "unix:"+path)}},
		Config{Services: serviceAt(t, target)})
	for _, text := range []string{"", "x", "hello over unix"} {
		c := dialTo(t, "unix", path)
		roundTrip(t, c, text)
	}
	if o := n.link.lastOpen(t); o.From != "" {
		t.Errorf("a unix socket's from is %q", o.From)
	}
	big := bytes.Repeat([]byte("0123456789abcdef"), 1<<18)
	c := dialTo(t, "unix", path)
	go func() {
		c.Write(big)
		c.(*net.UnixConn).CloseWrite()
	}()
	got, err := io.ReadAll(c)
	if err != nil || !bytes.Equal(got, big) {
		t.Fatalf("got %d bytes, %v, want %d", len(got), err, len(big))
	}
}

// A unix socket knows no RST, and still its app sees an error, if it has ever
// sent a byte.
func TestUnixReset(t *testing.T) {
	path := socketPath(t)
	ended := make(chan error, 1)
	target := newTarget(t, socketPath(t), func(c net.Conn) {
		io.ReadFull(c, make([]byte, 7))
		io.WriteString(c, "half")
		_, err := io.Copy(io.Discard, c)
		ended <- err
	})
	n := newNodes(t,
		Config{Listeners: []Listener{listenOn(t, KindForward, "unix:"+path)}},
		Config{Services: serviceAt(t, target)})
	c := dialTo(t, "unix", path)
	io.WriteString(c, "request")
	hear(t, c, "half")
	n.link.lastPair().kill()
	wantReset(t, c)
	if err := <-ended; !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the target saw %v, not a reset", err)
	}
}

func TestUnixResetAfterHalfClose(t *testing.T) {
	path := socketPath(t)
	stop := make(chan struct{})
	target := newTarget(t, "", func(c net.Conn) {
		io.Copy(io.Discard, c)
		io.WriteString(c, "half")
		<-stop
	})
	defer close(stop)
	n := newNodes(t,
		Config{Listeners: []Listener{listenOn(t, KindForward, "unix:"+path)}},
		Config{Services: serviceAt(t, target)})
	c := dialTo(t, "unix", path)
	io.WriteString(c, "request")
	halfClose(t, c)
	hear(t, c, "half")
	n.link.lastPair().kill()
	wantReset(t, c)
}

func TestDialErrorResults(t *testing.T) {
	for want, err := range map[Result]error{
		ResultRefused:     &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED},
		ResultUnreachable: &net.OpError{Op: "dial", Err: syscall.EHOSTUNREACH},
		ResultTimedOut:    &net.OpError{Op: "dial", Err: syscall.ETIMEDOUT},
		ResultOverloaded:  &net.OpError{Op: "dial", Err: syscall.EMFILE},
	} {
		if got := dialResult(err); got != want {
			t.Errorf("%v gives %s, want %s", err, got, want)
		}
	}
}

// A connection that moves bytes in one direction alone, whichever, is not idle.
func TestIdleIsBothDirections(t *testing.T) {
	const limit = 500 * time.Millisecond
	trickle := func(c io.Writer) {
		for range 15 {
			time.Sleep(limit / 5)
			io.WriteString(c, "x")
		}
	}
	for _, way := range []string{"up", "down"} {
		t.Run(way, func(t *testing.T) {
			t.Parallel()
			all := strings.Repeat("x", 15)
			got := make(chan string, 1)
			n := forwardNodes(t, newTarget(t, "", func(c net.Conn) {
				if way == "down" {
					trickle(c)
					return
				}
				b, _ := io.ReadAll(c)
				got <- string(b)
			}), Timeouts{Idle: limit})
			c := dialTo(t, "tcp", n.web.addr(0))
			if way == "down" {
				b, err := io.ReadAll(c)
				if err != nil {
					t.Error(err)
				}
				got <- string(b)
			} else {
				trickle(c)
				halfClose(t, c)
			}
			if text := <-got; text != all {
				t.Errorf("got %q", text)
			}
		})
	}
}
