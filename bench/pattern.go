package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"sync"
)

// The bytes that travel are windows into one random table that both ends make
// for themselves, so that neither generating nor checking them costs more than
// a comparison. Successive chunks lie far apart in the table: a block that is
// repeated, lost, swapped or changed on the way no longer matches its place.
const (
	chunkSize = 128 << 10
	positions = 1 << 14 // distinct chunks of a transfer before they repeat, 2 GiB later
	alignment = 64
	stride    = 7919 // odd, so that it visits every position
	tableSize = positions*alignment + chunkSize
)

var table = sync.OnceValue(func() []byte {
	var seed [32]byte
	copy(seed[:], "sealane bench pattern")
	t := make([]byte, tableSize+chunkSize)
	// Read of a ChaCha8 never fails.
	_, _ = rand.NewChaCha8(seed).Read(t)
	return t
})

// chunk is the n-th chunk of the transfer with this seed. It must not be changed.
func chunk(seed, n uint64) []byte {
	at := (seed%positions + n%positions*stride) % positions * alignment
	return table()[at : at+chunkSize]
}

// message is the n-th short message of an echo with this seed.
func message(seed, n uint64, size int) []byte { return chunk(seed, n)[:size] }

// endChunk follows the last chunk of a transfer, whose length is not known when it starts.
func endChunk() []byte { return table()[tableSize:] }

// wrongBytes says that what arrived isn't what was sent.
type wrongBytes struct {
	Offset int64 // of the first wrong byte in its transfer
	What   string
}

func (e *wrongBytes) Error() string {
	return fmt.Sprintf("wrong bytes: %s differs at byte %d", e.What, e.Offset)
}

// compare returns an error that names the first byte where got, which starts at offset, is not want.
func compare(what string, offset int64, got, want []byte) error {
	if bytes.Equal(got, want) {
		return nil
	}
	at := 0
	for at < len(got) && at < len(want) && got[at] == want[at] {
		at++
	}
	return &wrongBytes{Offset: offset + int64(at), What: what}
}

// Commands of the load client to the target. A connection carries any number
// of uploads and downloads, or one echo, which lasts until the client closes.
const (
	cmdUpload   = 'U' // then chunks, then the end chunk; answered by an ack
	cmdDownload = 'D' // arg: milliseconds; answered by chunks, then the end chunk
	cmdEcho     = 'E' // arg: size of a message; each is sent back
	cmdAck      = 'K' // arg: bytes received
	cmdBye      = 'G' // the target closes; not one byte may precede its end of stream
)

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
	return h, compare("header", 0, b, h.bytes())
}
