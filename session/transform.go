package session

import (
	"bufio"
	"bytes"
	"compress/flate"
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"io"
	"sync"

	"github.com/sealane/sealane/session/container"
	"github.com/sealane/sealane/session/loan"
)

// MaxRecords is how many records are read together, if they are there at once:
// as many of the largest as a read buffer holds.
const MaxRecords = maxBuffer / maxPlaintext

// A link's read buffer begins with startBuffer bytes, and doubles up to
// maxBuffer, several of the largest records per read call, while reads fill it.
const (
	startBuffer = 128 << 10
	maxBuffer   = 1 << 20
)

// An encoder puts sealed records on the wire in one of the transforms.
type encoder interface {
	// seal appends the record with a plaintext, which it may overwrite, and
	// tagLen bytes behind it.
	seal(dst []byte, aead cipher.AEAD, iv *[container.IVLen]byte, plain []byte) []byte
	append(dst []byte, iv *[container.IVLen]byte, payload []byte) []byte
	// flush appends what append kept back. It ends every write.
	flush(dst []byte) []byte
}

// A decoder takes them off the wire.
type decoder interface {
	// next gives the payload of one record, free to be overwritten: a loan
	// until release. While anything is lent, next may be called only if
	// complete says so, as reading may write over all that was lent.
	next(iv *[container.IVLen]byte) ([]byte, error)
	// complete reports whether the next record is there already, and can be
	// lent beside those that are.
	complete() bool
	// release ends the loan of all that next has given.
	release()
	// buffered reports whether bytes behind the last record have been read.
	buffered() bool
	// modest keeps the read buffer from growing. It comes before the first read.
	modest()
}

func newEncoder(transform string) encoder {
	switch transform {
	case TransformPacked:
		return packedEncoder{}
	case TransformGzip:
		return newGzipEncoder()
	}
	return jsonEncoder{}
}

// newDecoder continues where the handshake's reader stands. The initiator
// (rejectable) may still find the clear response, untransformed, in the place
// of the first record.
func newDecoder(transform string, texts *container.Reader, src io.Reader, rejectable bool) decoder {
	if transform == TransformJSON {
		texts.Grow(startBuffer, maxBuffer)
		return &jsonDecoder{texts: texts, rejectable: rejectable}
	}
	var first *container.Reader
	if rejectable {
		first = texts
	}
	rest := &leftover{texts: texts, src: src}
	if transform == TransformPacked {
		return &packedDecoder{in: input{src: rest, buf: make([]byte, startBuffer), max: maxBuffer}, first: first}
	}
	return newGzipDecoder(rest, first)
}

// leftover reads what the handshake's reader had read too much, then src.
type leftover struct {
	texts *container.Reader
	src   io.Reader
}

func (l *leftover) Read(p []byte) (int, error) {
	if l.texts != nil {
		if l.texts.Buffered() > 0 {
			return l.texts.Take(p), nil
		}
		l.texts = nil
	}
	return l.src.Read(p)
}

// checkFirst refuses the clear response in the place of the first record. In
// the transforms no record starts with '{'.
func checkFirst(first *container.Reader) error {
	c, err := first.Peek()
	if err != nil || c != '{' {
		return err
	}
	return first.Response()
}

// json: the wire is the texts.

type jsonEncoder struct{}

func (jsonEncoder) append(dst []byte, iv *[container.IVLen]byte, payload []byte) []byte {
	return container.AppendSealed(dst, iv, payload)
}

func (e jsonEncoder) seal(dst []byte, aead cipher.AEAD, iv *[container.IVLen]byte, plain []byte) []byte {
	return e.append(dst, iv, aead.Seal(plain[:0], iv[:], plain, nil))
}

func (jsonEncoder) flush(dst []byte) []byte { return dst }

type jsonDecoder struct {
	texts      *container.Reader
	payloads   [MaxRecords]*payload // the first is kept, the others go back to their pool
	lent       int                  // how many of them are
	rejectable bool
}

type payload [container.MaxPayload]byte

// payloadPool is all links': what one has needed for a burst is not kept there.
var payloadPool = sync.Pool{New: func() any { return new(payload) }}

func (d *jsonDecoder) next(iv *[container.IVLen]byte) ([]byte, error) {
	room := &d.payloads[d.lent]
	switch {
	case *room != nil:
	case d.lent == 0:
		*room = new(payload) // of which an idle link has touched little
	default:
		*room = payloadPool.Get().(*payload)
	}
	d.lent++
	p, err := d.texts.Sealed(iv, (*room)[:], container.MinPayload, container.MaxPayload, d.rejectable)
	d.rejectable = false
	return p, err
}

func (d *jsonDecoder) complete() bool { return d.lent < MaxRecords && d.texts.Complete() }

func (d *jsonDecoder) release() {
	for i, p := range d.payloads[:d.lent] {
		loan.End(p[:])
		if i > 0 {
			payloadPool.Put(p)
			d.payloads[i] = nil
		}
	}
	d.lent = 0
}

