package proxy

import "time"

// Most connections are idle most of the time, and a goroutine that waits holds
// a stack of several KiB. So the sweeper makes the directions of an idle
// connection doze: their waits end with os.ErrDeadlineExceeded, they leave word
// where to be woken, and return. The near side's word is with one poller for
// all of them, the far side's with its link.

// What a direction does.
const (
	awake  = iota // it has a goroutine
	asleep        // it has none, until it is woken
	over          // it has come to its end
)

// doze ends the waits of both directions, and reports whether one was awake
// to notice.
func (s *splice) doze() (dozed bool) {
	if s.up.Load() == awake && s.near.canSleep() {
		s.near.SetReadDeadline(time.Unix(1, 0))
		dozed = true
	}
	if s.down.Load() == awake && s.far.doze() {
		dozed = true
	}
	return dozed
}

// sleepUpload returns true if the direction now sleeps, or was woken already
// and has another goroutine; false if it is to go on.
func (s *splice) sleepUpload() bool {
	s.near.SetReadDeadline(time.Time{})
	if !s.near.canSleep() {
		return false
	}
	s.near.register(s.wakeUpload)
	s.up.Store(asleep)
	if s.near.sleep() && !s.failed() {
		return true
	}
	// If fail came before the mark, it did not wake this direction.
	return !s.up.CompareAndSwap(asleep, awake)
}

func (s *splice) wakeUpload() {
	if s.up.CompareAndSwap(asleep, awake) {
		go s.upload()
	}
}

// sleepDownload is sleepUpload for the other direction.
func (s *splice) sleepDownload() bool {
	s.down.Store(asleep)
	if s.far.sleep(s.wakeDownload) && !s.failed() {
		return true
	}
	return !s.down.CompareAndSwap(asleep, awake)
}

func (s *splice) wakeDownload() {
	if s.down.CompareAndSwap(asleep, awake) {
		go s.download()
	}
}
