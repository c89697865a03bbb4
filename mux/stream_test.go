package mux

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/hashicorp/yamux"

	"github.com/sealane/sealane/session"
	"github.com/sealane/sealane/session/container"
)

// accepted returns a handler that accepts and hands the streams to a channel.
func accepted() (func(*Inbound), chan *Stream) {
	streams := make(chan *Stream, 1000)
	return func(in *Inbound) {
		if s, err := in.Accept(); err == nil {
			streams <- s
		}
	}, streams
}

// streamPair is both ends of a stream.
func streamPair(t testing.TB) (a, b *Stream) {
	t.Helper()
	handler, streams := accepted()
	na, _ := pair(t, handler, nil, nil)
	return open(t, na, "b"), <-streams
}

// readError waits for the error that ends a stream's reading.
func readError(t testing.TB, s *Stream) error {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		_, err := io.Copy(io.Discard, struct{ io.Reader }{s})
		done <- err
	}()
	select {
	case err := <-done:
		return err
	case <-time.After(deadline):
		t.Fatal("Read hangs")
		return nil
	}
}

func TestHalfClose(t *testing.T) {
	for name, swap := range map[string]bool{"opener first": false, "accepter first": true} {
		t.Run(name, func(t *testing.T) {
			a, b := streamPair(t)
			if swap {
				a, b = b, a
			}
			up, down := randomBytes(1, 2<<20), randomBytes(2, 1<<20)
			go func() {
				a.Write(up)
				a.CloseWrite()
			}()
			got, err := io.ReadAll(b)
			if err != nil || !bytes.Equal(got, up) {
				t.Fatal(len(got), err)
			}
			if _, err := a.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
				t.Fatalf("Write after CloseWrite: %v", err)
			}
			go func() {
				b.Write(down)
				b.CloseWrite()
			}()
			got, err = io.ReadAll(iotest.OneByteReader(io.LimitReader(a, 5000)))
			if err != nil || !bytes.Equal(got, down[:5000]) {
				t.Fatal(len(got), err)
			}
			got, err = io.ReadAll(a)
			if err != nil || !bytes.Equal(got, down[5000:]) {
				t.Fatal(len(got), err)
			}
			for _, s := range []*Stream{a, b} {
				eventually(t, "the stream is over", func() bool { s.mu.Lock(); defer s.mu.Unlock(); return s.finished })
				if err := s.Close(); err != nil || s.Err() != nil {
					t.Fatal(err, s.Err())
				}
				if _, err := s.Read(make([]byte, 1)); err != io.EOF {
					t.Fatal(err)
				}
			}
		})
	}
}

func TestByteAtATime(t *testing.T) {
	a, b := streamPair(t)
	want := randomBytes(1, 3000)
	go func() {
		for _, c := range want {
			a.Write([]byte{c})
		}
		a.CloseWrite()
	}()
	got, err := io.ReadAll(b)
	if err != nil || !bytes.Equal(got, want) {
		t.Fatal(len(got), err)
	}
}

// aborts runs one way to end a stream from one end in each situation that the
// other end can be in, and returns the errors that end got.
func aborts(t *testing.T, abort func(*Stream)) []error {
	var errs []error
	for _, situation := range []string{"reading", "writing", "idle", "half closed", "half closed by the peer"} {
		for _, swap := range []bool{false, true} {
			a, b := streamPair(t)
			if swap {
				a, b = b, a
			}
			aborted := make(chan struct{})
			b.OnAbort(func() { close(aborted) })
			result := make(chan error, 1)
			switch situation {
			case "reading":
				go func() { result <- readError(t, b) }()
			case "writing": // until the window is full, and longer
				go func() {
					for {
						if _, err := b.Write(make([]byte, 1<<20)); err != nil {
							result <- err
							return
						}
					}
				}()
				eventually(t, "the window is full", func() bool { return b.link.guard.credit(b.flow) < frameHeaderLen+1 })
			case "half closed":
				b.CloseWrite()
				go func() { result <- readError(t, b) }()
			case "half closed by the peer":
				a.CloseWrite()
				if _, err := io.ReadAll(b); err != nil {
					t.Fatal(err)
				}
			}
			begun := time.Now()
			abort(a)
			if took := time.Since(begun); took > time.Second {
				t.Fatalf("%s: took %v", situation, took)
			}
			select {
			case <-aborted:
			case <-time.After(deadline):
				t.Fatalf("%s, swapped %t: not aborted", situation, swap)
			}
			if situation == "idle" || situation == "half closed by the peer" {
				result <- b.Err()
			}
			errs = append(errs, <-result)
			if _, err := b.Write([]byte("x")); err == nil {
				t.Fatalf("%s: Write after an abort succeeded", situation)
			}
			if _, err := b.Read(make([]byte, 1)); err == nil || err == io.EOF && situation != "half closed by the peer" {
				t.Fatalf("%s: Read after an abort: %v", situation, err)
			}
			for _, s := range []*Stream{a, b} {
				eventually(t, "no stream is left", func() bool { return s.link.load.Load() == 0 })
			}
			eventually(t, "nothing is unread", func() bool {
				used, _ := b.link.mux.Unread()
				return used == 0
			})
		}
	}
	return errs
}

