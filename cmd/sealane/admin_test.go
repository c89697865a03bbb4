package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/sealane/sealane/mux"
	"github.com/sealane/sealane/proxy"
)

// get asks an admin endpoint.
func get(t *testing.T, url string, header http.Header, host string) (*http.Response, string) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range header {
		request.Header[k] = v
	}
	if host != "" {
		request.Host = host
	}
	transport := &http.Transport{DisableKeepAlives: true}
	response, err := (&http.Client{Transport: transport}).Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response, string(body)
}

// startTestDemo starts the demo's world, for tests of what shows its state.
func startTestDemo(t *testing.T) *demo {
	t.Helper()
	d, err := startDemo(zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.close)
	return d
}

func TestAdminPaths(t *testing.T) {
	d := startTestDemo(t)
	base := "http://" + d.near.adminAddress()
	if _, err := d.fetchForward(t.Context()); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		"/live":    "live\n",
		"/ready":   "ready\n",
		"/status":  `"public_key": "` + d.near.cfg.Key.Public().String() + `"`,
		"/metrics": "sealane_link_up{peer=\"app-side\"} 1\n",
		"/":        "<title>sealane</title>",
	} {
		response, body := get(t, base+path, nil, "")
		if response.StatusCode != http.StatusOK || !strings.Contains(body, want) {
			t.Errorf("%s: %s, no %q in %.500s", path, response.Status, want, body)
		}
		for _, header := range []string{"X-Content-Type-Options", "X-Frame-Options", "Cache-Control"} {
			if response.Header.Get(header) == "" {
				t.Errorf("%s: no %s", path, header)
			}
		}
		secret := bytes.Split(d.near.cfg.Key.PEM(), []byte("\n"))[1]
		if strings.Contains(body, string(secret)) {
			t.Errorf("%s shows the private key", path)
		}
	}
	if response, _ := get(t, base+"/other", nil, ""); response.StatusCode != http.StatusNotFound {
		t.Errorf("/other: %s", response.Status)
	}
	response, err := http.Post(base+"/status", "text/plain", nil)
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	http.DefaultClient.CloseIdleConnections()
	if response.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("POST: %s", response.Status)
	}
}

func TestReadySaysWhatIsPending(t *testing.T) {
	dir := folder(t, newKey(t), `
admin: unix:admin.sock
peers: [{name: away, keys: [%q], address: "127.0.0.1:1"}, {name: dials-us, keys: [%q]}]
listen: 127.0.0.1:0
`, newKey(t).Public(), newKey(t).Public())
	s := startSidecar(t, dir)
	status, body, err := s.client().get(t.Context(), "/ready")
	if err != nil || status != http.StatusServiceUnavailable || string(body) != "not ready\na link to away\n" {
		t.Errorf("%d %q %v", status, body, err)
	}
	admin := "unix:" + filepath.Join(dir, "admin.sock")
	out, err := exec.Command("sealane", "status", "--ready", "--admin", admin).CombinedOutput()
	if err == nil || string(out) != "sealane: not ready; a link to away\n" {
		t.Errorf("%v: %q", err, out)
	}
	out, err = exec.Command("sealane", "status", "--admin", admin).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "not ready: waiting for a link to away") {
		t.Errorf("%v: %s", err, out)
	}
	eventually(t, func() string {
		r, _, err := s.client().report(context.Background())
		if err != nil {
			return err.Error()
		}
		if r.Peers[0].Problem != linkProblems[mux.LinkUnreachable] {
			return "problem: " + r.Peers[0].Problem
		}
		return ""
	})
}

// TestAdminGuard asks as a page of another site can make a browser ask.
func TestAdminGuard(t *testing.T) {
	d := startTestDemo(t)
	base := "http://" + d.near.adminAddress()
	port := base[strings.LastIndex(base, ":")+1:]
	for name, c := range map[string]struct {
		host   string
		header http.Header
		want   int
	}{
		"plain":               {"", nil, 200},
		"localhost":           {"localhost:" + port, nil, 200},
		"IPv6 loopback":       {"[::1]:" + port, nil, 200},
		"rebound name":        {"attacker.example:" + port, nil, 403},
		"rebound, no port":    {"attacker.example", nil, 403},
		"another address":     {"192.0.2.1:" + port, nil, 403},
		"localhost lookalike": {"localhost.attacker.example", nil, 403},
		"own page":            {"", http.Header{"Sec-Fetch-Site": {"same-origin"}, "Sec-Fetch-Mode": {"cors"}}, 200},
		"typed by a person":   {"", http.Header{"Sec-Fetch-Site": {"none"}, "Sec-Fetch-Mode": {"navigate"}}, 200},
		"a link elsewhere":    {"", http.Header{"Sec-Fetch-Site": {"cross-site"}, "Sec-Fetch-Mode": {"navigate"}}, 200},
		"another site":        {"", http.Header{"Sec-Fetch-Site": {"cross-site"}, "Sec-Fetch-Mode": {"no-cors"}}, 403},
		"another port":        {"", http.Header{"Sec-Fetch-Site": {"same-site"}, "Sec-Fetch-Mode": {"cors"}}, 403},
	} {
		if response, _ := get(t, base+"/status", c.header, c.host); response.StatusCode != c.want {
			t.Errorf("%s: %s, want %d", name, response.Status, c.want)
		}
	}
}

