package session

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sealane/sealane/session/container"
)

// BenchmarkRespond is what a message 1 costs the responder until its answer is
// out: one that nobody made for it, and one of an initiator that knows its key
// and then goes away.
func BenchmarkRespond(b *testing.B) {
	ic, rc := configs(b)
	rc.Replay = nil // the same message 1 each time
	garbage := seededBytes("garbage", container.ShareLen)
	garbage[31] &= 0x7f
	for name, text := range map[string][]byte{
		"garbage": container.AppendShare(nil, garbage),
		"honest":  forgeInitiator(b, ic, rc.Key.Public()).honest1(b),
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if _, c, err := respondTo(rc, text); c != nil || err == nil {
					b.Fatal("accepted")
				}
			}
		})
	}
	b.Run("whole", func(b *testing.B) { // both roles
		for b.Loop() {
			x, y := memPair()
			e := shakeMem(x, y, ic, rc, time.Minute)
			if e.iErr != nil || e.rErr != nil {
				b.Fatal(e.iErr, e.rErr)
			}
			e.i.Abort(nil)
			e.r.Abort(nil)
		}
	})
}

// TestScalarMultiplications: a handshake costs each side its ephemeral key and
// three exchanges, and a message 1 that is none one exchange, and the two
// multiplications of an answer.
func TestScalarMultiplications(t *testing.T) {
	var i, r atomic.Int64
	ic, rc := configs(t)
	ic.multiplied, rc.multiplied = func() { i.Add(1) }, func() { r.Add(1) }
	want := func(what string, n *atomic.Int64, want int64) {
		t.Helper()
		if got := n.Swap(0); got != want {
			t.Errorf("%s: %d scalar multiplications, want %d", what, got, want)
		}
	}
	a, b := memPair()
	e := shakeMem(a, b, ic, rc, time.Minute)
	if e.iErr != nil || e.rErr != nil {
		t.Fatal(e.iErr, e.rErr)
	}
	e.i.Abort(nil)
	e.r.Abort(nil)
	want("the initiator", &i, 4)
	want("the responder", &r, 4)

	texts := message1s(t, ic, rc)
	r.Store(0)
	for name, text := range texts {
		respondTo(rc, text)
		want(name+" message 1", &r, 3)
	}
	if h := (&handshake{cfg: rc}); h.start(nil) != nil || ruleOf(second(h.readMessage1(make([]byte, 2096)))) != RuleKey {
		t.Error("a key of low order is taken")
	}
	want("reading a message 1 alone", &r, 1)
}

func second[A, B any](_ A, b B) B { return b }

// TestWhoMultiplies: scalar multiplications are where they are counted, and
// where keys are made and read.
func TestWhoMultiplies(t *testing.T) {
	multiplies := regexp.MustCompile(`\.ECDH\(|X25519\(\)\.(NewPrivateKey|GenerateKey)\(|curve25519|DH25519|checkPoint`)
	paths, err := filepath.Glob("*.go")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no sources: %v", err)
	}
	for _, path := range paths {
		if strings.HasSuffix(path, "_test.go") || path == "x25519.go" || path == "identity.go" {
			continue
		}
		source, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if found := multiplies.Find(source); found != nil {
			t.Errorf("%s: %s", path, found)
		}
	}
}
