package session

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/sealane/sealane/session/container"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newKey(t testing.TB) *PrivateKey {
	t.Helper()
	k, err := GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// tcpPair is a real connection over loopback.
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

func deadline(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

type ends struct {
	i, r       *Conn
	iErr, rErr error
}

// shake runs both roles over a and b.
func shake(t testing.TB, a, b net.Conn, ic, rc Config) ends {
	t.Helper()
	var e ends
	var wg sync.WaitGroup
	wg.Go(func() { e.r, e.rErr = Respond(deadline(t), b, rc) })
	e.i, e.iErr = Initiate(deadline(t), a, rc.Key.Public(), ic)
	wg.Wait()
	return e
}

// configs are two nodes that know each other.
func configs(t testing.TB) (ic, rc Config) {
	decoys, err := NewDecoys()
	if err != nil {
		t.Fatal(err)
	}
	ic, rc = Config{Key: newKey(t)}, Config{Key: newKey(t), Replay: NewReplayCache(), Decoys: decoys}
	peer := ic.Key.Public()
	rc.Authorize = func(k PublicKey) bool { return k == peer }
	return ic, rc
}

// pair is a working session.
func pair(t testing.TB, change func(ic, rc *Config)) (i, r *Conn) {
	t.Helper()
	a, b := tcpPair(t)
	ic, rc := configs(t)
	if change != nil {
		change(&ic, &rc)
	}
	e := shake(t, a, b, ic, rc)
	if e.iErr != nil || e.rErr != nil {
		t.Fatalf("handshake: initiator %v, responder %v", e.iErr, e.rErr)
	}
	t.Cleanup(func() { e.i.Abort(nil); e.r.Abort(nil) })
	return e.i, e.r
}

func randomBytes(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

func ruleOf(err error) Rule {
	if v := (*Violation)(nil); errors.As(err, &v) {
		return v.Rule
	}
	return ""
}

// exchange sends data both ways at once in odd pieces, closes one end and
// checks every byte. The responder reads through ReadRecords.
func exchange(t *testing.T, i, r *Conn, n int) {
	t.Helper()
	up, down := randomBytes(1, n), randomBytes(2, n)
	send := func(c *Conn, data []byte) {
		for step := 1; len(data) > 0; step = (step*3 + 1) % 200001 {
			k := min(len(data), step)
			if _, err := c.Write(data[:k]); err != nil {
				t.Errorf("write: %v", err)
				return
			}
			data = data[k:]
		}
	}
	var wg sync.WaitGroup
	receive := func(r io.Reader, want []byte) {
		got := make([]byte, len(want))
		if _, err := io.ReadFull(r, got); err != nil || !bytes.Equal(got, want) {
			t.Errorf("read: %v, equal %v", err, bytes.Equal(got, want))
		}
	}
	wg.Go(func() { send(i, up) })
	wg.Go(func() { send(r, down) })
	wg.Go(func() { receive(reader(r, true), up) })
	wg.Go(func() { receive(reader(i, false), down) })
	wg.Wait()
	wg.Go(func() {
		if n, err := r.Read(make([]byte, 1)); n != 0 || err != io.EOF {
			t.Errorf("after the peer's close: %d, %v; want io.EOF", n, err)
		}
	})
	if err := i.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	wg.Wait()
	if err := r.Close(); err != nil {
		t.Errorf("second close: %v", err)
	}
}

func TestEveryTransformCipherAndPadding(t *testing.T) {
	for _, transform := range []string{TransformJSON, TransformPacked, TransformGzip} {
		for _, chacha := range []bool{false, true} {
			for _, padding := range []int{0, paddingBlock} {
				t.Run(fmt.Sprintf("%s/chacha=%v/padding=%d", transform, chacha, padding), func(t *testing.T) {
					i, r := pair(t, func(ic, rc *Config) {
						ic.Transform, rc.Transform = transform, transform
						ic.preferChaCha = func() bool { return chacha }
						rc.preferChaCha = func() bool { return false }
						rc.Padding = padding
					})
					want := map[bool]string{false: cipherAES, true: cipherChaCha}[chacha]
					for _, c := range []*Conn{i, r} {
						if c.Transform() != transform || c.Cipher() != want || c.Padding() != padding {
							t.Fatalf("agreed on %s, %s, %d", c.Transform(), c.Cipher(), c.Padding())
						}
					}
					exchange(t, i, r, 1<<20)
				})
			}
		}
	}
}

func TestNegotiation(t *testing.T) {
	for _, c := range []struct{ i, r, want string }{
		{TransformGzip, TransformGzip, TransformGzip},
		{TransformPacked, TransformJSON, TransformJSON},
		{TransformJSON, TransformPacked, TransformJSON},
		{TransformPacked, TransformGzip, TransformJSON},
		{"", "", TransformJSON},
	} {
		i, r := pair(t, func(ic, rc *Config) { ic.Transform, rc.Transform = c.i, c.r })
		if i.Transform() != c.want || r.Transform() != c.want {
			t.Errorf("%q with %q: %s and %s, want %s", c.i, c.r, i.Transform(), r.Transform(), c.want)
		}
	}
}

func TestRekeyUnderLoad(t *testing.T) {
	for _, transform := range []string{TransformJSON, TransformPacked, TransformGzip} {
		i, r := pair(t, func(ic, rc *Config) {
			ic.Transform, rc.Transform = transform, transform
			ic.RekeyRecords, rc.RekeyRecords = 3, 5
		})
		exchange(t, i, r, 4<<20)
		for name, n := range map[string]uint64{
			"initiator out": i.Stats().RekeysOut, "responder in": r.Stats().RekeysIn,
			"responder out": r.Stats().RekeysOut, "initiator in": i.Stats().RekeysIn,
		} {
			if n < 10 {
				t.Errorf("%s: %s rekeyed %d times", transform, name, n)
			}
		}
	}
}

// TestOneRequestIsOneContainer: head and body that are queued before a Flush
// leave in one record.
func TestOneRequestIsOneContainer(t *testing.T) {
	i, r := pair(t, nil)
	b := NewBuffer()
	if err := errors.Join(queue(i, "head"), queueBuffer(i, b, copy(b.Body(), "body"))); err != nil {
		t.Fatal(err)
	}
	i.Flush()
	buf := make([]byte, 100)
	n, err := r.Read(buf)
	if err != nil || string(buf[:n]) != "headbody" {
		t.Fatalf("%q, %v", buf[:n], err)
	}
	if n := r.Stats().RecordsIn; n != 1 {
		t.Fatalf("%d records", n)
	}
}

func TestBareEndIsTruncation(t *testing.T) {
	for _, transform := range []string{TransformJSON, TransformPacked, TransformGzip} {
		i, r := pair(t, func(ic, rc *Config) { ic.Transform, rc.Transform = transform, transform })
		if _, err := i.Write([]byte("all that arrives")); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 16)
		if _, err := io.ReadFull(r, buf); err != nil {
			t.Fatal(err)
		}
		i.transport.Conn.(*net.TCPConn).CloseWrite()
		if _, err := r.Read(buf); err != ErrTruncated {
			t.Fatalf("%s: %v, want ErrTruncated", transform, err)
		}
		if _, err := r.Write(buf); err != ErrTruncated {
			t.Fatalf("%s: write after: %v", transform, err)
		}
	}
}

func TestCloseUnblocksAtOnce(t *testing.T) {
	i, _ := pair(t, nil)
	got := make(chan error, 2)
	go func() {
		_, err := i.Read(make([]byte, 1))
		got <- err
	}()
	go func() { // fills every buffer: nobody reads at the other end
		for {
			if _, err := i.Write(make([]byte, 1<<20)); err != nil {
				got <- err
				return
			}
		}
	}()
	for i.Stats().WireOut < 1<<17 {
		time.Sleep(time.Millisecond)
	}
	closed := make(chan struct{})
	start := time.Now()
	go func() { i.Close(); close(closed) }()
	for range 2 {
		if err := <-got; !errors.Is(err, net.ErrClosed) {
			t.Errorf("%v, want net.ErrClosed", err)
		}
	}
	if d := time.Since(start); d > closeWait/2 {
		t.Errorf("unblocked after %v", d)
	}
	<-closed
	if d := time.Since(start); d > 3*closeWait {
		t.Errorf("closed after %v", d)
	}
}

// TestCloseInTheMiddleOfAWrite: what Write said it took arrives, and the end
// behind it.
func TestCloseInTheMiddleOfAWrite(t *testing.T) {
	for _, transform := range []string{TransformJSON, TransformPacked, TransformGzip} {
		i, r := pair(t, func(ic, rc *Config) { ic.Transform, rc.Transform = transform, transform })
		i.tx.kernel = unsentQueue{} // not asked: the transport's Write waits
		sent, written := sha256.New(), make(chan struct{})
		go func() {
			defer close(written)
			source := rand.NewChaCha8([32]byte{})
			for p := make([]byte, 1<<20); ; {
				source.Read(p)
				n, err := i.Write(p)
				sent.Write(p[:n])
				if err != nil {
					return
				}
			}
		}()
		for before := uint64(0); i.Stats().WireOut != before || before < 1<<17; { // the pipe is full
			before = i.Stats().WireOut
			time.Sleep(10 * time.Millisecond)
		}
		go i.Close()
		<-written
		got := sha256.New()
		if _, err := io.Copy(got, r); err != nil {
			t.Fatalf("%s: %v", transform, err)
		}
		if !bytes.Equal(got.Sum(nil), sent.Sum(nil)) {
			t.Errorf("%s: not what was written", transform)
		}
	}
}

func TestAbort(t *testing.T) {
	i, r := pair(t, nil)
	cause := errors.New("cause")
	done := make(chan error, 1)
	go func() {
		_, err := i.Read(make([]byte, 1))
		done <- err
	}()
	i.Abort(cause)
	if err := <-done; err != cause {
		t.Fatal(err)
	}
	<-i.Done()
	if _, err := i.Write([]byte("x")); err != cause {
		t.Fatal(err)
	}
	if _, err := r.Read(make([]byte, 1)); err != ErrTruncated {
		t.Fatal(err)
	}
}

func TestUnknownKey(t *testing.T) {
	for _, transform := range []string{TransformJSON, TransformPacked, TransformGzip} {
		a, b := tcpPair(t)
		ic, rc := configs(t)
		ic.Transform, rc.Transform = transform, transform
		rc.Authorize = func(PublicKey) bool { return false }
		e := shake(t, a, b, ic, rc)
		var unknown *UnknownKeyError
		if !errors.As(e.rErr, &unknown) || unknown.Key != ic.Key.Public() {
			t.Errorf("responder: %v", e.rErr)
		}
		if !errors.Is(e.iErr, ErrNotFound) {
			t.Errorf("initiator: %v, want ErrNotFound", e.iErr)
		}
	}
}

func TestWrongKeyGetsADecoy(t *testing.T) {
	a, b := tcpPair(t)
	ic, rc := configs(t)
	done := make(chan error, 1)
	go func() { _, err := Respond(deadline(t), b, rc); done <- err }()
	_, err := Initiate(deadline(t), a, newKey(t).Public(), ic)
	if !errors.Is(err, ErrUnopened) {
		t.Errorf("initiator: %v, want ErrUnopened", err)
	}
	if err := <-done; ruleOf(err) != RuleSeal {
		t.Errorf("responder: %v, want %s", err, RuleSeal)
	}
}

func TestGarbageGetsTheConstantText(t *testing.T) {
	for _, garbage := range []string{"GET / HTTP/1.1\r\n\r\n", "\x16\x03\x01", container.BadRequest[:20] + "x", " "} {
		a, b := tcpPair(t)
		_, rc := configs(t)
		done := make(chan error, 1)
		go func() { _, err := Respond(deadline(t), b, rc); done <- err }()
		if _, err := io.WriteString(a, garbage); err != nil {
			t.Fatal(err)
		}
		answer, err := io.ReadAll(a)
		if string(answer) != container.BadRequest || err != nil {
			t.Errorf("%q: answer %q, %v", garbage, answer, err)
		}
		if err := <-done; ruleOf(err) == "" {
			t.Errorf("%q: %v", garbage, err)
		}
	}
}

func TestResponseIsNeverAnswered(t *testing.T) {
	a, b := tcpPair(t)
	_, rc := configs(t)
	done := make(chan error, 1)
	go func() { _, err := Respond(deadline(t), b, rc); done <- err }()
	io.WriteString(a, container.BadRequest)
	if answer, _ := io.ReadAll(a); len(answer) != 0 {
		t.Errorf("answer %q", answer)
	}
	if err := <-done; !errors.Is(err, ErrRejected) {
		t.Error(err)
	}
}

func TestOwnKey(t *testing.T) {
	a, _ := tcpPair(t)
	k := newKey(t)
	if _, err := Initiate(deadline(t), a, k.Public(), Config{Key: k}); !errors.Is(err, ErrOwnKey) {
		t.Errorf("initiator: %v", err)
	}
	// A node that was given this node's own private key reaches message 3.
	a, b := tcpPair(t)
	_, rc := configs(t)
	rc.Authorize = func(PublicKey) bool { return true }
	done := make(chan error, 1)
	go func() { _, err := Respond(deadline(t), b, rc); done <- err }()
	h := &handshake{cfg: Config{Key: rc.Key}, conn: &counter{Conn: a}, texts: container.NewReader(a)}
	if _, err := initiateUnchecked(h, rc.Key.Public()); !errors.Is(err, ErrRejected) {
		t.Errorf("initiator: %v", err)
	}
	if err := <-done; ruleOf(err) != RuleKey {
		t.Errorf("responder: %v, want %s", err, RuleKey)
	}
}

// initiateUnchecked is initiate without its check of the own key.
func initiateUnchecked(h *handshake, peer PublicKey) (*Conn, error) {
	h.initiator, h.peer = true, peer
	if err := h.start(peer[:]); err != nil {
		return nil, err
	}
	kem, err := h.newKEM()
	if err != nil {
		return nil, err
	}
	if err := h.writeMessage1(kem); err != nil {
		return nil, err
	}
	share, err := h.texts.Share(make([]byte, container.ShareLen))
	if err != nil {
		return nil, err
	}
	payload, err := h.openMessage2(share, kem)
	if err != nil {
		return nil, err
	}
	if h.choice, err = parseChoice(payload, h.offer); err != nil {
		return nil, err
	}
	if err := h.writeMessage3(); err != nil {
		return nil, err
	}
	c := h.conclude()
	return c, c.fail(c.readVerdict())
}

func TestReplayedClientSide(t *testing.T) {
	a, b := tcpPair(t)
	ic, rc := configs(t)
	record := &recorder{Conn: a}
	e := shake(t, record, b, ic, rc)
	if e.iErr != nil || e.rErr != nil {
		t.Fatal(e.iErr, e.rErr)
	}
	e.i.Abort(nil)
	e.r.Abort(nil)
	a, b = tcpPair(t)
	done := make(chan error, 1)
	go func() { _, err := Respond(deadline(t), b, rc); done <- err }()
	a.Write(record.written())
	answer, _ := io.ReadAll(a)
	wantDecoy(t, answer, nil, <-done, RuleReplay, container.BadRequest)
}

// recorder keeps what was written.
type recorder struct {
	net.Conn
	mu  sync.Mutex
	out bytes.Buffer
}

func (r *recorder) Write(p []byte) (int, error) {
	r.mu.Lock()
	r.out.Write(p)
	r.mu.Unlock()
	return r.Conn.Write(p)
}

func (r *recorder) written() []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return bytes.Clone(r.out.Bytes())
}

