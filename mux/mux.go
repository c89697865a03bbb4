package mux

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"github.com/sealane/sealane/internal/dial"
	"github.com/sealane/sealane/session"
	"github.com/sealane/sealane/session/container"
)

// A Peer is a node that this one has links with.
type Peer struct {
	Name string
	// Keys are the peer's static keys: the current one, and the next.
	Keys []session.PublicKey
	// Addresses are host:port. Without any, the peer only dials this node.
	Addresses []string
	// Links is how many links to keep up; 1 if 0. A peer whose name has
	// several addresses gets a link to more than one of them anyway.
	Links int
}

// Config is everything a Mux does. Update replaces it as a whole, but for
// Handler, Log, Hooks and the seams.
type Config struct {
	// Session has this node's Key, Transform and Padding; the rest is the
	// Mux's own.
	Session session.Config
	Peers   []Peer

	// Links bounds the links of all peers, StreamsPerPeer the streams with
	// one peer, whoever opened them, Handshakes those that go on at a time,
	// and Memory the bytes that may arrive and that were not read yet. 0 is the
	// default: 1024, 4096, 64 and 256 MiB.
	Links, StreamsPerPeer, Handshakes int
	Memory                            int64

	// HandshakeTimeout bounds a handshake, counted from accept or connect, and
	// DialTimeout the search for an address that connects. 0 is 10 s.
	HandshakeTimeout, DialTimeout time.Duration

	// LinkTimeout is how long nothing may move on a link that was asked for a
	// sign of life. 0 is 15 s.
	LinkTimeout time.Duration

	// Handler is called in its own goroutine for each stream that a peer
	// opens. What it does not answer is refused when it returns.
	Handler func(*Inbound)

	Log   zerolog.Logger
	Hooks Hooks

	// Resolver looks up a host's addresses. If nil, the system's does.
	Resolver func(ctx context.Context, host string) ([]netip.Addr, error)
	// Dialer connects to an address. If nil, a net.Dialer does.
	Dialer func(ctx context.Context, network, address string) (net.Conn, error)

	buffers int // see Tune; 0: linkBuffers
}

// Hooks are called for metrics. Any may be nil. They must not block.
type Hooks struct {
	// Handshake is called for each handshake that succeeded.
	Handshake func(d time.Duration)
	// Violation is called for each violation; peer is "" if it is not known.
	Violation func(peer string, rule session.Rule)
	// LinkResult is called for each attempt at a link; peer is "" if it is
	// not known.
	LinkResult func(peer string, result LinkResult)
	LinkUp     func(peer string)
	LinkDown   func(peer string)
	RTT        func(peer string, rtt time.Duration)
	// Refused is called when a limit refuses something.
	Refused func(limit Limit)
}

// A LinkResult is how an attempt at a link ended, as a metric's label.
type LinkResult string

const (
	LinkOK          LinkResult = "ok"
	LinkUnreachable LinkResult = "unreachable"  // no address connected
	LinkRejected    LinkResult = "rejected"     // the responder is not the peer, or there is nothing in common
	LinkNotFound    LinkResult = "not_found"    // the peer does not know this node's key
	LinkNoRoom      LinkResult = "no_room"      // the peer takes no more links now
	LinkUnknown     LinkResult = "unknown_peer" // the initiator's key is no peer's
	LinkViolation   LinkResult = "violation"
	LinkTimedOut    LinkResult = "timed_out"
	LinkLimited     LinkResult = "limited" // refused by a limit of this node
	LinkBroken      LinkResult = "broken"  // the stream ended during the handshake
)

// LinkResults lists every LinkResult, so that metrics can start at zero.
func LinkResults() []LinkResult {
	return []LinkResult{
		LinkOK, LinkUnreachable, LinkRejected, LinkNotFound, LinkNoRoom, LinkUnknown, LinkViolation, LinkTimedOut, LinkLimited, LinkBroken,
	}
}

// A Limit is what refused something, as a metric's label.
type Limit string

const (
	LimitLinks      Limit = "links"
	LimitStreams    Limit = "streams_per_peer"
	LimitHandshakes Limit = "handshakes"
	LimitHalfOpen   Limit = "half_open" // connections without a whole first message
	LimitMemory     Limit = "memory"
)

// Limits lists every Limit, so that metrics can start at zero.
func Limits() []Limit {
	return []Limit{LimitLinks, LimitStreams, LimitHandshakes, LimitHalfOpen, LimitMemory}
}

