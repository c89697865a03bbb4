package proxy

import (
	"io"
	"net"
	"testing"
)

// A target that resets while bytes are on their way to it must not look like
// one that ended: the kernel tells the write alone.
func TestResetThatAWriteSawIsNoEnd(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	raw, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c := newConn(raw, nil)
	defer c.Close()
	l.Close() // resets what nobody accepted
	for err == nil {
		_, err = c.Write([]byte("request"))
	}
	n, err := c.ReadLazy(func() [][]byte { return [][]byte{make([]byte, 100)} }, func() {})
	if n != 0 || err == nil || err == io.EOF {
		t.Errorf("read %d bytes, error %v, want the reset", n, err)
	}
}

// A proper end is one, whether or not this side has ended before.
func TestProperEndIsNoReset(t *testing.T) {
	for _, first := range []bool{false, true} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		raw, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		target, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		c := newConn(raw, nil)
		defer c.Close()
		if first {
			if err := c.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadAll(target); err != nil {
				t.Fatal(err)
			}
		}
		target.Close()
		if n, err := c.ReadLazy(func() [][]byte { return [][]byte{make([]byte, 100)} }, func() {}); n != 0 || err != io.EOF {
			t.Errorf("read %d bytes, error %v, want the end", n, err)
		}
	}
}
