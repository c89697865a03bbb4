package faults

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
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
	middle  atomic.Pointer[middle]
	target  *lab.Target
	tally   lab.Tally
	far     atomic.Pointer[lab.Process]
	near    atomic.Pointer[lab.Process]
	farYAML string
	hosts   string // what near takes for /etc/hosts; "" where it has the system's
	link    string // where far takes links
	forward string
	admins  [2]string // far, near
	random  *rand.Rand
}

func newRig(t *testing.T) *rig {
	r := &rig{t: t, dir: lab.TempDir(t, ""), random: rand.New(rand.NewPCG(1, 2))}
	nearKey, farKey := lab.Key(t, r.dir+"/near.key"), lab.Key(t, r.dir+"/far.key")
	address := func() string { return fmt.Sprintf("127.0.0.1:%d", lab.FreePort(t)) }
	r.link = address()
	r.admins, r.forward = [2]string{address(), address()}, address()
	r.target = lab.NewTarget(t, &r.tally)
	host, port := "127.0.0.1", lab.FreePort(t)
	if canMoveAddress(t) {
		host, r.hosts = "far.test", filepath.Join(r.dir, "hosts")
	}
	r.moveTo(fmt.Sprintf("127.0.0.1:%d", port))
	t.Cleanup(func() { r.middle.Load().close() })
	r.farYAML = fmt.Sprintf(`
identity: far.key
listen: %s
admin: %s
log: {level: warn}
peers: [{name: near, keys: [%q]}]
services: [{name: target, address: "%s", allow: [near]}]
`, r.link, r.admins[0], nearKey, r.target.Address)
	r.far.Store(lab.Sidecar(t, r.dir, "far", r.farYAML))
	lab.Ready(t, r.admins[0])
	near := fmt.Sprintf(`
identity: near.key
admin: %s
log: {level: warn}
peers: [{name: far, keys: [%q], address: "%s:%d", links: 4}]
listeners: [{forward: "%s", to: {peer: far, service: target}}]
`, r.admins[1], farKey, host, port, r.forward)
	if err := os.WriteFile(r.nearFile(), []byte(near), 0o600); err != nil {
		t.Fatal(err)
	}
	r.startNear()
	return r
}

// canMoveAddress reports whether near can have an /etc/hosts of its own.
func canMoveAddress(t *testing.T) bool {
	if err := exec.Command("unshare", "--mount", "true").Run(); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("a mount namespace: %v, and CI must not skip", err)
		}
		t.Logf("without the fault of an answer of DNS that changes, for lack of a mount namespace (root has one): %v", err)
		return false
	}
	return true
}

func (r *rig) nearFile() string { return filepath.Join(r.dir, "near.yaml") }

func (r *rig) startNear() {
	args := []string{lab.Build(r.t), "run", "-c", r.nearFile()}
	if r.hosts != "" {
		args = append([]string{"unshare", "--mount", "sh", "-ec", `mount --bind "$0" /etc/hosts; exec "$@"`, r.hosts}, args...)
	}
	r.near.Store(lab.Start(r.t, "", args[0], args[1:]...))
	lab.Ready(r.t, r.admins[1])
}

// moveTo makes far reachable at another address, and at that one alone.
func (r *rig) moveTo(address string) {
	if r.hosts != "" {
		host, _, _ := net.SplitHostPort(address)
		// In place: a bind mount shows a file, whatever name it has.
		if err := os.WriteFile(r.hosts, []byte(host+" far.test\n"), 0o644); err != nil {
			r.t.Fatal(err)
		}
	}
	m, err := newMiddle(address, r.link)
	if err != nil {
		r.t.Fatal(err)
	}
	if old := r.middle.Swap(m); old != nil {
		old.close()
	}
}

// move changes the answer of DNS and waits until near has followed.
func (r *rig) move() {
	host, port, _ := net.SplitHostPort(r.middle.Load().address())
	next := "127.0.0.2"
	if host == next {
		next = "127.0.0.1"
	}
	r.moveTo(net.JoinHostPort(next, port))
	lab.Eventually(r.t, "near links to the new address", func() bool {
		return r.middle.Load().each(func(*line) {}) > 0
	})
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
				if err := r.tally.Run(x, r.forward, transferLimit); err != nil {
					if errors.Is(err, os.ErrDeadlineExceeded) {
						r.t.Logf("%+v hangs at %v: %v", x, time.Now(), err)
					}
					r.wait(100 * time.Millisecond) // near may be down, and refuse at once
				}
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
			if l := r.middle.Load().random(r.random); l != nil {
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
		"zero window":     onLine((*line).stall),
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
		"near killed": func() {
			near := r.near.Load()
			near.Process.Kill()
			near.Wait()
			r.startNear()
		},
		"address moves": r.move,
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
	// And those that near takes seconds to notice more seldom still.
	seldom := []string{"near killed", "zero window", "address moves"}
	if r.hosts == "" {
		seldom = seldom[:2]
	}
	counts := map[string]int{}
	total := kills(t)
	for i := range total {
		name := order[i%len(order)]
		if i%32 == 8 {
			name = seldom[i/32%len(seldom)]
		}
		if name == "blackhole" && lab.Quick() {
			name = "far stops" // a blackhole takes near 10 s to notice
		}
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

// TestZeroWindow stops reading all links at once and injects nothing after it:
// the sidecars have to notice by themselves, and so does every app.
func TestZeroWindow(t *testing.T) {
	if lab.Quick() {
		t.Skip("skips here: takes 22 s; runs where CI is set")
	}
	r := newRig(t)
	stop := make(chan struct{})
	load := r.load(stop)
	lab.Eventually(t, "transfers complete", func() bool { return r.tally.Complete.Load() > clients })
	r.middle.Load().each((*line).stall)
	close(stop)
	load.Wait()
	t.Log(&r.tally)
	if !r.tally.OK() {
		t.Error("a transfer ended in a way that must never happen")
	}
}