// timing is what tests shorten.
type timing struct {
	tick                   time.Duration // of watch
	yamux                  time.Duration // of a header that yamux writes, and a pong that it waits for
	open                   time.Duration // an accepted stream's time to send OPEN
	backoffMin, backoffMax time.Duration
	notFoundMin            time.Duration
	notFoundMax            time.Duration
	reading                time.Duration // a reading slot
	stalled, stalledAlike  time.Duration // a handshake that waits for its other end, see mayGo
	silent                 time.Duration // a link that may be replaced by a new one
	stagger                time.Duration // between attempts at a peer's addresses
	lookAgain              time.Duration // at a peer's addresses, for links to new ones
	acceptBackoff          time.Duration
	cutGrace, closeGrace   time.Duration // for resets to be queued, for what is queued to go out
}

var defaultTiming = timing{
	// What yamux waits for while bytes move, behind all that is queued, may take
	// long. It is no peer's that takes an hour. Where nothing moves watch is sooner.
	tick: time.Second, yamux: time.Hour, open: 10 * time.Second,
	backoffMin: 250 * time.Millisecond, backoffMax: 5 * time.Second,
	notFoundMin: 30 * time.Second, notFoundMax: 5 * time.Minute,
	reading: 3 * time.Second, stalled: time.Second, stalledAlike: 5 * time.Second, silent: 5 * time.Second,
	stagger: dial.HeadStart, lookAgain: 30 * time.Second,
	acceptBackoff: 5 * time.Millisecond, cutGrace: time.Second, closeGrace: 2 * time.Second,
}

// A Mux keeps the links of a node.
type Mux struct {
	log      zerolog.Logger
	hooks    Hooks
	handler  func(*Inbound)
	resolver func(ctx context.Context, host string) ([]netip.Addr, error)
	dialer   func(ctx context.Context, network, address string) (net.Conn, error)
	timing   timing
	quiet    *limitedLog
	accounts *accounts
	acceptor *acceptor
	replay   *session.ReplayCache
	decoys   *session.Decoys
	ctx      context.Context
	cancel   context.CancelFunc
	wg       sync.WaitGroup

	streams        atomic.Int64
	streamsPerPeer atomic.Int64  // of cfg, for who holds another lock
	lost           atomic.Int64  // streams whose link ended before they did, or before the peer confirmed that
	streamGone     chan struct{} // has an element when a stream ended

	mu         sync.Mutex
	held       int // links of all peers, those included that are coming up
	cfg        Config
	peers      map[string]*peer
	byKey      map[session.PublicKey]*peer
	listeners  map[net.Listener]struct{}
	started    bool
	draining   bool
	lostBefore int64 // what lost was then
	closed     bool

	violationMu sync.Mutex
	violations  map[container.Rule]uint64
}

// New returns a Mux that does nothing yet.
func New(cfg Config) (*Mux, error) {
	cfg, err := cfg.complete()
	if err != nil {
		return nil, err
	}
	decoys, err := session.NewDecoys()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	m := &Mux{
		log: cfg.Log, hooks: cfg.Hooks, handler: cfg.Handler, resolver: cfg.Resolver, dialer: cfg.Dialer,
		timing: defaultTiming, quiet: newLimitedLog(cfg.Log), accounts: newAccounts(cfg.Memory),
		replay: session.NewReplayCache(), decoys: decoys, ctx: ctx, cancel: cancel,
		streamGone: make(chan struct{}, 1),
		peers:      make(map[string]*peer),
		listeners:  make(map[net.Listener]struct{}),
		violations: make(map[container.Rule]uint64),
	}
	m.acceptor = newAcceptor(m)
	m.apply(cfg)
	return m, nil
}

// complete checks a Config and fills in defaults.
func (c Config) complete() (Config, error) {
	setDefault(&c.Links, 1024)
	setDefault(&c.StreamsPerPeer, 4096)
	setDefault(&c.Handshakes, 64)
	setDefault(&c.Memory, 256<<20)
	setDefault(&c.HandshakeTimeout, 10*time.Second)
	setDefault(&c.DialTimeout, 10*time.Second)
	setDefault(&c.LinkTimeout, 15*time.Second)
	setDefault(&c.buffers, linkBuffers)
	if c.Handler == nil {
		c.Handler = func(in *Inbound) { in.Refuse(StatusDenied, "") }
	}
	if c.Resolver == nil {
		c.Resolver = func(ctx context.Context, host string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		}
	}
	if c.Dialer == nil {
		c.Dialer = new(net.Dialer).DialContext
	}
	if c.Session.Key == nil {
		return c, errors.New("mux: no key")
	}
	return c, c.checkPeers()
}

