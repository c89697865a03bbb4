package session

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/sealane/sealane/session/container"
)

// A vectorMaker collects vectors. Everything it makes depends on fixed seeds
// alone, and on no library whose output may change.
type vectorMaker struct {
	testing.TB
	all []*vector
}

// makeVectors makes all published vectors.
func makeVectors(t testing.TB) []*vector {
	m := &vectorMaker{TB: t}
	m.containers()
	m.responders()
	m.initiators()
	m.records()
	m.frames()
	return m.all
}

var slugs = strings.NewReplacer(" ", "-", ",", "", "'", "", "(", "", ")", "")

// add names a vector and, but for frames, completes it with what this
// implementation makes of it, which must be what the case wants.
func (m *vectorMaker) add(name, comment string, v *vector, wants observation) {
	m.Helper()
	v.name = slugs.Replace(strings.ToLower(name))
	head := []field{{"name", v.name}}
	if comment != "" {
		head = append(head, field{"comment", comment})
	}
	v.fields = append(head, v.fields...)
	if v.get("kind") != "frames" {
		o := v.observe()
		for key, want := range wants {
			if o[key] != want {
				m.Errorf("%s: %s is %q, want %q", v.name, key, o[key], want)
			}
		}
		wants = o
	}
	order := []string{"expect", "rule"}
	for _, key := range slices.Sorted(maps.Keys(wants)) {
		if !slices.Contains(order, key) {
			order = append(order, key)
		}
	}
	for _, key := range order {
		if wants[key] != "" {
			v.set(key, wants[key])
		}
	}
	m.all = append(m.all, v)
}

func fails(rule Rule) observation {
	return observation{"expect": "violation", "rule": string(rule)}
}

func ending(how string) observation { return observation{"expect": how} }

// containers are texts, one at a time.
func (m *vectorMaker) containers() {
	add := func(name, reads string, wire []byte, wants observation) {
		m.Helper()
		v := &vector{wire: wire}
		v.set("kind", "container")
		v.set("reads", reads)
		m.add("container-"+name, "", v, wants)
	}
	share := seededBytes("vectors share", container.ShareLen)
	shareText := container.AppendShare(nil, share)
	iv := [container.IVLen]byte{11: 7}
	sealed := func(n int) []byte { return container.AppendSealed(nil, &iv, seededBytes("vectors payload", n)) }
	record, third := sealed(50), sealed(message3Len)

	add("share", "share", shareText, ending("accept"))
	add("share-rejected", "share", []byte(container.BadRequest), ending("rejected"))
	add("share-short", "share", container.AppendShare(nil, share[1:]), fails(container.RuleLength))
	add("share-long", "share", container.AppendShare(nil, append(share[:len(share):len(share)], 0)), fails(container.RuleLength))
	add("share-spare-bits", "share", bytes.Replace(shareText, shareText[len(shareText)-4:], []byte(`B"}}`), 1), fails(container.RuleBase64))
	add("share-other-group", "share", bytes.Replace(shareText, []byte("X25519MLKEM768"), []byte("X25519MLKEM512"), 1), fails(container.RuleForm))
	add("share-cut", "share", shareText[:1000], ending("truncated"))
	add("share-nothing", "share", nil, ending("truncated"))
	add("share-is-a-record", "share", record, fails(container.RuleKind))
	add("message-3", "message-3", third, ending("accept"))
	add("message-3-rejected", "message-3", []byte(container.BadRequest), ending("rejected"))
	add("message-3-empty", "message-3", sealed(0), ending("accept"))
	add("message-3-longest", "message-3", sealed(container.MaxMessage3), ending("accept"))
	add("message-3-too-long", "message-3", sealed(container.MaxMessage3+1), fails(container.RuleLength))
	add("message-3-is-a-share", "message-3", shareText, fails(container.RuleKind))
	add("response-changed", "message-3", bytes.Replace([]byte(container.BadRequest), []byte("session"), []byte("Session"), 1), fails(container.RuleForm))
	add("response-other-status", "message-3", bytes.Replace([]byte(container.BadRequest), []byte("bad_request"), []byte("not_found"), 1), fails(container.RuleForm))
	add("first-record", "first-record", record, ending("accept"))
	add("first-record-rejected", "first-record", []byte(container.BadRequest), ending("rejected"))
	for _, n := range []int{container.MinPayload, container.MinPayload + 1, container.MinPayload + 2, 4096, container.MaxPayload} {
		add("record-"+strconv.Itoa(n), "record", sealed(n), ending("accept"))
	}
	add("record-below-the-least", "record", sealed(container.MinPayload-1), fails(container.RuleLength))
	add("record-above-the-most", "record", sealed(container.MaxPayload+1), fails(container.RuleLength))
	add("record-is-a-response", "record", []byte(container.BadRequest), fails(container.RuleKind))
	for _, n := range []int{1, len(`{"sdmp":{"version":"0.13","schemas":["`), 75, 90, 120, len(record) - 1} {
		add(fmt.Sprintf("record-cut-at-%d", n), "record", record[:n], ending("truncated"))
	}
	for _, s := range smugglings() {
		if wire := []byte(s.change(string(record))); len(wire) < 10_000 {
			add("smuggles "+s.name, "record", wire, fails(s.rule))
		}
	}
}

