package sim

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/sealane/sealane/mux"
	"github.com/sealane/sealane/test/pattern"
)

// A duplex is a connection as an app has it.
type duplex interface {
	io.ReadWriter
	CloseWrite() error
	SetReadDeadline(time.Time) error
	// Close is for a connection whose directions have both ended.
	Close() error
	// abort ends it at once, so that the other end sees an error.
	abort()
}

func (c *conn) abort() {
	c.SetLinger(0)
	c.Close()
}

type rawStream struct{ *mux.Stream }

func (s rawStream) abort() { s.Reset(mux.ResetApp) }

// connected is a connection through a proxy: what came behind the proxy's
// answer is read first.
type connected struct {
	*conn
	r *bufio.Reader
}

func (c *connected) Read(p []byte) (int, error) { return c.r.Read(p) }

// An app is a connection's two ends: the app that opens it, and the one that
// it leads to.
type app struct {
	world *world
	plan  *App

	early atomic.Int64 // bytes that the client has sent behind its head

	mu      sync.Mutex
	from    netip.AddrPort // the client, for its proxy
	openErr error
	client  *side // nil until it is open
	// servers are the ends that the target has had. An opening is tried again
	// when its link died before the answer, so there may be several, of which
	// the client has one.
	servers []*side
}

func newApp(w *world, plan *App) *app { return &app{world: w, plan: plan} }

func (a *app) String() string { return fmt.Sprintf("app %d", a.plan.ID) }

// far keeps streams apart in the pattern's table, as far as it is large enough.
const far = 2053

func streamOf(app int, writer Party) pattern.Stream {
	n := pattern.Stream(2 * app)
	if writer == Server {
		n++
	}
	return n * far
}

func appOf(s pattern.Stream) (app int, writer Party) {
	if s/far%2 == 1 {
		return int(s / far / 2), Server
	}
	return int(s / far / 2), Client
}

// others are the sides that a side may be connected with.
func (a *app) others(party Party) []*side {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case party == Client:
		return a.servers
	case a.client == nil:
		return nil
	}
	return []*side{a.client}
}

// A side is one end of a connection while it has one.
type side struct {
	app     *app
	party   Party
	conn    duplex
	out, in *Half

	// Of the writer.
	outDraw draw
	stream  pattern.Stream
	written atomic.Int64 // given to Write, whatever came of it
	sent    atomic.Int64 // taken by it
	ended   atomic.Bool  // CloseWrite was called

	// Of the reader.
	inDraw   draw
	expected pattern.Stream
	got      atomic.Int64
	whole    atomic.Bool // it has seen the end
	paused   bool

	over atomic.Bool // run has ended

	mu      sync.Mutex
	changed sync.Cond // got has, or err
	err     error     // the first
	resetAt time.Time // when it gave up a stream that was not over; zero: it did not
}

func (a *app) newSide(party Party, c duplex) *side {
	s := &side{app: a, party: party, conn: c, out: &a.plan.Up, in: &a.plan.Down, stream: streamOf(a.plan.ID, party)}
	other := Server
	if party == Server {
		s.out, s.in = s.in, s.out
		other = Client
	}
	s.expected = streamOf(a.plan.ID, other)
	s.changed.L = &s.mu
	if party == Client {
		s.written.Store(a.early.Load())
		s.sent.Store(a.early.Load())
	}
	s.outDraw = newDraw(a.world.plan.Seed, 1000+2*uint64(s.stream))
	s.inDraw = newDraw(a.world.plan.Seed, 1001+2*uint64(s.stream))
	return s
}

// arrived checks what a reader got: it is a prefix of what the other wrote.
func (s *side) arrived(p []byte) {
	if len(p) == 0 {
		return
	}
	w, read := s.app.world, s.got.Load()
	if err := s.expected.Check(p, read); err != nil {
		where := "nowhere"
		wrong := (*pattern.Wrong)(nil)
		if errors.As(err, &wrong) {
			all := append([]pattern.Stream{s.expected}, w.streams()...)
			if in, offset, found := pattern.Locate(p[wrong.Offset-read:], all, 64<<20); found {
				app, from := appOf(in)
				where = fmt.Sprintf("what app %d's %s sent at %d", app, from, offset)
			}
		}
		w.fail("wrong bytes", "%v, at its %s: %v; they belong to %s", s.app, s.party, err, where)
	}
	var most int64
	if s.party == Server {
		most = s.app.early.Load()
	}
	for _, o := range s.app.others(s.party) {
		most = max(most, o.written.Load())
	}
	if read += int64(len(p)); read > most {
		w.fail("more bytes", "%v, at its %s: %d were read, %d were written", s.app, s.party, read, most)
	}
}

