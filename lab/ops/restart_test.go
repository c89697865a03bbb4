package ops

import (
	"fmt"
	"io"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/sealane/sealane/lab"
)

// TestRollingRestarts restarts one after the other of two exits behind one
// peer name, again and again. No new connection may fail, and no transfer that
// was taken may be lost.
func TestRollingRestarts(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	second := &node{t: t, dir: p.far.dir, name: "second", admin: lab.Address(t)}
	exits, links, configs := []*node{p.far, second}, []string{p.link, lab.Address(t)}, make([]string, 2)
	for i, exit := range exits {
		p.link = links[i]
		configs[i] = "identity: far.key\n" + p.farConfig("[near]") // one key, as replicas have
		exit.start(configs[i])
		exit.ready()
	}
	p.near.start(fmt.Sprintf(`peers: [{name: far, keys: [%q], address: ["%s", "%s"]}]
listeners: [{forward: "%s", to: {peer: far, service: transfers}}]
`, p.farKey, links[0], links[1], p.transfers))
	p.near.ready()
	done := load(t, &p.tally, p.transfers, size(8, 24), 256<<10)
	restarts := size(4, 50)
	for i := range restarts {
		exit := exits[i%2]
		if code := exit.stop(); code != 0 {
			t.Errorf("restart %d: exit code %d", i, code)
		}
		exit.start(configs[i%2])
		exit.ready()
		before := p.tally.Complete.Load()
		lab.Eventually(t, "transfers complete", func() bool { return p.tally.Complete.Load() > before+10 })
	}
	total := done()
	t.Logf("%d rolling restarts of two exits behind one name, %d transfers on a connection each: %s", restarts, total, &p.tally)
	if p.tally.Failed.Load() > 0 || !p.tally.OK() {
		t.Error("a restart was felt")
	}
}

// TestDrain stops sidecars that have running connections.
func TestDrain(t *testing.T) {
	t.Parallel()
	t.Run("finishes", func(t *testing.T) {
		t.Parallel()
		p := newPair(t)
		p.start("", "")
		streams := keepBusy(t, p.echoes, 20, 4096)
		for _, n := range []*node{p.far, p.near} {
			n.Process.Process.Signal(syscall.SIGTERM)
		}
		p.far.logged("draining")
		p.near.logged("draining")
		lab.Eventually(t, "near's listeners close", func() bool { return !lab.Accepts(p.echoes) })
		broken, rounds := finish(t, streams)
		near, far := p.near.ended(), p.far.ended() // a second TERM would cut
		t.Logf("TERM with %d running connections: %d broke, %d round trips; exit codes %d and %d", len(streams), broken, rounds, near, far)
		if broken > 0 || near != 0 || far != 0 {
			t.Error("a drain was felt")
		}
		p.near.logged("stopped; every connection had finished")
	})
	t.Run("cuts", func(t *testing.T) {
		t.Parallel()
		p := newPair(t)
		p.start("timeouts: {drain: 1s}\n", "")
		streams := keepBusy(t, p.echoes, 5, 4096)
		code := p.near.stop()
		reset := 0
		for _, b := range streams {
			<-b.done
			if isReset(b.err) {
				reset++
			} else {
				t.Errorf("a stream that was cut: %v", b.err)
			}
		}
		t.Logf("a deadline of 1 s with %d running connections: exit code %d, %d reset", len(streams), code, reset)
		if code != 1 {
			t.Error("the exit code does not say that connections were cut")
		}
		p.near.logged(`"result":"cut"`, `"target":"echo"`, "drain's deadline passed")
		p.near.logged("connections had to be cut", `"cut":5`)
	})
}

// TestSilence half-closes after 8 MiB and waits for an answer longer than any
// timer that has a default, and sends bytes one at a time.
func TestSilence(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.start("", "")
	silence := size(time.Second, 90*time.Second)
	x := lab.Transfer{Seed: 9, Up: 8 << 20, Down: 1 << 20, Silence: uint32(silence.Milliseconds())}
	if err := p.tally.Run(x, p.transfers, silence+transferLimit); err != nil {
		t.Errorf("8 MiB up, %v of silence, 1 MiB back: %v", silence, err)
	}
	c, err := net.Dial("tcp", p.echoes)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(transferLimit))
	for i := range 1000 {
		b := []byte{byte(i)}
		if _, err := c.Write(b); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, b); err != nil || b[0] != byte(i) {
			t.Fatalf("byte %d: %d, %v", i, b[0], err)
		}
	}
	t.Logf("8 MiB up, half-close, %v of silence, 1 MiB back: arrived; 1000 bytes, one at a time: arrived", silence)
}
