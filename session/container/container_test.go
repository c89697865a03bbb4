package container

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
)

func randomBytes(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// slowShare and slowSealed are the same texts made with the standard library.
func slowShare(share []byte) string {
	return `{"sdmp":{"version":"0.13","schemas":["shared_key"]},"shared_key":{"group":"X25519MLKEM768","share":"` +
		base64.RawURLEncoding.EncodeToString(share) + `"}}`
}

func slowSealed(iv, payload []byte) string {
	return fmt.Sprintf(`{"sdmp":{"version":"0.13","schemas":["encrypted"]},"encrypted":{"iv":"%s","payload":"%s","recipients":[]}}`,
		base64.RawURLEncoding.EncodeToString(iv), base64.RawURLEncoding.EncodeToString(payload))
}

func TestSizesAreTheSpecs(t *testing.T) {
	if ShareTextLen != 2898 || MaxTextLen != 87521 {
		t.Fatalf("share text %d, longest text %d; SPEC.md section 2 says 2898 and 87521", ShareTextLen, MaxTextLen)
	}
	if n := len(AppendShare(nil, make([]byte, ShareLen))); n != ShareTextLen {
		t.Fatalf("a share text has %d bytes", n)
	}
	for _, n := range []int{MinPayload, 22, 23, 24, MaxPayload} {
		if got := len(AppendSealed(nil, new([IVLen]byte), make([]byte, n))); got != SealedTextLen(n) {
			t.Fatalf("payload of %d: text of %d, SealedTextLen says %d", n, got, SealedTextLen(n))
		}
	}
}

func TestTextsSurviveAnyFragmentation(t *testing.T) {
	share := randomBytes(1, ShareLen)
	var iv [IVLen]byte
	copy(iv[:], randomBytes(2, IVLen))
	wire := AppendShare(nil, share)
	if string(wire) != slowShare(share) {
		t.Fatal("share text differs from the standard library's")
	}
	sizes := []int{MinPayload, 22, 23, 24, 100, 1000, MaxPayload}
	for _, n := range sizes {
		p := randomBytes(uint64(n), n)
		before := len(wire)
		wire = AppendSealed(wire, &iv, p)
		if string(wire[before:]) != slowSealed(iv[:], p) {
			t.Fatalf("sealed text of %d differs from the standard library's", n)
		}
	}
	for name, wrap := range map[string]func(io.Reader) io.Reader{
		"whole": func(r io.Reader) io.Reader { return r }, "halves": iotest.HalfReader,
		"bytes": iotest.OneByteReader, "dataErr": iotest.DataErrReader,
	} {
		r := NewReader(wrap(bytes.NewReader(wire)))
		got, err := r.Share(make([]byte, ShareLen))
		if err != nil || !bytes.Equal(got, share) {
			t.Fatalf("%s: share: %v", name, err)
		}
		r.Grow(100<<10, 200<<10)
		for _, n := range sizes {
			var gotIV [IVLen]byte
			p, err := r.Sealed(&gotIV, make([]byte, MaxPayload), MinPayload, MaxPayload, false)
			if err != nil || gotIV != iv || !bytes.Equal(p, randomBytes(uint64(n), n)) {
				t.Fatalf("%s: payload of %d: %v", name, n, err)
			}
		}
		if _, err := r.Sealed(&iv, make([]byte, MaxPayload), MinPayload, MaxPayload, false); err != io.EOF {
			t.Fatalf("%s: at the end: %v, want io.EOF", name, err)
		}
	}
}

// readSealed reads one sealed text the way a session does.
func readSealed(r io.Reader) ([]byte, error) {
	var iv [IVLen]byte
	return NewReader(r).Sealed(&iv, make([]byte, MaxPayload), MinPayload, MaxPayload, false)
}

func ruleOf(err error) Rule {
	if v := (*Violation)(nil); errors.As(err, &v) {
		return v.Rule
	}
	return ""
}

func TestOnlyOneForm(t *testing.T) {
	good := slowSealed(make([]byte, IVLen), randomBytes(3, 22))
	payload := base64.RawURLEncoding.EncodeToString(randomBytes(3, 22))
	replace := func(old, new string) string {
		if !strings.Contains(good, old) {
			t.Fatalf("%q is not in the text", old)
		}
		return strings.Replace(good, old, new, 1)
	}
	long := strings.Repeat("A", maxPayloadChars+1)
	for name, c := range map[string]struct {
		text string
		rule Rule
	}{
		"space before":          {" " + good, RuleForm},
		"newline before":        {"\n" + good, RuleForm},
		"BOM":                   {"\xef\xbb\xbf" + good, RuleForm},
		"space inside":          {replace(`{"sdmp"`, `{ "sdmp"`), RuleForm},
		"other version":         {replace(`0.13`, `0.14`), RuleForm},
		"second schema":         {replace(`["encrypted"]`, `["encrypted","response"]`), RuleForm},
		"extra key in sdmp":     {replace(`"version"`, `"a":1,"version"`), RuleForm},
		"extra key at top":      {replace(`"encrypted":{`, `"x":0,"encrypted":{`), RuleForm},
		"extra key in body":     {replace(`"iv"`, `"id":"","iv"`), RuleForm},
		"extra key at the end":  {replace(`[]}}`, `[]},"x":1}`), RuleForm},
		"duplicate key":         {replace(`"recipients":[]`, `"recipients":[],"recipients":[]`), RuleForm},
		"case-folded key":       {replace(`"iv"`, `"IV"`), RuleForm},
		"escaped key":           {replace(`"iv"`, `"\u0069v"`), RuleForm},
		"reordered":             {replace(`"version":"0.13","schemas":["encrypted"]`, `"schemas":["encrypted"],"version":"0.13"`), RuleForm},
		"recipients not empty":  {replace(`[]}}`, `["a"]}}`), RuleForm},
		"nested brackets":       {strings.Repeat("[", 100000), RuleForm},
		"share in its place":    {slowShare(make([]byte, ShareLen)), RuleKind},
		"response in its place": {BadRequest, RuleKind},
		"padding characters":    {replace(payload, payload+"=="), RuleBase64},
		"trailing bits":         {replace(payload, payload[:len(payload)-1]+"x"), RuleBase64},
		"slash":                 {replace(payload, "/"+payload[1:]), RuleBase64},
		"plus":                  {replace(payload, "+"+payload[1:]), RuleBase64},
		"newline in base64":     {replace(payload, payload[:8]+"\n"+payload[8:]), RuleBase64},
		"CRLF at the end":       {replace(payload, payload+"\r\n"), RuleBase64},
		"escape in base64":      {replace(payload, `\u0041`+payload[1:]), RuleBase64},
		"impossible length":     {replace(payload, payload+"AAA"), RuleBase64},
		"iv too short":          {replace(strings.Repeat("A", ivChars), strings.Repeat("A", ivChars-4)), RuleLength},
		"iv too long":           {replace(strings.Repeat("A", ivChars), strings.Repeat("A", ivChars+4)), RuleLength},
		"payload too short":     {replace(payload, payload[:24]), RuleLength},
		"payload empty":         {replace(payload, ""), RuleLength},
		"payload too long":      {replace(payload, long), RuleLength},
		"endless string":        {good[:len(sealedPrefix)+ivChars+len(sealedMiddle)] + long, RuleLength},
	} {
		for frag, wrap := range map[string]func(io.Reader) io.Reader{"whole": func(r io.Reader) io.Reader { return r }, "bytes": iotest.OneByteReader} {
			_, err := readSealed(wrap(strings.NewReader(c.text)))
			if got := ruleOf(err); got != c.rule {
				t.Errorf("%s (%s): %v, want a violation of %s", name, frag, err, c.rule)
			}
		}
	}
	if _, err := readSealed(strings.NewReader(good)); err != nil {
		t.Fatal(err)
	}
}

// TestEveryByteCounts changes each byte of a text to each other value: the
// text must be refused or, inside base64, decode to something that a writer
// would have written exactly so.
func TestEveryByteCounts(t *testing.T) {
	good := slowSealed(randomBytes(5, IVLen), randomBytes(6, 50))
	for i := range good {
		for c := range 256 {
			if byte(c) == good[i] {
				continue
			}
			bad := []byte(good)
			bad[i] = byte(c)
			var iv [IVLen]byte
			p, err := NewReader(bytes.NewReader(bad)).Sealed(&iv, make([]byte, MaxPayload), MinPayload, MaxPayload, false)
			if err == nil && slowSealed(iv[:], p) != string(bad) {
				t.Fatalf("byte %d as %#x was accepted but is not what a writer produces", i, c)
			}
		}
	}
}

// TestBadByteIsSeenAtOnce gives the reader a text cut off right after its
// first bad byte: the violation must not wait for more.
func TestBadByteIsSeenAtOnce(t *testing.T) {
	good := slowSealed(make([]byte, IVLen), randomBytes(7, 40))
	for i := range good {
		pipe, w := io.Pipe()
		go func() {
			w.Write(append([]byte(good[:i]), '!'))
			// The pipe stays open: a reader that wants more would hang.
		}()
		if _, err := readSealed(pipe); ruleOf(err) == "" {
			t.Fatalf("bad byte at %d: %v", i, err)
		}
		pipe.Close()
	}
}

func TestTruncationAndRejection(t *testing.T) {
	good := slowSealed(make([]byte, IVLen), randomBytes(8, 30))
	for i := range good {
		want := io.ErrUnexpectedEOF
		if i == 0 {
			want = io.EOF
		}
		if _, err := readSealed(strings.NewReader(good[:i])); err != want {
			t.Fatalf("cut at %d: %v, want %v", i, err, want)
		}
	}
	var iv [IVLen]byte
	r := NewReader(iotest.OneByteReader(strings.NewReader(BadRequest + "rest")))
	if _, err := r.Share(make([]byte, ShareLen)); err != ErrRejected {
		t.Fatalf("response instead of a share: %v", err)
	}
	r = NewReader(strings.NewReader(BadRequest))
	if _, err := r.Sealed(&iv, make([]byte, 64), 64, 64, true); err != ErrRejected {
		t.Fatalf("response instead of record 0: %v", err)
	}
	broken := strings.Replace(BadRequest, "session", "sessiom", 1)
	if _, err := NewReader(strings.NewReader(broken)).Share(make([]byte, ShareLen)); ruleOf(err) != RuleForm {
		t.Fatalf("broken response: %v", err)
	}
}

func TestReaderWithoutProgressEnds(t *testing.T) {
	if _, err := readSealed(readerFunc(func([]byte) (int, error) { return 0, nil })); err != io.ErrNoProgress {
		t.Fatal(err)
	}
}

// TestOneLastCharacter: of the characters that a payload may end with, those
// are legal whose unused bits are zero, and no others.
func TestOneLastCharacter(t *testing.T) {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	for _, n := range []int{22, 23, 24} {
		good := slowSealed(make([]byte, IVLen), randomBytes(8, n))
		last := strings.Index(good, `","recipients"`) - 1
		field := good[last-len(base64.RawURLEncoding.EncodeToString(make([]byte, n)))+1 : last]
		for _, c := range alphabet {
			_, want := base64.RawURLEncoding.Strict().DecodeString(field + string(c))
			_, err := readSealed(strings.NewReader(good[:last] + string(c) + good[last+1:]))
			if (err == nil) != (want == nil) || err != nil && ruleOf(err) != RuleBase64 {
				t.Errorf("payload of %d bytes that ends with %c: %v; the standard library says %v", n, c, err, want)
			}
		}
	}
}

// TestEmptyReadsAreNoEnd: a stream may give nothing now and then, as long as
// something comes in between.
func TestEmptyReadsAreNoEnd(t *testing.T) {
	good := strings.NewReader(slowSealed(make([]byte, IVLen), randomBytes(8, 3000)))
	empty := 0
	if _, err := readSealed(readerFunc(func(p []byte) (int, error) {
		if empty++; empty%50 != 0 {
			return 0, nil
		}
		return good.Read(p[:min(len(p), 20)])
	})); err != nil {
		t.Fatalf("%v after %d reads", err, empty)
	}
}

// TestBufferGrowsToItsLimit: while reads fill it, and no further.
func TestBufferGrowsToItsLimit(t *testing.T) {
	const first, limit = 16 << 10, 64 << 10
	text := []byte(slowSealed(make([]byte, IVLen), randomBytes(8, 3000)))
	most, at := 0, 0
	r := NewReader(readerFunc(func(p []byte) (int, error) {
		most = max(most, len(p))
		for i := range p {
			p[i] = text[at]
			at = (at + 1) % len(text)
		}
		return len(p), nil
	}))
	r.Grow(first, limit)
	var iv [IVLen]byte
	payload := make([]byte, 3000)
	for range 200 {
		if _, err := r.Sealed(&iv, payload, len(payload), len(payload), false); err != nil {
			t.Fatal(err)
		}
	}
	if most <= limit/2 || most > limit {
		t.Fatalf("the largest read has room for %d bytes, the limit is %d", most, limit)
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// vectors are the bytes of the published vectors of this package that are not
// huge; their format is in session/testdata/vectors/README.md.
func vectors(t testing.TB) (wires [][]byte) {
	t.Helper()
	paths, err := filepath.Glob("../testdata/vectors/container-*.txt")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no vectors: %v", err)
	}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		_, body, _ := bytes.Cut(text, []byte("\n\n"))
		wire, err := base64.StdEncoding.DecodeString(string(body)) // which skips the line breaks
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		if len(wire) < 20_000 {
			wires = append(wires, wire)
		}
	}
	return wires
}

// FuzzReader checks that whatever is accepted is exactly what a writer writes
// for the same fields, whole or in fragments, and nothing is read past it.
func FuzzReader(f *testing.F) {
	f.Add([]byte(slowSealed(make([]byte, IVLen), randomBytes(1, 21))), byte(3))
	f.Add([]byte(slowSealed(randomBytes(2, IVLen), randomBytes(1, 200))), byte(0))
	f.Add([]byte(slowShare(randomBytes(4, ShareLen))), byte(1))
	f.Add([]byte(BadRequest), byte(7))
	for _, wire := range vectors(f) {
		f.Add(wire, byte(0))
		f.Add(wire, byte(3))
	}
	f.Fuzz(func(t *testing.T, wire []byte, step byte) {
		newReader := func() *Reader {
			return NewReader(readerFragments(wire, int(step)))
		}
		var iv [IVLen]byte
		if p, err := newReader().Sealed(&iv, make([]byte, MaxPayload), MinPayload, MaxPayload, true); err == nil {
			if text := slowSealed(iv[:], p); !bytes.HasPrefix(wire, []byte(text)) {
				t.Fatalf("accepted %q, a writer produces %q", wire, text)
			}
		} else if err == ErrRejected && !bytes.HasPrefix(wire, []byte(BadRequest)) {
			t.Fatalf("took %q for the response", wire)
		}
		checkComplete(t, wire, int(step))
		if p, err := newReader().Share(make([]byte, ShareLen)); err == nil {
			if text := slowShare(p); !bytes.HasPrefix(wire, []byte(text)) {
				t.Fatalf("accepted %q, a writer produces %q", wire, text)
			}
		}
	})
}

// checkComplete checks that Complete changes nothing, and that Sealed does not
// read when it said so.
func checkComplete(t *testing.T, wire []byte, step int) {
	var iv, iv2 [IVLen]byte
	want, wantErr := NewReader(readerFragments(wire, step)).Sealed(&iv, make([]byte, MaxPayload), MinPayload, MaxPayload, false)
	reads := 0
	src := readerFragments(wire, step)
	r := NewReader(readerFunc(func(p []byte) (int, error) {
		reads++
		return src.Read(p)
	}))
	complete := r.Complete()
	for !complete {
		if err := r.fill(); err != nil {
			break
		}
		complete = r.Complete()
	}
	before := reads
	got, err := r.Sealed(&iv2, make([]byte, MaxPayload), MinPayload, MaxPayload, false)
	if complete && reads > before {
		t.Fatalf("%q was complete, and Sealed read on", wire)
	}
	if complete && (err == nil) != (wantErr == nil) || err == nil && (wantErr != nil || iv != iv2 || !bytes.Equal(got, want)) {
		t.Fatalf("%q: %q, %v with Complete, %q, %v without", wire, got, err, want, wantErr)
	}
}

// readerFragments returns wire in pieces of step bytes, or whole for 0.
func readerFragments(wire []byte, step int) io.Reader {
	rest := wire
	return readerFunc(func(p []byte) (int, error) {
		if len(rest) == 0 {
			return 0, io.EOF
		}
		n := len(rest)
		if step > 0 {
			n = min(n, step)
		}
		n = copy(p, rest[:n])
		rest = rest[n:]
		return n, nil
	})
}

func BenchmarkAppendSealed(b *testing.B) {
	payload := randomBytes(1, MaxPayload)
	var iv [IVLen]byte
	buf := make([]byte, 0, MaxTextLen)
	b.SetBytes(MaxPayload)
	b.ReportAllocs()
	for b.Loop() {
		AppendSealed(buf, &iv, payload)
	}
}

func BenchmarkReadSealed(b *testing.B) {
	var iv [IVLen]byte
	text := AppendSealed(nil, &iv, randomBytes(1, MaxPayload))
	rest := text
	r := NewReader(readerFunc(func(p []byte) (int, error) {
		if len(rest) == 0 {
			rest = text
		}
		n := copy(p, rest)
		rest = rest[n:]
		return n, nil
	}))
	r.Grow(256<<10, 256<<10)
	dst := make([]byte, MaxPayload)
	b.SetBytes(MaxPayload)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := r.Sealed(&iv, dst, MinPayload, MaxPayload, false); err != nil {
			b.Fatal(err)
		}
	}
}
