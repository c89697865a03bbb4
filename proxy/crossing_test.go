package proxy

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/sealane/sealane/mux"
)

// sealedThenDirect are the routes of the smallest config whose lookups decide
// between sealed and plaintext.
func sealedThenDirect(t *testing.T) []Route {
	return []Route{
		routeTo(t, "db.internal:9002", Target{Peer: "db", Service: "app"}),
		routeTo(t, "10.1.0.0/16:*", Target{Peer: "net"}),
		routeTo(t, "*:*", Target{Direct: true}),
	}
}

// A crossroads is a Proxy whose connections are only looked at where they go.
type crossroads struct {
	*node
	link  *fakeLink
	dials *dialLog
}

func newCrossroads(t *testing.T, cfg Config) *crossroads {
	t.Helper()
	c := &crossroads{link: &fakeLink{fail: mux.ErrNoLink}, dials: &dialLog{}}
	cfg.Dial = c.dials.dial
	if cfg.Listeners == nil {
		cfg.Listeners = []Listener{listenOn(t, KindTransparent, "127.0.0.1:0")}
	}
	c.node = newNode(t, cfg, c.link)
	return c
}

// sealed is what goes returns for a connection that was given to a peer.
const sealed = "sealed"

// goes sends a connection the way that listeners do, and returns "sealed", the
// address that was dialed in plaintext, or the reason for a refusal.
func (c *crossroads) goes(t *testing.T, kind Kind, to string) string {
	t.Helper()
	rec := &record{p: c.Proxy, via: string(kind)}
	far, f := c.reach(t.Context(), rec, &listener{p: c.Proxy, local: true}, Target{}, dest(to))
	if far != nil {
		far.abort(mux.ResetApp)
	}
	if dialed := c.dials.take(); dialed != "" {
		return dialed
	}
	if f.result == ResultNoLink {
		return sealed
	}
	return f.reason
}

func (c *crossroads) want(t *testing.T, kind Kind, to, want string) {
	t.Helper()
	if got := c.goes(t, kind, to); got != want && (want == sealed || !strings.Contains(got, want)) {
		t.Errorf("%s %s: %s, want %q", kind, to, got, want)
	}
}

var routedKinds = []Kind{KindTransparent, KindSOCKS5, KindConnect}

// An address goes direct only if it is known that it belongs to no name ahead.
func TestUnknownIsNotDirect(t *testing.T) {
	t.Parallel()
	unknown := "route db.internal:9002 comes before the direct one, and whether 10.0.0.9 is an address of db.internal is unknown: "
	for name, tt := range map[string]struct {
		fail     error
		failOnly string
		addrs    []string
		want     string
	}{
		"known":               {addrs: []string{"10.0.0.5", "fd00::5"}, want: "10.0.0.9:9002"},
		"v4 alone":            {addrs: []string{"10.0.0.5"}, want: "10.0.0.9:9002"},
		"v6 alone":            {addrs: []string{"fd00::5"}, want: "10.0.0.9:9002"},
		"its address":         {addrs: []string{"10.0.0.5", "10.0.0.9"}, want: sealed},
		"failure":             {fail: errors.New("server misbehaving"), want: unknown + "server misbehaving"},
		"time":                {fail: &net.DNSError{Err: "i/o timeout", IsTimeout: true}, want: unknown + "lookup : i/o timeout"},
		"no such name":        {want: unknown + "lookup db.internal: no such host"},
		"failure of v4":       {fail: errors.New("broken"), failOnly: "ip4", addrs: []string{"10.0.0.5", "fd00::5"}, want: unknown + "broken"},
		"failure of v6":       {fail: errors.New("broken"), failOnly: "ip6", addrs: []string{"10.0.0.5"}, want: "10.0.0.9:9002"},
		"no v4, v6 fails":     {fail: errors.New("broken"), failOnly: "ip6", want: unknown + "broken"},
		"hosts file of v6":    {fail: &net.AddrError{Err: "no suitable address found"}, failOnly: "ip4", addrs: []string{"fd00::5"}, want: "10.0.0.9:9002"},
		"hosts file of other": {fail: &net.AddrError{Err: "no suitable address found"}, want: unknown + "no suitable address found"},
	} {
		t.Run(name, func(t *testing.T) {
			dns := &fakeDNS{fail: tt.fail, failOnly: tt.failOnly}
			dns.set("db.internal", tt.addrs...)
			c := newCrossroads(t, Config{Routes: sealedThenDirect(t), Resolve: dns.resolve})
			for _, kind := range routedKinds {
				c.want(t, kind, "10.0.0.9:9002", tt.want)
				c.want(t, kind, "10.0.0.9:9003", "10.0.0.9:9003") // no name has this port
				c.want(t, kind, "10.1.0.1:9002", sealed)
			}
		})
	}
}

