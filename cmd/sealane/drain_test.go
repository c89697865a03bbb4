package main

import (
	"bytes"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"
)

// throttle relays to target, at rate bytes a second each way and for each
// connection. It returns where.
func throttle(t *testing.T, target string, rate int) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	var relays sync.WaitGroup
	pump := func(to, from net.Conn) {
		defer to.Close() // an end of one side is one of both
		from.(*net.TCPConn).SetReadBuffer(16 << 10)
		buf := make([]byte, 8<<10)
		for {
			n, err := from.Read(buf)
			if _, bad := to.Write(buf[:n]); err != nil || bad != nil {
				return
			}
			select {
			case <-time.After(time.Duration(n) * time.Second / time.Duration(rate)):
			case <-done:
				return
			}
		}
	}
	relays.Go(func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", target)
			if err != nil {
				near.Close()
				continue
			}
			relays.Go(func() { pump(far, near) })
			relays.Go(func() { pump(near, far) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		close(done)
		relays.Wait()
	})
	return l.Addr().String()
}

// answerer answers each connection, once its request has ended.
func answerer(t *testing.T, answer []byte) string {
	t.Helper()
	return serve(t, func(c net.Conn) {
		io.Copy(io.Discard, c)
		c.Write(answer)
	})
}

// slowPair is pair, with an answerer instead of an echo, and 500 kB/s between
// the sidecars.
func slowPair(t *testing.T, answer []byte, farExtra string) (near, far *sidecar) {
	t.Helper()
	nearKey, farKey := newKey(t), newKey(t)
	far = startSidecar(t, folder(t, farKey, `
listen: 127.0.0.1:0
peers: [{name: near, keys: [%q]}]
services: [{name: answer, address: %q, allow: [near]}]
%s`, nearKey.Public(), answerer(t, answer), farExtra))
	address := throttle(t, far.waitFor("started", 1)["listen"].(string), 500_000)
	near = startSidecar(t, folder(t, nearKey, `
peers: [{name: far, keys: [%q], address: %q}]
listeners:
  - forward: 127.0.0.1:0
    to: {peer: far, service: answer}
`, farKey.Public(), address))
	return near, far
}

// ask asks through near.
func ask(t *testing.T, near *sidecar) net.Conn {
	t.Helper()
	c := dial(t, near.forward())
	c.SetDeadline(time.Now().Add(time.Minute))
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	return c
}

// TestDrainDeliversTheAnswer: an exit that is told to stop stays until its peer
// has the answers that have ended here.
func TestDrainDeliversTheAnswer(t *testing.T) {
	t.Parallel()
	answer := make([]byte, 1_500_000)
	rand.NewChaCha8([32]byte{1}).Read(answer)
	near, far := slowPair(t, answer, "")
	c := ask(t, near)
	far.waitFor("connection finished", 1) // the peer has not all of it then
	far.signal(syscall.SIGTERM)
	got, err := io.ReadAll(c)
	if err != nil || !bytes.Equal(got, answer) {
		t.Errorf("%d bytes of %d, %v", len(got), len(answer), err)
	}
	if code := far.wait(); code != exitOK {
		t.Errorf("exit code %d\n%s", code, far.text())
	}
	far.waitFor("stopped; every connection had finished", 1)
}

// TestDrainSaysWhatWasNotDelivered: one that has no time for that says so.
func TestDrainSaysWhatWasNotDelivered(t *testing.T) {
	t.Parallel()
	near, far := slowPair(t, make([]byte, 1_500_000), "timeouts: {drain: 100ms}\n")
	c := ask(t, near)
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	far.signal(syscall.SIGTERM) // the rest takes three seconds
	if n, err := io.Copy(io.Discard, c); err == nil {
		t.Errorf("the app read %d bytes and a clean end", n)
	}
	if code := far.wait(); code != exitError {
		t.Errorf("exit code %d\n%s", code, far.text())
	}
	if cut := far.waitFor("stopped; connections had to be cut", 1)["cut"]; cut != 1.0 {
		t.Errorf("cut %v", cut)
	}
}
