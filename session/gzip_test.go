package session

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/bits"
	"strings"
	"testing"

	"github.com/sealane/sealane/session/container"
)

// A deflater writes DEFLATE (RFC 1951) bit by bit. The library's writer may
// produce other bytes with another release of Go, and never produces what
// these tests need.
type deflater struct {
	out   []byte
	hold  uint64
	nbits uint
}

// bits appends the n low bits of v, the lowest first.
func (d *deflater) bits(v uint64, n uint) *deflater {
	d.hold |= v << d.nbits
	for d.nbits += n; d.nbits >= 8; d.nbits -= 8 {
		d.out = append(d.out, byte(d.hold))
		d.hold >>= 8
	}
	return d
}

// stored appends stored blocks with p and no final bit, or one empty one,
// which is what a sync flush is.
func (d *deflater) stored(p []byte) *deflater {
	for {
		n := min(len(p), 0xffff)
		d.bits(0, 3)
		if d.nbits > 0 {
			d.bits(0, 8-d.nbits)
		}
		d.out = binary.LittleEndian.AppendUint16(d.out, uint16(n))
		d.out = binary.LittleEndian.AppendUint16(d.out, ^uint16(n))
		d.out = append(d.out, p[:n]...)
		if p = p[n:]; len(p) == 0 {
			return d
		}
	}
}

// literals appends a block of literals with the fixed codes; final is 0 or 1.
func (d *deflater) literals(p []byte, final uint64) *deflater {
	d.bits(final|1<<1, 3)
	for _, c := range p {
		d.code(int(c))
	}
	return d.code(256)
}

// code appends a literal or length symbol in the fixed code.
func (d *deflater) code(symbol int) *deflater {
	code, n := uint64(0), uint(0)
	switch {
	case symbol < 144:
		code, n = uint64(0x30+symbol), 8
	case symbol < 256:
		code, n = uint64(0x190+symbol-144), 9
	case symbol < 280:
		code, n = uint64(symbol-256), 7
	default:
		code, n = uint64(0xc0+symbol-280), 8
	}
	return d.bits(bits.Reverse64(code)>>(64-n), n) // codes go in from the highest bit
}

// flush ends on a byte boundary with a sync flush.
func (d *deflater) flush() []byte { return d.stored(nil).out }

// gzipWire is texts as one gzip member under the one header.
func gzipWire(texts ...[]byte) []byte {
	d := &deflater{out: []byte(gzipHeader)}
	for _, text := range texts {
		d.literals(text, 0).stored(nil)
	}
	return d.out
}

// TestGzipCloseAtTheWindowsEnd: the inflater gives what ends at the end of its
// window before it has taken the end of the block. That is not "bytes after
// the close", but anything that inflates to a byte is.
func TestGzipCloseAtTheWindowsEnd(t *testing.T) {
	const window = 32 << 10
	for _, behind := range []string{"", "x"} {
		f := newForge(t, TransformJSON, cipherAES, 0)
		// Two data records and the close fill the window to its last byte.
		closing := container.SealedTextLen(recordHeader + tagLen)
		left := window - closing
		var texts [][]byte
		for first := 0; len(texts) == 0; first++ {
			rest := left - container.SealedTextLen(recordHeader+1+first+tagLen)
			for n := rest * 3 / 4; n > rest*3/4-300; n-- {
				if container.SealedTextLen(recordHeader+n+tagLen) == rest {
					texts = append(texts, f.record(typeData, strings.Repeat("a", 1+first)), f.record(typeData, strings.Repeat("b", n)))
					break
				}
			}
		}
		texts = append(texts, append(f.record(typeClose, ""), behind...))
		if n := len(bytes.Join(texts, nil)); n != window+len(behind) {
			t.Fatalf("the texts have %d bytes", n)
		}
		for name, wire := range map[string][]byte{
			"literals": gzipWire(texts...),
			"stored":   (&deflater{out: []byte(gzipHeader)}).stored(bytes.Join(texts, nil)).flush(),
			"library's": func() []byte {
				e := newGzipEncoder()
				e.deflate.Write(bytes.Join(texts, nil))
				return e.flush(nil)
			}(),
		} {
			_, err := f.open(wire, TransformGzip)
			if behind == "" && err != io.EOF || behind != "" && ruleOf(err) != RuleClose {
				t.Errorf("%s, %q behind the close: %v", name, behind, err)
			}
		}
	}
}

// A gzipCase is a member that an honest writer does not make, or may.
type gzipCase struct {
	name string
	wire []byte
	data string
	rule Rule // "" for an end without a close
}

