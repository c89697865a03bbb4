package main

import (
	"encoding/binary"
	"errors"
	"hash/fnv"

	"github.com/sealane/sealane/test/pattern"
)

// Commands of the load client to the target. A connection carries any number
// of uploads and downloads, or one echo, which lasts until the client closes.
const (
	cmdUpload   = 'U' // then chunks, then the end chunk; answered by an ack
	cmdDownload = 'D' // arg: milliseconds; answered by chunks, then the end chunk
	cmdEcho     = 'E' // arg: size of a message; each is sent back
	cmdAck      = 'K' // arg: bytes received
	cmdBye      = 'G' // the target closes; not one byte may precede its end of stream
)

// message is the n-th short message of an echo with this seed.
func message(seed, n uint64, size int) []byte { return pattern.Stream(seed).Chunk(n)[:size] }

const headerSize = 32

// header is one command: "slbn" | command, 3 zero bytes | seed (8) | arg (8) | FNV-1a of all that (8).
type header struct {
	cmd  byte
	seed uint64
	arg  uint64
}

func (h header) bytes() []byte {
	b := make([]byte, headerSize)
	copy(b, "slbn")
	b[4] = h.cmd
	binary.BigEndian.PutUint64(b[8:], h.seed)
	binary.BigEndian.PutUint64(b[16:], h.arg)
	sum := fnv.New64a()
	sum.Write(b[:24])
	binary.BigEndian.PutUint64(b[24:], sum.Sum64())
	return b
}

func parseHeader(b []byte) (header, error) {
	if len(b) != headerSize {
		return header{}, errors.New("header of a wrong length")
	}
	h := header{cmd: b[4], seed: binary.BigEndian.Uint64(b[8:]), arg: binary.BigEndian.Uint64(b[16:])}
	return h, pattern.Compare("header", 0, b, h.bytes())
}
