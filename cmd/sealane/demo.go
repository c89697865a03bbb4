package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/rs/zerolog"

	"github.com/sealane/sealane/cmd/sealane/internal/config"
	"github.com/sealane/sealane/mux"
	"github.com/sealane/sealane/proxy"
	"github.com/sealane/sealane/session"
)

// demoName is the host that the demo asks for through SOCKS5. Only the sidecar
// beside the app can look it up, so it shows that names travel unresolved.
const demoName = "page.demo.internal"

// demoService is the name by which the forward asks for the app.
const demoService = "hello-page"

// runDemo starts an app and two sidecars on loopback, fetches a page through
// them and shows what went over the link.
func runDemo(p *process, in input) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	d, err := startDemo(zerolog.New(p.stderr).Level(zerolog.WarnLevel))
	if err != nil {
		return p.fail(err)
	}
	defer d.close()
	p.demoIntroduction(d)
	for _, f := range []func(context.Context) (*exchange, error){d.fetchForward, d.fetchSOCKS5} {
		e, err := f(ctx)
		if err != nil {
			return p.fail(err)
		}
		p.demoExchange(e)
		d.exchanges = append(d.exchanges, e)
	}
	out, in2 := d.capture.wire()
	p.demoWire(d.exchanges[0], containers(out), containers(in2))
	if in.set("once") {
		return exitOK
	}
	p.demoInvitation(d)
	<-ctx.Done()
	return exitOK
}

// A demo is a small world on loopback: a client's sidecar, an app's sidecar,
// the link between them, which is recorded, and the app.
type demo struct {
	app       *http.Server
	appPort   string
	capture   *capture
	near, far *node // the client's sidecar and the app's
	closers   []func()
	exchanges []*exchange
}

// An exchange is one request and its answer, in plain.
type exchange struct {
	what, curl        string
	request, response []byte
	status            string
	body              []byte
}

func startDemo(log zerolog.Logger) (d *demo, err error) {
	d = &demo{}
	defer func() {
		if err != nil {
			d.close()
		}
	}()
	if err := d.startApp(); err != nil {
		return nil, err
	}
	if d.capture, err = newCapture(); err != nil {
		return nil, err
	}
	d.closers = append(d.closers, d.capture.close)
	nearKey, err := session.GenerateKey()
	if err != nil {
		return nil, err
	}
	farKey, err := session.GenerateKey()
	if err != nil {
		return nil, err
	}
	farConfig, err := d.farConfig(farKey, nearKey.Public())
	if err != nil {
		return nil, err
	}
	if d.far, err = startNode(farConfig, log, nodeOptions{resolve: demoResolve}); err != nil {
		return nil, err
	}
	d.closers = append(d.closers, d.far.close)
	d.capture.start(d.far.linkAddress())
	if d.near, err = startNode(d.nearConfig(nearKey, farKey.Public()), log, nodeOptions{}); err != nil {
		return nil, err
	}
	d.closers = append(d.closers, d.near.close)
	return d, nil
}

func (d *demo) close() {
	for i := len(d.closers) - 1; i >= 0; i-- {
		d.closers[i]()
	}
}

// startApp serves a page as any app that never heard of encryption does.
func (d *demo) startApp() error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	_, d.appPort, err = net.SplitHostPort(l.Addr().String())
	if err != nil {
		return err
	}
	d.app = &http.Server{
		ReadHeaderTimeout: 10 * time.Second,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, "Hello from an app that speaks plain HTTP. You asked for %q on %q.\n", r.URL.Path, r.Host)
		}),
	}
	go d.app.Serve(l)
	d.closers = append(d.closers, func() { d.app.Close() })
	return nil
}

