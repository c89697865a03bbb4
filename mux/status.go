package mux

import (
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/sealane/sealane/session"
)

// A PeerStatus is what a Mux knows about a peer.
type PeerStatus struct {
	Name      string
	Addresses []string
	Links     []LinkStatus
	Streams   int
	// What all links with the peer have carried since the start, those that
	// have ended among them.
	BytesIn, BytesOut   uint64
	RekeysIn, RekeysOut uint64
}

// A LinkState is what a link is good for.
type LinkState string

const (
	LinkStateUp       LinkState = "up"
	LinkStateDraining LinkState = "draining" // the peer takes no more streams on it
)

// A LinkStatus is what a Mux knows about a link.
type LinkStatus struct {
	State               LinkState
	Dialed              bool // by this node
	Address             string
	Since               time.Time
	RTT                 time.Duration
	Transform, Cipher   string
	Streams             int
	BytesIn, BytesOut   uint64
	RekeysIn, RekeysOut uint64
}

type traffic struct{ bytesIn, bytesOut, rekeysIn, rekeysOut uint64 }

func (t *traffic) add(s session.Stats) {
	t.bytesIn += s.BytesIn
	t.bytesOut += s.BytesOut
	t.rekeysIn += s.RekeysIn
	t.rekeysOut += s.RekeysOut
}

// Status returns the state of all peers, sorted by name.
func (m *Mux) Status() []PeerStatus {
	m.mu.Lock()
	peers := slices.Collect(maps.Values(m.peers))
	m.mu.Unlock()
	list := make([]PeerStatus, len(peers))
	for i, p := range peers {
		list[i] = p.status()
	}
	slices.SortFunc(list, func(a, b PeerStatus) int { return strings.Compare(a.Name, b.Name) })
	return list
}

func (p *peer) status() PeerStatus {
	p.mu.Lock()
	defer p.mu.Unlock()
	sum := p.past
	st := PeerStatus{Name: p.name, Addresses: p.cfg.Addresses, Streams: p.account.count()}
	for _, l := range p.links {
		stats := l.conn.Stats()
		sum.add(stats)
		st.Links = append(st.Links, l.status(stats))
	}
	st.BytesIn, st.BytesOut, st.RekeysIn, st.RekeysOut = sum.bytesIn, sum.bytesOut, sum.rekeysIn, sum.rekeysOut
	return st
}

func (l *link) status(stats session.Stats) LinkStatus {
	state := LinkStateUp
	if !l.usable() {
		state = LinkStateDraining
	}
	return LinkStatus{
		State: state, Dialed: l.dialed, Address: l.address, Since: l.since,
		RTT: time.Duration(l.lastRTT.Load()), Transform: l.conn.Transform(), Cipher: l.conn.Cipher(),
		Streams: int(l.load.Load()),
		BytesIn: stats.BytesIn, BytesOut: stats.BytesOut, RekeysIn: stats.RekeysIn, RekeysOut: stats.RekeysOut,
	}
}

// Ready returns the names of the peers with an address that have not had a
// link since the start.
func (m *Mux) Ready() (pending []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range m.peers {
		p.mu.Lock()
		if len(p.cfg.Addresses) > 0 && !p.everUp {
			pending = append(pending, p.name)
		}
		p.mu.Unlock()
	}
	slices.Sort(pending)
	return pending
}

// Violations returns how many violations of each rule this Mux has seen. The
// rules of all packages below are in it.
func (m *Mux) Violations() map[session.Rule]uint64 {
	m.violationMu.Lock()
	defer m.violationMu.Unlock()
	return maps.Clone(m.violations)
}

// Unread returns the bytes that arrived and were not read yet, over all
// streams, and their limit.
func (m *Mux) Unread() (used, limit int64) {
	_, limit = m.accounts.total()
	return m.accounts.unread.Load(), limit
}

// Granted returns the bytes that the limit on memory counts: what all streams
// may receive before this node grants more, and what of that has arrived and
// was not read yet.
func (m *Mux) Granted() int64 {
	held, _ := m.accounts.total()
	return held
}
