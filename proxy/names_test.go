package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"
)

func namesConfig(t *testing.T, dns *fakeDNS) Config {
	return Config{
		Listeners: []Listener{listenOn(t, KindTransparent, "127.0.0.1:0")},
		Routes: []Route{
			routeTo(t, "orders.svc:5432", Target{Peer: "db", Service: "orders"}),
			routeTo(t, "*.svc:*", Target{Peer: "glob"}),
			routeTo(t, "10.0.0.0/24:*", Target{Peer: "net"}),
		},
		Resolve: dns.resolve,
	}
}

func dest(s string) Destination {
	d, err := ParseDestination(s)
	if err != nil {
		panic(err)
	}
	return d
}

// target is where the routes lead.
func target(ctx context.Context, st *state, kind Kind, to string) (Target, *failure) {
	at, f := st.route(ctx, kind, dest(to))
	if f != nil {
		return Target{}, f
	}
	return st.cfg.Routes[at].To, nil
}

func TestRouteByName(t *testing.T) {
	dns := &fakeDNS{}
	dns.set("orders.svc", "10.0.0.5", "::ffff:10.0.1.5")
	p, err := newProxy(namesConfig(t, dns), &fakeLink{})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	st := p.state.Load()
	for _, tt := range []struct {
		kind     Kind
		to, peer string
	}{
		{KindTransparent, "10.0.0.5:5432", "db"},
		{KindTransparent, "10.0.1.5:5432", "db"},
		{KindTransparent, "10.0.0.5:5433", "net"},
		{KindTransparent, "10.0.0.6:5432", "net"},
		{KindTransparent, "10.0.2.5:5432", ""},
		{KindSOCKS5, "orders.svc:5432", "db"},
		{KindSOCKS5, "orders.svc:80", "glob"},
		{KindSOCKS5, "10.0.0.5:5432", "net"}, // only transparent listeners ask for names
		{KindSOCKS5, "10.0.1.5:5432", ""},
	} {
		to, f := target(t.Context(), st, tt.kind, tt.to)
		if to.Peer != tt.peer || (f == nil) != (tt.peer != "") {
			t.Errorf("%s %s: %+v, %v, want %q", tt.kind, tt.to, to, f, tt.peer)
		}
	}
}

// The app may have got a newer answer than this node: then the name is asked
// for again, but not for every connection that matches nothing.
func TestRouteLooksAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dns := &fakeDNS{}
		dns.set("orders.svc", "10.0.1.5")
		p, err := newProxy(namesConfig(t, dns), &fakeLink{})
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		st := p.state.Load()
		if _, f := target(t.Context(), st, KindTransparent, "10.0.1.5:5432"); f != nil {
			t.Fatal(f)
		}
		dns.set("orders.svc", "10.0.1.6")
		time.Sleep(nameMinAge)
		for range 10 {
			if _, f := target(t.Context(), st, KindTransparent, "10.0.9.9:5432"); f == nil {
				t.Fatal("a route matched")
			}
		}
		if n := dns.asked("ip4 orders.svc"); n != 2 {
			t.Errorf("asked %d times, want 2", n)
		}
		if to, _ := target(t.Context(), st, KindTransparent, "10.0.1.6:5432"); to.Peer != "db" {
			t.Error("the new address does not match")
		}
		if _, f := target(t.Context(), st, KindTransparent, "10.0.1.5:5432"); f == nil {
			t.Error("the old address still matches")
		}
	})
}

// In the background, names are never older than 30 seconds; a resolver that
// fails takes no address away, one that knows the name no more does.
func TestNamesAreKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dns := &fakeDNS{}
		dns.set("orders.svc", "10.0.1.5")
		cfg := namesConfig(t, dns)
		p, err := newProxy(cfg, &fakeLink{})
		if err != nil {
			t.Fatal(err)
		}
		p.background.Go(p.keepNames)
		defer p.Close()
		has := func(a string) bool {
			return p.state.Load().names.has(t.Context(), "orders.svc", netip.MustParseAddr(a))
		}
		synctest.Wait()
		if !has("10.0.1.5") {
			t.Error("not looked up at the start")
		}
		dns.set("orders.svc", "10.0.1.6")
		time.Sleep(30 * time.Second)
		synctest.Wait()
		if has("10.0.1.5") || !has("10.0.1.6") {
			t.Error("not looked up within 30 seconds")
		}
		dns.setFail(errors.New("server failure"))
		time.Sleep(time.Minute)
		synctest.Wait()
		if !has("10.0.1.6") {
			t.Error("a failed lookup took the address away")
		}
		dns.setFail(&net.DNSError{Err: "no such host", IsNotFound: true})
		time.Sleep(30 * time.Second)
		synctest.Wait()
		if has("10.0.1.6") {
			t.Error("a name that is gone still has an address")
		}
	})
}