// What a name resolved to is no answer later: every connection has a lookup
// of its own time.
func TestStaleIsNotDirect(t *testing.T) {
	t.Parallel()
	for _, kind := range routedKinds {
		t.Run(string(kind), func(t *testing.T) {
			dns := &fakeDNS{}
			dns.set("db.internal", "10.0.0.5")
			c := newCrossroads(t, Config{Routes: sealedThenDirect(t), Resolve: dns.resolve})
			c.want(t, kind, "10.0.0.5:9002", sealed)
			c.want(t, kind, "10.0.0.6:9002", "10.0.0.6:9002")

			dns.set("db.internal", "10.0.0.6")
			c.want(t, kind, "10.0.0.6:9002", sealed)
			c.want(t, kind, "10.0.0.7:9002", "10.0.0.7:9002")
			// An app, or a server of names that rotates them, may still have it.
			if got := c.goes(t, kind, "10.0.0.5:9002"); got != sealed && !strings.Contains(got, "it had that address") {
				t.Errorf("the address before: %s", got)
			}

			dns.setFail(errors.New("broken"))
			for _, a := range []string{"10.0.0.5", "10.0.0.6", "10.0.0.7"} {
				if got := c.goes(t, kind, a+":9002"); got != sealed && !strings.Contains(got, "is unknown") {
					t.Errorf("%s: %s", a, got)
				}
			}
			dns.setFail(nil)
			c.want(t, kind, "10.0.0.7:9002", "10.0.0.7:9002")
		})
	}
}

// A reload forgets no address that a name had, whatever listens.
func TestReloadForgetsNoAddress(t *testing.T) {
	t.Parallel()
	for _, kind := range routedKinds {
		t.Run(string(kind), func(t *testing.T) {
			dns := &fakeDNS{}
			dns.set("db.internal", "10.0.0.5")
			cfg := Config{Routes: sealedThenDirect(t), Resolve: dns.resolve, Listeners: []Listener{listenOn(t, kind, "127.0.0.1:0")}}
			c := newCrossroads(t, cfg)
			c.want(t, kind, "10.0.0.5:9002", sealed)
			dns.set("db.internal", "10.0.0.6")
			c.want(t, kind, "10.0.0.6:9002", sealed)
			cfg.Dial = c.dials.dial
			for range 2 {
				if err := c.update(cfg); err != nil {
					t.Fatal(err)
				}
				c.want(t, kind, "10.0.0.5:9002", "it had that address")
				c.want(t, kind, "10.0.0.6:9002", sealed)
				c.want(t, kind, "10.0.0.7:9002", "10.0.0.7:9002")
			}
		})
	}
}

// What leads to an address through NAT64 and its like is that address.
func TestEmbeddedAddressesAreSealed(t *testing.T) {
	dns := &fakeDNS{}
	dns.set("db.internal", "10.0.0.5", "fd00::5")
	dns.set("nat64.example", "64:ff9b::a01:1")
	c := newCrossroads(t, Config{Routes: sealedThenDirect(t), Resolve: dns.resolve})
	for _, kind := range routedKinds {
		c.want(t, kind, "[64:ff9b::a01:1]:80", sealed)
		c.want(t, kind, "[2002:a01:1::1]:80", sealed)
		c.want(t, kind, "[64:ff9b::a00:5]:9002", sealed)
		c.want(t, kind, "[64:ff9b::a00:9]:9002", "[64:ff9b::a00:9]:9002")
		c.want(t, kind, "[64:ff9b::a00:9]:80", "[64:ff9b::a00:9]:80")
	}
	c.want(t, KindSOCKS5, "nat64.example:80", "nat64.example has the address 64:ff9b::a01:1, which route 10.1.0.0/16:*")
	dns.fail, dns.failOnly = errors.New("broken"), "ip4"
	c.want(t, KindSOCKS5, "[64:ff9b::a00:9]:9002", "is unknown: broken")
}

