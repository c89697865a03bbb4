package mux

import (
	"fmt"
	"io"
	"sync"

	"github.com/sealane/sealane/session"
)

const (
	// maxChunk is how much of an app's bytes goes into one DATA frame: with the
	// headers of frame and yamux before it, it fills the body of one record
	// (SPEC.md section 2), and leaves no crumb for a second.
	maxChunk = session.MaxBody - yamuxHeaderLen - frameHeaderLen

	// maxBurst is how many frames leave together, if they are there at once.
	maxBurst = 8

	// linkBuffers is how many buffers the bulk streams of a link may have read
	// into and not handed to the session: 4 MiB. The others have as many of
	// their own, which they do not keep for long.
	linkBuffers = 64
)

// maxData is how much of an app's bytes goes into one DATA frame now: less on a
// slow link, where others wait while it is sent.
func (l *link) maxData() int {
	return min(maxChunk, l.guard.conn.Grain()-yamuxHeaderLen-frameHeaderLen)
}

// flush sends what was queued, ahead of others or not.
func (l *link) flush(ahead bool) {
	if ahead {
		l.guard.conn.FlushFirst()
	} else {
		l.guard.conn.Flush()
	}
}

// A LazyReader can wait for bytes without buffers to put them into.
type LazyReader interface {
	io.Reader
	// ReadLazy is Read into the buffers that take returns, one after the other,
	// which it calls once there is something to read. If that was an error, and
	// nothing came, it gives them back with drop, and may take some again. With
	// n > 0 it keeps them for its caller. If take has none to give, ReadLazy
	// returns 0 without an error.
	ReadLazy(take func() [][]byte, drop func()) (n int, err error)
}

// ReadFrom writes what src gives to the stream, until src's io.EOF. It does
// not end the stream then. It holds a buffer only while there is something in
// it, if src is a LazyReader, and reads nothing that the peer has no room for.
func (s *Stream) ReadFrom(src io.Reader) (total int64, err error) {
	lazy := Lazy(src)
	b := burst{want: 1, pool: &s.link.spare}
	take, drop := b.take, b.drop
	defer func() { b.pool.pass() }()
	for {
		b.room = s.link.maxData()
		if b.credit, err = s.awaitCredit(frameHeaderLen + 1); err != nil {
			return total, err
		}
		n, err := lazy.ReadLazy(take, drop)
		if n > 0 {
			if err := s.send(&b, n); err != nil {
				return total, err
			}
			total += int64(n)
		}
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return total, err
		}
		if n == 0 {
			b.pool.await()
		}
	}
}

// A burst is the buffers of one read: one, or more when one was not enough.
type burst struct {
	want, n int
	credit  int // of the stream
	room    int // for app bytes in each
	pool    *bufferPool
	buffers [maxBurst]*session.Buffer
	rooms   [maxBurst][]byte
}

// take is ReadLazy's. There is credit for a byte at least.
func (b *burst) take() [][]byte {
	want, left := b.pool.get(b.want), b.credit
	for b.n = 0; b.n < want && left > frameHeaderLen; b.n++ {
		b.buffers[b.n] = session.NewBuffer()
		b.rooms[b.n] = dataRoom(b.buffers[b.n], min(left-frameHeaderLen, b.room))
		left -= frameHeaderLen + len(b.rooms[b.n])
	}
	b.pool.put(want - b.n)
	return b.rooms[:b.n]
}

// drop is ReadLazy's.
func (b *burst) drop() { b.dropFrom(0) }

func (b *burst) dropFrom(i int) {
	for j := i; j < b.n; j++ {
		b.buffers[j].Free()
	}
	b.pool.put(b.n - i)
	b.n = 0
}

// A bufferPool counts the buffers of a link's bursts, so that however many
// streams wait for their turn to send, what they have read is bounded.
type bufferPool struct {
	mu   sync.Mutex
	some sync.Cond
	left int
}

func (p *bufferPool) init(n int) {
	p.some.L = &p.mu
	p.left = n
}

// get takes up to n, possibly none.
func (p *bufferPool) get(n int) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n = min(n, p.left)
	p.left -= n
	return n
}

func (p *bufferPool) put(n int) {
	if n == 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.left += n
	for range n {
		p.some.Signal()
	}
}

// await waits until there are some, or were: others may be faster.
func (p *bufferPool) await() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.left == 0 {
		p.some.Wait()
	}
}

// pass is for one that leaves: it may have been woken for a buffer that it did
// not take, as its stream was over, and that another waits for.
func (p *bufferPool) pass() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.left > 0 {
		p.some.Signal()
	}
}

// send sends what ReadFrom has read into a burst. It cannot be read again: if
// it cannot be sent, the stream is over.
func (s *Stream) send(b *burst, n int) error {
	first := true // all that was sent left ahead of others
	defer func() { s.link.flush(first) }()
	s.writeMu.Lock()
	defer s.writeMu.Unlock()
	i := 0
	for ; n > 0; i++ {
		m := min(n, len(b.rooms[i]))
		ahead, err := s.sendData(b.buffers[i], m)
		first = first && ahead
		b.pool.put(1)
		if err != nil {
			b.dropFrom(i + 1)
			s.abort(fmt.Errorf("%w: %w", ErrTruncated, err), true)
			return err
		}
		n -= m
		if n == 0 && m == len(b.rooms[i]) {
			b.want = maxBurst // there may be more
		} else if n == 0 && i == 0 {
			b.want = 1
		}
	}
	b.dropFrom(i)
	if b.pool = &s.link.buffers; first {
		b.pool = &s.link.spare
	}
	return nil
}

// Lazy makes any Reader a LazyReader, if it is none. It then waits with a
// buffer of its own.
func Lazy(r io.Reader) LazyReader {
	if l, ok := r.(LazyReader); ok {
		return l
	}
	return &eagerReader{Reader: r}
}

type eagerReader struct {
	io.Reader
	buf  []byte
	read []byte // and not passed on
	err  error  // what came behind that
}

func (r *eagerReader) ReadLazy(take func() [][]byte, drop func()) (int, error) {
	if len(r.read) == 0 && r.err == nil {
		if r.buf == nil {
			r.buf = make([]byte, maxChunk)
		}
		n, err := r.Reader.Read(r.buf)
		r.read, r.err = r.buf[:n], err
	}
	if len(r.read) == 0 {
		err := r.err
		r.err = nil
		return 0, err
	}
	n := 0
	if rooms := take(); len(rooms) > 0 {
		n = copy(rooms[0], r.read)
		r.read = r.read[n:]
	}
	return n, nil
}
