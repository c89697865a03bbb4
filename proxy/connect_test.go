package proxy

import (
	"bufio"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/sealane/sealane/mux"
)

func TestConnectRealClient(t *testing.T) {
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "hello "+r.URL.Path)
	}))
	defer server.Close()
	l := listenOn(t, KindConnect, "127.0.0.1:0")
	l.Users = []User{{"ann", "se:cret"}}
	n := newNodes(t, Config{Listeners: []Listener{l}, Routes: []Route{routeTo(t, "*:*", Target{Peer: "db"})}},
		Config{Egress: []EgressRule{egressFor(t, "web", "127.0.0.1:*")}})
	client := server.Client()
	tr := client.Transport.(*http.Transport)
	defer tr.CloseIdleConnections()
	tr.Proxy = http.ProxyURL(&url.URL{Scheme: "http", Host: n.web.addr(0), User: url.UserPassword("ann", "se:cret")})
	resp, err := client.Get(server.URL + "/page")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, _ := io.ReadAll(resp.Body); string(body) != "hello /page" {
		t.Errorf("got %q", body)
	}
	if o := n.link.lastOpen(t); o.Via != "connect" {
		t.Errorf("opened %+v", o)
	}
}

// ask sends a request and reads the answer's head.
func ask(t *testing.T, addr, request string) (*http.Response, net.Conn, *bufio.Reader) {
	t.Helper()
	c := dialTo(t, "tcp", addr)
	io.WriteString(c, request)
	r := bufio.NewReader(c)
	resp, err := http.ReadResponse(r, &http.Request{Method: "CONNECT"})
	if err != nil {
		t.Fatalf("%q: no answer: %v", request, err)
	}
	return resp, c, r
}

func TestConnectPipelined(t *testing.T) {
	n := socksNodes(t, nil)
	target := newTarget(t, "", echo)
	for _, version := range []string{"HTTP/1.1", "HTTP/1.0"} {
		resp, c, r := ask(t, n.web.addr(1), "CONNECT "+target+" "+version+"\r\nHost: "+target+"\r\n\r\nright behind")
		if resp.StatusCode != 200 {
			t.Fatalf("status %s", resp.Status)
		}
		halfClose(t, c)
		if got, err := io.ReadAll(r); err != nil || string(got) != "right behind" {
			t.Errorf("got %q, %v", got, err)
		}
	}
	// The head may come in any pieces, behind one empty line, too.
	for _, before := range []string{"", "\r\n"} {
		c := dialTo(t, "tcp", n.web.addr(1))
		for _, b := range []byte(before + "CONNECT " + target + " HTTP/1.1\r\nHost: x\r\n\r\n") {
			c.Write([]byte{b})
		}
		hear(t, c, "HTTP/1.1 200 Connection established\r\n\r\n")
		roundTrip(t, c, "hello")
	}
	resp, c, _ := ask(t, n.web.addr(1), "\r\nCONNECT "+target+" HTTP/1.1\r\n\r\n")
	if resp.StatusCode != 200 {
		t.Errorf("behind an empty line: %s", resp.Status)
	}
	roundTrip(t, c, "hello")
}

func TestConnectStatus(t *testing.T) {
	n := socksNodes(t, nil)
	for status, want := range map[mux.Status]int{
		mux.StatusDenied: 403, mux.StatusUnknownService: 502, mux.StatusRefused: 502, mux.StatusUnreachable: 502,
		mux.StatusTimedOut: 504, mux.StatusNameNotFound: 502, mux.StatusOverloaded: 503,
	} {
		n.link.set(func(l *fakeLink) { l.fail = &mux.OpenError{Status: status} })
		resp, c, r := ask(t, n.web.addr(1), "CONNECT a.test:443 HTTP/1.1\r\n\r\nclient speaks first")
		if resp.StatusCode != want {
			t.Errorf("status %v gives %s, want %d", status, resp.Status, want)
		}
		if _, err := io.Copy(io.Discard, r); err != nil {
			t.Errorf("after the answer: %v", err)
		}
		c.Close()
	}
	n.link.set(func(l *fakeLink) { l.fail = mux.ErrNoLink })
	if resp, _, _ := ask(t, n.web.addr(1), "CONNECT a.test:443 HTTP/1.1\r\n\r\n"); resp.StatusCode != 503 {
		t.Errorf("no link gives %s", resp.Status)
	}
	if resp, _, _ := ask(t, n.web.addr(1), "CONNECT elsewhere:443 HTTP/1.1\r\n\r\n"); resp.StatusCode != 403 {
		t.Errorf("no route gives %s", resp.Status)
	}
}

