package mux

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/sealane/sealane/session"
)

// TestLinksAreDivided: a peer can have what is free, but never what another's
// share needs.
func TestLinksAreDivided(t *testing.T) {
	for _, c := range []struct {
		links int   // the limit
		wants []int // how many links each peer is configured with
		tries []int // for each peer in turn, reserve until refused
		got   []int
	}{
		{20, []int{0, 0}, []int{0, 1}, []int{15, 5}},
		{20, []int{0, 4}, []int{0, 1}, []int{12, 8}},
		{20, []int{0}, []int{0}, []int{20}},
		{10, []int{0, 0}, []int{0, 1}, []int{5, 5}},
		{4, []int{0, 0}, []int{0, 1}, []int{2, 2}},
		{9, []int{0, 0, 0}, []int{2, 1, 0}, []int{3, 3, 3}},
		{2, []int{0, 0, 0}, []int{0, 1, 2}, []int{1, 1, 0}},
		{1024, make([]int, 500), []int{0, 1, 499}, []int{26, 2, 2}},
	} {
		cfg := Config{Session: session.Config{Key: newKey(t)}, Links: c.links}
		for i, n := range c.wants {
			cfg.Peers = append(cfg.Peers, Peer{Name: fmt.Sprint(i), Keys: []session.PublicKey{newKey(t).Public()}, Links: n})
		}
		m, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		for i, name := range c.tries {
			p, n := m.peers[fmt.Sprint(name)], 0
			for m.reserve(p, true) == nil {
				n++
			}
			if n != c.got[i] {
				t.Errorf("%d links for %v: peer %d gets %d, want %d of %v", c.links, c.wants[:min(5, len(c.wants))], name, n, c.got[i], c.got)
			}
		}
		for _, name := range c.tries { // and all is given back
			p := m.peers[fmt.Sprint(name)]
			for p.held > 0 {
				m.release(p)
			}
		}
		if p := m.peers["0"]; m.held != 0 || m.reserve(p, false) != nil {
			t.Errorf("%d links are still counted", m.held)
		}
		m.Close()
	}
}

// dialLinks makes n links to a node, which nothing then happens on, as long as
// it takes them.
func dialLinks(t *testing.T, n int, key *session.PrivateKey, to *node) (all []*session.Conn, err error) {
	t.Helper()
	for range n {
		c, err := net.Dial("tcp", to.addr)
		if err != nil {
			t.Fatal(err)
		}
		s, err := session.Initiate(testContext(t), c, to.key.Public(), session.Config{Key: key})
		if err != nil {
			return all, err
		}
		t.Cleanup(func() { s.Abort(nil) })
		all = append(all, s)
	}
	return all, nil
}

// TestAGreedyPeerTakesItsOwnLinks: over its share it is refused by a close in
// record 0, or loses what has been silent for the longest.
func TestAGreedyPeerTakesItsOwnLinks(t *testing.T) {
	t.Parallel()
	greedy, modest, unknown := newKey(t), newKey(t), newKey(t)
	results := make(chan string, 1000)
	timing := fastTiming()
	timing.silent = 1500 * time.Millisecond
	timing.tick = time.Hour // no pings: what is silent stays so
	b := newTimedNode(t, timing, newKey(t), []Peer{
		{Name: "greedy", Keys: []session.PublicKey{greedy.Public()}}, {Name: "modest", Keys: []session.PublicKey{modest.Public()}},
	}, func(c *Config) {
		c.Links = 12
		c.Hooks.LinkResult = func(peer string, r LinkResult) { results <- peer + " " + string(r) }
	})
	begun := time.Now()
	links, err := dialLinks(t, 20, greedy, b)
	if len(links) != 7 || !errors.Is(err, session.ErrNoRoom) {
		t.Fatalf("%d links, then %v", len(links), err)
	}
	eventually(t, "the refusal is counted as one", func() bool { return len(results) == 8 })
	counts := make(map[string]int) // a refusal may be told before the link that came before it
	for range 8 {
		counts[<-results]++
	}
	if counts["greedy ok"] != 7 || counts["greedy limited"] != 1 {
		t.Errorf("results %v", counts)
	}
	if n := b.log.count("link up"); n != 7 {
		t.Errorf("%d links were logged as up", n)
	}
	if !strings.Contains(b.log.String(), errTooManyLinks.Error()) {
		t.Error("the refusal is not logged")
	}
	// Authorization comes before limits.
	if _, err := dialLinks(t, 1, unknown, b); !errors.Is(err, session.ErrNotFound) {
		t.Error(err)
	}
	if all, err := dialLinks(t, 6, modest, b); len(all) != 5 || !errors.Is(err, session.ErrNoRoom) {
		t.Errorf("%d links for the other peer, then %v", len(all), err)
	}
	// The first that falls silent makes way.
	time.Sleep(time.Until(begun.Add(timing.silent + 100*time.Millisecond)))
	for _, l := range links[1:] {
		if _, err := l.Write([]byte{0}); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "only one link is silent", func() bool {
		b.mu.Lock()
		p := b.peers["greedy"]
		b.mu.Unlock()
		silent := 0
		for _, l := range p.allLinks() {
			if time.Since(l.heard()) >= timing.silent {
				silent++
			}
		}
		return silent == 1
	})
	if _, err := dialLinks(t, 1, greedy, b); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, links[0]); err != nil { // a sealed close
		t.Errorf("the link that was silent ended with %v", err)
	}
}

