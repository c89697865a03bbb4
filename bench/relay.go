package main

import (
	"errors"
	"io"
	"net"
	"sync"
)

// runRelay is the hidden subcommand that every pair is compared with: a TCP
// relay that copies through buffers of 128 KiB. It makes no use of splice(2), which no
// proxy that has to look at the bytes could use either.
func runRelay(l net.Listener, to string) error {
	return acceptLoop(l, func(c net.Conn) {
		out, err := net.Dial("tcp", to)
		if err != nil {
			hangUp(c)
			return
		}
		joinConns(c, out, relayCopy)
	})
}

var relayBuffers = sync.Pool{New: func() any { return new([128 << 10]byte) }}

// relayCopy copies until the end of src, and returns nil there.
func relayCopy(dst io.Writer, src io.Reader) error {
	buf := relayBuffers.Get().(*[128 << 10]byte)
	defer relayBuffers.Put(buf)
	for {
		n, err := src.Read(buf[:])
		if n > 0 {
			if _, err := dst.Write(buf[:n]); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// joinConns copies both ways until both directions have ended. An end of
// stream travels on as a half-close; any error resets both connections.
func joinConns(a, b net.Conn, copyOne func(io.Writer, io.Reader) error) {
	oneWay := func(dst, src net.Conn) {
		err := copyOne(dst, src)
		if err == nil {
			err = closeWrite(dst)
		}
		if err != nil {
			hangUp(a)
			hangUp(b)
		}
	}
	back := make(chan struct{})
	go func() {
		defer close(back)
		oneWay(a, b)
	}()
	oneWay(b, a)
	<-back
	_ = a.Close() // both directions have ended already
	_ = b.Close()
}

func closeWrite(c net.Conn) error {
	if h, ok := c.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return c.Close()
}
