package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/sealane/sealane/proxy"
)

// TestTroubleshooting makes every trouble of docs/troubleshooting.md happen.
// Each heading of the third level there is an error text, with ... for what
// differs, and must be among the texts that the troubles gave.
func TestTroubleshooting(t *testing.T) {
	doc, err := os.ReadFile(filepath.Join("..", "..", "docs", "troubleshooting.md"))
	if err != nil {
		t.Fatal(err)
	}
	headings := regexp.MustCompile("(?m)^### `(.*)`$").FindAllStringSubmatch(string(doc), -1)
	if len(headings) < 30 {
		t.Fatalf("only %d error texts found", len(headings))
	}
	var mu sync.Mutex
	var given []string
	t.Run("all", func(t *testing.T) {
		for name, trouble := range troubles {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				said := trouble(t)
				mu.Lock()
				defer mu.Unlock()
				given = append(given, said...)
			})
		}
	})
	for _, h := range headings {
		pattern := strings.ReplaceAll(regexp.QuoteMeta(h[1]), `\.\.\.`, `.*`)
		if !slices.ContainsFunc(given, regexp.MustCompile(pattern).MatchString) {
			t.Errorf("nothing says %q any more", h[1])
		}
	}
	if t.Failed() {
		slices.Sort(given)
		t.Logf("what was said:\n%s", strings.Join(slices.Compact(given), "\n"))
	}
}

// troubles give the texts that a person reads.
var troubles = map[string]func(*testing.T) []string{
	"commands":    commandTroubles,
	"configs":     configTroubles,
	"start":       startTroubles,
	"links":       linkTroubles,
	"connections": connectionTroubles,
	"endings":     endingTroubles,
	"reload":      reloadTroubles,
	"admin":       adminTroubles,
}

// said are the texts of a sidecar's log, field by field.
func (s *sidecar) said() []string {
	var out []string
	for line := range strings.Lines(s.text()) {
		var fields map[string]any
		if json.Unmarshal([]byte(line), &fields) != nil {
			out = append(out, line)
			continue
		}
		for _, value := range fields {
			list, ok := value.([]any)
			if !ok {
				list = []any{value}
			}
			for _, v := range list {
				out = append(out, fmt.Sprint(v))
			}
		}
	}
	return out
}

// output runs a command that must fail, and returns what it prints.
func output(t *testing.T, args ...string) []string {
	t.Helper()
	var out bytes.Buffer
	p := &process{args: args, stdout: io.Discard, stderr: &out, getenv: func(string) string { return "" }}
	if code := execute(p); code == exitOK {
		t.Errorf("sealane %s worked", strings.Join(args, " "))
	}
	return strings.Split(strings.TrimSpace(out.String()), "\n")
}

func commandTroubles(t *testing.T) []string {
	dir := t.TempDir()
	return slices.Concat(
		output(t, "check"),
		output(t, "status", "--admin", "127.0.0.1:1"),
		output(t, "status", "--admin", "unix:"+filepath.Join(dir, "admin.sock")),
		output(t, "pubkey", filepath.Join(dir, "none")),
		output(t, "keygen", "-o", dir),
	)
}

func configTroubles(t *testing.T) []string {
	own, other := newKey(t), newKey(t).Public()
	dir := t.TempDir()
	write(t, filepath.Join(dir, "node.key"), string(own.PEM()), 0o600)
	write(t, filepath.Join(dir, "open.key"), string(own.PEM()), 0o644)
	write(t, filepath.Join(dir, "group.key"), string(own.PEM()), 0o640)
	if os.Geteuid() == 0 { // of a group that this process is not in
		if err := os.Chown(filepath.Join(dir, "group.key"), 0, 54321); err != nil {
			t.Fatal(err)
		}
	}
	write(t, filepath.Join(dir, "bad.key"), "no key", 0o600)
	peer := fmt.Sprintf("peers: [{name: db, keys: [%q], address: \"db:7423\"}]\n", other)
	var texts []string
	for _, config := range []string{
		"{}",
		"identity: none.key",
		"identity: open.key",
		"identity: group.key",
		"identity: bad.key",
		"identity: node.key\nidentity: node.key",
		"identity: node.key\nlisteners: [{forward: \"127.0.0.1:1\", too: x}]",
		"identity: node.key\nlisteners: [{forward: \"127.0.0.1:1\", to: {peer: x, service: y}}]",
		"identity: node.key\npeers: [{name: db, keys: [abc]}]",
		fmt.Sprintf("identity: node.key\nlisten: :1\npeers: [{name: a, keys: [%q]}, {name: b, keys: [%q]}]", other, other),
		fmt.Sprintf("identity: node.key\nlisten: :1\npeers: [{name: a, keys: [%q]}]", own.Public()),
		"identity: node.key\nlisteners: [{socks5: \":1080\"}]",
		"identity: node.key\nadmin: :7424",
		"identity: node.key\nadmin: 127.0.0.1:1\nlisten: 127.0.0.1:1",
		"identity: node.key\nlisten: :7423\nservices: [{name: s, address: \"127.0.0.1:7423\", allow: [x]}]",
		"identity: node.key\nlisteners: [{socks5: \"unix:s\", owner: \"nosuch:grp\"}]",
		"identity: node.key\nadmin: 127.0.0.1:1\nlisten: 0.0.0.0:1",
		peer + "identity: node.key\negress: [{allow: [db], match: [\"*.internal\", \"2130706433:80\"]}]",
	} {
		write(t, filepath.Join(dir, "sealane.yaml"), config+"\n", 0o644)
		texts = append(texts, output(t, "check", "-c", filepath.Join(dir, "sealane.yaml"))...)
	}
	return texts
}

