package mux

import "time"

// What the kernel is told about links over TCP. Its probes come at a steady
// beat, so they begin only where no ping has come for longer than two idle
// pauses: on a link whose process does not run.
const (
	keepAliveIdle     = 30 * time.Second
	keepAliveInterval = 10 * time.Second
	keepAliveCount    = 3
	userTimeout       = 15 * time.Second
)
