package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/sealane/sealane/internal/dial"
)

// waits bound what an app can make a listener wait for.
type waits struct {
	request time.Duration // until the app has said what it wants, and again until it has taken the answer
	linger  time.Duration // until an app that was refused hangs up
}

var usualWaits = waits{request: 10 * time.Second, linger: time.Second}

// A listener is an entry of the config and its sockets. It is read-only: a
// reload makes another, which gets the sockets that stay.
type listener struct {
	p     *Proxy
	cfg   *Listener
	socks []*bound
	extra []*bound  // more of them, which socks cover: see absorb
	ports []uint16  // TCP ports of socks
	local bool      // bound to loopback or unix sockets alone
	prev  *listener // of the last config, with the same address; nil once adopted

	*counts
}

// counts outlive reloads.
type counts struct {
	now, total atomic.Int64
	lastError  atomic.Pointer[string]
}

func (l *listener) all() []*bound { return slices.Concat(l.socks, l.extra) }

func (l *Listener) name() string { return string(l.Kind) + " " + l.Address.String() }

func (l *Listener) check() error {
	switch l.Address.Network {
	case "tcp", "unix", "systemd":
	default:
		return errors.New("has no address")
	}
	if l.Address.Network != "unix" && (l.Mode != 0 || l.Owner != "") {
		return errors.New("mode and owner are for unix sockets")
	}
	if l.Mode&^0o777 != 0 {
		return fmt.Errorf("mode %o has more than permission bits", l.Mode)
	}
	if len(l.Users) > 0 && l.Kind != KindSOCKS5 && l.Kind != KindConnect {
		return errors.New("users are for socks5 and connect listeners")
	}
	if l.ProxyProtocol && l.Kind != KindForward {
		return errors.New("proxy_protocol is for forward listeners")
	}
	switch l.Kind {
	case KindForward:
		if l.To.Direct || l.To.Peer == "" || l.To.Service == "" {
			return errors.New("a forward leads to a peer's service; write to: {peer: NAME, service: NAME}")
		}
	case KindSOCKS5, KindConnect:
		return l.checkUsers()
	case KindTransparent:
		if l.Address.Network == "unix" {
			return errors.New("a unix socket has no original destination; write HOST:PORT")
		}
	default:
		return fmt.Errorf("unknown kind %q", l.Kind)
	}
	return nil
}

func (l *Listener) checkUsers() error {
	for _, u := range l.Users {
		switch {
		case u.Name == "" || u.Password == "":
			return errors.New("a user needs a name and a password")
		case len(u.Name) > 255 || len(u.Password) > 255:
			return errors.New("a user's name and password have at most 255 bytes")
		}
	}
	if host, _, err := net.SplitHostPort(l.Address.Address); l.Address.Network == "tcp" && err == nil && len(l.Users) == 0 {
		if a, err := netip.ParseAddr(host); host == "" || err == nil && !a.Unmap().IsLoopback() {
			return errNeedsUsers
		}
	}
	return nil
}

var errNeedsUsers = errors.New("is bound to more than loopback, so anyone could use it; add users, or bind to 127.0.0.1 or [::1]")

// checkBound checks what only the bound sockets tell.
func (l *Listener) checkBound(local bool) error {
	if (l.Kind == KindSOCKS5 || l.Kind == KindConnect) && !local && len(l.Users) == 0 {
		return errNeedsUsers
	}
	return nil
}

// own makes l the one that serves its sockets' connections from now on.
func (l *listener) own() {
	for _, s := range l.all() {
		s.owner.Store(l)
		s.serving.Do(func() { s.loop.Go(s.accept) })
	}
	l.prev = nil
}

// stopAll stops sockets at once.
func stopAll(socks []*bound) {
	var all sync.WaitGroup
	for _, s := range socks {
		all.Go(s.stop)
	}
	all.Wait()
}

// A socket that is about to close still gives out the connections that the
// kernel has made, until none comes for one lastCall, or for all lastCalls
// where apps connect without a pause.
const (
	lastCall  = 10 * time.Millisecond
	lastCalls = 250 * time.Millisecond
)

// stop closes the socket and waits for the accept loop. Connections go on.
// What waits in a socket that systemd passed is left to its next user.
func (s *bound) stop() {
	s.stopping.Do(func() {
		served := true
		s.serving.Do(func() { served = false }) // never from now on
		close(s.stopped)
		d, ok := s.Listener.(deadliner)
		if ok && served && d.SetDeadline(time.Unix(1, 0)) == nil {
			s.loop.Wait()
		}
		s.Close()
	})
	s.loop.Wait()
}

type deadliner interface{ SetDeadline(time.Time) error }

// takeLast takes what waits in a socket that is being stopped.
func takeLast(l net.Listener, take func(net.Conn)) {
	d, ok := l.(deadliner)
	end := time.Now().Add(lastCalls)
	for now := time.Now(); ok && now.Before(end); now = time.Now() {
		if d.SetDeadline(now.Add(min(lastCall, end.Sub(now)))) != nil {
			return
		}
		c, err := l.Accept()
		if err != nil {
			return
		}
		take(c)
	}
}

func (s *bound) isStopped() bool {
	select {
	case <-s.stopped:
		return true
	default:
		return false
	}
}

