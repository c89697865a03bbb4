package session

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sealane/sealane/session/container"
)

// A forge seals records that no honest peer sends, with the right keys.
type forge struct {
	sealer
	cipher string
	secret [32]byte
	first  uint64
}

func newForge(t testing.TB, transform, cipher string, padding int) *forge {
	f := &forge{cipher: cipher, secret: [32]byte(seededBytes("forge", 32))}
	secret := f.secret
	if err := f.keys.init(cipher, &secret); err != nil {
		t.Fatal(err)
	}
	f.padding, f.limit, f.enc = padding, maxRecords, newEncoder(transform)
	return f
}

// from makes n the number of the first record.
func (f *forge) from(n uint64) *forge {
	f.first, f.keys.number = n, n
	return f
}

// record is one record in the transform.
func (f *forge) record(typ byte, body string) []byte {
	buf := make([]byte, recordHeader+len(body)+paddingBlock+tagLen)
	n := recordHeader + copy(buf[recordHeader:], body)
	return f.enc.flush(f.seal(nil, typ, buf, n))
}

func (f *forge) data(body string) []byte { return f.record(typeData, body) }
func (f *forge) close() []byte           { return f.record(typeClose, "") }

// rekey is a rekey record; what follows is under the next key.
func (f *forge) rekey(t testing.TB) []byte {
	b := f.record(typeRekey, "")
	if err := f.keys.advance(); err != nil {
		t.Fatal(err)
	}
	return b
}

// plain seals any plaintext as the next record.
func (f *forge) plain(plaintext []byte) []byte {
	var iv [container.IVLen]byte
	putIV(&iv, f.keys.number)
	payload := f.keys.aead.Seal(nil, iv[:], plaintext, nil)
	f.keys.number++
	return f.enc.flush(f.enc.append(nil, &iv, payload))
}

// open reads wire with the keys that the forge began with.
func (f *forge) open(wire []byte, transform string) ([]byte, error) {
	return reading{transform, f.cipher, f.padding, f.secret, f.first, false}.open(wire)
}

// header is a record's type and length, and a body behind it.
func header(typ byte, length uint32, body string) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{typ}, length), body...)
}

// padded is p with zeros up to n bytes.
func padded(p []byte, n int) []byte { return append(p, make([]byte, n-len(p))...) }

// A recordCase is a direction of a session whose peer holds the keys.
type recordCase struct {
	name    string
	padding int
	first   uint64
	verdict bool
	wire    func(t testing.TB, f *forge) [][]byte
	data    string
	rule    Rule  // or
	err     error // how it ends if by no rule
}

