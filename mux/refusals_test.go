package mux

import (
	"io"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/sealane/sealane/session"
)

// refusingGuard refuses all that the peer opens.
func refusingGuard() (*guard, *wire) {
	g, w := testGuard()
	g.hooks.opened = func(f *flow) (receiver, Limit) { return nil, LimitStreams }
	return g, w
}

// answers are the headers and bodies that refuse a stream.
func answers(id uint32) []string {
	opened := appendOpened(nil, StatusOverloaded, refusalText(LimitStreams))
	return []string{ack(id), header(yamuxData, 0, id, len(opened)) + string(opened), fin(id)}
}

// settled waits until all refusals were answered.
func settled(t *testing.T, g *guard) {
	t.Helper()
	eventually(t, "all are answered", func() bool {
		g.mu.Lock()
		defer g.mu.Unlock()
		return !g.refusals.running && len(g.refusals.queue) == 0
	})
}

// TestRefused: a refused stream is answered, yamux does not hear of it, and
// once the peer has ended it nothing is left.
func TestRefused(t *testing.T) {
	for name, c := range map[string]struct {
		before, after string
		answered      bool
	}{
		"FIN behind the answer": {syn(1) + data(1, 4100), data(1, 9) + more(1, 5) + fin(1), true},
		"FIN before the answer": {syn(1) + data(1, 4100) + fin(1), "", true},
		"FIN with SYN":          {header(yamuxWindowUpdate, flagSYN|flagFIN, 1, 0), "", true},
		"RST behind the answer": {syn(1), rst(1), true},
		"RST before the answer": {syn(1) + rst(1), "", false},
		"grants behind the end": {syn(1) + fin(1), more(1, 7), true},
	} {
		g, w := refusingGuard()
		seen, err := play(g, w, in(c.before))
		settled(t, g)
		if err == nil && c.after != "" {
			var more string
			more, err = play(g, w, in(c.after))
			seen += more
		}
		var want []string
		if c.answered {
			want = answers(1)
		}
		if err != nil || seen != "" || !slices.Equal(w.out(), want) {
			t.Errorf("%s: %v, yamux saw %q, wrote %q", name, err, seen, w.out())
		}
		if len(g.refusals.open) != 0 || g.account.refused != 0 || len(g.flows) != 0 || g.unackedIn != 0 {
			t.Errorf("%s: something is left: %+v", name, g.refusals)
		}
	}
}

// TestRefusedViolations: a peer may do no more with a refused stream than with
// another.
func TestRefusedViolations(t *testing.T) {
	for text, rule := range map[string]session.Rule{
		syn(1) + syn(1):              RuleYamuxReuse,
		syn(1) + ack(1):              RuleYamuxAck,
		syn(1) + fin(1) + data(1, 1): RuleYamuxFin,
		syn(1) + fin(1) + fin(1):     RuleYamuxFin,
		syn(1) + rst(1) + data(1, 1): RuleYamuxStream,
		syn(1) + syn(2):              RuleYamuxParity,
	} {
		g, w := refusingGuard()
		if _, err := play(g, w, in(text)); ruleOf(err) != rule {
			t.Errorf("%q: %v, want %v", text, err, rule)
		}
	}
}

// TestRefusedCostLittle: a peer may be refused very often.
func TestRefusedCostLittle(t *testing.T) {
	g, w := refusingGuard()
	g.synRate = bucket{rate: 1e9, burst: 1e9}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	const count = 20_000
	for id := uint32(1); id < 2*count; id += 2 {
		if _, err := play(g, w, in(syn(id)+data(id, 4100))); err != nil {
			t.Fatal(err)
		}
	}
	settled(t, g)
	w.text = ""
	runtime.GC()
	runtime.ReadMemStats(&after)
	if each := (int64(after.HeapAlloc) - int64(before.HeapAlloc)) / count; each > 200 {
		t.Errorf("%d bytes for each", each)
	}
	g.account.all.mu.Lock()
	g.account.refused = maxRefused
	g.account.all.mu.Unlock()
	if _, err := play(g, w, in(syn(2*count+1))); ruleOf(err) != RuleYamuxBacklog {
		t.Errorf("one more than all: %v", err)
	}
}

// TestStreamsStartLow as the account fills, and say so in the header that opens
// or acknowledges them.
func TestStreamsStartLow(t *testing.T) {
	g, w := testGuard()
	g.account.all.resize(64<<10, []*account{g.account})
	play(g, w, steps(in(syn(1)+syn(3)), out(ack(1), syn(2))))
	want := []string{header(yamuxWindowUpdate, flagACK, 1, modestWindow>>10), header(yamuxWindowUpdate, flagSYN, 2, floor>>10)}
	if !slices.Equal(w.out(), want) {
		t.Errorf("wrote %q, want %q", w.out(), want)
	}
	// The other way round.
	g, w = testGuard()
	play(g, w, steps(in(header(yamuxWindowUpdate, flagSYN, 1, 4)), out(ack(1), syn(2), syn(4)), in(header(yamuxWindowUpdate, flagACK, 2, 16)+ack(4))))
	for id, n := range map[uint32]int{1: 4 << 10, 2: 16 << 10, 4: initialWindow} {
		if got := g.credit(g.flows[id]); got != n {
			t.Errorf("stream %d: %d bytes may be sent, want %d", id, got, n)
		}
	}
	// yamux's own windows are larger, and mean what they say.
	play(g, w, in(header(yamuxWindowUpdate, flagSYN, 3, 1<<20)))
	if got := g.credit(g.flows[3]); got != initialWindow+1<<20 {
		t.Errorf("%d bytes", got)
	}
}

