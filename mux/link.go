package mux

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/yamux"

	"github.com/sealane/sealane/session"
)

var errDead = errors.New("no sign of life from the peer")

// A sealedConn is a *session.Conn, or a test's stand-in for one.
type sealedConn interface {
	transport
	Err() error
	Done() <-chan struct{}
	Peer() session.PublicKey
	Cipher() string
	Transform() string
	RTT() time.Duration
	Stats() session.Stats
	RemoteAddr() net.Addr
}

// A link is a session with a peer and the yamux connection in it.
type link struct {
	mux      *Mux
	peer     *peer
	peerName string
	conn     sealedConn
	raw      net.Conn // what conn runs over
	guard    *guard
	buffers  bufferPool // for bulk
	spare    bufferPool // for streams that had little to send of late
	ys       *yamux.Session
	dialed   bool
	address  string
	since    time.Time
	lastRTT  atomic.Int64
	lived    atomic.Bool // it has carried a pong
	sweeping atomic.Bool // late streams are being ended

	requests chan *openRequest
	gone     chan struct{} // closed when no more streams can be opened
	retired  sync.Once     // closes gone

	leaveOnce sync.Once
	expected  chan struct{} // has an element when streams have come to a link without
	left      atomic.Bool   // the peer sent go away
	told      chan struct{} // closed when this node has, after leave
	dead      chan struct{} // closed when the link has ended
	done      chan struct{} // closed when its goroutines have, too

	mu      sync.Mutex
	err     error // why it ended
	streams map[*Stream]struct{}
	leaving bool // the streams that still come are refused
	load    atomic.Int64
	lost    atomic.Int64 // streams that ended here, and the peer did not confirm it
	surplus atomic.Bool  // to be closed when it has no streams

	replaced atomic.Bool // ended for a new link, which has its room
}

func newLink(p *peer, conn sealedConn, raw net.Conn, dialed bool, address string) (*link, error) {
	l := &link{
		mux: p.mux, peer: p, peerName: p.name, conn: conn, raw: raw,
		dialed: dialed, address: address, since: time.Now(),
		requests: make(chan *openRequest),
		gone:     make(chan struct{}),
		told:     make(chan struct{}),
		expected: make(chan struct{}, 1),
		dead:     make(chan struct{}),
		done:     make(chan struct{}),
		streams:  make(map[*Stream]struct{}),
	}
	l.guard = newGuard(conn, dialed, p.account, guardHooks{
		goAway:    l.peerLeft,
		ended:     l.ended,
		overdrawn: p.reclaim,
		opened:    l.opened,
	})
	l.buffers.init(p.mux.config().buffers)
	l.spare.init(p.mux.config().buffers)
	l.guard.measured(conn.RTT())
	l.lastRTT.Store(int64(conn.RTT()))
	start := yamux.Server
	if dialed {
		start = yamux.Client
	}
	ys, err := start(l.guard, &yamux.Config{
		AcceptBacklog:          yamuxBacklog,
		KeepAliveInterval:      time.Hour, // off, but not allowed to be 0
		ConnectionWriteTimeout: p.mux.timing.yamux,
		MaxStreamWindowSize:    yamuxWindow,
		Logger:                 yamuxLogger{p.mux.quiet},
	})
	if err != nil {
		conn.Abort(err)
		return nil, fmt.Errorf("starting yamux: %w", err)
	}
	l.ys = ys
	return l, nil
}

// run serves the link until it ends, and then ends its streams.
func (l *link) run() {
	var wg sync.WaitGroup
	wg.Go(l.accept)
	wg.Go(l.opener)
	wg.Go(l.watch)
	select {
	case <-l.ys.CloseChan():
	case <-l.conn.Done():
	}
	l.ended(l.conn.Err())
	l.ys.Close() // its reader has ended
	l.ended(nil) // for streams that came since
	l.guard.end()
	wg.Wait()
	close(l.done)
}

// ended wakes all streams of a link that has ended, before yamux shuts down:
// who waits in yamux then does not sleep but spins until yamux has closed.
func (l *link) ended(err error) {
	l.end(err)
	for _, s := range l.snapshot() {
		s.linkEnded()
	}
}