// recordCases are what a reader of records must take or refuse. They are
// published as vectors.
func recordCases() []recordCase {
	const block = paddingBlock
	one := func(plain func() []byte) func(testing.TB, *forge) [][]byte {
		return func(_ testing.TB, f *forge) [][]byte { return [][]byte{f.data("before"), f.plain(plain())} }
	}
	nonzero := func(at int) func() []byte {
		return func() []byte { p := padded(header(typeData, 2, "hi"), block); p[at] = 1; return p }
	}
	rekeys := func(n int, between string) func(testing.TB, *forge) [][]byte {
		return func(t testing.TB, f *forge) (wire [][]byte) {
			for range n {
				wire = append(wire, f.rekey(t))
				if between != "" {
					wire = append(wire, f.data(between))
				}
			}
			return append(wire, f.data("end"), f.close())
		}
	}
	return []recordCase{
		{name: "data-and-close", data: "onetwo", err: io.EOF,
			wire: func(_ testing.TB, f *forge) [][]byte { return [][]byte{f.data("one"), f.data("two"), f.close()} }},
		{name: "close-alone", err: io.EOF, wire: func(_ testing.TB, f *forge) [][]byte { return [][]byte{f.close()} }},
		{name: "one-byte", data: "1", err: io.EOF, wire: func(_ testing.TB, f *forge) [][]byte { return [][]byte{f.data("1"), f.close()} }},
		{name: "no-close", data: "one", err: ErrTruncated, wire: func(_ testing.TB, f *forge) [][]byte { return [][]byte{f.data("one")} }},
		{name: "nothing", err: ErrTruncated, wire: func(testing.TB, *forge) [][]byte { return nil }},
		{name: "cut-in-a-record", data: "one", err: ErrTruncated, wire: func(_ testing.TB, f *forge) [][]byte {
			first, second := f.data("one"), f.data("two")
			return [][]byte{first, second[:len(second)-7]}
		}},
		{name: "largest-body", data: strings.Repeat("x", maxBody), err: io.EOF,
			wire: func(_ testing.TB, f *forge) [][]byte {
				return [][]byte{f.data(strings.Repeat("x", maxBody)), f.close()}
			}},
		{name: "padded", padding: block, data: "one", err: io.EOF,
			wire: func(_ testing.TB, f *forge) [][]byte { return [][]byte{f.data("one"), f.close()} }},
		{name: "padded-full-block", padding: block, data: strings.Repeat("x", block-recordHeader), err: io.EOF,
			wire: func(_ testing.TB, f *forge) [][]byte {
				return [][]byte{f.data(strings.Repeat("x", block-recordHeader)), f.close()}
			}},
		{name: "padded-one-more", padding: block, data: strings.Repeat("x", block-recordHeader+1), err: io.EOF,
			wire: func(_ testing.TB, f *forge) [][]byte {
				return [][]byte{f.data(strings.Repeat("x", block-recordHeader+1)), f.close()}
			}},

		{name: "number-repeated", data: "one", rule: RuleNumber, wire: func(_ testing.TB, f *forge) [][]byte {
			first := f.data("one")
			return [][]byte{first, first}
		}},
		{name: "number-dropped", data: "one", rule: RuleNumber, wire: func(_ testing.TB, f *forge) [][]byte {
			first, _, third := f.data("one"), f.data("two"), f.data("three")
			return [][]byte{first, third}
		}},
		{name: "number-swapped", rule: RuleNumber, wire: func(_ testing.TB, f *forge) [][]byte {
			first, second := f.data("one"), f.data("two")
			return [][]byte{second, first}
		}},
		{name: "number-in-the-first-four-bytes", rule: RuleNumber, wire: func(_ testing.TB, f *forge) [][]byte {
			iv := [container.IVLen]byte{0: 1}
			return [][]byte{f.enc.flush(f.enc.append(nil, &iv, f.keys.aead.Seal(nil, iv[:], header(typeData, 1, "x"), nil)))}
		}},
		{name: "number-limit", first: maxRecords - 1, data: "last", rule: RuleLimit,
			wire: func(_ testing.TB, f *forge) [][]byte { return [][]byte{f.data("last"), f.data("too many")} }},
		{name: "number-limit-close", first: maxRecords - 1, err: io.EOF,
			wire: func(_ testing.TB, f *forge) [][]byte { return [][]byte{f.close()} }},
		{name: "number-limit-rekey", first: maxRecords - 1, data: "next key", err: io.EOF,
			wire: func(t testing.TB, f *forge) [][]byte { return [][]byte{f.rekey(t), f.data("next key"), f.close()} }},
		{name: "number-wrapped", first: 1<<64 - 1, rule: RuleLimit,
			wire: func(_ testing.TB, f *forge) [][]byte { return [][]byte{f.data("x")} }},

		{name: "tag-flipped", data: "one", rule: RuleOpen, wire: func(_ testing.TB, f *forge) [][]byte {
			first := f.data("one")
			var iv [container.IVLen]byte
			putIV(&iv, f.keys.number)
			payload := f.keys.aead.Seal(nil, iv[:], header(typeData, 1, "x"), nil)
			payload[len(payload)-1] ^= 1
			return [][]byte{first, f.enc.flush(f.enc.append(nil, &iv, payload))}
		}},
		{name: "another-key", data: "one", rule: RuleOpen, wire: func(t testing.TB, f *forge) [][]byte {
			first := f.data("one")
			if err := f.keys.advance(); err != nil {
				t.Fatal(err)
			}
			f.keys.number = 1
			return [][]byte{first, f.data("two")}
		}},
		{name: "additional-data", data: "one", rule: RuleOpen, wire: func(_ testing.TB, f *forge) [][]byte {
			first := f.data("one")
			var iv [container.IVLen]byte
			putIV(&iv, f.keys.number)
			payload := f.keys.aead.Seal(nil, iv[:], header(typeData, 1, "x"), []byte("more"))
			return [][]byte{first, f.enc.flush(f.enc.append(nil, &iv, payload))}
		}},

		{name: "type-4", data: "before", rule: RuleType, wire: one(func() []byte { return header(4, 1, "x") })},
		{name: "type-255", data: "before", rule: RuleType, wire: one(func() []byte { return header(255, 0, "") })},
		{name: "length-too-long", data: "before", rule: RuleRecordLength, wire: one(func() []byte { return header(typeData, 2, "x") })},
		{name: "length-too-short", data: "before", rule: RuleRecordLength, wire: one(func() []byte { return header(typeData, 1, "xy") })},
		{name: "length-huge", data: "before", rule: RuleRecordLength, wire: one(func() []byte { return header(typeData, 1<<32-1, "x") })},
		{name: "length-negative", data: "before", rule: RuleRecordLength, wire: one(func() []byte { return header(typeData, 1<<31, "x") })},
		{name: "data-empty", data: "before", rule: RuleRecordLength, wire: one(func() []byte { return header(typeData, 0, "") })},
		{name: "close-with-body", data: "before", rule: RuleRecordLength, wire: one(func() []byte { return header(typeClose, 1, "x") })},
		{name: "rekey-with-body", data: "before", rule: RuleRecordLength, wire: one(func() []byte { return header(typeRekey, 1, "x") })},
		{name: "unpadded-has-padding", data: "before", rule: RuleRecordLength, wire: one(func() []byte { return padded(header(typeData, 1, "x"), 100) })},
		{name: "padded-has-none", padding: block, data: "before", rule: RuleRecordLength, wire: one(func() []byte { return header(typeData, 1, "x") })},
		{name: "padded-one-short", padding: block, data: "before", rule: RuleRecordLength, wire: one(func() []byte { return padded(header(typeData, 1, "x"), block-1) })},
		{name: "padded-one-block-too-many", padding: block, data: "before", rule: RuleRecordLength, wire: one(func() []byte { return padded(header(typeData, 1, "x"), 2*block) })},
		{name: "padded-block-missing", padding: block, data: "before", rule: RuleRecordLength, wire: one(func() []byte { return padded(header(typeData, block, "x"), block) })},
		{name: "padded-length-huge", padding: block, data: "before", rule: RuleRecordLength, wire: one(func() []byte { return padded(header(typeData, 1<<32-1, "x"), block) })},
		{name: "padded-length-negative", padding: block, data: "before", rule: RuleRecordLength, wire: one(func() []byte { return padded(header(typeData, 1<<31, "x"), block) })},
		{name: "padding-first-byte", padding: block, data: "before", rule: RulePadding, wire: one(nonzero(7))},
		{name: "padding-middle-byte", padding: block, data: "before", rule: RulePadding, wire: one(nonzero(4000))},
		{name: "padding-last-byte", padding: block, data: "before", rule: RulePadding, wire: one(nonzero(block - 1))},
		{name: "padding-of-a-close", padding: block, data: "before", rule: RulePadding, wire: one(func() []byte {
			p := padded(header(typeClose, 0, ""), block)
			p[block-1] = 0x80
			return p
		})},

		{name: "close-then-data", data: "one", rule: RuleClose,
			wire: func(_ testing.TB, f *forge) [][]byte { return [][]byte{f.data("one"), f.close(), f.data("two")} }},
		{name: "close-twice", rule: RuleClose, wire: func(_ testing.TB, f *forge) [][]byte { return [][]byte{f.close(), f.close()} }},

		{name: "control-ok-from-the-initiator", rule: RuleControl,
			wire: func(_ testing.TB, f *forge) [][]byte { return [][]byte{f.record(typeControl, controlOK)} }},
		{name: "control-ok-late", data: "one", rule: RuleControl,
			wire: func(_ testing.TB, f *forge) [][]byte {
				return [][]byte{f.data("one"), f.record(typeControl, controlOK)}
			}},
		{name: "control-empty", rule: RuleControl,
			wire: func(_ testing.TB, f *forge) [][]byte { return [][]byte{f.record(typeControl, "")} }},
		{name: "verdict-ok", verdict: true, data: "one", err: io.EOF, wire: func(_ testing.TB, f *forge) [][]byte {
			return [][]byte{f.record(typeControl, controlOK), f.data("one"), f.close()}
		}},
		{name: "verdict-ok-padded", verdict: true, padding: block, data: "one", err: io.EOF, wire: func(_ testing.TB, f *forge) [][]byte {
			return [][]byte{f.record(typeControl, controlOK), f.data("one"), f.close()}
		}},
		{name: "verdict-not-found", verdict: true, err: ErrNotFound, wire: func(_ testing.TB, f *forge) [][]byte {
			return [][]byte{f.record(typeControl, controlNotFound), f.close()}
		}},
		{name: "verdict-twice", verdict: true, rule: RuleControl, wire: func(_ testing.TB, f *forge) [][]byte {
			return [][]byte{f.record(typeControl, controlOK), f.record(typeControl, controlOK)}
		}},
		{name: "verdict-missing", verdict: true, rule: RuleControl, wire: func(_ testing.TB, f *forge) [][]byte { return [][]byte{f.data("one")} }},
		{name: "verdict-close", verdict: true, err: ErrNoRoom, wire: func(_ testing.TB, f *forge) [][]byte { return [][]byte{f.close()} }},
		{name: "verdict-close-then-data", verdict: true, rule: RuleClose, wire: func(_ testing.TB, f *forge) [][]byte {
			return [][]byte{f.close(), f.data("one")}
		}},
		{name: "verdict-close-after-a-rekey", verdict: true, rule: RuleControl, wire: func(t testing.TB, f *forge) [][]byte {
			return [][]byte{f.rekey(t), f.close()}
		}},
		{name: "verdict-other-status", verdict: true, rule: RuleControl, wire: func(_ testing.TB, f *forge) [][]byte {
			return [][]byte{f.record(typeControl, strings.Replace(controlOK, `"ok"`, `"accepted"`, 1))}
		}},
		{name: "verdict-with-a-space", verdict: true, rule: RuleControl, wire: func(_ testing.TB, f *forge) [][]byte {
			return [][]byte{f.record(typeControl, controlOK+" ")}
		}},
		{name: "verdict-bad-request", verdict: true, rule: RuleControl, wire: func(_ testing.TB, f *forge) [][]byte {
			return [][]byte{f.record(typeControl, container.BadRequest)}
		}},
		{name: "verdict-after-a-rekey", verdict: true, rule: RuleControl, wire: func(t testing.TB, f *forge) [][]byte {
			return [][]byte{f.rekey(t), f.record(typeControl, controlOK)}
		}},
		{name: "verdict-in-the-clear", verdict: true, err: ErrRejected, wire: func(testing.TB, *forge) [][]byte {
			return [][]byte{[]byte(container.BadRequest)}
		}},

		{name: "rekey", data: "beforeend", err: io.EOF, wire: func(t testing.TB, f *forge) [][]byte {
			return [][]byte{f.data("before"), f.rekey(t), f.data("end"), f.close()}
		}},
		{name: "rekey-padded", padding: block, data: "end", err: io.EOF, wire: rekeys(1, "")},
		{name: "rekey-each-record", data: strings.Repeat("x", 20) + "end", err: io.EOF, wire: rekeys(20, "x")},
		{name: "rekey-16-in-a-row", data: "end", err: io.EOF, wire: rekeys(16, "")},
		{name: "rekey-17-in-a-row", rule: RuleRekey, wire: rekeys(17, "")},
		{name: "rekey-without-the-next-key", rule: RuleNumber, wire: func(_ testing.TB, f *forge) [][]byte {
			return [][]byte{f.record(typeRekey, ""), f.data("old key")}
		}},
		{name: "rekey-old-key-number-0", rule: RuleOpen, wire: func(_ testing.TB, f *forge) [][]byte {
			first := f.record(typeRekey, "")
			f.keys.number = 0
			return [][]byte{first, f.data("old key")}
		}},
	}
}

