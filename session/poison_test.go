//go:build poison

package session

import (
	"bytes"
	"testing"

	"github.com/sealane/sealane/session/loan"
)

// TestLoansArePoisoned: in the mode that the tag poison chooses, whatever was
// lent is overwritten at the moment when its loan ends.
func TestLoansArePoisoned(t *testing.T) {
	for _, transform := range []string{TransformJSON, TransformPacked, TransformGzip} {
		i, r, _ := memSession(t, transform)
		for _, n := range []int{1000, 1} {
			if _, err := i.Write(randomBytes(1, n)); err != nil {
				t.Fatal(err)
			}
		}
		one := make([][]byte, 0, 1)
		first, err := r.ReadRecords(one)
		if err != nil || !bytes.Equal(first[0], randomBytes(1, 1000)) {
			t.Fatal(transform, err)
		}
		lent := first[0][100:] // what comes before is used again for the next
		if _, err := r.ReadRecords(one); err != nil || !poisoned(lent) {
			t.Errorf("%s: a body is %x after the next call, %v", transform, lent[:8], err)
		}
	}
	b := NewBuffer()
	body := b.Body()
	clear(body)
	b.Free()
	if !poisoned(body) {
		t.Error("a buffer is as it was after Free")
	}
}

func poisoned(p []byte) bool { return bytes.Count(p, []byte{loan.Poison}) == len(p) }
