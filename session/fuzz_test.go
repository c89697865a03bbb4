package session

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
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

// A fuzzedRole are the handshake vectors of one role, and the nodes that they are
// for: those differ in what they agree to, and have the same keys.
type fuzzedRole struct {
	vectors []*vector
	nodes   []*vector // the first vector of each node
	good    map[string][][]byte
}

func fuzzRole(f *testing.F, kind string) *fuzzedRole {
	r := &fuzzedRole{good: make(map[string][][]byte)}
	for _, v := range sorted(readVectors(f)) {
		if v.get("kind") != kind {
			continue
		}
		r.vectors = append(r.vectors, v)
		if r.nodeOf(v) == len(r.nodes) {
			r.nodes = append(r.nodes, v)
		}
		r.good[v.get("expect")] = append(r.good[v.get("expect")], v.wire)
	}
	return r
}

// nodeOf is the index of a vector's node, or one more than the last.
func (r *fuzzedRole) nodeOf(v *vector) int {
	i := slices.IndexFunc(r.nodes, func(w *vector) bool {
		for _, name := range []string{"offers-transform", "prefers-cipher", "wants-padding", "seen-ephemeral"} {
			if v.get(name) != w.get(name) {
				return false
			}
		}
		return true
	})
	if i < 0 {
		return len(r.nodes)
	}
	return i
}

// recorded tells whether the bytes begin as those of a vector that ends so.
func (r *fuzzedRole) recorded(expect string, wire []byte) bool {
	return slices.ContainsFunc(r.good[expect], func(good []byte) bool { return bytes.HasPrefix(wire, good) })
}

// forgeable are both ends of a node's handshake.
func (v *vector) forgeable() (ic, rc Config) {
	return nodes(v.get("offers-transform"), v.get("prefers-cipher"), int(v.number("wants-padding")))
}

// What bytes a fuzz target is given.
const (
	fuzzWire     = iota // all that comes
	fuzzPayload         // the payload of a message 1, or 2, that authenticates
	fuzzPayload3        // that of a message 3 behind a good message 1
	fuzzKinds
)

// forgeFirst makes a message 1, or 1 and 3, with a payload that authenticates.
func forgeFirst(t testing.TB, v *vector, kind byte, payload []byte) []byte {
	ic, rc := v.forgeable()
	initiator := forgeInitiator(t, ic, rc.Key.Public())
	if kind == fuzzPayload {
		return initiator.message1(t, append(payload, make([]byte, max(0, payload1Len-len(payload)))...)[:payload1Len])
	}
	one := initiator.honest1(t)
	return append(one, initiator.message3(t, forgeMessage2(t, rc, one, "", nil), payload)...)
}

// FuzzResponder: only a recorded initiator gets through, nobody gets more
// than one clear response, every refusal names a rule, and what follows a share
// is answered as if that share were anybody's.
func FuzzResponder(f *testing.F) {
	role := fuzzRole(f, "responder")
	ic, rc := role.nodes[0].forgeable()
	foreign := forgeInitiator(f, ic, newKey(f).Public()).honest1(f)
	ic, _ = role.nodes[0].forgeable()
	kemKey := forgeInitiator(f, ic, rc.Key.Public()).kem.EncapsulationKey().Bytes()
	addSeeds(f, func(add func(...any)) {
		for _, v := range role.vectors {
			add(byte(role.nodeOf(v)), byte(fuzzWire), v.wire)
		}
		add(byte(0), byte(fuzzWire), []byte(container.BadRequest))
		for n := range role.nodes {
			add(byte(n), byte(fuzzPayload), payload1(kemKey, offerBoth))
			add(byte(n), byte(fuzzPayload3), make([]byte, payload3Len))
		}
		add(byte(0), byte(fuzzPayload), payload1(nil, offerBoth))
	})
	decoys := seededDecoys("fuzz")
	respond := func(v *vector, wire ...[]byte) ([]byte, *Conn, error) {
		rc := v.responder(observation{})
		rc.Decoys = decoys
		return respondTo(rc, wire...)
	}
	f.Fuzz(func(t *testing.T, node, kind byte, wire []byte) {
		v := role.nodes[int(node)%len(role.nodes)]
		if kind %= fuzzKinds; kind != fuzzWire {
			if kind == fuzzPayload3 && len(wire) > 2*payload3Len {
				return
			}
			wire = forgeFirst(t, v, kind, wire)
		}
		answer, c, err := respond(v, wire)
		if c != nil {
			c.Abort(nil)
			if !role.recorded("accept", wire) {
				t.Fatalf("%x got through", wire)
			}
			return
		}
		if errors.As(err, new(*UnknownKeyError)) {
			if !role.recorded("not-found", wire) {
				t.Fatalf("%x proved to be somebody", wire)
			}
			return
		}
		ended := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, ErrRejected)
		if (ruleOf(err) == "") != ended {
			t.Fatalf("an end that says nothing: %v", err)
		}
		n := bytes.Count(answer, []byte(container.BadRequest))
		shared := strings.HasPrefix(sends(answer), "share")
		if n > 1 || n == 1 && ended || !shared && (n == 1) == ended {
			t.Fatalf("%d clear responses after %v", n, err)
		}
		if shared {
			other, _, _ := respond(v, foreign, wire[container.ShareTextLen:])
			if sends(other) != sends(answer) {
				t.Fatalf("answers %q, and after a foreign message 1 %q", sends(answer), sends(other))
			}
		}
	})
}

// FuzzInitiator is the same for the other role.
func FuzzInitiator(f *testing.F) {
	role := fuzzRole(f, "initiator")
	addSeeds(f, func(add func(...any)) {
		for _, v := range role.vectors {
			add(byte(role.nodeOf(v)), byte(fuzzWire), v.wire)
		}
		add(byte(0), byte(fuzzWire), []byte(container.BadRequest))
		for n := range role.nodes {
			add(byte(n), byte(fuzzPayload), []byte(choiceGood))
			add(byte(n), byte(fuzzPayload), []byte(choiceChaCha))
		}
	})
	f.Fuzz(func(t *testing.T, node, kind byte, wire []byte) {
		v := role.nodes[int(node)%len(role.nodes)]
		choice := ""
		if kind%fuzzPayload3 == fuzzPayload {
			if len(wire) == 0 || len(wire) > payload2Len {
				return
			}
			ic, rc := v.forgeable()
			one := forgeInitiator(t, ic, rc.Key.Public()).honest1(t)
			record0 := role.good["accept"][int(node)%len(role.good["accept"])][container.ShareTextLen:]
			choice = string(bytes.TrimRight(wire, "\x00"))
			wire = append(forgeMessage2(t, rc, one, string(wire), nil), record0...)
		}
		sent, c, err := initiateWith(v.initiator(observation{}), PublicKey(v.bytes("responder-public-key")), wire)
		if c != nil {
			c.Abort(nil)
			// A responder may choose what it likes of what was offered.
			agreed := fmt.Sprintf(`{"version":1,"cipher":%q,"transform":%q,"padding":%d,"ext":[]}`, c.Cipher(), c.Transform(), c.Padding())
			if choice != agreed && !role.recorded("accept", wire) {
				t.Fatalf("%x got through", wire)
			}
			return
		}
		if n := bytes.Count(sent, []byte(container.BadRequest)); n > 1 || n == 1 && ruleOf(err) == "" {
			t.Fatalf("%d clear responses after %v", n, err)
		}
	})
}
