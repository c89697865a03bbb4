package main

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// freePorts finds ports that are free on every address, below those that the
// kernel gives to clients.
func freePorts(t *testing.T, n int) (ports []string) {
	t.Helper()
	for len(ports) < n {
		port := fmt.Sprint(10000 + rand.IntN(20000))
		if l, err := net.Listen("tcp", ":"+port); err == nil {
			l.Close()
			if !slices.Contains(ports, port) {
				ports = append(ports, port)
			}
		}
	}
	return ports
}

// takes lists which of the loopback addresses take connections on a port.
func takes(port string) (hosts []string) {
	for _, host := range []string{"127.0.0.1", "127.0.0.2", "::1"} {
		if c, err := net.Dial("tcp", net.JoinHostPort(host, port)); err == nil {
			c.Close()
			hosts = append(hosts, host)
		}
	}
	return hosts
}

func hasIPv6() bool {
	l, err := net.Listen("tcp6", "[::1]:0")
	if err == nil {
		l.Close()
	}
	return err == nil
}

// TestReloadAddresses: listen, admin and listeners move between addresses that
// overlap, and trade ports, in reloads that leave connections alone and lead to
// what a start does.
func TestReloadAddresses(t *testing.T) {
	t.Parallel()
	if !hasIPv6() {
		t.Skip("no IPv6 here")
	}
	nearKey, farKey := newKey(t), newKey(t)
	far := startSidecar(t, folder(t, farKey, `
listen: 127.0.0.1:0
peers: [{name: near, keys: [%q]}]
services: [{name: echo, address: %q, allow: [near]}]
`, nearKey.Public(), echo(t)))
	config := func(listen, admin, forward string) string {
		return fmt.Sprintf(`identity: node.key
listen: %q
admin: %q
admin_unsafe: true
peers: [{name: far, keys: [%q], address: %q}]
listeners:
  - forward: %q
    to: {peer: far, service: echo}
`, listen, admin, farKey.Public(), far.waitFor("started", 1)["listen"], forward)
	}
	p := freePorts(t, 3)
	dir := folder(t, nearKey, "")
	path := filepath.Join(dir, "sealane.yaml")
	write(t, path, config("127.0.0.1:"+p[0], "127.0.0.1:"+p[1], "127.0.0.1:"+p[2]), 0o644)
	near := startSidecar(t, dir)
	c := dial(t, "127.0.0.1:"+p[2])
	if err := talk(c, "before"); err != nil {
		t.Fatal(err)
	}
	all := []string{"127.0.0.1", "127.0.0.2", "::1"}
	check := func(what string, links, admin, forward string, reached []string) {
		t.Helper()
		for _, port := range []string{links, admin, forward} {
			if got := takes(port); !slices.Equal(got, reached) {
				t.Errorf("%s: port %s takes connections on %q, want %q", what, port, got, reached)
			}
		}
		for _, host := range reached {
			if err := adminAnswers(host, admin); err != nil {
				t.Errorf("%s: admin on %s: %v", what, host, err)
			}
			if err := talk(dial(t, net.JoinHostPort(host, forward)), "hello"); err != nil {
				t.Errorf("%s: forward on %s: %v", what, host, err)
			}
		}
		if err := talk(c, what); err != nil {
			t.Fatalf("%s: the old connection: %v", what, err)
		}
	}
	check("start", p[0], p[1], p[2], []string{"127.0.0.1"})
	for _, step := range []struct {
		host    string
		reached []string
	}{
		{"0.0.0.0", []string{"127.0.0.1", "127.0.0.2"}},
		{"[::]", all},
		{"localhost", []string{"127.0.0.1", "::1"}},
		{"", all},
		{"[::1]", []string{"::1"}},
		{"0.0.0.0", []string{"127.0.0.1", "127.0.0.2"}},
		{"127.0.0.1", []string{"127.0.0.1"}},
	} {
		write(t, path, config(step.host+":"+p[0], step.host+":"+p[1], step.host+":"+p[2]), 0o644)
		near.reload()
		check(step.host, p[0], p[1], p[2], step.reached)
	}
	// The three trade ports, and take wider addresses at the same time.
	write(t, path, config("localhost:"+p[1], "localhost:"+p[2], "localhost:"+p[0]), 0o644)
	near.reload()
	check("traded", p[1], p[2], p[0], []string{"127.0.0.1", "::1"})

	// A reload that fails at its last step, and takes nothing away, changes nothing.
	taken, err := net.Listen("tcp", "127.0.0.2:"+p[0])
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	write(t, path, config(":"+p[1], ":"+p[2], ":"+p[0]), 0o644)
	near.signal(syscall.SIGHUP)
	near.waitFor("reload refused; the old config stays in force", 1)
	taken.Close()
	check("refused", p[1], p[2], p[0], []string{"127.0.0.1", "::1"})

	// One that takes an address away does so, and no more.
	taken, err = net.Listen("tcp", "127.0.0.2:"+p[1])
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	write(t, path, config("127.0.0.2:"+p[1], "localhost:"+p[2], "[::1]:"+p[0]), 0o644)
	near.signal(syscall.SIGHUP)
	near.waitFor("reload refused; the old config stays in force", 2)
	if got := takes(p[0]); !slices.Equal(got, []string{"::1"}) {
		t.Errorf("the forward takes connections on %q", got)
	}
}

