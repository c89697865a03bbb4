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

	"github.com/sealane/sealane/session"
	"github.com/sealane/sealane/session/container"
)

// Bounds before work (SPEC.md section 3).
const (
	readingSlots = 1024
	// slotsPerSource keeps one source from taking all reading slots, and
	// handshakesPart is the part of all handshakes that it may have going.
	slotsPerSource = readingSlots / 4
	handshakesPart = 4
)

var (
	errHandshakes = errors.New("too many handshakes")
	errEvicted    = errors.New("reading slot taken away")
	errSlow       = errors.New("no first message in time")
)

// An acceptor bounds what connections without a peer behind them can hold. A
// connection has a reading slot until its first message is complete, then it
// counts as a handshake.
type acceptor struct {
	mux *Mux

	mu         sync.Mutex
	reading    *list.List // of *arrival, oldest first
	handshakes int
	sources    map[netip.Addr]*source
}

// A source is an IPv4 address or an IPv6 /64.
type source struct{ reading, handshakes int }

// An arrival is an accepted connection on its way to a link.
type arrival struct {
	source    netip.Addr
	slot      *list.Element // nil once admitted
	cancel    context.CancelCauseFunc
	admitted  bool
	slotTimer *time.Timer
}

func newAcceptor(m *Mux) *acceptor {
	return &acceptor{mux: m, reading: list.New(), sources: make(map[netip.Addr]*source)}
}

// sourceOf groups what one party can choose freely among.
func sourceOf(a net.Addr) netip.Addr {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.Addr{}
	}
	ip := t.AddrPort().Addr().Unmap()
	if ip.Is6() {
		if prefix, err := ip.WithZone("").Prefix(64); err == nil {
			return prefix.Addr()
		}
	}
	return ip
}

// enter gives a connection a reading slot. If there is none, or its source has
// too many, the oldest of all or of that source goes.
func (a *acceptor) enter(src netip.Addr, cancel context.CancelCauseFunc) *arrival {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := a.sources[src]
	if s == nil {
		s = new(source)
		a.sources[src] = s
	}
	switch {
	case s.reading >= slotsPerSource:
		for e := a.reading.Front(); e != nil; e = e.Next() {
			if old := e.Value.(*arrival); old.source == src {
				a.evict(old, errEvicted)
				break
			}
		}
	case a.reading.Len() >= readingSlots:
		a.evict(a.reading.Front().Value.(*arrival), errEvicted)
	}
	s.reading++
	v := &arrival{source: src, cancel: cancel}
	v.slot = a.reading.PushBack(v)
	v.slotTimer = time.AfterFunc(a.mux.timing.reading, func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		if v.slot != nil {
			a.evict(v, errSlow)
		}
	})
	return v
}

// evict ends an arrival that still reads its first message.
func (a *acceptor) evict(v *arrival, why error) {
	a.leaveSlot(v)
	v.cancel(why)
	a.mux.refused(LimitHalfOpen)
}

func (a *acceptor) leaveSlot(v *arrival) {
	if v.slot == nil {
		return
	}
	v.slotTimer.Stop()
	a.reading.Remove(v.slot)
	v.slot = nil
	s := a.sources[v.source]
	s.reading--
	a.forget(v.source, s)
}

func (a *acceptor) forget(src netip.Addr, s *source) {
	if s.reading == 0 && s.handshakes == 0 {
		delete(a.sources, src)
	}
}

// admit moves an arrival from its slot to the handshakes.
func (a *acceptor) admit(v *arrival) error {
	limit := a.mux.config().Handshakes
	a.mu.Lock()
	defer a.mu.Unlock()
	if v.slot == nil {
		return errEvicted
	}
	s := a.sources[v.source]
	if a.handshakes >= limit || s.handshakes >= max(1, limit/handshakesPart) {
		a.mux.refused(LimitHandshakes)
		return errHandshakes
	}
	s.handshakes++
	a.handshakes++
	v.admitted = true
	a.leaveSlot(v)
	return nil
}

// leave gives back whatever an arrival holds.
func (a *acceptor) leave(v *arrival) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.leaveSlot(v)
	if !v.admitted {
		return
	}
	v.admitted = false
	a.handshakes--
	s := a.sources[v.source]
	s.handshakes--
	a.forget(v.source, s)
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
	again := backoff{min: m.timing.acceptBackoff, max: time.Second}
	for {
		conn, err := ln.Accept()
		if err == nil {
			again.reset()
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
		case <-time.After(again.wait()):
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
	tuneSocket(conn)
	scfg := cfg.Session
	scfg.Admit = func() error { return m.acceptor.admit(v) }
	sealed, err := session.Respond(ctx, conn, scfg)
	m.acceptor.leave(v)
	address := conn.RemoteAddr().String()
	if err != nil {
		m.strangerFailed(address, err)
		return
	}
	p := m.peerByKey(sealed.Peer())
	if p == nil {
		sealed.Abort(errNotPeer)
		return
	}
	if _, err := p.shook(sealed, conn, address, begun, false); err != nil {
		m.result(p.name, resultOf(err))
		m.quiet.warn("link").Str("peer", p.name).Str("address", address).Err(err).Msg("link refused")
	}
}

// strangerFailed counts and logs a handshake that failed. Outsiders cause
// these lines, so there are few of them.
func (m *Mux) strangerFailed(address string, err error) {
	if errors.Is(err, errEvicted) || errors.Is(err, errSlow) {
		return // counted where it happened
	}
	m.result("", resultOf(err))
	m.violated("", err)
	var v *container.Violation
	var unknown *session.UnknownKeyError
	switch {
	case errors.As(err, &v):
		m.quiet.warn("violation").Str("address", address).Str("rule", string(v.Rule)).Str("reason", v.Detail).Msg("link refused")
	case errors.As(err, &unknown):
		m.quiet.warn("unknown").Str("address", address).Str("key", unknown.Key.String()).Msg("link refused: no peer has this key")
	default:
		m.quiet.debug("handshake").Str("address", address).Err(err).Msg("handshake failed")
	}
}
