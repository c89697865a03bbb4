package proxy

import (
	"errors"
	"io"
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
// It has a goroutine for each direction, both of its own: their stacks stay
// small, where the one that dialed and logged has grown, and most connections
// are idle most of the time.
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
	go s.upload()
	go s.download()
}

// stopped is called when a direction no longer runs.
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
	s.done(o)
}

// fail ends both sides at once. The first call decides the outcome.
func (s *splice) fail(o outcome) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.final != nil {
		return
	}
	s.final = &o
	s.far.abort(o.code)
	s.near.reset()
}

// upload carries bytes from the near side to the far side.
func (s *splice) upload() {
	defer s.stopped()
	err := s.far.copyFrom(&s.reader)
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

// A nearReader counts what comes from the near side, and keeps its error
// apart from the far side's.
type nearReader struct {
	s   *splice
	err error
}

func (r *nearReader) ReadLazy(take func() []byte, drop func()) (int, error) {
	n, err := r.s.near.ReadLazy(take, drop)
	if n > 0 {
		r.s.moved(&r.s.out, Out, n)
	}
	if err != nil && err != io.EOF {
		r.err = err
	}
	return n, err
}

func (r *nearReader) Read(b []byte) (int, error) {
	return r.ReadLazy(func() []byte { return b }, func() {})
}

// download carries bytes from the far side to the near side.
func (s *splice) download() {
	defer s.stopped()
	err := s.far.copyTo(&s.writer)
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

// A nearWriter counts what reaches the near side, and keeps its error apart
// from the far side's.
type nearWriter struct {
	s   *splice
	err error
}

func (w *nearWriter) Write(b []byte) (int, error) {
	n, err := w.s.near.Write(b)
	if n > 0 {
		w.s.moved(&w.s.in, In, n)
	}
	if err != nil {
		w.err = err
	}
	return n, err
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
// died, and the timeouts. It is called now and then, by one goroutine.
func (s *splice) sweep(now time.Time, t Timeouts) {
	moved := s.out.Load() + s.in.Load() + int64(s.ended.Load())
	if moved != s.lastMoved || s.lastMovedAt.IsZero() {
		s.lastMoved, s.lastMovedAt = moved, now
		return
	}
	limit, what := t.Idle, "idle"
	if s.ended.Load() > 0 && t.HalfClose > 0 {
		limit, what = t.HalfClose, "half-closed and idle"
	}
	switch {
	case s.near.broken():
		s.fail(outcome{ResultReset, "the " + s.nearName() + " is gone", mux.ResetApp})
	case s.far.broken():
		s.fail(outcome{ResultReset, "the target is gone", mux.ResetApp})
	case limit > 0 && now.Sub(s.lastMovedAt) >= limit:
		s.fail(outcome{ResultTimedOut, what + " for " + limit.String(), mux.ResetTimedOut})
	}
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

func (d directSide) abort(mux.ResetCode) { d.reset() }

func (d directSide) explain(err error) outcome {
	return outcome{ResultReset, "the target aborted: " + err.Error(), mux.ResetApp}
}
