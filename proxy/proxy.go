package proxy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"github.com/sealane/sealane/mux"
)

// opener opens streams to peers: a *mux.Mux.
type opener interface {
	Open(ctx context.Context, peer string, o mux.Open) (stream, error)
}

// A Proxy is the listeners, routes and exit policy of one node.
type Proxy struct {
	opener opener

	ctx    context.Context // ends what is not open yet
	cancel context.CancelFunc

	draining  context.Context // ends what has not even said where it wants to go
	drainOnly context.CancelFunc

	state atomic.Pointer[state]

	change    sync.Mutex // one Start, Update, Drain or Close at a time
	listeners []*listener
	bound     bool
	started   bool

	mu      sync.Mutex
	splices map[*splice]struct{}
	closed  bool
	drained chan struct{} // not nil while Drain waits; closed at 0 connections
	busy    int           // connections and inbound streams being served

	waits        waits
	tick         time.Duration // between sweeps; 0: what the timeouts need
	background   sync.WaitGroup
	namesChanged chan struct{}
	resolver     *strictResolver // for the names of routes
	spare        spareDescriptor
	poller       *poller // for idle connections; nil if there is none

	refusals     refusalRing
	refusalLines lineLimiter
	acceptLines  lineLimiter
}

// state is a compiled Config. It is read-only.
type state struct {
	cfg    Config
	peers  map[string]bool
	policy policy
	dialer dialer
	names  *names // of the routes, those of within too
	within *state // of Config.Within: its routes alone; nil if there is none
}

func (st *state) dialTimeout() time.Duration {
	if st.cfg.Timeouts.Dial > 0 {
		return st.cfg.Timeouts.Dial
	}
	return 10 * time.Second
}

// knowsPeer takes every peer for known if the config lists none.
func (st *state) knowsPeer(name string) bool {
	return st.cfg.Peers == nil || st.peers[name]
}

type muxOpener struct{ m *mux.Mux }

func (o muxOpener) Open(ctx context.Context, peer string, open mux.Open) (stream, error) {
	s, err := o.m.Open(ctx, peer, open)
	if err != nil {
		return nil, err
	}
	return s, nil
}

type muxInbound struct{ *mux.Inbound }

func (in muxInbound) Accept() (stream, error) {
	s, err := in.Inbound.Accept()
	if err != nil {
		return nil, err
	}
	return s, nil
}

// New checks cfg and makes a Proxy that opens streams to peers through m. It
// touches nothing outside until Start.
func New(cfg Config, m *mux.Mux) (*Proxy, error) {
	return newProxy(cfg, muxOpener{m})
}

func newProxy(cfg Config, o opener) (*Proxy, error) {
	p := &Proxy{
		opener: o, splices: make(map[*splice]struct{}), namesChanged: make(chan struct{}, 1), resolver: newStrictResolver(resolverFiles...),
		waits: usualWaits,
	}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	p.draining, p.drainOnly = context.WithCancel(p.ctx)
	st, err := p.compile(cfg)
	if err != nil {
		p.cancel()
		return nil, err
	}
	p.state.Store(st)
	return p, nil
}

func (p *Proxy) compile(cfg Config) (*state, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	st := &state{cfg: cfg, peers: make(map[string]bool), policy: newPolicy(cfg.Services, cfg.Egress), dialer: newDialer(&cfg)}
	for _, name := range cfg.Peers {
		st.peers[name] = true
	}
	st.policy.own, st.policy.ownFile = p.isOwnPort, p.isOwnSocket
	if w := cfg.Within; w != nil {
		within := newPolicy(w.Services, w.Egress)
		within.own, within.ownFile = p.isOwnPort, p.isOwnSocket
		st.policy.within = &within
		st.within = &state{cfg: Config{Routes: w.Routes}}
	}
	var old *names
	if prev := p.state.Load(); prev != nil {
		old = prev.names
	}
	st.names = p.newNames(st, old)
	if st.within != nil {
		st.within.names = st.names
	}
	return st, nil
}

// Bind binds every listener. Nothing is accepted until Start. Its error names
// the listener that failed; then none is bound.
func (p *Proxy) Bind() error {
	p.change.Lock()
	defer p.change.Unlock()
	return p.bind()
}