// TestRefusedLinksAreDialedSeldom: a peer that takes no more links is dialed
// ever later, and the refusals do not count as links.
func TestRefusedLinksAreDialedSeldom(t *testing.T) {
	t.Parallel()
	key := newKey(t)
	b := newTimedNode(t, defaultTiming, newKey(t), []Peer{{Name: "a", Keys: []session.PublicKey{key.Public()}}}, func(c *Config) { c.Links = 1 })
	held, err := dialLinks(t, 1, key, b)
	if err != nil {
		t.Fatal(err)
	}
	results := make(chan time.Time, 1000)
	timing := fastTiming()
	timing.backoffMin, timing.backoffMax = 40*time.Millisecond, time.Minute
	a := newTimedNode(t, timing, key, []Peer{{Name: "b", Keys: []session.PublicKey{b.key.Public()}, Addresses: []string{b.addr}}}, func(c *Config) {
		c.Hooks.LinkResult = func(_ string, r LinkResult) {
			if r == LinkNoRoom {
				results <- time.Now()
			}
		}
	})
	// The waits are at least half of 40, 80, 160, 320 and 640 ms.
	if took := sixTook(results); took < 620*time.Millisecond {
		t.Errorf("dialed 6 times in %v", took)
	}
	if a.log.count("link up") != 0 || a.log.count(session.ErrNoRoom.Error()) != 1 {
		t.Error("not logged, once, as what it is")
	}
	held[0].Close() // and now there is room
	eventually(t, "the link is up", func() bool { return a.log.count("link up") == 1 })
}

// sixTook waits for six times and returns how long it is from the first to the
// last.
func sixTook(times <-chan time.Time) time.Duration {
	first := <-times
	last := first
	for range 5 {
		last = <-times
	}
	return last.Sub(first)
}

// TestUselessLinksAreRedialedEverLater: of a peer that takes a link and then has
// no use for it, whatever it answered before, and no link piles up.
func TestUselessLinksAreRedialedEverLater(t *testing.T) {
	t.Parallel()
	leave := func(l *rawLink) { l.write(header(yamuxGoAway, 0, 0, 0)) }
	end := func(l *rawLink) { l.conn.Close() }
	for name, c := range map[string]struct {
		after int // pings that it answers
		then  func(*rawLink)
	}{
		"it leaves and stays":         {0, leave},
		"it answers a ping and stays": {1, leave},
		"it ends":                     {0, end},
		"it answers a ping and ends":  {1, end},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dials := make(chan time.Time, 1000)
			timing := fastTiming()
			timing.tick = 100 * time.Millisecond
			timing.backoffMin, timing.backoffMax = 80*time.Millisecond, time.Minute
			a := timedRawResponder(t, timing, nil, func(_ int, l *rawLink) {
				dials <- time.Now()
				l.serve(c.after, c.then)
			})
			// The waits are at least half of 80, 160, 320, 640 and 1280 ms.
			if took := sixTook(dials); took < 1240*time.Millisecond {
				t.Errorf("dialed 6 times in %v", took)
			}
			eventually(t, "one link at most is left", func() bool { return len(a.allLinks()) <= 1 })
		})
	}
}

// serve answers some pings, does then, and answers those that still come.
func (l *rawLink) serve(pings int, then func(*rawLink)) {
	if pings == 0 {
		then(l)
	}
	var b [yamuxHeaderLen]byte
	for {
		if _, err := io.ReadFull(l.conn, b[:]); err != nil {
			return
		}
		if h := parseHeader(b[:]); h.kind == yamuxPing {
			l.write(ping(flagACK, int(h.length)))
			if pings--; pings == 0 {
				then(l)
			}
		}
	}
}

// TestViolationsAreRedialedEverLater: a link that breaks a rule comes up first,
// and is no reason to start over with the waits.
func TestViolationsAreRedialedEverLater(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ka, kb := newKey(t), newKey(t)
	dials := make(chan time.Time, 1000)
	served := make(chan struct{})
	go func() {
		defer close(served)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			dials <- time.Now()
			s, err := session.Respond(testContext(t), c, session.Config{Key: kb, Authorize: func(session.PublicKey) bool { return true }})
			if err == nil {
				s.Write([]byte("not yamux at all"))
				io.Copy(io.Discard, s) // until it is thrown out
			}
		}
	}()
	defer func() { ln.Close(); <-served }()
	timing := fastTiming()
	timing.backoffMin, timing.backoffMax = 40*time.Millisecond, time.Minute
	a := newTimedNode(t, timing, ka, []Peer{{Name: "b", Keys: []session.PublicKey{kb.Public()}, Addresses: []string{ln.Addr().String()}}}, nil)
	first := <-dials
	var last time.Time
	for range 5 {
		last = <-dials
	}
	if took := last.Sub(first); took < 620*time.Millisecond {
		t.Errorf("dialed 6 times in %v", took)
	}
	if a.log.count("link up") == 0 {
		t.Error("no link came up")
	}
	a.Close()
}
