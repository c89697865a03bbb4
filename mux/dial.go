package mux

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/sealane/sealane/internal/dial"
	"github.com/sealane/sealane/session"
	"github.com/sealane/sealane/session/container"
)

// maxSpread is how many addresses of a peer get a link of their own, if its
// Links does not say more.
const maxSpread = 3

// start starts the loops that keep up the links this node dials, those that
// do not run yet.
func (p *peer) start() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.cfg.Addresses) == 0 {
		return
	}
	for i := range max(1, p.cfg.Links) {
		p.startSlot(i)
	}
}

func (p *peer) startSlot(i int) {
	if p.slots[i] || p.ctx.Err() != nil {
		return
	}
	p.slots[i] = true
	p.mux.wg.Go(func() { p.keepUp(i) })
}

// wanted tells whether a slot still has a link to keep up.
func (p *peer) wanted(slot int) (cfg Peer, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	ok = p.ctx.Err() == nil && len(p.cfg.Addresses) > 0
	if !ok {
		delete(p.slots, slot)
	}
	return p.cfg, ok
}

func (p *peer) endSlot(slot int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.slots, slot)
}

// keepUp keeps one link up until the peer is removed. A spare slot, beyond the
// number of links that the configuration asks for, ends when every address has
// a link; slot 0 starts it again when that changes.
func (p *peer) keepUp(slot int) {
	t := p.mux.timing
	again := dial.Backoff{Min: t.backoffMin, Max: t.backoffMax}
	unknown := dial.Backoff{Min: t.notFoundMin, Max: t.notFoundMax}
	for {
		cfg, ok := p.wanted(slot)
		if !ok {
			return
		}
		spare := slot >= max(1, cfg.Links)
		l, err := p.dialLink(cfg, spare)
		switch {
		case err == nil:
			unknown.Reset()
			if p.hold(l, slot).served() >= again.Next() {
				again.Reset()
			}
		case spare:
			p.endSlot(slot)
			return
		default:
			p.logFailure(err)
		}
		wait := again.Wait()
		if errors.Is(err, session.ErrNotFound) {
			wait = unknown.Wait()
		}
		select {
		case <-time.After(wait):
		case <-p.ctx.Done():
			p.endSlot(slot)
			return
		}
	}
}

// hold waits until a link takes no more streams, and returns it. Meanwhile it
// looks now and then whether it should rather be another one, at another of the
// peer's addresses, for the first time soon: links that are dialed at once may
// have met at one address.
func (p *peer) hold(l *link, slot int) *link {
	look := time.NewTimer(p.mux.timing.lookAgain / 15)
	defer look.Stop()
	if slot == 0 {
		p.spread()
	}
	for {
		updated := p.dismiss(l, slot)
		select {
		case <-updated:
		case <-look.C:
			look.Reset(p.mux.timing.lookAgain)
			if slot == 0 {
				p.spread()
			}
			if moved := p.move(l); moved != nil {
				l = moved
			}
		case <-l.gone:
			return l
		case <-l.dead:
			return l
		}
	}
}

// served is how long a link was of use: for the time before its first pong it
// was none, nor is one that a violation has ended. A peer that takes a link only
// to leave or to end it, or has it end behind its first record, is dialed ever
// later, therefore: a link has to last as long as the wait after it would be.
func (l *link) served() time.Duration {
	var v *container.Violation
	if !l.lived.Load() || errors.As(l.cause(), &v) {
		return 0
	}
	return time.Since(l.since)
}

// dismiss retires the link of a spare slot whose address has another one: the
// configuration asks for fewer links than it did. It goes when its streams
// have. The channel is closed when there is a new configuration.
func (p *peer) dismiss(l *link, slot int) (updated <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if slot >= max(1, p.cfg.Links) && p.doubled(l) {
		l.replace() // with mu held, so that one of two stays
	}
	return p.updated
}

// doubled tells whether a link's address has another one that takes streams,
// with mu held.
func (p *peer) doubled(l *link) bool {
	return slices.ContainsFunc(p.links, func(o *link) bool {
		return o != l && o.dialed && o.address == l.address && o.usable()
	})
}