// CloseWrite keeps the half-close of the transport.
func (r *recorder) CloseWrite() error { return r.Conn.(*net.TCPConn).CloseWrite() }

func TestReplayCacheForgetsTheOldest(t *testing.T) {
	c := NewReplayCache()
	key := func(i int) []byte { s := sha256.Sum256(fmt.Append(nil, i)); return s[:] }
	for i := range replayEntries {
		if !c.add(key(i)) {
			t.Fatalf("%d is new", i)
		}
	}
	if c.add(key(0)) || !c.has(key(0)) {
		t.Fatal("the oldest is still known")
	}
	c.add(key(replayEntries))
	if c.has(key(0)) || !c.has(key(1)) || len(c.seen) != replayEntries {
		t.Fatal("the oldest goes, and only it")
	}
}

func TestAdmitComesBeforeWork(t *testing.T) {
	a, b := tcpPair(t)
	_, rc := configs(t)
	full := errors.New("full")
	rc.Door = &door{admit: full}
	done := make(chan error, 1)
	go func() { _, err := Respond(deadline(t), b, rc); done <- err }()
	a.Write(container.AppendShare(nil, make([]byte, container.ShareLen)))
	if answer, _ := io.ReadAll(a); len(answer) != 0 {
		t.Errorf("over a limit there is no text: %q", answer)
	}
	if err := <-done; !errors.Is(err, full) {
		t.Error(err)
	}
}

