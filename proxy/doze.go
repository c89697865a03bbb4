package proxy

import "time"

// Most connections are idle most of the time, and a goroutine that waits holds
// a stack of several KiB. So the sweeper makes the directions of an idle
// connection doze: their waits end with os.ErrDeadlineExceeded, they leave word
// where to be woken, and return. The near side's word is with one poller for
// all of them, the far side's with its link.

// doze ends the waits of both directions, and reports whether one was awake
// to notice.
func (s *splice) doze() (dozed bool) {
	if !s.uploadAsleep.Load() && s.near.canSleep() {
		s.near.SetReadDeadline(time.Unix(1, 0))
		dozed = true
	}
	if !s.downloadAsleep.Load() {
		s.far.doze()
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
	s.uploadAsleep.Store(true)
	if s.near.sleep() && !s.over() {
		return true
	}
	// If fail came before the mark, it did not wake this direction.
	return !s.uploadAsleep.CompareAndSwap(true, false)
}

func (s *splice) wakeUpload() {
	if s.uploadAsleep.CompareAndSwap(true, false) {
		go s.upload()
	}
}

// sleepDownload is sleepUpload for the other direction.
func (s *splice) sleepDownload() bool {
	s.downloadAsleep.Store(true)
	if s.far.sleep(s.wakeDownload) && !s.over() {
		return true
	}
	return !s.downloadAsleep.CompareAndSwap(true, false)
}

func (s *splice) wakeDownload() {
	if s.downloadAsleep.CompareAndSwap(true, false) {
		go s.download()
	}
}
