package mux

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/yamux"

	"github.com/sealane/sealane/session"
)

// A Stream carries one app connection. It is a net.Conn with half-close and
// reset:
//
// Read returns io.EOF only after the peer's END, whose count of bytes was
// right. After the peer's RESET it returns a *ResetError, and after any other
// end an error that wraps ErrTruncated.
//
// CloseWrite ends this direction. Close, unless both directions have ended,
// aborts both, as Reset does. Neither Close nor Reset ever waits.
//
// A write deadline that passes in the middle of a write aborts the stream.
type Stream struct {
	flow   *flow
	link   *link
	opener bool
	open   Open   // where it leads; set once OPEN was sent or read
	parser parser // the link's reader's own

	// Writing. writeMu protects sent, begun and torn.
	writeMu sync.Mutex
	sent    uint64 // bytes of DATA
	begun   bool   // OPEN or OPENED was sent, so that RESET may be
	torn    bool   // a frame was sent in part: nothing may follow

	mu       sync.Mutex
	ys       *yamux.Stream // nil until attached
	ending   bool          // END is being sent, or was
	endSent  bool
	endIn    bool        // END has arrived
	endRead  bool        // all before it was read
	cause    error       // why the stream was aborted
	finished bool        // both directions ended, or it was aborted
	closed   atomic.Bool // both ended: all that is due is the peer's FIN
	linkDead bool        // nothing more comes
	onAbort  []func()
	cancel   context.CancelFunc // of the Inbound's context

	// What has arrived, under mu. some is told of each change.
	some   sync.Cond
	first  []byte // the body of OPEN or OPENED, until it is read
	met    bool   // it was read
	queue  queue
	readBy expiry
	parked parking // of a WriteTo that waits
	wake   func()  // whom to tell that something came; nil unless it sleeps
}

func newStream(l *link, f *flow) *Stream {
	s := &Stream{flow: f, link: l, opener: f.outbound}
	s.parser.order.accepter = s.opener
	s.queue.unread = &l.mux.accounts.unread
	s.some.L = &s.mu
	return s
}

// attach tells the stream which of yamux's it is, before anybody else uses it.
func (s *Stream) attach(ys *yamux.Stream) {
	s.mu.Lock()
	s.ys = ys
	aborted := s.cause != nil
	s.mu.Unlock()
	if aborted {
		ys.Close()
	}
}

// Peer returns the name of the peer at the other end.
func (s *Stream) Peer() string { return s.link.peerName }

// Err returns why the stream was aborted, nil if it was not.
func (s *Stream) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cause
}

// OnAbort calls f in its own goroutine when the stream is aborted: by RESET
// from either end, by the death of its link, by the peer giving it up. It does
// so although nobody reads or writes at that time. A stream that has both its
// ENDs is never aborted.
func (s *Stream) OnAbort(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.cause != nil:
		go f()
	case !s.finished:
		s.onAbort = append(s.onAbort, f)
	}
}

// Write writes app bytes, in DATA frames.
func (s *Stream) Write(p []byte) (total int, err error) {
	s.writeMu.Lock()
	defer s.writeMu.Unlock()
	if len(p) == 0 {
		return 0, s.writeState()
	}
	for len(p) > 0 {
		room, err := s.awaitRoom()
		if err != nil {
			return total, err
		}
		b := session.NewBuffer()
		n := copy(dataRoom(b, room), p)
		ahead, err := s.sendData(b, n)
		if err != nil {
			return total, err
		}
		s.link.flush(ahead)
		p = p[n:]
		total += n
	}
	return total, nil
}

// awaitRoom waits until the peer takes a DATA frame, and returns how large its
// body may be.
func (s *Stream) awaitRoom() (int, error) {
	if err := s.writeState(); err != nil {
		return 0, err
	}
	credit, err := s.awaitCredit(frameHeaderLen + 1)
	return min(credit-frameHeaderLen, s.link.maxData()), err
}

