package session

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"github.com/sealane/sealane/session/container"
)

// A batched reads a Conn as package mux does: through ReadRecords, whose
// batches it holds until all of them is read.
type batched struct {
	c     *Conn
	lent  [MaxRecords][]byte
	held  [][]byte // what lent had when it came
	at, n int      // of held: the record and the byte that are next
}

func (b *batched) Read(p []byte) (int, error) {
	if b.at == len(b.held) {
		if err := b.refill(); err != nil {
			return 0, err
		}
	}
	n := copy(p, b.lent[b.at][b.n:])
	if b.n += n; b.n == len(b.held[b.at]) {
		b.at, b.n = b.at+1, 0
	}
	return n, nil
}

// refill ends one loan, at whose end nothing may have changed, for the next.
func (b *batched) refill() error {
	if err := b.changed(); err != nil {
		return err
	}
	bodies, err := b.c.ReadRecords(b.lent[:0])
	b.held, b.at = b.held[:0], 0
	for _, body := range bodies {
		b.held = append(b.held, bytes.Clone(body))
	}
	if err == nil && len(bodies) == 0 {
		err = errors.New("neither records nor an error")
	}
	return err
}

// changed says which of the bodies that are lent has been written to.
func (b *batched) changed() error {
	for i, was := range b.held {
		if !bytes.Equal(b.lent[i], was) {
			return fmt.Errorf("record %d of a batch of %d was written to during its loan", i, len(b.held))
		}
	}
	return nil
}

// reader is what reads a Conn in a test: itself, or through ReadRecords.
func reader(c *Conn, records bool) io.Reader {
	if records {
		return &batched{c: c}
	}
	return c
}

// A reading is one direction of a session behind its handshake, as the end
// that reads it knows it.
type reading struct {
	transform, cipher string
	padding           int
	secret            [32]byte // secret_0
	number            uint64   // of the first record
	verdict           bool     // the responder's direction: record 0 is its verdict
}

// open reads wire to its end with the code that reads links, through Read and
// through ReadRecords, which must agree. It returns all the data and the error
// that ended it: io.EOF after a sealed close.
func (x reading) open(wire []byte) ([]byte, error) {
	data, err := x.openAs(bytes.NewReader(wire), false)
	again, againErr := x.openAs(bytes.NewReader(wire), true)
	if !bytes.Equal(data, again) || ruleOf(err) != ruleOf(againErr) || ruleOf(err) == "" && err != againErr {
		return again, fmt.Errorf("Read gives %d bytes and %w, ReadRecords %d bytes and %w", len(data), err, len(again), againErr)
	}
	return data, err
}

// openAs is open through one of the two.
func (x reading) openAs(wire io.Reader, records bool) ([]byte, error) {
	c := &Conn{
		transport: &counter{Conn: readOnly{Reader: wire}},
		done:      make(chan struct{}), flusher: make(chan struct{}),
	}
	close(c.flusher)
	c.tx.init(nil)
	c.rx.open.padding = x.padding
	secret := x.secret
	if err := c.rx.open.keys.init(x.cipher, &secret); err != nil {
		return nil, err
	}
	c.rx.open.keys.number = x.number
	c.rx.open.dec = newDecoder(x.transform, container.NewReader(c.transport), c.transport, x.verdict)
	if x.verdict {
		if err := c.readVerdict(); err != nil {
			return nil, err
		}
	}
	from := reader(c, records)
	var data []byte
	buf := make([]byte, 7001)
	for {
		n, err := from.Read(buf)
		data = append(data, buf[:n]...)
		if err != nil {
			return data, err
		}
	}
}

// readOnly is a transport that gives what it is told and takes nothing.
type readOnly struct {
	net.Conn
	io.Reader
}

func (c readOnly) Read(p []byte) (int, error)       { return c.Reader.Read(p) }
func (c readOnly) Close() error                     { return nil }
func (c readOnly) SetWriteDeadline(time.Time) error { return nil }

// pieces gives wire in pieces: no Read goes past the end of one.
type pieces struct {
	wire []byte
	size func(at int) int // of the piece that begins there
	at   int
	left int
}

