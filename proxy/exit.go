package proxy

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/sealane/sealane/mux"
)

// inbound is a stream that a peer opened: a *mux.Inbound.
type inbound interface {
	Peer() string
	Open() mux.Open
	Context() context.Context
	Accept() (stream, error)
	Refuse(mux.Status, string) error
}

// A policy says what peers may reach through this node. It is read-only.
type policy struct {
	services map[string]Service
	egress   map[string][]Match // by peer
	own      ownPorts
	ownFile  func(path string) bool // whether this process listens on the unix socket
	within   *policy                // must allow everything, too; nil if there is none
}

func newPolicy(services []Service, egress []EgressRule) policy {
	p := policy{services: make(map[string]Service), egress: make(map[string][]Match)}
	for _, s := range services {
		p.services[s.Name] = s
	}
	for _, rule := range egress {
		for _, peer := range rule.Allow {
			p.egress[peer] = append(p.egress[peer], rule.Match...)
		}
	}
	return p
}

// ownPorts reports whether a port is one that this process listens on.
type ownPorts func(port uint16) bool

// refuses says why a and port must not be dialed: this process listens there.
func (own ownPorts) refuses(a netip.Addr, port uint16) (string, bool) {
	if own(port) && isLocal(a) {
		return fmt.Sprintf("%v is this process's own port", netip.AddrPortFrom(a, port)), true
	}
	return "", false
}

// service returns the service if peer may use it.
func (p policy) service(peer, name string) (Service, *failure) {
	s, f := p.allowedService(peer, name)
	if f != nil || p.within == nil {
		return s, f
	}
	still, f := p.within.allowedService(peer, name)
	if f == nil && still.Address != s.Address {
		f = &failure{ResultUnknownService, fmt.Sprintf("service %q is to be at %v", name, still.Address), "unknown service"}
	}
	if f != nil {
		f.reason += withdrawn
	}
	return s, f
}

func (p policy) allowedService(peer, name string) (Service, *failure) {
	s, ok := p.services[name]
	switch {
	case !ok:
		return Service{}, &failure{ResultUnknownService, fmt.Sprintf("no service %q", name), "unknown service"}
	case !slices.Contains(s.Allow, peer):
		return Service{}, &failure{ResultDenied, fmt.Sprintf("service %q does not allow peer %q", name, peer), "not allowed"}
	}
	return s, nil
}

// withdrawn explains a refusal by policy.within.
const withdrawn = ", says the config whose reload was refused"

// mayReach reports whether any address of dest could be allowed, before it is
// looked up: a peer that is allowed nothing causes no queries.
func (p policy) mayReach(peer string, dest Destination) *failure {
	for _, m := range p.egress[peer] {
		if dest.Name == "" || m.matchesName(dest.Name, dest.Port) || m.kind == matchPrefix && m.matchesPort(dest.Port) {
			return p.within.mayReachToo(peer, dest)
		}
	}
	return &failure{ResultDenied, fmt.Sprintf("no egress rule lets peer %q reach %v", peer, dest), "not allowed"}
}

// mayReachToo is mayReach for a policy that may be missing.
func (p *policy) mayReachToo(peer string, dest Destination) *failure {
	if p == nil {
		return nil
	}
	f := p.mayReach(peer, dest)
	if f != nil {
		f.reason += withdrawn
	}
	return f
}

// allowed returns those addresses of dest that peer may reach, or why none is.
func (p policy) allowed(peer string, dest Destination, addrs []netip.Addr) ([]netip.Addr, *failure) {
	var ok []netip.Addr
	var why []string
	for _, a := range addrs {
		if reason := p.refuses(peer, dest, a); reason != "" {
			why = append(why, reason)
			continue
		}
		ok = append(ok, a)
	}
	if len(ok) == 0 {
		return nil, &failure{ResultDenied, strings.Join(why, "; "), "not allowed"}
	}
	return ok, nil
}

// refuses says why peer may not reach address a on behalf of dest, or "".
func (p policy) refuses(peer string, dest Destination, a netip.Addr) string {
	r, isSpecial := special(a)
	matched, literal := false, false
	for _, m := range p.egress[peer] {
		matched = matched || dest.Name != "" && m.matchesName(dest.Name, dest.Port) || m.matchesAddr(a, dest.Port)
		literal = literal || isSpecial && m.namesLiterally(a, dest.Port, r)
	}
	at := netip.AddrPortFrom(a, dest.Port)
	switch {
	case !matched:
		return fmt.Sprintf("no egress rule lets peer %q reach %v", peer, at)
	case isSpecial && !literal:
		return fmt.Sprintf("%v is %s and no egress rule for peer %q names it literally", at, r.what, peer)
	}
	if p.within != nil {
		if reason := p.within.refuses(peer, dest, a); reason != "" {
			return reason + withdrawn
		}
	}
	reason, _ := p.own.refuses(a, dest.Port)
	return reason
}

// A grant is what let an inbound stream in. After a reload it is asked again.
type grant struct {
	peer    string
	service string      // "" for egress
	dest    Destination // for egress
	addr    netip.Addr  // for egress: the address that was dialed
}

// holds reports whether the stream would still be let in.
func (g grant) holds(p policy) bool {
	if g.service != "" {
		_, f := p.allowedService(g.peer, g.service)
		if f == nil && p.within != nil {
			_, f = p.within.allowedService(g.peer, g.service)
		}
		return f == nil
	}
	return p.refuses(g.peer, g.dest, g.addr) == ""
}

