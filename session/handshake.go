package session

import (
	"context"
	"crypto/mlkem"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/flynn/noise"

	"github.com/sealane/sealane/session/container"
)

// prologue names the generation of the handshake.
const prologue = "sealane 1 SDMP 0.13"

// How a handshake that failed leaves: the clear response must not be overtaken
// by a reset, so what the peer still sends is discarded for a moment.
const (
	rejectLinger   = 80 * time.Millisecond
	notFoundLinger = time.Second
	lingerBytes    = 256 << 10
)

// A handshake is the state that both roles share.
type handshake struct {
	cfg   Config
	conn  *counter
	texts *container.Reader
	noise *noise.HandshakeState
	own   []byte // noise's copy of the static private key
	psk   bool   // set before message 2 is written or read

	offer     *offer
	choice    *choice
	peer      PublicKey
	rtt       time.Duration
	k1, k2    [32]byte // Split: initiator to responder, responder to initiator
	initiator bool
}

// Initiate runs the handshake as the initiator with the peer that holds the
// static key peer. It returns once the responder's record 0 has said ok. On
// error, conn is closed; when ctx ends, the error is its cause.
func Initiate(ctx context.Context, conn net.Conn, peer PublicKey, cfg Config) (*Conn, error) {
	return run(ctx, conn, cfg, func(h *handshake) (*Conn, error) { return h.initiate(peer) })
}

// Respond runs the handshake as the responder. It returns once message 3 has
// been read, its key has been authorized and record 0 has been written. On
// error, conn is closed; when ctx ends, the error is its cause.
func Respond(ctx context.Context, conn net.Conn, cfg Config) (*Conn, error) {
	return run(ctx, conn, cfg, (*handshake).respond)
}

