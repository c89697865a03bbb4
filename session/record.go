package session

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"time"

	"golang.org/x/crypto/chacha20poly1305"

	"github.com/sealane/sealane/session/container"
)

// Record sizes in bytes (SPEC.md section 4). A record's plaintext is
//
//	type (1) | length (4, big endian) | body | zero padding
const (
	recordHeader = 1 + 4
	maxPlaintext = 65536
	maxBody      = maxPlaintext - recordHeader
	tagLen       = 16
)

// Record types.
const (
	typeData    = 0
	typeControl = 1
	typeClose   = 2
	typeRekey   = 3
)

// Limits on keys (SPEC.md section 4).
const (
	maxRecords     = 1 << 20 // record numbers are below this
	maxKeyAge      = time.Hour
	maxRekeysInRow = 16
)

// The bodies of the control record, the responder's record 0.
const (
	controlOK       = `{"sdmp":{"version":"0.13","schemas":["response"]},"response":{"status":"ok","identifier":"session"}}`
	controlNotFound = `{"sdmp":{"version":"0.13","schemas":["response"]},"response":{"status":"not_found","identifier":"session"}}`
)

// keys is the key schedule of one direction.
type keys struct {
	cipherName string
	next       [32]byte // secret_(n+1)
	aead       cipher.AEAD
	number     uint64 // of the next record under this key
	since      time.Time
	generation int // n
	log        func(generation int, key []byte)
}

// init sets up key 0 from secret_0, which it erases.
func (k *keys) init(cipherName string, secret *[32]byte) error {
	k.cipherName = cipherName
	k.next = *secret
	clear(secret[:])
	k.generation = -1
	return k.advance()
}

// advance moves to the next key. The secret it came from is erased, so that a
// key found later tells nothing about earlier records.
func (k *keys) advance() error {
	raw, err := hkdf.Expand(sha256.New, k.next[:], "sealane 1 key "+k.cipherName, 32)
	if err != nil {
		return fmt.Errorf("derive key: %w", err)
	}
	defer clear(raw)
	next, err := hkdf.Expand(sha256.New, k.next[:], "sealane 1 next", 32)
	if err != nil {
		return fmt.Errorf("derive key: %w", err)
	}
	copy(k.next[:], next)
	clear(next)
	if k.aead, err = newAEAD(k.cipherName, raw); err != nil {
		return err
	}
	k.number = 0
	k.generation++
	k.since = time.Now()
	if k.log != nil {
		k.log(k.generation, raw)
	}
	return nil
}

// erase drops the keys, best effort: the AEADs keep expanded keys of their own
// until the garbage collector frees them.
func (k *keys) erase() {
	clear(k.next[:])
	k.aead = nil
}