// wireOf is the case's wire in a transform. The gzip member is made here, not
// by the library's writer.
func (c recordCase) wireOf(t testing.TB, transform, cipher string) ([]byte, *forge) {
	inner := transform
	if transform == TransformGzip {
		inner = TransformJSON
	}
	f := newForge(t, inner, cipher, c.padding).from(c.first)
	parts := c.wire(t, f)
	if transform == TransformGzip && c.err != ErrRejected {
		return gzipWire(parts...), f
	}
	return bytes.Join(parts, nil), f
}

func (c recordCase) check(data []byte, err error) error {
	switch {
	case string(data) != c.data:
		return errors.New("other data")
	case c.rule != "" && ruleOf(err) != c.rule, c.rule == "" && err != c.err:
		return err
	}
	return nil
}

func TestRecords(t *testing.T) {
	for _, c := range recordCases() {
		for _, transform := range []string{TransformJSON, TransformPacked, TransformGzip} {
			for _, cipher := range []string{cipherAES, cipherChaCha} {
				wire, f := c.wireOf(t, transform, cipher)
				data, err := reading{transform, cipher, c.padding, f.secret, f.first, c.verdict}.open(wire)
				if bad := c.check(data, err); bad != nil {
					t.Errorf("%s, %s, %s: %q and %v, want %q and %q %v", c.name, transform, cipher, data[:min(len(data), 99)], err, c.data[:min(len(c.data), 99)], c.rule, c.err)
				}
			}
		}
	}
}

