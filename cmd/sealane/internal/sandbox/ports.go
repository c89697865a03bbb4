package sandbox

import (
	"fmt"
	"strings"
)

// portSet is a set of TCP ports.
type portSet [65536 / 64]uint64

func setOf(ranges []Ports) *portSet {
	s := new(portSet)
	for _, r := range ranges {
		for p := int(r.First); p <= int(r.Last); p++ {
			s[p/64] |= 1 << (p % 64)
		}
	}
	return s
}

func (s *portSet) has(port int) bool { return s[port/64]&(1<<(port%64)) != 0 }

// covers says whether the whole range is in the set.
func (s *portSet) covers(r Ports) bool {
	for p := int(r.First); p <= int(r.Last); p++ {
		if !s.has(p) {
			return false
		}
	}
	return true
}

// each calls f for every port, in order.
func (s *portSet) each(f func(port uint16)) {
	for p := range len(s) * 64 {
		if s.has(p) {
			f(uint16(p))
		}
	}
}

// String lists the ports, with runs as ranges.
func (s *portSet) String() string {
	var list []string
	for p := 0; p < len(s)*64; p++ {
		if !s.has(p) {
			continue
		}
		first := p
		for p+1 < len(s)*64 && s.has(p+1) {
			p++
		}
		list = append(list, Ports{First: uint16(first), Last: uint16(p)}.span())
	}
	if len(list) == 0 {
		return "none"
	}
	return strings.Join(list, ", ")
}

func (p Ports) span() string {
	if p.First == p.Last {
		return fmt.Sprint(p.First)
	}
	return fmt.Sprintf("%d-%d", p.First, p.Last)
}