func newAEAD(name string, key []byte) (cipher.AEAD, error) {
	if name == cipherChaCha {
		return chacha20poly1305.New(key)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// putIV writes the nonce of a record: 4 zero bytes and the record number.
func putIV(iv *[container.IVLen]byte, number uint64) {
	clear(iv[:4])
	binary.BigEndian.PutUint64(iv[4:], number)
}

// A sealer makes records. Its zero value needs keys.init.
type sealer struct {
	keys    keys
	padding int
	limit   uint64 // records that a key may seal; see rekeyDue
	enc     encoder
	iv      [container.IVLen]byte
	scratch []byte // where control, close and rekey records are made
}

// rekeyDue reports whether the next data record must wait for a new key. It
// leaves room under the old key for the rekey itself and for a close.
func (s *sealer) rekeyDue() bool {
	return s.keys.number+2 >= s.limit || time.Since(s.keys.since) >= maxKeyAge
}

// data seals a data record whose body is buf[recordHeader:n]. The buffer is
// overwritten and must have room for maxPlaintext+tagLen bytes. A rekey record
// goes before it when one is due.
func (s *sealer) data(dst, buf []byte, n int) ([]byte, error) {
	if s.rekeyDue() {
		var err error
		if dst, err = s.short(dst, typeRekey, ""); err != nil {
			return dst, err
		}
		if err := s.keys.advance(); err != nil {
			return dst, err
		}
	}
	return s.seal(dst, typeData, buf, n), nil
}

// short seals a record with a constant body.
func (s *sealer) short(dst []byte, typ byte, body string) ([]byte, error) {
	if s.keys.number >= maxRecords {
		return dst, fmt.Errorf("record number %d reached", maxRecords)
	}
	if s.scratch == nil {
		s.scratch = make([]byte, max(s.padding, 256)+tagLen)
	}
	n := recordHeader + copy(s.scratch[recordHeader:], body)
	return s.seal(dst, typ, s.scratch, n), nil
}

// seal appends the record whose type is typ and whose body is
// buf[recordHeader:n], as the transform wants it.
func (s *sealer) seal(dst []byte, typ byte, buf []byte, n int) []byte {
	buf[0] = typ
	binary.BigEndian.PutUint32(buf[1:], uint32(n-recordHeader))
	size := n
	if s.padding > 0 {
		size = (n + s.padding - 1) / s.padding * s.padding
		clear(buf[n:size])
	}
	putIV(&s.iv, s.keys.number)
	dst = s.enc.seal(dst, s.keys.aead, &s.iv, buf[:size])
	s.keys.number++
	return dst
}

// An opener reads records.
type opener struct {
	keys    keys
	padding int
	dec     decoder
	iv      [container.IVLen]byte
	nonce   [container.IVLen]byte
	rekeys  int // in a row
}

// next reads one record and gives its type and body, which is lent as the
// decoder's payloads are. Of what it returns only the type and the length have
// been checked against each other. A rekey is returned, too, for it takes its
// place among the records that are read together (SPEC.md section 4); the key
// is the next one by then.
func (o *opener) next() (typ byte, body []byte, err error) {
	payload, err := o.dec.next(&o.iv)
	if err != nil {
		return 0, nil, err
	}
	plain, err := o.open(payload)
	if err != nil {
		return 0, nil, err
	}
	typ, body, err = o.parse(plain)
	if err != nil || typ != typeRekey {
		return typ, body, err
	}
	if o.rekeys++; o.rekeys > maxRekeysInRow {
		return 0, nil, violation(RuleRekey, "too many rekeys without data")
	}
	return typ, nil, o.keys.advance()
}

// open checks the record number before it decrypts, in place.
func (o *opener) open(payload []byte) ([]byte, error) {
	putIV(&o.nonce, o.keys.number)
	if o.iv != o.nonce {
		return nil, violation(RuleNumber, "not the next record number")
	}
	if o.keys.number >= maxRecords {
		return nil, violation(RuleLimit, "the key has sealed too many records")
	}
	plain, err := o.keys.aead.Open(payload[:0], o.nonce[:], payload, nil)
	if err != nil {
		return nil, violation(RuleOpen, "a record does not authenticate")
	}
	o.keys.number++
	return plain, nil
}

// parse splits a plaintext. It has at least recordHeader bytes: the decoder
// refuses shorter payloads.
func (o *opener) parse(plain []byte) (typ byte, body []byte, err error) {
	typ = plain[0]
	length := binary.BigEndian.Uint32(plain[1:]) // an int may have 32 bits: too few
	if int64(length) > int64(len(plain)-recordHeader) || len(plain) != o.size(recordHeader+int(length)) {
		return 0, nil, violation(RuleRecordLength, "the plaintext's size does not fit its length field and the padding")
	}
	body = plain[recordHeader:][:length]
	if !allZero(plain[recordHeader+len(body):]) {
		return 0, nil, violation(RulePadding, "padding that is not zero")
	}
	switch typ {
	case typeData:
		if length == 0 {
			return 0, nil, violation(RuleRecordLength, "a data record without data")
		}
		o.rekeys = 0
	case typeClose, typeRekey:
		if length != 0 {
			return 0, nil, violation(RuleRecordLength, "a close or rekey record with a body")
		}
	case typeControl:
	default:
		return 0, nil, violation(RuleType, "an unknown record type")
	}
	return typ, body, nil
}

// size is the plaintext's size for n bytes of header and body.
func (o *opener) size(n int) int {
	if o.padding == 0 {
		return n
	}
	return (n + o.padding - 1) / o.padding * o.padding
}

func allZero(b []byte) bool {
	var or byte
	for _, c := range b {
		or |= c
	}
	return or == 0
}
