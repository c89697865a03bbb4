package mux

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/sealane/sealane/session"
	"github.com/sealane/sealane/session/container"
)

// A peer has the links with one peer and keeps those up that this node dials.
type peer struct {
	mux     *Mux
	name    string
	ctx     context.Context // ends when the peer is removed
	cancel  context.CancelFunc
	account *account

	mu      sync.Mutex
	cfg     Peer
	links   []*link
	changed chan struct{} // closed and replaced when links change
	updated chan struct{} // and when cfg does
	everUp  bool
	slots   map[int]bool         // which dialing loops run
	failed  map[string]time.Time // addresses that failed last time
	moving  bool                 // a slot moves its link to another address
	past    traffic              // of links that have ended

	share, held int // of the limit on links; guarded by the Mux's mutex

	lastFailure   LinkResult // why no link came up, as last logged
	failureLogged time.Time
}

func newPeer(m *Mux, name string) *peer {
	ctx, cancel := context.WithCancel(m.ctx)
	return &peer{
		mux: m, name: name, ctx: ctx, cancel: cancel, account: m.accounts.account(),
		changed: make(chan struct{}), updated: make(chan struct{}), slots: make(map[int]bool), failed: make(map[string]time.Time),
	}
}

// update takes a new configuration and ends the links of keys that went.
func (p *peer) update(cfg Peer) {
	p.mu.Lock()
	p.cfg = cfg
	close(p.updated)
	p.updated = make(chan struct{})
	var gone []*link
	for _, l := range p.links {
		if !slices.Contains(cfg.Keys, l.conn.Peer()) {
			gone = append(gone, l)
		}
	}
	p.mu.Unlock()
	for _, l := range gone {
		l.drop()
	}
}

// removeAll ends the peer.
func (p *peer) removeAll() {
	p.cancel()
	p.account.dissolve()
	for _, l := range p.allLinks() {
		l.drop()
	}
}

// drop resets a link's streams and closes it: its peer is no longer one.
func (l *link) drop() {
	l.end(ErrPeerRemoved)
	for _, s := range l.snapshot() {
		s.abort(fmt.Errorf("%w: %w", ErrTruncated, ErrPeerRemoved), true)
	}
	l.mux.wg.Go(func() { l.close(ErrPeerRemoved) })
}

func (p *peer) allLinks() []*link {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.links)
}

// openStream counts a stream, or tells which limit forbids it.
func (p *peer) openStream() Limit {
	limit := p.account.open(int(p.mux.streamsPerPeer.Load()))
	if limit == "" {
		p.mux.streams.Add(1)
	} else {
		p.mux.refused(limit)
	}
	return limit
}

// acquireStream is openStream for a stream of this node's.
func (p *peer) acquireStream() error {
	if limit := p.openStream(); limit != "" {
		return &OpenError{Status: StatusOverloaded, Text: refusalText(limit)}
	}
	return nil
}

func (p *peer) releaseStream() {
	p.account.close()
	p.mux.streams.Add(-1)
	select {
	case p.mux.streamGone <- struct{}{}:
	default:
	}
}

// reclaim resets the streams in which the peer took more than it was granted,
// the largest first, until its account is within its bounds.
func (p *peer) reclaim() {
	for p.account.over() {
		var worst receiver
		most := 0
		for _, l := range p.allLinks() {
			if to, beyond := l.guard.offender(); beyond > most {
				worst, most = to, beyond
			}
		}
		if worst == nil {
			return
		}
		s := worst.(*Stream)
		s.Reset(ResetOverloaded)
		s.link.guard.abandon(s.flow) // also if it has ended: else it stays the worst for ever
		p.mux.refused(LimitMemory)
	}
}

// pick waits for a link that takes streams, and returns the least loaded: of
// those that this node dialed, or, if there are none, of all.
func (p *peer) pick(ctx context.Context) (*link, error) {
	for {
		p.mu.Lock()
		l := p.best(func(*link) bool { return true })
		changed := p.changed
		p.mu.Unlock()
		if l != nil {
			return l, nil
		}
		select {
		case <-changed:
		case <-p.ctx.Done():
			return nil, fmt.Errorf("%w %s: %w", ErrNoLink, p.name, ErrPeerRemoved)
		case <-ctx.Done():
			return nil, fmt.Errorf("%w %s: %w", ErrNoLink, p.name, context.Cause(ctx))
		}
	}
}

