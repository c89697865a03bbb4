package container

import (
	"bytes"
	"errors"
	"io"
	"strings"
)

// startBuffer holds any handshake text. A reader that goes on to records is
// grown with Grow, so that a stranger costs no more than this.
const startBuffer = MaxMessage3Text

// ErrRejected means that the peer answered with the clear response text: it
// could not or would not read what it was sent.
var ErrRejected = errors.New("the peer rejected the handshake")

// A Reader takes texts off a byte stream. It is not safe for concurrent use.
// After an error other than a Violation the stream's own error is returned as
// it is; io.EOF in the middle of a text becomes io.ErrUnexpectedEOF.
type Reader struct {
	src        io.Reader
	buf        []byte
	pos, end   int // unread bytes are buf[pos:end]
	textStart  int // where the current text began, at or before pos
	emptyReads int
	max        int  // of buf, see Grow
	filled     bool // the last read took all the room there was

	// What Complete has found, while buf stays as it is: the first quote at or
	// after payload is at quote. payload is 0 if it found nothing.
	payload, quote int
}

// NewReader returns a Reader with a buffer large enough for handshake texts.
func NewReader(src io.Reader) *Reader {
	return &Reader{src: src, buf: make([]byte, startBuffer)}
}

// Grow makes the buffer at least n bytes long, to save read calls, and lets it
// double up to max while reads fill it. Texts need not fit: a field is decoded
// while it arrives.
func (r *Reader) Grow(n, max int) {
	r.max = max
	if len(r.buf) < n {
		r.move(make([]byte, n))
	}
}

// move puts the unread bytes at the front of buf.
func (r *Reader) move(buf []byte) {
	r.textStart -= r.pos
	r.end = copy(buf, r.buf[r.pos:r.end])
	r.pos, r.payload = 0, 0
	r.buf = buf
}

// Buffered is how many bytes were read from the stream that belong to no text
// read so far.
func (r *Reader) Buffered() int { return r.end - r.pos }

// Take moves the bytes that Buffered counts, as far as they fit, to p.
func (r *Reader) Take(p []byte) int {
	n := copy(p, r.buf[r.pos:r.end])
	r.pos += n
	return n
}

// Peek returns the next byte of the stream and leaves it there.
func (r *Reader) Peek() (byte, error) {
	r.begin()
	for r.pos == r.end {
		if err := r.fill(); err != nil {
			return 0, err
		}
	}
	return r.buf[r.pos], nil
}

// Complete reports whether the buffer holds all of what, if it is an encrypted
// text, comes next: Sealed then does not read from the stream.
func (r *Reader) Complete() bool {
	start := r.pos + len(sealedPrefix) + ivChars + len(sealedMiddle)
	if start >= r.end {
		return false
	}
	if r.payload == start {
		return true
	}
	n := bytes.IndexByte(r.buf[start:r.end], '"')
	if n < 0 || start+n+len(sealedSuffix) > r.end {
		return false
	}
	r.payload, r.quote = start, start+n
	return true
}

// nextQuote is where the first quote in have is, which starts at pos; -1 if
// there is none.
func (r *Reader) nextQuote(have []byte) int {
	if r.payload == r.pos && r.pos > 0 {
		return r.quote - r.pos
	}
	return bytes.IndexByte(have, '"')
}

// Response reads a clear response and returns ErrRejected, or a Violation if
// something else stands there.
func (r *Reader) Response() error {
	r.begin()
	if err := r.literal(BadRequest, ""); err != nil {
		return err
	}
	return ErrRejected
}

// Share reads one shared_key text into dst, which must have ShareLen bytes of
// capacity. A clear response in its place is ErrRejected.
func (r *Reader) Share(dst []byte) ([]byte, error) {
	r.begin()
	if err := r.literal(sharePrefix, BadRequest); err != nil {
		return nil, err
	}
	return r.base64(dst[:0], ShareLen, ShareLen, shareSuffix)
}

// Sealed reads one encrypted text whose payload has min to max bytes: the iv
// goes to iv and the payload into dst, which must have max bytes of capacity.
// With rejectable, a clear response in its place is ErrRejected.
func (r *Reader) Sealed(iv *[IVLen]byte, dst []byte, min, max int, rejectable bool) ([]byte, error) {
	alternative := ""
	if rejectable {
		alternative = BadRequest
	}
	r.begin()
	if err := r.literal(sealedPrefix, alternative); err != nil {
		return nil, err
	}
	if _, err := r.base64(iv[:0], IVLen, IVLen, sealedMiddle); err != nil {
		return nil, err
	}
	return r.base64(dst[:0], min, max, sealedSuffix)
}

func (r *Reader) begin() { r.textStart = r.pos }

// literal consumes exactly want. If the bytes are those of alternative
// instead, and alternative is not empty, it returns ErrRejected.
func (r *Reader) literal(want, alternative string) error {
	for {
		have := r.buf[r.pos:r.end]
		if len(have) >= len(want) && string(have[:len(want)]) == want {
			r.pos += len(want)
			return nil
		}
		if !strings.HasPrefix(want, string(have[:min(len(have), len(want))])) {
			return r.otherwise(have, want, alternative)
		}
		if err := r.fill(); err != nil {
			return err
		}
	}
}