// TestMetricsFromTheFirstScrape wants every family of the design, with every
// label value that can be known, before anything has happened.
func TestMetricsFromTheFirstScrape(t *testing.T) {
	s := startSidecar(t, folder(t, newKey(t), `
admin: unix:admin.sock
listen: 127.0.0.1:0
peers: [{name: db, keys: [%q]}]
`, newKey(t).Public()))
	_, body, err := s.client().get(t.Context(), "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		`sealane_link_up{peer="db"} 0`, `sealane_link_rtt_seconds{peer="db"} 0`, `sealane_handshake_seconds_count 0`,
		`sealane_config_reloads_total{result="ok"} 0`, `sealane_config_reloads_total{result="failed"} 0`,
		`sealane_unread_bytes 0`, `sealane_granted_bytes 0`, `process_open_fds `, `go_goroutines `,
	}
	for _, rule := range allRules() {
		want = append(want, `sealane_violations_total{rule="`+string(rule)+`"} 0`)
	}
	for _, result := range mux.LinkResults() {
		want = append(want, `sealane_links_total{peer="db",result="`+string(result)+`"} 0`)
	}
	for _, direction := range []string{"in", "out"} {
		want = append(want, `sealane_bytes_total{direction="`+direction+`",peer="db"} 0`, `sealane_rekeys_total{direction="`+direction+`",peer="db"} 0`)
	}
	for _, via := range vias {
		want = append(want, `sealane_streams_open{peer="db",via="`+via+`"} 0`)
		for _, result := range proxy.Results() {
			want = append(want, `sealane_streams_total{peer="db",result="`+string(result)+`",via="`+via+`"} 0`)
		}
	}
	for _, line := range want {
		if !strings.Contains(string(body), "\n"+line) {
			t.Errorf("no %s", line)
		}
	}
	if rules := allRules(); len(slices.Compact(slices.Sorted(slices.Values(rules)))) != len(rules) {
		t.Errorf("a rule is listed twice: %v", rules)
	}
}

// TestMetricsCount lets traffic flow, of which the counters must tell.
func TestMetricsCount(t *testing.T) {
	near, _ := pair(t, "")
	c := dial(t, near.forward())
	if err := talk(c, strings.Repeat("x", 1000)); err != nil {
		t.Fatal(err)
	}
	scrape := func() string {
		_, body, err := near.client().get(t.Context(), "/metrics")
		if err != nil {
			t.Fatal(err)
		}
		return string(body)
	}
	for _, line := range []string{
		`sealane_link_up{peer="far"} 1`, `sealane_links_total{peer="far",result="ok"} 1`, `sealane_handshake_seconds_count 1`,
		`sealane_streams_open{peer="far",via="forward"} 1`,
		`sealane_bytes_total{direction="in",peer="far"} 1000`, `sealane_bytes_total{direction="out",peer="far"} 1000`,
	} {
		eventually(t, func() string {
			if body := scrape(); !strings.Contains(body, "\n"+line+"\n") {
				return "no " + line + " in\n" + body
			}
			return ""
		})
	}
	c.Close()
	eventually(t, func() string {
		if !regexp.MustCompile(`\nsealane_streams_total\{peer="far",result="(ok|reset)",via="forward"\} 1\n`).MatchString(scrape()) {
			return "the connection is not counted"
		}
		return ""
	})
	// The peers of a reload come and go with their series.
	path := filepath.Join(near.dir, "sealane.yaml")
	write(t, path, "identity: node.key\nadmin: unix:admin.sock\nlisten: 127.0.0.1:0\npeers: [{name: other, keys: [\""+newKey(t).Public().String()+"\"]}]\n", 0o644)
	near.signal(syscall.SIGHUP)
	near.waitFor("config reloaded", 1)
	body := scrape()
	if !strings.Contains(body, `sealane_link_up{peer="other"} 0`) || strings.Contains(body, `peer="far"`) {
		t.Errorf("after the reload:\n%s", body)
	}
	if !strings.Contains(body, `sealane_config_reloads_total{result="ok"} 1`) {
		t.Error("the reload is not counted")
	}
}

// TestMetricsDirection: out is to the peer, whichever of the two an app is beside.
func TestMetricsDirection(t *testing.T) {
	target, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer target.Close()
	near, _ := pairTo(t, target.Addr().String(), "")
	c := dial(t, near.forward())
	server, err := target.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	c.Write(make([]byte, 300))
	server.Write(make([]byte, 70))
	eventually(t, func() string {
		_, body, err := near.client().get(t.Context(), "/metrics")
		if err != nil {
			return err.Error()
		}
		for _, line := range []string{`sealane_bytes_total{direction="in",peer="far"} 70`, `sealane_bytes_total{direction="out",peer="far"} 300`} {
			if !strings.Contains(string(body), "\n"+line+"\n") {
				return "no " + line
			}
		}
		return ""
	})
}

