package ops

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sealane/sealane/lab"
)

// churnTime is how long connections come and go. SEALANE_CHURN overrides it.
func churnTime(t *testing.T) time.Duration {
	s := os.Getenv("SEALANE_CHURN")
	if s == "" {
		return quick(time.Second, size(3*time.Second, time.Minute))
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// usage is what a sidecar holds, by its own metrics: nobody else may look at
// the descriptors of a process that has made itself unreadable.
type usage struct{ goroutines, descriptors, resident int }

func (n *node) usage() usage {
	n.t.Helper()
	u := usage{int(n.metric("go_goroutines")), int(n.metric("process_open_fds")), lab.Resident(n.t, n.Process)}
	if u.goroutines <= 0 || u.descriptors <= 0 {
		n.t.Fatalf("%s does not say what it holds: %v", n.name, u)
	}
	return u
}

func (u usage) String() string {
	return fmt.Sprintf("%d goroutines, %d descriptors, %d KiB", u.goroutines, u.descriptors, u.resident)
}

// What may differ from the baseline: connections to the admin endpoint, and
// what the runtime and the allocator keep.
const (
	goroutineSlack  = 10
	descriptorSlack = 10
)

// settles waits until a sidecar holds what it did before. The collector gives
// memory back over minutes, for which the short form does not wait: what it
// opens is too little for a leak of memory alone to show.
func (n *node) settles(baseline usage) usage {
	n.t.Helper()
	residentSlack := size(96<<10, 24<<10) // KiB
	var u usage
	for end := time.Now().Add(4 * time.Minute); ; time.Sleep(time.Second) {
		u = n.usage()
		if u.goroutines <= baseline.goroutines+goroutineSlack && u.descriptors <= baseline.descriptors+descriptorSlack &&
			u.resident <= baseline.resident+residentSlack {
			return u
		}
		if time.Now().After(end) {
			n.t.Errorf("%s does not return to its baseline: %v, now %v", n.name, baseline, u)
			return u
		}
	}
}

// TestChurn opens connections and finishes, half-closes, resets and abandons
// them. Nothing of them stays.
func TestChurn(t *testing.T) {
	beside(t)
	p := newPair(t)
	p.start("log: {level: warn}\n", "log: {level: warn}\n")
	// Pools and caches fill once, and belong to the baseline.
	p.churn(t, size(time.Second, 10*time.Second))
	lab.Eventually(t, "the first connections are gone", func() bool { return p.near.openStreams()+p.far.openStreams() == 0 })
	near, far := p.near.usage(), p.far.usage()
	counts := p.churn(t, churnTime(t))
	t.Logf("%v of churn: %s", churnTime(t), counts)
	t.Logf("near: %v before, %v after; far: %v before, %v after", near, p.near.settles(near), far, p.far.settles(far))
	if !p.tally.OK() || p.tally.Failed.Load() > 0 {
		t.Errorf("transfers: %s", &p.tally)
	}
}

func (n *node) openStreams() float64 {
	open := 0.0
	for _, labels := range []string{`peer="far",via="forward"`, `peer="near",via="service"`} {
		open += max(0, n.metric("sealane_streams_open{"+labels+"}"))
	}
	return open
}

// churn runs for a while and says how many connections ended in which way.
func (p *pair) churn(t *testing.T, d time.Duration) string {
	ways := []string{"complete", "half-closed", "reset", "abandoned", "closed unread"}
	counts := make([]atomic.Int64, len(ways))
	end := time.Now().Add(d)
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			random := rand.New(rand.NewPCG(uint64(i), 11))
			for time.Now().Before(end) {
				way := random.IntN(len(ways))
				p.comeAndGo(random, ways[way])
				counts[way].Add(1)
			}
		})
	}
	wg.Wait()
	var total int64
	text := ""
	for i, way := range ways {
		total += counts[i].Load()
		text += fmt.Sprintf(", %d %s", counts[i].Load(), way)
	}
	return fmt.Sprintf("%d connections%s", total, text)
}

func (p *pair) comeAndGo(random *rand.Rand, way string) {
	if way == "complete" {
		x := lab.Transfer{Seed: random.Uint64(), Up: random.Uint32N(200 << 10), Down: random.Uint32N(200 << 10)}
		p.tally.Run(x, p.transfers, transferLimit)
		return
	}
	c, err := net.Dial("tcp", p.echoes)
	if err != nil {
		return
	}
	defer c.Close()
	conn := c.(*net.TCPConn)
	c.SetDeadline(time.Now().Add(transferLimit))
	c.Write(make([]byte, 1000+random.IntN(100<<10)))
	switch way {
	case "half-closed":
		conn.CloseWrite()
		io.Copy(io.Discard, c)
	case "reset":
		conn.SetLinger(0)
	case "abandoned": // an app that dies some time after it was last heard
		io.ReadFull(c, make([]byte, 1+random.IntN(1000)))
		time.Sleep(time.Duration(random.IntN(300)) * time.Millisecond)
	case "closed unread":
	}
}
