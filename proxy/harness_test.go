package proxy

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"github.com/sealane/sealane/mux"
)

func TestMain(m *testing.M) {
	flag.Set("test.parallel", "8") // those that say so wait more than they work
	goleak.VerifyTestMain(m)
}

// patience bounds every wait in these tests. It is long: the machine may be busy.
const patience = 20 * time.Second

func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !cond(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never happened: %s", what)
		}
	}
}

// A lane is one direction of a fake stream: a bounded buffer.
type lane struct {
	mu       sync.Mutex
	cond     *sync.Cond
	buf      []byte
	ended    bool
	err      error
	deadline bool   // passed, for reads
	wake     func() // while the reader sleeps
}

// changed tells readers and writers, and wakes a reader that sleeps.
func (l *lane) changed() {
	l.cond.Broadcast()
	if l.wake != nil && (len(l.buf) > 0 || l.ended || l.err != nil) {
		go l.wake()
		l.wake = nil
	}
}

const laneWindow = 256 << 10

func newLane() *lane {
	l := &lane{}
	l.cond = sync.NewCond(&l.mu)
	return l
}

func (l *lane) read(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		switch {
		case l.err != nil:
			return 0, l.err
		case len(l.buf) > 0:
			n := copy(p, l.buf)
			l.buf = l.buf[n:]
			l.changed()
			return n, nil
		case l.ended:
			return 0, io.EOF
		case l.deadline:
			return 0, os.ErrDeadlineExceeded
		}
		l.cond.Wait()
	}
}

func (l *lane) write(p []byte) (n int, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(p) > 0 {
		for l.err == nil && !l.ended && len(l.buf) >= laneWindow {
			l.cond.Wait()
		}
		if l.err != nil {
			return n, l.err
		}
		if l.ended {
			return n, net.ErrClosed
		}
		k := min(len(p), laneWindow-len(l.buf))
		l.buf = append(l.buf, p[:k]...)
		p = p[k:]
		n += k
		l.changed()
	}
	return n, nil
}

func (l *lane) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended = true
	l.changed()
}

func (l *lane) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err == nil {
		l.err = err
	}
	l.buf = nil
	l.changed()
}

// A fakeStream is one end of a stream as mux gives it.
type fakeStream struct {
	in, out *lane
	pair    *fakePair
	self    int
	mu      sync.Mutex
	err     error
	onAbort []func()
	sentEnd bool
}

type fakePair struct{ ends [2]*fakeStream }

func newPair() *fakePair {
	a, b := newLane(), newLane()
	p := &fakePair{}
	p.ends[0] = &fakeStream{in: a, out: b, pair: p, self: 0}
	p.ends[1] = &fakeStream{in: b, out: a, pair: p, self: 1}
	return p
}

func (s *fakeStream) Read(p []byte) (int, error) {
	n, err := s.in.read(p)
	return n, s.own(err)
}

func (s *fakeStream) Write(p []byte) (int, error) {
	n, err := s.out.write(p)
	return n, s.own(err)
}

// own is this end's view of an error of the lanes, which both ends share.
func (s *fakeStream) own(err error) error {
	if mine := s.Err(); err != nil && err != io.EOF && mine != nil {
		return mine
	}
	return err
}

func (s *fakeStream) ReadFrom(r io.Reader) (int64, error) {
	return 0, copyLazy(struct{ io.Writer }{s}, r.(mux.LazyReader))
}

func (s *fakeStream) WriteTo(w io.Writer) (int64, error) {
	return io.Copy(w, struct{ io.Reader }{s})
}

func (s *fakeStream) CloseWrite() error {
	if err := s.Err(); err != nil {
		return err
	}
	s.mu.Lock()
	s.sentEnd = true
	s.mu.Unlock()
	s.out.end()
	return nil
}

func (s *fakeStream) SetReadDeadline(t time.Time) error {
	s.in.mu.Lock()
	defer s.in.mu.Unlock()
	s.in.deadline = !t.IsZero() // only ever in the past
	s.in.changed()
	return nil
}

func (s *fakeStream) Sleep(wake func()) bool {
	s.in.mu.Lock()
	defer s.in.mu.Unlock()
	if len(s.in.buf) > 0 || s.in.ended || s.in.err != nil {
		return false
	}
	s.in.wake = wake
	return true
}