// revoked says why a state would not let the stream in, or "".
func (g grant) revoked(st *state) string {
	switch {
	case !st.knowsPeer(g.peer):
		return "peer removed from the config"
	case !g.holds(st.policy):
		return "no longer allowed by the config"
	}
	return ""
}

// exit dials what an inbound stream asks for, if the policy lets it.
func (st *state) exit(ctx context.Context, peer string, o mux.Open) (net.Conn, grant, *failure) {
	if !strings.Contains(o.To, ":") {
		return st.exitService(ctx, peer, o)
	}
	dest, err := ParseDestination(o.To)
	if err != nil {
		return nil, grant{peer: peer}, &failure{ResultDenied, err.Error(), "bad destination"}
	}
	g := grant{peer: peer, dest: dest}
	if f := st.policy.mayReach(peer, dest); f != nil {
		return nil, g, f
	}
	addrs, f := st.dialer.lookup(ctx, dest)
	if f != nil {
		return nil, g, f
	}
	if addrs, f = st.policy.allowed(peer, dest, addrs); f != nil {
		return nil, g, f
	}
	c, f := st.dialer.dialAny(ctx, addrs, dest.Port)
	if f != nil {
		return nil, g, f
	}
	g.addr = addrs[0]
	if ap, err := netip.ParseAddrPort(c.RemoteAddr().String()); err == nil {
		g.addr = ap.Addr().Unmap()
	}
	return c, g, nil
}

func (st *state) exitService(ctx context.Context, peer string, o mux.Open) (net.Conn, grant, *failure) {
	g := grant{peer: peer, service: o.To}
	s, f := st.policy.service(peer, o.To)
	if f != nil {
		return nil, g, f
	}
	c, f := st.dialService(ctx, s.Address)
	if f != nil {
		return nil, g, f
	}
	if s.ProxyProtocol {
		if err := writeProxyHeader(ctx, c, o.From, peer); err != nil {
			c.Close()
			return nil, g, dialFailure(err)
		}
	}
	return c, g, nil
}

// dialService connects to a service's address, which is of the config, unless
// this process itself listens there: a stream would come back for ever, or
// reach the admin endpoint.
func (st *state) dialService(ctx context.Context, e Endpoint) (net.Conn, *failure) {
	if e.Network == "unix" {
		if st.policy.ownFile(e.Address) {
			return nil, &failure{ResultDenied, fmt.Sprintf("%v is this process's own socket", e), "not allowed"}
		}
		c, err := st.dialer.dial(ctx, "unix", e.Address)
		if err != nil {
			return nil, dialFailure(err)
		}
		return c, nil
	}
	dest, err := ParseDestination(e.Address)
	if err != nil {
		return nil, &failure{ResultUnreachable, err.Error(), "unreachable"}
	}
	addrs, f := []netip.Addr{dest.Addr}, (*failure)(nil)
	if dest.Name != "" {
		if addrs, f = st.dialer.lookupHost(ctx, dest.Name); f != nil {
			return nil, f
		}
	}
	why := ""
	addrs = slices.DeleteFunc(addrs, func(a netip.Addr) bool {
		reason, refused := st.policy.own.refuses(a, dest.Port)
		if refused {
			why = reason
		}
		return refused
	})
	if len(addrs) == 0 {
		return nil, &failure{ResultDenied, why, "not allowed"}
	}
	return st.dialer.dialAny(ctx, addrs, dest.Port)
}

// serveInbound carries one stream from a peer to its target.
func (p *Proxy) serveInbound(in inbound) {
	if !p.enter() {
		in.Refuse(mux.StatusOverloaded, "shutting down")
		return
	}
	o := in.Open()
	via := ViaEgress
	if !strings.Contains(o.To, ":") {
		via = ViaService
	}
	p.serve(via, p.leave, func(rec *record) { p.exitTo(rec, in, o) })
}

func (p *Proxy) exitTo(rec *record, in inbound, o mux.Open) {
	rec.peer, rec.target, rec.from, rec.openedVia = in.Peer(), o.To, o.From, o.Via
	c, g, f := p.dialExit(in, o)
	if f != nil {
		in.Refuse(f.status(), f.text)
		rec.failed(f)
		return
	}
	rec.dialed = c.RemoteAddr().String()
	near := newConn(c, nil)
	s, err := in.Accept()
	if err != nil {
		near.reset()
		rec.failed(&failure{result: ResultReset, reason: "the peer gave up: " + err.Error()})
		return
	}
	p.carry(rec, near, muxSide{s}, g.revoked)
}

// dialExit dials until the dial timeout, or the peer gives up, or the Proxy is
// closed.
func (p *Proxy) dialExit(in inbound, o mux.Open) (net.Conn, grant, *failure) {
	st := p.state.Load()
	ctx, cancel := context.WithTimeout(in.Context(), st.dialTimeout())
	defer cancel()
	defer context.AfterFunc(p.ctx, cancel)()
	c, g, f := st.exit(ctx, in.Peer(), o)
	if f != nil && in.Context().Err() != nil {
		f = &failure{result: ResultReset, reason: "the peer gave up before its target was connected", text: f.text}
	}
	return c, g, f
}