func TestResetReachesThePeer(t *testing.T) {
	for _, code := range []ResetCode{ResetApp, ResetTimedOut} {
		for i, err := range aborts(t, func(s *Stream) { s.Reset(code) }) {
			var r *ResetError
			if !errors.As(err, &r) || r.Code != code || !r.Remote {
				t.Errorf("case %d: %v, want %v", i, err, code)
			}
		}
	}
}

func TestCloseIsAReset(t *testing.T) {
	for i, err := range aborts(t, func(s *Stream) { s.Close() }) {
		var r *ResetError
		if !errors.As(err, &r) || r.Code != ResetUnspecified {
			t.Errorf("case %d: %v", i, err)
		}
	}
}

// fillWindow writes whole frames until no more than a header fits the window.
func fillWindow(t *testing.T, s *Stream) {
	t.Helper()
	for n := s.link.guard.credit(s.flow); n > frameHeaderLen; n = s.link.guard.credit(s.flow) {
		if _, err := s.Write(make([]byte, min(n-frameHeaderLen, leastChunk))); err != nil {
			t.Fatal(err)
		}
	}
}

// leastChunk is in one frame on the slowest link, too.
const leastChunk = 4000

// TestResetWithTheWindowFull: nothing can be written any more, RESET neither.
func TestResetWithTheWindowFull(t *testing.T) {
	for _, situation := range []string{"between writes", "in a write"} {
		t.Run(situation, func(t *testing.T) {
			a, b := streamPair(t)
			aborted := make(chan struct{})
			b.OnAbort(func() { close(aborted) })
			written := make(chan error, 1)
			if situation == "in a write" {
				go func() {
					_, err := a.Write(make([]byte, 1<<20))
					written <- err
				}()
			} else {
				a.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
				fillWindow(t, a)
				_, err := a.Write([]byte("x"))
				if !errors.Is(err, os.ErrDeadlineExceeded) || a.Err() != nil {
					t.Fatalf("Write into a full window: %v, %v", err, a.Err())
				}
				written <- errTest
			}
			eventually(t, "the window is full", func() bool { return a.link.guard.credit(a.flow) < frameHeaderLen+1 })
			a.Reset(ResetApp)
			if err := <-written; err == nil {
				t.Fatal("Write succeeded")
			}
			<-aborted
			if err := b.Err(); !errors.Is(err, ErrTruncated) {
				t.Fatal(err)
			}
			if _, err := b.Read(make([]byte, 1)); err == nil || err == io.EOF {
				t.Fatal(err)
			}
		})
	}
}

var errTest = errors.New("test")

func TestDeadlinesResume(t *testing.T) {
	peer := dialRaw(t, nil)
	s := peer.open(t, toEcho)
	b := peer.accepted(t)
	steps := append(appendHeaderOf(frameData, 10), "0123456789"...)
	steps = append(steps, appendEnd(nil, 10)...)
	var got []byte
	for _, c := range steps {
		if c != 0 || len(got) > 0 { // a deadline in every place
			b.SetReadDeadline(time.Unix(1, 0))
			if n, err := b.Read(make([]byte, 1)); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatalf("%d %v", n, err)
			}
		}
		b.SetReadDeadline(time.Time{})
		before := b.link.conn.Stats().BytesIn
		s.Write([]byte{c})
		eventually(t, "the byte is there", func() bool { return b.link.conn.Stats().BytesIn > before })
		b.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
		p := make([]byte, 5)
		n, err := b.Read(p)
		got = append(got, p[:n]...)
		if err == io.EOF {
			break
		}
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal(err)
		}
	}
	if string(got) != "0123456789" {
		t.Fatalf("%q", got)
	}
	if _, err := b.Read(make([]byte, 1)); err != io.EOF {
		t.Fatal(err)
	}
}

