package mux

import (
	"encoding/binary"
	"fmt"
	"time"
)

// Constants of yamux's wire form.
const (
	yamuxHeaderLen = 12

	yamuxData         = 0
	yamuxWindowUpdate = 1
	yamuxPing         = 2
	yamuxGoAway       = 3

	flagSYN = 1
	flagACK = 2
	flagFIN = 4
	flagRST = 8

	// initialWindow is what yamux lets a new stream send unasked.
	initialWindow = 256 << 10
)

type yamuxHeader struct {
	version, kind byte
	flags         uint16
	id, length    uint32
}

func parseHeader(b []byte) yamuxHeader {
	return yamuxHeader{
		version: b[0],
		kind:    b[1],
		flags:   binary.BigEndian.Uint16(b[2:]),
		id:      binary.BigEndian.Uint32(b[4:]),
		length:  binary.BigEndian.Uint32(b[8:]),
	}
}

func appendHeader(b []byte, kind byte, flags uint16, id, length uint32) []byte {
	b = append(b, 0, kind)
	b = binary.BigEndian.AppendUint16(b, flags)
	b = binary.BigEndian.AppendUint32(b, id)
	return binary.BigEndian.AppendUint32(b, length)
}

// checkShape knows which flags go together. Any type of header may open,
// acknowledge, end or reset its stream, and a header that only ends one may
// still carry data or a grant (yamux specification, "Flag Field").
func checkShape(h yamuxHeader) error {
	if h.id == 0 {
		return violation(RuleYamuxStream, "stream id 0")
	}
	const known = flagSYN | flagACK | flagFIN | flagRST
	const both = flagFIN | flagRST
	if h.flags&^known != 0 || h.flags&flagSYN != 0 && h.flags&(flagACK|flagRST) != 0 || h.flags&both == both {
		return violation(RuleYamuxFlags, fmt.Sprintf("flags %#x", h.flags))
	}
	return nil
}

// A bucket is a token bucket. It starts full.
type bucket struct {
	rate, burst float64
	used        float64
	last        time.Time
}

func (b *bucket) take() bool {
	now := time.Now()
	if !b.last.IsZero() {
		b.used = max(0, b.used-b.rate*now.Sub(b.last).Seconds())
	}
	b.last = now
	if b.used+1 > b.burst {
		return false
	}
	b.used++
	return true
}
