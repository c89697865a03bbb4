package session

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/sealane/sealane/session/container"
)

// addSeeds adds what make yields, and fails if that is nothing.
func addSeeds(f *testing.F, make func(add func(...any))) {
	f.Helper()
	n := 0
	make(func(args ...any) { n++; f.Add(args...) })
	if n == 0 {
		f.Fatal("no seeds")
	}
}

// recordVectors are the published vectors of records that are not huge.
func recordVectors(f *testing.F) (some []*vector) {
	f.Helper()
	for _, v := range sorted(readVectors(f)) {
		if v.get("kind") == "records" && len(v.wire) < 20_000 {
			some = append(some, v)
		}
	}
	return some
}

// recordSeeds are the vectors of one transform.
func recordSeeds(f *testing.F, transform string) {
	addSeeds(f, func(add func(...any)) {
		for _, v := range recordVectors(f) {
			if v.get("transform") == transform {
				add(v.wire)
			}
		}
	})
}

// A sealedText is what a decoder makes of one record.
type sealedText struct {
	iv      [container.IVLen]byte
	payload []byte
}

// decodeAll takes records off wire until the decoder refuses, as many at a time
// as it lends.
func decodeAll(t *testing.T, transform string, wire []byte) (all []sealedText, err error) {
	src := bytes.NewReader(wire)
	d := newDecoder(transform, container.NewReader(src), src, false)
	var lent [][]byte
	for {
		if !d.complete() {
			for i, p := range lent {
				if was := all[len(all)-len(lent)+i].payload; !bytes.Equal(p, was) {
					t.Fatalf("%x became %x during its loan", was, p)
				}
			}
			lent = lent[:0]
			d.release()
		}
		var s sealedText
		p, err := d.next(&s.iv)
		if err != nil {
			return all, err
		}
		lent = append(lent, p)
		s.payload = bytes.Clone(p)
		all = append(all, s)
	}
}

// fuzzBijection: what a decoder took, written again, is what it was given.
func fuzzBijection(f *testing.F, transform string) {
	recordSeeds(f, transform)
	f.Fuzz(func(t *testing.T, wire []byte) {
		all, err := decodeAll(t, transform, wire)
		var again []byte
		for i := range all {
			again = newEncoder(transform).append(again, &all[i].iv, all[i].payload)
		}
		if !bytes.HasPrefix(wire, again) {
			t.Fatalf("%x was read as %x", wire, again)
		}
		if err == io.EOF && len(again) != len(wire) {
			t.Fatalf("%d of %d bytes make a clean end", len(again), len(wire))
		}
	})
}

func FuzzJSON(f *testing.F)   { fuzzBijection(f, TransformJSON) }
func FuzzPacked(f *testing.F) { fuzzBijection(f, TransformPacked) }

// FuzzGzip: what is taken is what the library's reader gives for the same
// bytes, and nothing else was in between.
func FuzzGzip(f *testing.F) {
	recordSeeds(f, TransformGzip)
	f.Fuzz(func(t *testing.T, wire []byte) {
		all, err := decodeAll(t, TransformGzip, wire)
		var again []byte
		for i := range all {
			again = container.AppendSealed(again, &all[i].iv, all[i].payload)
		}
		if err == nil {
			t.Fatal("an end without an error")
		}
		if len(all) == 0 {
			return
		}
		z, err := gzip.NewReader(bytes.NewReader(wire))
		if err != nil {
			t.Fatal(err)
		}
		inflated := make([]byte, len(again))
		if _, err := io.ReadFull(z, inflated); err != nil || !bytes.Equal(inflated, again) {
			t.Fatalf("%v: %q was read as %q", err, inflated, again)
		}
	})
}

