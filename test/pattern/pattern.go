// Package pattern has the bytes that tests and benchmarks send, and the one
// checker of what arrives. Each byte says which stream it belongs to, and
// where: a block that was repeated, lost, swapped or changed on the way no
// longer fits its place, and Locate tells where it came from.
//
// The bytes are windows into one random table that both ends make for
// themselves, so that neither making nor checking them costs more than a
// comparison. Successive chunks of a stream lie far apart in the table.
package pattern

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
)

// ChunkSize is how much of a stream is one window.
const ChunkSize = 128 << 10

const (
	positions = 1 << 14 // distinct chunks of a stream before they repeat, 2 GiB later
	alignment = 64
	stride    = 7919 // odd, so that it visits every position
	tableSize = positions*alignment + ChunkSize
)

var table = sync.OnceValue(func() []byte {
	var seed [32]byte
	copy(seed[:], "sealane bench pattern")
	t := make([]byte, tableSize+ChunkSize)
	// Read of a ChaCha8 never fails.
	_, _ = rand.NewChaCha8(seed).Read(t)
	return t
})

// A Stream names the bytes of one direction of one connection.
type Stream uint64

// Chunk is the n-th chunk of the stream. It must not be changed.
func (s Stream) Chunk(n uint64) []byte {
	at := (uint64(s)%positions + n%positions*stride) % positions * alignment
	return table()[at : at+ChunkSize]
}

// EndChunk is none of a stream's. It follows the last chunk of a transfer
// whose length is not known when it starts. It must not be changed.
func EndChunk() []byte { return table()[tableSize:] }

// Fill puts the stream's bytes from offset on into p.
func (s Stream) Fill(p []byte, offset int64) {
	for len(p) > 0 {
		n := copy(p, s.from(offset))
		p = p[n:]
		offset += int64(n)
	}
}

// from is what is left of the chunk that offset is in.
func (s Stream) from(offset int64) []byte {
	return s.Chunk(uint64(offset / ChunkSize))[offset%ChunkSize:]
}

// Check returns a *Wrong if p is not what the stream has at offset.
func (s Stream) Check(p []byte, offset int64) error {
	for len(p) > 0 {
		want := s.from(offset)
		n := min(len(p), len(want))
		if err := Compare("the stream", offset, p[:n], want[:n]); err != nil {
			return err
		}
		p = p[n:]
		offset += int64(n)
	}
	return nil
}

// Reader gives the first n bytes of the stream.
func (s Stream) Reader(n int64) io.Reader { return &reader{stream: s, left: n} }

type reader struct {
	stream Stream
	offset int64
	left   int64
}

func (r *reader) Read(p []byte) (int, error) {
	if r.left == 0 {
		return 0, io.EOF
	}
	n := copy(p[:min(int64(len(p)), r.left)], r.stream.from(r.offset))
	r.offset += int64(n)
	r.left -= int64(n)
	return n, nil
}

// A Checker is a Writer that takes a stream's first Length bytes and nothing
// else. Only its errors are its own: a *Wrong.
type Checker struct {
	Stream Stream
	Length int64
	Offset int64 // bytes that have come
}

func (c *Checker) Write(p []byte) (int, error) {
	if n := c.Length - c.Offset; int64(len(p)) > n {
		return 0, &Wrong{Offset: c.Length, What: "the end of the stream, where there are more bytes,"}
	}
	if err := c.Stream.Check(p, c.Offset); err != nil {
		return 0, err
	}
	c.Offset += int64(len(p))
	return len(p), nil
}

// Whole reports whether all of the stream has come.
func (c *Checker) Whole() bool { return c.Offset == c.Length }

// Wrong says that what arrived isn't what was sent.
type Wrong struct {
	Offset int64 // of the first wrong byte in its stream
	What   string
}

func (e *Wrong) Error() string {
	return fmt.Sprintf("wrong bytes: %s differs at byte %d", e.What, e.Offset)
}

// Compare returns an error that names the first byte where got, which starts at offset, is not want.
func Compare(what string, offset int64, got, want []byte) error {
	if bytes.Equal(got, want) {
		return nil
	}
	at := 0
	for at < len(got) && at < len(want) && got[at] == want[at] {
		at++
	}
	return &Wrong{Offset: offset + int64(at), What: what}
}

// Locate finds where wrong bytes belong: in which of the streams, in their
// first length bytes, and at which offset.
func Locate(got []byte, streams []Stream, length int64) (in Stream, offset int64, found bool) {
	const enough = 16 // bytes that are nowhere else in the table
	if len(got) < enough {
		return 0, 0, false
	}
	got = got[:enough]
	for _, s := range streams {
		for chunk := int64(0); chunk*ChunkSize < length; chunk++ {
			if at := bytes.Index(s.Chunk(uint64(chunk)), got); at >= 0 {
				return s, chunk*ChunkSize + int64(at), true
			}
		}
	}
	return 0, 0, false
}