// end checks a clean end: it is one only if all has come and the other side
// has ended, too.
func (s *side) end() {
	s.mu.Lock()
	s.whole.Store(true)
	s.changed.Broadcast()
	s.mu.Unlock()
	for _, o := range s.app.others(s.party) {
		if s.got.Load() == s.in.Length && o.ended.Load() {
			return
		}
	}
	s.app.world.fail("silent truncation", "%v, at its %s: a clean end after %d of %d bytes", s.app, s.party, s.got.Load(), s.in.Length)
}

// run carries the plan out and ends the connection.
func (s *side) run() {
	var both sync.WaitGroup
	both.Go(func() { s.failed(s.write()) })
	both.Go(func() { s.failed(s.read()) })
	both.Wait()
	s.over.Store(true)
	if err := s.failure(); err != nil {
		s.conn.abort()
		s.app.world.story.add(s.app.String(), "%s: sent %d of %d, got %d of %d: %v", s.party, s.sent.Load(), s.out.Length,
			s.got.Load(), s.in.Length, err)
		return
	}
	s.conn.Close()
	s.app.world.story.add(s.app.String(), "%s is done", s.party)
	s.heard()
}

var errPlanned = errors.New("reset, as planned")

// failed notes an error, and ends what the other direction waits for.
func (s *side) failed(err error) {
	if err == nil {
		return
	}
	s.mu.Lock()
	first := s.err == nil
	if first {
		s.err = err
	}
	s.changed.Broadcast()
	s.mu.Unlock()
	if !first {
		return
	}
	s.conn.abort()
	if c, ok := s.conn.(rawStream); ok && err == errPlanned && c.Err() != nil {
		s.mu.Lock()
		s.resetAt = time.Now()
		s.mu.Unlock()
	}
}

// hearing is more than a reset takes to the other end of a calm and quick world.
const hearing = 30 * time.Second

// heard checks that who has ended well was not given up long before.
func (s *side) heard() {
	w := s.app.world
	if !w.plan.calm() || !w.plan.quick() {
		return
	}
	for _, o := range s.app.others(s.party) {
		o.mu.Lock()
		at := o.resetAt
		o.mu.Unlock()
		if !at.IsZero() && time.Since(at) > hearing {
			w.fail("unheard reset", "%v: its %s ends well, and its %s has reset it %v before", s.app, s.party, o.party, time.Since(at))
		}
	}
}

func (s *side) failure() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// moved counts bytes, and resets the connection when the plan says so.
func (s *side) moved(total *atomic.Int64, n int) {
	total.Add(int64(n))
	s.mu.Lock()
	s.changed.Broadcast()
	s.mu.Unlock()
	if !s.resets() {
		return
	}
	go func() { // who gives to a sink must not be made to wait
		time.Sleep(s.app.plan.ResetAfter)
		if !s.over.Load() {
			s.failed(errPlanned)
		}
	}()
}

func (s *side) resets() bool {
	return s.app.plan.Reset == s.party && s.sent.Load()+s.got.Load() >= s.app.plan.ResetAt
}

// turn waits until it is this side's turn to write from an offset on, and
// returns how many bytes may be written then.
func (s *side) turn(offset int64) (int64, error) {
	turns := int64(s.app.plan.Turns)
	left := s.out.Length - offset
	if turns == 0 {
		return left, nil
	}
	size := max(1, (s.out.Length+turns-1)/turns)
	n := offset / size
	if s.party == Server {
		n++
	}
	due := min(s.in.Length, n*max(1, (s.in.Length+turns-1)/turns))
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.got.Load() < due && s.err == nil {
		s.changed.Wait()
	}
	return min(left, size-offset%size), s.err
}

// next fills p with what is written next. It returns io.EOF at the end.
func (s *side) next(p []byte) (int, error) {
	offset := s.sent.Load()
	if offset == s.out.Length {
		return 0, io.EOF
	}
	may, err := s.turn(offset)
	if err != nil {
		return 0, err
	}
	n := int(min(int64(len(p)), may))
	if !s.out.Even && s.outDraw.chance(0.5) {
		n = s.outDraw.between(1, n)
	}
	s.stream.Fill(p[:n], offset)
	s.written.Store(offset + int64(n))
	return n, nil
}

