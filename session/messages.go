package session

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"slices"
	"strconv"
)

// Lengths of the handshake's payloads in bytes (SPEC.md section 3).
const (
	kemKeyLen        = 1184 // ML-KEM-768 encapsulation key
	kemCiphertextLen = 1088
	payload1Len      = 2048 // encapsulation key, offer, zeros
	payload2Len      = 960  // choice, zeros
	payload3Len      = 5120 // length, claims, zeros
	message3Len      = 32 + 16 + payload3Len + 16
)

// protocolVersion is the only version this package speaks.
const protocolVersion = 1

// Bounds on the lists in an offer.
const (
	maxNames   = 16
	maxNameLen = 64
)

// An offer is what the initiator proposes inside message 1.
type offer struct {
	Versions   []int    `json:"versions"`
	Ciphers    []string `json:"ciphers"`
	Transforms []string `json:"transforms"`
	Padding    int      `json:"padding"`
	Ext        []string `json:"ext"`
}

// A choice is the responder's answer inside message 2.
type choice struct {
	Version   int      `json:"version"`
	Cipher    string   `json:"cipher"`
	Transform string   `json:"transform"`
	Padding   int      `json:"padding"`
	Ext       []string `json:"ext"`
}

func (c *Config) offer() *offer {
	return &offer{
		Versions:   []int{protocolVersion},
		Ciphers:    c.ciphers(),
		Transforms: c.transforms(),
		Padding:    c.Padding,
	}
}

func (o *offer) append(dst []byte) []byte {
	dst = append(dst, `{"versions":[`...)
	for i, v := range o.Versions {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = strconv.AppendInt(dst, int64(v), 10)
	}
	dst = append(dst, `],"ciphers":`...)
	dst = appendNames(dst, o.Ciphers)
	dst = append(dst, `,"transforms":`...)
	dst = appendNames(dst, o.Transforms)
	dst = append(dst, `,"padding":`...)
	dst = strconv.AppendInt(dst, int64(o.Padding), 10)
	dst = append(dst, `,"ext":`...)
	dst = appendNames(dst, o.Ext)
	return append(dst, '}')
}

func (c *choice) append(dst []byte) []byte {
	dst = append(dst, `{"version":`...)
	dst = strconv.AppendInt(dst, int64(c.Version), 10)
	dst = append(dst, `,"cipher":"`...)
	dst = append(dst, c.Cipher...)
	dst = append(dst, `","transform":"`...)
	dst = append(dst, c.Transform...)
	dst = append(dst, `","padding":`...)
	dst = strconv.AppendInt(dst, int64(c.Padding), 10)
	dst = append(dst, `,"ext":`...)
	dst = appendNames(dst, c.Ext)
	return append(dst, '}')
}

// appendNames writes a list of names, which need no escapes.
func appendNames(dst []byte, names []string) []byte {
	dst = append(dst, '[')
	for i, name := range names {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(dst, '"')
		dst = append(dst, name...)
		dst = append(dst, '"')
	}
	return append(dst, ']')
}

// parseOffer reads an offer and the zeros behind it. It decodes leniently and
// then demands that the offer, written again, gives the same bytes.
func parseOffer(b []byte) (*offer, error) {
	text := bytes.TrimRight(b, "\x00")
	var o offer
	if err := json.Unmarshal(text, &o); err != nil {
		return nil, violation(RuleOffer, "not an offer")
	}
	if !bytes.Equal(o.append(nil), text) {
		return nil, violation(RuleOffer, "not in its one form")
	}
	ok := o.Padding == 0 || o.Padding == paddingBlock
	for _, v := range o.Versions {
		ok = ok && v > 0
	}
	ok = ok && len(o.Versions) <= maxNames && noRepeats(o.Versions)
	if !ok || !validNames(o.Ciphers) || !validNames(o.Transforms) || !validNames(o.Ext) {
		return nil, violation(RuleOffer, "a value that no writer produces")
	}
	return &o, nil
}

// parseChoice reads the answer to o.
func parseChoice(b []byte, o *offer) (*choice, error) {
	text := bytes.TrimRight(b, "\x00")
	var c choice
	if err := json.Unmarshal(text, &c); err != nil {
		return nil, violation(RuleChoice, "not a choice")
	}
	if !bytes.Equal(c.append(nil), text) {
		return nil, violation(RuleChoice, "not in its one form")
	}
	offered := slices.Contains(o.Versions, c.Version) && slices.Contains(o.Ciphers, c.Cipher) &&
		slices.Contains(o.Transforms, c.Transform) && noRepeats(c.Ext)
	for _, name := range c.Ext {
		offered = offered && slices.Contains(o.Ext, name)
	}
	// chacha first in the offer is decisive (an initiator without AES
	// instructions), and the larger padding holds: all else is a downgrade.
	if len(o.Ciphers) > 0 && o.Ciphers[0] == cipherChaCha && c.Cipher != cipherChaCha {
		offered = false
	}
	if !offered || c.Padding < o.Padding || c.Padding != 0 && c.Padding != paddingBlock {
		return nil, violation(RuleChoice, "a choice that was not offered")
	}
	return &c, nil
}

// checkClaims reads the payload of message 3: length, claims and zeros. No ext
// that a node of this version chooses defines claims, so there are none
// (SPEC.md section 3).
func checkClaims(payload []byte) error {
	if binary.BigEndian.Uint16(payload) != 0 {
		return violation(RuleClaims, "claims that no ext defines")
	}
	if len(bytes.Trim(payload, "\x00")) != 0 {
		return violation(RuleClaims, "bytes behind the claims")
	}
	return nil
}

// choose is the responder's decision, by the rules of SPEC.md section 3.
func (c *Config) choose(o *offer) (*choice, error) {
	own := c.ciphers()
	var cipher string
	common := func(name string) bool { return slices.Contains(o.Ciphers, name) && slices.Contains(own, name) }
	chaChaFirst := own[0] == cipherChaCha || len(o.Ciphers) > 0 && o.Ciphers[0] == cipherChaCha
	switch {
	case chaChaFirst && common(cipherChaCha):
		cipher = cipherChaCha
	case common(cipherAES):
		cipher = cipherAES
	case common(cipherChaCha):
		cipher = cipherChaCha
	}
	transform := slices.IndexFunc(o.Transforms, func(t string) bool { return slices.Contains(c.transforms(), t) })
	if cipher == "" || transform < 0 || !slices.Contains(o.Versions, protocolVersion) {
		return nil, violation(RuleCommon, "no version, cipher or transform in common")
	}
	return &choice{
		Version:   protocolVersion,
		Cipher:    cipher,
		Transform: o.Transforms[transform],
		Padding:   max(o.Padding, c.Padding),
		Ext:       nil, // version 1 defines none
	}, nil
}

// validNames holds for a list of different names of [a-z0-9=.-]{1,64}.
func validNames(names []string) bool {
	for _, name := range names {
		if len(name) == 0 || len(name) > maxNameLen {
			return false
		}
		for _, r := range []byte(name) {
			if (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '=' && r != '.' && r != '-' {
				return false
			}
		}
	}
	return len(names) <= maxNames && noRepeats(names)
}

func noRepeats[T comparable](list []T) bool {
	for i, v := range list {
		if slices.Contains(list[:i], v) {
			return false
		}
	}
	return true
}