func (d *jsonDecoder) modest() { d.texts.Grow(startBuffer, startBuffer) }

func (d *jsonDecoder) buffered() bool { return d.texts.Buffered() > 0 }

// packed: payload length (4) | iv (12) | payload.

const packedHeader = 4 + container.IVLen

type packedEncoder struct{}

func (packedEncoder) append(dst []byte, iv *[container.IVLen]byte, payload []byte) []byte {
	return append(packedHead(dst, iv, len(payload)), payload...)
}

// seal writes the payload where it is sent from.
func (packedEncoder) seal(dst []byte, aead cipher.AEAD, iv *[container.IVLen]byte, plain []byte) []byte {
	return aead.Seal(packedHead(dst, iv, len(plain)+tagLen), iv[:], plain, nil)
}

// packedHead appends what comes before a payload of n bytes.
func packedHead(dst []byte, iv *[container.IVLen]byte, n int) []byte {
	dst = binary.BigEndian.AppendUint32(dst, uint32(n))
	return append(dst, iv[:]...)
}

func (packedEncoder) flush(dst []byte) []byte { return dst }

type packedDecoder struct {
	in    input
	first *container.Reader // not nil until the first record of the initiator
	lent  int               // bytes of the records that are lent, before in.pos
}

// next opens records where they lie in the read buffer.
func (d *packedDecoder) next(iv *[container.IVLen]byte) ([]byte, error) {
	if d.first != nil {
		if err := checkFirst(d.first); err != nil {
			return nil, err
		}
		d.first = nil
	}
	length, err := d.length()
	if err != nil {
		return nil, err
	}
	if err := d.in.need(packedHeader + length); err != nil {
		return nil, midRecord(err)
	}
	record := d.in.have()[:packedHeader+length]
	d.in.pos += len(record)
	d.lent += len(record)
	copy(iv[:], record[4:])
	return record[packedHeader:], nil
}

func (d *packedDecoder) complete() bool {
	have := d.in.have()
	return d.first == nil && len(have) >= packedHeader &&
		int64(len(have)) >= packedHeader+int64(binary.BigEndian.Uint32(have))
}

func (d *packedDecoder) release() {
	loan.End(d.in.buf[d.in.pos-d.lent : d.in.pos])
	d.lent = 0
}

func (d *packedDecoder) modest() { d.in.max = startBuffer }

// length reads the length field byte by byte, so that a bad one is seen at its
// first byte that cannot be right.
func (d *packedDecoder) length() (int, error) {
	for n := 1; n <= 4; n++ {
		if err := d.in.need(n); err != nil {
			if n > 1 {
				err = midRecord(err)
			}
			return 0, err
		}
		var low, high [4]byte
		copy(low[:], d.in.have()[:n])
		copy(high[:], d.in.have()[:n])
		for i := n; i < 4; i++ {
			high[i] = 0xff
		}
		if binary.BigEndian.Uint32(low[:]) > container.MaxPayload || binary.BigEndian.Uint32(high[:]) < container.MinPayload {
			return 0, violation(RulePackedLength, "a length outside its bounds")
		}
	}
	return int(binary.BigEndian.Uint32(d.in.have())), nil
}

func (d *packedDecoder) buffered() bool { return len(d.in.have()) > 0 }

// An input is a read buffer that grows while reads fill it.
type input struct {
	src      io.Reader
	buf      []byte
	pos, end int  // unread bytes are buf[pos:end]
	filled   bool // the last read took all the room there was
	max      int  // how large buf may become
}

func (in *input) have() []byte { return in.buf[in.pos:in.end] }

// need reads until there are n bytes, at most startBuffer.
func (in *input) need(n int) error {
	for in.end-in.pos < n {
		if in.pos == in.end {
			in.pos, in.end = 0, 0
		}
		if in.filled && len(in.buf) < in.max {
			in.move(make([]byte, 2*len(in.buf)))
		} else if in.pos+n > len(in.buf) || in.end == len(in.buf) {
			in.move(in.buf)
		}
		m, err := in.src.Read(in.buf[in.end:])
		in.filled = in.end+m == len(in.buf)
		in.end += m
		if m == 0 && err != nil {
			return err
		}
	}
	return nil
}

// move puts the unread bytes at the front of buf.
func (in *input) move(buf []byte) {
	in.end = copy(buf, in.have())
	in.pos = 0
	in.buf = buf
}

