package session

import (
	"crypto/ecdh"
	"errors"
	"io"

	"github.com/flynn/noise"
)

// An x25519 is the Diffie-Hellman function of one handshake. It keeps the two
// private keys itself, as the standard library wants them: made from its bytes
// each time, a key costs a second scalar multiplication, for a public key that
// nobody asked for. Noise gets their names.
type x25519 struct {
	static, ephemeral *ecdh.PrivateKey
	lowOrder          bool   // an exchange failed: the other key has low order
	decoy             bool   // go on with any key, as far as time tells
	multiplied        func() // what tests count with
}

// The names of the private keys.
const (
	staticName    = "s"
	ephemeralName = "e"
)

var errLowOrder = errors.New("an X25519 key of low order")

// GenerateKeypair makes the ephemeral key.
func (x *x25519) GenerateKeypair(random io.Reader) (noise.DHKey, error) {
	seed := make([]byte, 32)
	defer clear(seed)
	if _, err := io.ReadFull(random, seed); err != nil {
		return noise.DHKey{}, err
	}
	x.count()
	key, err := ecdh.X25519().NewPrivateKey(seed)
	if err != nil {
		return noise.DHKey{}, err
	}
	x.ephemeral = key
	return noise.DHKey{Private: []byte(ephemeralName), Public: key.PublicKey().Bytes()}, nil
}

// DH fails if public has low order, which every scalar shows: each is a
// multiple of the cofactor and none is one of the large prime order.
func (x *x25519) DH(private, public []byte) ([]byte, error) {
	key := x.static
	if string(private) == ephemeralName {
		key = x.ephemeral
	}
	other, err := ecdh.X25519().NewPublicKey(public)
	if err != nil {
		return nil, err
	}
	x.count()
	secret, err := key.ECDH(other)
	if err != nil && x.decoy {
		return make([]byte, x.DHLen()), nil
	}
	if err != nil {
		x.lowOrder = true
		return nil, errLowOrder
	}
	return secret, nil
}

func (x *x25519) DHLen() int     { return 32 }
func (x *x25519) DHName() string { return "25519" }

func (x *x25519) count() {
	if x.multiplied != nil {
		x.multiplied()
	}
}