// A door is a Door that notes what it is told, and when.
type door struct {
	admit, room error
	begun       time.Time
	mu          sync.Mutex
	calls       []string
}

func (d *door) note(call string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if since := time.Since(d.begun); !d.begun.IsZero() && since > 0 {
		call += " after " + since.String()
	}
	d.calls = append(d.calls, call)
}

// A stubborn connection stays open when it is closed.
type stubborn struct{ net.Conn }

func (stubborn) Close() error                { return nil }
func (stubborn) SetDeadline(time.Time) error { return nil }

// TestRefusals: an initiator that is refused is told why; one that then stays
// is waited for, no longer than it takes to read that, without a place.
func TestRefusals(t *testing.T) {
	errFull := errors.New("full")
	ic, rc := configs(t)
	known := rc.Authorize
	for name, c := range map[string]struct {
		key       PublicKey
		authorize func(PublicKey) bool
		room      error
		iErr      error
		rErr      func(error) bool
		calls     string
		stays     time.Duration
	}{
		"unknown": {rc.Key.Public(), func(PublicKey) bool { return false }, errFull, ErrNotFound,
			func(err error) bool { return errors.As(err, new(*UnknownKeyError)) }, "admit answered settled", refusalLinger},
		"no room": {rc.Key.Public(), known, errFull, ErrNoRoom,
			func(err error) bool { return errors.Is(err, errFull) }, "admit answered room settled", refusalLinger},
		"foreign": {newKey(t).Public(), known, nil, ErrUnopened, func(err error) bool { return ruleOf(err) == RuleSeal },
			"admit answered handshake-seal", 10 * time.Second},
	} {
		synctest.Test(t, func(t *testing.T) {
			a, b := net.Pipe()
			d := &door{room: c.room, begun: time.Now()}
			rc.Door, rc.Authorize = d, c.authorize
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			done := make(chan error)
			go func() { _, err := Respond(ctx, b, rc); done <- err }()
			if _, err := Initiate(ctx, stubborn{a}, c.key, ic); !errors.Is(err, c.iErr) {
				t.Errorf("%s: the initiator says %v", name, err)
			}
			if err := <-done; !c.rErr(err) {
				t.Errorf("%s: the responder says %v", name, err)
			}
			if calls := strings.Join(d.calls, " "); calls != c.calls {
				t.Errorf("%s: the door was told %q, want %q", name, calls, c.calls)
			}
			if stayed := time.Since(d.begun); stayed != c.stays {
				t.Errorf("%s: the connection was held for %v, want %v", name, stayed, c.stays)
			}
			a.Close()
		})
	}
}

