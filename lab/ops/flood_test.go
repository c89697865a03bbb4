package ops

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/sealane/sealane/lab"
	"github.com/sealane/sealane/session"
	"github.com/sealane/sealane/session/container"
)

// TestFlood lets strangers flood a sidecar that listens, from 127.0.0.2 and
// up, with silent, slow and garbage connections and with such as have the form
// of a first message, while links of a known peer come up. Every one of those
// must.
func TestFlood(t *testing.T) {
	p := newPair(t)
	p.start("log: {level: error}\n", "log: {level: error}\n")
	lab.Eventually(t, "the link is up", func() bool { return p.near.metric(`sealane_link_up{peer="far"}`) == 1 })
	setups := size(30, 200)
	quiet := p.setups(t, setups)
	baseline := p.far.usage()

	f := startFlood(t, p.link, size(200, 600))
	lab.Eventually(t, "the flood is there", func() bool { return f.opened.Load() > int64(size(200, 600)) })
	flooded := p.setups(t, setups)
	// A whole sidecar starts in the middle of it, too.
	fresh := &node{t: t, dir: p.near.dir, name: "fresh", admin: lab.Address(t)}
	p.transfers, p.echoes = lab.Address(t), lab.Address(t)
	fresh.start("identity: near.key\n" + p.nearConfig(fmt.Sprintf("[%q]", p.farKey)))
	fresh.ready()
	if err := p.tally.Run(lab.Transfer{Seed: 3, Up: 1 << 20, Down: 1 << 20}, p.transfers, transferLimit); err != nil {
		t.Errorf("a transfer during the flood: %v", err)
	}
	during := p.far.usage()
	f.stop()
	if code := fresh.stop(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	after := p.far.settles(baseline)
	t.Logf("set-up of %d links in peace: %v; in a flood of %d connections (%d silent, slow, garbage and well-formed at a time, of each): %v",
		setups, quiet, f.opened.Load(), f.each, flooded)
	t.Logf("far: %v before, %v during, %v after", baseline, during, after)
	if quiet.ok < setups || flooded.ok < setups {
		t.Error("a link did not come up")
	}
}

// result is how set-ups went.
type result struct {
	ok, first int // in the end, at the first attempt
	p99       time.Duration
}

func (r result) String() string {
	return fmt.Sprintf("%d succeeded, %d at once, p99 %v", r.ok, r.first, r.p99)
}

// maxAttempts is how often a link is dialed before it counts as failed.
const maxAttempts = 20

// setups makes links as near's key allows, a few at a time.
func (p *pair) setups(t *testing.T, count int) result {
	t.Helper()
	pem, err := os.ReadFile(p.near.dir + "/near.key")
	if err != nil {
		t.Fatal(err)
	}
	key, err := session.ParsePrivateKey(pem)
	if err != nil {
		t.Fatal(err)
	}
	peer, err := session.ParsePublicKey(p.farKey)
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var took []time.Duration
	first := 0
	var next atomic.Int64
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for next.Add(1) <= int64(count) {
				begun, attempts := time.Now(), 1
				for ; setUp(p.link, key, peer) != nil; attempts++ {
					if attempts == maxAttempts {
						return
					}
					time.Sleep(250 * time.Millisecond) // a sidecar redials
				}
				mu.Lock()
				took = append(took, time.Since(begun))
				if attempts == 1 {
					first++
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if len(took) == 0 {
		return result{}
	}
	slices.Sort(took)
	return result{len(took), first, took[min(len(took)-1, len(took)*99/100)].Round(100 * time.Microsecond)}
}

func setUp(address string, key *session.PrivateKey, peer session.PublicKey) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	s, err := session.Initiate(ctx, c, peer, session.Config{Key: key})
	if err != nil {
		return err
	}
	return s.Close()
}

// A flood keeps strangers connected until it is stopped.
type flood struct {
	each   int // connections at a time, of each kind
	opened atomic.Int64
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

func startFlood(t *testing.T, address string, each int) *flood {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	f := &flood{each: each, cancel: cancel}
	for i := range 4 * each {
		f.wg.Go(func() {
			random := rand.New(rand.NewPCG(uint64(i), 13))
			for ctx.Err() == nil {
				f.stranger(ctx, address, i, random)
			}
		})
	}
	t.Cleanup(f.stop)
	return f
}

func (f *flood) stop() {
	f.cancel()
	f.wg.Wait()
}

// stranger is one connection, until the sidecar or the flood ends it.
func (f *flood) stranger(ctx context.Context, address string, i int, random *rand.Rand) {
	from := net.IPv4(127, 0, 0, byte(2+i%50))
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: from}, Control: reuse}
	c, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		pause(ctx, 100*time.Millisecond)
		return
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	f.opened.Add(1)
	switch i % 4 {
	case 1: // a byte a second of what could be a message
		go func() {
			for _, b := range []byte(`{"sdmp":{"version":"1.0","schema":"encrypted"}`) {
				if _, err := c.Write([]byte{b}); err != nil || pause(ctx, time.Second) != nil {
					return
				}
			}
		}()
	case 2:
		garbage := make([]byte, 1+random.IntN(2000))
		for j := range garbage {
			garbage[j] = byte(random.Uint32())
		}
		c.Write(garbage)
	case 3:
		share := make([]byte, container.ShareLen)
		for j := range share {
			share[j] = byte(random.Uint32())
		}
		c.Write(container.AppendShare(nil, share))
		for err == nil { // nothing that comes is answered
			_, err = c.Read(share)
		}
	}
	c.Read(make([]byte, 1)) // until the sidecar closes it
	pause(ctx, 500*time.Millisecond)
}

// pause is the flood's pace.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// reuse lets one source address have more connections than ports that rest.
func reuse(_, _ string, raw syscall.RawConn) error {
	var err error
	raw.Control(func(fd uintptr) { err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1) })
	return err
}
