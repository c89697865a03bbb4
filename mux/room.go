package mux

import (
	"errors"
	"time"
)

// moreLinks is what a peer's share of the links has beyond those that the
// configuration asks for: while a node restarts or moves, its old links and
// its new ones overlap, and both ends may dial.
const moreLinks = 4

var (
	errTooManyLinks = errors.New("too many links")
	errSilent       = errors.New("silent, and replaced by a new link")
)

// share is how many of the links no other peer can take from this one (SPEC.md
// section 3). Where there are fewer links than all shares, each is cut alike.
func (c *Config) share(p Peer) int {
	all := 0
	for _, other := range c.Peers {
		all += wholeShare(other)
	}
	if all <= c.Links {
		return wholeShare(p)
	}
	return max(1, wholeShare(p)*c.Links/all)
}

func wholeShare(p Peer) int { return max(1, p.Links) + moreLinks }

// reserve counts a link that comes up with a peer, if there is room for it. For
// one that the peer dialed, room is made: its link that has been silent the
// longest goes, if there is such a one.
func (m *Mux) reserve(p *peer, makeRoom bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.hasRoom(p) {
		m.held++
		p.held++
		return nil
	}
	if makeRoom {
		if l := p.mostSilent(m.timing.silent); l != nil {
			l.replaced.Store(true) // its room is the new link's
			m.wg.Go(func() { l.close(errSilent) })
			return nil
		}
	}
	m.refused(LimitLinks)
	return errTooManyLinks
}

// release gives back the room of a link that has ended or did not come up.
func (m *Mux) release(p *peer) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.held--
	p.held--
}

// hasRoom tells whether a peer may have another link: within its share while
// there is any, and past it while what is left covers what the others have not
// used of theirs.
func (m *Mux) hasRoom(p *peer) bool {
	free := m.cfg.Links - m.held
	if p.held < p.share || free <= 0 {
		return free > 0
	}
	for _, other := range m.peers {
		if other != p {
			free -= max(0, other.share-other.held)
		}
	}
	return free > 0
}

// beyondShare reports whether a peer has more links than it can count on. Those
// read with less memory, as a peer may have very many.
func (m *Mux) beyondShare(p *peer) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return p.held > p.share
}

// mostSilent returns the link on which nothing has come for the longest, if
// that is long enough.
func (p *peer) mostSilent(least time.Duration) (found *link) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, l := range p.links {
		silence := time.Since(l.heard())
		if silence >= least && !l.replaced.Load() {
			found, least = l, silence
		}
	}
	return found
}

// heard is when the last byte came.
func (l *link) heard() time.Time {
	if t := l.conn.Stats().LastIn; t.After(l.since) {
		return t
	}
	return l.since
}