func (p *Proxy) bind() error {
	switch {
	case p.isClosed():
		return errors.New("proxy is closed")
	case p.bound:
		return errors.New("proxy is already bound")
	}
	ls, err := p.bindAll(p.state.Load(), nil)
	if err != nil {
		return err
	}
	p.bound = true
	p.mu.Lock()
	p.listeners = ls
	p.mu.Unlock()
	return nil
}

// Start serves, and binds the listeners before unless Bind has.
func (p *Proxy) Start() error {
	p.change.Lock()
	defer p.change.Unlock()
	if p.isClosed() {
		return errors.New("proxy is closed")
	}
	if p.started {
		return errors.New("proxy is already started")
	}
	if !p.bound {
		if err := p.bind(); err != nil {
			return err
		}
	}
	p.started = true
	p.spare.hold()
	if p.state.Load().cfg.Listen == nil {
		var err error
		if p.poller, err = newPoller(); err == nil {
			p.background.Go(p.poller.run)
		}
	}
	for _, l := range p.listeners {
		l.own()
	}
	p.background.Go(p.sweep)
	p.background.Go(p.keepNames)
	return nil
}

// Handle serves a stream that a peer opened. It is mux.Config's Handler, for a
// Mux that is started after the Proxy.
func (p *Proxy) Handle(in *mux.Inbound) { p.serveInbound(muxInbound{in}) }

// Update replaces the config. Listeners are opened and closed by difference;
// if one cannot be bound, its error is returned and nothing has changed.
// Connections that the new config still allows are not touched; those of a
// removed peer, and those from a peer that it no longer allows, are reset.
func (p *Proxy) Update(cfg Config) error {
	p.change.Lock()
	defer p.change.Unlock()
	if p.isClosed() {
		return errors.New("proxy is closed")
	}
	st, err := p.compile(cfg)
	if err != nil {
		return err
	}
	if p.started {
		next, err := p.bindAll(st, p.listeners)
		st.cfg.Replaced = nil
		if err != nil {
			return err
		}
		p.state.Store(st)
		p.adopt(next)
	} else {
		p.state.Store(st)
	}
	select {
	case p.namesChanged <- struct{}{}:
	default:
	}
	p.revoke(st)
	return nil
}

// adopt makes ls the listeners: they serve, and sockets that none of them has
// are closed.
func (p *Proxy) adopt(ls []*listener) {
	old := p.listeners
	p.mu.Lock()
	p.listeners = ls
	p.mu.Unlock()
	kept := make(map[*bound]bool)
	for _, l := range ls {
		l.own()
		for _, s := range l.all() {
			kept[s] = true
		}
	}
	var gone []*bound
	for _, l := range old {
		for _, s := range l.all() {
			if !kept[s] {
				gone = append(gone, s)
			}
		}
	}
	stopAll(gone)
}

// revoke resets what the state no longer allows.
func (p *Proxy) revoke(st *state) {
	for _, s := range p.running(nil) {
		if why := s.revoked(st); why != "" {
			s.fail(outcome{ResultCut, why, mux.ResetUnspecified})
		}
	}
}

// running appends the splices to all, so that none is failed under the lock.
func (p *Proxy) running(all []*splice) []*splice {
	p.mu.Lock()
	defer p.mu.Unlock()
	for s := range p.splices {
		all = append(all, s)
	}
	return all
}

// Drain closes the listeners and waits until every connection has finished,
// or until ctx ends: then it resets the rest, each with its log line, and
// returns how many there were. Streams that peers still open are served until
// then; to refuse them is mux's part.
func (p *Proxy) Drain(ctx context.Context) (cut int) {
	p.change.Lock()
	defer p.change.Unlock()
	p.adopt(nil)
	p.drainOnly()
	p.mu.Lock()
	drained := make(chan struct{})
	p.drained = drained
	if p.busy == 0 {
		close(drained)
		p.drained = nil
	}
	p.mu.Unlock()
	select {
	case <-drained:
		return 0
	case <-ctx.Done():
		return p.cut("cut: the drain's deadline passed")
	}
}

// Close resets every connection and closes the listeners. When it returns no
// goroutine of the Proxy is left.
func (p *Proxy) Close() {
	p.change.Lock()
	defer p.change.Unlock()
	p.adopt(nil)
	p.cut("cut: the proxy was closed")
	if p.poller != nil {
		p.poller.close()
	}
	p.background.Wait()
	p.spare.free()
}