func TestConnectRefusesEverythingElse(t *testing.T) {
	n := socksNodes(t, nil)
	for request, want := range map[string]int{
		"GET http://a.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n":               405,
		"POST http://a.test/ HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc":      405,
		"connect a.test:443 HTTP/1.1\r\n\r\n":                               405,
		"CONNECT a.test:443 HTTP/2.0\r\n\r\n":                               505,
		"CONNECT a.test:443\r\n\r\n":                                        400,
		"CONNECT  a.test:443 HTTP/1.1\r\n\r\n":                              400,
		"CONNECT a.test:443 HTTP/1.1 \r\n\r\n":                              400,
		"CONNECT a.test:443 SPDY/1\r\n\r\n":                                 400,
		"CONNECT a.test HTTP/1.1\r\n\r\n":                                   400,
		"CONNECT http://a.test:443 HTTP/1.1\r\n\r\n":                        400,
		"CONNECT a.test:0 HTTP/1.1\r\n\r\n":                                 400,
		"CONNECT 127.1:80 HTTP/1.1\r\n\r\n":                                 400,
		"CONNECT a.test:443 HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n":         400,
		"CONNECT a.test:443 HTTP/1.1\r\nHost : a\r\n\r\n":                   400,
		"CONNECT a.test:443 HTTP/1.1\r\nno colon\r\n\r\n":                   400,
		"CONNECT a.test:443 HTTP/1.1\r\nA: b\nC: d\r\n\r\n":                 400,
		"CONNECT a.test:443 HTTP/1.1\r\nA: b\rC\r\n\r\n":                    400,
		"CONNECT a.test:443 HTTP/1.1\r\nA: \x00\r\n\r\n":                    400,
		"CONNECT a.test:443 HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc":       400,
		"CONNECT a.test:443 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n": 400,
		"\x05\x01\x00":     400,
		"\x16\x03\x01\x00": 400,
		"\r\n\r\n":         400,
		"\r\n\r\nCONNECT a.test:443 HTTP/1.1\r\n\r\n":                                 400,
		"\rCONNECT a.test:443 HTTP/1.1\r\n\r\n":                                       400,
		"\nCONNECT a.test:443 HTTP/1.1\r\n\r\n":                                       400,
		"CONNECT " + strings.Repeat("a", 9000):                                        431,
		"CONNECT a.test:443 HTTP/1.1\r\nA: " + strings.Repeat("a", 9000) + "\r\n\r\n": 431,
	} {
		resp, c, r := ask(t, n.web.addr(1), request)
		if resp.StatusCode != want {
			t.Errorf("%.60q gives %s, want %d", request, resp.Status, want)
		}
		if want == 405 && resp.Header.Get("Allow") != "CONNECT" {
			t.Errorf("%q: no Allow", request)
		}
		body, err := io.ReadAll(r)
		if err != nil {
			t.Errorf("%.60q: after the answer: %v", request, err)
		}
		if want == 405 && !strings.Contains(string(body), "HTTPS_PROXY") {
			t.Errorf("%.60q: the answer says %q, not what to use instead", request, body)
		}
		n.web.log.want(t, "from="+c.LocalAddr().String(), "result=bad_request")
	}
	if len(n.link.opens) != 0 {
		t.Errorf("opened %v", n.link.opens)
	}
}

func TestConnectUsers(t *testing.T) {
	l := listenOn(t, KindConnect, "127.0.0.1:0")
	l.Users = []User{{"ann", "secret"}}
	n := newNodes(t, Config{Listeners: []Listener{l}, Routes: []Route{routeTo(t, "*:*", Target{Peer: "db"})}},
		Config{Egress: []EgressRule{egressFor(t, "web", "127.0.0.1:*")}})
	target := newTarget(t, "", echo)
	basic := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	for field, want := range map[string]int{
		"": 407,
		"Authorization: Basic " + basic("ann:secret"):        407,
		"Proxy-Authorization: Basic " + basic("ann:secret"):  200,
		"proxy-authorization: basic " + basic("ann:secret"):  200,
		"Proxy-Authorization: Basic " + basic("ann:wrong"):   407,
		"Proxy-Authorization: Basic " + basic("ann"):         407,
		"Proxy-Authorization: Basic !":                       407,
		"Proxy-Authorization: Bearer " + basic("ann:secret"): 407,
	} {
		if field != "" {
			field += "\r\n"
		}
		resp, _, _ := ask(t, n.web.addr(0), fmt.Sprintf("CONNECT %s HTTP/1.1\r\n%s\r\n", target, field))
		if resp.StatusCode != want {
			t.Errorf("%q gives %s, want %d", field, resp.Status, want)
		}
		if want == 407 && resp.Header.Get("Proxy-Authenticate") == "" {
			t.Errorf("%q: no challenge", field)
		}
	}
}

func FuzzParseConnect(f *testing.F) {
	f.Add([]byte("CONNECT a.test:443 HTTP/1.1\r\nHost: a.test\r\n\r\n"))
	f.Add([]byte("CONNECT [::1]:443 HTTP/1.0\r\nProxy-Authorization: Basic YW5uOnNlY3JldA==\r\n\r\n"))
	f.Add([]byte("GET http://a/ HTTP/1.1\r\n\r\n"))
	f.Fuzz(func(t *testing.T, head []byte) {
		users := []User{{"ann", "secret"}}
		open, err := parseConnect(head, nil)
		if err == nil {
			if again, err := ParseDestination(open.String()); err != nil || again != open {
				t.Errorf("%q leads to %v, which reads as %v, %v", head, open, again, err)
			}
			if !strings.HasPrefix(string(head), "CONNECT ") {
				t.Errorf("%q was taken for CONNECT", head)
			}
		}
		if _, err := parseConnect(head, users); err == nil && !strings.Contains(strings.ToLower(string(head)), "proxy-authorization") {
			t.Errorf("%q needed no password", head)
		}
	})
}