// An address that a name has no more goes direct after a time: it may be
// somebody else's then.
func TestAddressesAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dns := &fakeDNS{}
		dns.set("db.internal", "10.0.0.5")
		cfg := Config{Routes: sealedThenDirect(t), Resolve: dns.resolve, Listeners: []Listener{{Kind: KindSOCKS5, Address: Endpoint{"tcp", "127.0.0.1:1"}}}}
		p, err := newProxy(cfg, &fakeLink{})
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		st := p.state.Load()
		ask := func() (Target, *failure) { return target(t.Context(), st, KindSOCKS5, "10.0.0.5:9002") }
		if to, _ := ask(); to.Peer != "db" {
			t.Fatalf("to %+v", to)
		}
		dns.set("db.internal", "10.0.0.6")
		for range 9 {
			time.Sleep(time.Minute)
			if to, f := ask(); f == nil {
				t.Fatalf("to %+v", to)
			}
		}
		time.Sleep(2 * time.Minute)
		if to, f := ask(); f != nil || !to.Direct {
			t.Errorf("to %+v, %v", to, f)
		}
	})
}

// A direct route for a range is as closed as one for everything while a name
// ahead of both may have the address.
func TestUnknownIsNotDirectByRange(t *testing.T) {
	t.Parallel()
	dns := &fakeDNS{}
	dns.set("db.internal", "10.0.0.5")
	c := newCrossroads(t, Config{
		Routes: []Route{
			routeTo(t, "db.internal:9002", Target{Peer: "db", Service: "app"}),
			routeTo(t, "10.0.0.0/24:*", Target{Direct: true}),
			routeTo(t, "10.0.1.1:*", Target{Direct: true}),
		},
		Resolve: dns.resolve,
	})
	addrs := []string{"10.0.0.9", "10.0.1.1"}
	for _, kind := range routedKinds {
		for _, a := range addrs {
			c.want(t, kind, a+":9002", a+":9002")
		}
		c.want(t, kind, "10.0.0.5:9002", sealed)
	}
	dns.setFail(errors.New("broken"))
	for _, kind := range routedKinds {
		for _, a := range addrs {
			c.want(t, kind, a+":9002", "whether "+a+" is an address of db.internal is unknown: broken")
			c.want(t, kind, a+":9003", a+":9003") // no name has this port
		}
	}
}

// A name that goes direct is looked up, and then what is ahead is asked for
// its addresses as well: an alias is no way around a sealed route.
func TestDirectByNameChecksAddresses(t *testing.T) {
	dns := &fakeDNS{}
	dns.set("db.internal", "10.0.0.5", "fd00::5")
	dns.set("alias.example", "10.0.0.5")
	dns.set("alias6.example", "fd00::5")
	dns.set("half.example", "192.0.2.1", "10.0.0.5")
	dns.set("net.example", "10.1.2.3")
	dns.set("other.example", "192.0.2.1")
	dns.set("open.example", "10.2.0.1")
	routes := append([]Route{
		routeTo(t, "10.2.0.1:*", Target{Direct: true}),
		routeTo(t, "10.2.0.0/16:*", Target{Peer: "net"}),
	}, sealedThenDirect(t)...)
	c := newCrossroads(t, Config{Routes: routes, Resolve: dns.resolve})
	for _, kind := range []Kind{KindSOCKS5, KindConnect} {
		c.want(t, kind, "db.internal:9002", sealed)
		c.want(t, kind, "other.example:9002", "192.0.2.1:9002")
		c.want(t, kind, "alias.example:9002", "alias.example has the address 10.0.0.5, which route db.internal:9002 ahead of the direct one leads to peer db")
		c.want(t, kind, "alias6.example:9002", "alias6.example has the address fd00::5")
		c.want(t, kind, "half.example:9002", "half.example has the address 10.0.0.5")
		c.want(t, kind, "alias.example:9003", "10.0.0.5:9003")
		c.want(t, kind, "net.example:80", "net.example has the address 10.1.2.3, which route 10.1.0.0/16:*")
		c.want(t, kind, "open.example:80", "10.2.0.1:80") // a direct route has its address first
	}
	dns.set("db.internal", "10.0.0.7")
	c.want(t, KindSOCKS5, "alias.example:9002", "is unknown: it had that address")
	dns.set("db.internal")
	c.want(t, KindSOCKS5, "other.example:9002", "is unknown") // it had addresses
}

