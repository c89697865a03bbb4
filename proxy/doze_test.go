package proxy

import (
	"errors"
	"io"
	"net"
	"runtime"
	"syscall"
	"testing"
)

// waitAsleep waits until both directions of all of a node's connections sleep.
func waitAsleep(t testing.TB, nodes ...*node) {
	t.Helper()
	for _, n := range nodes {
		eventually(t, "everything sleeps", func() bool {
			all := n.running(nil)
			for _, s := range all {
				if s.up.Load() == awake || s.down.Load() == awake {
					return false
				}
			}
			return len(all) > 0
		})
	}
}

// Whatever comes to a sleeping connection, from either side, has its effect.
func TestDoze(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("connections sleep on Linux only")
	}
	target := make(chan net.Conn, 1)
	gone := make(chan struct{})
	defer close(gone)
	addr := newTarget(t, "", func(c net.Conn) {
		target <- c
		<-gone
	})
	web, db, kill := newSidecars(t, Config{Listeners: []Listener{listenOn(t, KindForward, "127.0.0.1:0")}}, Config{Services: serviceAt(t, addr)})
	open := func(t *testing.T) (app, to net.Conn) {
		app = dialTo(t, "tcp", web.node.addr(0))
		to = <-target
		t.Cleanup(func() { to.Close() })
		waitAsleep(t, web.node, db.node)
		return app, to
	}
	talk := func(t *testing.T, from, to net.Conn, text string) {
		t.Helper()
		io.WriteString(from, text)
		hear(t, to, text)
	}
	t.Run("bytes", func(t *testing.T) {
		app, to := open(t)
		for range 3 {
			talk(t, app, to, "up")
			waitAsleep(t, web.node, db.node)
			talk(t, to, app, "down")
			waitAsleep(t, web.node, db.node)
		}
	})
	t.Run("app ends first", func(t *testing.T) {
		app, to := open(t)
		halfClose(t, app)
		wantEOF(t, to)
		talk(t, to, app, "the answer")
		halfClose(t, to)
		wantEOF(t, app)
	})
	t.Run("target ends first", func(t *testing.T) {
		app, to := open(t)
		halfClose(t, to)
		wantEOF(t, app)
		talk(t, app, to, "the rest")
		halfClose(t, app)
		wantEOF(t, to)
	})
	t.Run("app resets", func(t *testing.T) {
		app, to := open(t)
		app.(*net.TCPConn).SetLinger(0)
		app.Close()
		if _, err := to.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the target saw %v", err)
		}
	})
	t.Run("reload", func(t *testing.T) {
		app, to := open(t)
		cfg := db.state.Load().cfg
		if err := db.update(Config{Peers: []string{"other"}}); err != nil {
			t.Fatal(err)
		}
		wantReset(t, app)
		wantReset(t, to)
		if err := db.update(cfg); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("link dies", func(t *testing.T) {
		app, to := open(t)
		kill()
		wantReset(t, app)
		wantReset(t, to)
	})
	for _, n := range []*sidecar{web, db} {
		eventually(t, "no connection and no word to wake one is left", func() bool {
			n.poller.mu.Lock()
			defer n.poller.mu.Unlock()
			return len(n.running(nil)) == 0 && len(n.poller.wake) == 0
		})
	}
}

// Sleeping connections have no goroutine.
func TestDozeFreesGoroutines(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("connections sleep on Linux only")
	}
	const conns = 50
	hold := make(chan struct{})
	defer close(hold)
	n := forwardNodes(t, newTarget(t, "", func(c net.Conn) { <-hold }), Timeouts{})
	before := runtime.NumGoroutine()
	for range conns {
		dialTo(t, "tcp", n.web.addr(0))
	}
	eventually(t, "all are open", func() bool { return len(n.db.running(nil)) == conns })
	waitAsleep(t, n.web, n.db)
	// What is left: the target's goroutine for each, and the fake stream's.
	eventually(t, "their goroutines are gone", func() bool { return runtime.NumGoroutine()-before < 2*conns+10 })
}
