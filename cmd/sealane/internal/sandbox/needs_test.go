package sandbox

import (
	"reflect"
	"strings"
	"testing"

	"github.com/sealane/sealane/cmd/sealane/internal/config"
	"github.com/sealane/sealane/mux"
	"github.com/sealane/sealane/proxy"
)

func TestNeedsOfAConfig(t *testing.T) {
	n := For(&config.Config{
		Files:  []string{"/c/sealane.yaml", "/c/node.key"},
		Listen: proxy.Endpoint{Network: "tcp", Address: ":7423"},
		Admin:  proxy.Endpoint{Network: "unix", Address: "/run/sealane/admin.sock"},
		Peers:  []mux.Peer{{Name: "db", Addresses: []string{"db.internal:7400", "[::1]:7401"}}, {Name: "web"}},
		Listeners: []proxy.Listener{
			{Kind: proxy.KindSOCKS5, Address: proxy.Endpoint{Network: "tcp", Address: "127.0.0.1:0"}},
			{Kind: proxy.KindForward, Address: proxy.Endpoint{Network: "unix", Address: "@name"}},
			{Kind: proxy.KindForward, Address: proxy.Endpoint{Network: "systemd", Address: "pg"}},
		},
		Services: []proxy.Service{
			{Name: "redis", Address: proxy.Endpoint{Network: "tcp", Address: "127.0.0.1:6379"}},
			{Name: "pg", Address: proxy.Endpoint{Network: "unix", Address: "/run/postgresql/.s.PGSQL.5432"}},
			{Name: "bus", Address: proxy.Endpoint{Network: "unix", Address: "@bus"}},
		},
		Egress: []proxy.EgressRule{{Match: []proxy.Match{match(t, "*.internal:443"), match(t, "10.0.0.0/8:8000-8010")}}},
		Routes: []proxy.Route{
			{Match: match(t, "*:*"), To: proxy.Target{Peer: "db"}},
			{Match: match(t, "10.1.0.0/16:25"), To: proxy.Target{Direct: true}},
		},
		Sandbox: config.Sandbox{Ports: []config.PortRange{{First: 6000, Last: 6999}}, Paths: []string{"/c/extra"}},
	})
	want := Needs{
		Read:    []string{"/c/sealane.yaml", "/c/node.key"},
		Sockets: []string{"/run/sealane"},
		Bind:    []Ports{{7423, 7423, "listen"}, {0, 0, "socks5 listener"}},
		Connect: []Ports{
			{53, 53, "DNS"}, {7400, 7400, "peer db"}, {7401, 7401, "peer db"}, {6379, 6379, "service redis"},
			{443, 443, `egress "*.internal:443"`}, {8000, 8010, `egress "10.0.0.0/8:8000-8010"`}, {25, 25, `direct route "10.1.0.0/16:25"`},
		},
		Abstract: "service bus",
		Room:     Room{Ports: []Ports{{6000, 6999, "sandbox.ports"}}, Paths: []string{"/c/extra"}},
	}
	if !reflect.DeepEqual(n, want) {
		t.Errorf("got  %+v\nwant %+v", n, want)
	}
}

func match(t *testing.T, s string) proxy.Match {
	t.Helper()
	m, err := proxy.ParseMatch(s)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestPortSet(t *testing.T) {
	s := setOf([]Ports{{First: 443, Last: 443}, {First: 8000, Last: 8002}, {First: 8003, Last: 8010}, {First: 0, Last: 0}, {First: 65535, Last: 65535}})
	if got, want := s.String(), "0, 443, 8000-8010, 65535"; got != want {
		t.Errorf("the set is %s, want %s", got, want)
	}
	if !s.covers(Ports{First: 8001, Last: 8004}) || s.covers(Ports{First: 8009, Last: 8011}) {
		t.Error("covers is wrong at the ends of a range")
	}
	if got := setOf(nil).String(); got != "none" {
		t.Errorf("the empty set is %s", got)
	}
}

func TestNoSandbox(t *testing.T) {
	var off *Sandbox
	if err := off.Covers(Needs{Read: []string{"/etc/shadow"}}); err != nil || off.Complete() || off.String() != "off" {
		t.Errorf("a nil sandbox: covers %v, complete %v, %q", err, off.Complete(), off)
	}
	none := &Sandbox{why: "this kernel has no Landlock"}
	if err := none.Covers(Needs{Connect: []Ports{{1, 2, "x"}}}); err != nil || none.Complete() || !strings.Contains(none.String(), "no Landlock") {
		t.Errorf("a sandbox without Landlock: covers %v, complete %v, %q", err, none.Complete(), none)
	}
}

// A config in a home, anybody's, opens that file and not the home. In a folder
// beneath it the folder may be read.
func TestHomesAreShared(t *testing.T) {
	for dir, want := range map[string]bool{
		"/home/ann": true, "/home/ann/sealane": false, "/home": true, "/srv/sealane/home": true, "/srv/sealane": false, "/etc": true,
		"/etc/sealane": false, "/homes/ann": false,
	} {
		if got := isShared(dir, "/srv/sealane/home/"); got != want {
			t.Errorf("%s: %v", dir, got)
		}
	}
	if isShared(".", "") {
		t.Error("the user has no home, and . counts as it")
	}
}
