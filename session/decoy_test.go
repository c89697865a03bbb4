package session

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sealane/sealane/session/container"
)

// message1s are texts that a stranger may send to an address: recorded ones of
// handshakes with the node that may be there, and others.
func message1s(t testing.TB, ic, rc Config) map[string][]byte {
	t.Helper()
	good := func() []byte { return forgeInitiator(t, ic, rc.Key.Public()).honest1(t) }
	replayed := good()
	respondTo(rc, replayed)
	garbage := randomBytes(9, container.ShareLen)
	garbage[31] &= 0x7f
	flipped := share(t, good())
	flipped[40] ^= 1
	unreduced := share(t, good())
	unreduced[31] |= 0x80
	zero := share(t, good())
	clear(zero[:32])
	f := forgeInitiator(t, ic, rc.Key.Public())
	kem := f.kem.EncapsulationKey().Bytes()
	offer := string(f.offer.append(nil))
	sealed := func(kem []byte, offer string) []byte {
		return forgeInitiator(t, ic, rc.Key.Public()).message1(t, payload1(kem, offer))
	}
	return map[string][]byte{
		"good":              good(),
		"replayed":          replayed,
		"foreign":           forgeInitiator(t, ic, newKey(t).Public()).honest1(t),
		"garbage":           container.AppendShare(nil, garbage),
		"flipped":           container.AppendShare(nil, flipped),
		"high bit":          container.AppendShare(nil, unreduced),
		"low order":         container.AppendShare(nil, zero),
		"bad ML-KEM key":    sealed(bytes.Repeat([]byte{0xff}, kemKeyLen), offer),
		"bad offer":         sealed(kem, "{}"),
		"nothing in common": sealed(kem, strings.Replace(offerBoth, "[1]", "[2]", 1)),
	}
}

// message3s are what may follow, in pieces, from a stranger without the keys.
func message3s() map[string][]string {
	sealed := func(n int) string {
		return string(container.AppendSealed(nil, new([container.IVLen]byte), randomBytes(4, n)))
	}
	three, largest := sealed(message3Len), sealed(container.MaxMessage3)
	iv := container.AppendSealed(nil, &[container.IVLen]byte{1}, randomBytes(4, message3Len))
	return map[string][]string{
		"message 3":      {three},
		"in pieces":      {three[:60], three[60:200], three[200 : len(three)-1], three[len(three)-1:]},
		"one byte short": {sealed(message3Len - 1)},
		"empty":          {sealed(0)},
		"the largest":    {largest},
		"longer, slowly": {largest[:7200], largest[7200:8000], largest[8000:]},
		"too large":      {sealed(container.MaxMessage3 + 1)},
		"iv":             {string(iv)},
		"not base64":     {strings.Replace(three, "payload\":\"", "payload\":\"!", 1)},
		"a newline":      {"\n"},
		"HTTP":           {"GET / HTTP/1.1\r\n\r\n"},
		"a share":        {string(container.AppendShare(nil, randomBytes(5, container.ShareLen)))},
		"the response":   {container.BadRequest},
		"half":           {three[:len(three)/2]},
		"silence":        {},
	}
}

// A course is all that a stranger sees of a responder: what came when.
type course struct {
	events []string
	texts  [][]byte
}

// see follows a responder from the outside, in a bubble whose clock stands
// still while anybody works.
func see(t *testing.T, rc Config, one []byte, rest []string) (c course, err error) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		begun := time.Now()
		done := make(chan error)
		go func() {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			_, err := Respond(ctx, b, rc)
			done <- err
		}()
		read := make(chan struct{})
		var sent atomic.Int32
		go func() {
			defer close(read)
			buf := make([]byte, 1<<16)
			for {
				n, err := a.Read(buf)
				c.events = append(c.events, fmt.Sprintf("%d bytes, %v, after %d pieces at %v", n, err, sent.Load(), time.Since(begun)))
				c.texts = append(c.texts, bytes.Clone(buf[:n]))
				if err != nil {
					return
				}
			}
		}()
		for _, piece := range append([]string{string(one)}, rest...) {
			if _, err := io.WriteString(a, piece); err != nil {
				break
			}
			synctest.Wait()
			sent.Add(1)
			time.Sleep(100 * time.Millisecond)
		}
		err = <-done
		<-read
		a.Close()
	})
	return c, err
}

