//go:build poison

package loan

import "testing"

func TestPoison(t *testing.T) {
	p := []byte("lent")
	End(p)
	if string(p) != "\xdb\xdb\xdb\xdb" {
		t.Fatalf("%x", p)
	}
	Check(p)
	p[3] = 0
	defer func() {
		if recover() == nil {
			t.Error("nobody noticed a write after the loan's end")
		}
	}()
	Check(p)
}
