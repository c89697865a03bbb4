package session

import (
	"bufio"
	"bytes"
	"crypto/mlkem"
	"encoding/hex"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/flynn/noise"

	"github.com/sealane/sealane/session/container"
)

// This file makes handshake messages that no honest node sends: by a node that
// holds its keys and lies, or by an attacker who holds none.

// A forgedInitiator is a dishonest initiator. Its random choices are those of
// Initiate with the same Config.
type forgedInitiator struct {
	*handshake
	kem *mlkem.DecapsulationKey768
}

func forgeInitiator(t testing.TB, ic Config, peer PublicKey) *forgedInitiator {
	t.Helper()
	h := &handshake{cfg: ic, initiator: true, peer: peer}
	if err := h.start(peer[:]); err != nil {
		t.Fatal(err)
	}
	kem, err := h.newKEM()
	if err != nil {
		t.Fatal(err)
	}
	h.offer = ic.offer()
	return &forgedInitiator{h, kem}
}

// payload1 is the payload of message 1 with any encapsulation key and offer.
func payload1(kemKey []byte, offer string) []byte {
	p := make([]byte, payload1Len)
	copy(p[copy(p, kemKey):], offer)
	return p
}

// message1 is the text of message 1 with the given payload.
func (f *forgedInitiator) message1(t testing.TB, payload []byte) []byte {
	t.Helper()
	share, err := f.write(nil, payload, false)
	if err != nil {
		t.Fatal(err)
	}
	return container.AppendShare(nil, share)
}

// honest1 is the text of message 1 as Initiate sends it.
func (f *forgedInitiator) honest1(t testing.TB) []byte {
	t.Helper()
	return f.message1(t, payload1(f.kem.EncapsulationKey().Bytes(), string(f.offer.append(nil))))
}

// message3 reads message 2 and gives the text of message 3 with a payload.
func (f *forgedInitiator) message3(t testing.TB, text2, payload []byte) []byte {
	t.Helper()
	if payload == nil {
		payload = make([]byte, payload3Len)
	}
	if _, err := f.openMessage2(share(t, text2), f.kem); err != nil {
		t.Fatal(err)
	}
	message, err := f.write(nil, payload, true)
	if err != nil {
		t.Fatal(err)
	}
	return container.AppendSealed(nil, new([container.IVLen]byte), message)
}

// pretend makes the initiator claim a static public key that is not that of
// its private key.
func (f *forgedInitiator) pretend(t testing.TB, public []byte) {
	t.Helper()
	cfg := f.noiseConfig()
	cfg.Initiator, cfg.PeerStatic, cfg.StaticKeypair.Public = true, f.peer[:], public
	var err error
	if f.noise, err = noise.NewHandshakeState(cfg); err != nil {
		t.Fatal(err)
	}
}

// forgeMessage2 answers text1 with any choice and a ciphertext that change
// may spoil. Its random choices are those of Respond with the same Config.
func forgeMessage2(t testing.TB, rc Config, text1 []byte, choice string, change func(share []byte)) []byte {
	t.Helper()
	h := &handshake{cfg: rc}
	if err := h.start(nil); err != nil {
		t.Fatal(err)
	}
	kem, err := h.readMessage1(share(t, text1))
	if err != nil {
		t.Fatal(err)
	}
	shared, ciphertext := h.cfg.encapsulate(kem)
	if err := h.setPSK(shared, ciphertext); err != nil {
		t.Fatal(err)
	}
	if choice == "" {
		choice = string(h.choice.append(nil))
	}
	payload := make([]byte, payload2Len)
	copy(payload, choice)
	message, err := h.write(ciphertext, payload, true)
	if err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(message)
	}
	return container.AppendShare(nil, message)
}

// wantRefused asserts that a role failed by a rule and left with exactly one
// clear response as its last text.
func wantRefused(t *testing.T, sent []byte, c *Conn, err error, rule Rule) {
	t.Helper()
	if c != nil {
		c.Abort(nil)
		t.Fatalf("accepted, want a violation of %s", rule)
	}
	if got := ruleOf(err); got != rule {
		t.Errorf("%v, want a violation of %s", err, rule)
	}
	if bytes.Count(sent, []byte(container.BadRequest)) != 1 || !bytes.HasSuffix(sent, []byte(container.BadRequest)) {
		t.Errorf("did not leave with the one constant response: %d bytes", len(sent))
	}
}

// wantDecoy asserts that a responder answered a message 1 that is none, by the
// rule that it breaks, as if it were one: with a share, and with the clear
// response behind it if a message 3 followed.
func wantDecoy(t *testing.T, sent []byte, c *Conn, err error, rule Rule, rest string) {
	t.Helper()
	if c != nil {
		c.Abort(nil)
		t.Fatalf("accepted, want a violation of %s", rule)
	}
	if got := ruleOf(err); got != rule {
		t.Errorf("%v, want a violation of %s", err, rule)
	}
	r := container.NewReader(bytes.NewReader(sent))
	if _, err := r.Share(make([]byte, container.ShareLen)); err != nil || len(sent) < container.ShareTextLen || string(sent[container.ShareTextLen:]) != rest {
		t.Errorf("%v: answered with %d bytes, want a share and %q", err, len(sent), rest)
	}
}

// wantUnopened asserts that an initiator left without a text behind message 1
// because message 2 does not open.
func wantUnopened(t *testing.T, sent []byte, c *Conn, err error) {
	t.Helper()
	if c != nil {
		c.Abort(nil)
		t.Fatal("accepted")
	}
	if !errors.Is(err, ErrUnopened) || ruleOf(err) != "" {
		t.Errorf("%v, want %v", err, ErrUnopened)
	}
	if len(sent) != container.ShareTextLen {
		t.Errorf("sent %d bytes, want message 1 alone", len(sent))
	}
}

// badKeys reads testdata/x25519.txt.
func badKeys(t testing.TB) map[string]PublicKey {
	t.Helper()
	file, err := os.Open("testdata/x25519.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	keys := make(map[string]PublicKey)
	for lines := bufio.NewScanner(file); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) != 3 || fields[0] == "#" {
			continue
		}
		raw, err := hex.DecodeString(fields[2])
		if err != nil || len(raw) != 32 {
			t.Fatalf("case %s: %v", fields[0], err)
		}
		keys["case "+fields[0]+" "+strings.ReplaceAll(fields[1], ",", " ")] = PublicKey(raw)
	}
	if len(keys) != 27 {
		t.Fatalf("%d keys in testdata/x25519.txt, want 27", len(keys))
	}
	return keys
}