// Seeds of the nodes in handshake vectors.
const (
	seedInitiator = "vectors initiator"
	seedResponder = "vectors responder"
	seedNobody    = "vectors stranger"
)

// nodes are the two configs that the headers of handshake vectors describe.
func nodes(transform, prefers string, padding int) (ic, rc Config) {
	prefer := func() bool { return prefers == cipherChaCha }
	ic = Config{
		Key: seededKey(seedInitiator), Transform: transform, Padding: padding, preferChaCha: prefer,
		entropy: bytes.NewReader(append(seededBytes(seedInitiator+" kem", 64), seededBytes(seedInitiator+" ephemeral", 32)...)),
	}
	rc = Config{
		Key: seededKey(seedResponder), Transform: transform, Padding: padding, preferChaCha: prefer,
		entropy:     bytes.NewReader(seededBytes(seedResponder+" ephemeral", 32)),
		encapsulate: seededEncapsulation(seededBytes(seedResponder+" encapsulation", 32)),
		Authorize:   func(PublicKey) bool { return true },
		Decoys:      seededDecoys(seedResponder),
	}
	return ic, rc
}

// responder is a vector for the responding role.
func (m *vectorMaker) responder(name, comment string, cfg Config, wants observation, more []field, wire ...[]byte) {
	m.Helper()
	v := &vector{wire: bytes.Join(wire, nil)}
	known := seededKey(seedInitiator).Public()
	v.fields = append([]field{
		{"kind", "responder"},
		{"private-key", hex.EncodeToString(cfg.Key.key.Bytes())},
		{"ephemeral", hex.EncodeToString(seededBytes(seedResponder+" ephemeral", 32))},
		{"encapsulation", hex.EncodeToString(seededBytes(seedResponder+" encapsulation", 32))},
		{"initiator-public-key", hex.EncodeToString(known[:])},
		{"offers-transform", cfg.Transform}, {"prefers-cipher", cfg.ciphers()[0]}, {"wants-padding", strconv.Itoa(cfg.Padding)},
	}, more...)
	m.add("responder-"+name, comment, v, wants)
}

// handshake are the three texts and record 0 between two nodes.
func (m *vectorMaker) handshake(transform, prefers string, padding int) (text1, text2, text3, record0 []byte) {
	m.Helper()
	ic, rc := nodes(transform, prefers, padding)
	text1 = forgeInitiator(m, ic, rc.Key.Public()).honest1(m)
	text2 = forgeMessage2(m, rc, text1, "", nil)
	ic, rc = nodes(transform, prefers, padding)
	f := forgeInitiator(m, ic, rc.Key.Public())
	f.honest1(m)
	text3 = f.message3(m, text2, nil)
	_, rc = nodes(transform, prefers, padding)
	answer, c, err := respondTo(rc, text1, text3)
	if err != nil {
		m.Fatal(err)
	}
	c.Abort(nil)
	return text1, text2, text3, answer[len(text2):]
}

