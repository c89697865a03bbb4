package proxy

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/sealane/sealane/mux"
)

// route returns the index of the first route that matches dest.
//
// Where dest is an address that an app dialed through a transparent listener,
// a route's plain host name matches if the address is among those of that
// name at present. What travels to the peer is then still the address.
//
// What leads to direct is looked at again: see crossing.
func (st *state) route(ctx context.Context, kind Kind, dest Destination) (int, *failure) {
	at := st.firstRoute(ctx, kind, dest)
	if at < 0 && kind == KindTransparent && len(st.names.hosts) > 0 {
		// The app may have got a newer answer than this node.
		st.names.refreshAll(ctx, nameMinAge)
		at = st.firstRoute(ctx, kind, dest)
	}
	if at >= 0 && (dest.Name != "" || !st.cfg.Routes[at].To.Direct) {
		return at, nil
	}
	if at >= 0 {
		var f *failure
		if at, f = st.cross(ctx, kind, dest); at >= 0 || f != nil {
			return at, f
		}
	}
	return -1, &failure{result: ResultNoRoute, reason: fmt.Sprintf("no route matches %v", dest)}
}

// firstRoute goes by what is known of the routes' names, or -1.
func (st *state) firstRoute(ctx context.Context, kind Kind, dest Destination) int {
	return slices.IndexFunc(st.cfg.Routes, func(r Route) bool {
		if r.Match.Matches(dest) {
			return true
		}
		host, ok := r.Match.HostName()
		return ok && kind == KindTransparent && r.Match.matchesPort(dest.Port) && st.names.has(ctx, host, dest.Addr)
	})
}

// A crossing is the question whether a connection to an address may leave in
// plaintext. Before it does, no route to a peer that stands ahead of the
// direct one may match it, and that must be known: a lookup that fails, or an
// answer that has changed, must never turn a sealed route into a direct one.
//
// So names are looked up afresh, whatever the listener. That of a direct route
// matches only by such an answer, too.
type crossing struct {
	st     *state
	kind   Kind
	dest   Destination // an address
	routes []Route     // from the first up to where the answer is needed
	name   string      // that the app asked for and dest is an address of; "" if it asked for dest
	names  *inquiry

	doubt     *failure // a name ahead may be dest's
	globDoubt *failure // a glob ahead may match a name of dest
}

// cross returns the index of the route for an address whose first match is a
// direct route, -1 if there is none, or why it must not be dialed.
func (st *state) cross(ctx context.Context, kind Kind, dest Destination) (int, *failure) {
	c := &crossing{st: st, kind: kind, dest: dest, routes: st.cfg.Routes, names: st.names.inquire()}
	return c.first(ctx)
}

// mayCross says why an address of the name in dest must not be dialed by the
// direct route at index at, which matches the name: a route ahead of it is for
// that address, or may be. Then none of the name's addresses is.
func (st *state) mayCross(ctx context.Context, kind Kind, dest Destination, addrs []netip.Addr, at int) *failure {
	if f := st.mayComplete(dest, addrs, at); f != nil {
		return f
	}
	names := st.names.inquire()
	for _, a := range addrs {
		c := &crossing{
			st: st, kind: kind, dest: Destination{Addr: a, Port: dest.Port}, routes: st.cfg.Routes[:at], name: dest.Name, names: names,
		}
		i, f := c.first(ctx)
		if f != nil {
			return f
		}
		if i >= 0 && !c.routes[i].To.Direct {
			return denied("%s has the address %v, which route %s ahead of the direct one leads to peer %s; write a route for %s before both",
				dest.Name, a, c.routes[i].Match, c.routes[i].To.Peer, dest.Name)
		}
	}
	return nil
}

// mayComplete says why a name without a dot must not be dialed by the direct
// route at index at: the resolver completes it, with a search domain perhaps,
// and a glob ahead of that route may be for what it makes of it.
func (st *state) mayComplete(dest Destination, addrs []netip.Addr, at int) *failure {
	outside := slices.ContainsFunc(addrs, func(a netip.Addr) bool { return !a.IsLoopback() })
	if strings.Contains(dest.Name, ".") || st.cfg.Routes[at].Match.kind != matchAny || !outside {
		return nil
	}
	for _, r := range st.cfg.Routes[:at] {
		if r.Match.kind == matchGlob && !r.To.Direct && r.Match.matchesPort(dest.Port) {
			return denied("route %s comes before the direct one, and nobody can know whether %s is completed to such a name; ask for the full name",
				r.Match, dest.Name)
		}
	}
	return nil
}