// awaitCredit waits until n bytes may be sent. Unless that takes too long, an
// error is the end of the stream.
func (s *Stream) awaitCredit(n int) (int, error) {
	credit, err := s.link.guard.awaitCredit(s.flow, n)
	if err == errFlowOver {
		err = s.writeError()
	}
	return credit, err
}

// dataRoom is where the bytes of a DATA frame go in a buffer: behind room for
// the headers of yamux and frame.
func dataRoom(b *session.Buffer, n int) []byte {
	const start = yamuxHeaderLen + frameHeaderLen
	return b.Body()[start : start+n]
}

// sendData sends the first n bytes of a buffer's dataRoom, with writeMu held,
// and reports whether they left ahead of others: somebody has to call flush with
// that. The buffer is gone.
func (s *Stream) sendData(b *session.Buffer, n int) (ahead bool, err error) {
	err = s.writeState()
	if err == nil {
		_, err = s.awaitCredit(frameHeaderLen + n)
	}
	if err != nil {
		b.Free()
		return false, err
	}
	frame := b.Body()[yamuxHeaderLen:]
	frame[0] = frameData
	putLength(frame, n)
	ahead, err = s.link.guard.sendBuffer(s.flow, b, yamuxHeaderLen+frameHeaderLen+n)
	if err != nil {
		s.torn = true
		return false, s.writeError()
	}
	s.sent += uint64(n)
	return ahead, nil
}

func (s *Stream) writeState() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.cause != nil:
		return s.cause
	case s.endSent:
		return fmt.Errorf("write after CloseWrite: %w", net.ErrClosed)
	}
	return nil
}

// writeFrame sends a small frame, in pieces if the peer's grants are tiny.
// Somebody has to call FlushFirst.
func (s *Stream) writeFrame(frame []byte) error {
	if s.torn {
		return s.writeError()
	}
	g := s.link.guard
	for sent := 0; sent < len(frame); {
		credit, err := g.awaitCredit(s.flow, 1)
		if err == os.ErrDeadlineExceeded && sent == 0 {
			return err
		}
		if err == nil {
			n := min(credit, len(frame)-sent)
			err = g.sendSmall(s.flow, frame[sent:sent+n])
			sent += n
		}
		if err != nil {
			s.torn = true
			if err == os.ErrDeadlineExceeded {
				s.abort(fmt.Errorf("%w: %w", ErrTruncated, err), true)
			}
			return s.writeError()
		}
	}
	return nil
}

// writeError is why nothing can be sent any more.
func (s *Stream) writeError() error {
	s.abort(s.truncated(), false)
	return s.Err()
}

// CloseWrite ends this direction with END. It waits for a Write in progress.
func (s *Stream) CloseWrite() error {
	s.writeMu.Lock()
	defer s.writeMu.Unlock()
	if err := s.writeState(); err != nil {
		return err
	}
	s.mu.Lock()
	s.ending = true
	s.mu.Unlock()
	var b [frameHeaderLen + endBody]byte
	err := s.writeFrame(appendEnd(b[:0], s.sent))
	s.mu.Lock()
	s.endSent = err == nil
	s.ending = s.endSent
	done := s.finishLocked()
	s.mu.Unlock()
	if err != nil {
		return err
	}
	if done {
		s.finish() // FIN takes END along
	}
	s.link.guard.conn.FlushFirst()
	return nil
}

// Close ends the stream. Unless both directions have ended, that is a reset.
func (s *Stream) Close() error {
	s.abort(net.ErrClosed, true)
	return nil
}

// Reset aborts both directions and tells the peer why.
func (s *Stream) Reset(code ResetCode) {
	s.abort(&ResetError{Code: code}, true)
}

// finishLocked tells, once, that both directions have ended.
func (s *Stream) finishLocked() bool {
	if !s.endSent || !s.endRead || s.finished {
		return false
	}
	s.finished = true
	s.onAbort = nil
	return true
}

