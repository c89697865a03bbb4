// Package faults kills links while data flows and checks that no transfer ever
// looks complete without being so. See TestFaults.
package faults

import (
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"time"
)

// A middle is a relay between a sidecar and its peer that can break each
// connection it carries.
type middle struct {
	listener net.Listener
	target   string

	mu    sync.Mutex
	ended bool
	lines map[*line]struct{}
	wg    sync.WaitGroup
}

// A line is one relayed connection.
type line struct {
	near, far net.Conn
	mu        sync.Mutex
	frozen    bool  // a blackhole: nothing is forwarded, nothing is closed
	stalled   bool  // nothing is even read
	budget    int64 // bytes until it breaks itself; <0: never
	onBudget  func(*line)
	closed    chan struct{} // by cut
	closing   sync.Once
}

func newMiddle(listen, target string) (*middle, error) {
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return nil, err
	}
	m := &middle{listener: l, target: target, lines: make(map[*line]struct{})}
	m.wg.Go(m.serve)
	return m, nil
}

func (m *middle) address() string { return m.listener.Addr().String() }

// close cuts all lines and refuses new ones.
func (m *middle) close() {
	m.listener.Close()
	m.mu.Lock()
	m.ended = true
	m.mu.Unlock()
	m.each(func(l *line) { l.cut(0) })
	m.wg.Wait()
}

func (m *middle) serve() {
	for {
		near, err := m.listener.Accept()
		if err != nil {
			return
		}
		m.wg.Go(func() { m.relay(near) })
	}
}

func (m *middle) relay(near net.Conn) {
	far, err := net.DialTimeout("tcp", m.target, 5*time.Second)
	if err != nil {
		near.Close()
		return
	}
	l := &line{near: near, far: far, budget: -1, closed: make(chan struct{})}
	m.mu.Lock()
	m.lines[l] = struct{}{}
	if m.ended {
		l.cut(0)
	}
	m.mu.Unlock()
	var wg sync.WaitGroup
	wg.Go(func() { l.pump(far, near) })
	wg.Go(func() { l.pump(near, far) })
	wg.Wait()
	near.Close()
	far.Close()
	m.mu.Lock()
	delete(m.lines, l)
	m.mu.Unlock()
}

// pump forwards one direction in small pieces, so that a break lands at any
// offset of a record.
func (l *line) pump(dst, src net.Conn) {
	buf := make([]byte, 16<<10)
	for {
		n, err := src.Read(buf)
		if err == nil && l.isStalled() {
			l.outlive()
			return
		}
		if n > 0 && !l.forward(dst, buf[:n]) {
			return
		}
		if err != nil {
			if err == io.EOF && !l.isFrozen() {
				dst.(*net.TCPConn).CloseWrite()
			}
			return
		}
	}
}

// forward writes p unless the line is frozen, or as much of it as is left
// before the line breaks itself.
func (l *line) forward(dst net.Conn, p []byte) bool {
	l.mu.Lock()
	frozen, breaks := l.frozen, false
	if l.budget >= 0 {
		if int64(len(p)) >= l.budget {
			p, breaks = p[:l.budget], true
		}
		l.budget -= int64(len(p))
	}
	l.mu.Unlock()
	if frozen {
		return true // taken and lost
	}
	if _, err := dst.Write(p); err != nil {
		return false
	}
	if breaks {
		l.onBudget(l)
		return false
	}
	return true
}

// cut ends both sides: with a reset for linger 0, else with a FIN.
func (l *line) cut(linger int) {
	l.closing.Do(func() { close(l.closed) })
	for _, c := range []net.Conn{l.near, l.far} {
		if linger == 0 {
			c.(*net.TCPConn).SetLinger(0)
		}
		c.Close()
	}
}

// freeze stops forwarding without closing anything, as a lost route does.
func (l *line) freeze() {
	l.mu.Lock()
	l.frozen = true
	l.mu.Unlock()
}

// stall stops reading, so that the senders' windows fill up and close. What
// was read last is lost.
func (l *line) stall() {
	l.mu.Lock()
	l.stalled = true
	l.mu.Unlock()
}

func (l *line) isStalled() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.stalled
}

// stallLimit is much longer than a sidecar waits for a sign of life, and than
// an app may wait to be told.
const stallLimit = 3 * time.Minute

// outlive waits until both sidecars must have given a stalled line up.
func (l *line) outlive() {
	select {
	case <-l.closed:
	case <-time.After(stallLimit):
	}
	l.cut(0)
}

func (l *line) isFrozen() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.frozen
}

// breakAfter breaks the line once n more bytes have passed.
func (l *line) breakAfter(n int64, how func(*line)) {
	l.mu.Lock()
	l.budget, l.onBudget = n, how
	l.mu.Unlock()
}

func (m *middle) each(f func(*line)) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	for l := range m.lines {
		f(l)
	}
	return len(m.lines)
}

// random picks one of the lines, or nil.
func (m *middle) random(r *rand.Rand) *line {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.lines) == 0 {
		return nil
	}
	k := r.IntN(len(m.lines))
	for l := range m.lines {
		if k--; k < 0 {
			return l
		}
	}
	return nil
}
