package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/sealane/sealane/test/pattern"
)

// maxMessage and maxDownload bound what a header may ask of the target.
const (
	maxMessage  = 4096
	maxDownload = 10 * time.Minute
)

// runTarget is the hidden subcommand that plays the app behind the proxies. It
// has a process of its own for the descriptors that thousands of held connections take,
// and reports everything that arrives wrong.
func runTarget(l net.Listener, report func(error)) error {
	return acceptLoop(l, func(c net.Conn) {
		if err := serveTarget(c); err != nil {
			hangUp(c)
			report(err)
			return
		}
		_ = c.Close() // nothing is left to lose
	})
}

// acceptLoop hands each connection to handle in a goroutine of its own, until the listener fails.
func acceptLoop(l net.Listener, handle func(net.Conn)) error {
	for {
		c, err := l.Accept()
		if err != nil {
			return fmt.Errorf("accept: %w", err)
		}
		go handle(c)
	}
}

// serveTarget answers commands until the client ends the connection between two of them.
func serveTarget(c net.Conn) error {
	first := make([]byte, headerSize)
	var buf []byte // for a chunk; idle connections need none
	for {
		if _, err := io.ReadFull(c, first); err != nil {
			return betweenMessages(err, "command")
		}
		h, err := parseHeader(first)
		if err != nil {
			return err
		}
		if h.cmd == cmdBye {
			return nil
		}
		if buf == nil && h.cmd == cmdUpload {
			buf = make([]byte, pattern.ChunkSize)
		}
		if err := serveCommand(c, h, buf); err != nil {
			return err
		}
	}
}

func serveCommand(c net.Conn, h header, buf []byte) error {
	switch h.cmd {
	case cmdUpload:
		got, err := receiveChunks(c, h.seed, buf)
		if err != nil {
			return err
		}
		if _, err := c.Write(header{cmd: cmdAck, seed: h.seed, arg: uint64(got)}.bytes()); err != nil {
			return fmt.Errorf("acknowledge: %w", err)
		}
		return nil
	case cmdDownload:
		d := time.Duration(min(h.arg, uint64(maxDownload/time.Millisecond))) * time.Millisecond
		_, err := sendChunks(c, h.seed, d)
		return err
	case cmdEcho:
		return echo(c, int(min(h.arg, maxMessage)))
	}
	return fmt.Errorf("unknown command %d", h.cmd)
}

// echo sends messages back until the client closes.
func echo(c net.Conn, size int) error {
	msg := make([]byte, size)
	for {
		if _, err := io.ReadFull(c, msg); err != nil {
			return betweenMessages(err, "message")
		}
		if _, err := c.Write(msg); err != nil {
			return fmt.Errorf("send back: %w", err)
		}
	}
}

// betweenMessages passes what is a legal end between two messages: the client
// has closed, which some proxies tell the target by a reset.
func betweenMessages(err error, what string) error {
	if errors.Is(err, io.EOF) || isReset(err) {
		return nil
	}
	return fmt.Errorf("read %s: %w", what, err)
}