func (s *side) write() error {
	if s.resets() {
		return errPlanned
	}
	var err error
	if to, ok := s.conn.(io.ReaderFrom); ok && s.out.Lazy {
		_, err = to.ReadFrom(&source{side: s})
	} else {
		err = s.writeChunks()
	}
	if err == nil {
		err = s.failure()
	}
	if err != nil {
		return err
	}
	time.Sleep(s.out.EndAfter)
	if err := s.awaitEnd(); err != nil {
		return err
	}
	s.ended.Store(true)
	if err := s.conn.CloseWrite(); err != nil {
		return fmt.Errorf("close write: %w", err)
	}
	return nil
}

// awaitEnd waits for the other's end, if this side ends last.
func (s *side) awaitEnd() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.app.plan.Last == s.party && !s.whole.Load() && s.err == nil {
		s.changed.Wait()
	}
	return s.err
}

func (s *side) writeChunks() error {
	buf := make([]byte, s.out.Chunk)
	for {
		n, err := s.next(buf)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if _, err := s.conn.Write(buf[:n]); err != nil {
			return fmt.Errorf("write: %w", err)
		}
		s.moved(&s.sent, n)
	}
}

// A source is a mux.LazyReader of what a side writes.
type source struct {
	side *side
	n    int // bytes of the read before
}

func (r *source) Read(p []byte) (int, error) {
	return r.ReadLazy(func() [][]byte { return [][]byte{p} }, func() {})
}

func (r *source) ReadLazy(take func() [][]byte, drop func()) (int, error) {
	s := r.side
	if r.n > 0 {
		s.moved(&s.sent, r.n)
		r.n = 0
	}
	if _, err := s.turn(s.sent.Load()); err != nil {
		return 0, err
	}
	if s.outDraw.chance(0.05) { // woken for nothing
		take()
		drop()
	}
	if s.sent.Load() == s.out.Length {
		return 0, io.EOF
	}
	rooms := take()
	if len(rooms) == 0 {
		return 0, nil
	}
	total := 0
	for _, room := range rooms {
		offset := s.sent.Load() + int64(total)
		may, err := s.turnNow(offset)
		if err != nil || may == 0 {
			break
		}
		n := int(min(int64(len(room)), may, int64(s.out.Chunk-total)))
		s.stream.Fill(room[:n], offset)
		total += n
		if n < len(room) {
			break
		}
	}
	s.written.Add(int64(total))
	r.n = total
	if s.outDraw.chance(0.2) { // others run while it holds buffers
		time.Sleep(s.outDraw.upTo(100 * time.Millisecond))
	}
	return total, nil
}

// turnNow is turn without waiting, for what comes behind what a turn allowed.
func (s *side) turnNow(offset int64) (int64, error) {
	if s.app.plan.Turns == 0 || offset == s.sent.Load() {
		return s.turn(offset)
	}
	return 0, nil
}

func (s *side) read() (err error) {
	read := s.readChunks
	if from, ok := s.conn.(io.WriterTo); ok && s.in.Sink {
		read = func() error { _, err := from.WriteTo(&sink{side: s}); return err }
	}
	for {
		if s.in.Hurry > 0 {
			s.conn.SetReadDeadline(time.Now().Add(s.in.Hurry))
		}
		if err = read(); !errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		s.doze()
	}
	if err == nil {
		s.end()
	}
	return err
}

// doze leaves a stream alone until there is something to read, as a proxy does
// with one that is idle. A proxy takes less time for it.
func (s *side) doze() {
	c, ok := s.conn.(rawStream)
	if !ok || !s.in.Doze {
		return
	}
	time.Sleep(s.inDraw.log(5 * time.Second))
	c.SetReadDeadline(time.Time{})
	woken := make(chan struct{}, 2)
	wake := func() { woken <- struct{}{} }
	c.OnAbort(wake)
	if c.Err() == nil && c.Sleep(wake) {
		<-woken
	}
}

func (s *side) readChunks() error {
	buf := make([]byte, s.in.Room)
	for {
		n, err := s.conn.Read(buf[:s.inDraw.between(1, len(buf))])
		s.take(buf[:n])
		if err == io.EOF {
			return s.failure()
		}
		if err != nil {
			return fmt.Errorf("read: %w", err)
		}
		if err := s.pause(); err != nil {
			return err
		}
	}
}

func (s *side) take(p []byte) {
	s.arrived(p)
	s.moved(&s.got, len(p))
}

// stops says that the plan stops the reader here.
func (s *side) stops() bool { return !s.paused && s.in.Pause > 0 && s.got.Load() > s.in.PauseAt }

// pause stops reading where the plan says so.
func (s *side) pause() error {
	if s.stops() {
		time.Sleep(s.in.Pause)
		s.paused = true
	}
	return s.failure()
}

// A sink is a mux.Sink that takes what a side reads.
type sink struct{ side *side }

