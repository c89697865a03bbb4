package mux

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/sealane/sealane/internal/dial"
	"github.com/sealane/sealane/session"
	"github.com/sealane/sealane/session/container"
)

// Bounds before work (SPEC.md section 3).
const (
	readingSlots = 1024
	// maxLingering is how many connections may linger, whose handshake is
	// over: only their descriptors count.
	maxLingering = 1024
)

var (
	errHandshakes = errors.New("too many handshakes")
	errEvicted    = errors.New("made way for another connection")
	errSlow       = errors.New("no first message in time")
)

// An acceptor bounds what connections without a peer behind them can hold. A
// connection has a reading slot until its first message is complete and there
// is a place for it among the handshakes, and that place until its handshake is
// decided. Where either is short, whose source holds the most gives way, and
// whose source holds the fewest comes first: nobody can take what all need by
// being many connections, only by being many networks.
type acceptor struct {
	mux *Mux

	mu        sync.Mutex
	slots     *list.List // of *arrival: reading or waiting, oldest first
	places    *list.List // of *arrival: admitted or answered, oldest first
	lingering *list.List // of *arrival, oldest first
	nets      map[netip.Prefix]*holder
	hosts     map[netip.Prefix]*holder
	next      *time.Timer // when somebody may make way for those who wait
	swapped   time.Time   // when one last did for no fairer share
}

// A holder counts what one source holds: a network, which is what the bounds
// are about, or a host in it, which decides within one.
type holder struct{ slots, places int }

// A stage is how far an arrival is.
type stage int

const (
	reading   stage = iota // its first message, in a slot
	waiting                // for a place, in its slot
	admitted               // has a place, and is worked on
	answered               // has a place, and is waited for
	lingering              // holds nothing but a descriptor
	left
)

// An arrival is an accepted connection on its way to a link. It is the
// session's Door.
type arrival struct {
	acceptor  *acceptor
	source    source
	net, host *holder
	cancel    context.CancelCauseFunc
	slotTimer *time.Timer
	seated    chan struct{} // closed when it is given a place

	// Guarded by the acceptor's mutex.
	stage   stage
	element *list.Element
	since   time.Time // when it was answered

	address  string
	reported bool  // the rule that its message 1 broke
	peer     *peer // once it has proved its key
	room     bool  // and has room for a link
}

// A source is where a connection comes from: an IPv4 /24 and the address, or
// an IPv6 /48 and the /64, in which one party chooses freely.
type source struct{ net, host netip.Prefix }

func newAcceptor(m *Mux) *acceptor {
	a := &acceptor{
		mux: m, slots: list.New(), places: list.New(), lingering: list.New(),
		nets: make(map[netip.Prefix]*holder), hosts: make(map[netip.Prefix]*holder),
	}
	a.next = time.AfterFunc(0, a.look)
	return a
}

func sourceOf(a net.Addr) (s source) {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return s
	}
	ip := t.AddrPort().Addr().Unmap().WithZone("")
	network, host := 24, 32
	if ip.Is6() {
		network, host = 48, 64
	}
	s.net, _ = ip.Prefix(network) // an address that is none has no prefix
	s.host, _ = ip.Prefix(host)
	return s
}

// enter gives a connection a reading slot. If all are taken, the oldest of the
// source that holds the most goes.
func (a *acceptor) enter(src source, cancel context.CancelCauseFunc) *arrival {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.slots.Len() >= readingSlots {
		a.evict(most(a.slots, (*holder).slotsHeld, nil), errEvicted, LimitHalfOpen)
	}
	v := &arrival{
		acceptor: a, source: src, cancel: cancel, seated: make(chan struct{}),
		net: held(a.nets, src.net), host: held(a.hosts, src.host),
	}
	v.net.slots++
	v.host.slots++
	v.element = a.slots.PushBack(v)
	v.slotTimer = time.AfterFunc(a.mux.timing.reading, func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		if v.stage == reading {
			a.evict(v, errSlow, LimitHalfOpen)
		}
	})
	return v
}

func held(all map[netip.Prefix]*holder, p netip.Prefix) *holder {
	h := all[p]
	if h == nil {
		h = new(holder)
		all[p] = h
	}
	return h
}

func (h *holder) slotsHeld() int  { return h.slots }
func (h *holder) placesHeld() int { return h.places }

// most returns, of those in a list that may go (all, if that is nil), the first
// whose network holds the most and, of that network, whose host does.
func most(all *list.List, count func(*holder) int, mayGo func(*arrival) bool) (found *arrival) {
	for e := all.Front(); e != nil; e = e.Next() {
		v := e.Value.(*arrival)
		if (mayGo == nil || mayGo(v)) && (found == nil || holdsMore(v, found, count)) {
			found = v
		}
	}
	return found
}