func appendHeaderOf(kind byte, n int) []byte {
	b := []byte{kind, 0, 0, 0}
	putLength(b, n)
	return b
}

// A rawPeer is at the far end of a link of a node: a session and yamux as they
// come, without a guard, and frames written by the test.
type rawPeer struct {
	conn    *session.Conn
	ys      *yamux.Session
	node    *node
	streams chan *Stream
	tcp     net.Conn
}

func yamuxTestConfig() *yamux.Config {
	c := yamux.DefaultConfig()
	c.EnableKeepAlive = false
	c.LogOutput = io.Discard
	return c
}

// dialRaw links to a fresh node, which knows the raw peer as "raw".
func dialRaw(t testing.TB, edit func(*Config)) *rawPeer {
	t.Helper()
	key := newKey(t)
	handler, streams := accepted()
	n := newNode(t, newKey(t), []Peer{{Name: "raw", Keys: []session.PublicKey{key.Public()}}}, func(c *Config) {
		c.Handler = handler
		if edit != nil {
			edit(c)
		}
	})
	p := &rawPeer{node: n, streams: streams}
	p.dial(t, key)
	var err error
	if p.ys, err = yamux.Client(p.conn, yamuxTestConfig()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.ys.Close() })
	return p
}

func (p *rawPeer) dial(t testing.TB, key *session.PrivateKey) {
	t.Helper()
	c, err := net.Dial("tcp", p.node.addr)
	if err != nil {
		t.Fatal(err)
	}
	p.tcp = c
	p.conn, err = session.Initiate(testContext(t), c, p.node.key.Public(), session.Config{Key: key})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.conn.Abort(nil) })
}

// open opens a stream as the peer's yamux does, and sends OPEN.
func (p *rawPeer) open(t testing.TB, o Open) *yamux.Stream {
	t.Helper()
	s, err := p.ys.OpenStream()
	if err != nil {
		t.Fatal(err)
	}
	frame, err := appendOpen(nil, o)
	if err != nil {
		t.Fatal(err)
	}
	s.Write(frame)
	return s
}

func (p *rawPeer) accepted(t testing.TB) *Stream {
	t.Helper()
	select {
	case s := <-p.streams:
		return s
	case <-time.After(deadline):
		t.Fatal("no stream accepted")
		return nil
	}
}

// frame violations, each sent after OPEN on a stream that the node accepted.
var frameViolations = []struct {
	name string
	rule container.Rule
	sent string
}{
	{"type 0", RuleFrameType, "\x00\x00\x00\x01x"},
	{"type 6", RuleFrameType, "\x06\x00\x00\x01x"},
	{"DATA of no bytes", RuleFrameLength, "\x03\x00\x00\x00"},
	{"DATA of 65,536 bytes", RuleFrameLength, "\x03\x01\x00\x00"},
	{"END of 7 bytes", RuleFrameLength, "\x04\x00\x00\x07"},
	{"RESET of 2 bytes", RuleFrameLength, "\x05\x00\x00\x02\x00\x00"},
	{"a second OPEN", RuleFrameOrder, "\x01\x00\x00\x02{}"},
	{"OPENED from the opener", RuleFrameOrder, "\x02\x00\x00\x01\x00"},
	{"DATA after END", RuleFrameOrder, string(appendEnd(nil, 0)) + "\x03\x00\x00\x01x"},
	{"END after END", RuleFrameOrder, string(appendEnd(nil, 0)) + string(appendEnd(nil, 0))},
	{"END counts one too many", RuleFrameCount, "\x03\x00\x00\x01x" + string(appendEnd(nil, 2))},
	{"END counts one too few", RuleFrameCount, "\x03\x00\x00\x01x" + string(appendEnd(nil, 0))},
	{"END counts nothing", RuleFrameCount, string(appendEnd(nil, 1))},
}