// finish closes the yamux stream of a stream whose directions have ended. The
// stream keeps its place until the peer's FIN says that all has arrived there:
// END may only be queued yet (SPEC.md section 7).
func (s *Stream) finish() {
	s.closed.Store(true)
	s.ys.Close()
	if over, taken := s.link.guard.over(s.flow); over {
		s.link.remove(s, taken)
	}
}

// over is receiver's.
func (s *Stream) over(taken bool) {
	if s.closed.Load() {
		s.link.remove(s, taken)
	}
}

// abort ends the stream with an error, once, drops what was not read, and
// wakes whoever reads or writes. With tell, the peer gets a RESET.
func (s *Stream) abort(cause error, tell bool) {
	s.mu.Lock()
	if s.finished {
		s.mu.Unlock()
		return
	}
	s.finished = true
	s.cause = cause
	s.queue.drop()
	s.parser.body = nil
	if !s.opener {
		s.first = nil // of an opener, the answer says why
	}
	s.some.Broadcast()
	callbacks := s.onAbort
	s.onAbort = nil
	attached := s.ys != nil
	s.mu.Unlock()
	// Asked now: a link that ends right behind a stream that its peer gave up
	// has not taken it along.
	lost := errors.Is(cause, ErrTruncated) && s.link.cause() != nil
	s.endContext()
	s.link.guard.abandon(s.flow)
	for _, f := range callbacks {
		go f()
	}
	if attached {
		go s.tearDown(cause, tell, lost)
	} else {
		s.link.remove(s, true)
	}
}

// tearDown sends RESET if that can be done without waiting for the peer, and
// closes the yamux stream, which means the same. It has its own goroutine
// because a congested link makes even that wait. A stream that is lost had its
// link taken away in the midst of it.
func (s *Stream) tearDown(cause error, tell, lost bool) {
	var code ResetCode
	if r := (*ResetError)(nil); errors.As(cause, &r) {
		code = r.Code
	}
	s.writeMu.Lock()
	if tell && s.begun && !s.torn && s.link.guard.credit(s.flow) >= frameHeaderLen+resetBody {
		var b [frameHeaderLen + resetBody]byte
		s.link.guard.sendSmall(s.flow, appendReset(b[:0], code))
	}
	established := s.begun && s.answered()
	s.writeMu.Unlock()
	s.ys.Close()
	if established && lost {
		s.link.mux.lost.Add(1) // before it may seem that all have finished
	}
	s.link.remove(s, true)
}

// endContext ends the Inbound's context, if there is one.
func (s *Stream) endContext() {
	s.mu.Lock()
	cancel := s.cancel
	s.cancel = nil
	s.mu.Unlock()
	if cancel != nil {
		cancel()
	}
}

// SetDeadline implements net.Conn.
func (s *Stream) SetDeadline(t time.Time) error {
	if err := s.SetReadDeadline(t); err != nil {
		return err
	}
	return s.SetWriteDeadline(t)
}

// SetReadDeadline implements net.Conn.
func (s *Stream) SetReadDeadline(t time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cause != nil {
		return s.cause
	}
	s.readBy.set(t, &s.some)
	return nil
}

// SetWriteDeadline implements net.Conn.
func (s *Stream) SetWriteDeadline(t time.Time) error {
	if err := s.Err(); err != nil {
		return err
	}
	s.link.guard.setWriteBy(s.flow, t)
	return nil
}

// LocalAddr implements net.Conn.
func (s *Stream) LocalAddr() net.Addr { return streamAddr("sealane") }

// RemoteAddr implements net.Conn. It is the peer's name.
func (s *Stream) RemoteAddr() net.Addr { return streamAddr(s.link.peerName) }

type streamAddr string

func (streamAddr) Network() string  { return "sealane" }
func (a streamAddr) String() string { return string(a) }