func setDefault[T comparable](v *T, value T) {
	var zero T
	if *v == zero {
		*v = value
	}
}

func (c *Config) checkPeers() error {
	names := make(map[string]bool)
	keys := map[session.PublicKey]string{c.Session.Key.Public(): ""}
	for _, p := range c.Peers {
		switch {
		case p.Name == "":
			return errors.New("mux: a peer without a name")
		case names[p.Name]:
			return fmt.Errorf("mux: two peers are named %q", p.Name)
		case len(p.Keys) == 0:
			return fmt.Errorf("mux: peer %q has no key", p.Name)
		}
		names[p.Name] = true
		for _, k := range p.Keys {
			other, taken := keys[k]
			switch {
			case taken && other == "":
				return fmt.Errorf("mux: peer %q has this node's own key", p.Name)
			case taken:
				return fmt.Errorf("mux: peers %q and %q have the same key", other, p.Name)
			}
			keys[k] = p.Name
		}
		for _, a := range p.Addresses {
			if _, _, err := net.SplitHostPort(a); err != nil {
				return fmt.Errorf("mux: peer %q: %w", p.Name, err)
			}
		}
	}
	return nil
}

// apply makes cfg, which is complete, the current one.
func (m *Mux) apply(cfg Config) {
	cfg.Session.Authorize = func(k session.PublicKey) bool { return m.peerByKey(k) != nil }
	cfg.Session.Replay, cfg.Session.Decoys = m.replay, m.decoys
	m.mu.Lock()
	defer m.mu.Unlock()
	rotated := m.cfg.Session.Key != nil && m.cfg.Session.Key.Public() != cfg.Session.Key.Public()
	m.cfg = cfg
	m.streamsPerPeer.Store(int64(cfg.StreamsPerPeer))
	m.byKey = make(map[session.PublicKey]*peer)
	var list []*account
	old := m.peers
	m.peers = make(map[string]*peer)
	for _, pc := range cfg.Peers {
		p := old[pc.Name]
		if p == nil {
			p = newPeer(m, pc.Name)
		}
		delete(old, pc.Name)
		m.peers[pc.Name] = p
		for _, k := range pc.Keys {
			m.byKey[k] = p
		}
		p.update(pc)
		p.share = cfg.share(pc)
		list = append(list, p.account)
		if m.started && !m.closed {
			p.start()
		}
	}
	for _, p := range old {
		p.removeAll()
	}
	m.accounts.resize(cfg.Memory, list)
	if rotated {
		m.replaceLinks()
	}
}

// replaceLinks makes way for links with this node's new key: those with the
// old one finish the streams that they have, and take no others.
func (m *Mux) replaceLinks() {
	for _, p := range m.peers {
		for _, l := range p.allLinks() {
			l.replace()
		}
	}
}

// Update replaces the configuration. Links and streams of peers and keys that
// are no longer there are reset; all others go on as they are. If this node's
// key is another one, they finish on the key that they began with, and new
// streams are opened on new links.
func (m *Mux) Update(cfg Config) error {
	cfg, err := cfg.complete()
	if err != nil {
		return err
	}
	m.apply(cfg)
	m.acceptor.look() // there may be more places
	return nil
}

// Start dials the peers.
func (m *Mux) Start() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.started || m.closed {
		return
	}
	m.started = true
	for _, p := range m.peers {
		p.start()
	}
}

func (m *Mux) config() Config {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.cfg
}

func (m *Mux) peerByKey(k session.PublicKey) *peer {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.byKey[k]
}