func (m *vectorMaker) responders() {
	plain := func() (ic, rc Config) { return nodes(TransformJSON, cipherAES, 0) }
	_, rc := plain()
	peer := rc.Key.Public()
	text1, _, text3, _ := m.handshake(TransformJSON, cipherAES, 0)
	_, text2, _, _ := m.handshake(TransformJSON, cipherAES, 0)

	for _, c := range []struct {
		transform, prefers string
		padding            int
	}{
		{TransformJSON, cipherAES, 0}, {TransformJSON, cipherChaCha, 0}, {TransformPacked, cipherAES, 0},
		{TransformGzip, cipherChaCha, 0}, {TransformPacked, cipherChaCha, paddingBlock},
	} {
		one, _, three, _ := m.handshake(c.transform, c.prefers, c.padding)
		_, rc := nodes(c.transform, c.prefers, c.padding)
		m.responder(fmt.Sprintf("accepts-%s-%s-%d", c.transform, c.prefers, c.padding), "", rc, ending("accept"), nil, one, three)
	}
	m.responder("message-1-alone", "the stream ends where message 3 belongs", rc, ending("truncated"), nil, text1)
	m.responder("message-1-cut", "", rc, ending("truncated"), nil, text1[:2000])
	m.responder("rejected", "the initiator did not like message 2", rc, ending("rejected"), nil, text1, []byte(container.BadRequest))
	m.responder("replayed", "the ephemeral of this message 1 was accepted before", rc, fails(RuleReplay),
		[]field{{"seen-ephemeral", hex.EncodeToString(share(m, text1)[:32])}}, text1, text3)
	m.responder("message-2-reflected", "", rc, fails(container.RuleKind), nil, text1, text2)

	ic, _ := plain()
	m.responder("message-1-for-another-key", "", rc, fails(RuleSeal), nil, forgeInitiator(m, ic, seededKey(seedNobody).Public()).honest1(m))
	flipped := share(m, text1)
	flipped[40] ^= 1
	m.responder("message-1-flipped", "", rc, fails(RuleSeal), nil, container.AppendShare(nil, flipped))

	for name, key := range sorted(badKeys(m)) {
		bad := share(m, text1)
		copy(bad, key[:])
		m.responder("ephemeral-"+name, "an ephemeral key of testdata/x25519.txt", rc, fails(RuleKey), nil, container.AppendShare(nil, bad))
	}
	m.staticKeys(text2)
	m.message1s(peer)
	m.message3s(text1, text3)
	m.payloads3(text1, text2)
	m.decoys(text1, text3)
}

// decoys are what follows a message 1 that was answered with one: the answers
// are those to the same texts after a good message 1 (message3s).
func (m *vectorMaker) decoys(text1, text3 []byte) {
	_, rc := nodes(TransformJSON, cipherAES, 0)
	ic, _ := nodes(TransformJSON, cipherAES, 0)
	foreign := forgeInitiator(m, ic, seededKey(seedNobody).Public()).honest1(m)
	sealed := func(n int) []byte { return container.AppendSealed(nil, new([container.IVLen]byte), make([]byte, n)) }
	flipped := share(m, text1)
	flipped[40] ^= 1
	share, answered := "share", "share response"
	for _, c := range []struct {
		name, sends string
		one, rest   []byte
	}{
		{"message-3", answered, foreign, text3},
		{"message-3-after-a-flipped-message-1", answered, container.AppendShare(nil, flipped), text3},
		{"empty", answered, foreign, sealed(0)},
		{"the-largest-text", answered, foreign, sealed(container.MaxMessage3)},
		{"one-byte-more", answered, foreign, sealed(container.MaxMessage3 + 1)},
		{"message-1-again", answered, foreign, foreign},
		{"newline", answered, foreign, []byte("\n")},
		{"response", share, foreign, []byte(container.BadRequest)},
		{"cut", share, foreign, text3[:200]},
	} {
		wants := fails(RuleSeal)
		wants["sends"] = c.sends
		m.responder("decoy-then-"+c.name, "the rule is message 1's", rc, wants, nil, c.one, c.rest)
	}
}