// TestVerdictBeforeTheDeadline: who was refused just before the time was up was
// refused, and did not time out.
func TestVerdictBeforeTheDeadline(t *testing.T) {
	errFull := errors.New("full")
	ic, rc := configs(t)
	known := rc.Authorize
	for name, c := range map[string]struct {
		authorize func(PublicKey) bool
		verdict   func(error) bool
	}{
		"unknown": {func(PublicKey) bool { return false }, func(err error) bool { return errors.As(err, new(*UnknownKeyError)) }},
		"no room": {known, func(err error) bool { return errors.Is(err, errFull) }},
	} {
		synctest.Test(t, func(t *testing.T) {
			a, b := net.Pipe()
			defer a.Close()
			rc.Door, rc.Authorize = &door{room: errFull}, c.authorize
			ctx, cancel := context.WithTimeout(t.Context(), refusalLinger/2)
			defer cancel()
			done := make(chan error)
			go func() { _, err := Respond(ctx, b, rc); done <- err }()
			Initiate(t.Context(), stubborn{a}, rc.Key.Public(), ic)
			if err := <-done; !c.verdict(err) {
				t.Errorf("%s: %v", name, err)
			}
		})
	}
}

// TestLingerIsBounded: nor may it go on sending.
func TestLingerIsBounded(t *testing.T) {
	ic, rc := configs(t)
	rc.Authorize = nil
	a, b := tcpPair(t)
	done := make(chan error, 1)
	go func() { _, err := Respond(deadline(t), b, rc); done <- err }()
	if _, err := Initiate(deadline(t), stubborn{a}, rc.Key.Public(), ic); !errors.Is(err, ErrNotFound) {
		t.Fatal(err)
	}
	var sent int64
	for err := error(nil); err == nil; {
		var n int
		n, err = a.Write(make([]byte, 64<<10))
		sent += int64(n)
	}
	if err := <-done; !errors.As(err, new(*UnknownKeyError)) {
		t.Error(err)
	}
	if sent < lingerBytes {
		t.Errorf("closed after %d bytes", sent)
	}
}