// Open opens a stream to a peer. It waits for a link, and for the peer's
// answer, until ctx ends. No byte of an app is sent before the answer, so the
// OPEN may be tried on another link: whenever the peer drains behind this one,
// once if the link died before the answer, rather at another address, and at
// each of the peer's other addresses if the target refused behind this one.
// Behind the same name may be a node whose app is just starting or ending and
// one whose app runs.
func (m *Mux) Open(ctx context.Context, peer string, o Open) (*Stream, error) {
	m.mu.Lock()
	p, closed := m.peers[peer], m.closed
	m.mu.Unlock()
	switch {
	case closed:
		return nil, ErrClosed
	case p == nil:
		return nil, fmt.Errorf("%w %q", ErrUnknownPeer, peer)
	}
	frame, err := appendOpen(nil, o)
	if err != nil {
		return nil, fmt.Errorf("opening a stream: %w", err)
	}
	var refused []string // addresses
	var next *link       // if nil, any
	for unanswered := 0; ; {
		l := next
		if next = nil; l == nil {
			if l, err = p.pick(ctx); err != nil {
				return nil, err
			}
		}
		if err := p.acquireStream(); err != nil {
			return nil, err
		}
		s, err := l.open(ctx, o, frame)
		if err == nil {
			return s, nil
		}
		var answer *OpenError
		switch {
		case ctx.Err() != nil:
			return nil, fmt.Errorf("opening a stream to %s: %w", peer, err)
		case errors.Is(err, errGoAway): // that link is not picked again
			continue
		case errors.Is(err, errUnanswered) && unanswered == 0:
			unanswered++
			// Its node's other links may be as dead.
			next = p.elsewhere(append(refused, l.address))
			continue
		case errors.As(err, &answer) && answer.Status == StatusRefused && l.dialed:
			refused = append(refused, l.address)
			if next = p.elsewhere(refused); next != nil {
				continue
			}
		}
		return nil, err
	}
}

// Leave tells all peers to open no more streams here, and takes no more links.
// Streams to peers may still be opened.
func (m *Mux) Leave() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed || m.draining {
		return
	}
	m.draining = true
	m.lostBefore = m.lost.Load()
	m.closeListeners()
	for _, p := range m.peers {
		for _, l := range p.allLinks() {
			l.leave()
		}
	}
}

// Drain leaves, and waits until no stream is left or ctx ends. A stream that
// has ended here is left until the peer has taken all of it. Then it closes the
// Mux. A *DrainError says how many streams were cut, or lost with their links
// since the Mux left.
func (m *Mux) Drain(ctx context.Context) error {
	m.Leave()
	m.mu.Lock()
	closed, before := m.closed, m.lostBefore
	m.mu.Unlock()
	if closed {
		return ErrClosed
	}
	finished := m.finish(ctx)
	cut := int(m.lost.Load() - before)
	if !finished {
		cut += m.cut()
	}
	if err := m.Close(); err != nil {
		return err
	}
	if cut > 0 {
		return &DrainError{Cut: cut}
	}
	return nil
}

// finish waits until all peers were told to open no more streams here, and
// none is left. It returns false if ctx ended first. A link that closes before
// its go away would fail the streams that are on their way.
func (m *Mux) finish(ctx context.Context) bool {
	for _, l := range m.allLinks() {
		select {
		case <-l.told:
		case <-l.dead:
		case <-ctx.Done():
			return false
		}
	}
	for m.streams.Load() > 0 {
		select {
		case <-m.streamGone:
		case <-ctx.Done():
			return false
		}
	}
	return true
}

// cut resets all streams, and waits a little until the peers were told. It
// counts those that nobody has aborted yet.
func (m *Mux) cut() (n int) {
	for _, l := range m.allLinks() {
		for _, s := range l.snapshot() {
			if s.Err() == nil {
				s.Reset(ResetShuttingDown)
				n++
			}
		}
	}
	deadline := time.After(m.timing.cutGrace)
	for m.streams.Load() > 0 {
		select {
		case <-m.streamGone:
		case <-deadline:
			return n
		}
	}
	return n
}

// Close ends all links, with their streams, and waits until they have ended.
func (m *Mux) Close() error {
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return nil
	}
	m.closed = true
	m.closeListeners()
	peers := m.peers
	m.mu.Unlock()
	m.cancel()
	for _, p := range peers {
		for _, l := range p.allLinks() {
			m.wg.Go(func() { l.close(ErrClosed) })
		}
	}
	m.wg.Wait()
	return nil
}

func (m *Mux) closeListeners() {
	for l := range m.listeners {
		l.Close()
	}
}

func (m *Mux) allLinks() (list []*link) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range m.peers {
		list = append(list, p.allLinks()...)
	}
	return list
}

// violated counts and reports a violation, if err is one.
func (m *Mux) violated(peer string, err error) {
	var v *container.Violation
	if !errors.As(err, &v) {
		return
	}
	m.violationMu.Lock()
	m.violations[v.Rule]++
	m.violationMu.Unlock()
	if f := m.hooks.Violation; f != nil {
		f(peer, v.Rule)
	}
}

func (m *Mux) refused(limit Limit) {
	if f := m.hooks.Refused; f != nil {
		f(limit)
	}
}

func (m *Mux) result(peer string, r LinkResult) {
	if f := m.hooks.LinkResult; f != nil {
		f(peer, r)
	}
}