// payloads3 are message 3s that open and hold what they may not.
func (m *vectorMaker) payloads3(text1, text2 []byte) {
	_, rc := nodes(TransformJSON, cipherAES, 0)
	for _, c := range []struct {
		name, head string
		zeros      int
	}{
		{"claims", "\x00\x02{}", payload3Len - 4},
		{"a-claim-of-zeros", "\x00\x01", payload3Len - 2},
		{"not-zero-behind-the-length", "\x00\x00\x01", payload3Len - 3},
		{"not-zero-at-the-end", string(make([]byte, payload3Len-1)) + "\x01", 0},
		{"one-byte-less", "", payload3Len - 1}, {"one-byte-more", "", payload3Len + 1}, {"no-payload", "", 0},
	} {
		ic, _ := nodes(TransformJSON, cipherAES, 0)
		f := forgeInitiator(m, ic, rc.Key.Public())
		f.honest1(m)
		wants := fails(RuleClaims)
		wants["sends"] = "share response"
		m.responder("message-3-payload-"+c.name, "", rc, wants, nil, text1,
			f.message3(m, text2, append([]byte(c.head), make([]byte, c.zeros)...)))
	}
}

// sorted iterates over a map in the order of its keys.
func sorted[V any](all map[string]V) func(yield func(string, V) bool) {
	return func(yield func(string, V) bool) {
		for _, key := range slices.Sorted(maps.Keys(all)) {
			if !yield(key, all[key]) {
				return
			}
		}
	}
}

// staticKeys are initiators that claim keys which are not theirs.
func (m *vectorMaker) staticKeys(text2 []byte) {
	own := seededKey(seedInitiator).Public()
	alias := own
	alias[31] |= 0x80
	low := badKeys(m)["case 63 low-order"]
	other := seededKey(seedNobody).Public()
	for _, c := range []struct {
		name string
		key  PublicKey
		rule Rule
	}{
		{"with the high bit set", alias, RuleKey},
		{"of low order", low, RuleKey},
		{"of another node", other, RuleSeal},
	} {
		ic, rc := nodes(TransformJSON, cipherAES, 0)
		f := forgeInitiator(m, ic, rc.Key.Public())
		f.pretend(m, c.key[:])
		m.responder("static-key "+c.name, "", rc, fails(c.rule), nil, f.honest1(m), f.message3(m, text2, nil))
	}
	// A node that has the responder's own key, and one that the responder does not know.
	for name, c := range map[string]struct {
		key   *PrivateKey
		wants observation
	}{
		"own-key": {seededKey(seedResponder), fails(RuleKey)}, "unknown-key": {seededKey(seedNobody), ending("not-found")},
	} {
		ic, rc := nodes(TransformJSON, cipherAES, 0)
		ic.Key = c.key
		f := forgeInitiator(m, ic, rc.Key.Public())
		one := f.honest1(m)
		_, rc2 := nodes(TransformJSON, cipherAES, 0)
		m.responder(name, "", rc, c.wants, nil, one, f.message3(m, forgeMessage2(m, rc2, one, "", nil), nil))
	}
}

