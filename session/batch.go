package session

import (
	"sync"

	"github.com/sealane/sealane/session/loan"
)

// A Buffer holds the body of one record, with the room that sealing it in
// place takes.
type Buffer struct {
	plain [maxPlaintext + tagLen]byte
	end   int // of the body, in plain
}

var bufferPool = sync.Pool{New: func() any {
	b := new(Buffer)
	loan.End(b.plain[:])
	return b
}}

// NewBuffer returns an empty Buffer: from a pool, where QueueBuffer and Free
// put it back.
func NewBuffer() *Buffer {
	b := bufferPool.Get().(*Buffer)
	loan.Check(b.plain[:])
	b.end = recordHeader
	return b
}

// Free gives up a Buffer that was not queued.
func (b *Buffer) Free() {
	loan.End(b.plain[:])
	bufferPool.Put(b)
}

// Body is the room for the record's body: MaxBody bytes.
func (b *Buffer) Body() []byte { return b.plain[recordHeader:maxPlaintext] }

// size is how long the body is: 0 of no Buffer.
func (b *Buffer) size() int {
	if b == nil {
		return 0
	}
	return b.end - recordHeader
}

// add copies as much of p as there is room for behind the body.
func (b *Buffer) add(p []byte) int {
	n := copy(b.plain[b.end:maxPlaintext], p)
	b.end += n
	return n
}

// A Mark names a batch, and says whether what got it waits there in turn. The
// zero value is of none.
type Mark struct {
	batch uint64
	turn  bool
}

// A batch is what leaves together: first the lane, in one record, then what
// waits in turn.
type batch struct {
	number uint64
	lane   *Buffer // nil: empty
	turn   []*Buffer
	size   int // bytes of the bodies in turn
}

// empty reports whether there is nothing in it.
func (b *batch) empty() bool { return b.lane == nil && len(b.turn) == 0 }

// first puts p into the lane if there is room, or, if what it must stay behind
// is in the rest, there.
func (b *batch) first(p []byte, behind Mark, size int) bool {
	if behind == (Mark{b.number, true}) {
		b.append(p)
		return true
	}
	if b.lane == nil {
		b.lane = NewBuffer()
	} else if b.lane.size()+len(p) > size {
		return false
	}
	b.lane.add(p)
	return true
}

// append copies p, which fits a record, into the last record or a new one.
func (b *batch) append(p []byte) {
	if n := len(b.turn); n == 0 || maxPlaintext-b.turn[n-1].end < len(p) {
		b.turn = append(b.turn, NewBuffer())
	}
	b.turn[len(b.turn)-1].add(p)
	b.size += len(p)
}

// add copies as much of p as there is room for into the last record, or into a
// new one if that one is full.
func (b *batch) add(p []byte) int {
	if n := len(b.turn); n == 0 || b.turn[n-1].end == maxPlaintext {
		b.turn = append(b.turn, NewBuffer())
	}
	n := b.turn[len(b.turn)-1].add(p)
	b.size += n
	return n
}

// full reports whether n bytes would be a record too many in turn.
func (b *batch) full(n, most int) bool {
	return len(b.turn) >= most && maxPlaintext-b.turn[len(b.turn)-1].end < n
}