// midRecord is the error for a stream that ends inside a record.
func midRecord(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// gzip: the texts, deflated, in one member that is never finished.

// gzipHeader is the only legal header: deflate, no flags, no time, no extra
// flags, no operating system.
const gzipHeader = "\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"

type gzipEncoder struct {
	out     bytes.Buffer
	deflate *flate.Writer
	text    []byte
}

func newGzipEncoder() *gzipEncoder {
	e := &gzipEncoder{}
	e.out.WriteString(gzipHeader)
	e.deflate, _ = flate.NewWriter(&e.out, flate.BestSpeed) // the level is legal
	return e
}

func (e *gzipEncoder) append(dst []byte, iv *[container.IVLen]byte, payload []byte) []byte {
	e.text = container.AppendSealed(e.text[:0], iv, payload)
	e.deflate.Write(e.text) // a bytes.Buffer takes everything
	return dst
}

func (e *gzipEncoder) seal(dst []byte, aead cipher.AEAD, iv *[container.IVLen]byte, plain []byte) []byte {
	return e.append(dst, iv, aead.Seal(plain[:0], iv[:], plain, nil))
}

func (e *gzipEncoder) flush(dst []byte) []byte {
	e.deflate.Flush()
	dst = append(dst, e.out.Bytes()...)
	e.out.Reset()
	return dst
}

type gzipDecoder struct {
	jsonDecoder
	src   *gzipSource
	first *container.Reader
}

func newGzipDecoder(src io.Reader, first *container.Reader) *gzipDecoder {
	source := &gzipSource{src: bufio.NewReaderSize(src, 32<<10), mayGive: gzipSlack, mayTake: gzipSlack}
	source.in.gzipSource = source
	source.inflate = flate.NewReader(source.in)
	texts := container.NewReader(source)
	texts.Grow(startBuffer, maxBuffer)
	return &gzipDecoder{
		jsonDecoder: jsonDecoder{texts: texts},
		src:         source,
		first:       first,
	}
}

func (d *gzipDecoder) next(iv *[container.IVLen]byte) ([]byte, error) {
	if d.first != nil {
		if err := checkFirst(d.first); err != nil {
			return nil, err
		}
		d.first = nil
	}
	return d.jsonDecoder.next(iv)
}

func (d *gzipDecoder) buffered() bool { return d.jsonDecoder.buffered() || d.src.more() }

// A gzipSource inflates a member whose header it checks byte by byte.
type gzipSource struct {
	src     *bufio.Reader
	in      deflated
	inflate io.Reader
	header  int  // bytes of the header seen
	last    bool // nothing is awaited that is not in src's buffer
	mayGive int  // bytes that may still come out; see gzipFactor
	mayTake int  // bytes that may still go in
}

// Factor and slack of gzip-ratio. Sealed texts are mostly base64 of random
// bytes, which DEFLATE turns into at least 3/4 of its size, and at least 28
// characters of each are that. So what is inflated is never more than 8 times
// what came in, and never much less than it: each byte in allows gzipFactor
// out and the other way round, saved up to gzipSlack, which is twice the
// window that the inflater may hold back.
const (
	gzipFactor = 16
	gzipSlack  = 64 << 10
)

func (g *gzipSource) Read(p []byte) (int, error) {
	for g.header < len(gzipHeader) {
		c, err := g.src.ReadByte()
		if err != nil {
			if g.header > 0 {
				err = midRecord(err)
			}
			return 0, err
		}
		if c != gzipHeader[g.header] {
			return 0, violation(RuleGzipHeader, "not the one gzip header")
		}
		g.header++
	}
	n, err := g.inflate.Read(p)
	if g.mayGive -= n; g.mayGive < 0 {
		return 0, violation(RuleGzipRatio, "too much comes out of what went in")
	}
	g.mayTake = min(g.mayTake+gzipFactor*n, gzipSlack)
	var corrupt flate.CorruptInputError
	switch {
	case err == io.EOF:
		return 0, violation(RuleGzipEnd, "the gzip member was finished")
	case errors.As(err, &corrupt):
		return 0, violation(RuleGzipData, "not a DEFLATE stream")
	}
	return n, err
}

// more reports whether the bytes that have been read hold anything behind the
// last text. The end of its block and a sync flush are nothing: where a text
// ends at the end of the window, the inflater gives it before it takes those.
func (g *gzipSource) more() bool {
	g.last = true
	n, err := g.Read(make([]byte, 1))
	return n > 0 || err != io.ErrUnexpectedEOF
}

// deflated is what the inflater takes. It stops it when it takes far more than
// it gives: empty blocks without end.
type deflated struct{ *gzipSource }

func (d deflated) ReadByte() (byte, error) {
	if d.last && d.src.Buffered() == 0 {
		return 0, io.EOF
	}
	c, err := d.src.ReadByte()
	if err != nil {
		return 0, err
	}
	return c, d.took(1)
}

func (d deflated) Read(p []byte) (int, error) {
	if d.last && d.src.Buffered() == 0 {
		return 0, io.EOF
	}
	n, err := d.src.Read(p)
	if err != nil {
		return n, err
	}
	return n, d.took(n)
}

func (d deflated) took(n int) error {
	d.mayGive = min(d.mayGive+gzipFactor*n, gzipSlack)
	if d.mayTake -= n; d.mayTake < 0 {
		return violation(RuleGzipRatio, "too little comes out of what went in")
	}
	return nil
}