// elsewhere returns the least loaded link that this node dialed at none of the
// addresses, or nil.
func (p *peer) elsewhere(addresses []string) *link {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.best(func(l *link) bool { return l.dialed && !slices.Contains(addresses, l.address) })
}

func (p *peer) best(eligible func(*link) bool) (best *link) {
	for _, l := range p.links {
		switch {
		case !l.usable() || !eligible(l):
		case best == nil, l.dialed && !best.dialed:
			best = l
		case l.dialed == best.dialed && l.load.Load() < best.load.Load():
			best = l
		}
	}
	return best
}

// leftOn notes that the peer takes no more streams on a link. Other links to
// the same address that it has left before go when their streams have: else a
// node that leaves each new link would pile them up. The last one stays, for a
// node that drains still opens streams there.
func (p *peer) leftOn(l *link) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, o := range p.links {
		if o != l && o.dialed && o.address == l.address && o.left.Load() {
			o.replace()
		}
	}
	l.left.Store(true)
}

func (p *peer) notify() {
	close(p.changed)
	p.changed = make(chan struct{})
}

var errNotPeer = errors.New("the key is no peer's any more")

// up makes a link of a session and runs it in the background. The caller has
// reserved room, and has it still if up fails.
func (p *peer) up(conn *session.Conn, raw net.Conn, dialed bool, address string) (*link, error) {
	m := p.mux
	if m.beyondShare(p) {
		conn.Modest()
	}
	l, err := newLink(p, conn, raw, dialed, address)
	if err == nil {
		err = p.register(l)
	}
	if err != nil {
		return nil, err
	}
	l.logUp()
	if f := m.hooks.LinkUp; f != nil {
		f(p.name)
	}
	return l, nil
}

// register adds a link to the peer and starts it, unless the peer or the key
// has been removed during the handshake or the Mux was closed.
func (p *peer) register(l *link) error {
	m := p.mux
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed || m.byKey[l.conn.Peer()] != p {
		l.end(errNotPeer)
		go l.discard(errNotPeer)
		return errNotPeer
	}
	if m.draining {
		l.leave()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.links = append(p.links, l)
	p.everUp = true
	p.lastFailure = ""
	delete(p.failed, l.address)
	p.notify()
	m.wg.Go(func() {
		l.run()
		p.down(l)
	})
	return nil
}

// down forgets a link that has ended.
func (p *peer) down(l *link) {
	m := p.mux
	p.mu.Lock()
	p.links = slices.DeleteFunc(p.links, func(other *link) bool { return other == l })
	p.past.add(l.conn.Stats())
	p.notify()
	p.mu.Unlock()
	if !l.replaced.Load() {
		m.release(p)
	}
	m.violated(p.name, l.cause())
	l.logDown()
	if f := m.hooks.LinkDown; f != nil {
		f(p.name)
	}
}

func (l *link) logUp() {
	l.mux.log.Info().Str("peer", l.peerName).Str("address", l.address).Bool("dialed", l.dialed).
		Str("transform", l.conn.Transform()).Str("cipher", l.conn.Cipher()).
		Dur("rtt", l.conn.RTT()).Msg("link up")
}

func (l *link) logDown() {
	cause := l.cause()
	event, reason := l.mux.log.Info, cause.Error()
	var v *container.Violation
	if errors.As(cause, &v) {
		event, reason = l.mux.log.Warn, v.Detail
	}
	e := event()
	if v != nil {
		e.Str("rule", string(v.Rule))
	}
	if n := l.lost.Load(); n > 0 {
		e.Int64("unconfirmed", n)
	}
	e.Str("peer", l.peerName).Str("address", l.address).Bool("dialed", l.dialed).
		Dur("age", time.Since(l.since)).Str("reason", reason).Msg("link down")
}
