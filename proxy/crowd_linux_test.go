package proxy

import (
	"net"
	"testing"

	"golang.org/x/sys/unix"
)

// TestCrowd: of more than crowd connections, the kernel keeps less for those
// that came last.
func TestCrowd(t *testing.T) {
	const more = 5
	hold := make(chan struct{})
	defer close(hold)
	addr := newTarget(t, "", func(net.Conn) { <-hold })
	web, db, _ := newSidecars(t, Config{Listeners: []Listener{listenOn(t, KindForward, "127.0.0.1:0")}}, Config{Services: serviceAt(t, addr)})
	for range crowd + more {
		dialTo(t, "tcp", web.node.addr(0))
	}
	for _, side := range []struct {
		n              *node
		unsent, unread int // connections with that limit
	}{{web.node, more, more}, {db.node, more, 0}} {
		eventually(t, "all are open", func() bool { return len(side.n.running(nil)) == crowd+more })
		eventually(t, "the limits of those that came last", func() bool {
			unsent, unread := 0, 0
			for _, s := range side.n.running(nil) {
				s.near.rd.raw.Control(func(fd uintptr) {
					if n, err := unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT); err == nil && n == unsentLimit {
						unsent++
					}
					if n, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF); err == nil && n == 2*unreadLimit { // the kernel doubles it
						unread++
					}
				})
			}
			return unsent == side.unsent && unread == side.unread
		})
	}
}
