package proxy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// How old the addresses of a route's host name may get: the system's resolver
// tells no TTL. They are looked up more often than every 30 seconds so that a
// slow answer does not exceed that, and at once, though not more than once per
// nameMinAge, for a connection that no route matches. A connection that would
// go direct waits for a lookup that begins after it came; those of one name
// begin nameGap apart and are shared, so that many connections are few queries;
// of many names further apart, up to nameMaxGap: servers of names count them,
// and one that answers no more would turn honest connections away.
const (
	nameRefresh = 20 * time.Second
	nameMinAge  = time.Second
	nameTimeout = 5 * time.Second
	nameGap     = 50 * time.Millisecond
	namesPerGap = 10
	nameMaxGap  = time.Second
)

// nameMemory is how long an address that a name had, and has no more, is kept
// from going direct: apps keep addresses after they have changed, and servers
// of names give some of the addresses in turn.
const nameMemory = 10 * time.Minute

// maxSeen bounds the addresses that are remembered for a name.
const maxSeen = 1024

// lookupFunc looks a host's addresses up: of both families (network "ip") or
// of one ("ip4", "ip6"), as net.Resolver.LookupNetIP does.
type lookupFunc func(ctx context.Context, network, host string) ([]netip.Addr, error)

// names knows the addresses of the host names in routes, for connections whose
// apps give addresses only, and for those that would go direct.
type names struct {
	ctx     context.Context // ends lookups
	lookups *sync.WaitGroup // of those that run
	resolve lookupFunc
	timeout time.Duration // of one lookup
	gap     time.Duration // between those of one name
	hosts   map[string]*hostAddrs
}

// hostAddrs is one host's addresses. The families are looked up apart from
// each other, so that an answer for one does not hide that the other failed.
type hostAddrs struct{ four, six family }

// of returns the family that a belongs to, and the other one.
func (h *hostAddrs) of(a netip.Addr) (own, other *family) {
	if a.Is4() {
		return &h.four, &h.six
	}
	return &h.six, &h.four
}

// A family is what is known of a host's addresses of one family.
type family struct {
	host, network string

	mu    sync.Mutex
	next  *lookup // has not begun; nil if nobody waits for one
	busy  bool    // a goroutine does the lookups
	begun time.Time
	at    time.Time // of the last lookup's end, zero before the first
	addrs []netip.Addr
	seen  map[netip.Addr]time.Time // when an answer last held the address
	known bool                     // an answer has held an address
}

// A lookup is one question and its answer, for all who asked before it began.
type lookup struct {
	done  chan struct{} // closed once the answer is there
	addrs []netip.Addr
	err   error
}

// newNames takes over what old knows. It holds the names that a transparent
// listener asks for, and those ahead of a direct route.
func (p *Proxy) newNames(st *state, old *names) *names {
	n := &names{
		ctx: p.ctx, lookups: &p.background, resolve: st.cfg.Resolve,
		timeout: lookupTimeout(st.dialTimeout()), hosts: make(map[string]*hostAddrs),
	}
	if n.resolve == nil {
		n.resolve = p.resolver.lookup
	}
	transparent := slices.ContainsFunc(st.cfg.Listeners, func(l Listener) bool { return l.Kind == KindTransparent })
	n.add(&st.cfg, transparent, old)
	if st.within != nil {
		n.add(&st.within.cfg, transparent, old)
	}
	n.gap = lookupGap(len(n.hosts), st.dialTimeout())
	return n
}

func (n *names) add(c *Config, transparent bool, old *names) {
	for i, r := range c.Routes {
		host, ok := r.Match.HostName()
		if !ok || n.hosts[host] != nil || !transparent && !c.aheadOfDirect(i) {
			continue
		}
		if old != nil && old.hosts[host] != nil {
			n.hosts[host] = old.hosts[host]
			continue
		}
		n.hosts[host] = &hostAddrs{family{host: host, network: "ip4"}, family{host: host, network: "ip6"}}
	}
}

