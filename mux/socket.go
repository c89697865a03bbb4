package mux

import (
	"net"
	"time"
)

// What the kernel is told about links over TCP: to notice a dead peer in case
// this process does not run. It may not be sooner than watch, which goes by
// progress: the kernel's own timeouts count from the start of a recovery, also
// while that moves. Its probes come at a steady beat, so they begin only where
// no ping has come for longer than two idle pauses.
const keepAliveIdle = 30 * time.Second

func keepAlive(limit time.Duration) net.KeepAliveConfig {
	return net.KeepAliveConfig{Enable: true, Idle: keepAliveIdle, Interval: max(10*time.Second, limit), Count: 3}
}

// userTimeout is for what the peer's kernel leaves unacknowledged, probes
// among it: longer than a ping's pause, and all that watch grants.
func userTimeout(limit time.Duration) time.Duration { return max(time.Minute, 4*limit) }
