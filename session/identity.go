package session

import (
	"bytes"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/sha512"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
)

// identityExpires is what an identity container carries as its required
// "expires". A node key has no date of its own: it ends when the last peer
// drops it from its list.
const identityExpires = "9999-12-31T23:59:59.999Z"

// PublicKey is a node's X25519 public key. Its 43-character form is the
// node's public name.
type PublicKey [32]byte

// ParsePublicKey reads the 43-character form that String writes. It accepts
// only that one form, and only keys that a peer can really have: the reasons
// for refusal are those of SPEC section 3.
func ParsePublicKey(s string) (PublicKey, error) {
	var k PublicKey
	if len(s) != 43 {
		return PublicKey{}, fmt.Errorf("a public key has 43 characters, this has %d", len(s))
	}
	// The decoder skips line breaks, so the result is compared with the text.
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	if err != nil || len(b) != len(k) {
		return PublicKey{}, errors.New("a public key is unpadded base64url (letters, digits, - and _)")
	}
	copy(k[:], b)
	if k.String() != s {
		return PublicKey{}, errors.New("a public key is unpadded base64url (letters, digits, - and _)")
	}
	if err := k.checkPoint(); err != nil {
		return PublicKey{}, err
	}
	return k, nil
}

// checkPoint refuses what is not the one encoding of a point that an honest node
// can have: the high bit set, a value not reduced modulo 2^255-19, and points
// of low order, with which every exchange gives the same known secret.
func (k PublicKey) checkPoint() error {
	if err := k.checkEncoding(); err != nil {
		return err
	}
	public, err := ecdh.X25519().NewPublicKey(k[:])
	if err != nil {
		return fmt.Errorf("not a public key: %w", err)
	}
	// Every X25519 scalar is a multiple of the cofactor and none is a multiple
	// of the large prime order, so any scalar tells low order from the rest.
	scalar, err := ecdh.X25519().NewPrivateKey(make([]byte, 32))
	if err != nil {
		return err
	}
	if _, err := scalar.ECDH(public); err != nil {
		return errors.New("not a public key: a point of low order")
	}
	return nil
}

// checkEncoding is checkPoint without the points of low order: those, an exchange
// shows. It costs nothing.
func (k PublicKey) checkEncoding() error {
	if k[31]&0x80 != 0 {
		return errors.New("not a public key: the high bit is set")
	}
	if k[31] == 0x7f && k[0] >= 0xed && bytes.Count(k[1:31], []byte{0xff}) == 30 {
		return errors.New("not a public key: the value is not reduced")
	}
	return nil
}

// String is the unpadded base64url of the 32 bytes: 43 characters.
func (k PublicKey) String() string { return base64.RawURLEncoding.EncodeToString(k[:]) }

// SPKI is the key as a PEM text with the type "PUBLIC KEY", without a line
// break at its end, which is the form that SDMP stores as identity.key.
func (k PublicKey) SPKI() []byte {
	// The DER of an X25519 SubjectPublicKeyInfo is a constant and the key
	// (RFC 8410 section 4).
	der := append([]byte{0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x6e, 0x03, 0x21, 0x00}, k[:]...)
	return bytes.TrimSuffix(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), []byte("\n"))
}

// Fingerprint is the SDMP key fingerprint: the unpadded base64url of the
// SHA-512 of the SPKI text. It never appears on the wire.
//
// SDMP 0.13 defines it over the UTF-8 of identity.key, which is what this
// hashes. The example digest on its cryptography page is that of the text with
// each line break written as the two characters \n.
func (k PublicKey) Fingerprint() string {
	sum := sha512.Sum512(k.SPKI())
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// Identity is the SDMP identity container of the key, as compact JSON
// (sdmp.io, spec 0.13, core/container and core/identity: type, expires, key and
// fingerprint are the required properties, in that order). It is for people
// and other SDMP programs; it never travels on a link.
func (k PublicKey) Identity() []byte {
	key := strings.ReplaceAll(string(k.SPKI()), "\n", `\n`)
	return []byte(`{"sdmp":{"version":"0.13","schemas":["identity"]},` +
		`"identity":{"type":"node","expires":"` + identityExpires +
		`","key":"` + key + `","fingerprint":"` + k.Fingerprint() + `"}}`)
}

// PrivateKey is a node's X25519 private key.
type PrivateKey struct {
	key *ecdh.PrivateKey
}

// GenerateKey makes a new key.
func GenerateKey() (*PrivateKey, error) {
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generate key: %w", err)
	}
	return &PrivateKey{key}, nil
}

// ParsePrivateKey reads a PKCS#8 PEM file with one X25519 key and nothing else,
// as GenerateKey and `openssl genpkey -algorithm X25519` make it.
func ParsePrivateKey(text []byte) (*PrivateKey, error) {
	if !bytes.HasPrefix(text, []byte("-----BEGIN ")) {
		return nil, errors.New("not a PEM file")
	}
	block, rest := pem.Decode(text)
	switch {
	case block == nil:
		return nil, errors.New("not a PEM file")
	case block.Type == "ENCRYPTED PRIVATE KEY":
		return nil, errors.New("the key is encrypted with a passphrase; an X25519 key without one is needed")
	case block.Type != "PRIVATE KEY":
		return nil, fmt.Errorf("the PEM block is %q, not a PKCS#8 %q", block.Type, "PRIVATE KEY")
	case len(block.Headers) != 0 || len(bytes.TrimSpace(rest)) != 0:
		return nil, errors.New("there is more in the file than one PEM block")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		// The parser's own error may quote parts of the key.
		return nil, errors.New("not a PKCS#8 private key")
	}
	key, ok := parsed.(*ecdh.PrivateKey)
	if !ok || key.Curve() != ecdh.X25519() {
		return nil, errors.New("not an X25519 key")
	}
	if der, err := x509.MarshalPKCS8PrivateKey(key); err != nil || !bytes.Equal(der, block.Bytes) {
		return nil, errors.New("there is more in the PKCS#8 structure than an X25519 key")
	}
	return &PrivateKey{key}, nil
}

// PEM is the key as a PKCS#8 PEM text.
func (k *PrivateKey) PEM() []byte {
	der, err := x509.MarshalPKCS8PrivateKey(k.key)
	if err != nil {
		panic("session: an X25519 key always marshals: " + err.Error())
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

// Public is the public half.
func (k *PrivateKey) Public() PublicKey { return PublicKey(k.key.PublicKey().Bytes()) }
