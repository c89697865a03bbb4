package mux

import (
	"sync"
	"sync/atomic"

	"github.com/sealane/sealane/session/loan"
)

// chunkSizes are the sizes of the pieces that a queue is made of, in bytes. Each
// is twice the one before, so that a queue takes little more than is in it.
var chunkSizes = [...]int{1 << 10, 2 << 10, 4 << 10, floor, 16 << 10, 32 << 10, 64 << 10}

var chunkPools [len(chunkSizes)]sync.Pool

// A chunk holds bytes in buf[start:end].
type chunk struct {
	buf        []byte
	start, end int
	class      int // of chunkSizes
	next       *chunk
}

// newChunk returns an empty chunk for n bytes, or as many as the largest holds.
func newChunk(n int) *chunk {
	class := 0
	for class < len(chunkSizes)-1 && chunkSizes[class] < n {
		class++
	}
	if c, ok := chunkPools[class].Get().(*chunk); ok {
		return c
	}
	return &chunk{buf: make([]byte, chunkSizes[class]), class: class}
}

func (c *chunk) bytes() []byte { return c.buf[c.start:c.end] }

// A queue holds what has arrived for a stream and was not read. The memory that
// it takes is counted, not only the bytes in it.
type queue struct {
	first, last *chunk
	unread      *atomic.Int64 // memory, of all queues
}

func (q *queue) empty() bool { return q.first == nil }

// add copies p to the end of the queue.
func (q *queue) add(p []byte) {
	for len(p) > 0 {
		if q.last == nil || q.last.end == len(q.last.buf) {
			c := newChunk(len(p))
			q.unread.Add(int64(len(c.buf)))
			if q.last == nil {
				q.first = c
			} else {
				q.last.next = c
			}
			q.last = c
		}
		n := copy(q.last.buf[q.last.end:], p)
		q.last.end += n
		p = p[n:]
	}
}

// pop takes the first chunk out of a queue that is not empty. It has to be
// freed.
func (q *queue) pop() *chunk {
	c := q.first
	if q.first = c.next; q.first == nil {
		q.last = nil
	}
	c.next = nil
	return c
}

// read moves bytes to p, and returns how many.
func (q *queue) read(p []byte) (total int) {
	for len(p) > total && !q.empty() {
		n := copy(p[total:], q.first.bytes())
		total += n
		if q.first.start += n; q.first.start == q.first.end {
			q.free(q.pop())
		}
	}
	return total
}

// free gives a chunk's memory back.
func (q *queue) free(c *chunk) {
	q.unread.Add(-int64(len(c.buf)))
	loan.End(c.buf)
	c.start, c.end = 0, 0
	chunkPools[c.class].Put(c)
}

// drop empties the queue.
func (q *queue) drop() {
	for !q.empty() {
		q.free(q.pop())
	}
}