func startTroubles(t *testing.T) []string {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	// Only root may have such a port, so what others are told is made here.
	texts := []string{bindError("listen", proxy.Endpoint{Network: "tcp", Address: ":80"}, syscall.EACCES).Error()}
	for _, config := range []string{
		"listen: " + taken.Addr().String(),
		"listen: 192.0.2.1:7423",
		"admin: unix:none/admin.sock",
		"listen: systemd:links",
	} {
		s := &sidecar{t: t}
		s.log.WriteString(strings.Join(failedRun(t, folder(t, newKey(t), "%s\n", config)), "\n"))
		texts = append(texts, s.said()...)
	}
	s := startSidecar(t, folder(t, newKey(t), "limits: {streams_per_peer: 1048576}\npeers: [{name: x, keys: [%q], address: \"no-such-host.invalid:1\"}]\n",
		newKey(t).Public()), "--no-sandbox")
	s.waitFor("the peer's name has no address now; check the spelling, dialing goes on", 1)
	return append(texts, s.said()...)
}

func linkTroubles(t *testing.T) []string {
	nearKey, farKey := newKey(t), newKey(t)
	far := startSidecar(t, folder(t, farKey, "listen: 127.0.0.1:0\n"))
	address := far.waitFor("started", 1)["listen"].(string)
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close() // its backlog takes connections that nobody answers
	smtp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	greeted := make(chan struct{})
	defer func() {
		smtp.Close()
		<-greeted
	}()
	go func() {
		defer close(greeted)
		for {
			c, err := smtp.Accept()
			if err != nil {
				return
			}
			io.WriteString(c, "220 mail.example.org ready\r\n")
			io.Copy(io.Discard, c)
			c.Close()
		}
	}()
	fullKey := newKey(t)
	full := startSidecar(t, folder(t, fullKey, "listen: 127.0.0.1:0\nlimits: {links: 1}\npeers: [{name: near, keys: [%q]}]\n", nearKey.Public()))
	near := startSidecar(t, folder(t, nearKey, `
timeouts: {handshake: 5s}
peers:
  - {name: full, keys: [%q], address: %q, links: 2}
  - {name: stranger, keys: [%q], address: %q}
  - {name: wrong, keys: [%q], address: %q}
  - {name: dead, keys: [%q], address: "127.0.0.1:1"}
  - {name: silent, keys: [%q], address: %q}
  - {name: mail, keys: [%q], address: %q}
`, fullKey.Public(), full.waitFor("started", 1)["listen"], farKey.Public(), address, newKey(t).Public(), address, newKey(t).Public(), newKey(t).Public(), silent.Addr(), newKey(t).Public(), smtp.Addr()))
	eventually(t, func() string {
		peers := make(map[any]bool)
		for _, line := range near.lines("no link") {
			peers[line["peer"]] = true
		}
		if len(peers) < 6 {
			return near.text()
		}
		return ""
	})
	knock(address, "GET / HTTP/1.0\r\n\r\n")
	far.waitFor("link refused", 1)
	far.waitFor("link refused: no peer has this key", 1)
	return append(near.said(), far.said()...)
}

// knock connects, says something, and waits for the end, which may come at any
// time: what it is about is refused.
func knock(address, text string) {
	c, err := net.Dial("tcp", address)
	if err != nil {
		return
	}
	defer c.Close()
	io.WriteString(c, text)
	io.Copy(io.Discard, c)
}

// socks is what an app without a password says to a SOCKS5 listener.
func socks(host string, port uint16) string {
	return fmt.Sprintf("\x05\x01\x00\x05\x01\x00\x03%c%s", len(host), host) + string([]byte{byte(port >> 8), byte(port)})
}

