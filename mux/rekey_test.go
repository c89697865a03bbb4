package mux

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"testing"

	"github.com/sealane/sealane/session"
)

// TestRekeysInBulk: what was sent arrives, and no violation is seen, while both
// ends change their keys all the time and bytes come in pieces that end
// anywhere.
func TestRekeysInBulk(t *testing.T) {
	for _, transform := range []string{session.TransformJSON, session.TransformPacked, session.TransformGzip} {
		for _, every := range []uint64{1, 2, 3, 7} {
			t.Run(fmt.Sprintf("%s/every=%d", transform, every), func(t *testing.T) {
				t.Parallel()
				echoWithRekeys(t, transform, every)
			})
		}
	}
}

func echoWithRekeys(t *testing.T, transform string, every uint64) {
	edit := func(c *Config) {
		c.Session.Transform = transform
		c.Session.RekeyRecords = every + 2 // with the rekey and room for a close
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	a, b := pair(t, echo, func(c *Config) {
		edit(c)
		c.Dialer = func(context.Context, string, string) (net.Conn, error) {
			c, err := net.Dial("tcp", ln.Addr().String())
			return &piecewise{Conn: c}, err
		}
	}, edit)
	go b.Serve(inPieces{ln})
	s := open(t, a, "b")
	data := randomBytes(every, 3<<20)
	sent := make(chan error, 1)
	go func() {
		_, err := s.Write(data)
		sent <- errors.Join(err, s.CloseWrite())
	}()
	got, err := io.ReadAll(s)
	if err = errors.Join(err, <-sent); err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d of %d bytes came back, equal %v: %v", len(got), len(data), bytes.Equal(got, data), err)
	}
	noViolations(t, a)
	noViolations(t, b)
}

// inPieces makes what it accepts piecewise.
type inPieces struct{ net.Listener }

func (l inPieces) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	return &piecewise{Conn: c}, err
}

// A piecewise conn gives its bytes as if they came 70,001 at a time.
type piecewise struct {
	net.Conn
	left int // of the piece
}

func (c *piecewise) Read(p []byte) (int, error) {
	if c.left == 0 {
		c.left = 70_001
	}
	n, err := c.Conn.Read(p[:min(len(p), c.left)])
	c.left -= n
	return n, err
}