// TestPackedLengths: a length out of bounds is seen at its first byte that
// cannot be right, and nothing of that size is ever awaited.
func TestPackedLengths(t *testing.T) {
	for _, c := range []struct {
		wire string
		rule Rule
	}{
		{"\x00\x00\x00\x00", RulePackedLength},
		{"\x00\x00\x00\x14", RulePackedLength},
		{"\x00\x00\x00\x15", ""},
		{"\x00\x01\x00\x10", ""},
		{"\x00\x01\x00\x11", RulePackedLength},
		{"\x00\x01\x01", RulePackedLength},
		{"\x00\x02", RulePackedLength},
		{"\x01", RulePackedLength},
		{"\xff", RulePackedLength},
		{"{", RulePackedLength},
	} {
		f := newForge(t, TransformPacked, cipherAES, 0)
		before := f.data("before")
		data, err := f.open(append(before, c.wire...), TransformPacked)
		if string(data) != "before" || ruleOf(err) != c.rule || c.rule == "" && err != ErrTruncated {
			t.Errorf("%x: %q, %v; want %q", c.wire, data, err, c.rule)
		}
	}
}

// TestRekeyAtTheRealLimit: a key seals 2^20 - 2 records, then a rekey; the
// records before are not made, only counted.
func TestRekeyAtTheRealLimit(t *testing.T) {
	for _, transform := range []string{TransformJSON, TransformPacked, TransformGzip} {
		i, r := pair(t, func(ic, rc *Config) { ic.Transform, rc.Transform = transform, transform })
		const start = maxRecords - 4
		r.rx.mu.Lock()
		i.tx.seal.keys.number, r.rx.open.keys.number = start, start
		r.rx.mu.Unlock()
		buf := make([]byte, 1)
		for k := range 5 {
			if _, err := i.Write([]byte{byte(k)}); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(reader(r, true), buf); err != nil || buf[0] != byte(k) {
				t.Fatal(buf, err)
			}
			want := uint64(0)
			if k >= 2 {
				want = 1
			}
			if out, in := i.Stats().RekeysOut, r.Stats().RekeysIn; out != want || in != want {
				t.Errorf("%s: after record %d: %d and %d rekeys, want %d", transform, start+k, out, in, want)
			}
		}
	}
}