// move replaces a link whose address has another one by a link to an address
// that has none, if there is any. The old link goes when its streams have.
func (p *peer) move(l *link) *link {
	p.mu.Lock()
	cfg := p.cfg
	if !p.doubled(l) || p.moving {
		p.mu.Unlock()
		return nil
	}
	p.moving = true
	p.mu.Unlock()
	moved, err := p.dialLink(cfg, true)
	p.mu.Lock()
	p.moving = false
	p.mu.Unlock()
	if err != nil {
		return nil
	}
	l.replace()
	return moved
}

// spread starts a slot for each further address of a peer that has several,
// as a headless Service has.
func (p *peer) spread() {
	p.mu.Lock()
	cfg := p.cfg
	p.mu.Unlock()
	ctx, cancel := context.WithTimeout(p.ctx, p.mux.config().DialTimeout)
	defer cancel()
	targets, err := p.resolve(ctx, cfg.Addresses)
	if err != nil {
		return
	}
	var v4, v6 int
	for _, t := range targets {
		if t.Addr().Is4() {
			v4++
		} else {
			v6++
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	// A host with one address of each family is one host.
	for i := range max(1, p.cfg.Links, min(max(v4, v6), maxSpread)) {
		p.startSlot(i)
	}
}

// logFailure logs why no link comes up: when that changes, and once a minute.
func (p *peer) logFailure(err error) {
	if p.ctx.Err() != nil {
		return
	}
	result := resultOf(err)
	p.mu.Lock()
	repeated := p.lastFailure == result && time.Since(p.failureLogged) < time.Minute
	if !repeated {
		p.lastFailure, p.failureLogged = result, time.Now()
	}
	p.mu.Unlock()
	if !repeated {
		p.mux.log.Warn().Str("peer", p.name).Err(err).Msg("no link")
	}
}

// resolve looks up the peer's addresses, anew each time.
func (p *peer) resolve(ctx context.Context, addresses []string) ([]netip.AddrPort, error) {
	var targets []netip.AddrPort
	var failures []error
	for _, a := range addresses {
		found, err := p.resolveOne(ctx, a)
		if err != nil {
			failures = append(failures, err)
		}
		targets = append(targets, found...)
	}
	slices.SortFunc(targets, netip.AddrPort.Compare)
	targets = slices.Compact(targets)
	if len(targets) == 0 {
		return nil, errors.Join(failures...)
	}
	return targets, nil
}

func (p *peer) resolveOne(ctx context.Context, address string) ([]netip.AddrPort, error) {
	host, service, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	port, err := strconv.ParseUint(service, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("port %q: %w", service, err)
	}
	addrs := make([]netip.Addr, 1)
	if addrs[0], err = netip.ParseAddr(host); err != nil {
		if addrs, err = p.mux.resolver(ctx, host); err != nil {
			return nil, err
		}
	}
	targets := make([]netip.AddrPort, len(addrs))
	for i, a := range addrs {
		targets[i] = netip.AddrPortFrom(a.Unmap(), uint16(port))
	}
	return targets, nil
}

// order puts the addresses with the fewest links first, of those the ones that
// did not fail last, and mixes the rest. With spare, addresses that have a link
// are left out.
func (p *peer) order(targets []netip.AddrPort, spare bool) []netip.AddrPort {
	p.mu.Lock()
	defer p.mu.Unlock()
	used := make(map[string]int)
	for _, l := range p.links {
		if l.dialed && l.usable() {
			used[l.address]++
		}
	}
	if spare {
		targets = slices.DeleteFunc(targets, func(t netip.AddrPort) bool { return used[t.String()] > 0 })
	}
	rand.Shuffle(len(targets), func(i, j int) { targets[i], targets[j] = targets[j], targets[i] })
	slices.SortStableFunc(targets, func(a, b netip.AddrPort) int {
		if d := used[a.String()] - used[b.String()]; d != 0 {
			return d
		}
		return p.failed[a.String()].Compare(p.failed[b.String()])
	})
	return targets
}

var errNoSpare = errors.New("every address has a link")

// dialLink tries the peer's addresses until a link is up.
func (p *peer) dialLink(cfg Peer, spare bool) (*link, error) {
	limits := p.mux.config()
	ctx, cancel := context.WithTimeout(p.ctx, limits.DialTimeout)
	defer cancel()
	targets, err := p.resolve(ctx, cfg.Addresses)
	if err != nil {
		p.mux.result(p.name, LinkUnreachable)
		return nil, err
	}
	if targets = p.order(targets, spare); len(targets) == 0 {
		return nil, errNoSpare
	}
	if err := p.mux.reserve(p, false); err != nil {
		p.mux.result(p.name, resultOf(err))
		return nil, err
	}
	l, err := p.dialOne(ctx, cfg, targets)
	if err != nil {
		p.mux.release(p)
	}
	return l, err
}

// dialOne makes a link, for which there is room, to the first of the addresses
// where one comes up.
func (p *peer) dialOne(ctx context.Context, cfg Peer, targets []netip.AddrPort) (*link, error) {
	var verdict error
	for len(targets) > 0 {
		conn, target, err := p.connect(ctx, targets)
		if err != nil {
			p.mux.result(p.name, LinkUnreachable)
			return nil, errors.Join(verdict, err)
		}
		l, err := p.shake(conn, target, cfg.Keys)
		if err == nil {
			return l, nil
		}
		p.mux.result(p.name, resultOf(err))
		p.mux.violated(p.name, err)
		verdict = fmt.Errorf("%s: %w", target, err)
		p.markFailed(target.String())
		targets = slices.DeleteFunc(targets, func(t netip.AddrPort) bool { return t == target })
		if p.ctx.Err() != nil {
			break
		}
	}
	return nil, verdict
}

func (p *peer) markFailed(address string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.failed) > 1000 {
		clear(p.failed) // a peer whose addresses change all the time
	}
	p.failed[address] = time.Now()
}

// connect returns the first connection that comes.
func (p *peer) connect(ctx context.Context, targets []netip.AddrPort) (net.Conn, netip.AddrPort, error) {
	return dial.First(ctx, targets, p.mux.timing.stagger, func(ctx context.Context, t netip.AddrPort) (net.Conn, error) {
		return p.mux.dialer(ctx, "tcp", t.String())
	}, func(t netip.AddrPort, _ error) { p.markFailed(t.String()) })
}

// shake runs the handshake, with each of the peer's keys until the answer opens:
// the address may hold the current or the next one.
func (p *peer) shake(conn net.Conn, target netip.AddrPort, keys []session.PublicKey) (*link, error) {
	cfg := p.mux.config()
	for i := 0; ; i++ {
		ctx, cancel := context.WithTimeout(p.ctx, cfg.HandshakeTimeout)
		tuneSocket(conn, cfg.LinkTimeout)
		begun := time.Now()
		sealed, err := session.Initiate(ctx, conn, keys[i], cfg.Session)
		if err == nil {
			cancel()
			return p.shook(sealed, conn, target.String(), begun, true)
		}
		unopened := errors.Is(err, session.ErrUnopened)
		if unopened {
			err = fmt.Errorf("not the configured key of %s, or nothing in common: %w", p.name, err)
		}
		if i+1 == len(keys) || !unopened && !errors.Is(err, session.ErrRejected) {
			cancel()
			return nil, err
		}
		conn, err = p.mux.dialer(ctx, "tcp", target.String())
		cancel()
		if err != nil {
			return nil, err
		}
	}
}

// shook counts a handshake and makes a link of it.
func (p *peer) shook(conn *session.Conn, raw net.Conn, address string, begun time.Time, dialed bool) (*link, error) {
	if f := p.mux.hooks.Handshake; f != nil {
		f(time.Since(begun))
	}
	l, err := p.up(conn, raw, dialed, address)
	if err != nil {
		return nil, err
	}
	p.mux.result(p.name, LinkOK)
	return l, nil
}

// resultOf classifies a handshake's error.
func resultOf(err error) LinkResult {
	var v *container.Violation
	var unknown *session.UnknownKeyError
	switch {
	case errors.As(err, &v):
		return LinkViolation
	case errors.As(err, &unknown):
		return LinkUnknown
	case errors.Is(err, session.ErrRejected), errors.Is(err, session.ErrUnopened):
		return LinkRejected
	case errors.Is(err, session.ErrNoRoom):
		return LinkNoRoom
	case errors.Is(err, session.ErrNotFound):
		return LinkNotFound
	case errors.Is(err, errTooManyLinks), errors.Is(err, errHandshakes):
		return LinkLimited
	case errors.Is(err, context.DeadlineExceeded):
		return LinkTimedOut
	case errors.Is(err, io.EOF), errors.Is(err, session.ErrTruncated):
		return LinkBroken
	}
	return LinkBroken
}