// holdsMore compares sources: by what their networks hold, then their hosts.
func holdsMore(v, w *arrival, count func(*holder) int) bool {
	if d := count(v.net) - count(w.net); d != 0 {
		return d > 0
	}
	return count(v.host) > count(w.host)
}

// evict ends an arrival for others.
func (a *acceptor) evict(v *arrival, why error, limit Limit) {
	a.give(v, left)
	v.cancel(why)
	a.mux.refused(limit)
}

// give takes from an arrival what it holds.
func (a *acceptor) give(v *arrival, next stage) {
	switch v.stage {
	case reading, waiting:
		v.slotTimer.Stop()
		a.slots.Remove(v.element)
		v.net.slots--
		v.host.slots--
	case admitted, answered:
		a.places.Remove(v.element)
		v.net.places--
		v.host.places--
	case lingering:
		a.lingering.Remove(v.element)
	}
	v.stage, v.element = next, nil
	if next == admitted {
		return
	}
	if *v.net == (holder{}) && a.nets[v.source.net] == v.net {
		delete(a.nets, v.source.net)
	}
	if *v.host == (holder{}) && a.hosts[v.source.host] == v.host {
		delete(a.hosts, v.source.host)
	}
}

// Admit waits for a place among the handshakes.
func (v *arrival) Admit(ctx context.Context) error {
	a := v.acceptor
	a.mu.Lock()
	if v.stage == reading {
		v.slotTimer.Stop()
		v.stage = waiting
		a.seat()
	}
	a.mu.Unlock()
	select {
	case <-v.seated:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Answered notes that the other end has to go on. A rule that it has broken is
// reported now: it may stay for a while.
func (v *arrival) Answered(broken error) {
	a := v.acceptor
	if broken != nil {
		a.mux.violatedByStranger(v.address, broken)
		v.reported = true
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if v.stage == admitted {
		v.stage, v.since = answered, time.Now()
		a.seat()
	}
}

// Settled gives everything back before the connection lingers.
func (v *arrival) Settled() {
	a := v.acceptor
	a.mu.Lock()
	defer a.mu.Unlock()
	if v.stage >= lingering {
		return
	}
	a.give(v, lingering)
	v.element = a.lingering.PushBack(v)
	if a.lingering.Len() > maxLingering {
		a.evict(a.lingering.Front().Value.(*arrival), errEvicted, LimitHalfOpen)
	}
	a.seat()
}

// leave gives back whatever an arrival holds, and tells whether it has waited
// for a place in vain.
func (a *acceptor) leave(v *arrival) (refused bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	refused = v.stage == waiting
	if refused {
		a.mux.refused(LimitHandshakes)
	}
	if v.stage != left {
		a.give(v, left)
		a.seat()
	}
	return refused
}

// look seats those who wait if something has changed.
func (a *acceptor) look() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.seat()
}

// seat gives the places that are free, or that can be made free, to those who
// wait, and looks again when another can.
func (a *acceptor) seat() {
	for {
		v := a.first()
		if v == nil {
			return
		}
		if a.places.Len() >= a.mux.config().Handshakes {
			if !a.makeWay(v) {
				return
			}
		}
		a.give(v, admitted)
		v.net.places++
		v.host.places++
		v.element = a.places.PushBack(v)
		close(v.seated)
	}
}

// first returns who is next: of those who wait the first whose network, then
// host, holds the fewest places.
func (a *acceptor) first() (found *arrival) {
	for e := a.slots.Front(); e != nil; e = e.Next() {
		v := e.Value.(*arrival)
		if v.stage == waiting && (found == nil || holdsMore(found, v, (*holder).placesHeld)) {
			found = v
		}
	}
	return found
}

// makeWay ends a handshake that waits for its other end, for a newcomer: the
// oldest of the source with the most of those that have waited long enough. If
// there is none yet, it arranges to look again.
func (a *acceptor) makeWay(newcomer *arrival) bool {
	now := time.Now()
	soonest := time.Duration(-1)
	victim := most(a.places, (*holder).placesHeld, func(v *arrival) bool {
		if v.stage != answered {
			return false
		}
		rest := a.mayGo(v, newcomer).Sub(now)
		if rest > 0 && (soonest < 0 || rest < soonest) {
			soonest = rest
		}
		return rest <= 0
	})
	if victim == nil {
		if soonest > 0 {
			a.next.Reset(soonest)
		}
		return false
	}
	if !fairer(victim, newcomer) {
		a.swapped = now
	}
	a.evict(victim, errEvicted, LimitHandshakes)
	return true
}

// mayGo is when a handshake that waits for its other end may make way for a
// newcomer. That is later, and seldom, where it would only swap who holds more:
// a crowd of nodes behind one address is to come up, not to throw each other
// out, and what strangers do to each other is not to leave places that are all
// too fresh for somebody who has none.
func (a *acceptor) mayGo(v, newcomer *arrival) time.Time {
	t := a.mux.timing
	if fairer(v, newcomer) {
		return v.since.Add(t.stalled)
	}
	late := v.since.Add(t.stalledAlike)
	if seldom := a.swapped.Add(t.stalledAlike / time.Duration(a.places.Len())); seldom.After(late) {
		return seldom
	}
	return late
}

// fairer tells whether the places are shared more evenly if v's goes to w.
func fairer(v, w *arrival) bool {
	if v.net == w.net {
		return v.host.places > w.host.places+1
	}
	return v.net.places > w.net.places+1 || w.net.places == 0
}

// Serve takes links from a listener until it, or the Mux, is closed or the Mux
// drains. It closes the listener.
func (m *Mux) Serve(ln net.Listener) error {
	defer ln.Close()
	m.mu.Lock()
	if m.closed || m.draining {
		m.mu.Unlock()
		return nil
	}
	m.listeners[ln] = struct{}{}
	m.mu.Unlock()
	defer func() {
		m.mu.Lock()
		delete(m.listeners, ln)
		m.mu.Unlock()
	}()
	again := dial.Backoff{Min: m.timing.acceptBackoff, Max: time.Second}
	for {
		conn, err := ln.Accept()
		if err == nil {
			again.Reset()
			m.arrived(conn)
			continue
		}
		if errors.Is(err, net.ErrClosed) {
			if m.stopping() {
				return nil
			}
			return fmt.Errorf("accepting links: %w", err)
		}
		// Out of descriptors, most likely: running links go on, and this
		// listener does when some are free again.
		m.quiet.warn("accept").Err(err).Msg("cannot accept links")
		select {
		case <-time.After(again.Wait()):
		case <-m.ctx.Done():
			return nil
		}
	}
}

func (m *Mux) stopping() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.closed || m.draining
}

// arrived starts the handshake of an accepted connection.
func (m *Mux) arrived(conn net.Conn) {
	ctx, cancel := context.WithCancelCause(m.ctx)
	v := m.acceptor.enter(sourceOf(conn.RemoteAddr()), cancel)
	v.address = conn.RemoteAddr().String()
	m.mu.Lock()
	closed := m.closed
	if !closed {
		m.wg.Add(1)
	}
	m.mu.Unlock()
	if closed {
		m.acceptor.leave(v)
		cancel(nil)
		conn.Close()
		return
	}
	go func() {
		defer m.wg.Done()
		defer cancel(nil)
		m.respond(ctx, conn, v)
	}()
}

func (m *Mux) respond(ctx context.Context, conn net.Conn, v *arrival) {
	begun := time.Now()
	cfg := m.config()
	ctx, cancel := context.WithDeadline(ctx, begun.Add(cfg.HandshakeTimeout))
	defer cancel()
	tuneSocket(conn, cfg.LinkTimeout)
	scfg := cfg.Session
	scfg.Door = v
	sealed, err := session.Respond(ctx, conn, scfg)
	if m.acceptor.leave(v) {
		err = errHandshakes
	}
	if v.peer == nil {
		m.strangerFailed(v, err)
		return
	}
	if err == nil {
		_, err = v.peer.shook(sealed, conn, v.address, begun, false)
	}
	if err == nil {
		return
	}
	if v.room {
		m.release(v.peer)
	}
	m.result(v.peer.name, resultOf(err))
	m.quiet.warn("link").Str("peer", v.peer.name).Str("address", v.address).Err(err).Msg("link refused")
}

// Room takes room for a link with the peer that has this key.
func (v *arrival) Room(key session.PublicKey) error {
	m := v.acceptor.mux
	p := m.peerByKey(key)
	if p == nil {
		return errNotPeer
	}
	v.peer = p
	if err := m.reserve(p, true); err != nil {
		return err
	}
	v.room = true
	return nil
}

// strangerFailed counts and logs a handshake that failed. Outsiders cause
// these lines, so there are few of them.
func (m *Mux) strangerFailed(v *arrival, err error) {
	if errors.Is(err, errEvicted) || errors.Is(err, errSlow) {
		return // counted where it happened
	}
	m.result("", resultOf(err))
	var broken *container.Violation
	var unknown *session.UnknownKeyError
	switch {
	case v.reported:
	case errors.As(err, &broken):
		m.violatedByStranger(v.address, err)
	case errors.As(err, &unknown):
		m.quiet.warn("unknown").Str("address", v.address).Str("key", unknown.Key.String()).Msg("link refused: no peer has this key")
	default:
		m.quiet.debug("handshake").Str("address", v.address).Err(err).Msg("handshake failed")
	}
}

func (m *Mux) violatedByStranger(address string, err error) {
	m.violated("", err)
	var v *container.Violation
	if errors.As(err, &v) {
		m.quiet.warn("violation").Str("address", address).Str("rule", string(v.Rule)).Str("reason", v.Detail).Msg("link refused")
	}
}