func denied(format string, args ...any) *failure {
	return &failure{result: ResultDenied, reason: fmt.Sprintf(format, args...)}
}

// first returns the index of the first route for the address, or -1; or, where
// that is a direct one, why it is unknown whether an earlier one matches.
func (c *crossing) first(ctx context.Context) (int, *failure) {
	addrs := c.addrs()
	for _, r := range c.routes {
		if host, ok := c.asks(r); ok {
			c.names.begin(host, addrs) // all at once
		}
	}
	for i, r := range c.routes {
		matches := r.Match.Matches(c.dest)
		if host, ok := c.asks(r); ok {
			owns, err := c.names.owns(ctx, host, addrs)
			matches = owns
			c.doubtName(r, host, err)
		} else if !matches {
			matches = !r.To.Direct && r.Match.matchesAddr(addrs[len(addrs)-1], c.dest.Port)
			c.doubtGlob(r)
		}
		switch {
		case !matches:
		case !r.To.Direct:
			return i, nil
		case c.doubt != nil:
			return -1, c.doubt
		case r.Match.kind == matchAny && c.globDoubt != nil:
			return -1, c.globDoubt
		default:
			return i, nil
		}
	}
	return -1, c.doubt
}

// addrs holds the address and, behind it, one of IPv4 that it embeds: NAT64
// and its like lead to that one.
func (c *crossing) addrs() []netip.Addr {
	addrs := []netip.Addr{c.dest.Addr}
	if v4, _, ok := embedded(c.dest.Addr); ok {
		addrs = append(addrs, v4)
	}
	return addrs
}

// asks returns the name whose addresses decide whether the route matches. A
// direct route's name matches addresses in a transparent listener alone.
func (c *crossing) asks(r Route) (host string, ok bool) {
	host, ok = r.Match.HostName()
	return host, ok && r.Match.matchesPort(c.dest.Port) && (!r.To.Direct || c.kind == KindTransparent && c.name == "")
}

func (c *crossing) doubtName(r Route, host string, err error) {
	if err == nil || r.To.Direct || c.doubt != nil {
		return
	}
	// The app gave another name, which the route does not match: that leaves
	// only that both are names of one server. There is none where the
	// resolver has never had an address for this one, as is usual for names that
	// only the peer can look up.
	if c.name != "" && c.st.names.neverResolved(host, err) {
		return
	}
	c.doubt = denied("route %s comes before the direct one, and whether %v is an address of %s is unknown: %v",
		r.Match, c.dest.Addr, host, err)
}

// doubtGlob notes a glob, which no lookup can answer: it may match a name of
// the address. A direct route with that address, or with a name that has it,
// says that it is meant; one with "*" says nothing. Loopback stays on this host.
func (c *crossing) doubtGlob(r Route) {
	if r.Match.kind != matchGlob || r.To.Direct || c.name != "" || c.globDoubt != nil ||
		!r.Match.matchesPort(c.dest.Port) || c.dest.Addr.IsLoopback() {
		return
	}
	c.globDoubt = denied("route %s comes before the direct one, and nobody can know whether %v has such a name; "+
		"write names or addresses instead, or a CIDR in the direct route", r.Match, c.dest.Addr)
}

// reach opens the way to where an app's connection goes: dest by the routes,
// or to for a forward listener.
func (p *Proxy) reach(rec *record, l *listener, to Target, dest Destination) (far, *failure) {
	st := p.state.Load()
	timeout := st.dialTimeout()
	// The peer has the same time to dial its target. A little more here lets
	// its answer, which says what failed, arrive first.
	ctx, cancel := context.WithTimeout(p.ctx, timeout+max(timeout/5, 100*time.Millisecond))
	defer cancel()
	if to == (Target{}) {
		at, f := st.route(ctx, Kind(rec.via), dest)
		if f != nil {
			return nil, f
		}
		if to = st.cfg.Routes[at].To; to.Direct {
			rec.peer = PeerDirect
			return st.direct(ctx, rec, l, dest, at)
		}
	}
	rec.peer = to.Peer
	return p.openStream(ctx, rec, to, dest)
}

func (p *Proxy) openStream(ctx context.Context, rec *record, to Target, dest Destination) (far, *failure) {
	o := mux.Open{To: to.Service, From: rec.from, Via: rec.via}
	if o.To == "" {
		o.To = dest.String()
	}
	if rec.target == "" {
		rec.target = o.To
	}
	s, err := p.opener.Open(ctx, to.Peer, o)
	if err != nil {
		return nil, openFailure(ctx, err)
	}
	return muxSide{s}, nil
}