// endsWith checks what a violation must do to a node (SPEC.md section 6).
func (p *rawPeer) endsWith(t *testing.T, rule container.Rule, bystanders ...*Stream) {
	t.Helper()
	select {
	case <-p.conn.Done(): // the peer is cut off
	case <-time.After(deadline):
		t.Fatal("the link lives on")
	}
	eventually(t, "the violation is counted", func() bool { return p.node.Violations()[rule] == 1 })
	if n := len(p.node.Violations()); n != 1 {
		t.Errorf("%d rules counted: %v", n, p.node.Violations())
	}
	for _, s := range bystanders {
		if err := readError(t, s); !errors.Is(err, ErrTruncated) {
			t.Errorf("another stream on the link: %v", err)
		}
		var v *container.Violation
		if !errors.As(s.Err(), &v) || v.Rule != rule {
			t.Errorf("another stream on the link says %v", s.Err())
		}
	}
	eventually(t, "the line is logged", func() bool { return p.node.log.count("link down") == 1 })
	if !strings.Contains(p.node.log.String(), `"rule":"`+string(rule)+`"`) || p.node.log.count(`"level":"warn"`) != 1 {
		t.Errorf("log: %s", p.node.log)
	}
}

func TestFrameViolationsEndTheLink(t *testing.T) {
	for _, c := range frameViolations {
		t.Run(c.name, func(t *testing.T) {
			p := dialRaw(t, nil)
			p.open(t, toEcho)
			other := p.accepted(t)
			s := p.open(t, toEcho)
			b := p.accepted(t)
			s.Write([]byte(c.sent))
			go io.Copy(io.Discard, struct{ io.Reader }{b})
			p.endsWith(t, c.rule, other)
		})
	}
	opens := map[string]struct {
		rule container.Rule
		sent string
	}{
		"first frame is DATA":  {RuleFrameOrder, "\x03\x00\x00\x01x"},
		"first frame is END":   {RuleFrameOrder, string(appendEnd(nil, 0))},
		"first frame is RESET": {RuleFrameOrder, string(appendReset(nil, 0))},
		"OPEN of 4,097 bytes":  {RuleFrameLength, "\x01\x00\x10\x01"},
		"OPEN with a space":    {RuleFrameOpen, "\x01\x00\x00\x27" + `{"to":"a","from":"", "via":"forward"}  `},
	}
	for name, c := range opens {
		t.Run(name, func(t *testing.T) {
			p := dialRaw(t, nil)
			p.open(t, toEcho)
			other := p.accepted(t)
			s, _ := p.ys.OpenStream()
			s.Write([]byte(c.sent))
			p.endsWith(t, c.rule, other)
		})
	}
	for _, rule := range Rules() {
		if strings.HasPrefix(string(rule), "frame-") && rule != RuleFrameOpened && rule != RuleFrameOpen &&
			!slices.ContainsFunc(frameViolations, func(c struct {
				name string
				rule container.Rule
				sent string
			}) bool {
				return c.rule == rule
			}) {
			t.Errorf("no case for %s", rule)
		}
	}
}

// TestOpenedViolations: the accepter breaks a rule.
func TestOpenedViolations(t *testing.T) {
	for name, c := range map[string]struct {
		rule container.Rule
		sent string
	}{
		"status 8":                 {RuleFrameOpened, "\x02\x00\x00\x01\x08"},
		"text with a line feed":    {RuleFrameOpened, "\x02\x00\x00\x02\x01\n"},
		"text of 257 bytes":        {RuleFrameLength, "\x02\x00\x01\x02\x01"},
		"OPENED of no bytes":       {RuleFrameLength, "\x02\x00\x00\x00"},
		"DATA instead of OPENED":   {RuleFrameOrder, "\x03\x00\x00\x01x"},
		"OPEN from the accepter":   {RuleFrameOrder, "\x01\x00\x00\x02{}"},
		"RESET instead of OPENED":  {RuleFrameOrder, string(appendReset(nil, 1))},
		"DATA, then OPENED at all": {RuleFrameOrder, "\x02\x00\x00\x01\x00\x02\x00\x00\x01\x00"},
	} {
		t.Run(name, func(t *testing.T) {
			p := dialRaw(t, nil)
			go func() {
				if ys, err := p.ys.AcceptStream(); err == nil {
					ys.Write([]byte(c.sent))
				}
			}()
			eventually(t, "the link is up", func() bool { return len(p.node.allLinks()) == 1 })
			ctx, cancel := context.WithCancel(testContext(t))
			opened := make(chan error, 1)
			go func() {
				s, err := p.node.Open(ctx, "raw", toEcho)
				if err == nil { // a good OPENED, followed by something else
					err = readError(t, s)
				}
				opened <- err
			}()
			p.endsWith(t, c.rule)
			cancel() // it waits for another link
			if err := <-opened; err == nil || err == io.EOF {
				t.Fatal(err)
			}
		})
	}
}