func (r *pieces) Read(p []byte) (int, error) {
	if r.at == len(r.wire) {
		return 0, io.EOF
	}
	if r.left == 0 {
		r.left = r.size(r.at)
	}
	n := copy(p[:min(len(p), r.left)], r.wire[r.at:])
	r.at += n
	r.left -= n
	return n, nil
}

// inPieces is wire in pieces of n bytes.
func inPieces(wire []byte, n int) io.Reader {
	return &pieces{wire: wire, size: func(int) int { return n }}
}

// cutAt is wire in two pieces.
func cutAt(wire []byte, n int) io.Reader {
	return &pieces{wire: wire, size: func(at int) int {
		if at < n {
			return n - at
		}
		return len(wire)
	}}
}

// A rekeyed is a direction whose honest sender changes its key after each so
// many data records: the sealer that production uses.
type rekeyed struct {
	reading
	wire []byte
	data []byte
	ends []int // where each record, rekeys among them, ends in wire; not for gzip
}

func newRekeyed(t *testing.T, transform string, padding, every int, bodies [][]byte) *rekeyed {
	t.Helper()
	f := newForge(t, transform, cipherAES, padding)
	f.limit = uint64(every) + 2 // with the rekey and room for a close
	r := &rekeyed{reading: reading{transform: transform, cipher: cipherAES, padding: padding, secret: f.secret}}
	buf := make([]byte, maxPlaintext+tagLen)
	for k, body := range bodies {
		r.data = append(r.data, body...)
		before := f.keys.generation
		n := recordHeader + copy(buf[recordHeader:], body)
		out, err := f.sealer.data(nil, buf, n)
		if err != nil {
			t.Fatal(err)
		}
		if transform == TransformGzip {
			if k%5 == 0 { // what is flushed together comes together
				r.wire = append(r.wire, f.enc.flush(nil)...)
			}
			continue
		}
		if f.keys.generation > before {
			r.ends = append(r.ends, len(r.wire)+firstRecord(transform, out))
		}
		r.wire = append(r.wire, out...)
		r.ends = append(r.ends, len(r.wire))
	}
	if want := (len(bodies) - 1) / every; f.keys.generation != want {
		t.Fatalf("%d rekeys in %d records, want one after each %d", f.keys.generation, len(bodies), every)
	}
	r.wire = append(r.wire, f.close()...)
	return r
}

// firstRecord is the length of the first record in out.
func firstRecord(transform string, out []byte) int {
	if transform == TransformPacked {
		return packedHeader + int(out[1])<<16 + int(out[2])<<8 + int(out[3])
	}
	return bytes.Index(out, []byte("]}}")) + 3
}

// check reads the wire, as it comes in pieces, both ways.
func (r *rekeyed) check(wire func() io.Reader) error {
	for _, records := range []bool{false, true} {
		data, err := r.openAs(wire(), records)
		if err != io.EOF || !bytes.Equal(data, r.data) {
			same := 0
			for same < min(len(data), len(r.data)) && data[same] == r.data[same] {
				same++
			}
			return fmt.Errorf("through ReadRecords %v: %d of %d bytes are right, then %v", records, same, len(r.data), err)
		}
	}
	return nil
}

// someBodies are n bodies of about size bytes, all different.
func someBodies(n, size int) (all [][]byte) {
	for k := range n {
		all = append(all, randomBytes(uint64(k), min(size+k, MaxBody)))
	}
	return all
}

// inEveryShape runs a test for each transform and padding, and rekeys after
// each 1, 2, 3 and 7 records.
func inEveryShape(t *testing.T, run func(t *testing.T, transform string, padding, every int)) {
	for _, transform := range []string{TransformJSON, TransformPacked, TransformGzip} {
		for _, padding := range []int{0, paddingBlock} {
			for _, every := range []int{1, 2, 3, 7} {
				t.Run(fmt.Sprintf("%s/padding=%d/every=%d", transform, padding, every), func(t *testing.T) {
					t.Parallel()
					run(t, transform, padding, every)
				})
			}
		}
	}
}

