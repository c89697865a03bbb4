package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/sealane/sealane/cmd/sealane/internal/config"
	"github.com/sealane/sealane/mux"
	"github.com/sealane/sealane/proxy"
	"github.com/sealane/sealane/session"
)

// A node is one running sidecar: a mux, a proxy, and what shows their state.
type node struct {
	logger  zerolog.Logger
	options nodeOptions
	mux     *mux.Mux
	proxy   *proxy.Proxy
	metrics *metrics
	events  *events
	started time.Time
	serving sync.WaitGroup // of links
	warning sync.WaitGroup // of peers whose name is unknown
	ctx     context.Context
	cancel  context.CancelFunc

	mu       sync.Mutex
	cfg      *config.Config // in force
	base     *config.Config // the last that took effect as a whole; cfg is all or, after a refused reload, a part of it
	within   *proxy.Policy  // of that refused config, if cfg is a part
	loaded   time.Time
	reloads  [2]uint64 // good and bad
	lastBad  string    // the error of the last reload, "" if it was good
	tried    string    // the revision of the last reload, "" if it could not be read
	draining bool
	links    *door        // nil if there is none
	admin    *adminServer // nil if there is none

	problems sync.Map // of peer's name to why its last attempt at a link failed
}

// nodeOptions are what is not in the config.
type nodeOptions struct {
	sockets sockets
	// confine restricts the process, if not nil. All is bound then, and nothing
	// that peers or apps send has been read.
	confine func() error
	// resolve replaces the system's resolver for targets, if not nil.
	resolve func(ctx context.Context, network, host string) ([]netip.Addr, error)
}

// startNode starts a sidecar. Its error says what to do, and then nothing runs.
func startNode(cfg *config.Config, log zerolog.Logger, options nodeOptions) (_ *node, err error) {
	n := &node{
		logger: log, options: options, metrics: newMetrics(), events: &events{},
		started: time.Now(), cfg: cfg, base: cfg, tried: cfg.Revision, loaded: time.Now(),
	}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	var admin *door
	defer func() {
		if err != nil {
			n.abandon(admin)
		}
	}()
	if n.links, err = n.bind("listen", cfg.Listen, nil); err != nil {
		return nil, err
	}
	if admin, err = n.bind("admin", cfg.Admin, nil); err != nil {
		return nil, err
	}
	n.metrics.setPeers(nil, peerNames(cfg))
	if n.mux, err = mux.New(n.muxConfig(cfg)); err != nil {
		return nil, err
	}
	if n.proxy, err = proxy.New(n.proxyConfig(cfg, n.links, admin), n.mux); err != nil {
		return nil, err
	}
	if err := n.proxy.Bind(); err != nil {
		return nil, err
	}
	if options.confine != nil {
		if err := options.confine(); err != nil {
			return nil, err
		}
	}
	if err := n.proxy.Start(); err != nil {
		return nil, err
	}
	n.mux.Start()
	n.serve(n.links)
	n.metrics.watch(n)
	if admin != nil {
		n.admin = startAdmin(admin, n)
	}
	n.warnOf(cfg)
	n.logStart()
	return n, nil
}

// abandon undoes a start that failed.
func (n *node) abandon(admin *door) {
	n.cancel()
	n.links.close()
	admin.close()
	if n.proxy != nil {
		n.proxy.Close()
	}
	if n.mux != nil {
		n.mux.Close()
	}
}

// bind listens on the address of a key, if it is set.
func (n *node) bind(key string, e proxy.Endpoint, beside []net.Listener) (*door, error) {
	if e == (proxy.Endpoint{}) {
		return nil, nil
	}
	return n.options.sockets.listen(key, e, beside)
}

func (n *node) serve(links *door) {
	for _, l := range links.all() {
		n.serving.Go(func() {
			if err := n.mux.Serve(l); err != nil && !errors.Is(err, net.ErrClosed) {
				n.logger.Error().Stringer("listen", l.Addr()).Err(err).Msg("links from peers are no longer accepted")
			}
		})
	}
}

