package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"time"

	"github.com/sealane/sealane/test/pattern"
)

// sendChunks writes chunks until d has passed, then the end chunk, and returns the number of bytes written.
func sendChunks(w io.Writer, seed uint64, d time.Duration) (int64, error) {
	var sent int64
	start := time.Now()
	for n := uint64(0); time.Since(start) < d; n++ {
		written, err := w.Write(pattern.Stream(seed).Chunk(n))
		sent += int64(written)
		if err != nil {
			return sent, fmt.Errorf("send after %d bytes: %w", sent, err)
		}
	}
	written, err := w.Write(pattern.EndChunk())
	sent += int64(written)
	if err != nil {
		return sent, fmt.Errorf("send the end after %d bytes: %w", sent, err)
	}
	return sent, nil
}

// receiveChunks reads one transfer up to and with its end chunk, checks every byte, and returns their number.
// buf must hold a chunk.
func receiveChunks(r io.Reader, seed uint64, buf []byte) (int64, error) {
	buf = buf[:pattern.ChunkSize]
	var got int64
	for n := uint64(0); ; n++ {
		read, err := io.ReadFull(r, buf)
		if err != nil {
			return got, fmt.Errorf("transfer cut after %d bytes: %w", got+int64(read), noCleanEnd(err))
		}
		wrong := pattern.Compare("transfer", got, buf, pattern.Stream(seed).Chunk(n))
		if wrong != nil && !bytes.Equal(buf, pattern.EndChunk()) {
			return got, wrong
		}
		got += pattern.ChunkSize
		if wrong != nil {
			return got, nil
		}
	}
}

// noCleanEnd turns the end of stream, where more was due, into an error that says so.
func noCleanEnd(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// hangUp closes c with a reset, so that a peer can't take the end for a good one.
func hangUp(c net.Conn) {
	if t, ok := c.(*net.TCPConn); ok {
		// Best effort: the connection is lost either way.
		_ = t.SetLinger(0)
	}
	_ = c.Close()
}

func isReset(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}
