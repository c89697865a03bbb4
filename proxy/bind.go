package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
)

// A bound is one listening socket. Its owner serves what it accepts: a reload
// hands a socket that stays to another listener.
type bound struct {
	net.Listener
	want  string // what it was bound for: one that a reload wants again stays
	owner atomic.Pointer[listener]

	serving, stopping sync.Once
	stopped           chan struct{}
	loop              sync.WaitGroup
}

func newBound(s net.Listener, want string) *bound {
	return &bound{Listener: s, want: want, stopped: make(chan struct{})}
}

// bindAll returns a listener for each of the config's, in its order. Sockets
// that the config still wants stay open, whoever had them, so that no
// connection to them is lost. Until adopt, the old listeners serve as before;
// on an error everything is as before.
func (p *Proxy) bindAll(st *state, old []*listener) ([]*listener, error) {
	b := binding{p: p, cfg: &st.cfg}
	for _, l := range old {
		b.free = append(b.free, l.all()...)
	}
	if err := b.bind(old); err != nil {
		return nil, errors.Join(err, b.undo())
	}
	return b.next, nil
}

// A binding is the work of one bindAll.
type binding struct {
	p       *Proxy
	cfg     *Config
	free    []*bound // old ones that no new config has claimed
	next    []*listener
	fresh   []*bound // bound by this call
	restore []func() error
}

func (b *binding) bind(old []*listener) error {
	ctx := context.Background()
	wants := make([][]want, len(b.cfg.Listeners))
	for i := range b.cfg.Listeners {
		l := b.successor(i, old)
		b.next = append(b.next, l)
		var err error
		if wants[i], err = l.cfg.wants(ctx, l.prev); err != nil {
			return b.wrap(i, err)
		}
	}
	// First what stays, so that what remains is known to be on its way out.
	for i, l := range b.next {
		for j := range wants[i] {
			if err := b.claim(l, &wants[i][j]); err != nil {
				return b.wrap(i, err)
			}
		}
	}
	for i, l := range b.next {
		if err := b.open(ctx, l, wants[i]); err != nil {
			return b.wrap(i, err)
		}
	}
	for _, l := range b.next {
		b.absorb(l)
	}
	return nil
}

func (b *binding) wrap(i int, err error) error {
	return fmt.Errorf("listener %s: %w", b.cfg.Listeners[i].name(), err)
}

// successor makes the listener for a config, which goes on counting where an
// old one with the same address was.
func (b *binding) successor(i int, old []*listener) *listener {
	l := &listener{p: b.p, cfg: &b.cfg.Listeners[i], counts: new(counts)}
	for _, o := range old {
		taken := slices.ContainsFunc(b.next, func(n *listener) bool { return n.counts == o.counts })
		if o.cfg.Address == l.cfg.Address && !taken {
			l.counts, l.prev = o.counts, o
			break
		}
	}
	return l
}

// A want is a socket that a listener is to have.
type want struct {
	key  string
	addr sockAddr // of a TCP socket
	has  *bound
}

// wants lists the sockets of a listener, with those of systemd as one. prev is
// the last one with this address, if there was one: what a name meant then it
// means still, or each reload would depend on a look-up.
func (l *Listener) wants(ctx context.Context, prev *listener) ([]want, error) {
	if l.Address.Network != "tcp" {
		return []want{{key: l.Address.String()}}, nil
	}
	if prev != nil && l.Address.literal(l.Kind) == nil {
		var wants []want
		for _, s := range prev.socks {
			a, _ := s.sockAddr()
			wants = append(wants, want{key: s.want, addr: a})
		}
		return wants, nil
	}
	addrs, err := l.Address.sockAddrs(ctx, l.Kind)
	if err != nil {
		return nil, err
	}
	wants := make([]want, len(addrs))
	for i, a := range addrs {
		wants[i] = want{key: a.String(), addr: a}
	}
	return wants, nil
}

// claim keeps the old socket that is wanted. One whose port the kernel picked
// stays with the address of the config that it was picked for.
func (b *binding) claim(l *listener, w *want) error {
	at := slices.IndexFunc(b.free, func(s *bound) bool {
		own := l.prev != nil && slices.Contains(l.prev.socks, s)
		return s.want == w.key && (own || !l.cfg.Address.anyPort())
	})
	if at < 0 {
		return nil
	}
	w.has = b.free[at]
	b.free = slices.Delete(b.free, at, at+1)
	l.socks = append(l.socks, w.has)
	if l.cfg.Address.Network == "systemd" {
		// All that have the name.
		b.free = slices.DeleteFunc(b.free, func(s *bound) bool {
			if s.want != w.key {
				return false
			}
			l.socks = append(l.socks, s)
			return true
		})
	}
	return b.reown(l, w.has)
}

// reown gives the file of a unix socket that stays its new owner and mode.
func (b *binding) reown(l *listener, s *bound) error {
	have := s.owner.Load().cfg
	if l.cfg.Address.Network != "unix" || have.Mode == l.cfg.Mode && have.Owner == l.cfg.Owner {
		return nil
	}
	b.restore = append(b.restore, func() error { return s.setOwnership(have) })
	return s.setOwnership(l.cfg)
}