// A resolver that hangs holds up neither a reload nor, for longer than its
// own patience, a connection.
func TestHangingResolver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := namesConfig(t, &fakeDNS{})
		cfg.Resolve = func(ctx context.Context, _, _ string) ([]netip.Addr, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		p, err := newProxy(cfg, &fakeLink{})
		if err != nil {
			t.Fatal(err)
		}
		p.background.Go(p.keepNames)
		start := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		to, f := target(ctx, p.state.Load(), KindTransparent, "10.0.0.7:5432")
		if f != nil || to.Peer != "net" || time.Since(start) > time.Second {
			t.Errorf("%v, %v after %v", to, f, time.Since(start))
		}
		if err := p.Update(cfg); err != nil {
			t.Error(err)
		}
		p.Close()
	})
}

func TestRefusalLinesAreLimited(t *testing.T) {
	var l lineLimiter
	now := time.Unix(1, 0)
	lines := 0
	for range 1000 {
		if _, ok := l.take(now); ok {
			lines++
		}
	}
	if lines != lineBurst {
		t.Errorf("%d lines at once, want %d", lines, lineBurst)
	}
	skipped, ok := l.take(now.Add(time.Second))
	if !ok || skipped != 1000-lineBurst {
		t.Errorf("after a second: %v, %d skipped", ok, skipped)
	}
	if skipped, _ := l.take(now.Add(time.Second)); skipped != 0 {
		t.Errorf("%d skipped are told twice", skipped)
	}
}

func TestRefusals(t *testing.T) {
	n := forwardNodes(t, newTarget(t, "", echo), Timeouts{})
	for range 40 {
		askExit(t, n.db, "eve", "app")
	}
	askExit(t, n.db, "web", "other")
	got := n.db.Refusals()
	if len(got) != 32 || got[0].Target != "other" || got[0].Result != ResultUnknownService || got[1].Peer != "eve" || got[1].Result != ResultDenied {
		t.Errorf("%d refusals, the last %+v", len(got), got[0])
	}
}

// What is remembered of a name has a bound, and the latest stays.
func TestRememberedAddressesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var f family
		a := netip.MustParseAddr("10.0.0.1")
		var last netip.Addr
		for range 2 * maxSeen {
			last, a = a, a.Next()
			f.remember([]netip.Addr{last})
			time.Sleep(time.Millisecond)
		}
		if len(f.seen) > maxSeen {
			t.Errorf("%d remembered", len(f.seen))
		}
		if _, ok := f.sinceSeen(last); !ok {
			t.Error("the latest is forgotten")
		}
		time.Sleep(nameMemory)
		if _, ok := f.sinceSeen(last); ok {
			t.Error("remembered for too long")
		}
		f.remember([]netip.Addr{a})
		if len(f.seen) != 1 {
			t.Errorf("%d remembered after that", len(f.seen))
		}
	})
}

// However many connections would go direct, past however many names: a server
// of names is asked a few hundred questions a second.
func TestManyNamesAreFewQueries(t *testing.T) {
	for _, tt := range []struct{ names, most int }{{1, 25}, {50, 300}, {400, 900}} {
		synctest.Test(t, func(t *testing.T) {
			dns := &fakeDNS{}
			cfg := Config{Resolve: dns.resolve}
			for i := range tt.names {
				name := fmt.Sprintf("n%d.svc", i)
				dns.set(name, "10.0.0.5")
				cfg.Routes = append(cfg.Routes, routeTo(t, name+":443", Target{Peer: "db"}))
			}
			cfg.Routes = append(cfg.Routes, routeTo(t, "*:443", Target{Direct: true}))
			p, err := newProxy(cfg, &fakeLink{})
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			for begun := time.Now(); time.Since(begun) < time.Second; {
				if to, f := target(t.Context(), p.state.Load(), KindSOCKS5, "10.0.9.9:443"); f != nil || !to.Direct {
					t.Fatalf("%+v, %v", to, f)
				}
			}
			if n := dns.asked("ip4 "); n > tt.most {
				t.Errorf("%d names: %d questions in a second", tt.names, n)
			}
		})
	}
}
