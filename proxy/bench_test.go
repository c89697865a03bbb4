package proxy

import (
	"io"
	"net"
	"testing"
)

// benchSidecars is a forward over a real link, to a target that echoes.
func benchSidecars(b *testing.B) string {
	web, _, _ := newSidecars(b,
		Config{Listeners: []Listener{listenOn(b, KindForward, "127.0.0.1:0")}},
		Config{Services: serviceAt(b, newTarget(b, "", echo))})
	return web.node.addr(0)
}

func BenchmarkRequestResponse(b *testing.B) {
	c, err := net.Dial("tcp", benchSidecars(b))
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	buf := make([]byte, 128)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.Write(buf); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(c, buf); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkBulk(b *testing.B) {
	c, err := net.Dial("tcp", benchSidecars(b))
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	buf := make([]byte, 1<<20)
	b.SetBytes(int64(len(buf)))
	b.ReportAllocs()
	go func() {
		for {
			if _, err := c.Write(buf); err != nil {
				return
			}
		}
	}()
	got := make([]byte, 1<<20)
	for b.Loop() {
		if _, err := io.ReadFull(c, got); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkConnect(b *testing.B) {
	addr := benchSidecars(b)
	buf := make([]byte, 64)
	b.ReportAllocs()
	for b.Loop() {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			b.Fatal(err)
		}
		c.Write(buf)
		if _, err := io.ReadFull(c, buf); err != nil {
			b.Fatal(err)
		}
		c.(*net.TCPConn).SetLinger(0)
		c.Close()
	}
}
