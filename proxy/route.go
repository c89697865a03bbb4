package proxy

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
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

// agrees says why Config.Within does not lead dest where this state does.
func (st *state) agrees(ctx context.Context, kind Kind, dest Destination, to Target) *failure {
	if st.within == nil {
		return nil
	}
	at, f := st.within.route(ctx, kind, dest)
	if f == nil && st.within.cfg.Routes[at].To != to {
		f = &failure{result: ResultNoRoute, reason: fmt.Sprintf("%v is to go another way", dest)}
	}
	if f != nil {
		f.reason += withdrawn
	}
	return f
}

// reach opens the way to where an app's connection goes: dest by the routes,
// or to for a forward listener.
func (p *Proxy) reach(ctx context.Context, rec *record, l *listener, to Target, dest Destination) (far, *failure) {
	st := p.state.Load()
	timeout := st.dialTimeout()
	// The peer has the same time to dial its target. A little more here lets
	// its answer, which says what failed, arrive first.
	ctx, cancel := context.WithTimeout(ctx, timeout+max(timeout/5, 100*time.Millisecond))
	defer cancel()
	if to == (Target{}) {
		at, f := st.route(ctx, Kind(rec.via), dest)
		if f != nil {
			return nil, f
		}
		to = st.cfg.Routes[at].To
		if f := st.agrees(ctx, Kind(rec.via), dest, to); f != nil {
			return nil, f
		}
		if to.Direct {
			rec.peer = PeerDirect
			far, f := st.direct(ctx, rec, l, dest, at)
			if f != nil || p.state.Load() == st {
				return far, f
			}
			// A reload came meanwhile. What it seals does not leave by the old
			// routes; no byte of the app has yet.
			far.abort(mux.ResetUnspecified)
			rec.peer, rec.dialed = "", ""
			return p.reach(ctx, rec, l, Target{}, dest)
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
		if st.within != nil {
			return st.within.refusesDirect(a, port)
		}
		return "", false
	}
	return fmt.Sprintf("%v is %s and no direct route names it literally", netip.AddrPortFrom(a, port), r.what), true
}
