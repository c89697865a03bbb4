package redirect

import (
	"context"
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// lockWait is longer than another up or down takes.
	lockWait  = 20 * time.Second
	lockPause = 5 * time.Millisecond
)

// lock waits until no other up or down is at work in this network namespace, whose file it locks: of two at once, one
// could undo what the other has reported to be in force. The function that it returns ends that for this one, as the
// end of the process does. Every user may hold the lock, and must not keep rules from being installed: after a while
// it goes on without. A watch, which puts rules back where there are none, waits for nobody.
func lock(ctx context.Context) (unlock func()) {
	f, err := os.Open("/proc/self/ns/net")
	if err != nil {
		return func() {}
	}
	ctx, cancel := context.WithTimeout(ctx, lockWait)
	defer cancel()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return func() { f.Close() }
		}
		select {
		case <-time.After(lockPause):
		case <-ctx.Done():
			return func() { f.Close() }
		}
	}
}
