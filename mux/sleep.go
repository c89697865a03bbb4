package mux

// Sleep is for a stream that has been silent. It frees what reading needed and
// returns true; from then on nobody may read the stream until wake is called,
// once and in its own goroutine, because something came to be read. It returns
// false, and will not call wake, if something is there already.
//
// Only what the peer sends wakes: see OnAbort for the rest.
func (s *Stream) Sleep(wake func()) bool {
	s.readMu.Lock()
	defer s.readMu.Unlock()
	if s.readState() != nil || !s.link.guard.sleep(s.flow, wake) {
		return false
	}
	s.ys.Shrink()
	return true
}

// sleep makes wake the flow's, unless something came and was not read.
func (g *guard) sleep(f *flow, wake func()) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if f.unread > 0 || f.remoteFin || f.dead {
		return false
	}
	f.wake = wake
	return true
}

// rouse calls the flow's wake, if it sleeps.
func (f *flow) rouse() {
	if f.wake != nil {
		go f.wake()
		f.wake = nil
	}
}