// TestHeaderViolationEndsTheLink: what the guard finds does the same.
func TestHeaderViolationEndsTheLink(t *testing.T) {
	p := dialRaw(t, nil)
	p.open(t, toEcho)
	other := p.accepted(t)
	p.conn.Write([]byte(data(99, 5)))
	p.endsWith(t, RuleYamuxStream, other)
}

func TestEndOfFileIsNoEnd(t *testing.T) {
	for name, sent := range map[string]string{
		"after OPEN": "", "after DATA": "\x03\x00\x00\x01x", "inside DATA": "\x03\x00\x00\x09x", "inside a header": "\x03\x00",
		"inside END": "\x04\x00\x00\x08\x00",
	} {
		t.Run(name, func(t *testing.T) {
			p := dialRaw(t, nil)
			s := p.open(t, toEcho)
			b := p.accepted(t)
			s.Write([]byte(sent))
			s.Close()
			if err := readError(t, b); !errors.Is(err, ErrTruncated) {
				t.Fatal(err)
			}
			// It concerns this stream only.
			p.open(t, toEcho)
			p.accepted(t)
		})
	}
}

// TestFirstFrames: DATA may come before OPENED, a RESET code that is not known
// reads as 0, and RESET may follow END.
func TestFirstFrames(t *testing.T) {
	p := dialRaw(t, nil)
	s := p.open(t, toEcho)
	s.Write([]byte("\x03\x00\x00\x02hi" + string(appendEnd(nil, 2))))
	b := p.accepted(t)
	if got, err := io.ReadAll(b); err != nil || string(got) != "hi" {
		t.Fatal(got, err)
	}
	aborted := make(chan struct{})
	b.OnAbort(func() { close(aborted) })
	s.Write(appendReset(nil, 77))
	<-aborted
	var r *ResetError
	if !errors.As(b.Err(), &r) || r.Code != ResetUnspecified || !r.Remote {
		t.Fatal(b.Err())
	}
}

func TestStatusesReachTheOpener(t *testing.T) {
	a, _ := pair(t, func(in *Inbound) {
		switch to := in.Open().To; to {
		case "silent":
		default:
			in.Refuse(Status(to[0]-'0'), "because\n"+to)
		}
	}, nil, nil)
	for status := StatusDenied; status <= StatusOverloaded; status++ {
		to := fmt.Sprint(int(status))
		_, err := a.Open(testContext(t), "b", Open{To: to, Via: "forward"})
		var oe *OpenError
		if !errors.As(err, &oe) || oe.Status != status || oe.Text != "because?"+to {
			t.Fatal(err)
		}
	}
	_, err := a.Open(testContext(t), "b", Open{To: "silent", Via: "forward"})
	var oe *OpenError
	if !errors.As(err, &oe) || oe.Status != StatusUnreachable {
		t.Fatal(err)
	}
	if _, err := a.Open(testContext(t), "b", Open{To: "bad name", Via: "forward"}); err == nil {
		t.Fatal("an OPEN without a legal form was sent")
	}
	if _, err := a.Open(testContext(t), "nobody", toEcho); !errors.Is(err, ErrUnknownPeer) {
		t.Fatal(err)
	}
	eventually(t, "no stream is left", func() bool { return a.streams.Load() == 0 })
}