// cut ends everything and waits for it.
func (p *Proxy) cut(why string) (n int) {
	p.mu.Lock()
	p.closed = true
	n = p.busy
	var idle chan struct{}
	if p.busy > 0 {
		idle = make(chan struct{})
		p.drained = idle
	}
	p.mu.Unlock()
	p.cancel()
	for _, s := range p.running(nil) {
		s.fail(outcome{ResultCut, why, mux.ResetShuttingDown})
	}
	if idle != nil {
		<-idle
	}
	return n
}

func (p *Proxy) isClosed() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.closed
}

// enter counts a connection that is being served; leave must follow. It
// returns false once the Proxy is closed.
func (p *Proxy) enter() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return false
	}
	p.busy++
	return true
}

func (p *Proxy) leave() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.busy--
	if p.busy == 0 && p.drained != nil {
		close(p.drained)
		p.drained = nil
	}
}

// carry runs an open connection to its end, then writes its line and releases
// it. It does not wait for that. revoked says why a state ends it, or "".
func (p *Proxy) carry(rec *record, near *conn, far far, revoked func(*state) string) {
	hooks := &p.state.Load().cfg.Hooks
	near.nap.poller = p.poller
	s := &splice{near: near, far: far, rec: rec, revoked: revoked, count: hooks.Bytes}
	s.done = func(o outcome) {
		p.mu.Lock()
		delete(p.splices, s)
		p.mu.Unlock()
		if hooks.StreamClosed != nil {
			hooks.StreamClosed(rec.peer, rec.via)
		}
		rec.finished(o, s.in.Load(), s.out.Load())
		rec.release()
	}
	rec.carried = true
	if hooks.StreamOpened != nil {
		hooks.StreamOpened(rec.peer, rec.via)
	}
	if p.register(s) > crowd {
		near.limitKernel(rec.listener != "")
	}
	s.start()
}

// register makes the splice known to Update, Drain and the sweeper, and returns
// how many there are now. What those decided while the stream was being opened
// holds for it too.
func (p *Proxy) register(s *splice) int {
	p.mu.Lock()
	p.splices[s] = struct{}{}
	count, closed := len(p.splices), p.closed
	p.mu.Unlock()
	if closed {
		s.fail(outcome{ResultCut, "cut: shutting down", mux.ResetShuttingDown})
	} else if why := s.revoked(p.state.Load()); why != "" {
		s.fail(outcome{ResultCut, why, mux.ResetUnspecified})
	}
	return count
}

// sweep looks after all splices with one goroutine and one timer.
func (p *Proxy) sweep() {
	pending, freed := 0, time.Now()
	var all []*splice // kept, to make no garbage
	for {
		t := p.state.Load().cfg.Timeouts
		if !p.pause(cmp.Or(p.tick, sweepInterval(t))) {
			return
		}
		now, dozed := time.Now(), 0
		all = p.running(all[:0])
		for _, s := range all {
			if s.sweep(now, t) {
				dozed++
			}
		}
		clear(all)
		// The runtime would give the memory of so many back in its own time,
		// which is minutes. That is not done while more go to sleep.
		pending += dozed
		if pending >= manyDozed && (dozed == 0 || now.Sub(freed) >= freeInterval) {
			debug.FreeOSMemory()
			pending, freed = 0, now
		}
	}
}

const (
	manyDozed    = 1000
	freeInterval = 10 * time.Second
)

