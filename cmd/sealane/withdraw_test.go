package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sealane/sealane/cmd/sealane/internal/config"
	"github.com/sealane/sealane/mux"
	"github.com/sealane/sealane/proxy"
	"github.com/sealane/sealane/session"
)

// parsed is a config with the peers a and b, and what text adds.
func parsed(t *testing.T, dir, text string) *config.Config {
	t.Helper()
	file := filepath.Join(dir, "sealane.yaml")
	write(t, file, "identity: node.key\n"+text, 0o644)
	c, err := config.Load(file, func(string) string { return "" })
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestWithdraw has for each thing that a config can give somebody a next config
// that takes it away, and one that does not.
func TestWithdraw(t *testing.T) {
	dir := folder(t, newKey(t), "")
	for _, name := range []string{"one", "two", "other"} {
		write(t, filepath.Join(dir, name), name, 0o600)
	}
	k1, k2, k3 := newKey(t).Public(), newKey(t).Public(), newKey(t).Public()
	user := func(names ...string) string {
		s := ""
		for _, n := range names {
			s += fmt.Sprintf("{name: %s, password_file: %s}, ", strings.TrimSuffix(n, "-other"), map[bool]string{true: "other", false: n}[strings.HasSuffix(n, "-other")])
		}
		return "users: [" + strings.TrimSuffix(s, ", ") + "]"
	}
	peers := fmt.Sprintf("peers: [{name: a, keys: [%q, %q]}, {name: b, keys: [%q]}]\n", k1, k2, k3)
	aLess := fmt.Sprintf("peers: [{name: a, keys: [%q]}, {name: b, keys: [%q]}]\n", k1, k3)
	alone := fmt.Sprintf("peers: [{name: a, keys: [%q, %q]}]\n", k1, k2)
	swapped := fmt.Sprintf("peers: [{name: a, keys: [%q, %q]}, {name: b, keys: [%q]}]\n", k1, k3, k2)
	for _, c := range []struct{ name, base, next, gone string }{
		{"nothing", peers, peers, ""},
		{"more of all", peers + `listeners: [{socks5: "127.0.0.1:1080"}]
routes: [{match: "*.x:1", to: {peer: a}}]
services: [{name: s, address: "127.0.0.1:1", allow: [a]}]
egress: [{allow: [a], match: ["10.0.0.0/8:1"]}]
`, peers + `listen: :7423
admin: 127.0.0.1:7424
listeners: [{connect: "127.0.0.1:1081"}, {socks5: "127.0.0.1:1080"}]
routes: [{match: "*.x:1", to: {peer: a}}, {match: "*.y:1", to: {peer: a}}]
services: [{name: s, address: "127.0.0.1:1", allow: [a, b]}, {name: r, address: "127.0.0.1:2", allow: [a]}]
egress: [{allow: [b], match: ["10.0.0.0/8:2"]}, {allow: [a, b], match: ["10.0.0.0/8:1", "10.0.0.0/8:2"]}]
`, ""},
		{"peer", peers, alone, "peer b"},
		{"key", peers, aLess, "1 key of peer a"},
		{"keys of each other", peers, swapped, "1 key of peer a; peer b"},
		{"peer with its service", peers + `services: [{name: s, address: "127.0.0.1:1", allow: [b]}]`, alone, "peer b; service s"},
		{"service", peers + `services: [{name: s, address: "127.0.0.1:1", allow: [a]}]`, peers, "service s"},
		{"allow", peers + `services: [{name: s, address: "127.0.0.1:1", allow: [a, b]}]`, peers + `services: [{name: s, address: "127.0.0.1:1", allow: [a]}]`, "service s for 1 peer"},
		{"address", peers + `services: [{name: s, address: "127.0.0.1:1", allow: [a]}]`, peers + `services: [{name: s, address: "127.0.0.1:2", allow: [a]}]`, "service s, which is to be at another address"},
		{"egress", peers + `egress: [{allow: [a], match: ["*:1"]}]`, peers + `egress: [{allow: [a], match: ["*.x:1"]}]`, "egress that the new rules do not allow"},
		{"route", peers + `routes: [{match: "*:1", to: direct}]`, peers + `routes: [{match: "*:1", to: {peer: a}}]`, "routes that lead elsewhere by the new ones"},
		{"route ahead", peers + `routes: [{match: "*:1", to: direct}]`, peers + `routes: [{match: "*.x:1", to: {peer: a}}, {match: "*:1", to: direct}]`, "routes that lead elsewhere by the new ones"},
		{"listener", peers + `listeners: [{socks5: "127.0.0.1:1080"}]`, peers + `listeners: [{socks5: "127.0.0.1:1081"}]`, "listener socks5 127.0.0.1:1080"},
		{"listener on more addresses", peers + `listeners: [{socks5: "127.0.0.1:1080"}]`, peers + `listeners: [{socks5: "localhost:1080"}]`, ""},
		{"listener on fewer", peers + `listeners: [{socks5: "localhost:1080"}]`, peers + `listeners: [{socks5: "127.0.0.1:1080"}]`,
			"listener socks5 localhost:1080 but for 127.0.0.1:1080"},
		{"listener on others", peers + `listeners: [{socks5: "127.0.0.1:1080"}]`, peers + `listeners: [{socks5: "127.0.0.2:1080"}]`, "listener socks5 127.0.0.1:1080"},
		{"forward", peers + `listeners: [{forward: "127.0.0.1:1", to: {peer: a, service: s}}]`, peers + `listeners: [{forward: "127.0.0.1:1", to: {peer: b, service: s}}]`, "listener forward 127.0.0.1:1"},
		{"users", peers + `listeners: [{socks5: "127.0.0.1:1080", ` + user("one", "two") + `}]`, peers + `listeners: [{socks5: "127.0.0.1:1080", ` + user("two") + `}]`, "users of listener socks5 127.0.0.1:1080"},
		{"password", peers + `listeners: [{socks5: "127.0.0.1:1080", ` + user("one") + `}]`, peers + `listeners: [{socks5: "127.0.0.1:1080", ` + user("one-other") + `}]`, "listener socks5 127.0.0.1:1080: it has no user in both configs"},
		{"users at all", peers + `listeners: [{socks5: "127.0.0.1:1080"}]`, peers + `listeners: [{socks5: "127.0.0.1:1080", ` + user("one") + `}]`, "users of listener socks5 127.0.0.1:1080"},
		{"no users", peers + `listeners: [{socks5: "127.0.0.1:1080", ` + user("one") + `}]`, peers + `listeners: [{socks5: "127.0.0.1:1080"}]`, ""},
		{"mode", peers + `listeners: [{socks5: "unix:s", mode: 0666}]`, peers + `listeners: [{socks5: "unix:s", mode: 0660}]`, "users of listener socks5 unix:" + dir + "/s"},
		{"owner", peers + `listeners: [{socks5: "unix:s", owner: ":1"}]`, peers + `listeners: [{socks5: "unix:s", owner: ":2"}]`, "listener socks5 unix:" + dir + "/s"},
		{"listen", "listen: :7423\n", "{}", "listen :7423"},
		{"listen elsewhere", "listen: :7423\n", "listen: :7424\n", ""},
		{"admin", "admin: 127.0.0.1:7424\n", "{}", "admin 127.0.0.1:7424"},
		{"admin elsewhere", "admin: 127.0.0.1:7424\n", "admin: 127.0.0.1:7425\n", ""},
		{"private admin", "admin: 127.0.0.1:7424\n", "admin: unix:s\n", "admin 127.0.0.1:7424"},
		{"local admin", "admin: 0.0.0.0:7424\nadmin_unsafe: true\n", "admin: 127.0.0.1:7425\n", "admin 0.0.0.0:7424"},
	} {
		base := parsed(t, dir, strings.ReplaceAll(c.base, "{}", ""))
		next := parsed(t, dir, strings.ReplaceAll(c.next, "{}", ""))
		left, gone := withdraw(base, next)
		if got := strings.Join(gone, "; "); got != c.gone {
			t.Errorf("%s: withdrawn %q, want %q", c.name, got, c.gone)
		}
		if why := exceeds(left, next); why != "" {
			t.Errorf("%s: %s", c.name, why)
		}
	}
}

// exceeds says what a config that was cut down still gives that next does not.
func exceeds(left, next *config.Config) string {
	for _, p := range left.Peers {
		i := slices.IndexFunc(next.Peers, func(o mux.Peer) bool { return o.Name == p.Name })
		if i < 0 || slices.ContainsFunc(p.Keys, func(k session.PublicKey) bool { return !slices.Contains(next.Peers[i].Keys, k) }) {
			return fmt.Sprintf("left is %+v", p)
		}
	}
	for _, l := range left.Listeners {
		i := counterpart(l, next.Listeners)
		if i < 0 || !next.Listeners[i].Address.Covers(l.Address) || permissions(l)&^permissions(next.Listeners[i]) != 0 {
			return fmt.Sprintf("left is %+v", l)
		}
		users := next.Listeners[i].Users
		stranger := func(u proxy.User) bool { return !slices.Contains(users, u) }
		if len(users) > 0 && (len(l.Users) == 0 || slices.ContainsFunc(l.Users, stranger)) {
			return fmt.Sprintf("left is %+v", l)
		}
	}
	for _, s := range left.Services {
		i := slices.IndexFunc(next.Services, func(o proxy.Service) bool { return o.Name == s.Name })
		if i < 0 || slices.ContainsFunc(s.Allow, func(peer string) bool { return !slices.Contains(next.Services[i].Allow, peer) }) {
			return fmt.Sprintf("left is %+v", s)
		}
	}
	if left.AdminUnsafe && !next.AdminUnsafe {
		return "admin_unsafe is left"
	}
	return ""
}

// TestRefusedReloadWithdraws: a reload that asks for a port outside the
// sandbox is refused, and what it takes away is gone all the same; a later one
// gives it back.
func TestRefusedReloadWithdraws(t *testing.T) {
	near, far := pair(t, "")
	if !strings.Contains(fmt.Sprint(far.waitFor("sandbox", 1)["applied"]), "listens on TCP ports") {
		if os.Getenv("CI") != "" {
			t.Fatal("this kernel restricts less")
		}
		t.Skip("this kernel restricts less")
	}
	path := filepath.Join(far.dir, "sealane.yaml")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	good := string(text)
	const outside = "listeners: [{socks5: \"127.0.0.1:1\"}]\n"
	refused := 0
	refuse := func(config string, withdrawn ...string) {
		t.Helper()
		write(t, path, config, 0o644)
		far.signal(syscall.SIGHUP)
		refused++
		line := far.waitFor("reload refused; the old config stays in force", refused)
		if got := fmt.Sprint(line["withdrawn"]); len(withdrawn) > 0 && got != fmt.Sprint(withdrawn) || len(withdrawn) == 0 && line["withdrawn"] != nil {
			t.Errorf("withdrawn %s, want %v", got, withdrawn)
		}
		if got := fmt.Sprint(line["errors"]); !strings.Contains(got, "listen on TCP port 1 (socks5 listener)") ||
			!strings.Contains(got, "add it to sandbox.ports and restart once") {
			t.Errorf("the refusal says %s", got)
		}
	}
	reset := func(c net.Conn) {
		t.Helper()
		c.SetDeadline(time.Now().Add(time.Minute))
		if _, err := io.ReadAll(c); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the connection ended with %v, not a reset", err)
		}
	}
	// A connection that is refused at once may be reset before the dial returns.
	try := func() (net.Conn, error) {
		c, err := net.Dial("tcp", near.forward())
		if err != nil {
			return nil, err
		}
		t.Cleanup(func() { c.Close() })
		return c, talk(c, "hello\n")
	}
	works := func() (c net.Conn) {
		t.Helper()
		eventually(t, func() string { // a link may have to come up again
			var err error
			if c, err = try(); err != nil {
				return err.Error()
			}
			return ""
		})
		return c
	}
	fails := func() {
		t.Helper()
		if _, err := try(); err == nil {
			t.Error("a new connection is served")
		}
	}
	c := works()
	refuse(good + outside)
	if err := talk(c, "nothing was taken\n"); err != nil {
		t.Error(err)
	}
	// The service's allow list loses the peer, among others.
	second := newKey(t).Public()
	withTwo := strings.Replace(good, "peers: [", fmt.Sprintf("peers: [{name: second, keys: [%q]}, ", second), 1)
	refuse(strings.Replace(withTwo, "allow: [near]", "allow: [second]", 1)+outside, "service echo")
	reset(c)
	fails()
	// The next one, refused too, leaves it alone: it is back.
	refuse(good + outside)
	c = works()
	// Without the peer its links go, too.
	write(t, path, good, 0o644)
	far.signal(syscall.SIGHUP)
	far.waitFor("config reloaded", 1)
	if err := talk(c, "a good reload\n"); err != nil {
		t.Error(err)
	}
	downs := len(far.lines("link down"))
	refuse(fmt.Sprintf("identity: node.key\npeers: [{name: second, keys: [%q]}]\n", second)+outside, "peer near", "service echo", "listen "+fmt.Sprint(listenKey(good)))
	reset(c)
	eventually(t, func() string {
		if len(far.lines("link down")) == downs {
			return "the link of the removed peer is still up"
		}
		return ""
	})
}

// listenKey is the value of listen in a config.
func listenKey(config string) string {
	_, rest, _ := strings.Cut(config, "listen: ")
	value, _, _ := strings.Cut(rest, "\n")
	return value
}
