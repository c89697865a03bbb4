package session

import (
	"cmp"
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
	rejectLinger  = 80 * time.Millisecond
	refusalLinger = time.Second
	lingerBytes   = 256 << 10
)

// A handshake is the state that both roles share.
type handshake struct {
	cfg   Config
	conn  *counter
	texts *container.Reader
	noise *noise.HandshakeState
	dh    *x25519
	psk   bool // set before message 2 is written or read

	offer     *offer
	choice    *choice
	peer      PublicKey
	rtt       time.Duration
	k1, k2    [32]byte // Split: initiator to responder, responder to initiator
	initiator bool
	refused   bool // this node has refused the peer, which has proved its key
}

// Initiate runs the handshake as the initiator with the peer that holds the
// static key peer. It returns once the responder's record 0 has said ok. On
// error, conn is closed; when ctx ends, the error is its cause.
func Initiate(ctx context.Context, conn net.Conn, peer PublicKey, cfg Config) (*Conn, error) {
	return run(ctx, conn, cfg, func(h *handshake) (*Conn, error) { return h.initiate(peer) })
}

// Respond runs the handshake as the responder. It returns once message 3 has
// been read, its key has been authorized and record 0 has been written. On
// error, conn is closed; when ctx ends, the error is its cause, unless the peer
// had broken a rule or was refused by then.
func Respond(ctx context.Context, conn net.Conn, cfg Config) (*Conn, error) {
	return run(ctx, conn, cfg, func(h *handshake) (*Conn, error) { return h.respond(ctx) })
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
	if ended && !h.refused && !isVerdict(err) {
		err = context.Cause(ctx)
	}
	return nil, fmt.Errorf("handshake: %w", err)
}

// isVerdict tells what the peer did from what the deadline did.
func isVerdict(err error) bool {
	var v *Violation
	return errors.As(err, &v) || errors.Is(err, ErrRejected) ||
		errors.Is(err, ErrUnopened) || errors.Is(err, ErrNotFound) || errors.Is(err, ErrNoRoom)
}

// start makes the Noise state. peer is the responder's static key, which only
// the initiator knows yet.
func (h *handshake) start(peer []byte) error {
	h.dh = &x25519{static: h.cfg.Key.key, multiplied: h.cfg.multiplied}
	cfg := h.noiseConfig()
	cfg.Initiator, cfg.PeerStatic = h.initiator, peer
	state, err := noise.NewHandshakeState(cfg)
	h.noise = state
	return err
}