// message1s are malformed payloads of a message 1 that authenticates.
func (m *vectorMaker) message1s(peer PublicKey) {
	payload := func(change func(kem []byte, offer string) []byte) []byte {
		ic, _ := nodes(TransformPacked, cipherAES, 0)
		f := forgeInitiator(m, ic, peer)
		return f.message1(m, change(f.kem.EncapsulationKey().Bytes(), string(f.offer.append(nil))))
	}
	_, rc := nodes(TransformPacked, cipherAES, 0)
	for name, text := range sorted(badOffers()) {
		m.responder("offer "+name, "", rc, fails(RuleOffer), nil, payload(func(kem []byte, _ string) []byte { return payload1(kem, text) }))
	}
	for name, text := range map[string]string{
		"version":   strings.Replace(offerBoth, `[1]`, `[2,3]`, 1),
		"cipher":    strings.Replace(offerBoth, `["aes-256-gcm","chacha20-poly1305"]`, `["null","des"]`, 1),
		"transform": strings.Replace(offerBoth, `["packed","json"]`, `["gzip","brotli"]`, 1),
	} {
		m.responder("nothing-in-common-"+name, "", rc, fails(RuleCommon), nil, payload(func(kem []byte, _ string) []byte { return payload1(kem, text) }))
	}
	m.responder("offer-of-a-later-version", "what is not known is ignored; the stream ends after message 1", rc, ending("truncated"), nil,
		payload(func(kem []byte, _ string) []byte { return payload1(kem, offerGrown) }))
	for name, coefficient := range map[string]int{"first": 0, "last": 1149} {
		m.responder("kem-key-"+name+"-coefficient", "a coefficient of 4095 is not reduced modulo 3329", rc, fails(RuleKEM), nil,
			payload(func(kem []byte, offer string) []byte {
				kem[coefficient], kem[coefficient+1] = 0xff, 0xff
				return payload1(kem, offer)
			}))
	}
	m.responder("kem-key-all-ones", "", rc, fails(RuleKEM), nil, payload(func(kem []byte, offer string) []byte {
		return payload1(bytes.Repeat([]byte{0xff}, len(kem)), offer)
	}))
}

// message3s are what follows a good message 1.
func (m *vectorMaker) message3s(text1, text3 []byte) {
	_, rc := nodes(TransformJSON, cipherAES, 0)
	zeros := string(bytes.Repeat([]byte("A"), 16))
	flipped := bytes.Clone(text3)
	flipped[len(flipped)-40] ^= 1
	m.responder("message-3-iv", "", rc, fails(RulePlaceholder), nil, text1,
		bytes.Replace(text3, []byte(zeros), []byte(zeros[1:]+"B"), 1))
	m.responder("message-3-flipped", "", rc, fails(RuleSeal), nil, text1, flipped)
	m.responder("message-3-of-zeros", "", rc, fails(RuleSeal), nil, text1,
		container.AppendSealed(nil, new([container.IVLen]byte), make([]byte, message3Len)))
	m.responder("message-3-newline-before", "", rc, fails(container.RuleForm), nil, text1, []byte("\n"), text3)
	m.responder("message-3-cut", "", rc, ending("truncated"), nil, text1, text3[:150])
}