func (n *node) muxConfig(c *config.Config) mux.Config {
	return mux.Config{
		Session: session.Config{Key: c.Key, Transform: c.Transform, Padding: c.Padding},
		Peers:   c.Peers,
		Links:   c.Limits.Links, StreamsPerPeer: c.Limits.StreamsPerPeer, Handshakes: c.Limits.Handshakes, Memory: c.Limits.Memory,
		HandshakeTimeout: c.Timeouts.Handshake, DialTimeout: c.Timeouts.Dial, LinkTimeout: c.Timeouts.Link,
		Handler: func(in *mux.Inbound) { n.proxy.Handle(in) },
		Dialer:  n.dialLink,
		Log:     n.logger,
		Hooks: mux.Hooks{
			Handshake:  n.metrics.observeHandshake,
			Violation:  n.violation,
			LinkResult: n.linkResult,
			LinkUp:     func(peer string) { n.events.add(eventLink, peer, "a link came up") },
			LinkDown:   func(peer string) { n.events.add(eventLink, peer, "a link went down") },
			Refused:    n.metrics.observeLimit,
		},
	}
}

// dialLink connects to a peer, with the packet mark of the present config.
func (n *node) dialLink(ctx context.Context, network, address string) (net.Conn, error) {
	var d net.Dialer
	if mark := n.config().Mark; mark != 0 {
		d.Control = proxy.MarkControl(mark)
	}
	return d.DialContext(ctx, network, address)
}

func (n *node) proxyConfig(c *config.Config, own ...*door) proxy.Config {
	p := proxy.Config{
		Listeners: c.Listeners, Routes: c.Routes, Services: c.Services, Egress: c.Egress,
		Peers:    peerNames(c),
		Timeouts: proxy.Timeouts{Dial: c.Timeouts.Dial, Idle: c.Timeouts.Idle, HalfClose: c.Timeouts.HalfClose},
		Mark:     c.Mark,
		Resolve:  n.options.resolve, Activated: n.options.sockets,
		Log: n.logger,
		Hooks: proxy.Hooks{
			StreamOpened: n.metrics.streamOpened,
			StreamClosed: n.metrics.streamClosed,
			StreamResult: n.metrics.streamResult,
			Bytes:        n.metrics.moved,
		},
	}
	for _, d := range own {
		if port, ok := d.port(); ok {
			p.Own = append(p.Own, port)
		} else if path, ok := d.path(); ok {
			p.OwnSockets = append(p.OwnSockets, path)
		}
	}
	return p
}

func peerNames(c *config.Config) []string {
	names := make([]string, 0, len(c.Peers))
	for _, p := range c.Peers {
		names = append(names, p.Name)
	}
	return names
}

func (n *node) violation(peer string, rule session.Rule) {
	n.metrics.violations.WithLabelValues(string(rule)).Inc()
	n.events.add(eventViolation, peer, violationText(rule))
}

// linkResult counts an attempt at a link and keeps what went wrong, for people.
func (n *node) linkResult(peer string, result mux.LinkResult) {
	n.metrics.linkResult(peer, result)
	problem := linkProblems[result]
	if problem != "" && result != mux.LinkViolation {
		n.events.add(eventLink, peer, problem)
	}
	n.problems.Store(peer, problem)
}

// warnOf says what may surprise, and looks the peers' names up once, so that a misspelt one is
// noticed. It is no error: the name may be known later, and is looked up anew
// each time a link is dialed. Neither is a peer that cannot be linked to yet.
func (n *node) warnOf(c *config.Config) {
	for _, w := range c.Warnings {
		n.logger.Warn().Str("config", w.Error()).Msg("the config is allowed and may surprise")
	}
	for _, p := range c.Peers {
		if len(p.Addresses) == 0 && c.Listen == (proxy.Endpoint{}) {
			n.logger.Warn().Str("peer", p.Name).
				Msg("no link to this peer can come up: it has no address, and this node has no listen; add one of them")
		}
		for _, address := range p.Addresses {
			n.warning.Go(func() { n.warnOfName(p.Name, address) })
		}
	}
}

func (n *node) warnOfName(peer, address string) {
	ctx, cancel := context.WithTimeout(n.ctx, 5*time.Second)
	defer cancel()
	host, _, err := net.SplitHostPort(address)
	if err == nil {
		_, err = net.DefaultResolver.LookupHost(ctx, host)
	}
	if err != nil && n.ctx.Err() == nil {
		n.logger.Warn().Str("peer", peer).Str("address", address).Err(err).
			Msg("the peer's name has no address now; check the spelling, dialing goes on")
	}
}