// setOwnership gives the socket's file the owner and mode of a new config.
func (s *bound) setOwnership(c *Listener) error {
	u, ok := s.Listener.(*unixListener)
	if !ok {
		return nil // it has no file
	}
	o, err := parseOwnership(c.Mode, c.Owner)
	if err == nil {
		_, err = ownUnix(u.path, u.file, o)
	}
	return err
}

// open binds what a listener wants and does not have yet.
func (b *binding) open(ctx context.Context, l *listener, wants []want) error {
	var err error
	switch {
	case l.cfg.Address.Network == "tcp":
		err = b.openTCP(ctx, l, wants)
	case len(l.socks) > 0:
	case l.cfg.Address.Network == "systemd":
		var socks []net.Listener
		socks, err = b.cfg.activated(l.cfg.Address.Address)
		for _, s := range socks {
			b.add(l, newBound(s, wants[0].key))
		}
	default:
		var s net.Listener
		if s, err = ListenUnix(l.cfg.Address.Address, l.cfg.Mode, l.cfg.Owner); err == nil {
			b.add(l, newBound(s, wants[0].key))
		}
	}
	if err != nil {
		return err
	}
	l.ports, l.local = tcpPorts(l.socks)
	return l.cfg.checkBound(l.local)
}

func (b *binding) openTCP(ctx context.Context, l *listener, wants []want) error {
	addrs, socks := make([]sockAddr, len(wants)), make([]net.Listener, len(wants))
	for i, w := range wants {
		addrs[i] = w.addr
		if w.has != nil {
			socks[i] = w.has.Listener
		}
	}
	beside := slices.Clone(b.cfg.Replaced)
	for _, s := range b.free {
		beside = append(beside, s.Listener)
	}
	if err := b.tcp(beside).bindMissing(ctx, addrs, socks); err != nil {
		return err
	}
	l.socks = nil // in the order of wants
	for i, s := range socks {
		switch {
		case wants[i].has != nil:
			l.socks = append(l.socks, wants[i].has)
		case s != nil:
			b.add(l, newBound(s, wants[i].key))
		}
	}
	return nil
}

// tcp binds with the config's own way to bind, if it has one.
func (b *binding) tcp(beside []net.Listener) binder {
	w := binder{listen: listenTCP, beside: beside}
	if f := b.cfg.Listen; f != nil {
		w.listen = func(ctx context.Context, a sockAddr, _ bool) (net.Listener, error) { return f(ctx, "tcp", a.String()) }
	}
	return w
}

func (b *binding) add(l *listener, s *bound) {
	b.fresh = append(b.fresh, s)
	l.socks = append(l.socks, s)
}

// absorb leaves an old socket open that a listener's wildcard has made
// needless: the kernel gives it its address's connections until it closes, and
// those that it had not handed over yet would be lost.
func (b *binding) absorb(l *listener) {
	b.free = slices.DeleteFunc(b.free, func(s *bound) bool {
		covered := slices.ContainsFunc(l.socks, func(w *bound) bool {
			a, ok := w.sockAddr()
			c, ok2 := s.sockAddr()
			return ok && ok2 && a.covers(c)
		})
		if covered {
			l.extra = append(l.extra, s)
		}
		return covered
	})
}

// sockAddr is where a TCP socket is bound.
func (s *bound) sockAddr() (sockAddr, bool) {
	t, ok := s.Addr().(*net.TCPAddr)
	if !ok || s.fromSystemd() {
		return sockAddr{}, false
	}
	ap := t.AddrPort()
	return sockAddr{host: ap.Addr().Unmap(), port: ap.Port()}, true
}

func (s *bound) fromSystemd() bool { return strings.HasPrefix(s.want, "systemd:") }

// undo closes what was bound.
func (b *binding) undo() error {
	stopAll(b.fresh)
	var errs []error
	for _, f := range b.restore {
		errs = append(errs, f())
	}
	return errors.Join(errs...)
}

// Leaving lists the sockets that an Update to cfg would close, for the caller
// to bind others beside them (see Listen).
func (p *Proxy) Leaving(cfg Config) ([]net.Listener, error) {
	p.change.Lock()
	defer p.change.Unlock()
	stays := make(map[string]bool)
	for i := range cfg.Listeners {
		l := &cfg.Listeners[i]
		var prev *listener
		if at := slices.IndexFunc(p.listeners, func(o *listener) bool { return o.cfg.Address == l.Address }); at >= 0 {
			prev = p.listeners[at]
		}
		wants, err := l.wants(context.Background(), prev)
		if err != nil {
			return nil, fmt.Errorf("listener %s: %w", l.name(), err)
		}
		for _, w := range wants {
			stays[w.key] = true
		}
	}
	var leaving []net.Listener
	for _, l := range p.listeners {
		for _, s := range l.all() {
			if !stays[s.want] {
				leaving = append(leaving, s.Listener)
			}
		}
	}
	return leaving, nil
}
