package ops

import (
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/sealane/sealane/lab"
)

// TestReload reloads both sidecars again and again under busy streams, by HUP
// and by --watch, and takes one of two peers away.
func TestReload(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	other, otherKey := newNode(t, p.far.dir, "other")
	both := fmt.Sprintf("peers: [{name: near, keys: [%q]}, {name: other, keys: [%q]}]", p.nearKey, otherKey)
	alone := p.farConfig("[near]")
	far := strings.Replace(p.farConfig("[near, other]"), fmt.Sprintf("peers: [{name: near, keys: [%q]}]", p.nearKey), both, 1)
	p.far.start(far)
	near := p.nearConfig(fmt.Sprintf("[%q]", p.farKey))
	p.near.flags = []string{"--watch"}
	p.near.start(near)
	p.near.ready()
	otherEchoes := lab.Address(t)
	other.start(fmt.Sprintf(`peers: [{name: far, keys: [%q], address: "%s"}]
listeners: [{forward: "%s", to: {peer: far, service: echo}}]
`, p.farKey, p.link, otherEchoes))
	other.ready()

	streams := keepBusy(t, p.echoes, 200, 4096)
	removed := keepBusy(t, otherEchoes, 10, 4096)
	_, port, _ := net.SplitHostPort(p.echo)
	hups, watched := size(4, 20), size(1, 20)
	for i := range hups {
		// The sandbox has to know the port already.
		p.far.write(far + fmt.Sprintf("egress: [{allow: [near], match: [\"10.0.0.%d:%s\"]}]\n", i+1, port))
		p.far.reload("ok")
	}
	for i := range watched {
		before := p.near.reloads("ok")
		p.near.write(near + fmt.Sprintf("routes: [{match: \"10.0.0.%d:80\", to: {peer: far}}]\n", i+1))
		p.near.reloaded("ok", before)
	}

	// A bad file changes nothing and says so: the old config still serves.
	p.far.write("listen: nonsense\n")
	p.far.reload("failed")
	p.far.logged("reload refused; the old config stays in force", "far.yaml:")
	if err := p.tally.Run(lab.Transfer{Seed: 1, Up: 1000, Down: 1000}, p.transfers, transferLimit); err != nil {
		t.Errorf("after a bad reload: %v", err)
	}
	for _, b := range removed {
		select {
		case <-b.done:
			t.Errorf("a stream of a peer that was not removed ended: %v", b.err)
		default:
		}
	}

	p.far.write(alone)
	p.far.reload("ok")
	resets := 0
	for _, b := range removed {
		<-b.done
		if isReset(b.err) {
			resets++
		} else {
			t.Errorf("a stream of the removed peer: %v", b.err)
		}
	}
	broken, rounds := finish(t, streams)
	t.Logf("%d reloads by HUP and %d by --watch under %d busy streams (%d round trips): %d errors; %d of %d streams of the removed peer reset",
		hups+1, watched, len(streams), rounds, broken, resets, len(removed))
	if broken > 0 {
		t.Error("streams broke")
	}
}

// TestKeyRotation changes the keys of both sidecars under load, in the steps
// of docs/operations.md.
func TestKeyRotation(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.start("", "")
	nextNear, nextFar := lab.Key(t, p.near.dir+"/next-near.key"), lab.Key(t, p.near.dir+"/next-far.key")
	done := load(t, &p.tally, p.transfers, quick(2, size(8, 32)), 64<<10)
	streams := keepBusy(t, p.echoes, 10, 4096)

	rotate := func(name string, steps ...func()) {
		for i, step := range steps {
			step()
			before := p.tally.Complete.Load()
			lab.Eventually(t, fmt.Sprintf("transfers complete after step %d for %s", i+1, name), func() bool {
				return p.tally.Complete.Load() > before+int64(size(10, 200))
			})
		}
	}
	far := p.far.config
	var switched time.Time
	rotate("near", func() {
		p.far.write(strings.Replace(far, fmt.Sprintf("keys: [%q]", p.nearKey), fmt.Sprintf("keys: [%q, %q]", p.nearKey, nextNear), 1))
		p.far.reload("ok")
	}, func() {
		p.near.write("identity: next-near.key\n" + p.near.config)
		p.near.reload("ok")
		switched = time.Now()
	}, func() {
		// Streams that began on the old key's links finish there.
		if broken, _ := finish(t, streams); broken > 0 {
			t.Errorf("%d streams broke while near had its key changed", broken)
		}
		p.far.linksSince(switched)
		far = strings.Replace(far, p.nearKey, nextNear, 1)
		p.far.write(far)
		p.far.reload("ok")
	})
	streams = keepBusy(t, p.echoes, 10, 4096)
	rotate("far", func() {
		p.near.write(strings.Replace(p.near.config, fmt.Sprintf("keys: [%q]", p.farKey), fmt.Sprintf("keys: [%q, %q]", p.farKey, nextFar), 1))
		p.near.reload("ok")
	}, func() {
		p.far.write("identity: next-far.key\n" + far)
		p.far.reload("ok")
		switched = time.Now()
	}, func() {
		if broken, _ := finish(t, streams); broken > 0 {
			t.Errorf("%d streams broke while far had its key changed", broken)
		}
		p.near.linksSince(switched)
		p.near.write(strings.Replace(p.near.config, fmt.Sprintf("%q, ", p.farKey), "", 1))
		p.near.reload("ok")
	})
	total := done()
	t.Logf("two keys changed under load, %d transfers on a connection each: %s", total, &p.tally)
	if p.tally.Failed.Load() > 0 || !p.tally.OK() {
		t.Error("a change of keys was felt")
	}
}
