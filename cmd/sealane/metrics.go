package main

import (
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/sealane/sealane/mux"
	"github.com/sealane/sealane/proxy"
	"github.com/sealane/sealane/session"
	"github.com/sealane/sealane/session/container"
)

// vias are the values of the label via.
var vias = []string{
	string(proxy.KindForward), string(proxy.KindSOCKS5), string(proxy.KindConnect), string(proxy.KindTransparent),
	proxy.ViaService, proxy.ViaEgress,
}

// metrics are the families of the design, in a registry of their own. What
// happens is counted here; what is the case now is read from the node at each
// scrape.
type metrics struct {
	registry *prometheus.Registry

	links         *prometheus.CounterVec
	handshake     prometheus.Histogram
	violations    *prometheus.CounterVec
	streamsOpen   *prometheus.GaugeVec
	streams       *prometheus.CounterVec
	limits        *prometheus.CounterVec
	configReloads *prometheus.CounterVec

	// peers holds each peer's bytes: the hook is called for each piece of data
	// that moves, and must not look labels up.
	peers sync.Map // of string to *traffic

	mu    sync.Mutex
	ended map[string]uint64      // connections by result
	open  map[openSeries]float64 // what streamsOpen says
	known map[string]bool        // peers that have series
}

// openSeries are the labels of a series of sealane_streams_open.
type openSeries struct{ peer, via string }

type traffic struct{ in, out atomic.Uint64 }

func newMetrics() *metrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	m := &metrics{
		registry: prometheus.NewRegistry(),
		links:    counter("sealane_links_total", "Attempts at a link, and how they ended.", "peer", "result"),
		handshake: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "sealane_handshake_seconds", Help: "Time that completed handshakes took.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}),
		violations: counter("sealane_violations_total", "Links ended because of a byte that does not belong, by rule of SPEC.md.", "rule"),
		streamsOpen: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "sealane_streams_open", Help: "App connections that are open.",
		}, []string{"peer", "via"}),
		streams:       counter("sealane_streams_total", "App connections that ended or were refused.", "peer", "via", "result"),
		limits:        counter("sealane_limit_refusals_total", "What was refused because of a limit of this node.", "limit"),
		configReloads: counter("sealane_config_reloads_total", "Reloads of the config.", "result"),
		ended:         make(map[string]uint64),
		open:          make(map[openSeries]float64),
		known:         make(map[string]bool),
	}
	m.registry.MustRegister(m.links, m.handshake, m.violations, m.streamsOpen, m.streams, m.limits, m.configReloads,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	for _, rule := range allRules() {
		m.violations.WithLabelValues(string(rule))
	}
	for _, limit := range mux.Limits() {
		m.limits.WithLabelValues(string(limit))
	}
	for _, result := range []string{"ok", "failed"} {
		m.configReloads.WithLabelValues(result)
	}
	for _, result := range proxy.Results() {
		m.ended[string(result)] = 0
	}
	return m
}

// setPeers makes every series of the peers start at zero, and ends those of
// peers that are gone, so that labels stay bounded over reloads. What a peer
// that is gone still has open stays counted until it is closed.
func (m *metrics) setPeers(before, now []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	keep := make(map[string]bool)
	// "" stands for connections and links that no peer could be found for.
	for _, peer := range append([]string{"", proxy.PeerDirect}, now...) {
		keep[peer], m.known[peer] = true, true
		m.peers.LoadOrStore(peer, new(traffic))
		for _, via := range vias {
			m.streamsOpen.WithLabelValues(peer, via)
			for _, result := range proxy.Results() {
				m.streams.WithLabelValues(peer, via, string(result))
			}
		}
	}
	for _, peer := range append([]string{""}, now...) {
		for _, result := range mux.LinkResults() {
			m.links.WithLabelValues(peer, string(result))
		}
	}
	for _, peer := range before {
		if keep[peer] {
			continue
		}
		gone := prometheus.Labels{"peer": peer}
		delete(m.known, peer)
		m.peers.Delete(peer)
		m.streams.DeletePartialMatch(gone)
		m.links.DeletePartialMatch(gone)
		for _, via := range vias {
			m.setOpen(openSeries{peer, via}, 0)
		}
	}
}

// setOpen adds to a series of sealane_streams_open, with mu held, and ends it
// if its peer is gone and nothing is left.
func (m *metrics) setOpen(s openSeries, add float64) {
	m.open[s] += add
	if m.open[s] == 0 && !m.known[s.peer] {
		delete(m.open, s)
		m.streamsOpen.DeleteLabelValues(s.peer, s.via)
		return
	}
	m.streamsOpen.WithLabelValues(s.peer, s.via).Set(m.open[s])
}