func TestStatusCommand(t *testing.T) {
	near, _ := pair(t, "  - socks5: 127.0.0.1:0\n")
	c := dial(t, near.forward())
	if err := talk(c, "hello\n"); err != nil {
		t.Fatal(err)
	}
	admin := "unix:" + filepath.Join(near.dir, "admin.sock")
	out, err := exec.Command("sealane", "status", "--admin", admin).Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`(?m)^sealane \S+, up \d+s, ready$`, `(?m)^Peers\n  PEER  STATE  LINKS +RTT  OPEN  IN  OUT  IN/S  OUT/S\n  far   up     to 127`,
		`(?m)^  forward  127\.0\.0\.1:\d+  far/echo +1$`, `(?m)^  socks5   127\.0\.0\.1:\d+  by route +0$`,
		`(?m)^Connections: 1 open$`, `link +far +a link came up`,
	} {
		if !regexp.MustCompile(want).Match(out) {
			t.Errorf("no %s in\n%s", want, out)
		}
	}
	if bytes.Contains(out, []byte("\x1b")) {
		t.Error("colours without a terminal")
	}
	out, err = exec.Command("sealane", "status", "--json", "--admin", admin).Output()
	var r report
	if err != nil || json.Unmarshal(out, &r) != nil || len(r.Peers) != 1 || !r.Peers[0].Up || r.Peers[0].Streams != 1 ||
		r.Peers[0].BytesIn != 6 || r.Peers[0].BytesOut != 6 || r.Peers[0].Links[0].Cipher == "" {
		t.Errorf("%v, %s", err, out)
	}
	out, err = exec.Command("sealane", "status", "--ready", "--admin", admin).Output()
	if err != nil || string(out) != "ready\n" {
		t.Errorf("%v: %s", err, out)
	}
	out, err = exec.Command("sealane", "status", "--admin", "unix:"+filepath.Join(near.dir, "none.sock")).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "is sealane running there, with admin in its config?") {
		t.Errorf("%v: %s", err, out)
	}
}

func TestStatusWatch(t *testing.T) {
	near, _ := pair(t, "")
	command := exec.Command("sealane", "status", "--watch", "--admin", "unix:"+filepath.Join(near.dir, "admin.sock"))
	stdout, err := command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	defer time.AfterFunc(time.Minute, func() { command.Process.Kill() }).Stop()
	waitForLine(t, stdout, "Peers")
	waitForLine(t, stdout, "Peers")
	if err := command.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := command.Wait(); err != nil {
		t.Error(err)
	}
}

// TestEvents counts repeats and keeps the list short.
func TestEvents(t *testing.T) {
	var e events
	for range 3 {
		e.add(eventLink, "db", "down")
		e.add(eventLink, "web", "down")
	}
	list := e.recent(nil)
	if len(list) != 2 || list[0].Peer != "web" || list[0].Count != 3 || list[1].Count != 3 {
		t.Errorf("%+v", list)
	}
	for i := range 2 * maxEvents {
		e.add(eventLink, "db", strings.Repeat("x", i))
	}
	list = e.recent([]proxy.Refusal{{Time: time.Now().Add(time.Hour), Via: "socks5", Target: "a\x1b:1", Reason: "no route"}})
	if len(list) != maxEvents || list[0].Kind != eventRefusal || list[0].Text != `"a\x1b:1" by socks5: no route` {
		t.Errorf("%d, %+v", len(list), list[0])
	}
}

// TestTerminalText keeps what a peer chose from reaching the terminal as is.
func TestTerminalText(t *testing.T) {
	var b bytes.Buffer
	r := &report{Now: time.Now(), Events: []event{{Kind: eventViolation, Peer: "db", Text: "\x1b[31mred\n"}}}
	writeReport(&b, r, nil, true)
	if strings.Contains(b.String(), "\x1b[31mred") || !strings.Contains(b.String(), red+eventViolation+plain) {
		t.Errorf("%q", b.String())
	}
}

// TestPageStandsAlone: the page loads nothing from elsewhere and its policy
// admits exactly its own script and style.
func TestPageStandsAlone(t *testing.T) {
	for _, pattern := range []string{`(?i)\b(src|href)="(https?:)?//`, `@import`, `url\(`, `innerHTML`, ` style=`, ` on[a-z]+=`} {
		if found := regexp.MustCompile(pattern).Find(page); found != nil {
			t.Errorf("%s: %s", pattern, found)
		}
	}
	if n := bytes.Count(page, []byte("<script")); n != 1 {
		t.Errorf("%d scripts", n)
	}
	if n := bytes.Count(page, []byte("<style")); n != 1 {
		t.Errorf("%d styles", n)
	}
	if strings.Contains(pagePolicy, "unsafe") {
		t.Error(pagePolicy)
	}
}