// TestOpenerGivesUp: the Inbound's context tells.
func TestOpenerGivesUp(t *testing.T) {
	contexts := make(chan context.Context, 1)
	release := make(chan struct{})
	defer close(release)
	a, b := pair(t, func(in *Inbound) {
		contexts <- in.Context()
		select {
		case <-in.Context().Done():
		case <-release:
		}
	}, nil, nil)
	ctx, cancel := context.WithCancel(testContext(t))
	result := make(chan error, 1)
	go func() {
		_, err := a.Open(ctx, "b", toEcho)
		result <- err
	}()
	inbound := <-contexts
	cancel()
	if err := <-result; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	select {
	case <-inbound.Done():
	case <-time.After(deadline):
		t.Fatal("the context lives on")
	}
	eventually(t, "no stream is left", func() bool { return a.streams.Load() == 0 && b.streams.Load() == 0 })
}

// TestSpliceHoldsNoBuffer: sockets at both ends of a stream, as in the proxy.
func TestSplice(t *testing.T) {
	a, b := streamPair(t)
	app, appFar := tcpPair(t)
	target, targetFar := tcpPair(t)
	go func() { a.ReadFrom(appFar); a.CloseWrite() }()
	go func() { a.WriteTo(appFar); appFar.(*net.TCPConn).CloseWrite() }()
	go func() { b.ReadFrom(targetFar); b.CloseWrite() }()
	go func() { b.WriteTo(targetFar); targetFar.(*net.TCPConn).CloseWrite() }()
	go func() { io.Copy(target, target); target.(*net.TCPConn).CloseWrite() }()
	want := randomBytes(3, 5<<20)
	go func() {
		for part := range slices.Chunk(want, 100_003) {
			app.Write(part)
		}
		app.(*net.TCPConn).CloseWrite()
	}()
	got, err := io.ReadAll(app)
	if err != nil || !bytes.Equal(got, want) {
		t.Fatal(len(got), err)
	}
}

func tcpPair(t testing.TB) (net.Conn, net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	b, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

// TestSleep: a stream that nobody reads wakes for whatever there is to read.
func TestSleep(t *testing.T) {
	for name, rouse := range map[string]func(*middle, *Stream){
		"data":  func(_ *middle, s *Stream) { s.Write([]byte("x")) },
		"END":   func(_ *middle, s *Stream) { s.CloseWrite() },
		"RESET": func(_ *middle, s *Stream) { s.Reset(ResetApp) },
		"death": func(m *middle, _ *Stream) { m.kill(0) },
	} {
		for _, ended := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, own END sent: %t", name, ended), func(t *testing.T) {
				handler, streams := accepted()
				na, _, m := pairThrough(t, handler)
				a := open(t, na, "b")
				b := <-streams
				if ended {
					b.CloseWrite()
				}
				woken := make(chan struct{})
				if !b.Sleep(func() { close(woken) }) {
					t.Fatal("did not sleep")
				}
				rouse(m, a)
				select {
				case <-woken:
				case <-time.After(deadline):
					t.Fatal("sleeps on")
				}
				n, err := b.Read(make([]byte, 1))
				switch {
				case name == "data" && (n != 1 || err != nil),
					name == "END" && err != io.EOF,
					name == "RESET" && !errors.As(err, new(*ResetError)),
					name == "death" && !errors.Is(err, ErrTruncated):
					t.Fatal(n, err)
				}
				if name == "death" && b.Sleep(func() {}) {
					t.Fatal("sleeps on a dead link")
				}
			})
		}
	}
}

// TestFinWithData: the last frames and FIN may come in one header.
func TestFinWithData(t *testing.T) {
	p := dialRaw(t, nil)
	s := p.open(t, toEcho)
	b := p.accepted(t)
	if err := b.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	body := "\x03\x00\x00\x02hi" + string(appendEnd(nil, 2))
	p.conn.Write([]byte(header(yamuxData, flagFIN, s.StreamID(), len(body)) + body))
	eventually(t, "it has arrived", func() bool {
		b.link.guard.mu.Lock()
		defer b.link.guard.mu.Unlock()
		return b.flow.remoteFin
	})
	if got, err := io.ReadAll(b); err != nil || string(got) != "hi" {
		t.Fatalf("%q, %v", got, err)
	}
}