// openFailure says why a peer gave no stream.
func openFailure(ctx context.Context, err error) *failure {
	var oe *mux.OpenError
	switch {
	case errors.As(err, &oe):
		f := &failure{result: ResultDenied, reason: "the peer says: " + oe.Error()}
		switch oe.Status {
		case mux.StatusUnknownService:
			f.result = ResultUnknownService
		case mux.StatusRefused:
			f.result = ResultRefused
		case mux.StatusUnreachable:
			f.result = ResultUnreachable
		case mux.StatusTimedOut:
			f.result = ResultTimedOut
		case mux.StatusNameNotFound:
			f.result = ResultNameNotFound
		case mux.StatusOverloaded:
			f.result = ResultOverloaded
		}
		return f
	case errors.Is(err, mux.ErrNoLink), errors.Is(err, mux.ErrUnknownPeer):
		return &failure{result: ResultNoLink, reason: err.Error()}
	case errors.Is(ctx.Err(), context.Canceled), errors.Is(err, mux.ErrClosed):
		return &failure{result: ResultCut, reason: "shutting down"}
	case ctx.Err() != nil:
		return &failure{result: ResultTimedOut, reason: "the peer did not answer in time"}
	}
	return &failure{result: ResultNoLink, reason: err.Error()}
}

// direct dials dest from here, in plaintext, by the route at index at. Ports
// that this process listens on are refused. Through a listener that others than this host's users can
// reach, so are the addresses that egress refuses, unless the route's match
// names them literally.
func (st *state) direct(ctx context.Context, rec *record, l *listener, dest Destination, at int) (far, *failure) {
	addrs, f := st.dialer.lookup(ctx, dest)
	if f != nil {
		return nil, f
	}
	if dest.Name != "" {
		if f := st.mayCross(ctx, Kind(rec.via), dest, addrs, at); f != nil {
			return nil, f
		}
	}
	why := ""
	addrs = slices.DeleteFunc(addrs, func(a netip.Addr) bool {
		reason, refused := st.policy.own.refuses(a, dest.Port)
		if !refused && !l.local {
			reason, refused = st.refusesDirect(a, dest.Port)
		}
		if refused {
			why = reason
		}
		return refused
	})
	if len(addrs) == 0 {
		return nil, &failure{result: ResultDenied, reason: why}
	}
	c, f := st.dialer.dialAny(ctx, addrs, dest.Port)
	if f != nil {
		return nil, f
	}
	rec.dialed = c.RemoteAddr().String()
	return directSide{newConn(c, nil)}, nil
}

func (st *state) refusesDirect(a netip.Addr, port uint16) (string, bool) {
	r, ok := special(a)
	if !ok || slices.ContainsFunc(st.cfg.Routes, func(route Route) bool {
		return route.To.Direct && route.Match.namesLiterally(a, port, r)
	}) {
		return "", false
	}
	return fmt.Sprintf("%v is %s and no direct route names it literally", netip.AddrPortFrom(a, port), r.what), true
}

// A Caution is something about a route that is allowed and may surprise.
type Caution struct {
	Route int // its index
	Text  string
}

// Cautions lists the routes by name or glob ahead of a direct one on the same
// port: what stands between sealed and plaintext there is a lookup, or nothing.
func Cautions(routes []Route) (out []Caution) {
	for i, r := range routes {
		for _, d := range routes[i+1:] {
			if text := r.caution(d); text != "" {
				out = append(out, Caution{i, text})
				break
			}
		}
	}
	return out
}

func (r Route) caution(direct Route) string {
	m, d := r.Match, direct.Match
	if r.To.Direct || !direct.To.Direct || !m.sharesPort(d) {
		return ""
	}
	switch {
	case m.kind == matchName:
		return fmt.Sprintf("%s goes by name, and %s after it is direct: what would go direct on such a port waits for a new lookup of %s, "+
			"and is refused where that fails; a route by address needs none", m, d, m.host)
	case m.kind == matchGlob && d.kind == matchAny:
		return fmt.Sprintf("%s matches names only, and %s after it is direct: what an app asks for by address, as all do through a transparent listener, "+
			"is refused on such a port, since nobody can know its name; write names or addresses here, or a CIDR there", m, d)
	case m.kind == matchGlob && d.kind != matchGlob:
		return fmt.Sprintf("%s matches names only, and %s after it is direct: what an app asks for by address, as all do through a transparent listener, "+
			"goes out in plaintext there whatever its name; write names or addresses here", m, d)
	}
	return ""
}
