//go:build poison

package mux

import (
	"bytes"
	"sync/atomic"
	"testing"

	"github.com/sealane/sealane/session/loan"
)

// TestLoansArePoisoned: in the mode that the tag poison chooses, a body is
// overwritten once its receiver has returned, and a chunk once it is freed.
func TestLoansArePoisoned(t *testing.T) {
	g, _ := testGuard()
	record := []byte(syn(1) + data(1, 100))
	if err := g.accept([][]byte{record}); err != nil {
		t.Fatal(err)
	}
	if body := record[2*yamuxHeaderLen:]; !poisoned(body) {
		t.Errorf("a body is %q after its receiver had it", body)
	}
	q := queue{unread: new(atomic.Int64)}
	q.add([]byte("something"))
	c := q.pop()
	p := c.bytes()
	q.free(c)
	if !poisoned(p) {
		t.Errorf("a chunk is %q after it was freed", p)
	}
}

func poisoned(p []byte) bool { return bytes.Count(p, []byte{loan.Poison}) == len(p) }
