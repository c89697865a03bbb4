package sim

import (
	"bytes"
	"encoding/binary"
	"sync"
	"time"
)

// A pipe is one direction of a connection. The pair's mu protects it.
type pipe struct {
	pair    *pair
	changed sync.Cond

	segments []segment // written and not read
	arrived  int       // of those, the first so many can be read: arrivals are in order
	have     int       // bytes of theirs
	size     int       // bytes in them
	pos      int64     // bytes that were read
	lastAt   time.Time // when the last segment arrives
	nextAt   time.Time // when the next piece may be read
	pieces   int       // that were read
	edges    edges

	fin         bool // nothing more comes
	finByWriter bool // and the writer knows
	deaf        bool // nobody reads any more: what comes is answered with a reset
	err         error

	stalled time.Time // until then nothing is read
	hole    bool      // nothing is, ever
	tamper  bool      // the next byte will be another
	cutAt   int64     // the connection is reset when so many bytes were read; 0: never
}

// A segment is bytes that arrive together.
type segment struct {
	bytes []byte
	at    time.Time
}

func (p *pair) newPipe() *pipe {
	d := &pipe{pair: p}
	d.changed.L = &p.mu
	d.edges.scan = p.between
	return d
}

func (d *pipe) wake() {
	d.pair.mu.Lock()
	defer d.pair.mu.Unlock()
	d.changed.Broadcast()
}

// wait waits for a change, or for the time after which it is worth looking
// again, if that is not 0.
func (d *pipe) wait(next time.Duration) {
	if next > 0 {
		defer time.AfterFunc(next, d.wake).Stop()
	}
	d.changed.Wait()
}

// put takes as many bytes as there is room for.
func (d *pipe) put(p []byte) int {
	plan := d.pair.net.plan
	n := min(len(p), max(0, plan.Buffer-d.size))
	if d.deaf {
		d.pair.resetLocked() // and the writer will know the next time
		return len(p)
	}
	if n == 0 || d.fin {
		if d.fin {
			return len(p) // a FIN that the writer does not know of: it is lost
		}
		return 0
	}
	b := bytes.Clone(p[:n])
	d.edges.write(b)
	d.size += n
	for len(b) > 0 {
		m := len(b)
		if d.pair.between && plan.Bandwidth > 0 {
			m = min(m, packet)
		}
		d.lastAt = d.arrival(m)
		d.segments = append(d.segments, segment{b[:m], d.lastAt})
		b = b[m:]
	}
	d.changed.Broadcast()
	return n
}

// packet is how much arrives together where bytes take time.
const packet = 16 << 10

// arrival is when n bytes more arrive.
func (d *pipe) arrival(n int) time.Time {
	plan := d.pair.net.plan
	at := time.Now()
	if d.pair.between {
		at = at.Add(plan.Latency)
	}
	if at.Before(d.lastAt) {
		at = d.lastAt
	}
	if d.pair.between && plan.Bandwidth > 0 {
		at = at.Add(time.Duration(n) * time.Second / time.Duration(plan.Bandwidth))
	}
	return at
}

// end is FIN. It comes after what was written.
func (d *pipe) end() {
	if !d.fin {
		d.fin = true
		d.changed.Broadcast()
	}
}

// fail breaks the pipe. What has arrived may still be read.
func (d *pipe) fail(err error) {
	if d.err != nil {
		return
	}
	d.err = err
	now := time.Now()
	kept := 0
	d.size = 0
	for _, s := range d.segments {
		if s.at.After(now) {
			break
		}
		kept++
		d.size += len(s.bytes)
	}
	clear(d.segments[kept:])
	d.segments = d.segments[:kept]
	d.arrived, d.have = kept, d.size
	d.stalled, d.hole = time.Time{}, false
	d.changed.Broadcast()
}

// ready is how many bytes are read together now, or, if 0, after which time it
// is worth asking again; 0 if that depends on others.
func (d *pipe) ready(now time.Time) (n int, next time.Duration) {
	if d.hole {
		return 0, 0
	}
	from := d.stalled
	if d.nextAt.After(from) {
		from = d.nextAt
	}
	if len(d.segments) > 0 && d.segments[0].at.After(from) {
		from = d.segments[0].at
	}
	if from.After(now) {
		return 0, from.Sub(now)
	}
	for d.arrived < len(d.segments) && !d.segments[d.arrived].at.After(now) {
		d.have += len(d.segments[d.arrived].bytes)
		d.arrived++
	}
	if d.have == 0 {
		return 0, 0
	}
	return d.piece(d.have), 0
}