// Names that only the peer can look up do not close every other name, but
// every address, and nothing passes while the resolver does not answer.
func TestDirectByNameBesideUnknownNames(t *testing.T) {
	dns := &fakeDNS{}
	dns.set("other.example", "192.0.2.1")
	c := newCrossroads(t, Config{Routes: sealedThenDirect(t), Resolve: func(ctx context.Context, network, host string) ([]netip.Addr, error) {
		if strings.HasPrefix(host, "db.") {
			return dns.resolve(ctx, network, host)
		}
		return []netip.Addr{netip.MustParseAddr("192.0.2.1")}, nil
	}})
	c.want(t, KindSOCKS5, "other.example:9002", "192.0.2.1:9002")
	c.want(t, KindSOCKS5, "192.0.2.1:9002", "is unknown: lookup db.internal: no such host")
	dns.setFail(errors.New("broken"))
	c.want(t, KindSOCKS5, "other.example:9002", "is unknown: broken")
}

// A glob can be asked for names alone. An address passes it to a direct route
// only where that says so by address, or where it stays on this host.
func TestGlobAheadOfDirect(t *testing.T) {
	dns := &fakeDNS{}
	dns.set("other.example", "192.0.2.1")
	dns.set("named.example", "192.0.2.9")
	dns.set("short", "192.0.2.1")
	dns.set("known", "192.0.2.8")
	dns.set("localhost", "127.0.0.1")
	c := newCrossroads(t, Config{
		Routes: []Route{
			routeTo(t, "*.internal:5432", Target{Peer: "db"}),
			routeTo(t, "known:*", Target{Direct: true}),
			routeTo(t, "10.0.0.0/8:*", Target{Direct: true}),
			routeTo(t, "named.example:*", Target{Direct: true}),
			routeTo(t, "*:*", Target{Direct: true}),
		},
		Resolve: dns.resolve,
	})
	for _, kind := range routedKinds {
		c.want(t, kind, "192.0.2.1:5432", "route *.internal:5432 comes before the direct one, and nobody can know whether 192.0.2.1 has such a name")
		c.want(t, kind, "192.0.2.1:5433", "192.0.2.1:5433")
		c.want(t, kind, "10.9.9.9:5432", "10.9.9.9:5432")
		c.want(t, kind, "127.0.0.7:5432", "127.0.0.7:5432")
	}
	c.want(t, KindTransparent, "192.0.2.9:5432", "192.0.2.9:5432")
	c.want(t, KindSOCKS5, "db.internal:5432", sealed)
	c.want(t, KindSOCKS5, "other.example:5432", "192.0.2.1:5432")
	// "short" may become short.internal by a search domain.
	c.want(t, KindSOCKS5, "short:5432", "route *.internal:5432 comes before the direct one, and nobody can know whether short is completed to such a name")
	c.want(t, KindSOCKS5, "short:5433", "192.0.2.1:5433")
	c.want(t, KindSOCKS5, "known:5432", "192.0.2.8:5432")
	c.want(t, KindSOCKS5, "localhost:5432", "127.0.0.1:5432")
}