func (s *fakeStream) bothEnded() bool {
	s.mu.Lock()
	sent := s.sentEnd
	s.mu.Unlock()
	s.in.mu.Lock()
	defer s.in.mu.Unlock()
	return sent && s.in.ended && len(s.in.buf) == 0
}

func (s *fakeStream) Close() error {
	if !s.bothEnded() {
		s.Reset(mux.ResetUnspecified)
	}
	return nil
}

func (s *fakeStream) Reset(code mux.ResetCode) {
	s.pair.abort(s.self, &mux.ResetError{Code: code}, &mux.ResetError{Code: code, Remote: true})
}

// abort ends both ends, with an error each, unless they have ended already.
func (p *fakePair) abort(self int, mine, others error) {
	if p.ends[self].bothEnded() || p.ends[self].Err() != nil {
		return
	}
	p.ends[self].broke(mine)
	p.ends[1-self].broke(others)
	p.ends[0].in.fail(mine)
	p.ends[0].out.fail(mine)
}

func (s *fakeStream) broke(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
	for _, f := range s.onAbort {
		go f()
	}
}

func (s *fakeStream) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

func (s *fakeStream) OnAbort(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		go f()
		return
	}
	s.onAbort = append(s.onAbort, f)
}

// kill is the death of the link below.
func (p *fakePair) kill() { p.abort(0, mux.ErrTruncated, mux.ErrTruncated) }

// A fakeInbound is an OPEN as the accepter sees it.
type fakeInbound struct {
	peer   string
	open   mux.Open
	ctx    context.Context
	pair   *fakePair
	answer chan *mux.OpenError // nil: accepted
}

func (in *fakeInbound) Peer() string             { return in.peer }
func (in *fakeInbound) Open() mux.Open           { return in.open }
func (in *fakeInbound) Context() context.Context { return in.ctx }

func (in *fakeInbound) Accept() (stream, error) {
	if err := in.ctx.Err(); err != nil {
		return nil, err
	}
	in.answer <- nil
	return in.pair.ends[1], nil
}

func (in *fakeInbound) Refuse(s mux.Status, text string) error {
	in.answer <- &mux.OpenError{Status: s, Text: text}
	return nil
}

// A fakeLink opens streams from an entry Proxy to what exits serve, by peer.
type fakeLink struct {
	self string // the entry's name, as its peers know it

	mu    sync.Mutex
	exits map[string]*Proxy
	down  bool
	opens []mux.Open
	pairs []*fakePair
	fail  error // returned by Open, if set
}

