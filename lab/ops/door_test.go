package ops

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/sealane/sealane/lab"
	"github.com/sealane/sealane/mux"
	"github.com/sealane/sealane/session"
)

// TestStalledHandshakes: strangers from four networks, who know the key of a
// sidecar, keep 96 handshakes waiting for a message 3, and dial again as fast
// as they are dropped. Links of a known peer come up at their first attempt.
func TestStalledHandshakes(t *testing.T) {
	p := newPair(t)
	p.start("log: {level: error}\n", "log: {level: error}\n")
	lab.Eventually(t, "the link is up", func() bool { return p.near.metric(`sealane_link_up{peer="far"}`) == 1 })
	baseline := p.far.usage()
	peer, err := session.ParsePublicKey(p.farKey)
	if err != nil {
		t.Fatal(err)
	}
	setups := size(60, 400)
	quiet := p.setups(t, setups)

	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var dialed atomic.Int64
	stop := func() { cancel(); wg.Wait() }
	defer stop()
	for i := range 96 {
		from := net.IPv4(127, 1, byte(i%4), byte(1+i/4))
		wg.Go(func() {
			for ctx.Err() == nil {
				stall(ctx, p.link, from, peer)
				dialed.Add(1)
			}
		})
	}
	evictions := func() float64 { return p.far.metric(`sealane_limit_refusals_total{limit="handshakes"}`) }
	lab.Eventually(t, "the places are taken, and given to others", func() bool { return evictions() > 0 })
	stalled := p.setups(t, setups)
	stop()
	after := p.far.settles(baseline)
	t.Logf("set-up of %d links in peace: %v; beside 96 stalled handshakes: %v; %d dialed, %.0f ended for others, %v after",
		setups, quiet, stalled, dialed.Load(), evictions(), after)
	if stalled.ok < setups || stalled.first < setups*95/100 {
		t.Errorf("%d of %d links came up, %d at once", stalled.ok, setups, stalled.first)
	}
}

// stall begins a handshake and does not go on with it until it is dropped.
func stall(ctx context.Context, address string, from net.IP, peer session.PublicKey) {
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: from}, Control: reuse}
	c, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		pause(ctx, 10*time.Millisecond)
		return
	}
	defer c.Close()
	key, err := session.GenerateKey()
	if err != nil {
		return
	}
	session.Initiate(ctx, deaf{c}, peer, session.Config{Key: key})
}

// A deaf connection hears nothing until it ends.
type deaf struct{ net.Conn }

func (d deaf) Read(p []byte) (int, error) {
	for {
		if _, err := d.Conn.Read(p); err != nil {
			return 0, err
		}
	}
}

// TestEverybodyAtOnce: 500 nodes (200 where somebody waits) behind one address
// have links with a sidecar. When it starts, and starts again, all are up within 10 s.
func TestEverybodyAtOnce(t *testing.T) {
	count := quick(200, 500)
	dir := lab.TempDir(t, "")
	far, farKey := newNode(t, dir, "far")
	peer, err := session.ParsePublicKey(farKey)
	if err != nil {
		t.Fatal(err)
	}
	link := lab.Address(t)
	var config strings.Builder
	fmt.Fprintf(&config, "listen: %s\nlog: {level: error}\npeers:\n", link)
	nodes := make([]*mux.Mux, count)
	var up atomic.Int64
	for i := range nodes {
		key, err := session.GenerateKey()
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&config, "  - {name: n%d, keys: [%q]}\n", i, key.Public())
		nodes[i], err = mux.New(mux.Config{
			Session: session.Config{Key: key},
			Peers:   []mux.Peer{{Name: "far", Keys: []session.PublicKey{peer}, Addresses: []string{link}}},
			Hooks:   mux.Hooks{LinkUp: func(string) { up.Add(1) }, LinkDown: func(string) { up.Add(-1) }},
			Dialer:  (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 3, 0, 1)}, Control: reuse}).DialContext,
		})
		if err != nil {
			t.Fatal(err)
		}
		defer nodes[i].Close()
	}
	for i, when := range []string{"first start", "restart"} {
		begun := time.Now()
		far.start(config.String())
		if i == 0 {
			for _, n := range nodes {
				n.Start()
			}
		}
		lab.Eventually(t, "all links are up", func() bool { return up.Load() == int64(count) })
		took := time.Since(begun)
		t.Logf("%s: %d links after %v", when, count, took)
		if took > 10*time.Second {
			t.Errorf("%s: all links were up after %v", when, took)
		}
		if n := far.metric(`sealane_limit_refusals_total{limit="handshakes"}`); n != 0 {
			t.Errorf("%s: %.0f handshakes were ended for others", when, n)
		}
		far.Process.Process.Signal(syscall.SIGKILL)
		far.ended()
		lab.Eventually(t, "all links are down", func() bool { return up.Load() == 0 })
	}
}