func (d *door) Admit(context.Context) error { d.note("admit"); return d.admit }
func (d *door) Answered(broken error) {
	d.note(strings.TrimSpace("answered " + string(ruleOf(broken))))
}
func (d *door) Room(PublicKey) error { d.note("room"); return d.room }
func (d *door) Settled()             { d.note("settled") }

func TestHandshakeEndsWithItsContext(t *testing.T) {
	for name, role := range map[string]func(context.Context, net.Conn) error{
		"initiator": func(ctx context.Context, c net.Conn) error {
			_, err := Initiate(ctx, c, newKey(t).Public(), Config{Key: newKey(t)})
			return err
		},
		"responder": func(ctx context.Context, c net.Conn) error {
			_, err := Respond(ctx, c, Config{Key: newKey(t)})
			return err
		},
	} {
		a, b := tcpPair(t)
		cause := errors.New("enough")
		ctx, cancel := context.WithCancelCause(context.Background())
		done := make(chan error, 1)
		go func() { done <- role(ctx, a) }()
		if name == "initiator" {
			b.Read(make([]byte, 1))
		}
		cancel(cause)
		if err := <-done; !errors.Is(err, cause) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := io.ReadAll(b); err != nil && !strings.Contains(err.Error(), "reset") {
			t.Errorf("%s: its connection is still open: %v", name, err)
		}
	}
}

