package proxy

import (
	"bufio"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/sealane/sealane/mux"
)

// TestWithinExit: an exit gives what both policies give, and running streams
// that one of them takes away are reset.
func TestWithinExit(t *testing.T) {
	dials := &dialLog{}
	service := func(name, address string, allow ...string) Service {
		e, err := ParseEndpoint(address)
		if err != nil {
			t.Fatal(err)
		}
		return Service{Name: name, Address: e, Allow: allow}
	}
	cfg := Config{
		Services: []Service{
			service("both", "10.0.0.1:1", "web", "job"), service("moved", "10.0.0.2:2", "web"), service("gone", "10.0.0.3:3", "web"),
		},
		Egress: []EgressRule{egressFor(t, "web", "10.0.0.0/8:80-90", "127.0.0.1:80"), egressFor(t, "job", "10.0.0.0/8:80", "*:443")},
		Within: &Policy{
			Services: []Service{
				service("both", "10.0.0.1:1", "web"), service("moved", "10.0.0.22:2", "web"), service("added", "10.0.0.4:4", "web"),
			},
			Egress: []EgressRule{egressFor(t, "web", "10.1.0.0/16:*", "*:80", "192.0.2.0/24:80"), egressFor(t, "job", "*:*")},
		},
		Dial: dials.dial,
	}
	n := newNode(t, cfg, &fakeLink{})
	check := func(rows [][3]string) {
		t.Helper()
		for _, row := range rows {
			got := askExit(t, n, row[0], row[1])
			if dialed := dials.take(); dialed != row[2] || (got.Status == mux.StatusOK) != (row[2] != "") {
				t.Errorf("%s to %s: %v (%s), dialed %q, want %q", row[0], row[1], got.Status, got.Text, dialed, row[2])
			}
			if strings.Contains(got.Text, "reload") {
				t.Errorf("the peer is told %q", got.Text)
			}
		}
	}
	check([][3]string{
		{"web", "both", "10.0.0.1:1"},
		{"job", "both", ""},
		{"web", "moved", ""},
		{"web", "gone", ""},
		{"web", "added", ""},
		{"web", "10.1.2.3:85", "10.1.2.3:85"},
		{"web", "10.2.2.3:85", ""},
		{"web", "10.2.2.3:80", "10.2.2.3:80"},
		{"web", "10.1.2.3:91", ""},
		{"web", "192.0.2.1:80", ""},
		{"web", "127.0.0.1:80", ""}, // which "*" does not name
		{"job", "10.0.0.9:80", "10.0.0.9:80"},
		{"job", "127.0.0.1:443", ""},
	})
	cfg.Within = nil
	if err := n.update(cfg); err != nil {
		t.Fatal(err)
	}
	check([][3]string{{"job", "both", "10.0.0.1:1"}, {"web", "moved", "10.0.0.2:2"}, {"web", "127.0.0.1:80", "127.0.0.1:80"}})
}

// TestWithinRevokes: a running stream ends by the second policy as by the first.
func TestWithinRevokes(t *testing.T) {
	services := serviceAt(t, newTarget(t, "", echo))
	exit := Config{Services: services}
	n := newNodes(t, Config{Listeners: []Listener{listenOn(t, KindForward, "127.0.0.1:0")}}, exit)
	c := dialTo(t, "tcp", n.web.addr(0))
	say(t, c, "before")
	exit.Within = &Policy{Services: services}
	if err := n.db.update(exit); err != nil {
		t.Fatal(err)
	}
	say(t, c, "still")
	exit.Within = &Policy{}
	if err := n.db.update(exit); err != nil {
		t.Fatal(err)
	}
	wantReset(t, c)
}

// TestWithinRoutes: an app gets where both tables lead.
func TestWithinRoutes(t *testing.T) {
	dials := &dialLog{}
	db, job, direct := Target{Peer: "db"}, Target{Peer: "job"}, Target{Direct: true}
	link := &fakeLink{self: "web", exits: make(map[string]*Proxy)}
	for _, peer := range []string{"db", "job"} {
		link.exits[peer] = newNode(t, Config{Egress: []EgressRule{egressFor(t, "web", "*:*")}, Dial: dials.dial}, link).Proxy
	}
	n := newNode(t, Config{
		Listeners: []Listener{listenOn(t, KindConnect, "127.0.0.1:0")},
		Routes: []Route{
			routeTo(t, "10.1.0.0/16:*", db), routeTo(t, "10.2.0.0/16:*", db), routeTo(t, "10.3.0.0/16:*", Target{Peer: "removed"}), routeTo(t, "*:80", direct),
		},
		Peers: []string{"db", "job"},
		Within: &Policy{Routes: []Route{
			routeTo(t, "10.2.0.0/16:*", job), routeTo(t, "10.1.0.0/16:*", db), routeTo(t, "10.4.0.0/16:*", db), routeTo(t, "10.3.0.0/16:80", direct),
			routeTo(t, "10.5.0.0/16:80", direct),
		}},
		Dial: dials.dial,
	}, link)
	for to, want := range map[string]bool{
		"10.1.0.1:80": true,
		"10.2.0.1:80": false, // to another peer
		"10.3.0.1:80": false, // the peer is gone, and direct is not what it was
		"10.4.0.1:81": false, // only the second leads there
		"10.5.0.1:80": true,
		"10.6.0.1:80": false, // no longer direct
	} {
		c := dialTo(t, "tcp", n.addr(0))
		fmt.Fprintf(c, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n", to, to)
		r, err := http.ReadResponse(bufio.NewReader(c), &http.Request{Method: http.MethodConnect})
		if err != nil {
			t.Fatal(err)
		}
		dialed := dials.take()
		if (r.StatusCode == http.StatusOK) != want || (dialed != "") != want {
			t.Errorf("%s: status %d, dialed %q, want %v", to, r.StatusCode, dialed, want)
		}
	}
}

// TestWithinKeepsSealed: by the second table an address of the name is a
// peer's, so it does not go direct by the first.
func TestWithinKeepsSealed(t *testing.T) {
	dns, dials := &fakeDNS{}, &dialLog{}
	dns.set("app.x", "10.0.0.1")
	dns.set("free.x", "10.9.0.1")
	cfg := Config{
		Listeners: []Listener{listenOn(t, KindConnect, "127.0.0.1:0")},
		Routes:    []Route{routeTo(t, "*.x:80", Target{Direct: true})},
		Within: &Policy{Routes: []Route{
			routeTo(t, "10.0.0.0/16:80", Target{Peer: "db"}), routeTo(t, "*.x:80", Target{Direct: true}),
		}},
		Resolve: dns.resolve, Dial: dials.dial,
	}
	n := newNode(t, cfg, &fakeLink{})
	for to, want := range map[string]string{"app.x:80": "", "free.x:80": "10.9.0.1:80"} {
		c := dialTo(t, "tcp", n.addr(0))
		fmt.Fprintf(c, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n", to, to)
		if _, err := http.ReadResponse(bufio.NewReader(c), &http.Request{Method: http.MethodConnect}); err != nil {
			t.Fatal(err)
		}
		if dialed := dials.take(); dialed != want {
			t.Errorf("%s: dialed %q, want %q", to, dialed, want)
		}
	}
}
