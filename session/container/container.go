// Package container writes and reads the three JSON texts that a sealane link
// consists of (SPEC.md section 2): `shared_key`, `encrypted` and `response`.
//
// Each text has exactly one legal byte form. Writers append that form to a
// buffer; a Reader takes the texts off a byte stream and accepts nothing else:
// it knows every constant byte by heart and everything between two constants
// must be canonical unpadded base64url. A Reader notices a byte that does not
// belong as soon as it has arrived, whether or not the text is complete, and
// never holds more than one text's limit.
//
// Base64 is done by a SIMD library whose decoder is laxer than this package:
// it takes '/' for '_', skips CR and LF near the end of its input and ignores
// the unused low bits of the last character. decodeChunk closes each of these
// gaps, and a fuzz target compares the result with a second encoding.
package container

import "github.com/segmentio/asm/base64"

// Sizes in bytes (SPEC.md sections 2 and 3).
const (
	// ShareLen is the length of a handshake share, before base64.
	ShareLen = 2096
	// ShareTextLen is the length of every shared_key text.
	ShareTextLen = len(sharePrefix) + 2795 + len(shareSuffix)
	// IVLen is the length of an encrypted text's iv, before base64.
	IVLen = 12
	// MinPayload and MaxPayload bound the payload of a sealed record, before
	// base64: 5 to 65,536 bytes of plaintext and a 16-byte tag.
	MinPayload = 5 + 16
	MaxPayload = 65536 + 16
	// MaxTextLen is the length of the longest legal text: a sealed record
	// with MaxPayload bytes.
	MaxTextLen = len(sealedPrefix) + ivChars + len(sealedMiddle) + maxPayloadChars + len(sealedSuffix)
	// MaxMessage3Text is the limit of the encrypted text that carries
	// handshake message 3.
	MaxMessage3Text = 8 << 10
	// MaxMessage3 is the most payload such a text has, before base64.
	MaxMessage3 = (MaxMessage3Text - len(sealedPrefix) - ivChars - len(sealedMiddle) - len(sealedSuffix)) * 6 / 8

	ivChars         = 16
	maxPayloadChars = (MaxPayload*8 + 5) / 6
)

// The constant parts of the three texts. What stands between them is base64.
const (
	sharePrefix = `{"sdmp":{"version":"0.13","schemas":["shared_key"]},"shared_key":{"group":"X25519MLKEM768","share":"`
	shareSuffix = `"}}`

	sealedPrefix = `{"sdmp":{"version":"0.13","schemas":["encrypted"]},"encrypted":{"iv":"`
	sealedMiddle = `","payload":"`
	sealedSuffix = `","recipients":[]}}`

	// BadRequest is the only clear response: the constant text that refuses a
	// handshake, whatever the cause.
	BadRequest = `{"sdmp":{"version":"0.13","schemas":["response"]},"response":{"status":"bad_request","identifier":"session"}}`
)

var encoding = base64.RawURLEncoding

// AppendShare appends the shared_key text for a share of ShareLen bytes.
func AppendShare(dst, share []byte) []byte {
	dst = append(dst, sharePrefix...)
	dst = appendBase64(dst, share)
	return append(dst, shareSuffix...)
}

// AppendSealed appends the encrypted text for an iv and a payload.
func AppendSealed(dst []byte, iv *[IVLen]byte, payload []byte) []byte {
	dst = append(dst, sealedPrefix...)
	dst = appendBase64(dst, iv[:])
	dst = append(dst, sealedMiddle...)
	dst = appendBase64(dst, payload)
	return append(dst, sealedSuffix...)
}

// SealedTextLen is the length of the encrypted text for a payload of n bytes.
func SealedTextLen(n int) int {
	return len(sealedPrefix) + ivChars + len(sealedMiddle) + (n*8+5)/6 + len(sealedSuffix)
}

func appendBase64(dst, src []byte) []byte {
	n := encoding.EncodedLen(len(src))
	start := len(dst)
	if cap(dst)-start < n {
		grown := make([]byte, start, 2*cap(dst)+n)
		copy(grown, dst)
		dst = grown
	}
	dst = dst[:start+n]
	encoding.Encode(dst[start:], src)
	return dst
}
