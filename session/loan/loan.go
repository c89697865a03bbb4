// Package loan marks where the loan of memory ends: of a record's body that
// was read, of a buffer that goes back to its pool. Whoever lends memory calls
// End at that moment, and from then on nobody may use what was lent.
//
// In a program built with the tag poison, End fills it with Poison, so that
// whoever does use it reads wrong bytes every time and not once a day, and
// Check finds who wrote to it. In all others both cost nothing.
package loan

import "bytes"

// Poison is what memory is filled with whose loan has ended.
const Poison = 0xDB

// End ends the loan of p.
func End(p []byte) {
	if poisoning && len(p) > 0 {
		p[0] = Poison
		for n := 1; n < len(p); n *= 2 {
			copy(p[n:], p[:n])
		}
	}
}

// Check panics if anybody has written to p since its loan ended.
func Check(p []byte) {
	if poisoning && bytes.Count(p, []byte{Poison}) != len(p) {
		panic("loan: memory was written to after its loan had ended")
	}
}