// otherwise is reached when have cannot be the wanted literal. It waits for
// more only while have may still become the alternative text.
func (r *Reader) otherwise(have []byte, want, alternative string) error {
	for alternative != "" {
		if len(have) >= len(alternative) && string(have[:len(alternative)]) == alternative {
			r.pos += len(alternative)
			return ErrRejected
		}
		if !strings.HasPrefix(alternative, string(have[:min(len(have), len(alternative))])) {
			break
		}
		if err := r.fill(); err != nil {
			return err
		}
		have = r.buf[r.pos:r.end]
	}
	return mismatch(have, want, alternative)
}

// mismatch tells a text of another legal kind from one of no kind, by the
// first byte that differs: the verdict does not depend on how much has arrived.
func mismatch(have []byte, want, alternative string) error {
	differs := 0
	for have[differs] == want[differs] {
		differs++
	}
	for _, kind := range []string{sharePrefix, sealedPrefix, BadRequest} {
		if kind != alternative && strings.HasPrefix(kind, string(have[:differs+1])) {
			return violation(RuleKind, "a text of a kind that does not belong here")
		}
	}
	return violation(RuleForm, "a text does not have its one legal form")
}

// base64 decodes characters up to the literal end, which starts with a quote
// and is consumed too, into dst. It decodes while characters arrive, so a bad
// one is found even if the text never ends.
func (r *Reader) base64(dst []byte, minLen, maxLen int, end string) ([]byte, error) {
	maxChars := (maxLen*8 + 5) / 6
	seen := 0 // characters decoded so far: a multiple of 4
	for {
		have := r.buf[r.pos:r.end]
		quote := r.nextQuote(have)
		last := quote >= 0
		if last {
			have = have[:quote]
		}
		if seen+len(have) > maxChars {
			return nil, violation(RuleLength, "a base64 field is longer than its limit")
		}
		if !last {
			if !validTail(have[len(have)&^3:]) {
				return nil, violation(RuleBase64, "a character outside the base64url alphabet")
			}
			have = have[:len(have)&^3]
		}
		var err error
		if dst, err = decodeChunk(dst, have); err != nil {
			return nil, err
		}
		seen += len(have)
		r.pos += len(have)
		if last {
			break
		}
		if err := r.fill(); err != nil {
			return nil, err
		}
	}
	if len(dst) < minLen {
		return nil, violation(RuleLength, "a base64 field is shorter than its limit")
	}
	return dst, r.literal(end, "")
}

// decodeChunk appends what src, the next characters of one field, decodes to.
// Only the last chunk of a field may have a length that is no multiple of 4.
// The capacity of dst bounds the result (the caller has checked the length).
func decodeChunk(dst, src []byte) ([]byte, error) {
	if len(src) == 0 {
		return dst, nil
	}
	want := len(src) * 6 / 8
	out := dst[len(dst):cap(dst)]
	if len(src)%4 == 1 || len(out) < want || bytes.IndexByte(src, '/') >= 0 {
		return nil, violation(RuleBase64, "not canonical base64url")
	}
	n, err := encoding.Decode(out, src)
	if err != nil || n != want || !zeroTrailingBits(src) {
		return nil, violation(RuleBase64, "not canonical base64url")
	}
	return dst[:len(dst)+n], nil
}

// zeroTrailingBits reports whether the bits of the last character that encode
// nothing are zero: RFC 4648 section 3.5.
func zeroTrailingBits(src []byte) bool {
	last := src[len(src)-1]
	switch len(src) % 4 {
	case 2: // 4 unused bits
		return last == 'A' || last == 'Q' || last == 'g' || last == 'w'
	case 3: // 2 unused bits
		return strings.IndexByte("AEIMQUYcgkosw048", last) >= 0
	}
	return true
}

// validTail checks the up to 3 characters that wait for the rest of their
// group of 4.
func validTail(src []byte) bool {
	for _, c := range src {
		letter := 'a' <= c|0x20 && c|0x20 <= 'z'
		if !letter && (c < '0' || c > '9') && c != '-' && c != '_' {
			return false
		}
	}
	return true
}

// fill reads more bytes behind buf[pos:end], moving those to the front when
// the room behind them is small.
func (r *Reader) fill() error {
	r.payload = 0
	switch {
	case r.filled && len(r.buf) < r.max:
		r.move(make([]byte, 2*len(r.buf)))
	case r.pos == r.end, r.end == len(r.buf):
		r.move(r.buf)
	}
	n, err := r.src.Read(r.buf[r.end:])
	r.end += n
	r.filled = r.end == len(r.buf)
	switch {
	case n > 0:
		r.emptyReads = 0
		return nil // an error that came with bytes comes again
	case err == nil:
		if r.emptyReads++; r.emptyReads > 100 {
			return io.ErrNoProgress
		}
		return nil
	case err == io.EOF && (r.pos != r.textStart || r.pos != r.end):
		return io.ErrUnexpectedEOF
	}
	return err
}