// farConfig is the config of the sidecar beside the app: what the other may
// reach, by name and by address.
func (d *demo) farConfig(key *session.PrivateKey, peer session.PublicKey) (*config.Config, error) {
	c := config.Default("demo")
	c.Key = key
	c.Listen = proxy.Endpoint{Network: "tcp", Address: "127.0.0.1:0"}
	c.Peers = []mux.Peer{{Name: "client-side", Keys: []session.PublicKey{peer}, Links: 1}}
	address := net.JoinHostPort("127.0.0.1", d.appPort)
	c.Services = []proxy.Service{{
		Name: demoService, Address: proxy.Endpoint{Network: "tcp", Address: address}, Allow: []string{"client-side"},
	}}
	match, err := proxy.ParseMatch(address)
	c.Egress = []proxy.EgressRule{{Allow: []string{"client-side"}, Match: []proxy.Match{match}}}
	return c, err
}

// nearConfig is the config of the sidecar beside the client.
func (d *demo) nearConfig(key *session.PrivateKey, peer session.PublicKey) *config.Config {
	c := config.Default("demo")
	c.Key = key
	loopback := proxy.Endpoint{Network: "tcp", Address: "127.0.0.1:0"}
	c.Admin = loopback
	c.Peers = []mux.Peer{{Name: "app-side", Keys: []session.PublicKey{peer}, Addresses: []string{d.capture.address()}, Links: 1}}
	c.Listeners = []proxy.Listener{
		{Kind: proxy.KindForward, Address: loopback, To: proxy.Target{Peer: "app-side", Service: demoService}},
		{Kind: proxy.KindSOCKS5, Address: loopback},
	}
	all, err := proxy.ParseMatch("*:*")
	if err != nil {
		panic("the pattern of everything: " + err.Error())
	}
	c.Routes = []proxy.Route{{Match: all, To: proxy.Target{Peer: "app-side"}}}
	return c
}

// demoResolve finds the demo's own host name, for the app's sidecar.
func demoResolve(_ context.Context, _, host string) ([]netip.Addr, error) {
	if strings.TrimSuffix(host, ".") != demoName {
		return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
	}
	return []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1})}, nil
}

func (d *demo) fetchForward(ctx context.Context) (*exchange, error) {
	target := "http://" + d.near.listenerAddress(0) + "/by-forward"
	return fetch(ctx, &exchange{what: "through the forward", curl: "curl " + target}, target, nil)
}

func (d *demo) fetchSOCKS5(ctx context.Context) (*exchange, error) {
	target := "http://" + net.JoinHostPort(demoName, d.appPort) + "/by-socks5"
	proxyAddress := d.near.listenerAddress(1)
	e := &exchange{what: "through SOCKS5", curl: "curl --socks5-hostname " + proxyAddress + " " + target}
	return fetch(ctx, e, target, &url.URL{Scheme: "socks5h", Host: proxyAddress})
}

// fetch asks for a page and keeps both messages as they are in plain.
func fetch(ctx context.Context, e *exchange, target string, through *url.URL) (*exchange, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	if err != nil {
		return nil, err
	}
	request.Header.Set("User-Agent", "demo")
	if e.request, err = httputil.DumpRequestOut(request, false); err != nil {
		return nil, err
	}
	transport := &http.Transport{DisableKeepAlives: true}
	if through != nil {
		transport.Proxy = http.ProxyURL(through)
	}
	defer transport.CloseIdleConnections()
	response, err := (&http.Client{Transport: transport}).Do(request)
	if err != nil {
		return nil, fmt.Errorf("fetch %s: %w", e.what, err)
	}
	defer response.Body.Close()
	if e.body, err = io.ReadAll(response.Body); err != nil {
		return nil, fmt.Errorf("fetch %s: %w", e.what, err)
	}
	response.Body = io.NopCloser(bytes.NewReader(e.body))
	if e.response, err = httputil.DumpResponse(response, true); err != nil {
		return nil, err
	}
	e.status = response.Status
	if response.StatusCode != http.StatusOK {
		return nil, errors.New("fetch " + e.what + ": " + e.status)
	}
	return e, nil
}