// end records why the link ended, once.
func (l *link) end(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return
	}
	switch {
	case err == io.EOF:
		err = errPeerClosed
	case err == nil:
		err = errYamux
	}
	l.err = err
	close(l.dead)
}

var (
	errPeerClosed = errors.New("closed by the peer")
	errYamux      = errors.New("yamux ended the link")
	errSurplus    = errors.New("replaced by another link")
)

// fail ends the link at once. What the kernel has queued is of no use to
// anybody, and would be in the next link's way.
func (l *link) fail(err error) {
	l.end(err)
	if t, ok := l.raw.(interface{ SetLinger(int) error }); ok {
		t.SetLinger(0)
	}
	l.conn.Abort(err)
}

// yamuxFailed ends a link whose yamux has given something up and would not do
// it again, if that is not because it has ended, or is being closed.
func (l *link) yamuxFailed(what string, err error) {
	if l.cause() == nil && !l.ys.IsClosed() {
		l.fail(fmt.Errorf("yamux gave up %s: %w", what, err))
	}
}

// close ends the link with a sealed close. Whoever calls it has waited for the
// streams, or waits for nothing any more: what is queued gets a moment.
func (l *link) close(err error) {
	l.ended(err)
	defer time.AfterFunc(l.mux.timing.closeGrace, func() { l.conn.Abort(err) }).Stop()
	l.guard.closeConn()
}

// discard closes a link that did not run. Its peer may have sent already.
func (l *link) discard(err error) {
	l.close(err)
	l.ys.Close() // its reader has ended
	l.ended(nil)
	l.guard.end()
}

// cause is why the link ended, nil while it lives.
func (l *link) cause() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// usable tells whether new streams may be opened.
func (l *link) usable() bool {
	select {
	case <-l.gone:
		return false
	case <-l.dead:
		return false
	default:
		return true
	}
}

// retire takes the link out of those that new streams are opened on.
func (l *link) retire() {
	l.retired.Do(func() { close(l.gone) })
}

// peerLeft notes that the peer takes no more streams. It says so before it
// closes the first one unanswered.
func (l *link) peerLeft() {
	l.peer.leftOn(l)
	l.retire()
}

// replace takes no more streams, and closes the link when those that there are
// have finished.
func (l *link) replace() {
	l.surplus.Store(true)
	l.retire()
	l.leave()
}

// leave makes the peer open no more streams here. Those on their way are
// closed unanswered, which, behind the go away, tells it to open them elsewhere.
func (l *link) leave() {
	l.leaveOnce.Do(func() {
		go func() { // a congested link makes it wait
			l.guard.goAway()
			l.mu.Lock()
			l.leaving = true
			l.mu.Unlock()
			close(l.told)
		}()
	})
}

// add counts a stream; whoever calls it has room for one at the peer's limit.
func (l *link) add(s *Stream) {
	if l.count(s) {
		s.linkEnded()
	}
	if s.Err() != nil {
		l.remove(s, true) // it was over before it could be counted
	}
}

// count counts a stream, and reports whether the link is dead.
func (l *link) count(s *Stream) (dead bool) {
	l.mu.Lock()
	l.streams[s] = struct{}{}
	dead = l.err != nil
	l.mu.Unlock()
	if l.load.Add(1) == 1 {
		l.expect()
	}
	return dead
}

// opened is the guard's hook. A stream that the peer opens is counted from its
// SYN on, so that whoever is to be refused leaves nothing behind.
func (l *link) opened(f *flow) (receiver, Limit) {
	if f.outbound {
		return newStream(l, f), ""
	}
	if limit := l.peer.openStream(); limit != "" {
		return nil, limit
	}
	s := newStream(l, f)
	l.count(s)
	return s, ""
}

// remove gives a stream's place back, once. Of one that has ended taken says
// whether the peer has confirmed that.
func (l *link) remove(s *Stream, taken bool) {
	l.mu.Lock()
	_, ok := l.streams[s]
	delete(l.streams, s)
	l.mu.Unlock()
	if !ok {
		return
	}
	if !taken {
		l.lost.Add(1)
		l.mux.lost.Add(1) // before it may seem that all have finished
	}
	l.load.Add(-1)
	l.peer.releaseStream()
}

func (l *link) snapshot() []*Stream {
	l.mu.Lock()
	defer l.mu.Unlock()
	list := make([]*Stream, 0, len(l.streams))
	for s := range l.streams {
		list = append(list, s)
	}
	return list
}