func (l *fakeLink) Open(ctx context.Context, peer string, o mux.Open) (stream, error) {
	for {
		l.mu.Lock()
		exit, down, fail := l.exits[peer], l.down, l.fail
		l.mu.Unlock()
		if fail != nil {
			return nil, fail
		}
		if exit == nil {
			return nil, mux.ErrUnknownPeer
		}
		if !down {
			return l.open(ctx, exit, o)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w", mux.ErrNoLink, ctx.Err())
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func (l *fakeLink) open(ctx context.Context, exit *Proxy, o mux.Open) (stream, error) {
	pair := newPair()
	l.mu.Lock()
	l.opens, l.pairs = append(l.opens, o), append(l.pairs, pair)
	l.mu.Unlock()
	ictx, cancel := context.WithCancel(context.Background())
	in := &fakeInbound{peer: l.self, open: o, ctx: ictx, pair: pair, answer: make(chan *mux.OpenError, 2)}
	go func() {
		defer cancel()
		exit.serveInbound(in)
	}()
	select {
	case refused := <-in.answer:
		if refused != nil {
			return nil, refused
		}
		return pair.ends[0], nil
	case <-ctx.Done():
		cancel()
		return nil, ctx.Err()
	}
}

func (l *fakeLink) lastOpen(t testing.TB) mux.Open {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.opens) == 0 {
		t.Fatal("nothing was opened")
	}
	return l.opens[len(l.opens)-1]
}

func (l *fakeLink) lastPair() *fakePair {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.pairs[len(l.pairs)-1]
}

func (l *fakeLink) set(f func(l *fakeLink)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f(l)
}

// A logBuffer collects log lines.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

// lines returns those that have all the given "key=value" fields.
func (b *logBuffer) lines(t testing.TB, fields ...string) (out []map[string]any) {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	for line := range strings.Lines(b.buf.String()) {
		var m map[string]any
		if err := json.Unmarshal([]byte(line), &m); err != nil {
			t.Fatalf("log line %q: %v", line, err)
		}
		ok := true
		for _, f := range fields {
			k, v, _ := strings.Cut(f, "=")
			ok = ok && fmt.Sprint(m[k]) == v
		}
		if ok {
			out = append(out, m)
		}
	}
	return out
}

func (b *logBuffer) want(t testing.TB, fields ...string) map[string]any {
	t.Helper()
	var found []map[string]any
	eventually(t, "log line with "+strings.Join(fields, ", "), func() bool {
		found = b.lines(t, fields...)
		return len(found) > 0
	})
	return found[len(found)-1]
}

// A tally counts StreamResult calls and checks that opens and closes pair up.
type tally struct {
	mu      sync.Mutex
	results map[string]int // "via result"
	open    map[string]int // "peer via"
	bytes   map[string]int // "peer direction"
}

func (c *tally) hooks() Hooks {
	c.results, c.open, c.bytes = make(map[string]int), make(map[string]int), make(map[string]int)
	count := func(m map[string]int, key string, n int) {
		c.mu.Lock()
		defer c.mu.Unlock()
		m[key] += n
	}
	return Hooks{
		StreamOpened: func(peer, via string) { count(c.open, peer+" "+via, 1) },
		StreamClosed: func(peer, via string) { count(c.open, peer+" "+via, -1) },
		StreamResult: func(_, via string, r Result) { count(c.results, via+" "+string(r), 1) },
		Bytes:        func(peer string, d Direction, n int) { count(c.bytes, peer+" "+string(d), n) },
	}
}

func (c *tally) get(m map[string]int, key string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return m[key]
}

// A node is a Proxy with what tests look at.
type node struct {
	*Proxy
	log   *logBuffer
	tally *tally
}

func newNode(t testing.TB, cfg Config, o opener) *node {
	t.Helper()
	return newNodeThat(t, cfg, o, func(*Proxy) {})
}

// newNodeThat makes a node that was prepared before its start.
func newNodeThat(t testing.TB, cfg Config, o opener, prepare func(*Proxy)) *node {
	t.Helper()
	n := &node{log: &logBuffer{}, tally: &tally{}}
	cfg.Log = zerolog.New(n.log)
	cfg.Hooks = n.tally.hooks()
	p, err := newProxy(cfg, o)
	if err != nil {
		t.Fatal(err)
	}
	n.Proxy = p
	p.tick = 10 * time.Millisecond // whatever is silent for so long dozes
	prepare(p)
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return n
}

// update reloads with cfg, keeping the node's log and hooks.
func (n *node) update(cfg Config) error {
	old := n.state.Load().cfg
	cfg.Log, cfg.Hooks = old.Log, old.Hooks
	return n.Update(cfg)
}

func (n *node) addr(i int) string { return n.Status()[i].Bound[0] }

// A pairOfNodes is an app's sidecar "web" and a target's sidecar "db".
type pairOfNodes struct {
	web, db *node
	link    *fakeLink
}

func newNodes(t testing.TB, web, db Config) *pairOfNodes {
	t.Helper()
	link := &fakeLink{self: "web", exits: make(map[string]*Proxy)}
	exit := newNode(t, db, link)
	link.exits["db"] = exit.Proxy
	return &pairOfNodes{web: newNode(t, web, link), db: exit, link: link}
}

func listenOn(t testing.TB, kind Kind, addr string) Listener {
	t.Helper()
	e, err := ParseListen(addr)
	if err != nil {
		t.Fatal(err)
	}
	l := Listener{Kind: kind, Address: e}
	if kind == KindForward {
		l.To = Target{Peer: "db", Service: "app"}
	}
	return l
}

func serviceAt(t testing.TB, addr string) []Service {
	t.Helper()
	e, err := ParseEndpoint(addr)
	if err != nil {
		t.Fatal(err)
	}
	return []Service{{Name: "app", Address: e, Allow: []string{"web"}}}
}

func routeTo(t testing.TB, pattern string, to Target) Route {
	t.Helper()
	return Route{Match: mustMatch(t, pattern), To: to}
}

func egressFor(t testing.TB, peer string, patterns ...string) EgressRule {
	t.Helper()
	r := EgressRule{Allow: []string{peer}}
	for _, p := range patterns {
		r.Match = append(r.Match, mustMatch(t, p))
	}
	return r
}

// newTarget serves each connection with handle, over TCP or, for a path, a
// unix socket.
func newTarget(t testing.TB, path string, handle func(net.Conn)) string {
	t.Helper()
	network, addr := "tcp", "127.0.0.1:0"
	if path != "" {
		network, addr = "unix", path
	}
	l, err := net.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				handle(c)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		wg.Wait()
	})
	if path != "" {
		return "unix:" + path
	}
	return l.Addr().String()
}