// run gives the handshake a deadline that is ctx and an end that is final.
func run(ctx context.Context, conn net.Conn, cfg Config, role func(*handshake) (*Conn, error)) (*Conn, error) {
	if err := cfg.check(); err != nil {
		conn.Close()
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	counted := &counter{Conn: conn}
	h := &handshake{cfg: cfg, conn: counted, texts: container.NewReader(counted)}
	c, err := role(h)
	ended := !stop()
	if err == nil && ended {
		c.Abort(context.Cause(ctx))
		err = context.Cause(ctx)
	}
	if err == nil {
		return c, nil
	}
	conn.Close()
	h.erase()
	if ended && !isVerdict(err) {
		err = context.Cause(ctx)
	}
	return nil, fmt.Errorf("handshake: %w", err)
}

// isVerdict tells what the peer did from what the deadline did.
func isVerdict(err error) bool {
	var v *Violation
	var unknown *UnknownKeyError
	return errors.As(err, &v) || errors.As(err, &unknown) || errors.Is(err, ErrRejected) || errors.Is(err, ErrNotFound)
}

// start makes the Noise state. peer is the responder's static key, which only
// the initiator knows yet.
func (h *handshake) start(peer []byte) error {
	public := h.cfg.Key.Public()
	h.own = h.cfg.Key.bytes()
	state, err := noise.NewHandshakeState(noise.Config{
		CipherSuite:           noise.NewCipherSuite(noise.DH25519, noise.CipherChaChaPoly, noise.HashSHA256),
		Random:                h.random(),
		Pattern:               noise.HandshakeXK,
		Initiator:             h.initiator,
		Prologue:              []byte(prologue),
		PresharedKeyPlacement: 2,
		StaticKeypair:         noise.DHKey{Private: h.own, Public: public[:]},
		PeerStatic:            peer,
	})
	h.noise = state
	return err
}

func (h *handshake) random() io.Reader {
	if h.cfg.entropy != nil {
		return h.cfg.entropy
	}
	return rand.Reader
}

// setPSK makes the PSK of message 2 from the ML-KEM exchange.
func (h *handshake) setPSK(shared, ciphertext []byte) error {
	sum := sha256.New()
	sum.Write(shared)
	sum.Write(ciphertext)
	clear(shared)
	psk := sum.Sum(nil)
	defer clear(psk)
	h.psk = true
	return h.noise.SetPresharedKey(psk)
}

// read opens a Noise message. The library neither notices a PSK that was not
// set nor restores its state after a failure: the first is checked here, and
// any error ends the handshake.
func (h *handshake) read(message []byte, needsPSK bool) ([]byte, error) {
	if needsPSK && !h.psk {
		return nil, errors.New("no PSK")
	}
	payload, cs1, cs2, err := h.noise.ReadMessage(nil, message)
	if err != nil {
		return nil, violation(RuleSeal, "a handshake message does not authenticate")
	}
	h.split(cs1, cs2)
	return payload, nil
}

func (h *handshake) write(out, payload []byte, needsPSK bool) ([]byte, error) {
	if needsPSK && !h.psk {
		return nil, errors.New("no PSK")
	}
	message, cs1, cs2, err := h.noise.WriteMessage(out, payload)
	if err != nil {
		return nil, err
	}
	h.split(cs1, cs2)
	return message, nil
}

// split keeps the traffic secrets once the last message gives them.
func (h *handshake) split(cs1, cs2 *noise.CipherState) {
	if cs1 != nil {
		h.k1, h.k2 = cs1.UnsafeKey(), cs2.UnsafeKey()
	}
}

// erase forgets the handshake's secrets, best effort: those inside noise's
// symmetric state are left to the garbage collector.
func (h *handshake) erase() {
	clear(h.k1[:])
	clear(h.k2[:])
	clear(h.own)
	if h.noise != nil {
		clear(h.noise.LocalEphemeral().Private)
		h.noise = nil
	}
}

// checkEphemeral refuses the X25519 shares that no honest node sends, before
// any Diffie-Hellman with them.
func checkEphemeral(message []byte) error {
	if err := PublicKey(message[:32]).check(); err != nil {
		return violation(RuleKey, "an ephemeral key that no node makes")
	}
	return nil
}

func (h *handshake) initiate(peer PublicKey) (*Conn, error) {
	if peer == h.cfg.Key.Public() {
		return nil, ErrOwnKey
	}
	if err := peer.check(); err != nil {
		return nil, err
	}
	h.initiator = true
	h.peer = peer
	if err := h.start(peer[:]); err != nil {
		return nil, err
	}
	kem, err := h.newKEM()
	if err != nil {
		return nil, err
	}
	if err := h.writeMessage1(kem); err != nil {
		return nil, err
	}
	sent := time.Now()
	if err := h.readMessage2(kem); err != nil {
		return nil, h.rejectUnlessRejected(err)
	}
	h.rtt = time.Since(sent)
	if err := h.writeMessage3(); err != nil {
		return nil, err
	}
	c := h.conclude()
	if err := c.readVerdict(); err != nil {
		return nil, c.fail(err)
	}
	c.start()
	return c, nil
}

// newKEM makes the ML-KEM key of one handshake from a seed (FIPS 203, d and z).
func (h *handshake) newKEM() (*mlkem.DecapsulationKey768, error) {
	seed := make([]byte, mlkem.SeedSize)
	defer clear(seed)
	if _, err := io.ReadFull(h.random(), seed); err != nil {
		return nil, err
	}
	return mlkem.NewDecapsulationKey768(seed)
}

func (h *handshake) writeMessage1(kem *mlkem.DecapsulationKey768) error {
	h.offer = &offer{
		Versions:   []int{protocolVersion},
		Ciphers:    h.cfg.ciphers(),
		Transforms: h.cfg.transforms(),
		Padding:    h.cfg.Padding,
	}
	payload := append(make([]byte, 0, payload1Len), kem.EncapsulationKey().Bytes()...)
	payload = h.offer.append(payload)
	message, err := h.write(nil, payload[:payload1Len], false)
	if err != nil {
		return err
	}
	_, err = h.conn.Write(container.AppendShare(nil, message))
	return err
}

func (h *handshake) readMessage2(kem *mlkem.DecapsulationKey768) error {
	share, err := h.texts.Share(make([]byte, container.ShareLen))
	if err != nil {
		return err
	}
	ciphertext, message := share[:kemCiphertextLen], share[kemCiphertextLen:]
	if err := checkEphemeral(message); err != nil {
		return err
	}
	shared, err := kem.Decapsulate(ciphertext)
	if err != nil {
		return err
	}
	if err := h.setPSK(shared, ciphertext); err != nil {
		return err
	}
	payload, err := h.read(message, true)
	if err != nil {
		return err
	}
	h.choice, err = parseChoice(payload, h.offer)
	return err
}

func (h *handshake) writeMessage3() error {
	message, err := h.write(nil, nil, true)
	if err != nil {
		return err
	}
	_, err = h.conn.Write(container.AppendSealed(nil, new([container.IVLen]byte), message))
	return err
}

func (h *handshake) respond() (*Conn, error) {
	message1, err := h.texts.Share(make([]byte, container.ShareLen))
	if err != nil {
		return nil, h.rejectUnlessRejected(err)
	}
	if h.cfg.Admit != nil {
		if err := h.cfg.Admit(); err != nil {
			return nil, err
		}
	}
	kem, err := h.readMessage1(message1)
	if err != nil {
		return nil, h.rejectUnlessRejected(err)
	}
	if err := h.writeMessage2(kem); err != nil {
		return nil, err
	}
	sent := time.Now()
	if err := h.readMessage3(); err != nil {
		return nil, h.rejectUnlessRejected(err)
	}
	h.rtt = time.Since(sent)
	c := h.conclude()
	if h.cfg.Authorize == nil || !h.cfg.Authorize(h.peer) {
		c.sayNotFound()
		return nil, c.fail(&UnknownKeyError{h.peer})
	}
	if err := c.writeNow(func(dst []byte) ([]byte, error) { return c.tx.seal.short(dst, typeControl, controlOK) }); err != nil {
		return nil, c.fail(err)
	}
	c.start()
	return c, nil
}

func (h *handshake) readMessage1(message []byte) (*mlkem.EncapsulationKey768, error) {
	ephemeral := message[:32]
	if h.cfg.Replay != nil && h.cfg.Replay.has(ephemeral) {
		return nil, violation(RuleReplay, "a message 1 that was accepted before")
	}
	if err := checkEphemeral(message); err != nil {
		return nil, err
	}
	if err := h.start(nil); err != nil {
		return nil, err
	}
	payload, err := h.read(message, false)
	if err != nil {
		return nil, err
	}
	if h.cfg.Replay != nil && !h.cfg.Replay.add(ephemeral) {
		return nil, violation(RuleReplay, "a message 1 that was accepted before")
	}
	kem, err := mlkem.NewEncapsulationKey768(payload[:kemKeyLen])
	if err != nil {
		return nil, violation(RuleKEM, "not an ML-KEM encapsulation key")
	}
	if h.offer, err = parseOffer(payload[kemKeyLen:]); err != nil {
		return nil, err
	}
	h.choice, err = h.cfg.choose(h.offer)
	return kem, err
}

func (h *handshake) writeMessage2(kem *mlkem.EncapsulationKey768) error {
	encapsulate := h.cfg.encapsulate
	if encapsulate == nil {
		encapsulate = (*mlkem.EncapsulationKey768).Encapsulate
	}
	shared, ciphertext := encapsulate(kem)
	if err := h.setPSK(shared, ciphertext); err != nil {
		return err
	}
	payload := h.choice.append(make([]byte, 0, payload2Len))
	share, err := h.write(ciphertext, payload[:payload2Len], true)
	if err != nil {
		return err
	}
	_, err = h.conn.Write(container.AppendShare(nil, share))
	return err
}

func (h *handshake) readMessage3() error {
	var iv [container.IVLen]byte
	message, err := h.texts.Sealed(&iv, make([]byte, message3Len), message3Len, message3Len, true)
	if err != nil {
		return err
	}
	if iv != [container.IVLen]byte{} {
		return violation(RulePlaceholder, "the iv of message 3 is not zero")
	}
	_, err = h.read(message, true)
	// The static key is there, and is the peer's, even if the exchange with it
	// then failed because its order is low.
	if static := h.noise.PeerStatic(); len(static) == len(h.peer) {
		h.peer = PublicKey(static)
		if h.peer.check() != nil {
			return violation(RuleKey, "a static key that no node has")
		}
	}
	if err != nil {
		return err
	}
	if h.peer == h.cfg.Key.Public() {
		return violation(RuleKey, "this node's own key as the peer's")
	}
	return nil
}

// rejectUnlessRejected answers a bad text with the one clear response. A
// response is never answered, and neither is silence or an end of stream.
func (h *handshake) rejectUnlessRejected(err error) error {
	var v *Violation
	if errors.As(err, &v) {
		h.conn.SetDeadline(time.Now().Add(rejectLinger))
		if _, werr := io.WriteString(h.conn, container.BadRequest); werr == nil {
			linger(h.conn.Conn)
		}
	}
	return err
}

// linger half-closes where the transport can and discards what still arrives,
// until the peer closes, lingerBytes or the connection's deadline: closing with
// unread bytes would reset the connection and could take the last text along.
func linger(conn net.Conn) {
	if c, ok := conn.(interface{ CloseWrite() error }); ok {
		c.CloseWrite()
	}
	io.CopyN(io.Discard, conn, lingerBytes)
}