// lookupTimeout lets a connection outlive a lookup that hangs and its own
// behind that one, without giving up on a slow answer.
func lookupTimeout(dial time.Duration) time.Duration {
	return min(nameTimeout, max(dial/2, 2*time.Second))
}

// lookupGap lets a connection outlive it, whatever the number of names.
func lookupGap(names int, dial time.Duration) time.Duration {
	return max(nameGap, min(time.Duration(names)*nameGap/namesPerGap, nameMaxGap, dial/4))
}

// aheadOfDirect reports whether a connection that the route at index i does
// not match may go direct.
func (c *Config) aheadOfDirect(i int) bool {
	return !c.Routes[i].To.Direct && slices.ContainsFunc(c.Routes[i+1:], func(r Route) bool {
		return r.To.Direct && r.Match.sharesPort(c.Routes[i].Match)
	})
}

// has reports whether host has the address at present, by an answer that may
// be as old as nameRefresh allows. The first question for a host waits for its
// lookup.
func (n *names) has(ctx context.Context, host string, a netip.Addr) bool {
	h := n.hosts[host]
	if h == nil {
		return false
	}
	f, _ := h.of(a)
	if f.age() < 0 {
		n.ask(f).wait(ctx)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Contains(f.addrs, a)
}

// age is the time since the last lookup ended, negative before the first.
func (f *family) age() time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.at.IsZero() {
		return -1
	}
	return time.Since(f.at)
}

// ask returns a lookup that begins after the call.
func (n *names) ask(f *family) *lookup {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.next == nil {
		f.next = &lookup{done: make(chan struct{})}
	}
	if !f.busy {
		f.busy = true
		n.lookups.Go(func() { n.work(f) })
	}
	return f.next
}

// work does lookups while somebody waits for one. There is one at a time for
// each family of a name: the resolver would answer a second with the first.
func (n *names) work(f *family) {
	for {
		f.mu.Lock()
		gap := time.Until(f.begun.Add(n.gap))
		f.mu.Unlock()
		select {
		case <-time.After(gap):
		case <-n.ctx.Done():
		}
		f.mu.Lock()
		l := f.next
		f.next, f.busy, f.begun = nil, l != nil, time.Now()
		f.mu.Unlock()
		if l == nil {
			return
		}
		n.look(f, l)
	}
}

// look answers l. The addresses that were known stay if the lookup fails in
// any way but "no such address".
func (n *names) look(f *family, l *lookup) {
	defer close(l.done)
	ctx, cancel := context.WithTimeout(n.ctx, n.timeout)
	defer cancel()
	found, err := n.resolve(ctx, f.network, f.host)
	for _, a := range found {
		l.addrs = append(l.addrs, a.Unmap().WithZone(""))
	}
	if l.err = err; err == nil && len(found) == 0 {
		l.err = errNoAddress(f.host)
	}
	if n.ctx.Err() != nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.at = time.Now()
	if l.err == nil || isNotFound(l.err) {
		f.addrs = l.addrs
		f.remember(l.addrs)
	}
}

// remember notes that the addresses were the host's now. f.mu is held.
func (f *family) remember(addrs []netip.Addr) {
	if f.seen == nil {
		f.seen = make(map[netip.Addr]time.Time)
	}
	now := time.Now()
	for a, at := range f.seen {
		if now.Sub(at) > nameMemory {
			delete(f.seen, a)
		}
	}
	f.known = f.known || len(addrs) > 0
	for _, a := range addrs {
		if _, known := f.seen[a]; !known && len(f.seen) >= maxSeen {
			f.forgetOldest()
		}
		f.seen[a] = now
	}
}

func (f *family) forgetOldest() {
	var oldest netip.Addr
	for a, at := range f.seen {
		if !oldest.IsValid() || at.Before(f.seen[oldest]) {
			oldest = a
		}
	}
	delete(f.seen, oldest)
}

