package faults

import (
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/sealane/sealane/lab"
)

func TestMain(m *testing.M) { lab.Main(m) }

// kills is how many faults each form of the lab injects. SEALANE_KILLS
// overrides it, for a run of hours.
func kills(t *testing.T) int {
	if s := os.Getenv("SEALANE_KILLS"); s != "" {
		var n int
		if _, err := fmt.Sscan(s, &n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	if lab.Long() {
		return 320
	}
	return 12
}

const (
	clients       = 64
	transferLimit = 60 * time.Second // by then an app must know
)

// A rig is a near and a far sidecar with a middle between them, a target
// behind the far one and clients in front of the near one.
type rig struct {
	t       *testing.T
	dir     string
	middle  *middle
	target  *lab.Target
	tally   lab.Tally
	far     atomic.Pointer[lab.Process]
	farYAML string
	forward string
	admins  [2]string // far, near
	random  *rand.Rand
}

func newRig(t *testing.T) *rig {
	r := &rig{t: t, dir: lab.TempDir(t, ""), random: rand.New(rand.NewPCG(1, 2))}
	nearKey, farKey := lab.Key(t, r.dir+"/near.key"), lab.Key(t, r.dir+"/far.key")
	address := func() string { return fmt.Sprintf("127.0.0.1:%d", lab.FreePort(t)) }
	link := address()
	r.admins, r.forward = [2]string{address(), address()}, address()
	var err error
	r.target = lab.NewTarget(t, &r.tally)
	if r.middle, err = newMiddle("127.0.0.1:0", link); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.middle.close)
	r.farYAML = fmt.Sprintf(`
identity: far.key
listen: %s
admin: %s
log: {level: warn}
peers: [{name: near, keys: [%q]}]
services: [{name: target, address: "%s", allow: [near]}]
`, link, r.admins[0], nearKey, r.target.Address)
	r.far.Store(lab.Sidecar(t, r.dir, "far", r.farYAML))
	lab.Ready(t, r.admins[0])
	lab.Sidecar(t, r.dir, "near", fmt.Sprintf(`
identity: near.key
admin: %s
log: {level: warn}
peers: [{name: far, keys: [%q], address: "%s", links: 4}]
listeners: [{forward: "%s", to: {peer: far, service: target}}]
`, r.admins[1], farKey, r.middle.address(), r.forward))
	lab.Ready(t, r.admins[1])
	return r
}

// load keeps clients busy until stop is closed, then lets them finish.
func (r *rig) load(stop <-chan struct{}) *sync.WaitGroup {
	var wg sync.WaitGroup
	for i := range clients {
		wg.Go(func() {
			random := rand.New(rand.NewPCG(uint64(i), 3))
			for {
				select {
				case <-stop:
					return
				default:
				}
				x := lab.Transfer{Seed: random.Uint64(), Up: size(random), Down: size(random)}
				r.tally.Run(x, r.forward, transferLimit)
			}
		})
	}
	return &wg
}

// size is mostly small, sometimes megabytes: faults must hit streams at their
// start, in the middle and at their end.
func size(r *rand.Rand) uint32 {
	switch r.IntN(10) {
	case 0:
		return 0
	case 1, 2, 3:
		return r.Uint32N(1000)
	case 9:
		return r.Uint32N(16 << 20)
	}
	return r.Uint32N(1 << 20)
}

// faults are what can go wrong, by name. Each acts at once and undoes itself.
func (r *rig) faults() map[string]func() {
	onLine := func(f func(*line)) func() {
		return func() {
			if l := r.middle.random(r.random); l != nil {
				f(l)
			}
		}
	}
	offset := func() int64 { return r.random.Int64N(300 << 10) }
	return map[string]func(){
		"reset":           onLine(func(l *line) { l.cut(0) }),
		"fin":             onLine(func(l *line) { l.cut(-1) }),
		"reset at offset": onLine(func(l *line) { l.breakAfter(offset(), func(l *line) { l.cut(0) }) }),
		"fin at offset":   onLine(func(l *line) { l.breakAfter(offset(), func(l *line) { l.cut(-1) }) }),
		"blackhole":       onLine((*line).freeze),
		"target flaps": func() {
			r.target.Down()
			r.wait(100 * time.Millisecond)
			if err := r.target.Up(); err != nil {
				r.t.Error(err)
			}
		},
		"far stops": func() {
			far := r.far.Load()
			far.Process.Signal(syscall.SIGSTOP)
			r.wait(time.Duration(r.random.IntN(500)) * time.Millisecond)
			far.Process.Signal(syscall.SIGCONT)
		},
		"far killed": func() {
			far := r.far.Load()
			far.Process.Kill()
			far.Wait()
			r.far.Store(lab.Sidecar(r.t, r.dir, "far", r.farYAML))
			lab.Ready(r.t, r.admins[0])
		},
	}
}

// wait is the length of a fault: time is what it is made of.
func (r *rig) wait(d time.Duration) { time.Sleep(d) }

// TestFaults breaks links in every way while transfers run. Every transfer
// must end complete or with an error at the app.
func TestFaults(t *testing.T) {
	r := newRig(t)
	stop := make(chan struct{})
	load := r.load(stop)
	faults := r.faults()
	// Cheap faults more often than those that take the whole sidecar down.
	order := []string{"reset", "fin", "reset at offset", "fin at offset", "blackhole", "reset at offset", "fin at offset", "target flaps",
		"reset", "fin", "reset at offset", "fin at offset", "far stops", "reset at offset", "fin at offset", "far killed"}
	counts := map[string]int{}
	total := kills(t)
	for i := range total {
		name := order[i%len(order)]
		faults[name]()
		counts[name]++
		r.wait(time.Duration(50+r.random.IntN(150)) * time.Millisecond)
	}
	close(stop)
	load.Wait()
	t.Logf("%d faults %v: %s", total, counts, &r.tally)
	if !r.tally.OK() {
		t.Error("a transfer ended in a way that must never happen")
	}
	if r.tally.Complete.Load() == 0 || r.tally.Failed.Load() == 0 {
		t.Error("the lab proves nothing unless some transfers complete and some fail")
	}
	// Whatever broke, it heals by itself.
	after := lab.Tally{}
	lab.Eventually(t, "transfers complete again", func() bool {
		after.Run(lab.Transfer{Seed: 1, Up: 1 << 20, Down: 1 << 20}, r.forward, transferLimit)
		return after.Complete.Load() > 0
	})
}
