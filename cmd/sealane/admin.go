package main

import (
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"
)

//go:embed page.html
var page []byte

// An adminSource is what the admin endpoint shows.
type adminSource interface {
	pending() []string // what /ready waits for; nothing when ready
	report() report
	metricsHandler() http.Handler
	// anyHost says whether the config made the endpoint reachable from other
	// hosts, by whatever name.
	anyHost() bool
}

// adminHandler answers on the admin address: nothing can be changed there, and
// nothing secret is shown. Of a unix socket, which no browser can be led to,
// any host may be asked for.
func adminHandler(s adminSource, unix bool) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /live", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, "live")
	})
	mux.HandleFunc("GET /ready", func(w http.ResponseWriter, _ *http.Request) {
		pending := s.pending()
		if len(pending) == 0 {
			fmt.Fprintln(w, "ready")
			return
		}
		w.WriteHeader(http.StatusServiceUnavailable)
		fmt.Fprintf(w, "not ready\n%s\n", strings.Join(pending, "\n"))
	})
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		encoder := json.NewEncoder(w)
		encoder.SetIndent("", "  ")
		encoder.Encode(s.report()) // an error is the client's going away
	})
	mux.Handle("GET /metrics", s.metricsHandler())
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.Header().Set("Content-Security-Policy", pagePolicy)
		w.Write(page)
	})
	return guard(mux, func() bool { return unix || s.anyHost() })
}

// guard keeps web pages of other sites out. A browser on this host can be made
// to ask a loopback address by any page; it then names that page's host
// (DNS rebinding) or says that the request came from another site.
func guard(next http.Handler, anyHost func() bool) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Type", "text/plain; charset=utf-8")
		h.Set("Cache-Control", "no-store")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("X-Frame-Options", "DENY")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		site := r.Header.Get("Sec-Fetch-Site")
		switch {
		case !localHost(r.Host) && !anyHost():
			http.Error(w, "this address answers to 127.0.0.1, [::1] and localhost only", http.StatusForbidden)
		case (site == "cross-site" || site == "same-site") && r.Header.Get("Sec-Fetch-Mode") != "navigate":
			http.Error(w, "requests from other sites are refused", http.StatusForbidden)
		default:
			next.ServeHTTP(w, r)
		}
	})
}

// localHost says whether a Host header is one that no name server can give
// to a page of another site.
func localHost(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	ip, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return host == "localhost" || err == nil && ip.Unmap().IsLoopback()
}

// pagePolicy lets the page run its own script and style, and load nothing else.
var pagePolicy = "default-src 'none'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; " +
	"script-src " + hashOf("script") + "; style-src " + hashOf("style")

// hashOf is the CSP source of the page's one inline element of that name.
func hashOf(element string) string {
	_, rest, _ := strings.Cut(string(page), "<"+element+">")
	text, _, _ := strings.Cut(rest, "</"+element+">")
	sum := sha256.Sum256([]byte(text))
	return "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
}

// An adminServer serves the admin endpoint.
type adminServer struct {
	http *http.Server
	door *door
	done sync.WaitGroup
}

func startAdmin(d *door, s adminSource) *adminServer {
	a := &adminServer{
		http: &http.Server{
			Handler:           adminHandler(s, d.socks[0].Addr().Network() == "unix"),
			ReadHeaderTimeout: 5 * time.Second,
			WriteTimeout:      30 * time.Second,
			IdleTimeout:       time.Minute,
			MaxHeaderBytes:    16 << 10,
		},
		door: d,
	}
	for _, l := range d.socks {
		a.done.Go(func() {
			a.http.Serve(l) // ends with Close alone: http retries what Accept says is temporary
		})
	}
	return a
}

// close ends the endpoint; answers under way get a moment.
func (a *adminServer) close() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if a.http.Shutdown(ctx) != nil {
		a.http.Close()
	}
	a.done.Wait()
}