func (n *node) logStart() {
	e := n.logger.Info().Str("version", versionName()).Str("public_key", n.cfg.Key.Public().String()).
		Str("config", n.cfg.File).Str("revision", n.cfg.Revision)
	if n.links != nil {
		e.Str("listen", n.links.text)
	}
	if n.admin != nil {
		e.Str("admin", n.admin.door.text)
	}
	e.Msg("started")
	for _, l := range n.proxy.Status() {
		n.logger.Info().Str("listener", string(l.Kind)).Strs("address", l.Bound).Msg("listening")
	}
}

// summary is a line about the node for its service manager.
func (n *node) summary() string {
	cfg := n.config()
	return fmt.Sprintf("%s, %s, config revision %s", count(len(cfg.Peers), "peer"), count(len(cfg.Listeners), "listener"), cfg.Revision)
}

// update applies a config as a whole, or nothing of it but what it takes away:
// then it returns that, in words, with the error.
func (n *node) update(next *config.Config) (withdrawn []string, err error) {
	if err := n.apply(next, nil); err != nil {
		return n.refuse(next, err)
	}
	n.mu.Lock()
	n.base, n.loaded = next, time.Now()
	n.mu.Unlock()
	n.warnOf(next)
	return nil, nil
}

// refuse leaves the last config that took effect in force, for as much as next
// allows, too.
func (n *node) refuse(next *config.Config, why error) (withdrawn []string, err error) {
	n.mu.Lock()
	base, whole := n.base, n.within == nil
	n.mu.Unlock()
	left, withdrawn := withdraw(base, next)
	var within *proxy.Policy
	switch {
	case len(withdrawn) > 0:
		within = &proxy.Policy{Routes: next.Routes, Services: next.Services, Egress: next.Egress}
	case whole:
		return nil, why
	default: // an earlier refused one took away what this one does not
		left = base
	}
	if err := n.apply(left, within); err != nil {
		return nil, errors.Join(why, fmt.Errorf("what this takes away is still there: %w", err))
	}
	return withdrawn, why
}

// apply puts a config in force, or changes nothing.
func (n *node) apply(next *config.Config, within *proxy.Policy) error {
	links, admin, err := n.rebind(next)
	if err != nil {
		return err
	}
	n.mu.Lock()
	before, beforeWithin, oldLinks, oldAdmin := n.cfg, n.within, n.links, n.admin
	n.mu.Unlock()
	n.metrics.setPeers(nil, peerNames(next))
	undo := func() {
		closeNew(links, oldLinks)
		closeNew(admin, oldAdmin.at())
		n.metrics.setPeers(peerNames(next), peerNames(before))
	}
	pc := n.proxyConfig(next, links, admin)
	pc.Within = within
	pc.Replaced = slices.Concat(replaced(oldLinks, links), replaced(oldAdmin.at(), admin))
	if err := n.proxy.Update(pc); err != nil {
		undo()
		return err
	}
	if err := n.mux.Update(n.muxConfig(next)); err != nil {
		undo()
		pc := n.proxyConfig(before, oldLinks, oldAdmin.at())
		pc.Within = beforeWithin
		return errors.Join(err, n.proxy.Update(pc))
	}
	n.metrics.setPeers(peerNames(before), peerNames(next))
	n.adopt(next, within, links, admin)
	return nil
}

// rebind binds the addresses that are new in next. Those that stay keep their
// sockets; those that go are no obstacle, whatever they were for.
func (n *node) rebind(next *config.Config) (links, admin *door, err error) {
	n.mu.Lock()
	links, admin = n.links, n.admin.at()
	before := n.cfg
	n.mu.Unlock()
	oldLinks, oldAdmin := links, admin
	beside, err := n.proxy.Leaving(n.proxyConfig(next))
	if err != nil {
		return nil, nil, err
	}
	if next.Listen != before.Listen {
		beside = append(beside, oldLinks.all()...)
	}
	if next.Admin != before.Admin {
		beside = append(beside, oldAdmin.all()...)
	}
	if next.Listen != before.Listen {
		if links, err = n.bind("listen", next.Listen, beside); err != nil {
			return nil, nil, err
		}
	}
	if next.Admin != before.Admin {
		if admin, err = n.bind("admin", next.Admin, beside); err != nil {
			closeNew(links, oldLinks)
			return nil, nil, err
		}
	}
	return links, admin, nil
}

