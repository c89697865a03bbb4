package session

import (
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestKernelFollowsThePace: a link that was slow, or too new to say, has the
// kernel wake its sender for each few bytes. Once it is fast that is over,
// although the kernel then never holds so much that anybody would wait for it.
func TestKernelFollowsThePace(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var tx transmitter
	tx.init(c)
	lowat := func() (n int) {
		tx.kernel.raw.Control(func(fd uintptr) { n, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT) })
		return n
	}
	fast := func() {
		tx.out = make([]byte, 512<<10)
		for range 3 {
			tx.observe(len(tx.out), false, time.Now().Add(-time.Millisecond))
		}
	}
	fast()
	if n := lowat(); n != 0 {
		t.Fatalf("the kernel was told %d although nobody has waited", n)
	}
	tx.kernel.await(firstAmount / 2)
	if n := lowat(); n != firstAmount || err != nil {
		t.Fatalf("the kernel was told %d, %v", n, err)
	}
	fast()
	if n, amount := lowat(), int(tx.amount.Load()); n < amount/2 || amount < 1<<20 {
		t.Errorf("the kernel was told %d, and %d bytes gather", n, amount)
	}
}