func connectionTroubles(t *testing.T) []string {
	nearKey, farKey := newKey(t), newKey(t)
	far := startSidecar(t, folder(t, farKey, `
listen: 127.0.0.1:0
peers: [{name: near, keys: [%q]}, {name: other, keys: [%q]}]
services:
  - {name: private, address: "127.0.0.1:1", allow: [other]}
  - {name: dead, address: "127.0.0.1:1", allow: [near]}
egress: [{allow: [near], match: ["*:8080"]}]
`, nearKey.Public(), newKey(t).Public()))
	dir := folder(t, nearKey, `
timeouts: {dial: 5s}
peers:
  - {name: far, keys: [%q], address: %q}
  - {name: away, keys: [%q], address: "127.0.0.1:1"}
listeners:
  - {forward: "127.0.0.1:0", to: {peer: far, service: private}}
  - {forward: "127.0.0.1:0", to: {peer: far, service: unknown}}
  - {forward: "127.0.0.1:0", to: {peer: far, service: dead}}
  - {forward: "127.0.0.1:0", to: {peer: away, service: any}}
  - {socks5: "127.0.0.1:0"}
  - {socks5: "127.0.0.1:0", users: [{name: app, password_file: password}]}
  - {connect: "127.0.0.1:0"}
routes:
  - {match: "*:8080-8081", to: {peer: far}}
  - {match: "no-such-host.invalid:8082", to: {peer: far}}
  - {match: "*.internal:8083", to: {peer: far}}
  - {match: "127.0.0.0/8:8084", to: {peer: far}}
  - {match: "*:8082-8084", to: direct}
`, farKey.Public(), far.waitFor("started", 1)["listen"], newKey(t).Public())
	write(t, filepath.Join(dir, "password"), "secret\n", 0o600)
	near := startSidecar(t, dir)
	near.waitFor("listening", 7)
	bound := make([]string, 7)
	for i, line := range near.lines("listening") {
		bound[i] = line["address"].([]any)[0].(string)
	}
	near.waitFor("link up", 1)
	for _, address := range bound[:4] {
		knock(address, "")
	}
	knock(bound[4], socks("127.0.0.1", 8080))
	knock(bound[4], socks("10.0.0.1", 8081))
	knock(bound[4], socks("example.org", 25))
	knock(bound[4], socks("192.0.2.1", 8082))
	knock(bound[4], socks("192.0.2.1", 8083))
	knock(bound[4], socks("localhost", 8084))
	knock(bound[5], socks("example.org", 8080)) // which asks for a password
	knock(bound[6], "GET http://example.org/ HTTP/1.1\r\n\r\n")
	gone := dial(t, bound[3]) // whose peer has no link
	gone.(*net.TCPConn).SetLinger(0)
	gone.Close()
	near.waitFor("connection refused", 13)
	far.waitFor("connection refused", 5)
	return append(near.said(), far.said()...)
}

func endingTroubles(t *testing.T) []string {
	near, far := pair(t, "timeouts: {idle: 3s}\n")
	idle := dial(t, near.forward())
	if err := talk(idle, "and then nothing\n"); err != nil {
		t.Fatal(err)
	}
	near.waitFor("connection finished", 1)
	stop, carried, done := make(chan struct{}), make(chan struct{}), make(chan struct{})
	defer close(stop)
	go func() {
		defer close(done)
		c := dial(t, near.forward())
		for first := true; talk(c, "x") == nil; first = false {
			if first {
				close(carried)
			}
			select {
			case <-stop:
				return
			default:
			}
		}
	}()
	select {
	case <-carried:
	case <-done:
		t.Fatal("the second connection never worked")
	}
	far.signal(syscall.SIGKILL)
	near.waitFor("connection finished", 2)
	<-done

	draining, _ := pair(t, "timeouts: {drain: 100ms}\n")
	if err := talk(dial(t, draining.forward()), "an open connection\n"); err != nil {
		t.Fatal(err)
	}
	draining.signal(syscall.SIGTERM)
	draining.wait()
	return append(near.said(), draining.said()...)
}

func reloadTroubles(t *testing.T) []string {
	s := startSidecar(t, folder(t, newKey(t), "admin: 127.0.0.1:0\n"))
	path := filepath.Join(s.dir, "sealane.yaml")
	for i, config := range []string{
		"bad: config\n",
		"identity: node.key\nadmin: 127.0.0.1:0\nlisten: 127.0.0.1:7423\n",
	} {
		write(t, path, config, 0o644)
		s.signal(syscall.SIGHUP)
		s.waitFor("reload refused; the old config stays in force", i+1)
	}
	off := startSidecar(t, folder(t, newKey(t), ""), "--no-sandbox")
	off.waitFor("sandbox off, as --no-sandbox says", 1)
	wide := startSidecar(t, folder(t, newKey(t), "listen: 127.0.0.1:0\npeers: [{name: x, keys: [%q]}]\negress: [{allow: [x], match: [\"*:*\"]}]\n",
		newKey(t).Public()))
	wide.waitFor("sandbox", 1)
	return slices.Concat(s.said(), off.said(), wide.said())
}

func adminTroubles(t *testing.T) []string {
	s := startSidecar(t, folder(t, newKey(t), "admin: 127.0.0.1:0\n"))
	request, err := http.NewRequest(http.MethodGet, "http://"+s.waitFor("started", 1)["admin"].(string)+"/live", nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Host = "sealane.example.org"
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return []string{string(text)}
}

// failedRun runs a sidecar that cannot start, and returns its lines.
func failedRun(t *testing.T, dir string) []string {
	t.Helper()
	var out bytes.Buffer
	p := &process{args: []string{"run", "--no-sandbox", "-c", filepath.Join(dir, "sealane.yaml")}, stdout: &out, stderr: &out, getenv: func(string) string { return "" }}
	if code := execute(p); code != exitError {
		t.Errorf("exit code %d: %s", code, &out)
	}
	return strings.Split(out.String(), "\n")
}