// replaced lists the sockets of a door that gives way to another.
func replaced(old, next *door) []net.Listener {
	if old == next {
		return nil
	}
	return old.all()
}

func closeNew(d, old *door) {
	if d != old {
		d.close()
	}
}

// at is the admin endpoint's door, nil if there is no endpoint.
func (a *adminServer) at() *door {
	if a == nil {
		return nil
	}
	return a.door
}

// adopt makes next the current config and serves on its addresses alone.
func (n *node) adopt(next *config.Config, within *proxy.Policy, links, admin *door) {
	n.mu.Lock()
	oldLinks, oldAdmin := n.links, n.admin
	n.cfg, n.within, n.links = next, within, links
	if admin != oldAdmin.at() {
		n.admin = nil
		if admin != nil {
			n.admin = startAdmin(admin, n)
		}
	}
	n.mu.Unlock()
	if links != oldLinks {
		n.serve(links)
		oldLinks.close()
	}
	if oldAdmin != nil && admin != oldAdmin.door {
		oldAdmin.close()
	}
}

// reloaded records and tells how a reload went: to which config, if that could
// be read, and what it took away although it was refused.
func (n *node) reloaded(why string, next *config.Config, withdrawn []string, err error) {
	n.mu.Lock()
	cfg := n.cfg
	n.tried, n.lastBad = revisionOf(next), ""
	if err == nil {
		n.reloads[0]++
	} else {
		n.reloads[1]++
		n.lastBad = err.Error()
	}
	n.mu.Unlock()
	if err != nil {
		n.metrics.configReloads.WithLabelValues("failed").Inc()
		text := "a reload was refused, the old config stays: " + err.Error()
		line := n.logger.Error().Str("cause", why).Strs("errors", strings.Split(err.Error(), "\n")).Str("revision", cfg.Revision)
		if len(withdrawn) > 0 {
			line.Strs("withdrawn", withdrawn)
			text += "; withdrawn all the same: " + strings.Join(withdrawn, ", ")
		}
		n.events.add(eventConfig, "", text)
		line.Msg("reload refused; the old config stays in force")
		return
	}
	n.metrics.configReloads.WithLabelValues("ok").Inc()
	n.events.add(eventConfig, "", "the config was reloaded")
	n.logger.Info().Str("cause", why).Str("revision", cfg.Revision).Msg("config reloaded")
}

func revisionOf(c *config.Config) string {
	if c == nil {
		return ""
	}
	return c.Revision
}

// knows says whether a reload that came to cfg or err would change nothing and
// say nothing new.
func (n *node) knows(cfg *config.Config, err error) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	text := ""
	if err != nil {
		text = err.Error()
	}
	return text == n.lastBad && revisionOf(cfg) == n.tried
}

func (n *node) config() *config.Config {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.cfg
}

// drain takes nothing new and waits for what runs, until ctx ends. It returns
// how many connections had to be cut.
func (n *node) drain(ctx context.Context) int {
	n.mu.Lock()
	n.draining = true
	n.mu.Unlock()
	// Peers go elsewhere at once. The links stay until the proxy is done: a
	// connection that it took just before may still have to open its stream.
	n.mux.Leave()
	cut := n.proxy.Drain(ctx)
	var left *mux.DrainError
	if errors.As(n.mux.Drain(ctx), &left) {
		// These are not those of the connections that the proxy has cut, but of
		// some that had finished here, and whose peer has not taken all, and of
		// those whose link ended before they did.
		cut += left.Cut
	}
	return cut
}

// close ends everything at once and waits until no goroutine is left.
func (n *node) close() {
	n.cancel()
	n.proxy.Close()
	n.mux.Close()
	n.mu.Lock()
	links, admin := n.links, n.admin
	n.mu.Unlock()
	links.close()
	if admin != nil {
		admin.close()
	}
	n.serving.Wait()
	n.warning.Wait()
}