// manyPieces is how many pieces of a pipe are small: what comes then is to end
// some day.
const manyPieces = 1500

// piece draws how many of the bytes that are there come together.
func (d *pipe) piece(have int) int {
	r := d.pair.draw
	if d.pieces++; d.pieces > manyPieces && r.chance(0.95) {
		return have
	}
	switch d.pair.net.plan.Pieces {
	case PiecesTiny:
		return min(have, int(r.spread(1, 64)))
	case PiecesEdges:
		return d.edge(have)
	case PiecesMixed:
		if r.chance(0.3) {
			return d.edge(have)
		}
		return min(have, int(r.spread(1, 1<<20)))
	}
	return have
}

// edge cuts at one of the next edges, or a byte before or behind it.
func (d *pipe) edge(have int) int {
	at := d.edges.after(d.pos, d.pair.draw.IntN(6))
	return min(have, max(1, int(at-d.pos)+d.pair.draw.between(-1, 1)))
}

// take moves bytes that are ready into p.
func (d *pipe) take(p []byte) (n int) {
	for n < len(p) && len(d.segments) > 0 {
		s := &d.segments[0]
		m := copy(p[n:], s.bytes)
		n += m
		if s.bytes = s.bytes[m:]; len(s.bytes) == 0 {
			s.bytes = nil
			d.segments = d.segments[1:]
			d.arrived--
		}
	}
	if d.tamper && n > 0 {
		d.tamper = false
		p[d.pair.draw.IntN(n)] ^= byte(d.pair.draw.between(1, 255))
	}
	d.size -= n
	d.have -= n
	d.pos += int64(n)
	d.edges.read(d.pos)
	if d.pair.draw.chance(d.pair.net.plan.Late) {
		d.nextAt = time.Now().Add(d.pair.draw.log(20 * time.Millisecond))
	}
	if d.cutAt > 0 && d.pos >= d.cutAt {
		d.cutAt = 0
		d.pair.resetLocked()
	}
	d.changed.Broadcast()
	return n
}

// edges finds where texts, records and their headers begin and end in what is
// written: that is where readers go wrong.
type edges struct {
	scan   bool
	pos    int64 // bytes that were written
	at     []int64
	packed int // bytes to the end of a packed record
	head   []byte
}

// textStart begins every text of the wire, payloadStart is in that of a record.
var textStart, payloadStart = []byte(`{"sdmp":`), []byte(`"payload":"`)

func (e *edges) write(b []byte) {
	begin := e.pos
	e.pos += int64(len(b))
	e.at = append(e.at, begin)
	if !e.scan {
		return
	}
	for i := 0; i < len(b); {
		if e.packed == 0 && len(e.head) == 0 && b[i] != 0 {
			next := bytes.IndexByte(b[i:], '}')
			if next < 0 {
				e.findIn(b[i:], begin+int64(i))
				return
			}
			e.findIn(b[i:i+next], begin+int64(i))
			i += next + 1
			e.at = append(e.at, begin+int64(i))
			continue
		}
		i += e.record(b[i:], begin+int64(i))
	}
}

func (e *edges) findIn(b []byte, at int64) {
	for _, what := range [][]byte{textStart, payloadStart} {
		if i := bytes.Index(b, what); i >= 0 {
			e.at = append(e.at, at+int64(i), at+int64(i+len(what)))
		}
	}
}

// record follows packed records: length (4), iv (12), payload.
func (e *edges) record(b []byte, at int64) int {
	if e.packed > 0 {
		n := min(e.packed, len(b))
		if e.packed -= n; e.packed == 0 {
			e.at = append(e.at, at+int64(n))
		}
		return n
	}
	n := min(16-len(e.head), len(b))
	e.head = append(e.head, b[:n]...)
	if len(e.head) == 16 {
		e.packed = int(binary.BigEndian.Uint32(e.head))
		if e.packed > 1<<17 {
			e.packed = 1 << 10 // none, but gzip
		}
		e.head = e.head[:0]
		e.at = append(e.at, at+int64(n)-12, at+int64(n))
	}
	return n
}

// after is the k-th edge behind pos.
func (e *edges) after(pos int64, k int) int64 {
	for i := range e.at {
		if e.at[i] > pos {
			return e.at[min(i+k, len(e.at)-1)]
		}
	}
	return e.pos
}

// read forgets the edges before pos.
func (e *edges) read(pos int64) {
	i := 0
	for i < len(e.at) && e.at[i] <= pos {
		i++
	}
	if i > 64 || i == len(e.at) {
		e.at = append(e.at[:0], e.at[i:]...)
	}
}
