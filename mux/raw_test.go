package mux

import (
	"bufio"
	"io"
	"net"
	"sync"
	"testing"

	"github.com/sealane/sealane/session"
)

// A rawLink is the responder's end of a link of a node: a session, and yamux
// headers written by the test.
type rawLink struct {
	conn *session.Conn
	mu   sync.Mutex // of what is written together
}

// rawResponder links a fresh node to a listener whose links serve has, each
// with its number from 0. The node knows it as "raw".
func rawResponder(t *testing.T, edit func(*Config), serve func(i int, l *rawLink)) *node {
	t.Helper()
	return timedRawResponder(t, fastTiming(), edit, serve)
}

func timedRawResponder(t *testing.T, timing timing, edit func(*Config), serve func(i int, l *rawLink)) *node {
	t.Helper()
	ka, kb := newKey(t), newKey(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	t.Cleanup(wg.Wait)
	t.Cleanup(func() { ln.Close() })
	wg.Go(func() {
		for i := 0; ; i++ {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				known := func(k session.PublicKey) bool { return k == ka.Public() }
				conn, err := session.Respond(testContext(t), c, session.Config{Key: kb, Authorize: known})
				if err != nil {
					return // the node has ended
				}
				defer conn.Abort(nil)
				serve(i, &rawLink{conn: conn})
			})
		}
	})
	return newTimedNode(t, timing, ka, []Peer{{Name: "raw", Keys: []session.PublicKey{kb.Public()}, Addresses: []string{ln.Addr().String()}}}, edit)
}

func (l *rawLink) write(text string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conn.Write([]byte(text))
}

// each calls f for each header and body that comes, until the link ends. Pings
// it answers itself.
func (l *rawLink) each(f func(h yamuxHeader, body []byte)) {
	r := bufio.NewReader(l.conn)
	var b [yamuxHeaderLen]byte
	for {
		if _, err := io.ReadFull(r, b[:]); err != nil {
			return
		}
		h := parseHeader(b[:])
		var body []byte
		if h.kind == yamuxData {
			body = make([]byte, h.length)
			if _, err := io.ReadFull(r, body); err != nil {
				return
			}
		}
		if h.kind == yamuxPing {
			if h.flags == flagSYN {
				l.write(ping(flagACK, int(h.length)))
			}
			continue
		}
		f(h, body)
	}
}

// dataOf is DATA of a stream of yamux's with these frames in it.
func dataOf(id uint32, frames ...[]byte) string {
	n := 0
	text := ""
	for _, f := range frames {
		n += len(f)
		text += string(f)
	}
	return header(yamuxData, 0, id, n) + text
}

// answer acknowledges and accepts a stream.
func (l *rawLink) answer(id uint32, more ...[]byte) {
	l.write(ack(id) + dataOf(id, append([][]byte{appendOpened(nil, StatusOK, "")}, more...)...))
}
