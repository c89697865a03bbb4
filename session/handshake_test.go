package session

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/sealane/sealane/session/container"
)

// messages is an honest handshake with fixed seeds, as texts.
func messages(t testing.TB, transform, cipher string) (ic, rc func() Config, texts [3][]byte, record0 []byte) {
	t.Helper()
	ic = func() Config { c, _ := seededConfigs("handshake", transform, cipher); return c }
	rc = func() Config { _, c := seededConfigs("handshake", transform, cipher); return c }
	a, b := memPair()
	tapped := &tap{Conn: a}
	e := shakeMem(tapped, b, ic(), rc(), time.Minute)
	if e.iErr != nil || e.rErr != nil {
		t.Fatal(e.iErr, e.rErr)
	}
	e.i.Abort(nil)
	e.r.Abort(nil)
	out, in := tapped.captured()
	texts[0], texts[2] = out[:container.ShareTextLen], out[container.ShareTextLen:]
	texts[1], record0 = in[:container.ShareTextLen], in[container.ShareTextLen:]
	return ic, rc, texts, record0
}

// share is the share inside a shared_key text.
func share(t testing.TB, text []byte) []byte {
	t.Helper()
	b, err := container.NewReader(bytes.NewReader(text)).Share(make([]byte, container.ShareLen))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestReplayedInitiatorToARestartedNode(t *testing.T) {
	_, rc, texts, _ := messages(t, TransformJSON, cipherAES)
	restarted := rc() // an empty replay cache, and entropy of its own
	restarted.entropy, restarted.encapsulate = nil, nil
	answer, c, err := respondTo(restarted, texts[0], texts[2])
	// The replayed message 3 does not fit the fresh message 2.
	wantRefused(t, answer, c, err, RuleSeal)
}

func TestReplayedResponder(t *testing.T) {
	ic, rc, texts, record0 := messages(t, TransformJSON, cipherAES)
	fresh := ic()
	fresh.entropy = nil
	sent, c, err := initiateWith(fresh, rc().Key.Public(), texts[1], record0)
	wantUnopened(t, sent, c, err)
}

func TestReflectedMessages(t *testing.T) {
	ic, rc, texts, _ := messages(t, TransformJSON, cipherAES)
	peer := rc().Key.Public()
	t.Run("message 1 to the initiator", func(t *testing.T) {
		sent, c, err := initiateWith(ic(), peer, texts[0])
		if ruleOf(err) != RuleKey { // 32 bytes of its encapsulation key as an ephemeral
			wantUnopened(t, sent, c, err)
		}
	})
	t.Run("message 2 to the responder", func(t *testing.T) {
		answer, c, err := respondTo(rc(), texts[0], texts[1])
		wantRefused(t, answer, c, err, container.RuleKind)
	})
	t.Run("message 3 to the initiator", func(t *testing.T) {
		_, c, err := initiateWith(ic(), peer, texts[1], texts[2])
		if c != nil || ruleOf(err) != RuleOpen {
			t.Errorf("%v, want a violation of %s", err, RuleOpen)
		}
	})
}

func TestMessage1ForAnotherKey(t *testing.T) {
	ic, rc := seededConfigs("another", TransformJSON, cipherAES)
	text := forgeInitiator(t, ic, seededKey("somebody else").Public()).honest1(t)
	answer, c, err := respondTo(rc, text)
	wantDecoy(t, answer, c, err, RuleSeal, "")
}

func TestKeysThatNoNodeHas(t *testing.T) {
	ic, rc, texts, _ := messages(t, TransformJSON, cipherAES)
	peer := rc().Key.Public()
	for name, key := range badKeys(t) {
		t.Run(name, func(t *testing.T) {
			if _, err := ParsePublicKey(key.String()); err == nil {
				t.Error("ParsePublicKey accepts it")
			}
			if _, _, err := initiateWith(ic(), key); err == nil || ruleOf(err) != "" {
				t.Errorf("dialing it: %v", err)
			}
			bad := share(t, texts[0])
			copy(bad, key[:])
			answer, c, err := respondTo(rc(), container.AppendShare(nil, bad))
			wantDecoy(t, answer, c, err, RuleKey, "")

			bad = share(t, texts[1])
			copy(bad[kemCiphertextLen:], key[:])
			sent, c, err := initiateWith(ic(), peer, container.AppendShare(nil, bad))
			if c != nil || ruleOf(err) != RuleKey || len(sent) != container.ShareTextLen {
				t.Errorf("%v after %d bytes, want a violation of %s and no answer", err, len(sent), RuleKey)
			}

			// As a static key nobody can authenticate with it, but for its low order.
			f := forgeInitiator(t, ic(), peer)
			f.pretend(t, key[:])
			answer, c, err = respondTo(rc(), f.honest1(t), f.message3(t, texts[1], nil))
			want := RuleSeal
			if strings.Contains(name, "low-order") {
				want = RuleKey
			}
			wantRefused(t, answer, c, err, want)
		})
	}
}

// TestTwoNamesForOneKey: a static key with its high bit set works in the
// exchange like the one without, and would be a second name for it.
func TestTwoNamesForOneKey(t *testing.T) {
	ic, rc, texts, _ := messages(t, TransformJSON, cipherAES)
	f := forgeInitiator(t, ic(), rc().Key.Public())
	alias := ic().Key.Public()
	alias[31] |= 0x80
	f.pretend(t, alias[:])
	open := rc()
	open.Authorize = func(PublicKey) bool { t.Error("was asked"); return true }
	answer, c, err := respondTo(open, f.honest1(t), f.message3(t, texts[1], nil))
	wantRefused(t, answer, c, err, RuleKey)
}

func TestMalformedKEMKeys(t *testing.T) {
	ic, rc := seededConfigs("kem", TransformJSON, cipherAES)
	honest := forgeInitiator(t, ic, rc.Key.Public())
	good := honest.kem.EncapsulationKey().Bytes()
	text := string(honest.offer.append(nil))
	for name, change := range map[string]func(b []byte){
		"first coefficient q":          func(b []byte) { b[0], b[1] = 0x01, b[1]&0xf0|0x0d }, // 3329
		"first coefficient 4095":       func(b []byte) { b[0], b[1] = 0xff, b[1]|0x0f },
		"last coefficient of t 4095":   func(b []byte) { b[1150], b[1151] = b[1150]|0xf0, 0xff },
		"all ones":                     func(b []byte) { copy(b, bytes.Repeat([]byte{0xff}, len(b))) },
		"a middle coefficient too big": func(b []byte) { b[600], b[601] = 0xff, b[601]|0x0f },
	} {
		t.Run(name, func(t *testing.T) {
			ic, rc := seededConfigs("kem", TransformJSON, cipherAES)
			key := bytes.Clone(good)
			change(key)
			answer, c, err := respondTo(rc, forgeInitiator(t, ic, rc.Key.Public()).message1(t, payload1(key, text)))
			wantDecoy(t, answer, c, err, RuleKEM, "")
		})
	}
}

// TestForeignKEMKey: a well-formed encapsulation key that is not the
// initiator's gives a PSK that it does not have.
func TestForeignKEMKey(t *testing.T) {
	ic, rc := seededConfigs("kem", TransformJSON, cipherAES)
	other, _ := seededConfigs("other kem", TransformJSON, cipherAES)
	foreign := forgeInitiator(t, other, rc.Key.Public()).kem.EncapsulationKey().Bytes()
	f := forgeInitiator(t, ic, rc.Key.Public())
	text1 := f.message1(t, payload1(foreign, string(f.offer.append(nil))))
	text2 := forgeMessage2(t, rc, text1, "", nil)
	if _, err := f.openMessage2(share(t, text2), f.kem); !errors.Is(err, ErrUnopened) {
		t.Errorf("%v, want %v", err, ErrUnopened)
	}
}

func TestMalformedKEMCiphertexts(t *testing.T) {
	ic, rc, texts, _ := messages(t, TransformJSON, cipherAES)
	for name, change := range map[string]func(share []byte){
		"one bit of u": func(s []byte) { s[10] ^= 1 },
		"one bit of v": func(s []byte) { s[kemCiphertextLen-1] ^= 0x80 },
		"zeros":        func(s []byte) { clear(s[:kemCiphertextLen]) },
		"ones":         func(s []byte) { copy(s, bytes.Repeat([]byte{0xff}, kemCiphertextLen)) },
		"another's": func(s []byte) {
			shared, ciphertext := seededEncapsulation(make([]byte, 32))(forgeInitiator(t, ic(), rc().Key.Public()).kem.EncapsulationKey())
			clear(shared)
			copy(s, ciphertext)
		},
	} {
		t.Run(name, func(t *testing.T) {
			// ML-KEM rejects implicitly: another shared secret, so another PSK.
			sent, c, err := initiateWith(ic(), rc().Key.Public(), forgeMessage2(t, rc(), texts[0], "", change))
			wantUnopened(t, sent, c, err)
		})
	}
}

const (
	offerBoth    = `{"versions":[1],"ciphers":["aes-256-gcm","chacha20-poly1305"],"transforms":["packed","json"],"padding":8192,"ext":[]}`
	offerChaCha  = `{"versions":[1],"ciphers":["chacha20-poly1305","aes-256-gcm"],"transforms":["packed","json"],"padding":8192,"ext":[]}`
	offerGrown   = `{"versions":[2,1],"ciphers":["new-cipher","aes-256-gcm"],"transforms":["quic=1.0","json"],"padding":0,"ext":["dh","resume"]}`
	choiceGood   = `{"version":1,"cipher":"aes-256-gcm","transform":"packed","padding":8192,"ext":[]}`
	choiceChaCha = `{"version":1,"cipher":"chacha20-poly1305","transform":"packed","padding":8192,"ext":[]}`
)

// badOffers are offers that no writer produces.
func badOffers() map[string]string {
	replace := func(old, new string) string {
		if !strings.Contains(offerBoth, old) {
			panic(old)
		}
		return strings.Replace(offerBoth, old, new, 1)
	}
	names := func(n int) string {
		list := make([]string, n)
		for i := range list {
			list[i] = fmt.Sprintf(`"x%d"`, i)
		}
		return strings.Join(list, ",")
	}
	return map[string]string{
		"empty":                "",
		"not JSON":             "offer",
		"null":                 "null",
		"a list":               "[]",
		"space":                replace(`,"padding"`, `, "padding"`),
		"newline at the end":   offerBoth + "\n",
		"text behind zeros":    offerBoth + "\x00\x00x",
		"a second offer":       offerBoth + "\x00" + offerBoth,
		"an extra key":         replace(`"ext":[]`, `"ext":[],"more":0`),
		"a duplicate key":      replace(`"ext":[]`, `"ext":[],"ext":[]`),
		"case-folded key":      replace(`"padding"`, `"Padding"`),
		"escaped key":          replace(`"padding"`, `"\u0070adding"`),
		"escaped value":        replace(`"packed"`, `"\u0070acked"`),
		"reordered":            replace(`"padding":8192,"ext":[]`, `"ext":[],"padding":8192`),
		"a missing key":        replace(`,"ext":[]`, ``),
		"null for a list":      replace(`"ext":[]`, `"ext":null`),
		"padding as text":      replace(`8192`, `"8192"`),
		"padding as float":     replace(`8192`, `8192.0`),
		"padding as exponent":  replace(`8192`, `8192e0`),
		"padding 1":            replace(`8192`, `1`),
		"padding negative":     replace(`8192`, `-8192`),
		"padding minus zero":   replace(`8192`, `-0`),
		"padding huge":         replace(`8192`, `99999999999999999999`),
		"version zero":         replace(`[1]`, `[0]`),
		"version twice":        replace(`[1]`, `[1,1]`),
		"version with zeros":   replace(`[1]`, `[01]`),
		"cipher twice":         replace(`"aes-256-gcm",`, `"aes-256-gcm","aes-256-gcm",`),
		"transform twice":      replace(`"packed",`, `"packed","packed",`),
		"transform in capital": replace(`"packed"`, `"Packed"`),
		"an empty name":        replace(`"packed"`, `""`),
		"a long name":          replace(`"packed"`, `"`+strings.Repeat("x", 65)+`"`),
		"ext twice":            replace(`[]}`, `["dh","dh"]}`),
		"ext with a space":     replace(`[]}`, `["d h"]}`),
		"ext with a quote":     replace(`[]}`, `["d\"h"]}`),
		"ext not ASCII":        replace(`[]}`, `["dü"]}`),
		"17 ext":               replace(`[]}`, `[`+names(17)+`]}`),
		"not UTF-8":            replace(`"packed"`, "\"pack\xffed\""),
	}
}

func TestMalformedOffers(t *testing.T) {
	for name, text := range badOffers() {
		t.Run(name, func(t *testing.T) {
			ic, rc := seededConfigs("offer", TransformPacked, cipherAES)
			f := forgeInitiator(t, ic, rc.Key.Public())
			answer, c, err := respondTo(rc, f.message1(t, payload1(f.kem.EncapsulationKey().Bytes(), text)))
			wantDecoy(t, answer, c, err, RuleOffer, "")
		})
	}
}

func TestNothingInCommon(t *testing.T) {
	for name, text := range map[string]string{
		"version":      strings.Replace(offerBoth, `[1]`, `[2,3]`, 1),
		"no version":   strings.Replace(offerBoth, `[1]`, `[]`, 1),
		"cipher":       strings.Replace(offerBoth, `["aes-256-gcm","chacha20-poly1305"]`, `["null","des"]`, 1),
		"no cipher":    strings.Replace(offerBoth, `["aes-256-gcm","chacha20-poly1305"]`, `[]`, 1),
		"transform":    strings.Replace(offerBoth, `["packed","json"]`, `["gzip","brotli"]`, 1),
		"no transform": strings.Replace(offerBoth, `["packed","json"]`, `[]`, 1),
	} {
		t.Run(name, func(t *testing.T) {
			ic, rc := seededConfigs("offer", TransformPacked, cipherAES)
			f := forgeInitiator(t, ic, rc.Key.Public())
			answer, c, err := respondTo(rc, f.message1(t, payload1(f.kem.EncapsulationKey().Bytes(), text)))
			wantDecoy(t, answer, c, err, RuleCommon, "")
		})
	}
}

// TestRoomToGrow: what a later version offers beside version 1 is ignored.
func TestRoomToGrow(t *testing.T) {
	_, rc := seededConfigs("offer", TransformPacked, cipherAES)
	full := `{"versions":[2,1],"ciphers":["aes-256-gcm"],"transforms":["json"],"padding":0,"ext":[` +
		strings.TrimSuffix(strings.Repeat(`"`+strings.Repeat("x", 41)+`%c",`, 16), ",") + `]}`
	letters := make([]any, 16)
	for i := range letters {
		letters[i] = 'a' + i
	}
	for _, text := range []string{offerGrown, fmt.Sprintf(full, letters...)} {
		o, err := parseOffer([]byte(text + strings.Repeat("\x00", payload1Len-kemKeyLen-len(text))))
		if err != nil {
			t.Fatal(err)
		}
		c, err := rc.choose(o)
		if err != nil || string(c.append(nil)) != `{"version":1,"cipher":"aes-256-gcm","transform":"json","padding":0,"ext":[]}` {
			t.Errorf("%+v, %v", c, err)
		}
	}
}

// badChoices are answers to offerBoth that a lying or broken responder gives.
func badChoices() map[string]string {
	replace := func(old, new string) string {
		if !strings.Contains(choiceGood, old) {
			panic(old)
		}
		return strings.Replace(choiceGood, old, new, 1)
	}
	return map[string]string{
		"a transform that was not offered": replace("packed", "gzip"),
		"an unknown transform":             replace("packed", "plain"),
		"no transform":                     replace("packed", ""),
		"a cipher that was not offered":    replace("aes-256-gcm", "aes-128-gcm"),
		"no cipher":                        replace("aes-256-gcm", ""),
		"less padding":                     replace("8192", "0"),
		"odd padding":                      replace("8192", "8193"),
		"more padding":                     replace("8192", "16384"),
		"negative padding":                 replace("8192", "-1"),
		"another version":                  replace(`"version":1`, `"version":2`),
		"version zero":                     replace(`"version":1`, `"version":0`),
		"an ext that was not offered":      replace(`[]}`, `["dh"]}`),
		"empty":                            "\x00",
		"null":                             "null",
		"space":                            replace(`,"padding"`, ` ,"padding"`),
		"reordered":                        replace(`"padding":8192,"ext":[]`, `"ext":[],"padding":8192`),
		"an extra key":                     replace(`[]}`, `[],"a":1}`),
		"a duplicate key":                  replace(`[]}`, `[],"ext":[]}`),
		"case-folded key":                  replace(`"cipher"`, `"Cipher"`),
		"text behind zeros":                choiceGood + "\x00.",
	}
}

func TestLyingResponder(t *testing.T) {
	for name, text := range badChoices() {
		t.Run(name, func(t *testing.T) {
			ic, rc := seededConfigs("choice", TransformPacked, cipherAES)
			ic.Padding = paddingBlock
			_, rc2 := seededConfigs("choice", TransformPacked, cipherAES)
			lie := forgeMessage2(t, rc2, forgeInitiator(t, seededInitiator("choice", paddingBlock), rc.Key.Public()).honest1(t), text, nil)
			sent, c, err := initiateWith(ic, rc.Key.Public(), lie)
			wantRefused(t, sent, c, err, RuleChoice)
		})
	}
}

func seededInitiator(name string, padding int) Config {
	ic, _ := seededConfigs(name, TransformPacked, cipherAES)
	ic.Padding = padding
	return ic
}

// TestCipherDowngradeByALyingResponder: an initiator without AES instructions
// puts ChaCha20-Poly1305 first, and that is decisive.
func TestCipherDowngradeByALyingResponder(t *testing.T) {
	var o offer
	for text, want := range map[string]Rule{choiceGood: RuleChoice, choiceChaCha: ""} {
		parsed, err := parseOffer([]byte(offerChaCha))
		if err != nil {
			t.Fatal(err)
		}
		o = *parsed
		if _, err := parseChoice([]byte(text), &o); ruleOf(err) != want {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}

// TestDowngradeByAMiddle knows the plaintext of the offer and of the choice
// and turns it, bit by bit, into a weaker one of the same length.
func TestDowngradeByAMiddle(t *testing.T) {
	ic, rc := seededConfigs("downgrade", TransformPacked, cipherAES)
	ic.Padding, rc.Padding = paddingBlock, paddingBlock
	a, b := memPair()
	tapped := &tap{Conn: a}
	e := shakeMem(tapped, b, ic, rc, time.Minute)
	if e.iErr != nil || e.rErr != nil {
		t.Fatal(e.iErr, e.rErr)
	}
	e.i.Abort(nil)
	e.r.Abort(nil)
	out, in := tapped.captured()
	text1, text2 := out[:container.ShareTextLen], in[:container.ShareTextLen]
	flip := func(text []byte, at int, from, to string) []byte {
		s := share(t, text)
		for i := range from {
			s[at+i] ^= from[i] ^ to[i]
		}
		return container.AppendShare(nil, s)
	}
	same := func(old, text, new string) string {
		weaker := strings.Replace(text, old, new, 1)
		if weaker == text || len(weaker) != len(text) {
			t.Fatal(weaker)
		}
		return weaker
	}
	for name, weaker := range map[string]string{
		"padding":   same("8192,", offerBoth, "0   ,"),
		"cipher":    same(`"aes-256-gcm"`, offerBoth, `"aes-000-gcm"`),
		"transform": same(`"packed"`, offerBoth, `"qacked"`),
		"version":   same(`[1]`, offerBoth, `[0]`),
	} {
		t.Run("offer, "+name, func(t *testing.T) {
			_, rc := seededConfigs("downgrade", TransformPacked, cipherAES)
			answer, c, err := respondTo(rc, flip(text1, 32+kemKeyLen, offerBoth, weaker))
			wantDecoy(t, answer, c, err, RuleSeal, "")
		})
	}
	for name, weaker := range map[string]string{
		"padding":   same("8192,", choiceGood, "0   ,"),
		"cipher":    same(`"aes-256-gcm"`, choiceGood, `"aes-000-gcm"`),
		"transform": same(`"packed"`, choiceGood, `"qacked"`),
		"version":   same(`n":1`, choiceGood, `n":0`),
	} {
		t.Run("choice, "+name, func(t *testing.T) {
			sent, c, err := initiateWith(seededInitiator("downgrade", paddingBlock), rc.Key.Public(),
				flip(text2, kemCiphertextLen+32, choiceGood, weaker))
			wantUnopened(t, sent, c, err)
		})
	}
}

// TestMessage3 is what a peer that got so far can still spoil.
func TestMessage3(t *testing.T) {
	ic, rc, texts, _ := messages(t, TransformJSON, cipherAES)
	iv := bytes.Replace(texts[2], []byte(`"iv":"AAAAAAAAAAAAAAAA"`), []byte(`"iv":"AAAAAAAAAAAAAAAB"`), 1)
	sealed := func(n int) []byte {
		return container.AppendSealed(nil, new([container.IVLen]byte), make([]byte, n))
	}
	payload := func(head string, zeros int) []byte {
		f := forgeInitiator(t, ic(), rc().Key.Public())
		f.honest1(t)
		return f.message3(t, texts[1], append([]byte(head), make([]byte, zeros)...))
	}
	for name, c := range map[string]struct {
		text []byte
		rule Rule
	}{
		"iv not zero":         {iv, RulePlaceholder},
		"a byte more":         {payload("", payload3Len+1), RuleClaims},
		"a byte less":         {payload("", payload3Len-1), RuleClaims},
		"no payload":          {payload("", 0), RuleClaims},
		"claims":              {payload("\x00\x02{}", payload3Len-4), RuleClaims},
		"a claim of zeros":    {payload("\x00\x01", payload3Len-2), RuleClaims},
		"behind the length":   {payload("\x00\x00{}", payload3Len-4), RuleClaims},
		"at the end":          {payload(string(make([]byte, payload3Len-1))+"x", 0), RuleClaims},
		"empty":               {sealed(0), RuleClaims},
		"the largest text":    {sealed(container.MaxMessage3), RuleClaims},
		"one beyond":          {sealed(container.MaxMessage3 + 1), container.RuleLength},
		"another's":           {sealed(message3Len), RuleSeal},
		"message 1 once more": {texts[0], container.RuleKind},
	} {
		t.Run(name, func(t *testing.T) {
			answer, conn, err := respondTo(rc(), texts[0], c.text)
			wantRefused(t, answer, conn, err, c.rule)
		})
	}
	t.Run("the response is not answered", func(t *testing.T) {
		answer, c, err := respondTo(rc(), texts[0], []byte(container.BadRequest))
		if c != nil || !errors.Is(err, ErrRejected) || !bytes.Equal(answer, texts[1]) {
			t.Errorf("%v after %d bytes", err, len(answer))
		}
	})
}

// TestRecord0 is what the initiator finds where the verdict belongs. It is
// never answered in the clear: the peer expects records.
func TestRecord0(t *testing.T) {
	ic, rc, texts, record0 := messages(t, TransformJSON, cipherAES)
	flipped := bytes.Clone(record0)
	flipped[150] ^= 1
	for name, c := range map[string]struct {
		wire []byte
		want func(error) bool
	}{
		"the clear response": {[]byte(container.BadRequest), func(err error) bool { return errors.Is(err, ErrRejected) }},
		"a response that is not constant": {
			[]byte(strings.Replace(container.BadRequest, "bad_request", "bad_requesu", 1)),
			func(err error) bool { return ruleOf(err) == container.RuleForm },
		},
		"flipped":     {flipped, func(err error) bool { return ruleOf(err) == RuleOpen }},
		"nothing":     {nil, func(err error) bool { return errors.Is(err, ErrTruncated) }},
		"half of it":  {record0[:99], func(err error) bool { return errors.Is(err, ErrTruncated) }},
		"a share":     {texts[1], func(err error) bool { return ruleOf(err) == container.RuleKind }},
		"cut in iv":   {record0[:75], func(err error) bool { return errors.Is(err, ErrTruncated) }},
		"not base64":  {bytes.Replace(record0, []byte(`"payload":"`), []byte(`"payload":"!`), 1), func(err error) bool { return ruleOf(err) == container.RuleBase64 }},
		"a line feed": {append([]byte("\n"), record0...), func(err error) bool { return ruleOf(err) == container.RuleForm }},
	} {
		t.Run(name, func(t *testing.T) {
			sent, conn, err := initiateWith(ic(), rc().Key.Public(), texts[1], c.wire)
			if conn != nil || !c.want(err) {
				t.Errorf("%v", err)
			}
			if !bytes.Equal(sent, append(bytes.Clone(texts[0]), texts[2]...)) {
				t.Errorf("sent %d bytes", len(sent))
			}
		})
	}
}

// TestConstantLengths: whatever two nodes are configured to, their handshake
// messages have the same lengths and the same clear bytes.
func TestConstantLengths(t *testing.T) {
	var clear string
	for _, transform := range []string{TransformJSON, TransformPacked, TransformGzip} {
		for _, cipher := range []string{cipherAES, cipherChaCha} {
			_, _, texts, _ := messages(t, transform, cipher)
			var got string
			for _, text := range texts {
				got += fmt.Sprintf("%d %s %s\n", len(text), text[:70], text[len(text)-3:])
			}
			if clear == "" {
				clear = got
			}
			if got != clear {
				t.Errorf("%s, %s:\n%swant\n%s", transform, cipher, got, clear)
			}
		}
	}
}

// TestSilentPeers: a stranger that sends
// nothing, or byte by byte, ends with its deadline and is told nothing.
func TestSilentPeers(t *testing.T) {
	for name, wire := range map[string]string{"silent": "", "half a text": `{"sdmp":{"version":"0.13","schemas":["shared_key"]}`} {
		a, b := memPair()
		io.WriteString(a, wire)
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
		_, rc := seededConfigs("silent", TransformJSON, cipherAES)
		_, err := Respond(ctx, b, rc)
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: %v", name, err)
		}
		if answer := a.in.peek(); len(answer) > 0 {
			t.Errorf("%s: answer %q", name, answer)
		}
	}
}