// TestRekeyOfAnOldKey: an hour is enough, but only for a data record, and the
// next key has its own hour.
func TestRekeyOfAnOldKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i, r, _ := memSession(t, TransformPacked)
		send := func(want uint64) {
			t.Helper()
			for range 3 {
				if _, err := i.Write([]byte("x")); err != nil {
					t.Fatal(err)
				}
				if _, err := io.ReadFull(reader(r, true), make([]byte, 1)); err != nil {
					t.Fatal(err)
				}
			}
			if out, in := i.Stats().RekeysOut, r.Stats().RekeysIn; out != want || in != want {
				t.Fatalf("%d rekeys out and %d in, want %d", out, in, want)
			}
		}
		send(0)
		time.Sleep(maxKeyAge - time.Second)
		send(0)
		time.Sleep(time.Second)
		send(1)
		time.Sleep(maxKeyAge - time.Second)
		send(1)
		time.Sleep(time.Second)
		send(2)
		go io.Copy(io.Discard, i)
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		if n := r.Stats().RekeysOut; n != 0 {
			t.Errorf("%d rekeys before a close", n)
		}
	})
}

// TestRekeyAtTinyLimits: a limit that leaves no room for data under the same
// key changes it before each record.
func TestRekeyAtTinyLimits(t *testing.T) {
	for limit, want := range map[uint64]uint64{1: 5, 2: 5, 3: 4, 4: 2} {
		i, r, _ := memSession(t, TransformPacked)
		i.tx.seal.limit = limit
		for range 5 {
			if _, err := i.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(r, make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
		}
		if n := i.Stats().RekeysOut; n != want {
			t.Errorf("limit %d: %d rekeys, want %d", limit, n, want)
		}
	}
}

// TestPaddingHidesSizes: with padding, every record of up to a block has one
// length on the wire.
func TestPaddingHidesSizes(t *testing.T) {
	for _, transform := range []string{TransformJSON, TransformPacked} {
		sizes := map[int]bool{}
		f := newForge(t, transform, cipherAES, paddingBlock)
		for _, n := range []int{1, 2, 100, 5000, paddingBlock - recordHeader} {
			sizes[len(f.data(strings.Repeat("x", n)))] = true
		}
		sizes[len(f.close())] = true
		sizes[len(f.record(typeControl, controlOK))] = true
		if len(sizes) != 1 {
			t.Errorf("%s: %v", transform, sizes)
		}
	}
}

// TestKeyScheduleIsTheSpecs derives keys once more, from the text of SPEC.md
// section 4 and with HMAC alone.
func TestKeyScheduleIsTheSpecs(t *testing.T) {
	secret := [32]byte(seededBytes("schedule", 32))
	var got [][]byte
	k := keys{log: func(n int, key []byte) {
		if n != len(got) {
			t.Errorf("generation %d after %d", n, len(got))
		}
		got = append(got, bytes.Clone(key))
	}}
	first := secret
	if err := k.init(cipherChaCha, &first); err != nil {
		t.Fatal(err)
	}
	if first != [32]byte{} {
		t.Error("secret_0 is still there")
	}
	for range 3 {
		if err := k.advance(); err != nil {
			t.Fatal(err)
		}
	}
	next := secret[:]
	for n, key := range got {
		if want := hmacExpand(next, "sealane 1 key chacha20-poly1305"); !bytes.Equal(key, want) {
			t.Errorf("key %d is %x, want %x", n, key, want)
		}
		next = hmacExpand(next, "sealane 1 next")
	}
}

// hmacExpand is the first block of HKDF-Expand (RFC 5869 section 2.3).
func hmacExpand(secret []byte, info string) []byte {
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte(info + "\x01"))
	return mac.Sum(nil)
}