func adminAnswers(host, port string) error {
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	answer, err := client.Get("http://" + net.JoinHostPort(host, port) + "/live")
	if err != nil {
		return err
	}
	answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("status %s", answer.Status)
	}
	return nil
}

// TestRefusedReloadLeavesNoSocket: a reload that fails at its admin address, or
// at a listener, which come after listen, has nothing bound in the end.
func TestRefusedReloadLeavesNoSocket(t *testing.T) {
	p := freePorts(t, 6)
	s := startSidecar(t, folder(t, newKey(t), `
listen: 127.0.0.1:%s
admin: 127.0.0.1:%s
peers: [{name: far, keys: [%q]}]
`, p[0], p[1], newKey(t).Public()), "--no-sandbox") // which would refuse new ports before they are bound
	taken, err := net.Listen("tcp", "127.0.0.1:"+p[2])
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	refused := 0
	reload := func(listen, admin, forward string) {
		s.edit("listen: 127.0.0.1:", "listen: 127.0.0.1:"+listen+" #")
		s.edit("admin: 127.0.0.1:", "admin: 127.0.0.1:"+admin+" #")
		if forward != "" {
			s.edit("peers:", "listeners: [{forward: \"127.0.0.1:"+forward+"\", to: {peer: far, service: s}}]\npeers:")
		}
		s.signal(syscall.SIGHUP)
		refused++
		if e := fmt.Sprint(s.waitFor("reload refused; the old config stays in force", refused)["errors"]); !strings.Contains(e, "address already in use") {
			t.Fatalf("the reload was refused for %s", e)
		}
		for _, port := range []string{listen, admin} {
			if port != p[2] && len(takes(port)) > 0 {
				t.Errorf("a reload was refused, and port %s takes connections", port)
			}
		}
		for _, port := range p[:2] {
			if len(takes(port)) != 1 {
				t.Errorf("a reload was refused, and port %s takes none", port)
			}
		}
	}
	reload(p[3], p[2], "")
	s.edit("peers: [", fmt.Sprintf("peers: [{name: newcomer, keys: [%q]}, ", newKey(t).Public()))
	reload(p[4], p[5], p[2])
	// Nor does it leave series of the peers that it would have brought.
	answer, err := http.Get("http://127.0.0.1:" + p[1] + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil || strings.Contains(string(body), "newcomer") || !strings.Contains(string(body), `peer="far"`) {
		t.Errorf("%v; after a refused reload the metrics are\n%s", err, body)
	}
}
