//go:build linux

package netlab_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sealane/sealane/k8s/netlab"
)

// A second address of the database's host, which is not always the name's.
const other4 = "10.2.0.3"

// dnsApp and dnsDB are the configs of sidecars whose DNS decides.
const (
	dnsApp = `
identity: app.key
admin: 127.0.0.1:7424
timeouts: {dial: 4s}
peers: [{name: db, keys: [%s], address: "` + db4 + `:7423"}]
listeners:
  - transparent: 127.0.0.1:15006
  - socks5: 127.0.0.1:1080
routes:
  - {match: "db.internal:8080", to: {peer: db, service: http}}
  - {match: "*.internal:8080", to: {peer: db}}
  - {match: "0.0.0.0/0:*", to: direct}
`
	dnsDB = `
identity: db.key
listen: "[::]:7423"
peers: [{name: app, keys: [%s]}]
services: [{name: http, address: "127.0.0.1:8080", allow: [app]}]
egress: [{allow: [app], match: ["*.internal:8080"]}]
`
)

// startByDNS starts both sidecars with a name server each side asks, and returns what changes its answers.
func (l *lab) startByDNS(t *testing.T) (zone func(string)) {
	t.Helper()
	file := filepath.Join(l.dir, "zone")
	zone = func(text string) {
		t.Helper()
		next := file + ".next"
		if err := os.WriteFile(next, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(next, file); err != nil {
			t.Fatal(err)
		}
	}
	zone("db.internal. " + db4)
	for _, h := range []*netlab.Host{l.app, l.db} {
		h.ResolveBy("nameserver 127.0.0.1\nsearch corp.lan\noptions ndots:5 timeout:1 attempts:2\n")
		h.Start(helper("dns", "127.0.0.1:53", file)...).Expect("listening", 10*time.Second)
	}
	appKey, dbKey := l.keygen(t, "app"), l.keygen(t, "db")
	for name, text := range map[string]string{"app": fmt.Sprintf(dnsApp, dbKey), "db": fmt.Sprintf(dnsDB, appKey)} {
		if err := os.WriteFile(filepath.Join(l.dir, name+".yaml"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return zone
}

// plaintext runs curl and returns how it went, and whether the answer crossed the router in clear.
func (l *lab) plaintext(t *testing.T, args ...string) (out string, err error, clear bool) {
	t.Helper()
	capture := l.router.Capture("app")
	out, err = l.app.Try(append([]string{"curl", "-sS", "--max-time", "20"}, args...)...)
	capture.Stop()
	for _, f := range capture.Flows() {
		clear = clear || len(f.Data) > 0 && f.Src.Port() != linkPort && f.Dst.Port() != linkPort
	}
	return out, err, clear
}

// The address of a sealed route's name never gets plaintext, whatever the name server does, or somebody in front of it;
// an address that is known to be another's does.
func TestNoPlaintextByDNS(t *testing.T) {
	l := newLab(t)
	l.startHTTP()
	l.db.Run("ip", "addr", "add", other4+"/24", "dev", "eth0")
	l.db.Run("ip", "addr", "add", "10.2.0.4/24", "dev", "eth0")
	zone := l.startByDNS(t)
	l.app.Run(redirect("up")...)
	l.startSidecar("db")
	app := l.startSidecar("app")
	l.awaitLink(t)

	check := func(what, addr string, works, wantClear bool) {
		t.Helper()
		out, err, clear := l.plaintext(t, "http://"+addr+":8080/")
		if got := err == nil && strings.Contains(out, marker("curl")); got != works || clear != wantClear {
			t.Errorf("%s, %s: works: %v, in clear: %v (%v)\n%s", what, addr, got, clear, err, out)
		}
	}
	check("its address", db4, true, false)
	check("another's", other4, true, true)
	zone("db.internal. " + other4)
	check("after a change, the new address", other4, true, false)
	check("after a change, another's", "10.2.0.4", true, true)
	check("after a change, the old address", db4, false, false)
	zone("db.internal. " + other4 + "\ndb.internal. " + db4)
	check("two addresses", db4, true, false)
	for _, trouble := range []string{"SERVFAIL", "NXDOMAIN", "SILENCE", "other.internal. 10.2.0.9"} {
		zone(trouble)
		check(trouble, "10.2.0.4", false, false)
		zone("db.internal. " + db4 + "\ndb.internal. " + other4)
		check("after "+trouble, "10.2.0.4", true, true)
	}
	// The sandbox lets the kernel be asked which addresses are this host's: a port that this process listens on is only
	// out of reach here.
	l.db.Start(helper("http", ":1080", marker("curl"))...).Expect("listening", 10*time.Second)
	if out, err, _ := l.plaintext(t, "http://"+other4+":1080/"); err != nil || !strings.Contains(out, marker("curl")) {
		t.Errorf("an own port's number at another host: %v\n%s", err, out)
	}
	app.Expect("route db.internal:8080 comes before the direct one, and whether 10.2.0.4 is an address of db.internal is unknown: lookup db.internal", 5*time.Second)
}

// The name that the rules were asked about is the one that is looked up at the exit, which has a search domain.
func TestSearchDomainsAreNotForNamesFromOutside(t *testing.T) {
	l := newLab(t)
	l.startHTTP()
	zone := l.startByDNS(t)
	zone("app.internal.corp.lan. " + db4)
	l.startSidecar("db")
	app := l.startSidecar("app")
	l.awaitLink(t)
	curl := func(host string) (string, error) {
		return l.app.Try("curl", "-sS", "--max-time", "20", "--socks5-hostname", "127.0.0.1:1080", "http://"+host+":8080/")
	}
	if out, err := curl("app.internal"); err == nil {
		t.Errorf("app.internal led to the address of app.internal.corp.lan: %s", out)
	}
	app.Expect("the peer says: stream refused: name not found", 5*time.Second)
	zone("app.internal. " + db4)
	for _, host := range []string{"app.internal", "app.internal."} {
		if out, err := curl(host); err != nil || !strings.Contains(out, marker("curl")) {
			t.Errorf("%s: %v: %s", host, err, out)
		}
	}
}