// The name of a direct route, too, has only the addresses that it has now: an
// old one may be a sealed server's.
func TestDirectNameIsFresh(t *testing.T) {
	dns := &fakeDNS{}
	dns.set("open.example", "10.0.0.5")
	c := newCrossroads(t, Config{
		Routes:  []Route{routeTo(t, "open.example:80", Target{Direct: true}), routeTo(t, "*:*", Target{Peer: "db"})},
		Resolve: dns.resolve,
	})
	c.want(t, KindTransparent, "10.0.0.5:80", "10.0.0.5:80")
	dns.set("open.example", "10.0.0.6")
	c.want(t, KindTransparent, "10.0.0.5:80", sealed)
	dns.setFail(errors.New("broken"))
	c.want(t, KindTransparent, "10.0.0.6:80", sealed)
}

// A connection waits for a lookup that began after it came, and many of them
// for the same one.
func TestLookupsAreSharedAndFresh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		answer, asked := "10.0.0.1", 0
		cfg := Config{
			Listeners: []Listener{{Kind: KindSOCKS5, Address: Endpoint{"tcp", "127.0.0.1:1"}}},
			Routes:    sealedThenDirect(t),
			Resolve: func(_ context.Context, network, _ string) ([]netip.Addr, error) {
				mu.Lock()
				a := answer
				if asked++; network == "ip6" {
					a = "fd00::1"
				}
				mu.Unlock()
				time.Sleep(time.Second) // and the answer is that of its beginning
				return []netip.Addr{netip.MustParseAddr(a)}, nil
			},
		}
		p, err := newProxy(cfg, &fakeLink{})
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		st := p.state.Load()
		first := make(chan struct{})
		go func() {
			target(t.Context(), st, KindSOCKS5, "10.0.0.5:9002")
			close(first)
		}()
		time.Sleep(500 * time.Millisecond) // its lookup runs
		mu.Lock()
		answer = "10.0.0.5"
		mu.Unlock()
		var wg sync.WaitGroup
		start := time.Now()
		for range 100 {
			wg.Go(func() {
				if to, f := target(t.Context(), st, KindSOCKS5, "10.0.0.5:9002"); f != nil || to.Peer != "db" {
					t.Errorf("to %+v, %v: by a lookup that began earlier", to, f)
				}
			})
		}
		wg.Wait()
		<-first
		if took := time.Since(start); took > 2*time.Second {
			t.Errorf("took %v", took)
		}
		lookups := func() int {
			mu.Lock()
			defer mu.Unlock()
			return asked
		}
		if n := lookups(); n != 2 {
			t.Errorf("%d lookups for 101 connections, want 2", n)
		}
		for range 200 {
			go target(t.Context(), st, KindSOCKS5, "10.0.0.5:9002")
			time.Sleep(10 * time.Millisecond)
		}
		time.Sleep(5 * time.Second)
		if n := lookups(); n > 6 { // one a second, one at a time
			t.Errorf("%d lookups", n)
		}
	})
}

// A resolver that never answers ends in a refusal within the dial timeout.
func TestLookupsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := Config{
			Listeners: []Listener{{Kind: KindSOCKS5, Address: Endpoint{"tcp", "127.0.0.1:1"}}},
			Routes:    sealedThenDirect(t),
			Resolve: func(ctx context.Context, _, _ string) ([]netip.Addr, error) {
				<-ctx.Done()
				return nil, ctx.Err()
			},
			Timeouts: Timeouts{Dial: 2 * time.Second},
		}
		p, err := newProxy(cfg, &fakeLink{})
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		start := time.Now()
		rec := &record{p: p, via: string(KindSOCKS5)}
		if _, f := p.reach(t.Context(), rec, &listener{p: p, local: true}, Target{}, dest("10.0.0.9:9002")); f == nil || !strings.Contains(f.reason, "is unknown") {
			t.Errorf("%v", f)
		}
		if took := time.Since(start); took > 2*time.Second {
			t.Errorf("took %v", took)
		}
	})
}

// dnsServer is a name server over UDP that does as it is told.
type dnsServer struct {
	addr string

	mu     sync.Mutex
	addrs  map[string]string // fully qualified, with the final dot
	code   dnsmessage.RCode  // for every question
	silent bool
	asked  []string
}