func (k *sink) Write(p []byte) (int, error) {
	k.side.take(p)
	if err := k.side.pause(); err != nil {
		return len(p), err
	}
	return len(p), nil
}

// TryWrite takes some of the pieces, as a socket does that is nearly full.
func (k *sink) TryWrite(pieces [][]byte) (total int, err error) {
	s := k.side
	if s.stops() || s.inDraw.chance(0.2) {
		return 0, s.failure()
	}
	limit := s.inDraw.between(1, 4*s.in.Room)
	for _, p := range pieces {
		n := min(len(p), limit-total)
		s.take(p[:n])
		if total += n; n < len(p) {
			break
		}
	}
	return total, s.failure()
}

// run is an app's life.
func (a *app) run() {
	time.Sleep(a.plan.Start)
	c, err := a.open()
	if err != nil {
		a.world.story.add(a.String(), "does not open: %v", err)
		a.mu.Lock()
		a.openErr = err
		a.mu.Unlock()
		return
	}
	s := a.newSide(Client, c)
	a.mu.Lock()
	a.client = s
	a.mu.Unlock()
	s.run()
}

func (a *app) open() (duplex, error) {
	w := a.world
	running := w.nodes[a.plan.From].running()
	if len(running) == 0 {
		return nil, errors.New("its node is down")
	}
	p := running[a.plan.ID%len(running)]
	ctx, cancel := context.WithTimeout(context.Background(), a.patience())
	defer cancel()
	if w.plan.Proxy {
		return a.openThrough(ctx, p)
	}
	s, err := p.mux.Open(ctx, w.nodes[a.plan.To].name, mux.Open{To: targetOf(a.plan), From: "10.0.0.1:1", Via: "forward"})
	if err != nil {
		return nil, err
	}
	return rawStream{s}, nil
}

// patience is how long the client waits until it is open.
func (a *app) patience() time.Duration {
	switch {
	case a.plan.Patience > 0:
		return a.plan.Patience
	case a.plan.Target == TargetHangs:
		return 5 * time.Second
	}
	return openTimeout
}

// target is the app whose target an address is.
func (w *world) target(address string) *app {
	_, port, _ := net.SplitHostPort(address)
	n, err := strconv.Atoi(port)
	if n -= appPorts; err != nil || n < 0 || n >= len(w.apps) {
		w.fail("wrong target", "%q is opened, which no app asked for", address)
	}
	return w.apps[n]
}

// reach is what a target does before it has a connection.
func (a *app) reach(ctx context.Context) error {
	switch a.plan.Target {
	case TargetRefuses:
		return syscall.ECONNREFUSED
	case TargetHangs:
		<-ctx.Done()
		return ctx.Err()
	case TargetSlow:
		return sleep(ctx, time.Duration(1+a.plan.ID%5)*time.Second)
	}
	return nil
}

// serve runs the server's side of an app on a connection.
func (a *app) serve(c duplex) {
	s := a.newSide(Server, c)
	a.mu.Lock()
	a.servers = append(a.servers[:len(a.servers):len(a.servers)], s)
	a.mu.Unlock()
	a.world.ends.Go(s.run)
}

// serveRaw is the handler of a node without a proxy.
func (w *world) serveRaw(_ *process, in *mux.Inbound) {
	a := w.target(in.Open().To)
	switch err := a.reach(in.Context()); {
	case errors.Is(err, syscall.ECONNREFUSED):
		in.Refuse(mux.StatusRefused, "refused")
	case err != nil:
		in.Refuse(mux.StatusTimedOut, "")
	default:
		if s, err := in.Accept(); err == nil {
			a.serve(rawStream{s})
		}
	}
}

// dialTarget connects a proxy with a target beside it.
func (w *world) dialTarget(ctx context.Context, p *process, address string) (net.Conn, error) {
	a := w.target(address)
	if err := a.reach(ctx); err != nil {
		return nil, dialError(err)
	}
	n := w.net
	n.mu.Lock()
	n.ports++
	there, _ := netip.ParseAddrPort(address)
	pair := newPair(n, netip.AddrPortFrom(p.ip, uint16(n.ports)), there, false)
	n.pairs = append(n.pairs, pair)
	n.mu.Unlock()
	if a.plan.forwarded() && a.plan.Announced {
		w.ends.Go(func() { a.announced(pair.ends[1]) })
	} else {
		a.serve(pair.ends[1])
	}
	if a.plan.Target == TargetSlow { // it is connected, and who has dialed does not know yet
		time.Sleep(time.Duration(w.draws(1000)) * time.Millisecond)
	}
	return pair.ends[0], nil
}
