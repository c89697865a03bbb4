package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"syscall"
)

// bindAll returns a listener for each of the config's, in its order: those of
// old whose address stays, with its sockets untouched, and newly bound ones.
// On an error everything is as before.
func (p *Proxy) bindAll(st *state, old []*listener) ([]*listener, error) {
	b := binding{p: p, cfg: &st.cfg, free: slices.Clone(old)}
	if err := b.bind(); err != nil {
		return nil, errors.Join(err, b.undo())
	}
	for i, l := range b.next {
		l.cfg.Store(&st.cfg.Listeners[i])
	}
	return b.next, nil
}

// A binding is the work of one bindAll.
type binding struct {
	p         *Proxy
	cfg       *Config
	free      []*listener // old ones that no new config has claimed
	next      []*listener
	fresh     []*listener // bound by this call
	displaced []*listener // closed by this call, to make room
	restore   []func() error
}

func (b *binding) bind() error {
	b.next = make([]*listener, len(b.cfg.Listeners))
	for i := range b.cfg.Listeners {
		if err := b.claim(i); err != nil {
			return b.wrap(i, err)
		}
	}
	var clashes []int
	for i := range b.cfg.Listeners {
		if b.next[i] != nil {
			continue
		}
		err := b.open(i)
		if errors.Is(err, syscall.EADDRINUSE) && b.rival(i) != nil {
			clashes = append(clashes, i)
		} else if err != nil {
			return b.wrap(i, err)
		}
	}
	// The same port on another address, such as 0.0.0.0 in place of 127.0.0.1,
	// cannot be bound beside the old one: that has to go first.
	for _, i := range clashes {
		for l := b.rival(i); l != nil; l = b.rival(i) {
			l.stop()
			b.displaced = append(b.displaced, l)
			b.free = slices.DeleteFunc(b.free, func(f *listener) bool { return f == l })
		}
		if err := b.open(i); err != nil {
			return b.wrap(i, err)
		}
	}
	return nil
}

func (b *binding) wrap(i int, err error) error {
	return fmt.Errorf("listener %s: %w", b.cfg.Listeners[i].name(), err)
}

// claim keeps the sockets of an old listener with the same address.
func (b *binding) claim(i int) error {
	want := &b.cfg.Listeners[i]
	at := slices.IndexFunc(b.free, func(l *listener) bool { return l.cfg.Load().Address == want.Address })
	if at < 0 {
		return nil
	}
	l := b.free[at]
	have := l.cfg.Load()
	if err := want.checkBound(l.local); err != nil {
		return err
	}
	if want.Address.Network == "unix" && (have.Mode != want.Mode || have.Owner != want.Owner) {
		b.restore = append(b.restore, func() error { return l.setOwnership(have) })
		if err := l.setOwnership(want); err != nil {
			return err
		}
	}
	b.free = slices.Delete(b.free, at, at+1)
	b.next[i] = l
	return nil
}

func (b *binding) open(i int) error {
	l, err := b.p.listen(b.cfg, &b.cfg.Listeners[i])
	if err != nil {
		return err
	}
	b.next[i] = l
	b.fresh = append(b.fresh, l)
	return nil
}

// rival returns an old, unclaimed listener on the same TCP port, if there is one.
func (b *binding) rival(i int) *listener {
	_, port, err := net.SplitHostPort(b.cfg.Listeners[i].Address.Address)
	n, _ := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 || b.cfg.Listeners[i].Address.Network != "tcp" {
		return nil
	}
	for _, l := range b.free {
		if slices.Contains(l.ports, uint16(n)) {
			return l
		}
	}
	return nil
}

// undo closes what was bound and binds again what had to go.
func (b *binding) undo() error {
	for _, l := range b.fresh {
		l.stop()
	}
	var errs []error
	for _, f := range b.restore {
		errs = append(errs, f())
	}
	for _, l := range b.displaced {
		again, err := b.p.listen(&b.p.state.Load().cfg, l.cfg.Load())
		if err != nil {
			errs = append(errs, fmt.Errorf("listener %s is lost: %w", l.cfg.Load().name(), err))
			continue
		}
		b.p.mu.Lock()
		b.p.listeners = slices.Clone(b.p.listeners)
		b.p.listeners[slices.Index(b.p.listeners, l)] = again
		b.p.mu.Unlock()
		again.serve()
	}
	return errors.Join(errs...)
}

// listen binds one listener.
func (p *Proxy) listen(cfg *Config, lc *Listener) (*listener, error) {
	l := &listener{p: p, stopped: make(chan struct{})}
	l.cfg.Store(lc)
	var err error
	switch lc.Address.Network {
	case "systemd":
		l.socks, err = cfg.activated(lc.Address.Address)
	case "unix":
		err = l.listenUnix(lc)
	default:
		err = l.listenTCP(cfg, lc.Address.Address)
		if err == nil && lc.Kind == KindTransparent {
			err = l.listenOtherFamily(cfg, lc.Address.Address)
		}
	}
	if err != nil {
		return nil, err
	}
	l.ports, l.local = tcpPorts(l.socks)
	if err := lc.checkBound(l.local); err != nil {
		l.stop()
		return nil, err
	}
	return l, nil
}

func (l *listener) listenTCP(cfg *Config, address string) error {
	listen := cfg.Listen
	if listen == nil {
		lc := net.ListenConfig{KeepAliveConfig: keepAlive}
		lc.SetMultipathTCP(false) // a reset must be a TCP reset
		listen = lc.Listen
	}
	s, err := listen(context.Background(), "tcp", address)
	if err != nil {
		return err
	}
	l.socks = append(l.socks, s)
	return nil
}

// listenOtherFamily takes the same port on the other family's loopback address:
// the kernel redirects IPv4 connections to 127.0.0.1 and IPv6 ones to ::1. A
// system without that family has nothing to redirect there.
func (l *listener) listenOtherFamily(cfg *Config, address string) error {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return err
	}
	other, ok := map[string]string{"127.0.0.1": "::1", "::1": "127.0.0.1"}[host]
	if !ok {
		return nil
	}
	_, port, err := net.SplitHostPort(l.socks[0].Addr().String())
	if err != nil {
		return err
	}
	err = l.listenTCP(cfg, net.JoinHostPort(other, port))
	if errors.Is(err, syscall.EAFNOSUPPORT) || errors.Is(err, syscall.EADDRNOTAVAIL) {
		return nil
	}
	if err != nil {
		l.stop()
	}
	return err
}

func (l *listener) listenUnix(c *Listener) error {
	s, err := ListenUnix(c.Address.Address, c.Mode, c.Owner)
	if err != nil {
		return err
	}
	l.socks = []net.Listener{s}
	return nil
}

// setOwnership gives the socket's file the owner and mode of a new config.
func (l *listener) setOwnership(c *Listener) error {
	s, ok := l.socks[0].(*unixListener)
	if !ok {
		return nil // it has no file
	}
	o, err := parseOwnership(c.Mode, c.Owner)
	if err == nil {
		_, err = ownUnix(s.path, s.file, o)
	}
	return err
}