// linkAddress is where this node takes links.
func (n *node) linkAddress() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.links.text
}

// adminAddress is where the admin endpoint is.
func (n *node) adminAddress() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.admin.door.text
}

// listenerAddress is where the listener at index i of the config is bound.
func (n *node) listenerAddress(i int) string { return n.proxy.Status()[i].Bound[0] }

// pending implements adminSource.
func (n *node) pending() []string {
	n.mu.Lock()
	draining := n.draining
	n.mu.Unlock()
	if draining {
		return []string{"draining"}
	}
	var pending []string
	for _, peer := range n.mux.Ready() {
		pending = append(pending, "a link to "+peer)
	}
	return pending
}

// report implements adminSource. It holds no lock while it asks mux and proxy.
func (n *node) report() report {
	pending := n.pending()
	n.mu.Lock()
	cfg := n.cfg
	r := report{
		Version: versionName(), PublicKey: cfg.Key.Public().String(), Now: time.Now(), Started: n.started,
		Ready: len(pending) == 0, Pending: append([]string{}, pending...), Draining: n.draining,
		Config: configReport{
			File: cfg.File, Revision: cfg.Revision, Loaded: n.loaded,
			Reloads: n.reloads[0], Failed: n.reloads[1], Error: n.lastBad,
		},
		Listeners: []listenerReport{}, Services: []serviceReport{}, Peers: []peerReport{},
		Violations: make(map[string]uint64),
	}
	if n.links != nil {
		r.Listen = n.links.text
	}
	n.mu.Unlock()
	r.Events = n.events.recent(n.proxy.Refusals())
	for i, l := range n.proxy.Status() {
		r.Listeners = append(r.Listeners, listenerStatus(l, cfg.Listeners, i))
	}
	for _, s := range cfg.Services {
		r.Services = append(r.Services, serviceReport{s.Name, s.Allow})
	}
	for _, p := range n.mux.Status() {
		out := n.peerStatus(p)
		r.Peers = append(r.Peers, out)
		r.Streams.Open += out.Streams
	}
	r.Streams.Ended = n.metrics.results()
	for rule, count := range n.mux.Violations() {
		r.Violations[string(rule)] = count
	}
	return r
}

// anyHost implements adminSource.
func (n *node) anyHost() bool { return n.config().AdminUnsafe }

// metricsHandler implements adminSource.
func (n *node) metricsHandler() http.Handler { return n.metrics.handler() }

func listenerStatus(l proxy.ListenerStatus, configured []proxy.Listener, i int) listenerReport {
	out := listenerReport{Kind: string(l.Kind), Address: l.Address, Open: l.Open, Total: l.Total, Problem: l.LastError}
	if len(l.Bound) > 0 {
		out.Address = l.Bound[0]
	}
	if i < len(configured) && configured[i].To.Peer != "" {
		out.To = configured[i].To.Peer + "/" + configured[i].To.Service
	}
	return out
}

func (n *node) peerStatus(p mux.PeerStatus) peerReport {
	out := peerReport{
		Name: p.Name, Up: len(p.Links) > 0, Dialed: len(p.Addresses) > 0, Streams: p.Streams, Links: []linkReport{},
	}
	out.BytesIn, out.BytesOut = n.metrics.carried(p.Name)
	if problem, ok := n.problems.Load(p.Name); ok && !out.Up {
		out.Problem = problem.(string)
	}
	for _, l := range p.Links {
		out.Links = append(out.Links, linkReport{
			State: string(l.State), Address: l.Address, Dialed: l.Dialed, AgeSeconds: time.Since(l.Since).Seconds(), RTTSeconds: l.RTT.Seconds(),
			Transform: l.Transform, Cipher: l.Cipher, RekeysIn: l.RekeysIn, RekeysOut: l.RekeysOut,
			BytesIn: l.BytesIn, BytesOut: l.BytesOut, Streams: l.Streams,
		})
	}
	slices.SortFunc(out.Links, func(a, b linkReport) int { return cmp.Compare(b.AgeSeconds, a.AgeSeconds) })
	return out
}