func newDNSServer(t *testing.T) *dnsServer {
	t.Helper()
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &dnsServer{addr: c.LocalAddr().String(), addrs: make(map[string]string)}
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, 1500)
		for {
			n, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			if answer := s.answer(buf[:n]); answer != nil {
				c.WriteTo(answer, from)
			}
		}
	})
	t.Cleanup(func() {
		c.Close()
		wg.Wait()
	})
	return s
}

func (s *dnsServer) set(f func(*dnsServer)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(s)
}

func (s *dnsServer) answer(question []byte) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	var m dnsmessage.Message
	if m.Unpack(question) != nil || len(m.Questions) != 1 || s.silent {
		return nil
	}
	q := m.Questions[0]
	s.asked = append(s.asked, q.Name.String())
	m.Response, m.RecursionAvailable, m.RCode, m.Additionals = true, true, s.code, nil
	if a, ok := s.addrs[q.Name.String()]; s.code != dnsmessage.RCodeSuccess {
	} else if !ok {
		m.RCode = dnsmessage.RCodeNameError
	} else if q.Type == dnsmessage.TypeA {
		m.Answers = []dnsmessage.Resource{{
			Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 1},
			Body:   &dnsmessage.AResource{A: netip.MustParseAddr(a).As4()},
		}}
	}
	answer, err := m.Pack()
	if err != nil {
		return nil
	}
	return answer
}

// lookup is the system's resolver, with this server in place of its own.
func (s *dnsServer) lookup(strict bool) lookupFunc {
	r := &net.Resolver{PreferGo: true, StrictErrors: strict, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		var d net.Dialer
		c, err := d.DialContext(ctx, "udp", s.addr)
		if err == nil { // the resolver itself reads on until its own timeout
			context.AfterFunc(ctx, func() { c.Close() })
		}
		return c, err
	}}
	return r.LookupNetIP
}

// The same over UDP, through a SOCKS5 listener: whatever a name server does,
// or somebody in front of it, no address of the name gets plaintext.
func TestDNSOverUDP(t *testing.T) {
	t.Parallel()
	server := newDNSServer(t)
	server.set(func(s *dnsServer) { s.addrs["db.internal."] = "10.0.0.5" })
	c := newCrossroads(t, Config{
		Listeners: []Listener{listenOn(t, KindSOCKS5, "127.0.0.1:0")},
		Routes:    sealedThenDirect(t), Resolve: server.lookup(true), Timeouts: Timeouts{Dial: 3 * time.Second},
	})
	connect := func(host string) (dialed string) {
		_, conn := exchange(t, c.addr(0), socksRequest(1, host, 9002))
		conn.Close()
		return c.dials.take()
	}
	if d := connect("10.0.0.5"); d != "" {
		t.Errorf("dialed %s", d)
	}
	if d := connect("10.0.0.9"); d != "10.0.0.9:9002" {
		t.Errorf("dialed %q", d)
	}
	for what, trouble := range map[string]func(*dnsServer){
		"SERVFAIL": func(s *dnsServer) { s.code = dnsmessage.RCodeServerFailure },
		"REFUSED":  func(s *dnsServer) { s.code = dnsmessage.RCodeRefused },
		"NXDOMAIN": func(s *dnsServer) { s.code = dnsmessage.RCodeNameError },
		"silence":  func(s *dnsServer) { s.silent = true },
		"gone":     func(s *dnsServer) { delete(s.addrs, "db.internal.") },
	} {
		server.set(trouble)
		hosts := []string{"10.0.0.9", "10.0.0.5", "10.0.0.6"}
		if what == "silence" {
			hosts = hosts[:1] // each takes its time
		}
		for _, host := range hosts {
			if d := connect(host); d != "" {
				t.Errorf("%s: dialed %s", what, d)
			}
		}
		server.set(func(s *dnsServer) {
			s.code, s.silent, s.addrs["db.internal."] = dnsmessage.RCodeSuccess, false, "10.0.0.5"
		})
	}
	server.set(func(s *dnsServer) { s.addrs["db.internal."] = "10.0.0.6" })
	if d := connect("10.0.0.6"); d != "" {
		t.Errorf("after a change: dialed %s", d)
	}
	c.log.want(t, "message=connection refused", "target=10.0.0.9:9002", "result=denied")
}