func (m *metrics) observeHandshake(d time.Duration) { m.handshake.Observe(d.Seconds()) }

func (m *metrics) observeLimit(limit mux.Limit) { m.limits.WithLabelValues(string(limit)).Inc() }

func (m *metrics) streamOpened(peer, via string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.setOpen(openSeries{peer, via}, 1)
}

func (m *metrics) streamClosed(peer, via string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.setOpen(openSeries{peer, via}, -1)
}

func (m *metrics) streamResult(peer, via string, result proxy.Result) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ended[string(result)]++
	if m.known[peer] {
		m.streams.WithLabelValues(peer, via, string(result)).Inc()
	}
}

func (m *metrics) linkResult(peer string, result mux.LinkResult) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.known[peer] {
		m.links.WithLabelValues(peer, string(result)).Inc()
	}
}

func (m *metrics) moved(peer string, direction proxy.Direction, n int) {
	t, ok := m.peers.Load(peer)
	switch {
	case !ok: // gone
	case direction == proxy.In:
		t.(*traffic).in.Add(uint64(n))
	default:
		t.(*traffic).out.Add(uint64(n))
	}
}

// results are the connections that ended, by result.
func (m *metrics) results() map[string]uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make(map[string]uint64, len(m.ended))
	for result, n := range m.ended {
		out[result] = n
	}
	return out
}

// carried are a peer's app bytes.
func (m *metrics) carried(peer string) (in, out uint64) {
	if t, ok := m.peers.Load(peer); ok {
		return t.(*traffic).in.Load(), t.(*traffic).out.Load()
	}
	return 0, 0
}

// handler answers scrapes.
func (m *metrics) handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{})
}

// watch adds what is read from the node at each scrape.
func (m *metrics) watch(n *node) {
	m.registry.MustRegister(&nodeCollector{
		node:   n,
		linkUp: prometheus.NewDesc("sealane_link_up", "Whether a link to the peer is up (1) or not (0).", []string{"peer"}, nil),
		rtt: prometheus.NewDesc("sealane_link_rtt_seconds",
			"Round trip at link-up or at the last keepalive, of the peer's fastest link; 0 without a link.", []string{"peer"}, nil),
		bytes:   prometheus.NewDesc("sealane_bytes_total", "App bytes carried, in from the peer and out to it.", []string{"peer", "direction"}, nil),
		rekeys:  prometheus.NewDesc("sealane_rekeys_total", "Changes of record keys.", []string{"peer", "direction"}, nil),
		unread:  prometheus.NewDesc("sealane_unread_bytes", "Bytes that arrived and were not read yet.", nil, nil),
		granted: prometheus.NewDesc("sealane_granted_bytes", "Bytes that peers were granted, and have not sent or are not read yet, which limits.memory bounds.", nil, nil),
	})
}

// A nodeCollector reads a node's state for a scrape.
type nodeCollector struct {
	node                                        *node
	linkUp, rtt, bytes, rekeys, unread, granted *prometheus.Desc
}

func (c *nodeCollector) Describe(to chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.linkUp, c.rtt, c.bytes, c.rekeys, c.unread, c.granted} {
		to <- d
	}
}

func (c *nodeCollector) Collect(to chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		to <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		to <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	for _, p := range c.node.mux.Status() {
		up, rtt := 0.0, time.Duration(0)
		for _, l := range p.Links {
			up = 1
			if rtt == 0 || l.RTT < rtt {
				rtt = l.RTT
			}
		}
		gauge(c.linkUp, up, p.Name)
		gauge(c.rtt, rtt.Seconds(), p.Name)
		counter(c.rekeys, p.RekeysIn, p.Name, string(proxy.In))
		counter(c.rekeys, p.RekeysOut, p.Name, string(proxy.Out))
	}
	for peer, t := range c.node.metrics.peers.Range {
		if peer == "" {
			continue
		}
		counter(c.bytes, t.(*traffic).in.Load(), peer.(string), string(proxy.In))
		counter(c.bytes, t.(*traffic).out.Load(), peer.(string), string(proxy.Out))
	}
	unread, _ := c.node.mux.Unread()
	gauge(c.unread, float64(unread))
	gauge(c.granted, float64(c.node.mux.Granted()))
}

// allRules lists the rules of every layer.
func allRules() []session.Rule {
	return slices.Concat(container.Rules(), session.Rules(), mux.Rules())
}
