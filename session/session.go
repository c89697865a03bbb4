// Package session turns a reliable byte stream between two nodes into a sealed
// net.Conn, as SPEC.md sections 3 to 6 say.
//
// Initiate and Respond run the handshake: Noise XKpsk2 whose PSK is an ML-KEM
// exchange inside the same messages, carried in two shared_key texts and one
// encrypted text. The Conn they return seals what is written to it into
// records, each an encrypted container, and opens those of the peer.
//
// What a Conn guarantees: Read gives exactly the bytes that the peer wrote, in
// order, or an error; io.EOF only after the peer's sealed close; ErrTruncated
// if the stream ended without one; a *Violation, and not one byte of the
// offending text, if anything arrived that does not belong. The first error is
// final. A Conn owns one goroutine, which ends with it. The package logs
// nothing.
package session

import (
	"context"
	"crypto/mlkem"
	"errors"
	"fmt"
	"io"

	"github.com/sealane/sealane/session/container"
)

// Violation and Rule name what broke the wire's rules; see Rules.
type (
	Violation = container.Violation
	Rule      = container.Rule
)

// The transforms of SPEC.md section 5.
const (
	TransformJSON   = "json"
	TransformPacked = "packed"
	TransformGzip   = "gzip"
)

// The record ciphers of SPEC.md section 3.
const (
	cipherAES    = "aes-256-gcm"
	cipherChaCha = "chacha20-poly1305"
)

// paddingBlock is the one padding length besides none.
const paddingBlock = 8192

var (
	// ErrRejected: the peer answered the handshake with the constant clear
	// response. It does not say why.
	ErrRejected = container.ErrRejected
	// ErrUnopened: the initiator cannot open what it was answered. The
	// responder has another key than it was dialed by, or the two have nothing
	// in common.
	ErrUnopened = errors.New("the answer does not open")
	// ErrNoRoom: the peer knows this node's key, and a limit leaves no room
	// for another link now.
	ErrNoRoom = errors.New("the peer takes no more links now")
	// ErrNotFound: the peer completed the handshake but does not know, or
	// does not allow, this node's key.
	ErrNotFound = errors.New("the peer does not know this node's key")
	// ErrTruncated: the stream ended without the peer's sealed close.
	ErrTruncated = errors.New("the link ended without a sealed close")
	// ErrOwnKey: the peer's key is this node's own.
	ErrOwnKey = errors.New("the peer's key is this node's own key")
)

// An UnknownKeyError is Respond's error for an initiator that proved to hold
// Key, but whose key Authorize refused. The initiator was told not_found.
type UnknownKeyError struct{ Key PublicKey }

func (e *UnknownKeyError) Error() string {
	return "no peer with the key " + e.Key.String() + " is configured"
}

// Config is what both ends of a handshake need. It may be shared.
type Config struct {
	// Key is this node's static key.
	Key *PrivateKey
	// Transform is what this node offers first or accepts beside json:
	// TransformJSON (also if empty), TransformPacked or TransformGzip.
	Transform string
	// Padding is 0 or 8192: the larger of both nodes' values holds.
	Padding int
	// Authorize tells whether an initiator's key is that of a peer which may
	// link to this node. Nil refuses all. Only Respond uses it.
	Authorize func(PublicKey) bool
	// Replay refuses message 1s that were accepted before. Only Respond uses
	// it; all calls with the same Key share one.
	Replay *ReplayCache
	// Decoys answers message 1s that are none. Only Respond uses it; if nil,
	// each call makes its own, which takes time and shows.
	Decoys *Decoys
	// Door, if not nil, bounds what Respond takes; each call has its own.
	Door Door
	// RekeyRecords is how many records a key may seal. 0 is the wire's limit,
	// 2^20; less is for tests of whatever reads records.
	RekeyRecords uint64

	// What tests set.
	preferChaCha func() bool // nil: chacha first where AES is not in hardware
	batch        int         // 0: batchRecords
	entropy      io.Reader   // nil: crypto/rand
	multiplied   func()      // called for each X25519 scalar multiplication
	encapsulate  func(*mlkem.EncapsulationKey768) (sharedKey, ciphertext []byte)
	keyLog       func(initiator bool, generation int, key []byte) // whose records the key seals
}

// A Door is told by Respond where a connection stands, so that what strangers
// hold is bounded, and which peers have room for another link.
type Door interface {
	// Admit is called once message 1 has arrived whole and before any work
	// on it. It may wait for a place until ctx ends. An error ends the
	// handshake at once, without a text, and is returned.
	Admit(ctx context.Context) error
	// Answered is called when message 2 was sent or, because of a Violation,
	// a decoy. Respond returns that error, too, but only when all is over.
	Answered(broken error)
	// Room is called for a key that Authorize took. An error is told to the
	// initiator as ErrNoRoom, and returned.
	Room(peer PublicKey) error
	// Settled is called when all is over but for some lingering: it may cost a
	// descriptor from here on, but not a place.
	Settled()
}

func (c *Config) check() error {
	switch {
	case c.Key == nil:
		return errors.New("session: no key")
	case c.Padding != 0 && c.Padding != paddingBlock:
		return fmt.Errorf("session: padding %d is neither 0 nor %d", c.Padding, paddingBlock)
	}
	switch c.Transform {
	case "", TransformJSON, TransformPacked, TransformGzip:
		return nil
	}
	return fmt.Errorf("session: unknown transform %q", c.Transform)
}

// transforms is the list of SPEC.md section 3: the configured one, then json.
func (c *Config) transforms() []string {
	if c.Transform == "" || c.Transform == TransformJSON {
		return []string{TransformJSON}
	}
	return []string{c.Transform, TransformJSON}
}

func (c *Config) ciphers() []string {
	prefer := c.preferChaCha
	if prefer == nil {
		prefer = noHardwareAES
	}
	if prefer() {
		return []string{cipherChaCha, cipherAES}
	}
	return []string{cipherAES, cipherChaCha}
}
