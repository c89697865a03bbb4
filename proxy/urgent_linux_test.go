package proxy

import (
	"net"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// sendUrgent sends text, the last byte of it as urgent.
func sendUrgent(t testing.TB, c net.Conn, text string) {
	t.Helper()
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if cerr := raw.Control(func(fd uintptr) { err = unix.Send(int(fd), []byte(text), unix.MSG_OOB) }); cerr != nil || err != nil {
		t.Fatal(cerr, err)
	}
}

// The byte that TCP marks as urgent is a byte of the stream, where it was sent:
// from apps, also while their listener still reads a request, and from targets.
func TestUrgentByteStaysInLine(t *testing.T) {
	target := newTarget(t, "", func(c net.Conn) {
		c.Read(make([]byte, 1))
		c.Write([]byte("one"))
		sendUrgent(t, c, "two!")
		c.Write([]byte("three"))
		sendUrgent(t, c, "!")
		echo(c)
	})
	var lc net.ListenConfig
	lc.SetMultipathTCP(false) // as systemd's sockets are
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	l.Close()
	n := newNodes(t, Config{
		Listeners: []Listener{
			listenOn(t, KindForward, "127.0.0.1:0"), listenOn(t, KindSOCKS5, "127.0.0.1:0"), listenOn(t, KindConnect, "127.0.0.1:0"),
			listenOn(t, KindForward, "systemd:app"),
		},
		Routes: []Route{routeTo(t, "*:*", Target{Peer: "db"})}, Activated: map[string][]*os.File{"app": {f}},
	}, Config{Services: serviceAt(t, target), Egress: []EgressRule{egressFor(t, "web", "127.0.0.1:*")}})
	for i, addr := range []string{n.web.addr(0), n.web.addr(1), n.web.addr(2), l.Addr().String()} {
		c := dialTo(t, "tcp", addr)
		switch i {
		case 1:
			c.Write(append([]byte("\x05\x01\x00"), socksRequest(1, "127.0.0.1", portOf(t, target))...))
		case 2:
			c.Write([]byte("CONNECT " + target + " HTTP/1.1\r\n\r\n"))
		}
		sendUrgent(t, c, "?before!")
		c.Write([]byte("between"))
		sendUrgent(t, c, "!")
		switch i {
		case 1:
			hear(t, c, "\x05\x00\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00")
		case 2:
			hear(t, c, "HTTP/1.1 200 Connection established\r\n\r\n")
		}
		hear(t, c, "onetwo!three!"+"before!between!")
		c.Close()
	}
}