func (m *vectorMaker) initiators() {
	peer := seededKey(seedResponder).Public()
	add := func(name string, cfg Config, wants observation, wire ...[]byte) {
		m.Helper()
		v := &vector{wire: bytes.Join(wire, nil)}
		v.fields = []field{
			{"kind", "initiator"},
			{"private-key", hex.EncodeToString(cfg.Key.key.Bytes())},
			{"ephemeral", hex.EncodeToString(seededBytes(seedInitiator+" ephemeral", 32))},
			{"kem-seed", hex.EncodeToString(seededBytes(seedInitiator+" kem", 64))},
			{"responder-public-key", hex.EncodeToString(peer[:])},
			{"offers-transform", cfg.Transform}, {"prefers-cipher", cfg.ciphers()[0]}, {"wants-padding", strconv.Itoa(cfg.Padding)},
		}
		m.add("initiator-"+name, "", v, wants)
	}
	for _, c := range []struct {
		transform, prefers string
		padding            int
	}{{TransformJSON, cipherAES, 0}, {TransformJSON, cipherChaCha, 0}, {TransformPacked, cipherAES, 0}, {TransformPacked, cipherChaCha, paddingBlock}} {
		_, text2, _, record0 := m.handshake(c.transform, c.prefers, c.padding)
		ic, _ := nodes(c.transform, c.prefers, c.padding)
		add(fmt.Sprintf("accepts-%s-%s-%d", c.transform, c.prefers, c.padding), ic, ending("accept"), text2, record0)
	}
	text1, text2, _, record0 := m.handshake(TransformJSON, cipherAES, 0)
	ic, _ := nodes(TransformJSON, cipherAES, 0)
	flipped := func(at int) []byte {
		s := share(m, text2)
		s[at] ^= 1
		return container.AppendShare(nil, s)
	}
	spoiled := bytes.Clone(record0)
	spoiled[len(spoiled)-40] ^= 1
	add("rejected", ic, ending("rejected"), []byte(container.BadRequest))
	add("rejected-after-message-3", ic, ending("rejected"), text2, []byte(container.BadRequest))
	add("nothing", ic, ending("truncated"))
	add("message-2-alone", ic, ending("truncated"), text2)
	add("message-1-reflected", ic, ending("unopened"), text1)
	add("message-2-flipped-ciphertext", ic, ending("unopened"), flipped(5))
	add("message-2-flipped-payload", ic, ending("unopened"), flipped(kemCiphertextLen+40))
	_, rc := nodes(TransformJSON, cipherAES, 0)
	decoy, _, _ := respondTo(rc, forgeInitiator(m, ic, seededKey(seedNobody).Public()).honest1(m))
	ic, _ = nodes(TransformJSON, cipherAES, 0)
	add("decoy", ic, ending("unopened"), decoy)
	add("record-0-flipped", ic, fails(RuleOpen), text2, spoiled)
	add("record-0-newline-before", ic, fails(container.RuleForm), text2, []byte("\n"), record0)
	for _, name := range []string{"case 32 low-order", "case 64 low-order", "case 76 low-order non-canonical", "case 90 non-canonical", "case 99 non-canonical"} {
		bad, key := share(m, text2), badKeys(m)[name]
		copy(bad[kemCiphertextLen:], key[:])
		add("ephemeral-"+name, ic, fails(RuleKey), container.AppendShare(nil, bad))
	}
	for name, text := range sorted(badChoices()) {
		ic, rc := nodes(TransformPacked, cipherAES, 0)
		ic.Padding = paddingBlock
		text1 := forgeInitiator(m, ic, peer).honest1(m)
		ic, _ = nodes(TransformPacked, cipherAES, 0)
		ic.Padding = paddingBlock
		add("choice "+name, ic, fails(RuleChoice), forgeMessage2(m, rc, text1, text, nil))
	}
	ic, rc = nodes(TransformJSON, cipherChaCha, 0)
	text1 = forgeInitiator(m, ic, peer).honest1(m)
	ic, _ = nodes(TransformJSON, cipherChaCha, 0)
	add("choice-aes-though-chacha-was-first", ic, fails(RuleChoice),
		forgeMessage2(m, rc, text1, strings.Replace(strings.Replace(choiceGood, "packed", "json", 1), "8192", "0", 1), nil))
}

// records are one direction behind the handshake.
func (m *vectorMaker) records() {
	add := func(name, transform, cipher string, padding int, f *forge, from string, wire []byte, wants observation) {
		m.Helper()
		v := &vector{wire: wire}
		v.fields = []field{
			{"kind", "records"}, {"transform", transform}, {"cipher", cipher}, {"padding", strconv.Itoa(padding)},
			{"from", from}, {"secret", hex.EncodeToString(f.secret[:])}, {"first-number", strconv.FormatUint(f.first, 10)},
		}
		m.add(name, "", v, wants)
	}
	for _, c := range recordCases() {
		wants := verdict(c.err)
		if c.rule != "" {
			wants = fails(c.rule)
		} else if verdict(c.err)["expect"] == "truncated" && c.err != ErrTruncated {
			wants = ending("accept") // io.EOF: a sealed close
		}
		wants["data-sha256"] = hexSHA256([]byte(c.data))
		from := "initiator"
		if c.verdict {
			from = "responder"
		}
		large := c.padding > 0 || len(c.data) > 1000
		for _, k := range []struct{ transform, cipher string }{
			{TransformJSON, cipherAES}, {TransformPacked, cipherChaCha}, {TransformGzip, cipherAES},
		} {
			if large && k.transform != TransformPacked {
				continue
			}
			wire, f := c.wireOf(m, k.transform, k.cipher)
			add(fmt.Sprintf("records-%s-%s", k.transform, c.name), k.transform, k.cipher, c.padding, f, from, wire, wants)
		}
	}
	cases, f := gzipCases(m)
	for _, c := range cases {
		wants := ending("truncated")
		if c.rule != "" {
			wants = fails(c.rule)
		}
		add("gzip "+c.name, TransformGzip, cipherAES, 0, f, "initiator", c.wire, wants)
	}
	for _, n := range []uint32{0, 20, container.MaxPayload + 1, 1 << 24, 1<<32 - 1} {
		f := newForge(m, TransformPacked, cipherAES, 0)
		wire := binary.BigEndian.AppendUint32(f.data("before"), n)
		add(fmt.Sprintf("packed-length-%d", n), TransformPacked, cipherAES, 0, f, "initiator", wire, fails(RulePackedLength))
	}
	f = newForge(m, TransformPacked, cipherAES, 0)
	add("packed-is-a-text", TransformPacked, cipherAES, 0, f, "initiator", []byte(container.BadRequest), fails(RulePackedLength))
}