// TestDecoysLookLikeAnswers: whatever a message 1 is, what a stranger sees of
// the answer, and of what follows, has the same form and the same order.
func TestDecoysLookLikeAnswers(t *testing.T) {
	ic, rc := configs(t)
	for after, rest := range message3s() {
		var want []string
		for name, one := range message1s(t, ic, rc) {
			c, err := see(t, rc, one, rest)
			if name != "good" && ruleOf(err) == "" {
				t.Errorf("%s, then %s: %v is not counted as a violation", name, after, err)
			}
			if want == nil {
				want = c.events
			}
			if !slices.Equal(c.events, want) {
				t.Errorf("%s, then %s:\n%s\nwant\n%s", name, after, strings.Join(c.events, "\n"), strings.Join(want, "\n"))
			}
			checkFresh(t, name, rc, one, c.texts[0])
		}
	}
}

// checkFresh: an answer is a share with an ephemeral key that a node makes, and
// is another one each time.
func checkFresh(t *testing.T, name string, rc Config, one, text []byte) {
	t.Helper()
	again, _, _ := respondTo(rc, one)
	if bytes.Equal(again, text) {
		t.Errorf("%s: the same answer twice", name)
	}
	for _, text := range [][]byte{text, again} {
		s := share(t, text)
		if err := PublicKey(s[kemCiphertextLen:][:32]).checkPoint(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestDecoysDoNotOpen: not even whoever made a message 1 that authenticates
// can open the decoy that it gets, or be taken behind it.
func TestDecoysDoNotOpen(t *testing.T) {
	ic, rc := configs(t)
	f := forgeInitiator(t, ic, rc.Key.Public())
	text := f.message1(t, payload1(f.kem.EncapsulationKey().Bytes(), "{}"))
	answer, _, err := respondTo(rc, text)
	wantDecoy(t, answer, nil, err, RuleOffer, "")
	if _, err := f.openMessage2(share(t, answer), f.kem); err != ErrUnopened {
		t.Error(err)
	}
}

// TestStrangersDoNotFlushTheReplayCache: what does not authenticate is not
// remembered, or 65,536 texts of a stranger would make room for a replay.
func TestStrangersDoNotFlushTheReplayCache(t *testing.T) {
	ic, rc := configs(t)
	for name, one := range message1s(t, ic, rc) {
		before := len(rc.Replay.seen)
		respondTo(rc, one)
		remembered := len(rc.Replay.seen) > before
		authentic := name == "good" || strings.HasPrefix(name, "bad") || name == "nothing in common"
		if remembered != authentic {
			t.Errorf("%s: remembered %v", name, remembered)
		}
	}
}

// TestAnswerTimes prints, with -v, how long the answers to message 1s take.
// Nothing is asserted: a busy machine would fail it. The rounds are mixed so that
// what else the machine does strikes all alike.
func TestAnswerTimes(t *testing.T) {
	if !testing.Verbose() {
		t.Skip("prints how long answers take, and asserts nothing: with -v")
	}
	const rounds = 400
	ic, rc := configs(t)
	var err error
	if rc.Decoys, err = NewDecoys(); err != nil {
		t.Fatal(err)
	}
	took := map[string][]time.Duration{}
	for range rounds {
		for name, one := range message1s(t, ic, rc) {
			begun := time.Now()
			respondTo(rc, one)
			took[name] = append(took[name], time.Since(begun))
		}
	}
	for name, all := range sorted(took) {
		slices.Sort(all)
		at := func(p int) time.Duration { return all[len(all)*p/100].Round(time.Microsecond) }
		t.Logf("%-18s p5 %v, p25 %v, median %v, p75 %v, p95 %v", name, at(5), at(25), at(50), at(75), at(95))
	}
}