// sinceSeen says how long ago the host had the address, if that is remembered.
func (f *family) sinceSeen(a netip.Addr) (time.Duration, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	at, ok := f.seen[a]
	return time.Since(at), ok && time.Since(at) < nameMemory
}

// everSeen reports whether the host had an address of the family.
func (f *family) everSeen() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.known
}

// wait returns the answer, or an error if ctx ends first.
func (l *lookup) wait(ctx context.Context) ([]netip.Addr, error) {
	select {
	case <-l.done:
		return l.addrs, l.err
	case <-ctx.Done():
		return nil, fmt.Errorf("the lookup took too long: %w", ctx.Err())
	}
}

func errNoAddress(host string) error {
	return &net.DNSError{Err: "no address", Name: host, IsNotFound: true}
}

// isNotFound reports whether a lookup's error is an answer: that there is no
// such name, or no such address of it. It is an *net.AddrError where the hosts
// file has the name in the other family alone.
func isNotFound(err error) bool {
	var dns *net.DNSError
	var family *net.AddrError
	return errors.As(err, &dns) && dns.IsNotFound || errors.As(err, &family)
}

// refreshAll looks up every host whose addresses are older than maxAge, all
// at once.
func (n *names) refreshAll(ctx context.Context, maxAge time.Duration) {
	var asked []*lookup
	for _, h := range n.hosts {
		for _, f := range []*family{&h.four, &h.six} {
			if age := f.age(); age < 0 || age >= maxAge {
				asked = append(asked, n.ask(f))
			}
		}
	}
	for _, l := range asked {
		l.wait(ctx)
	}
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

// An inquiry asks afresh for one connection whose names have addresses. It
// asks for each name once.
type inquiry struct {
	names *names
	asked map[*family]*lookup
}

func (n *names) inquire() *inquiry { return &inquiry{n, make(map[*family]*lookup)} }

func (q *inquiry) ask(f *family) *lookup {
	if q.asked[f] == nil {
		q.asked[f] = q.names.ask(f)
	}
	return q.asked[f]
}

// begin starts the lookups that owns will wait for.
func (q *inquiry) begin(host string, addrs []netip.Addr) {
	if h := q.names.hosts[host]; h != nil {
		for _, a := range addrs {
			f, _ := h.of(a)
			q.ask(f)
		}
	}
}

// owns reports whether host has one of the addresses. Its error says why that is
// unknown: it is known only by a lookup that begins after the inquiry and does
// not fail. That the name has no address at all is no answer: whoever can drop
// answers may be able to give that one.
func (q *inquiry) owns(ctx context.Context, host string, addrs []netip.Addr) (bool, error) {
	h := q.names.hosts[host]
	if h == nil {
		return false, errors.New("it is never looked up")
	}
	var unknown error
	for _, a := range addrs {
		owns, err := q.ownsOne(ctx, h, a)
		if owns {
			return true, nil
		}
		unknown = cmp.Or(unknown, err)
	}
	return false, unknown
}

func (q *inquiry) ownsOne(ctx context.Context, h *hostAddrs, a netip.Addr) (bool, error) {
	own, other := h.of(a)
	addrs, err := q.ask(own).wait(ctx)
	switch {
	case slices.Contains(addrs, a):
		return true, nil
	case isNotFound(err):
		if _, err := q.ask(other).wait(ctx); err != nil {
			return false, err
		}
	case err != nil:
		return false, err
	}
	if ago, recent := own.sinceSeen(a); recent {
		return false, fmt.Errorf("it had that address %v ago", ago.Round(time.Second))
	}
	return false, nil
}

// neverResolved reports whether the resolver has always said that there is no
// such name. owns must have been asked.
func (n *names) neverResolved(host string, err error) bool {
	h := n.hosts[host]
	return h != nil && isNotFound(err) && !h.four.everSeen() && !h.six.everSeen()
}