// An openRequest asks the opener for a stream. Whoever takes it from pending
// decides whether the stream is used.
type openRequest struct {
	frame  []byte
	result chan openResult
	taken  atomic.Bool
}

type openResult struct {
	stream *Stream
	err    error
}

// opener opens the link's streams one after the other, so that their ids are
// in order on the wire. Only a congested link makes it wait.
func (l *link) opener() {
	for {
		select {
		case r := <-l.requests:
			s, err := l.openOne(r.frame)
			if r.taken.CompareAndSwap(false, true) {
				r.result <- openResult{s, err}
			} else if s != nil {
				s.abort(context.Canceled, true)
			}
		case <-l.dead:
			return
		}
	}
}

func (l *link) openOne(frame []byte) (*Stream, error) {
	ys, err := l.openYamux()
	if err != nil {
		// Dead, left by the peer, or out of ids after 2^31 streams.
		l.retire()
		l.guard.opened()
		l.peer.releaseStream()
		return nil, fmt.Errorf("%w: %w", errGoAway, err)
	}
	s, ok := l.guard.receiver(ys.StreamID()).(*Stream)
	if !ok {
		// The link died in between, or the peer was quick to reset it.
		l.peer.releaseStream()
		ys.Close()
		return nil, l.unanswered(ErrTruncated)
	}
	s.attach(ys)
	l.add(s)
	if err := s.writeFirst(frame); err != nil && !s.answered() {
		return nil, l.unanswered(err)
	}
	return s, nil
}

// openYamux opens no stream behind a go away that this node has read (SPEC.md
// section 7). The streams that the peer closes behind it give their places back
// before yamux is told, and whoever got one would wait for the peer to refuse it.
func (l *link) openYamux() (*yamux.Stream, error) {
	if !l.usable() {
		return nil, yamux.ErrRemoteGoAway
	}
	return l.ys.OpenStream()
}

// unanswered is the error of a stream that ended before its answer: of one
// that the peer's going away refused, or else of one that may have reached a
// target.
func (l *link) unanswered(err error) error {
	if l.left.Load() {
		return fmt.Errorf("%w: %w", errGoAway, err)
	}
	return fmt.Errorf("%w: %w", errUnanswered, err)
}

// open opens a stream and waits for its answer. The caller has counted it at
// the peer's limit; if open fails that place is free again.
func (l *link) open(ctx context.Context, o Open, frame []byte) (*Stream, error) {
	s, err := l.request(ctx, frame)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { s.abort(context.Cause(ctx), true) })
	body, err := s.readFirst()
	if !stop() {
		return nil, context.Cause(ctx)
	}
	if err != nil {
		return nil, l.unanswered(err)
	}
	status, text, err := parseOpened(body)
	if err != nil {
		return nil, s.violated(err)
	}
	if status != StatusOK {
		err := &OpenError{Status: status, Text: text}
		s.abort(err, false)
		return nil, err
	}
	s.open = o
	return s, nil
}

var errUnanswered = errors.New("stream ended unanswered")

// request has the opener open a stream.
func (l *link) request(ctx context.Context, frame []byte) (*Stream, error) {
	r := &openRequest{frame: frame, result: make(chan openResult, 1)}
	if err := l.hand(ctx, r); err != nil {
		l.peer.releaseStream()
		return nil, err
	}
	// From here on the opener counts the stream.
	select {
	case res := <-r.result:
		return res.stream, res.err
	case <-ctx.Done():
		if r.taken.CompareAndSwap(false, true) {
			return nil, context.Cause(ctx)
		}
		res := <-r.result
		if res.stream != nil {
			res.stream.abort(context.Cause(ctx), true)
		}
		return nil, context.Cause(ctx)
	}
}

// hand gives a request to the opener, once it has a place among the streams
// that wait for the peer's ACK. Whoever waits for one on a link that takes no
// more streams may open its own elsewhere.
func (l *link) hand(ctx context.Context, r *openRequest) error {
	select {
	case l.guard.opens <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-l.gone:
		return errGoAway
	case <-l.dead:
		return errGoAway
	}
	select {
	case l.requests <- r:
		return nil
	case <-ctx.Done():
		l.guard.opened()
		return context.Cause(ctx)
	case <-l.gone:
		l.guard.opened()
		return errGoAway
	case <-l.dead:
		l.guard.opened()
		return errGoAway
	}
}