// inEach runs a benchmark of full records in the transforms whose cost is that
// of the records alone.
func inEach(b *testing.B, run func(b *testing.B, f *forge, transform string)) {
	for _, transform := range []string{TransformJSON, TransformPacked} {
		for _, cipher := range []string{cipherAES, cipherChaCha} {
			b.Run(transform+"/"+cipher, func(b *testing.B) {
				b.SetBytes(MaxBody)
				b.ReportAllocs()
				run(b, newForge(b, transform, cipher, 0), transform)
			})
		}
	}
}

func BenchmarkSeal(b *testing.B) {
	inEach(b, func(b *testing.B, f *forge, _ string) {
		buf := make([]byte, maxPlaintext+tagLen)
		var out []byte
		for b.Loop() {
			var err error
			if out, err = f.sealer.data(out[:0], buf, maxPlaintext); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkOpen reads the same records again and again.
func BenchmarkOpen(b *testing.B) {
	inEach(b, func(b *testing.B, f *forge, transform string) {
		const records = 32
		var wire []byte
		for range records {
			wire = append(wire, f.data(strings.Repeat("a", MaxBody))...)
		}
		src := readOnly{Reader: &ring{text: wire}}
		secret := f.secret
		var o opener
		if err := o.keys.init(f.cipher, &secret); err != nil {
			b.Fatal(err)
		}
		o.dec = newDecoder(transform, container.NewReader(src), src, false)
		for n := 0; b.Loop(); n++ {
			o.keys.number = uint64(n % records)
			o.dec.release()
			if _, _, err := o.next(); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// A ring gives the same text for ever.
type ring struct {
	text []byte
	at   int
}

func (r *ring) Read(p []byte) (int, error) {
	n := copy(p, r.text[r.at:])
	r.at = (r.at + n) % len(r.text)
	return n, nil
}