// The name that the rules were asked about is the one that is looked up. One
// with a dot that an app or a peer gave is absolute, whether or not it says so;
// those of the config, and names without a dot, are what the system makes of them.
func TestNamesFromOutsideAreAbsolute(t *testing.T) {
	dns := &fakeDNS{}
	for _, name := range []string{"app.internal", "svc.internal", "short", "db.internal"} {
		dns.set(name, "10.0.0.1")
	}
	dns.set("web.example", "192.0.2.1")
	c := newCrossroads(t, Config{
		Listeners: []Listener{listenOn(t, KindSOCKS5, "127.0.0.1:0")},
		Routes:    []Route{routeTo(t, "db.internal.:9002", Target{Peer: "db"}), routeTo(t, "*:*", Target{Direct: true})},
		Services:  serviceAt(t, "svc.internal.:80"),
		Egress:    []EgressRule{egressFor(t, "web", "*.internal:*", "short:*")},
		Resolve:   dns.resolve,
	})
	for _, tt := range []struct{ what, to, query string }{
		{"exit", "app.internal:80", "ip app.internal."},
		{"exit", "app.internal.:80", "ip app.internal."},
		{"exit", "short:80", "ip short"},
		{"exit", "short.:80", "ip short"},
		{"exit", "app", "ip svc.internal"}, // a service
		{"socks", "web.example:80", "ip web.example."},
		{"socks", "web.example.:80", "ip web.example."},
		{"socks", "192.0.2.7:9002", "ip4 db.internal"}, // a route
	} {
		before := dns.asked(tt.query)
		if tt.what == "exit" {
			if got := askExit(t, c.node, "web", tt.to); got.Status != mux.StatusOK {
				t.Errorf("%s: %v", tt.to, got)
			}
		} else if code, conn := exchange(t, c.addr(0), socksRequest(1, tt.to[:strings.LastIndexByte(tt.to, ':')], dest(tt.to).Port)); code != 0 {
			t.Errorf("%s: reply %d", tt.to, code)
		} else {
			conn.Close()
		}
		if dns.asked(tt.query) == before {
			t.Errorf("%s: %q was not asked for", tt.to, tt.query)
		}
	}
	dns.mu.Lock()
	defer dns.mu.Unlock()
	for _, q := range []string{"ip app.internal", "ip web.example", "ip svc.internal.", "ip4 db.internal.", "ip short."} {
		if slices.Contains(dns.queries, q) {
			t.Errorf("asked for %q", q)
		}
	}
}

// Ranges of ports that have one port in common, at either end, stand in each
// other's way there.
func TestRangesThatTouch(t *testing.T) {
	dns := &fakeDNS{}
	dns.set("db.internal", "10.0.0.5")
	for _, direct := range []string{"*:9002-9009", "*:8990-9000", "*:9001", "*:9000-9002"} {
		routes := []Route{routeTo(t, "db.internal:9000-9002", Target{Peer: "db"}), routeTo(t, direct, Target{Direct: true})}
		c := newCrossroads(t, Config{Routes: routes, Resolve: dns.resolve, Listeners: []Listener{listenOn(t, KindSOCKS5, "127.0.0.1:0")}})
		for _, port := range []string{"9000", "9001", "9002"} {
			if !routes[1].Match.matchesPort(dest("10.0.0.5:" + port).Port) {
				continue
			}
			c.want(t, KindSOCKS5, "10.0.0.5:"+port, sealed)
			c.want(t, KindSOCKS5, "10.0.0.9:"+port, "10.0.0.9:"+port)
		}
		if len(Cautions(routes)) != 1 {
			t.Errorf("%s: no caution", direct)
		}
	}
	apart := []Route{routeTo(t, "db.internal:9000-9002", Target{Peer: "db"}), routeTo(t, "*:9003", Target{Direct: true}), routeTo(t, "*:8999", Target{Direct: true})}
	if found := Cautions(apart); len(found) > 0 {
		t.Errorf("of ranges that do not touch: %v", found)
	}
}
