package main

import (
	"bytes"
	"io"
	"net"
	"sync"
)

// A capture is a plain TCP relay that keeps what goes through it: what anyone
// between two hosts sees of a link.
type capture struct {
	listener net.Listener
	target   string
	relays   sync.WaitGroup

	mu    sync.Mutex
	conns []net.Conn
	out   []byte // from the side that dialed
	in    []byte // to it
}

// maxCapture is how many bytes of each direction are kept.
const maxCapture = 1 << 20

func newCapture() (*capture, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	return &capture{listener: l}, nil
}

func (c *capture) address() string { return c.listener.Addr().String() }

// start relays to target until close.
func (c *capture) start(target string) {
	c.target = target
	c.relays.Go(func() {
		for {
			near, err := c.listener.Accept()
			if err != nil {
				return
			}
			c.relays.Go(func() { c.relay(near) })
		}
	})
}

func (c *capture) relay(near net.Conn) {
	defer near.Close()
	far, err := net.Dial("tcp", c.target)
	if err != nil {
		return
	}
	defer far.Close()
	c.mu.Lock()
	c.conns = append(c.conns, near, far)
	c.mu.Unlock()
	c.relays.Go(func() {
		io.Copy(io.MultiWriter(recorder{c, &c.in}, near), far)
		near.Close()
	})
	io.Copy(io.MultiWriter(recorder{c, &c.out}, far), near)
}

func (c *capture) close() {
	c.listener.Close()
	c.mu.Lock()
	for _, conn := range c.conns {
		conn.Close()
	}
	c.mu.Unlock()
	c.relays.Wait()
}

// wire is what was seen so far in each direction.
func (c *capture) wire() (out, in []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return bytes.Clone(c.out), bytes.Clone(c.in)
}

type recorder struct {
	c  *capture
	to *[]byte
}

func (r recorder) Write(p []byte) (int, error) {
	r.c.mu.Lock()
	defer r.c.mu.Unlock()
	*r.to = append(*r.to, p[:min(len(p), maxCapture-len(*r.to))]...)
	return len(p), nil
}

// containers splits a wire in the json transform into its texts, of which the
// last may be cut short.
func containers(wire []byte) []string {
	var texts []string
	for len(wire) > 0 {
		// Nothing between the braces that end a text holds two in a row
		// (SPEC section 2).
		end := bytes.Index(wire, []byte("}}"))
		if end < 0 {
			return append(texts, string(wire))
		}
		texts = append(texts, string(wire[:end+2]))
		wire = wire[end+2:]
	}
	return texts
}