// gzipCases are what a gzip member can hold beside the texts, and what it may
// not. They are published as vectors.
func gzipCases(t testing.TB) ([]gzipCase, *forge) {
	f := newForge(t, TransformJSON, cipherAES, 0)
	one, two := f.data("one"), f.data("two")
	wire := gzipWire(one, two)
	header := func(flags byte, extra string) []byte {
		h := []byte(gzipHeader)
		h[3] = flags
		return append(append(h, extra...), wire[len(gzipHeader):]...)
	}
	changed := func(at int, to byte) []byte {
		b := bytes.Clone(wire)
		b[at] = to
		return b
	}
	start := func() *deflater { return &deflater{out: []byte(gzipHeader)} }
	finished := start().literals(one, 0).stored(nil).literals(two, 1).bits(0, 7).out
	return []gzipCase{
		{"as it should be", wire, "onetwo", ""},
		{"stored blocks", start().stored(one).stored(two).flush(), "onetwo", ""},
		{"one byte per block", bytewise(start(), one).flush(), "one", ""},
		{"empty blocks between", start().literals(one, 0).literals(nil, 0).stored(nil).literals(two, 0).flush(), "onetwo", ""},
		{"a name", header(0x08, "name\x00"), "", RuleGzipHeader},
		{"a comment", header(0x10, "comment\x00"), "", RuleGzipHeader},
		{"an extra field", header(0x04, "\x04\x00abcd"), "", RuleGzipHeader},
		{"a header checksum", header(0x02, "\x00\x00"), "", RuleGzipHeader},
		{"the text flag", header(0x01, ""), "", RuleGzipHeader},
		{"a reserved flag", header(0x80, ""), "", RuleGzipHeader},
		{"a time", changed(4, 1), "", RuleGzipHeader},
		{"the last byte of time", changed(7, 1), "", RuleGzipHeader},
		{"extra flags", changed(8, 2), "", RuleGzipHeader},
		{"an operating system", changed(9, 3), "", RuleGzipHeader},
		{"another method", changed(2, 7), "", RuleGzipHeader},
		{"other magic", changed(1, 0x8c), "", RuleGzipHeader},
		{"zlib", append([]byte{0x78, 0x9c}, wire[len(gzipHeader):]...), "", RuleGzipHeader},
		{"plain texts", append(bytes.Clone(one), two...), "", RuleGzipHeader},
		{"cut in the header", wire[:7], "", ""},
		{"a finished member", finished, "one", RuleGzipEnd},
		{"a second member", append(append(bytes.Clone(finished), make([]byte, 8)...), wire...), "one", RuleGzipEnd},
		{"a reserved block type", start().bits(0b110, 3).bits(0, 5).out, "", RuleGzipData},
		{"a wrong stored length", append(start().bits(0, 3).bits(0, 5).out, 1, 0, 1, 0, 'x'), "", RuleGzipData},
		{"a distance too far", start().bits(1<<1, 3).code('{').code(257).bits(0b11110, 5).bits(0, 13).bits(0, 16).out, "", RuleGzipData},
		{"something between", gzipWire(one, []byte("\n"), two), "one", container.RuleForm},
		{"a bomb", append([]byte(gzipHeader), bomb(1<<20)...), "", RuleGzipRatio},
		{"a bomb below the text's limit", append([]byte(gzipHeader), bomb(80_000)...), "", RuleGzipRatio},
	}, f
}

// bomb is a record of repeated characters, which only a peer that does not
// mind what it opens to can make.
func bomb(chars int) []byte {
	d := (&deflater{}).bits(1<<1, 3)
	text := string(container.AppendSealed(nil, new([container.IVLen]byte), nil))
	for _, c := range []byte(strings.TrimSuffix(text, `","recipients":[]}}`)) {
		d.code(int(c))
	}
	d.code('A')
	for range chars / 258 {
		d.code(285).bits(0, 5) // 258 times the character before
	}
	return d.code(256).flush()
}

func TestGzipIsExact(t *testing.T) {
	cases, f := gzipCases(t)
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			data, err := f.open(c.wire, TransformGzip)
			if string(data) != c.data || ruleOf(err) != c.rule || c.rule == "" && !errors.Is(err, ErrTruncated) {
				t.Errorf("%q, %v; want %q, %q", data, err, c.data, c.rule)
			}
		})
	}
}

func bytewise(d *deflater, p []byte) *deflater {
	for i := range p {
		d.stored(p[i : i+1])
	}
	return d
}

// TestGzipBombs: a fixed factor bounds what comes out of what went in, and the
// other way round, at any time on a link.
func TestGzipBombs(t *testing.T) {
	empty := bytes.Repeat([]byte{0, 0, 0, 0xff, 0xff}, 1<<20)
	for _, before := range []int{0, 20} { // records before the bomb must not pay for it
		f := newForge(t, TransformGzip, cipherAES, 0)
		var wire, data []byte
		for range before {
			wire = append(wire, f.record(typeData, strings.Repeat("x", 60000))...)
			data = append(data, strings.Repeat("x", 60000)...)
		}
		if before == 0 {
			wire = []byte(gzipHeader)
		}
		for name, end := range map[string][]byte{"bomb": bomb(1 << 20), "empty blocks": empty} {
			src := bytes.NewReader(append(bytes.Clone(wire), end...))
			got, err := reading{transform: TransformGzip, cipher: cipherAES, secret: f.secret}.openAs(src, true)
			if want := ruleOf(err); !bytes.Equal(got, data) || want != RuleGzipRatio && !(name == "bomb" && want == container.RuleLength) {
				t.Errorf("%s after %d records: %v", name, before, err)
			}
			if taken := int(src.Size()) - src.Len() - len(wire); taken > gzipSlack+64<<10 {
				t.Errorf("%s after %d records: %d bytes were taken", name, before, taken)
			}
		}
	}
}
