package proxy

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

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
	if st.within == nil {
		return nil
	}
	at, f := st.within.route(ctx, kind, dest)
	if f == nil {
		f = st.within.mayCross(ctx, kind, dest, addrs, at)
	}
	return f
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
