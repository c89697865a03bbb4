package proxy

import (
	"errors"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sealane/sealane/mux"
)

// stream is a stream to a peer: a *mux.Stream.
type stream interface {
	io.ReadWriteCloser
	io.ReaderFrom // takes a mux.LazyReader
	io.WriterTo
	// CloseWrite sends END. Read gives io.EOF only after the peer's END.
	CloseWrite() error
	// Reset aborts both directions. It never waits.
	Reset(mux.ResetCode)
	// OnAbort calls f in a goroutine if the stream is aborted.
	OnAbort(f func())
	// Err is why it was aborted.
	Err() error
	// SetReadDeadline ends a Read or WriteTo that waits.
	SetReadDeadline(time.Time) error
	// Sleep calls wake when there is something to read, or returns false.
	Sleep(wake func()) bool
}

// far is the side of a splice that is not the near conn: a peer's stream, or
// the target of a direct route.
type far interface {
	CloseWrite() error
	// copyFrom sends what r gives, until its end, and copyTo writes to w what
	// comes, until the direction's proper end.
	copyFrom(r mux.LazyReader) error
	copyTo(w io.Writer) error
	// abort ends both directions at once, for the reason that code names.
	abort(code mux.ResetCode)
	// finish closes it after both directions ended properly.
	finish()
	// explain says what an error of this side means.
	explain(err error) outcome
	// onAbort calls f with the error if this side fails while nobody uses it,
	// and broken reports that. A side does one or the other.
	onAbort(f func(error))
	broken() bool
	// doze makes a copyTo that waits return os.ErrDeadlineExceeded. Then sleep
	// calls wake when there is something to copy, or returns false. doze
	// returns false if this side never sleeps.
	doze() bool
	sleep(wake func()) bool
}

// An outcome is how a spliced connection ended.
type outcome struct {
	result Result
	reason string
	code   mux.ResetCode // for the other side
}

// A splice carries bytes between a near conn and a far side until both
// directions end, or one side fails and takes the other with it.
//
// Each direction has a goroutine while bytes move, and none while the
// connection is idle: see doze.go.
type splice struct {
	near    *conn
	far     far
	rec     *record
	revoked func(*state) string // why a new state ends it, or ""

	count   func(peer string, dir Direction, n int) // nil: none
	out, in atomic.Int64                            // bytes from and to the near side
	ended   atomic.Int32                            // directions that ended properly
	left    atomic.Int32                            // directions that still run
	done    func(outcome)

	reader nearReader
	writer nearWriter

	up, down atomic.Int32 // each direction's awake, asleep or over

	mu    sync.Mutex
	final *outcome // set once

	// The rest is the sweeper's.
	lastMoved   int64
	lastMovedAt time.Time
}

// start carries bytes until both directions have ended and both sides are
// closed; then it calls done.
func (s *splice) start() {
	s.reader.s, s.writer.s = s, s
	s.far.onAbort(func(err error) { s.fail(s.far.explain(err)) })
	s.left.Store(2)
	// Both in goroutines of their own: the stack of the one that dialed and
	// logged has grown.
	go s.upload()
	go s.download()
}

// stopped is called when a direction has come to its end.
func (s *splice) stopped() {
	if s.left.Add(-1) > 0 {
		return
	}
	s.mu.Lock()
	if s.final == nil {
		s.final = &outcome{result: ResultOK}
		s.near.finish()
		s.far.finish()
	}
	o := *s.final
	s.mu.Unlock()
	s.near.unregister()
	s.done(o)
}

// fail ends both sides at once. The first call decides the outcome.
func (s *splice) fail(o outcome) {
	s.mu.Lock()
	first := s.final == nil
	if first {
		s.final = &o
		s.far.abort(o.code)
		s.near.reset()
	}
	s.mu.Unlock()
	if first {
		s.wakeUpload()
		s.wakeDownload()
	}
}

func (s *splice) failed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.final != nil
}

// upload carries bytes from the near side to the far side.
func (s *splice) upload() {
	for {
		err := s.far.copyFrom(&s.reader)
		if !errors.Is(s.reader.err, os.ErrDeadlineExceeded) {
			s.uploaded(err)
			s.up.Store(over)
			s.stopped()
			return
		}
		s.reader.err = nil
		if s.sleepUpload() {
			return
		}
	}
}

func (s *splice) uploaded(err error) {
	switch {
	case s.reader.err != nil:
		s.fail(s.nearFailed(s.reader.err))
		return
	case err == nil:
		err = s.far.CloseWrite()
	}
	if err != nil {
		s.fail(s.far.explain(err))
		return
	}
	s.ended.Add(1)
}

// download carries bytes from the far side to the near side.
func (s *splice) download() {
	for {
		err := s.far.copyTo(&s.writer)
		if s.writer.err != nil || !errors.Is(err, os.ErrDeadlineExceeded) {
			s.downloaded(err)
			s.down.Store(over)
			s.stopped()
			return
		}
		if s.sleepDownload() {
			return
		}
	}
}

func (s *splice) downloaded(err error) {
	switch {
	case s.writer.err != nil:
		s.fail(s.nearFailed(s.writer.err))
		return
	case err != nil:
		s.fail(s.far.explain(err))
		return
	}
	if err := s.near.CloseWrite(); err != nil {
		s.fail(s.nearFailed(err))
		return
	}
	s.ended.Add(1)
}