// TestEndThatWaitsInVain: END waits for a window that the peer, having given
// the stream up, will never grant.
func TestEndThatWaitsInVain(t *testing.T) {
	p := dialRaw(t, nil)
	s := p.open(t, toEcho)
	b := p.accepted(t)
	fillWindow(t, b)
	ended := make(chan error, 1)
	go func() { ended <- b.CloseWrite() }()
	eventually(t, "END waits", func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return b.ending
	})
	s.Close()
	select {
	case err := <-ended:
		if !errors.Is(err, ErrTruncated) {
			t.Fatal(err)
		}
	case <-time.After(deadline):
		t.Fatal("it waits on")
	}
}

// TestFrameViolationsOfTheAccepter: what an accepter may not send either ends
// the link, above all an END that counts what did not come.
func TestFrameViolationsOfTheAccepter(t *testing.T) {
	for _, c := range []struct {
		name string
		rule container.Rule
		sent string
	}{
		{"OPEN", RuleFrameOrder, string(rawOpen)},
		{"a second OPENED", RuleFrameOrder, string(appendOpened(nil, StatusOK, ""))},
		{"DATA after END", RuleFrameOrder, string(appendEnd(nil, 0)) + "\x03\x00\x00\x01x"},
		{"END counts one too many", RuleFrameCount, "\x03\x00\x00\x01x" + string(appendEnd(nil, 2))},
		{"END counts one too few", RuleFrameCount, "\x03\x00\x00\x01x" + string(appendEnd(nil, 0))},
		{"END counts nothing", RuleFrameCount, string(appendEnd(nil, 1))},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := rawResponder(t, nil, func(_ int, l *rawLink) {
				l.each(func(h yamuxHeader, _ []byte) {
					if h.flags == flagSYN {
						l.answer(h.id)
						l.write(dataOf(h.id, []byte(c.sent)))
					}
				})
			})
			s, err := n.Open(testContext(t), "raw", toEcho)
			if err == nil {
				_, err = io.Copy(io.Discard, s)
			}
			if !errors.Is(err, ErrTruncated) {
				t.Fatal(err)
			}
			eventually(t, "the violation is counted", func() bool { return n.Violations()[c.rule] > 0 })
		})
	}
}

// TestNothingFollowsATornFrame: a reset that finds a frame sent in part, as far
// as the peer's grants went, sends no RESET behind it, though there may be room
// by now: it would be read as the rest of that frame.
func TestNothingFollowsATornFrame(t *testing.T) {
	const part = 5
	raw := make(chan string, 1)
	n := rawResponder(t, nil, func(_ int, l *rawLink) {
		got := ""
		l.each(func(h yamuxHeader, body []byte) {
			switch {
			case h.flags == flagSYN:
				l.answer(h.id)
			case h.flags == flagFIN:
				raw <- got
				l.write(fin(h.id))
			default:
				got += string(body)
			}
		})
	})
	s := open(t, n, "raw")
	g := s.link.guard
	g.mu.Lock()
	left := s.flow.sendCredit
	g.mu.Unlock()
	payload := left - part
	for size := payload; size > 0; {
		chunk := min(size-frameHeaderLen, leastChunk)
		if rest := size - frameHeaderLen - chunk; rest > 0 && rest <= frameHeaderLen {
			chunk -= 2 * frameHeaderLen
		}
		if _, err := s.Write(make([]byte, chunk)); err != nil {
			t.Fatal(err)
		}
		size -= frameHeaderLen + chunk
	}
	ended := make(chan error, 1)
	go func() { ended <- s.CloseWrite() }()
	eventually(t, "END is sent in part", func() bool { return g.credit(s.flow) == 0 })
	// The peer's grant and the reset at one time: END waits no longer.
	g.mu.Lock()
	s.flow.dead = true
	s.flow.sendCredit += 1000
	g.mu.Unlock()
	s.Reset(ResetApp)
	if err := <-ended; err == nil {
		t.Fatal("END was sent")
	}
	got := <-raw
	want := string(appendEnd(nil, s.sent)[:part])
	if got = got[len(got)-min(len(got), part):]; got != want {
		t.Fatalf("the last bytes are %x, want %x", got, want)
	}
}
