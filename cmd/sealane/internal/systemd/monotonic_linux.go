package systemd

import (
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// monotonic is the clock by which systemd tells a new reload from an old one.
func monotonic() (time.Duration, error) {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
		return 0, os.NewSyscallError("clock_gettime", err)
	}
	return time.Duration(t.Nano()), nil
}