// A frameMaker writes stream frames (SPEC.md section 7), any of them.
type frameMaker []byte

func (f frameMaker) frame(kind byte, length int, body string) frameMaker {
	return append(append(f, kind, byte(length>>16), byte(length>>8), byte(length)), body...)
}

func (f frameMaker) put(kind byte, body string) frameMaker { return f.frame(kind, len(body), body) }

func (f frameMaker) end(total uint64) frameMaker {
	return f.put(4, string(binary.BigEndian.AppendUint64(nil, total)))
}

// frames are one direction of a stream. What package mux must make of them is
// said here and checked there.
func (m *vectorMaker) frames() {
	const open = `{"to":"postgres","from":"127.0.0.1:40000","via":"forward"}`
	var none frameMaker
	opened, accepted := none.put(1, open), none.put(2, "\x00")
	add := func(name, from string, wire frameMaker, how string, data string) {
		wants := observation{"expect": "accept", "ends": how, "data-sha256": hexSHA256([]byte(data))}
		if strings.HasPrefix(how, "frame-") {
			wants = fails(Rule(how))
			wants["data-sha256"] = hexSHA256([]byte(data))
		}
		v := &vector{wire: wire}
		v.fields = []field{{"kind", "frames"}, {"from", from}}
		m.add("frames-"+name, "", v, wants)
	}
	add("open-data-end", "opener", opened.put(3, "hello").put(3, " world").end(11), "end", "hello world")
	add("open-end", "opener", opened.end(0), "end", "")
	add("open-reset", "opener", opened.put(5, "\x01"), "reset 1", "")
	add("open-data-end-reset", "opener", opened.put(3, "x").end(1).put(5, "\x02"), "reset 2", "x")
	add("reset-of-a-later-version", "opener", opened.put(5, "\x63"), "reset 0", "")
	add("open-alone", "opener", opened, "truncated", "")
	add("open-data-no-end", "opener", opened.put(3, "lost"), "truncated", "lost")
	add("open-cut-in-data", "opener", opened.frame(3, 10, "12345"), "truncated", "12345")
	add("open-largest-data", "opener", opened.put(3, strings.Repeat("x", 65535)).end(65535), "end", strings.Repeat("x", 65535))
	add("open-to-ipv6", "opener", none.put(1, `{"to":"[2001:db8::1]:443","from":"[::1]:1","via":"transparent"}`).end(0), "end", "")
	add("open-from-unix", "opener", none.put(1, `{"to":"db.internal:5432","from":"","via":"socks5"}`).end(0), "end", "")
	add("opened-data-end", "accepter", accepted.put(3, "answer").end(6), "end", "answer")
	add("opened-refused", "accepter", none.put(2, "\x03connection refused"), "refused 3", "")
	add("opened-overloaded", "accepter", none.put(2, "\x07"), "refused 7", "")
	add("opened-reset", "accepter", accepted.put(5, "\x04"), "reset 4", "")

	add("type-0", "opener", none.put(0, open), "frame-type", "")
	add("type-6", "opener", opened.put(6, "x"), "frame-type", "")
	add("type-255", "accepter", accepted.put(255, ""), "frame-type", "")
	add("data-empty", "opener", opened.put(3, ""), "frame-length", "")
	add("data-too-long", "opener", opened.frame(3, 65536, ""), "frame-length", "")
	add("data-longest-field", "opener", opened.frame(3, 1<<24-1, ""), "frame-length", "")
	add("open-empty", "opener", none.frame(1, 0, ""), "frame-length", "")
	add("open-too-long", "opener", none.frame(1, 4097, ""), "frame-length", "")
	add("opened-empty", "accepter", none.put(2, ""), "frame-length", "")
	add("opened-too-long", "accepter", none.frame(2, 258, ""), "frame-length", "")
	add("end-short", "opener", opened.put(4, "1234567"), "frame-length", "")
	add("end-long", "opener", opened.put(4, "123456789"), "frame-length", "")
	add("reset-empty", "opener", opened.put(5, ""), "frame-length", "")
	add("reset-long", "opener", opened.put(5, "\x01\x01"), "frame-length", "")
	add("data-first", "opener", none.put(3, "x"), "frame-order", "")
	add("end-first", "opener", none.end(0), "frame-order", "")
	add("reset-first", "opener", none.put(5, "\x00"), "frame-order", "")
	add("opened-from-the-opener", "opener", none.put(2, "\x00"), "frame-order", "")
	add("open-from-the-accepter", "accepter", none.put(1, open), "frame-order", "")
	add("open-twice", "opener", opened.put(1, open), "frame-order", "")
	add("opened-twice", "accepter", accepted.put(2, "\x00"), "frame-order", "")
	add("data-after-end", "opener", opened.end(0).put(3, "x"), "frame-order", "")
	add("end-twice", "opener", opened.end(0).end(0), "frame-order", "")
	add("end-counts-too-few", "opener", opened.put(3, "abc").end(2), "frame-count", "abc")
	add("end-counts-too-many", "opener", opened.put(3, "abc").end(4), "frame-count", "abc")
	add("end-counts-without-data", "accepter", accepted.end(1), "frame-count", "")
	for name, text := range map[string]string{
		"space": strings.Replace(open, `,"from"`, `, "from"`, 1), "reordered": `{"from":"127.0.0.1:40000","to":"postgres","via":"forward"}`,
		"extra-key": strings.Replace(open, `}`, `,"x":0}`, 1), "duplicate-key": strings.Replace(open, `}`, `,"via":"forward"}`, 1),
		"case-folded-key": strings.Replace(open, `"to"`, `"To"`, 1), "escape": strings.Replace(open, `postgres`, `\u0070ostgres`, 1),
		"no-json": "postgres", "unknown-via": strings.Replace(open, "forward", "telnet", 1), "empty-to": strings.Replace(open, "postgres", "", 1),
		"capital-service": strings.Replace(open, "postgres", "Postgres", 1), "port-0": strings.Replace(open, "postgres", "db:0", 1),
		"port-too-large": strings.Replace(open, "postgres", "db:65536", 1), "zone": strings.Replace(open, "postgres", "[fe80::1%eth0]:1", 1),
		"from-a-name": strings.Replace(open, "127.0.0.1:40000", "localhost:1", 1),
	} {
		add("open-with-"+name, "opener", none.put(1, text), "frame-open", "")
	}
	add("opened-unknown-status", "accepter", none.put(2, "\x08"), "frame-opened", "")
	add("opened-with-a-newline", "accepter", none.put(2, "\x03two\nlines"), "frame-opened", "")
	add("opened-beyond-ascii", "accepter", none.put(2, "\x03\xc3\xa4"), "frame-opened", "")
	add("opened-delete", "accepter", none.put(2, "\x03\x7f"), "frame-opened", "")
}
