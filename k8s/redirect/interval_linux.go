package redirect

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/google/nftables"
)

// An interval is a range of set keys, both ends included, as the kernel orders them: big endian.
type interval struct{ lo, hi []byte }

// split divides prefixes by family.
func split(prefixes []netip.Prefix) (v4, v6 []interval) {
	for _, p := range prefixes {
		iv := prefixInterval(p)
		if p.Addr().Is4() {
			v4 = append(v4, iv)
		} else {
			v6 = append(v6, iv)
		}
	}
	return v4, v6
}

func prefixInterval(p netip.Prefix) interval {
	lo := p.Masked().Addr().AsSlice()
	hi := slices.Clone(lo)
	for bit := p.Bits(); bit < len(hi)*8; bit++ {
		hi[bit/8] |= 0x80 >> (bit % 8)
	}
	return interval{lo, hi}
}

func portIntervals(ranges []PortRange) []interval {
	ivs := make([]interval, len(ranges))
	for i, r := range ranges {
		ivs[i] = interval{binary.BigEndian.AppendUint16(nil, r.Lo), binary.BigEndian.AppendUint16(nil, r.Hi)}
	}
	return ivs
}

// mergeIntervals sorts intervals and joins those that overlap or touch: the kernel refuses overlaps in a set.
func mergeIntervals(ivs []interval) []interval {
	ivs = slices.Clone(ivs)
	slices.SortFunc(ivs, func(a, b interval) int { return bytes.Compare(a.lo, b.lo) })
	var merged []interval
	for _, iv := range ivs {
		if n := len(merged); n > 0 {
			last := &merged[n-1]
			after := next(last.hi)
			if after == nil || bytes.Compare(iv.lo, after) <= 0 {
				if bytes.Compare(iv.hi, last.hi) > 0 {
					last.hi = iv.hi
				}
				continue
			}
		}
		merged = append(merged, iv)
	}
	return merged
}

// elements writes intervals the way the kernel keeps them: where each starts and where it has ended.
func elements(ivs []interval) []nftables.SetElement {
	var els []nftables.SetElement
	for _, iv := range ivs {
		els = append(els, nftables.SetElement{Key: iv.lo})
		if end := next(iv.hi); end != nil { // the last possible key has no end
			els = append(els, nftables.SetElement{Key: end, IntervalEnd: true})
		}
	}
	return els
}

// intervalsOf is the inverse of elements, for elements in any order.
func intervalsOf(els []nftables.SetElement) []interval {
	els = slices.Clone(els)
	slices.SortFunc(els, func(a, b nftables.SetElement) int {
		if c := bytes.Compare(a.Key, b.Key); c != 0 {
			return c
		}
		if a.IntervalEnd == b.IntervalEnd {
			return 0
		}
		if a.IntervalEnd {
			return -1
		}
		return 1
	})
	var ivs []interval
	for i, e := range els {
		if e.IntervalEnd {
			continue
		}
		hi := bytes.Repeat([]byte{0xff}, len(e.Key))
		if i+1 < len(els) {
			hi = previous(els[i+1].Key)
		}
		ivs = append(ivs, interval{e.Key, hi})
	}
	return ivs
}

// next is the key after k, or nil after the last one.
func next(k []byte) []byte {
	n := slices.Clone(k)
	for i := len(n) - 1; i >= 0; i-- {
		n[i]++
		if n[i] != 0 {
			return n
		}
	}
	return nil
}

// previous is the key before k, which is not the first.
func previous(k []byte) []byte {
	p := slices.Clone(k)
	for i := len(p) - 1; i >= 0; i-- {
		p[i]--
		if p[i] != 0xff {
			break
		}
	}
	return p
}