// TestRekeysCutAnywhere: what came before a rekey stays as it was handed out,
// wherever the bytes have stopped for now: behind the rekey, before it, within
// it or within what follows. Within the padding one place is like another.
func TestRekeysCutAnywhere(t *testing.T) {
	inEveryShape(t, func(t *testing.T, transform string, padding, every int) {
		r := newRekeyed(t, transform, padding, every, someBodies(every+2, 3))
		stride := 1
		if padding > 0 && !long() {
			stride = 397
		} else if padding > 0 {
			stride = 61
		}
		for at := 1; at < len(r.wire); at++ {
			if at%stride != 0 && !r.nearAnEnd(at) {
				continue
			}
			if err := r.check(func() io.Reader { return cutAt(r.wire, at) }); err != nil {
				t.Fatalf("%d bytes, and then %d: %v", at, len(r.wire)-at, err)
			}
		}
	})
}

// nearAnEnd: is the cut in the last bytes of a record, or in the first?
func (r *rekeyed) nearAnEnd(at int) bool {
	for _, end := range r.ends {
		if at > end-10 && at < end+packedHeader+recordHeader+10 {
			return true
		}
	}
	return false
}

// TestRekeysInBulk: the same in the midst of records of all sizes, where more
// of them come at once than are handed out together, and the read buffers
// wrap, move and grow.
func TestRekeysInBulk(t *testing.T) {
	inEveryShape(t, func(t *testing.T, transform string, padding, every int) {
		for _, bodies := range [][][]byte{
			someBodies(20, MaxBody-20), someBodies(90, 17),
			append(someBodies(20, 100), append(someBodies(4, MaxBody), someBodies(40, 20)...)...),
		} {
			r := newRekeyed(t, transform, padding, every, bodies)
			for _, size := range []int{70_001, 131_072, len(r.wire)} {
				if err := r.check(func() io.Reader { return inPieces(r.wire, size) }); err != nil {
					t.Fatalf("%d records in pieces of %d bytes: %v", len(bodies), size, err)
				}
			}
		}
	})
}

// TestLentUntilTheNextCall: whatever comes while records are lent, bytes, rekeys,
// garbage or the end of the session from either side, does not touch them.
func TestLentUntilTheNextCall(t *testing.T) {
	happenings := map[string]func(i, r *Conn, wire net.Conn){
		"more records": func(i, _ *Conn, _ net.Conn) {
			for range 40 {
				i.Write(randomBytes(9, MaxBody))
			}
		},
		"garbage":          func(_, _ *Conn, wire net.Conn) { wire.Write(bytes.Repeat([]byte("garbage"), 100_000)) },
		"the peer's close": func(i, _ *Conn, _ net.Conn) { go i.Close() },
		"the peer's abort": func(i, _ *Conn, _ net.Conn) { i.Abort(nil) },
		"abort":            func(_, r *Conn, _ net.Conn) { r.Abort(nil) },
		"close":            func(i, r *Conn, _ net.Conn) { i.Abort(nil); r.Close() },
	}
	for _, transform := range []string{TransformJSON, TransformPacked, TransformGzip} {
		for name, happen := range happenings {
			i, r, wire := memSession(t, transform)
			i.tx.seal.limit = 5
			for k := range 30 { // in one write: gzip gives what was flushed together
				buf := NewBuffer()
				if _, err := i.QueueBuffer(buf, copy(buf.Body(), randomBytes(uint64(k), 9000+k))); err != nil {
					t.Fatal(err)
				}
			}
			i.Flush()
			b := &batched{c: r}
			for len(b.held) < 2 { // gzip may give one alone before it gives several
				if err := b.refill(); err != nil {
					t.Fatalf("%s: %d records, %v", transform, len(b.held), err)
				}
			}
			happen(i, r, wire)
			if err := b.changed(); err != nil {
				t.Errorf("%s, %s: %v", transform, name, err)
			}
		}
	}
}

// TestSixteenRecordsAndARekey: as many records as are handed out together, and
// a rekey among them, are more than that.
func TestSixteenRecordsAndARekey(t *testing.T) {
	for _, transform := range []string{TransformJSON, TransformPacked, TransformGzip} {
		for every := 1; every <= MaxRecords+1; every++ {
			r := newRekeyed(t, transform, 0, every, someBodies(2*MaxRecords+3, 20))
			if err := r.check(func() io.Reader { return bytes.NewReader(r.wire) }); err != nil {
				t.Errorf("%s, rekeys after each %d records: %v", transform, every, err)
			}
		}
	}
}