// FuzzRecord seals any plaintext with the right key: it is taken only if a
// writer would have written it so.
func FuzzRecord(f *testing.F) {
	addSeeds(f, func(add func(...any)) {
		for _, padding := range []bool{false, true} {
			for _, typ := range []byte{typeData, typeControl, typeClose, typeRekey, 4} {
				for _, body := range []string{"", "x", controlOK, strings.Repeat("y", 9000)} {
					plain := header(typ, uint32(len(body)), body)
					if padding {
						plain = padded(plain, (len(plain)+paddingBlock-1)/paddingBlock*paddingBlock)
					}
					add(padding, plain)
				}
			}
		}
	})
	f.Fuzz(func(t *testing.T, padding bool, plain []byte) {
		if len(plain) < recordHeader || len(plain) > maxPlaintext {
			return
		}
		o := opener{}
		if padding {
			o.padding = paddingBlock
		}
		typ, body, err := o.parse(bytes.Clone(plain))
		if err != nil {
			if ruleOf(err) == "" {
				t.Fatalf("an error that names no rule: %v", err)
			}
			return
		}
		again := header(typ, uint32(len(body)), string(body))
		if padding {
			again = padded(again, (len(again)+paddingBlock-1)/paddingBlock*paddingBlock)
		}
		if !bytes.Equal(again, plain) || typ > typeRekey {
			t.Fatalf("%x was taken, a writer writes %x", plain, again)
		}
	})
}

// FuzzOpener gives a reader of records any wire, whole and cut in two: it ends
// with an error that means something, and whatever it delivers, the same both
// times, was sealed by the peer.
func FuzzOpener(f *testing.F) {
	transforms := []string{TransformJSON, TransformPacked, TransformGzip}
	addSeeds(f, func(add func(...any)) {
		for _, c := range recordCases() {
			for k, transform := range transforms {
				if wire, _ := c.wireOf(f, transform, cipherAES); len(wire) < 20_000 {
					add(byte(k), c.padding > 0, c.verdict, uint16(len(wire)/2), wire)
				}
			}
		}
		for _, v := range recordVectors(f) { // and those that are no record cases
			if v.get("cipher") == cipherAES && !strings.HasPrefix(v.name, "records-") {
				add(byte(slices.Index(transforms, v.get("transform"))), v.get("padding") != "0", false, uint16(len(v.wire)/2), v.wire)
			}
		}
	})
	secret := newForge(f, TransformJSON, cipherAES, 0).secret
	// What was ever sealed with the key, in any order that its numbers allow.
	honest := regexp.MustCompile(`^(one|two|three|before|end|last|too many|next key|old key|hi|1|x)*$`)
	f.Fuzz(func(t *testing.T, k byte, padding, verdict bool, cut uint16, wire []byte) {
		x := reading{transform: transforms[int(k)%3], cipher: cipherAES, secret: secret, verdict: verdict}
		if padding {
			x.padding = paddingBlock
		}
		data, err := x.open(wire)
		if again, _ := x.openAs(cutAt(wire, int(cut)), true); !bytes.Equal(again, data) {
			t.Fatalf("%q was delivered, and %q when it came in two pieces", data, again)
		}
		named := ruleOf(err) != ""
		if !named && err != io.EOF && err != ErrTruncated && err != ErrNotFound && err != ErrNoRoom && err != ErrRejected {
			t.Fatalf("an end that says nothing: %v", err)
		}
		if !honest.Match(data) {
			t.Fatalf("%q was delivered", data)
		}
	})
}

func FuzzOffer(f *testing.F) {
	addSeeds(f, func(add func(...any)) {
		for _, text := range badOffers() {
			add([]byte(text))
		}
		for _, text := range []string{offerBoth, offerChaCha, offerGrown} {
			add(append([]byte(text), 0, 0, 0))
		}
	})
	_, rc := seededConfigs("fuzz", TransformPacked, cipherAES)
	f.Fuzz(func(t *testing.T, b []byte) {
		o, err := parseOffer(b)
		if err != nil {
			if ruleOf(err) != RuleOffer {
				t.Fatal(err)
			}
			return
		}
		again := o.append(nil)
		if !bytes.HasPrefix(b, again) || bytes.Trim(b[len(again):], "\x00") != nil {
			t.Fatalf("%q was taken, a writer writes %q", b, again)
		}
		if c, err := rc.choose(o); err == nil {
			if _, err := parseChoice(c.append(nil), o); err != nil {
				t.Fatalf("the choice %q for %q is refused: %v", c.append(nil), again, err)
			}
		}
	})
}

