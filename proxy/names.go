package proxy

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// How old the addresses of a route's host name may get: the system's resolver
// tells no TTL. They are looked up more often than every 30 seconds so that a
// slow answer does not exceed that, and at once, though not more than once per
// nameMinAge, for a connection that no route matches.
const (
	nameRefresh = 20 * time.Second
	nameMinAge  = time.Second
	nameTimeout = 5 * time.Second
)

// names knows the present addresses of the host names in routes, for
// transparent listeners, which see addresses only.
type names struct {
	resolve func(ctx context.Context, host string) ([]netip.Addr, error)
	hosts   map[string]*hostAddrs
}

// hostAddrs is one host's addresses.
type hostAddrs struct {
	looking chan struct{} // holds one token while nobody looks it up

	mu    sync.Mutex
	addrs []netip.Addr
	at    time.Time // of the last lookup, zero before the first
}

// newNames takes over what old knows. It holds no names unless cfg has a
// transparent listener.
func newNames(cfg *Config, resolve func(context.Context, string) ([]netip.Addr, error), old *names) *names {
	n := &names{resolve: resolve, hosts: make(map[string]*hostAddrs)}
	if !slices.ContainsFunc(cfg.Listeners, func(l Listener) bool { return l.Kind == KindTransparent }) {
		return n
	}
	for _, r := range cfg.Routes {
		host, ok := r.Match.HostName()
		if !ok || n.hosts[host] != nil {
			continue
		}
		if old != nil && old.hosts[host] != nil {
			n.hosts[host] = old.hosts[host]
			continue
		}
		h := &hostAddrs{looking: make(chan struct{}, 1)}
		h.looking <- struct{}{}
		n.hosts[host] = h
	}
	return n
}

// has reports whether host has the address at present. The first question for
// a host waits for its lookup.
func (n *names) has(ctx context.Context, host string, a netip.Addr) bool {
	h := n.hosts[host]
	if h == nil {
		return false
	}
	h.mu.Lock()
	known := !h.at.IsZero()
	h.mu.Unlock()
	if !known {
		n.refresh(ctx, host, nameMinAge)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Contains(h.addrs, a)
}

// refresh looks the host up unless its addresses are younger than maxAge. The
// old addresses stay if the lookup fails in any way but "no such name".
func (n *names) refresh(ctx context.Context, host string, maxAge time.Duration) {
	h := n.hosts[host]
	select {
	case <-h.looking:
		defer func() { h.looking <- struct{}{} }()
	case <-ctx.Done():
		return
	}
	h.mu.Lock()
	fresh := !h.at.IsZero() && time.Since(h.at) < maxAge
	h.mu.Unlock()
	if fresh {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, nameTimeout)
	defer cancel()
	found, err := n.resolve(ctx, host)
	for i, a := range found {
		found[i] = a.Unmap().WithZone("")
	}
	var dns *net.DNSError
	h.mu.Lock()
	defer h.mu.Unlock()
	if err == nil || errors.As(err, &dns) && dns.IsNotFound {
		h.addrs = found
	}
	if ctx.Err() == nil || errors.Is(ctx.Err(), context.DeadlineExceeded) {
		h.at = time.Now()
	}
}

// refreshAll looks up every host whose addresses are older than maxAge, all
// at once.
func (n *names) refreshAll(ctx context.Context, maxAge time.Duration) {
	var wg sync.WaitGroup
	for host := range n.hosts {
		wg.Go(func() { n.refresh(ctx, host, maxAge) })
	}
	wg.Wait()
}

// keepNames looks up the names in routes until the Proxy is closed.
func (p *Proxy) keepNames() {
	for {
		p.state.Load().names.refreshAll(p.ctx, nameRefresh/2)
		select {
		case <-p.ctx.Done():
			return
		case <-p.namesChanged:
		case <-time.After(nameRefresh):
		}
	}
}
