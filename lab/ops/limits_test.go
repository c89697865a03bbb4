package ops

import (
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sealane/sealane/lab"
)

// What a sidecar may have resident beside limits.memory: this for itself, and
// for each stream's goroutines and log line.
const (
	residentBase      = 64 << 10 // KiB
	residentPerStream = 16       // KiB
)

// socketBuffer keeps the kernel from taking what is to reach the sidecars.
const socketBuffer = 64 << 10

// TestSlowReaders pushes much at many streams whose ends stand still, in both
// directions, beside a healthy one. None is reset, as plain TCP resets none, and
// what is resident stays within limits.memory and a constant.
func TestSlowReaders(t *testing.T) {
	for _, c := range []struct {
		name          string
		network       string // between sidecars and apps
		memory, count int    // MiB, streams
		push          int64
	}{
		{"little memory", "tcp", size(16, 64), size(100, 1000), int64(size(8<<20, 64<<20))},
		{"default limits", "tcp", 256, size(50, 400), 50_000_000},
		// Four TCP sockets each of so many are more than a kernel has memory for.
		{"a crowd", "unix", size(8, 64), size(500, 4000), int64(size(1<<20, 8<<20))},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.network == "unix" || c.memory == 256 {
				unhurried(t)
			}
			beside(t)
			testSlowReaders(t, c.network, c.memory, c.count, c.push)
		})
	}
}

// standing is how long the readers stand still.
func standing() time.Duration { return size(time.Second, 12*time.Second) }

func testSlowReaders(t *testing.T, network string, memory, count int, push int64) {
	p := newPair(t)
	limits := fmt.Sprintf("limits: {memory: %dMiB}\n", memory)
	hold := make(chan struct{})
	defer close(hold)
	var pushed, done, ended atomic.Int64
	pusher := func(c net.Conn) {
		c.(buffered).SetWriteBuffer(socketBuffer)
		piece := make([]byte, 64<<10)
		for sent := int64(0); sent < push; {
			n, err := c.Write(piece)
			sent += int64(n)
			pushed.Add(int64(n))
			if err != nil {
				ended.Add(1)
				return
			}
		}
		done.Add(1)
	}
	// The target of every other connection pushes too.
	var turn atomic.Int64
	target := func(c net.Conn) {
		c.(buffered).SetReadBuffer(socketBuffer)
		if turn.Add(1)%2 == 0 {
			pusher(c)
		}
		<-hold
		abort(c)
	}
	near := p.echoes
	if network == "tcp" {
		p.echo = serve(t, func(c *net.TCPConn) { target(c) })
	} else {
		dir := lab.TempDir(t, "")
		near = dir + "/near"
		p.echoes, p.echo = "unix:"+near, "unix:"+serveOn(t, "unix", dir+"/target", target)
	}
	p.start(limits, limits)
	amount := uint32(size(2<<20, 64<<20))
	transfer := func(when string) {
		t.Helper()
		begun := time.Now()
		if err := p.tally.Run(lab.Transfer{Seed: 4, Up: amount, Down: amount}, p.transfers, 4*time.Minute); err != nil {
			t.Errorf("the healthy stream, %s: %v", when, err)
		}
		t.Logf("the healthy stream, %s: %.0f MiB/s", when, float64(amount)*2/(1<<20)/time.Since(begun).Seconds())
	}
	transfer("alone")
	var conns []net.Conn
	defer func() {
		for _, c := range conns {
			abort(c)
			c.Close()
		}
	}()
	var opened sync.WaitGroup
	var healthy sync.WaitGroup
	healthy.Go(func() { transfer("while the others fill up") })
	for range count {
		c, err := net.Dial(network, near)
		if err != nil {
			t.Fatal(err)
		}
		c.(buffered).SetReadBuffer(socketBuffer)
		conns = append(conns, c)
		opened.Add(1)
		go func() {
			opened.Done()
			pusher(c)
		}()
	}
	opened.Wait()
	healthy.Wait()
	// All that will ever move has moved when nothing has for a while.
	for before := int64(-1); before != pushed.Load(); time.Sleep(standing()) {
		before = pushed.Load()
	}
	transfer("beside them")
	limit := memory<<10 + residentBase + residentPerStream*count
	one, other := lab.PeakResident(t, p.near.Process), lab.PeakResident(t, p.far.Process)
	t.Logf("%d streams that never read, %d MiB pushed at each: %d MiB taken before they blocked, %d pushers reset; peak resident near %d and far %d KiB, limit %d KiB (limits.memory %d MiB)",
		count, push>>20, pushed.Load()>>20, ended.Load(), one, other, limit, memory)
	if one > limit || other > limit {
		t.Error("too much memory")
	}
	if n := ended.Load(); n > 0 {
		t.Errorf("%d were reset", n)
	}
	if done.Load() == int64(count) {
		t.Error("nobody was stopped, which proves nothing")
	}
}

// buffered is any socket.
type buffered interface {
	SetReadBuffer(n int) error
	SetWriteBuffer(n int) error
}

// abort makes the close of a TCP connection a reset.
func abort(c net.Conn) {
	if t, ok := c.(*net.TCPConn); ok {
		t.SetLinger(0)
	}
}

// TestDescriptors starves a sidecar of descriptors. What is new is refused,
// what runs goes on, and it recovers.
func TestDescriptors(t *testing.T) {
	lab.Need(t, "prlimit")
	for _, who := range []string{"near", "far"} {
		t.Run(who, func(t *testing.T) {
			p := newPair(t)
			starved := p.near
			if who == "far" {
				starved = p.far
			}
			starved.under = []string{"prlimit", "--nofile=128"}
			p.start("", "")
			streams := keepBusy(t, p.echoes, 20, 4096)
			var open []net.Conn
			refused := 0
			for range 200 {
				c, err := net.Dial("tcp", p.echoes)
				if err != nil {
					refused++
					continue
				}
				if goesAround(c) {
					open = append(open, c)
				} else {
					refused++
					c.Close()
				}
			}
			for _, c := range open {
				c.Close()
			}
			lab.Eventually(t, "it recovers", func() bool {
				return p.tally.Run(lab.Transfer{Seed: 2, Up: 1 << 20, Down: 1 << 20}, p.transfers, transferLimit) == nil
			})
			broken, _ := finish(t, streams)
			t.Logf("%s with 128 descriptors: of 200 connections %d opened and %d refused; %d of %d running ones broke; recovered",
				who, len(open), refused, broken, len(streams))
			if broken > 0 || refused == 0 || len(open) == 0 {
				t.Error("not as it should be")
			}
		})
	}
}

// goesAround tells whether a new connection reaches the echo.
func goesAround(c net.Conn) bool {
	c.SetDeadline(time.Now().Add(transferLimit))
	if _, err := c.Write([]byte("x")); err != nil {
		return false
	}
	_, err := io.ReadFull(c, make([]byte, 1))
	return err == nil
}