// echo answers with what it got, and ends when the client has.
func echo(c net.Conn) { io.Copy(c, c) }

func dialTo(t testing.TB, network, addr string) net.Conn {
	t.Helper()
	c, err := net.DialTimeout(network, addr, patience)
	if err != nil {
		t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(patience))
	t.Cleanup(func() { c.Close() })
	return c
}

func halfClose(t testing.TB, c net.Conn) {
	t.Helper()
	if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatal(err)
	}
}

// roundTrip sends text, ends, and wants it back with a proper end.
func roundTrip(t testing.TB, c net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	halfClose(t, c)
	got, err := io.ReadAll(c)
	if err != nil || string(got) != text {
		t.Fatalf("got %q, %v, want %q", got, err, text)
	}
}

func say(t testing.TB, c net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	hear(t, c, text)
}

func hear(t testing.TB, c net.Conn, text string) {
	t.Helper()
	got := make([]byte, len(text))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != text {
		t.Fatalf("got %q, %v, want %q", got, err, text)
	}
}

// wantReset reads until the connection ends, which must be by a reset.
func wantReset(t testing.TB, c net.Conn) {
	t.Helper()
	_, err := io.Copy(io.Discard, c)
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("the connection ended with %v, not a reset", err)
	}
}

// wantDialReset is for a connection that is refused at once: the reset may
// come before the dial returns.
func wantDialReset(t testing.TB, addr string) {
	t.Helper()
	c, err := net.DialTimeout("tcp", addr, patience)
	if errors.Is(err, syscall.ECONNRESET) {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	wantReset(t, c)
}

// fakeDNS is a resolver of fixed, changeable names.
type fakeDNS struct {
	mu       sync.Mutex
	hosts    map[string][]string
	queries  []string
	fail     error  // instead of an answer
	failOnly string // the network that fail is for; "": all
}

func (d *fakeDNS) resolve(_ context.Context, network, host string) ([]netip.Addr, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.queries = append(d.queries, network+" "+host)
	if d.fail != nil && (d.failOnly == "" || d.failOnly == network) {
		return nil, d.fail
	}
	var addrs []netip.Addr
	for _, s := range d.hosts[strings.TrimSuffix(host, ".")] {
		a := netip.MustParseAddr(s)
		if is4 := a.Unmap().Is4(); network == "ip" || is4 == (network == "ip4") {
			addrs = append(addrs, a)
		}
	}
	if len(addrs) == 0 {
		return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
	}
	return addrs, nil
}

func (d *fakeDNS) set(host string, addrs ...string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.hosts == nil {
		d.hosts = make(map[string][]string)
	}
	d.hosts[host] = addrs
}

func (d *fakeDNS) setFail(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fail = err
}

// asked counts the queries with a prefix, such as "ip4 db.internal".
func (d *fakeDNS) asked(prefix string) (n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, q := range d.queries {
		if strings.HasPrefix(q, prefix) {
			n++
		}
	}
	return n
}

func socketPath(t testing.TB) string { return filepath.Join(t.TempDir(), "s") }

func portOf(t testing.TB, addr string) uint16 {
	t.Helper()
	return netip.MustParseAddrPort(addr).Port()
}