func FuzzChoice(f *testing.F) {
	addSeeds(f, func(add func(...any)) {
		for _, text := range badChoices() {
			add([]byte(offerBoth), []byte(text))
		}
		add([]byte(offerBoth), []byte(choiceGood))
		add([]byte(offerChaCha), append([]byte(choiceChaCha), 0, 0))
		add([]byte(offerGrown), []byte(`{"version":1,"cipher":"aes-256-gcm","transform":"json","padding":0,"ext":["dh"]}`))
	})
	f.Fuzz(func(t *testing.T, offered, b []byte) {
		o, err := parseOffer(offered)
		if err != nil {
			return
		}
		c, err := parseChoice(b, o)
		if err != nil {
			if ruleOf(err) != RuleChoice {
				t.Fatal(err)
			}
			return
		}
		again := c.append(nil)
		if !bytes.HasPrefix(b, again) || bytes.Trim(b[len(again):], "\x00") != nil {
			t.Fatalf("%q was taken, a writer writes %q", b, again)
		}
	})
}

// FuzzResponder: only the recorded initiator gets through, nobody gets more
// than one clear response, every refusal names a rule, and what follows a share
// is answered as if that share were anybody's.
func FuzzResponder(f *testing.F) {
	ic, rc, texts, _ := messages(f, TransformJSON, cipherAES)
	good := append(bytes.Clone(texts[0]), texts[2]...)
	kemKey := forgeInitiator(f, ic(), rc().Key.Public()).kem.EncapsulationKey().Bytes()
	foreign := forgeInitiator(f, ic(), newKey(f).Public()).honest1(f)
	addSeeds(f, func(add func(...any)) {
		add(false, good)
		add(false, append(bytes.Clone(foreign), texts[2]...))
		add(false, texts[0])
		add(false, append(bytes.Clone(texts[0]), container.BadRequest...))
		add(false, []byte(container.BadRequest))
		for _, text := range badOffers() {
			add(true, payload1(kemKey, text))
		}
		add(true, payload1(kemKey, offerBoth))
		add(true, payload1(nil, offerBoth))
	})
	f.Fuzz(func(t *testing.T, sealed bool, wire []byte) {
		if sealed { // the payload of a message 1 that authenticates
			payload := make([]byte, payload1Len)
			copy(payload, wire)
			wire = forgeInitiator(t, ic(), rc().Key.Public()).message1(t, payload)
		}
		answer, c, err := respondTo(rc(), wire)
		if c != nil {
			c.Abort(nil)
			if !bytes.HasPrefix(wire, good) {
				t.Fatalf("%x got through", wire)
			}
			return
		}
		ended := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, ErrRejected)
		if (ruleOf(err) == "") != ended {
			t.Fatalf("an end that says nothing: %v", err)
		}
		n := bytes.Count(answer, []byte(container.BadRequest))
		shared := bytes.HasPrefix(answer, texts[1][:60])
		if n > 1 || n == 1 && ended || !shared && (n == 1) == ended {
			t.Fatalf("%d clear responses after %v", n, err)
		}
		if shared {
			other, _, _ := respondTo(rc(), foreign, wire[container.ShareTextLen:])
			if sends(other) != sends(answer) {
				t.Fatalf("answers %q, and after a foreign message 1 %q", sends(answer), sends(other))
			}
		}
	})
}

// FuzzInitiator is the same for the other role.
func FuzzInitiator(f *testing.F) {
	ic, rc, texts, record0 := messages(f, TransformJSON, cipherAES)
	good := append(bytes.Clone(texts[1]), record0...)
	peer := rc().Key.Public()
	addSeeds(f, func(add func(...any)) {
		add(false, good)
		add(false, texts[1])
		add(false, append(bytes.Clone(texts[1]), container.BadRequest...))
		add(false, []byte(container.BadRequest))
		for _, text := range badChoices() {
			add(true, []byte(text))
		}
		add(true, []byte(choiceGood))
	})
	f.Fuzz(func(t *testing.T, sealed bool, wire []byte) {
		if sealed { // the payload of a message 2 that authenticates
			if len(wire) == 0 || len(wire) > payload2Len {
				return
			}
			wire = append(forgeMessage2(t, rc(), texts[0], string(wire), nil), record0...)
		}
		sent, c, err := initiateWith(ic(), peer, wire)
		if c != nil {
			c.Abort(nil)
			if !bytes.HasPrefix(wire, good) {
				t.Fatalf("%x got through", wire)
			}
			return
		}
		if n := bytes.Count(sent, []byte(container.BadRequest)); n > 1 || n == 1 && ruleOf(err) == "" {
			t.Fatalf("%d clear responses after %v", n, err)
		}
	})
}