// TestOverdraftIsPaidByItsPeer: a peer that takes yamux's window where it was
// granted less may do so while its account has room. Over it, its own streams
// are reset, the worst first, and nobody else's.
func TestOverdraftIsPaidByItsPeer(t *testing.T) {
	const limit = 1 << 20
	keys := []*session.PrivateKey{newKey(t), newKey(t)}
	handler, streams := accepted()
	b := newNode(t, newKey(t), []Peer{
		{Name: "hostile", Keys: []session.PublicKey{keys[0].Public()}}, {Name: "honest", Keys: []session.PublicKey{keys[1].Public()}},
	}, func(c *Config) { c.Memory, c.Handler = limit, handler })
	honest := newNode(t, keys[1], []Peer{{Name: "b", Keys: []session.PublicKey{b.key.Public()}, Addresses: []string{b.addr}}}, nil)
	good := open(t, honest, "b")
	goodFar := <-streams
	good.Write(make([]byte, 2000))
	conns, err := dialLinks(t, 1, keys[0], b)
	if err != nil {
		t.Fatal(err)
	}
	conn := conns[0]
	frame, _ := appendOpen(nil, toEcho)
	var taken []*Stream
	for id := uint32(1); id < 40; id += 2 {
		conn.Write([]byte(syn(id) + dataOf(id, frame)))
		taken = append(taken, <-streams)
	}
	for id := uint32(1); id < 40; id += 2 {
		body := make([]byte, 60_000)
		copy(body, []byte{frameData, 0, byte((len(body) - frameHeaderLen) >> 8), byte((len(body) - frameHeaderLen) & 0xff)})
		conn.Write([]byte(dataOf(id, body)))
		if id == 5 {
			conn.Write([]byte(dataOf(id, body) + dataOf(id, body)))
		}
	}
	eventually(t, "some are reset", func() bool { return slices.ContainsFunc(taken, func(s *Stream) bool { return s.Err() != nil }) })
	eventually(t, "the account is within its bounds", func() bool { return !b.peers["hostile"].account.over() })
	if taken[2].Err() == nil {
		t.Error("the worst is not among those that were reset")
	}
	if used, _ := b.Unread(); used > limit {
		t.Errorf("%d bytes", used)
	}
	goodFar.SetReadDeadline(time.Now().Add(deadline))
	if n, err := goodFar.Read(make([]byte, 4000)); n == 0 {
		t.Errorf("the honest peer's: %v", err)
	}
	open(t, honest, "b").Close()
	if len(b.Violations()) > 0 {
		t.Error(b.Violations())
	}
}

// TestGrantsFollowACK: what the peer may send before it is acknowledged may be so
// much, of frames without much in them, that a grant is due before that.
func TestGrantsFollowACK(t *testing.T) {
	g, w := testGuard()
	g.account.all.resize(floor, []*account{g.account})
	play(g, w, in(syn(1)+data(1, floor)))
	g.freed(g.flows[1], floor)
	if len(w.out()) != 0 {
		t.Fatalf("before ACK: %q", w.out())
	}
	play(g, w, out(ack(1)))
	if want := []string{header(yamuxWindowUpdate, flagACK, 1, floor>>10), more(1, floor)}; !slices.Equal(w.out(), want) {
		t.Errorf("wrote %q, want %q", w.out(), want)
	}
}

// TestOverdraftOfAnEndedStream: one that has ended cannot be reset, and is not
// looked at time and again.
func TestOverdraftOfAnEndedStream(t *testing.T) {
	const late = 3 // bytes behind END: less than a frame's header
	read := make(chan struct{})
	a := rawResponder(t, nil, func(_ int, l *rawLink) {
		l.each(func(h yamuxHeader, body []byte) {
			if h.kind == yamuxData && body[0] == frameOpen {
				l.answer(h.id, appendEnd(nil, 0))
				<-read
				l.write(data(h.id, late))
			}
		})
	})
	s := open(t, a, "raw")
	if _, err := io.ReadAll(s); err != nil {
		t.Fatal(err)
	}
	close(read)
	eventually(t, "it has taken too much", func() bool { _, n := s.link.guard.offender(); return n == late })
	if err := s.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	p := a.peers["raw"]
	a.accounts.resize(1, []*account{p.account})
	if !p.account.over() {
		t.Fatal("there is room")
	}
	done := make(chan struct{})
	go func() { defer close(done); p.reclaim() }()
	select {
	case <-done:
	case <-time.After(2 * time.Second):
		a.accounts.resize(1<<30, []*account{p.account})
		t.Fatal("reclaim goes on and on")
	}
}

// TestRefusedAndReset: who resets what is refused, and reads no answers, has
// this node remember nothing of it.
func TestRefusedAndReset(t *testing.T) {
	g, w := refusingGuard()
	g.synRate, g.rstRate = bucket{rate: 1e9, burst: 1e9}, bucket{rate: 1e9, burst: 1e9}
	g.writeMu.Lock() // as if the link were full
	const count = 20_000
	for id := uint32(3); id < 2*count; id += 2 {
		if _, err := play(g, w, in(syn(id)+rst(id))); err != nil {
			t.Fatal(err)
		}
	}
	play(g, w, in(syn(1)+syn(2*count+1)))
	g.mu.Lock()
	if n := len(g.refusals.queue); n > count/10 {
		t.Errorf("%d of %d wait to be answered", n, count)
	}
	g.mu.Unlock()
	g.writeMu.Unlock()
	settled(t, g)
	if want := append(answers(1), answers(2*count+1)...); !slices.Equal(w.out(), want) {
		t.Errorf("wrote %q", w.out())
	}
}
