package mux

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"

	"github.com/hashicorp/yamux"

	"github.com/sealane/sealane/session"
)

// A stranger is a peer that shares nothing with this package but SPEC.md: a
// session, hashicorp/yamux as it comes, and frames written by hand. What it
// does is legal, and this package must take it.

func plainYamux() *yamux.Config {
	c := yamux.DefaultConfig()
	c.LogOutput = io.Discard
	c.EnableKeepAlive = false
	return c
}

// stranger dials n as the peer with key.
func stranger(t *testing.T, n *node, key *session.PrivateKey) *session.Conn {
	t.Helper()
	c, err := net.Dial("tcp", n.addr)
	if err != nil {
		t.Fatal(err)
	}
	s, err := session.Initiate(testContext(t), c, n.key.Public(), session.Config{Key: key})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Abort(nil) })
	return s
}

// knows makes a node that accepts the key and echoes.
func knows(t *testing.T, key *session.PrivateKey) *node {
	return newNode(t, newKey(t), []Peer{{Name: "a", Keys: []session.PublicKey{key.Public()}}}, func(c *Config) { c.Handler = echo })
}

func rawFrame(kind byte, body []byte) []byte {
	b := []byte{kind, byte(len(body) >> 16), byte(len(body) >> 8), byte(len(body))}
	return append(b, body...)
}

func readRawFrame(r io.Reader) (kind byte, body []byte, err error) {
	var h [4]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return 0, nil, err
	}
	body = make([]byte, int(h[1])<<16|int(h[2])<<8|int(h[3]))
	_, err = io.ReadFull(r, body)
	return h[0], body, err
}

var rawOpen = rawFrame(1, []byte(`{"to":"echo","from":"127.0.0.1:9","via":"forward"}`))

func rawEnd(n int) []byte { return rawFrame(4, binary.BigEndian.AppendUint64(nil, uint64(n))) }

// echoThrough sends data as frames and checks the echo to its END.
func echoThrough(rw io.ReadWriter, data []byte) error {
	sent := make(chan error, 1)
	go func() {
		out := bytes.Clone(rawOpen)
		for rest := data; len(rest) > 0; {
			n := min(len(rest), 65535)
			out = append(out, rawFrame(3, rest[:n])...)
			rest = rest[n:]
		}
		_, err := rw.Write(append(out, rawEnd(len(data))...))
		sent <- err
	}()
	kind, body, err := readRawFrame(rw)
	if err != nil || kind != 2 || len(body) == 0 || body[0] != 0 {
		return fmt.Errorf("first frame %d %v: %v", kind, body, err)
	}
	var got []byte
	for {
		kind, body, err = readRawFrame(rw)
		if err != nil {
			return err
		}
		if kind != 3 {
			break
		}
		got = append(got, body...)
	}
	if kind != 4 || binary.BigEndian.Uint64(body) != uint64(len(data)) || !bytes.Equal(got, data) {
		return fmt.Errorf("after %d bytes of %d: frame %d %x", len(got), len(data), kind, body)
	}
	return <-sent
}

func TestPlainYamuxPeer(t *testing.T) {
	key := newKey(t)
	n := knows(t, key)
	ys, err := yamux.Client(stranger(t, n, key), plainYamux())
	if err != nil {
		t.Fatal(err)
	}
	defer ys.Close()
	var wg sync.WaitGroup
	for i, size := range []int{0, 1, 70000, 1 << 20, 3 << 20, 3 << 20} {
		wg.Go(func() {
			s, err := ys.OpenStream()
			if err != nil {
				t.Error(err)
				return
			}
			if err := echoThrough(s, randomBytes(uint64(i), size)); err != nil {
				t.Errorf("%d bytes: %v", size, err)
			}
			s.Close()
		})
	}
	wg.Wait()
	if _, err := ys.Ping(); err != nil {
		t.Fatal(err)
	}
	noViolations(t, n)
}

func noViolations(t *testing.T, n *node) {
	t.Helper()
	if v := n.Violations(); len(v) > 0 {
		t.Fatalf("violations: %v\n%s", v, n.log)
	}
}

// TestHandmadeYamuxPeer speaks yamux headers by hand, in forms that the yamux
// specification allows and hashicorp/yamux does not use.
func TestHandmadeYamuxPeer(t *testing.T) {
	key := newKey(t)
	n := knows(t, key)
	conn := stranger(t, n, key)
	var out []byte
	payload := append(bytes.Clone(rawOpen), rawFrame(3, []byte("hello"))...)
	out = append(appendHeader(out, yamuxData, flagSYN, 1, uint32(len(payload))), payload...) // SYN with data
	out = appendHeader(out, yamuxWindowUpdate, 0, 1, 0)                                      // grants nothing
	end := rawEnd(5)
	out = append(appendHeader(out, yamuxData, 0, 1, uint32(len(end))), end...)
	out = appendHeader(out, yamuxData, 0, 1, 0) // carries nothing
	out = appendHeader(out, yamuxPing, flagSYN, 0, 7)
	if _, err := conn.Write(out); err != nil {
		t.Fatal(err)
	}
	var got []byte
	pong, fin := false, false
	for !pong || !fin {
		var h [12]byte
		if _, err := io.ReadFull(conn, h[:]); err != nil {
			t.Fatalf("%v; the node says:\n%s", err, n.log)
		}
		y := parseHeader(h[:])
		pong = pong || y.kind == yamuxPing && y.flags == flagACK && y.length == 7
		fin = fin || y.flags&flagFIN != 0
		if y.kind == yamuxData {
			body := make([]byte, y.length)
			if _, err := io.ReadFull(conn, body); err != nil {
				t.Fatal(err)
			}
			got = append(got, body...)
		}
	}
	want := append(rawFrame(2, []byte{0}), rawFrame(3, []byte("hello"))...)
	if want = append(want, rawEnd(5)...); !bytes.Equal(got, want) {
		t.Fatalf("%x, want %x", got, want)
	}
	// Late window updates and resets for a stream that is over change nothing.
	out = appendHeader(nil, yamuxWindowUpdate, 0, 1, 100)
	out = appendHeader(out, yamuxWindowUpdate, flagRST, 1, 0)
	out = appendHeader(out, yamuxPing, flagSYN, 0, 8)
	if _, err := conn.Write(out); err != nil {
		t.Fatal(err)
	}
	var h [12]byte
	if _, err := io.ReadFull(conn, h[:]); err != nil || parseHeader(h[:]).length != 8 {
		t.Fatalf("no answer to a ping: %v\n%s", err, n.log)
	}
	noViolations(t, n)
}