// TestHandshakeEndsAtItsLastMoment: a context that ends when all is said and
// done ends the session, and leaves nothing behind: a bubble would notice.
func TestHandshakeEndsAtItsLastMoment(t *testing.T) {
	ic, rc := configs(t)
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		enough := errors.New("enough")
		ctx, cancel := context.WithCancelCause(t.Context())
		defer cancel(nil)
		rc.Authorize = func(PublicKey) bool { cancel(enough); return true }
		done := make(chan error)
		go func() { _, err := Respond(ctx, noDeadline{b}, rc); done <- err }()
		c, err := Initiate(t.Context(), a, rc.Key.Public(), ic)
		if err != nil {
			t.Fatal(err)
		}
		if err := <-done; !errors.Is(err, enough) {
			t.Error(err)
		}
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, ErrTruncated) {
			t.Errorf("the initiator reads %v", err)
		}
	})
}

// A noDeadline connection has no deadlines.
type noDeadline struct{ net.Conn }

func (noDeadline) SetDeadline(time.Time) error { return nil }

func BenchmarkSession(b *testing.B) {
	for _, transform := range []string{TransformJSON, TransformPacked, TransformGzip} {
		b.Run(transform, func(b *testing.B) {
			i, r := pair(b, func(ic, rc *Config) { ic.Transform, rc.Transform = transform, transform })
			buf := make([]byte, 128<<10)
			go io.Copy(io.Discard, onlyReader{r})
			b.SetBytes(int64(len(buf)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := i.Write(buf); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

type onlyReader struct{ io.Reader }