// accept survives errors such as running out of descriptors: it waits a
// little and goes on.
func (s *bound) accept() {
	if !s.fromSystemd() {
		defer takeLast(s.Listener, func(c net.Conn) { s.owner.Load().take(c) })
	}
	again := dial.Backoff{Min: 5 * time.Millisecond, Max: time.Second}
	for !s.isStopped() {
		c, err := s.Accept()
		l := s.owner.Load()
		if err == nil {
			again.Reset()
			l.take(c)
			continue
		}
		switch {
		case s.isStopped(), errors.Is(err, net.ErrClosed):
			return
		case l.acceptFailed(s.Listener, err):
			continue // more may be waiting
		}
		select {
		case <-s.stopped:
		case <-time.After(again.Wait()):
		}
	}
}

// acceptFailed reports the error. Out of descriptors, it resets a waiting
// connection, which would otherwise hang without an answer, and returns
// whether there was one.
func (l *listener) acceptFailed(s net.Listener, err error) (refused bool) {
	text := err.Error()
	l.lastError.Store(&text)
	if errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) {
		if refused = l.p.spare.refuse(s); refused {
			l.p.count("", string(l.cfg.Kind), ResultOverloaded)
		}
	}
	if skipped, ok := l.p.acceptLines.take(time.Now()); ok {
		l.p.log().Error().Str("listener", l.cfg.name()).Err(err).Bool("refused", refused).
			Int("suppressed", skipped).Msg("cannot accept a connection")
	}
	return refused
}

// take serves one connection in its own goroutine.
func (l *listener) take(c net.Conn) {
	if !l.p.enter() {
		newConn(c, nil).reset()
		return
	}
	l.now.Add(1)
	l.total.Add(1)
	go l.p.serve(string(l.cfg.Kind), l.release, func(rec *record) { l.handle(l.cfg, rec, c) })
}

func (l *listener) release() {
	l.now.Add(-1)
	l.p.leave()
}

func (l *listener) handle(cfg *Listener, rec *record, c net.Conn) {
	rec.listener, rec.from = cfg.Address.String(), addrText(c.RemoteAddr())
	switch cfg.Kind {
	case KindForward:
		l.forward(cfg, rec, c)
	case KindSOCKS5:
		l.socks5(cfg, rec, c)
	case KindConnect:
		l.connect(cfg, rec, c)
	case KindTransparent:
		l.transparent(rec, c)
	}
}

// awaitRequest bounds the time until the app has said what it wants: until
// the returned function is called, the deadline or a drain ends the reads.
func (l *listener) awaitRequest(c net.Conn) (done func()) {
	c.SetDeadline(time.Now().Add(l.p.waits.request))
	ended := make(chan struct{})
	stop := context.AfterFunc(l.p.draining, func() {
		c.SetDeadline(time.Unix(1, 0))
		close(ended)
	})
	return func() {
		if !stop() {
			<-ended // or it would set its deadline after this
		}
		c.SetDeadline(time.Time{})
	}
}

// A hearing notes whether anything ever came.
type hearing struct {
	io.Reader
	heard bool
}

func (r *hearing) Read(b []byte) (int, error) {
	n, err := r.Reader.Read(b)
	r.heard = r.heard || n > 0
	return n, err
}

func (l *listener) forward(cfg *Listener, rec *record, c net.Conn) {
	near := newConn(c, nil)
	if cfg.ProxyProtocol {
		done := l.awaitRequest(c)
		r := &hearing{Reader: c}
		from, err := readProxyHeader(r)
		done()
		if err != nil && !r.heard {
			near.reset()
			rec.unused()
			return
		}
		if err != nil {
			near.reset()
			rec.failed(&failure{result: ResultBadRequest, reason: err.Error()})
			return
		}
		if from.IsValid() {
			rec.from = from.String()
		}
	}
	l.run(rec, near, cfg.To, Destination{})
}

// run carries a connection whose app awaits no answer before its bytes flow:
// it sees a failure as a reset.
func (l *listener) run(rec *record, near *conn, to Target, dest Destination) {
	far, f := l.open(rec, near.socket, to, dest)
	if f != nil {
		near.reset()
		rec.failed(f)
		return
	}
	l.carry(rec, near, far)
}

func (l *listener) carry(rec *record, near *conn, far far) {
	l.p.carry(rec, near, far, func(st *state) string {
		if rec.peer != PeerDirect && !st.knowsPeer(rec.peer) {
			return "peer removed from the config"
		}
		return ""
	})
}

func (l *listener) status() ListenerStatus {
	st := ListenerStatus{Kind: l.cfg.Kind, Address: l.cfg.Address.String(), Open: l.now.Load(), Total: l.total.Load()}
	for _, s := range l.socks {
		st.Bound = append(st.Bound, s.Addr().String())
	}
	if text := l.lastError.Load(); text != nil {
		st.LastError = *text
	}
	return st
}

// addrText writes an app's address as OPEN carries it: ip:port, or "" for a
// unix socket.
func addrText(a net.Addr) string {
	if t, ok := a.(*net.TCPAddr); ok {
		return unmapped(t.AddrPort()).String()
	}
	return ""
}

func unmapped(ap netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(ap.Addr().Unmap().WithZone(""), ap.Port())
}

// tcpPorts lists the TCP ports of sockets, and whether all of them are out of
// reach from other hosts.
func tcpPorts(socks []*bound) (ports []uint16, local bool) {
	local = true
	for _, s := range socks {
		if t, ok := s.Addr().(*net.TCPAddr); ok {
			ap := t.AddrPort()
			if !slices.Contains(ports, ap.Port()) {
				ports = append(ports, ap.Port())
			}
			local = local && ap.Addr().Unmap().IsLoopback()
		}
	}
	return ports, local
}