func (h *handshake) noiseConfig() noise.Config {
	public := h.cfg.Key.Public()
	return noise.Config{
		CipherSuite:           noise.NewCipherSuite(h.dh, noise.CipherChaChaPoly, noise.HashSHA256),
		Random:                h.random(),
		Pattern:               noise.HandshakeXK,
		Prologue:              []byte(prologue),
		PresharedKeyPlacement: 2,
		StaticKeypair:         noise.DHKey{Private: []byte(staticName), Public: public[:]},
	}
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
	if h.dh.lowOrder {
		return nil, violation(RuleKey, "an X25519 key of low order")
	}
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

// erase forgets the handshake's secrets, best effort: the ephemeral key, which
// the standard library keeps, and those inside noise's symmetric state are left
// to the garbage collector.
func (h *handshake) erase() {
	clear(h.k1[:])
	clear(h.k2[:])
	h.dh, h.noise = nil, nil
}

func (h *handshake) initiate(peer PublicKey) (*Conn, error) {
	if peer == h.cfg.Key.Public() {
		return nil, ErrOwnKey
	}
	if err := peer.checkEncoding(); err != nil {
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
	share, err := h.texts.Share(make([]byte, container.ShareLen))
	if err != nil {
		return nil, h.rejectUnlessRejected(err)
	}
	payload, err := h.openMessage2(share, kem)
	if err != nil {
		return nil, err // it may be a decoy: nothing to be answered
	}
	h.rtt = time.Since(sent)
	if h.choice, err = parseChoice(payload, h.offer); err != nil {
		return nil, h.rejectUnlessRejected(err)
	}
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
	h.offer = h.cfg.offer()
	payload := append(make([]byte, 0, payload1Len), kem.EncapsulationKey().Bytes()...)
	payload = h.offer.append(payload)
	message, err := h.write(nil, payload[:payload1Len], false)
	if err != nil {
		return err
	}
	_, err = h.conn.Write(container.AppendShare(nil, message))
	return err
}

// openMessage2 returns the payload of message 2. Where that does not open, the
// responder has another key, or there is nothing in common: it sent a decoy.
func (h *handshake) openMessage2(share []byte, kem *mlkem.DecapsulationKey768) ([]byte, error) {
	ciphertext, message := share[:kemCiphertextLen], share[kemCiphertextLen:]
	if err := PublicKey(message[:32]).checkEncoding(); err != nil {
		return nil, violation(RuleKey, "an ephemeral key that no node makes")
	}
	shared, err := kem.Decapsulate(ciphertext)
	if err != nil {
		return nil, err
	}
	if err := h.setPSK(shared, ciphertext); err != nil {
		return nil, err
	}
	payload, err := h.read(message, true)
	if v := (*Violation)(nil); errors.As(err, &v) && v.Rule == RuleSeal {
		return nil, ErrUnopened
	}
	return payload, err
}

func (h *handshake) writeMessage3() error {
	message, err := h.write(nil, make([]byte, payload3Len), true)
	if err != nil {
		return err
	}
	_, err = h.conn.Write(container.AppendSealed(nil, new([container.IVLen]byte), message))
	return err
}

func (h *handshake) respond(ctx context.Context) (*Conn, error) {
	message1, err := h.texts.Share(make([]byte, container.ShareLen))
	if err != nil {
		return nil, h.rejectUnlessRejected(err)
	}
	if h.cfg.Door != nil {
		if err := h.cfg.Door.Admit(ctx); err != nil {
			return nil, err
		}
	}
	if err := h.start(nil); err != nil {
		return nil, err
	}
	kem, broken := h.readMessage1(message1)
	if broken != nil {
		if kem, err = h.pretend(message1, kem != nil); err != nil {
			return nil, err
		}
	}
	if err := h.writeMessage2(kem); err != nil {
		return nil, cmp.Or(broken, err)
	}
	sent := time.Now()
	if h.cfg.Door != nil {
		h.cfg.Door.Answered(broken)
	}
	err = h.readMessage3()
	if broken != nil { // then not even a message 3 that opens would be one
		h.rejectUnlessRejected(cmp.Or(err, broken))
		return nil, broken
	}
	if err != nil {
		return nil, h.rejectUnlessRejected(err)
	}
	h.rtt = time.Since(sent)
	return h.decide()
}

// decide answers a peer that has proved its key with record 0.
func (h *handshake) decide() (*Conn, error) {
	door := h.cfg.Door
	c := h.conclude()
	if h.cfg.Authorize == nil || !h.cfg.Authorize(c.info.peer) {
		h.refused = true
		c.refuse(controlNotFound, door)
		return nil, c.fail(&UnknownKeyError{c.info.peer})
	}
	if door != nil {
		if err := door.Room(c.info.peer); err != nil {
			h.refused = true
			c.refuse("", door)
			return nil, c.fail(err)
		}
	}
	if err := c.writeNow(func(dst []byte) ([]byte, error) { return c.tx.seal.short(dst, typeControl, controlOK) }); err != nil {
		return nil, c.fail(err)
	}
	c.start()
	return c, nil
}

// readMessage1 judges message 1 after it has done all work on it: what is
// wrong with it must not show in the time that the answer takes. The key is
// returned if it was read, whatever comes of the rest.
func (h *handshake) readMessage1(message []byte) (kem *mlkem.EncapsulationKey768, err error) {
	ephemeral := message[:32]
	payload, err := h.read(message, false)
	if PublicKey(ephemeral).checkEncoding() != nil {
		return nil, violation(RuleKey, "an ephemeral key that no node makes")
	}
	if h.cfg.Replay != nil && h.cfg.Replay.has(ephemeral) {
		return nil, violation(RuleReplay, "a message 1 that was accepted before")
	}
	if err != nil {
		return nil, err
	}
	// Only a message 1 that was made for this node is remembered: others could
	// flush the cache.
	if h.cfg.Replay != nil && !h.cfg.Replay.add(ephemeral) {
		return nil, violation(RuleReplay, "a message 1 that was accepted before")
	}
	kem, err = mlkem.NewEncapsulationKey768(payload[:kemKeyLen])
	if err != nil {
		return nil, violation(RuleKEM, "not an ML-KEM encapsulation key")
	}
	if h.offer, err = parseOffer(payload[kemKeyLen:]); err != nil {
		return kem, err
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

// readMessage3 reads any text that could be message 3 to its end, then judges
// it: after a decoy, too, where nothing opens.
func (h *handshake) readMessage3() error {
	var iv [container.IVLen]byte
	message, err := h.texts.Sealed(&iv, make([]byte, container.MaxMessage3), 0, container.MaxMessage3, true)
	if err != nil {
		return err
	}
	if iv != [container.IVLen]byte{} {
		return violation(RulePlaceholder, "the iv of message 3 is not zero")
	}
	if len(message) != message3Len {
		return violation(RuleClaims, "message 3 has another length")
	}
	payload, err := h.read(message, true)
	if err != nil {
		return err
	}
	h.peer = PublicKey(h.noise.PeerStatic())
	if h.peer.checkEncoding() != nil {
		return violation(RuleKey, "a static key that no node has")
	}
	if h.peer == h.cfg.Key.Public() {
		return violation(RuleKey, "this node's own key as the peer's")
	}
	return checkClaims(payload)
}

// rejectUnlessRejected answers a bad text with the one clear response. A
// response is never answered, and neither is silence or an end of stream.
func (h *handshake) rejectUnlessRejected(err error) error {
	var v *Violation
	if errors.As(err, &v) {
		if h.cfg.Door != nil {
			h.cfg.Door.Settled()
		}
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