// pause returns false if the Proxy is closed meanwhile.
func (p *Proxy) pause(d time.Duration) bool {
	select {
	case <-p.ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// sweepInterval is short enough that a timeout is late by at most a quarter.
func sweepInterval(t Timeouts) time.Duration {
	d := time.Second
	for _, limit := range []time.Duration{t.Idle, t.HalfClose} {
		if limit > 0 {
			d = min(d, max(limit/4, 10*time.Millisecond))
		}
	}
	return d
}

func (p *Proxy) log() *zerolog.Logger { return &p.state.Load().cfg.Log }

func (p *Proxy) count(peer, via string, result Result) {
	if h := p.state.Load().cfg.Hooks.StreamResult; h != nil {
		h(peer, via, result)
	}
}

// Refusals returns the last connections that were not opened, the latest first.
func (p *Proxy) Refusals() []Refusal { return p.refusals.list() }

// ListenerStatus describes a bound listener.
type ListenerStatus struct {
	Kind      Kind     `json:"kind"`
	Address   string   `json:"address"` // as configured
	Bound     []string `json:"bound"`   // as bound, with the real port
	Open      int64    `json:"open"`    // connections now
	Total     int64    `json:"total"`   // connections since the start
	LastError string   `json:"last_error,omitempty"`
}

// Status describes the listeners, in the order of the config.
func (p *Proxy) Status() []ListenerStatus {
	p.mu.Lock()
	ls := p.listeners
	p.mu.Unlock()
	out := make([]ListenerStatus, 0, len(ls))
	for _, l := range ls {
		out = append(out, l.status())
	}
	return out
}

// isOwnPort reports whether this process listens on the TCP port.
func (p *Proxy) isOwnPort(port uint16) bool {
	if slices.Contains(p.state.Load().cfg.Own, port) {
		return true
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, l := range p.listeners {
		if slices.Contains(l.ports, port) {
			return true
		}
	}
	return false
}

// isOwnSocket reports whether this process listens on the unix socket, by
// whatever path it is named.
func (p *Proxy) isOwnSocket(path string) bool {
	own := slices.Clone(p.state.Load().cfg.OwnSockets)
	p.mu.Lock()
	for _, l := range p.listeners {
		for _, s := range l.socks {
			if a, ok := s.Addr().(*net.UnixAddr); ok {
				own = append(own, a.Name)
			}
		}
	}
	p.mu.Unlock()
	return slices.ContainsFunc(own, func(o string) bool { return sameSocket(o, path) })
}

func sameSocket(a, b string) bool {
	if a == b || strings.HasPrefix(a, "@") || strings.HasPrefix(b, "@") {
		return a == b
	}
	sa, errA := os.Stat(a)
	sb, errB := os.Stat(b)
	return errA == nil && errB == nil && os.SameFile(sa, sb)
}

// check refuses a config that must not run. Config files get errors with line
// and column from their reader; these are the same rules for every caller.
func (c *Config) check() error {
	seen := make(map[string]bool)
	for _, l := range c.Listeners {
		if err := l.check(); err != nil {
			return fmt.Errorf("listener %s: %w", l.name(), err)
		}
		if !l.Address.anyPort() && seen[l.Address.String()] {
			return fmt.Errorf("listener %s: the address is listed twice", l.name())
		}
		seen[l.Address.String()] = true
		if l.Kind == KindForward && !c.knows(l.To.Peer) {
			return fmt.Errorf("listener %s: unknown peer %q", l.name(), l.To.Peer)
		}
	}
	for _, r := range c.Routes {
		if r.Match == (Match{}) {
			return errors.New("a route has no match")
		}
		if r.To.Direct == (r.To.Peer != "") {
			return fmt.Errorf("route %s: write either a peer or direct", r.Match)
		}
		// A peer that Within has cost its keys is still where the route leads,
		// and that fails: what follows must not catch what it matches.
		if !r.To.Direct && !c.knows(r.To.Peer) && c.Within == nil {
			return fmt.Errorf("route %s: unknown peer %q", r.Match, r.To.Peer)
		}
	}
	return c.checkExit()
}

func (c *Config) checkExit() error {
	names := make(map[string]bool)
	for _, s := range c.Services {
		switch {
		case names[s.Name]:
			return fmt.Errorf("service %q is listed twice", s.Name)
		case len(s.Allow) == 0:
			return fmt.Errorf("service %q allows no peer", s.Name)
		case s.Address.Network != "tcp" && s.Address.Network != "unix":
			return fmt.Errorf("service %q: the address is neither HOST:PORT nor unix:PATH", s.Name)
		}
		names[s.Name] = true
		if err := c.checkAllow(s.Allow); err != nil {
			return fmt.Errorf("service %q: %w", s.Name, err)
		}
	}
	for i, r := range c.Egress {
		if len(r.Allow) == 0 || len(r.Match) == 0 {
			return fmt.Errorf("egress rule %d: allow and match must not be empty", i+1)
		}
		if err := c.checkAllow(r.Allow); err != nil {
			return fmt.Errorf("egress rule %d: %w", i+1, err)
		}
	}
	return nil
}

func (c *Config) checkAllow(peers []string) error {
	for _, peer := range peers {
		if !c.knows(peer) {
			return fmt.Errorf("unknown peer %q", peer)
		}
	}
	return nil
}

func (c *Config) knows(peer string) bool {
	return peer != "" && (c.Peers == nil || slices.Contains(c.Peers, peer))
}