// writeFirst sends OPEN or OPENED.
func (s *Stream) writeFirst(frame []byte) error {
	s.writeMu.Lock()
	defer s.writeMu.Unlock()
	if err := s.writeState(); err != nil {
		return err
	}
	if err := s.writeFrame(frame); err != nil {
		return err
	}
	s.link.guard.conn.FlushFirst()
	s.begun = true
	return nil
}

// accept takes in the peer's streams. It waits for nothing but the link: a
// peer has fewer streams unacknowledged than yamux's backlog.
func (l *link) accept() {
	for {
		ys, err := l.ys.AcceptStream()
		if err != nil {
			l.yamuxFailed("accepting streams", err)
			return
		}
		s, ok := l.guard.receiver(ys.StreamID()).(*Stream)
		if !ok {
			ys.Close() // reset already
			continue
		}
		s.attach(ys)
		l.mu.Lock()
		leaving := l.leaving
		l.mu.Unlock()
		if leaving {
			s.abort(errGoAway, false)
			continue
		}
		go l.serve(s)
	}
}

// serve reads a stream's OPEN and hands it to the handler.
func (l *link) serve(s *Stream) {
	s.SetReadDeadline(time.Now().Add(l.mux.timing.open))
	body, err := s.readFirst()
	if err != nil {
		s.abort(err, false)
		return
	}
	s.SetReadDeadline(time.Time{})
	if s.open, err = parseOpen(body); err != nil {
		s.violated(err)
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.mu.Lock()
	s.cancel = cancel
	s.mu.Unlock()
	if s.Err() != nil {
		cancel()
		return
	}
	in := &Inbound{stream: s, ctx: ctx}
	l.mux.handler(in)
	if !in.answered.Load() {
		in.Refuse(StatusUnreachable, "")
	}
}

// An Inbound is a stream that a peer opened, whose OPEN was read. It must be
// answered by Accept or Refuse.
type Inbound struct {
	stream   *Stream
	ctx      context.Context
	answered atomic.Bool
}

// Peer returns the name of the peer that opened the stream.
func (in *Inbound) Peer() string { return in.stream.Peer() }

// Open returns what the peer asked for.
func (in *Inbound) Open() Open { return in.stream.open }

// Context ends when the opener gives up, when the link dies, and when the
// stream is answered.
func (in *Inbound) Context() context.Context { return in.ctx }

var errAnswered = errors.New("stream already answered")

// Accept answers that the target is connected.
func (in *Inbound) Accept() (*Stream, error) {
	if !in.answered.CompareAndSwap(false, true) {
		return nil, errAnswered
	}
	in.stream.endContext() // which an idle stream need not keep
	if err := in.stream.writeFirst(appendOpened(nil, StatusOK, "")); err != nil {
		return nil, err
	}
	return in.stream, nil
}

// Refuse answers why the stream leads nowhere. Of text, 256 printable
// characters are sent.
func (in *Inbound) Refuse(status Status, text string) error {
	if !in.answered.CompareAndSwap(false, true) {
		return errAnswered
	}
	return in.stream.refuse(status, text)
}

func (s *Stream) refuse(status Status, text string) error {
	err := s.writeFirst(appendOpened(nil, status, text))
	s.abort(&OpenError{Status: status, Text: text}, false)
	return err
}

func (l *link) measured(rtt time.Duration) {
	l.lived.Store(true)
	l.lastRTT.Store(int64(rtt))
	l.guard.measured(rtt)
	if f := l.mux.hooks.RTT; f != nil {
		f(l.peerName, rtt)
	}
}

// yamuxLogger takes what yamux logs beside returning it as an error.
type yamuxLogger struct{ log *limitedLog }

func (y yamuxLogger) Printf(format string, v ...any) { y.Print(fmt.Sprintf(format, v...)) }
func (y yamuxLogger) Println(v ...any)               { y.Print(v...) }
func (y yamuxLogger) Print(v ...any) {
	y.log.debug("yamux").Str("yamux", fmt.Sprint(v...)).Msg("yamux")
}
