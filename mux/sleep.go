package mux

// Sleep is for a stream that has been silent. It frees what reading needed and
// returns true; from then on nobody may read the stream until wake is called,
// once and in its own goroutine, because something came to be read or the link
// died. It returns false, and will not call wake, if that is so already.
//
// What this node does to the stream does not wake: see OnAbort.
func (s *Stream) Sleep(wake func()) bool {
	s.readMu.Lock()
	defer s.readMu.Unlock()
	if s.readState() != nil || !s.link.guard.sleep(s.flow, wake) {
		return false
	}
	s.ys.Shrink()
	s.mu.Lock()
	defer s.mu.Unlock()
	// A link that ended before it could wake anybody does not do it again.
	return !s.linkDead || !s.link.guard.unsleep(s.flow)
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

// unsleep takes wake back, and reports whether it was not called yet.
func (g *guard) unsleep(f *flow) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	asleep := f.wake != nil
	f.wake = nil
	return asleep
}

// rouse calls the flow's wake, if there is a flow that sleeps.
func (g *guard) rouse(f *flow) {
	if f == nil {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	f.rouse()
}

// rouse calls the flow's wake, if it sleeps.
func (f *flow) rouse() {
	if f.wake != nil {
		go f.wake()
		f.wake = nil
	}
}
