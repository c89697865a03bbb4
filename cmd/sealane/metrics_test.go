package main

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sealane/sealane/mux"
	"github.com/sealane/sealane/proxy"
)

// series returns the values of a family, by the label peer, and sums them.
func series(t *testing.T, m *metrics, family string) map[string]float64 {
	t.Helper()
	families, err := prometheus.Gatherer(m.registry).Gather()
	if err != nil {
		t.Fatal(err)
	}
	found := make(map[string]float64)
	for _, f := range families {
		if f.GetName() != family {
			continue
		}
		for _, one := range f.GetMetric() {
			v := one.GetGauge().GetValue() + one.GetCounter().GetValue()
			if v < 0 {
				t.Fatalf("%s is %v", family, v)
			}
			for _, l := range one.GetLabel() {
				if l.GetName() == "peer" {
					found[l.GetValue()] += v
				}
			}
		}
	}
	return found
}

// TestMetricsOfARemovedPeer: what a removed peer has open is counted until it
// is closed, and then nothing of the peer is left, whatever ends late.
func TestMetricsOfARemovedPeer(t *testing.T) {
	const count = 900
	m := newMetrics()
	m.setPeers(nil, []string{"web", "db"})
	for range count {
		m.streamOpened("db", "forward")
	}
	m.setPeers([]string{"web", "db"}, []string{"web"})
	for left := count; left > 0; left-- {
		if open := series(t, m, "sealane_streams_open")["db"]; left%100 == 0 && open != float64(left) {
			t.Fatalf("%v are open, want %d", open, left)
		}
		m.streamClosed("db", "forward")
		m.streamResult("db", "forward", proxy.ResultCut)
		m.moved("db", proxy.In, 1)
		m.linkResult("db", mux.LinkBroken)
	}
	for _, family := range []string{"sealane_streams_open", "sealane_streams_total", "sealane_links_total"} {
		if left, ok := series(t, m, family)["db"]; ok {
			t.Errorf("%s of the removed peer is %v", family, left)
		}
	}
	if in, _ := m.carried("db"); in != 0 {
		t.Errorf("%d bytes of the removed peer", in)
	}
	// One that comes back has what it has.
	m.streamOpened("web", "service")
	m.setPeers([]string{"web"}, []string{"db"})
	m.setPeers([]string{"db"}, []string{"db", "web"})
	if open := series(t, m, "sealane_streams_open"); open["web"] != 1 || open["db"] != 0 {
		t.Errorf("open: %v", open)
	}
}