// A nearReader counts what comes from the near side, and keeps its error
// apart from the far side's.
type nearReader struct {
	s   *splice
	err error
}

func (r *nearReader) ReadLazy(take func() [][]byte, drop func()) (int, error) {
	n, err := r.s.near.ReadLazy(take, drop)
	r.note(n, err)
	return n, err
}

func (r *nearReader) note(n int, err error) {
	if n > 0 {
		r.s.moved(&r.s.out, Out, n)
	}
	if err != nil && err != io.EOF {
		r.err = err
	}
}

func (r *nearReader) Read(b []byte) (int, error) {
	return r.ReadLazy(func() [][]byte { return [][]byte{b} }, func() {})
}

// A nearWriter counts what reaches the near side, and keeps its error apart
// from the far side's.
type nearWriter struct {
	s   *splice
	err error
}

func (w *nearWriter) Write(b []byte) (int, error) {
	n, err := w.s.near.Write(b)
	w.note(n, err)
	return n, err
}

// TryWrite is mux.Sink's.
func (w *nearWriter) TryWrite(pieces [][]byte) (int, error) {
	n, err := w.s.near.TryWrite(pieces)
	w.note(n, err)
	return n, err
}

func (w *nearWriter) note(n int, err error) {
	if n > 0 {
		w.s.moved(&w.s.in, In, n)
	}
	if err != nil {
		w.err = err
	}
}

func (s *splice) moved(total *atomic.Int64, dir Direction, n int) {
	total.Add(int64(n))
	if s.count != nil {
		s.count(s.rec.peer, dir, n)
	}
}

func (s *splice) nearFailed(err error) outcome {
	return outcome{ResultReset, "the " + s.nearName() + " aborted: " + err.Error(), mux.ResetApp}
}

func (s *splice) nearName() string {
	if s.rec.listener == "" {
		return "target"
	}
	return "app"
}

// sweep checks what neither direction notices while it waits: a side that
// died, and the timeouts. It makes an idle connection doze, and reports whether
// it did. It is called now and then, by one goroutine.
func (s *splice) sweep(now time.Time, t Timeouts) (dozed bool) {
	moved := s.out.Load() + s.in.Load() + int64(s.ended.Load())
	if moved != s.lastMoved || s.lastMovedAt.IsZero() {
		s.lastMoved, s.lastMovedAt = moved, now
		return false
	}
	limit, what := t.Idle, "idle"
	if s.ended.Load() > 0 && t.HalfClose > 0 {
		limit, what = t.HalfClose, "half-closed and idle"
	}
	switch {
	case s.up.Load() != asleep && s.near.broken():
		s.fail(outcome{ResultReset, "the " + s.nearName() + " is gone", mux.ResetApp})
	case s.far.broken():
		s.fail(outcome{ResultReset, "the target is gone", mux.ResetApp})
	case limit > 0 && now.Sub(s.lastMovedAt) >= limit:
		s.fail(outcome{ResultTimedOut, what + " for " + limit.String(), mux.ResetTimedOut})
	default:
		return s.doze()
	}
	return false
}

// A muxSide is the far side that is a stream to a peer.
type muxSide struct{ stream }

func (m muxSide) copyFrom(r mux.LazyReader) error {
	_, err := m.ReadFrom(r)
	return err
}

func (m muxSide) copyTo(w io.Writer) error {
	_, err := m.WriteTo(w)
	return err
}

func (m muxSide) abort(code mux.ResetCode) { m.Reset(code) }

func (m muxSide) finish() { m.Close() }

func (m muxSide) onAbort(f func(error)) { m.OnAbort(func() { f(m.Err()) }) }

func (m muxSide) broken() bool { return false }

func (m muxSide) doze() bool { return m.SetReadDeadline(time.Unix(1, 0)) == nil }

func (m muxSide) sleep(wake func()) bool {
	m.SetReadDeadline(time.Time{})
	return m.Sleep(wake)
}

func (m muxSide) explain(err error) outcome {
	var reset *mux.ResetError
	switch {
	case errors.As(err, &reset):
		return outcome{resetResult(reset.Code), reset.Error(), reset.Code}
	case errors.Is(err, mux.ErrPeerRemoved):
		return outcome{ResultCut, err.Error(), mux.ResetUnspecified}
	}
	return outcome{ResultTruncated, err.Error(), mux.ResetUnspecified}
}

func resetResult(code mux.ResetCode) Result {
	switch code {
	case mux.ResetTimedOut:
		return ResultTimedOut
	case mux.ResetShuttingDown:
		return ResultCut
	case mux.ResetOverloaded:
		return ResultOverloaded
	}
	return ResultReset
}

// A directSide is the far side that is the target of a direct route.
type directSide struct{ *conn }

func (d directSide) copyFrom(r mux.LazyReader) error { return copyLazy(d, r) }

func (d directSide) copyTo(w io.Writer) error { return copyLazy(w, d) }

func (d directSide) onAbort(func(error)) {}

func (d directSide) doze() bool { return false }

func (d directSide) sleep(func()) bool { return false }

func (d directSide) abort(mux.ResetCode) { d.reset() }

func (d directSide) explain(err error) outcome {
	return outcome{ResultReset, "the target aborted: " + err.Error(), mux.ResetApp}
}
