package mux

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/sealane/sealane/session"
	"github.com/sealane/sealane/session/container"
)

// A wire is a transport that a test feeds and looks at.
type wire struct {
	in      io.Reader
	text    string // queued
	broken  bool   // for writing
	full    bool   // TryFirst fails
	aborted error
	record  [4096]byte
}

func (w *wire) ReadRecords(bodies [][]byte) ([][]byte, error) {
	n, err := w.in.Read(w.record[:])
	return append(bodies, w.record[:n]), err
}
func (w *wire) Close() error    { return nil }
func (w *wire) Abort(err error) { w.aborted = err }
func (w *wire) Flush()          {}
func (w *wire) Queue(p []byte) error {
	if w.broken {
		return errTest
	}
	w.text += string(p)
	return nil
}
func (w *wire) QueueFirst(p []byte, _ session.Mark) error { return w.Queue(p) }
func (w *wire) TryFirst(p []byte, _ session.Mark, _ bool) (session.Mark, bool) {
	return session.Mark{}, !w.full && w.Queue(p) == nil
}
func (w *wire) Grain() int          { return session.MaxBody }
func (w *wire) BeginTurn(int) error { return nil }
func (w *wire) EndTurn()            {}
func (w *wire) FlushFirst()         {}
func (w *wire) QueueBuffer(b *session.Buffer, n int) (session.Mark, error) {
	return session.Mark{}, w.Queue(b.Body()[:n])
}

// out takes apart what was queued.
func (w *wire) out() (headers []string) {
	for text := w.text; text != ""; {
		n := yamuxHeaderLen
		if h := parseHeader([]byte(text)); h.kind == yamuxData {
			n += int(h.length)
		}
		headers = append(headers, text[:n])
		text = text[n:]
	}
	return headers
}

// A sponge receives anything, and reads nothing until it is told to.
type sponge struct {
	flow *flow
	got  int
}

func (s *sponge) check(p []byte, events []event) ([]event, error) {
	return append(events, event{flow: s.flow, kind: frameData, body: p}), nil
}

func (s *sponge) takeData(bodies [][]byte) int {
	for _, b := range bodies {
		s.got += len(b)
	}
	return 0
}

func (s *sponge) take(event) {}

func (s *sponge) over(bool) {}

// script names headers in a short form: what a test's peer or yamux writes.
func header(kind byte, flags uint16, id uint32, length int) string {
	return string(appendHeader(nil, kind, flags, id, uint32(length)))
}

func syn(id uint32) string            { return header(yamuxWindowUpdate, flagSYN, id, 0) }
func ack(id uint32) string            { return header(yamuxWindowUpdate, flagACK, id, 0) }
func fin(id uint32) string            { return header(yamuxWindowUpdate, flagFIN, id, 0) }
func rst(id uint32) string            { return header(yamuxWindowUpdate, flagRST, id, 0) }
func more(id uint32, n int) string    { return header(yamuxWindowUpdate, 0, id, n) }
func data(id uint32, n int) string    { return header(yamuxData, 0, id, n) + strings.Repeat("x", n) }
func ping(flags uint16, n int) string { return header(yamuxPing, flags, 0, n) }
func away() string                    { return header(yamuxGoAway, 0, 0, 0) }

// A step is what goes through a guard, in either direction.
type step struct {
	out  bool
	text string
}

func in(texts ...string) (steps []step) {
	for _, t := range texts {
		steps = append(steps, step{text: t})
	}
	return steps
}

func out(texts ...string) (steps []step) {
	for _, t := range texts {
		steps = append(steps, step{out: true, text: t})
	}
	return steps
}

func steps(lists ...[]step) []step { return slices.Concat(lists...) }

func testGuard() (*guard, *wire) {
	w := &wire{in: strings.NewReader("")}
	return newGuard(w, false, testAccount(1<<40), guardHooks{
		goAway:    func() {},
		ended:     func(error) {},
		overdrawn: func() {},
		opened:    func(f *flow) (receiver, Limit) { return &sponge{flow: f}, "" },
	}), w
}

// play runs steps through a guard, whose node accepted the link: its streams
// have even ids. It returns what yamux saw.
func play(g *guard, w *wire, list []step) (seen string, err error) {
	for _, s := range list {
		if s.out {
			if err := say(g, s.text); err != nil {
				return seen, err
			}
			continue
		}
		w.in = strings.NewReader(s.text)
		b, err := io.ReadAll(bufio.NewReader(g))
		seen += string(b)
		if err != nil {
			return seen, err
		}
		g.readErr = nil // the end of this step's input
	}
	return seen, nil
}

// say sends what yamux or a stream says.
func say(g *guard, text string) error {
	h := parseHeader([]byte(text))
	if h.kind != yamuxData {
		_, err := g.Write([]byte(text))
		return err
	}
	f := g.flows[h.id]
	if f == nil {
		return nil // a stream keeps its flow, but then it knows
	}
	if err := g.sendSmall(f, []byte(text[yamuxHeaderLen:])); err != errFlowOver {
		return err
	}
	return nil
}

func repeat(n int, f func(i int) string) string {
	var b strings.Builder
	for i := range n {
		b.WriteString(f(i))
	}
	return b.String()
}

// violations has at least one case for each rule of yamux headers.
var guardViolations = []struct {
	name  string
	rule  container.Rule
	steps []step
}{
	{"version 1", RuleYamuxVersion, in("\x01" + syn(1)[1:])},
	{"version 255", RuleYamuxVersion, in(syn(1) + "\xff" + data(1, 1)[1:])},
	{"type 4", RuleYamuxType, in(header(4, 0, 0, 0))},
	{"type 255", RuleYamuxType, in(header(255, 0, 0, 0))},
	{"SYN and ACK", RuleYamuxFlags, in(header(yamuxWindowUpdate, flagSYN|flagACK, 1, 0))},
	{"FIN and RST", RuleYamuxFlags, in(syn(1) + header(yamuxWindowUpdate, flagFIN|flagRST, 1, 0))},
	{"unknown flag", RuleYamuxFlags, in(syn(1) + header(yamuxWindowUpdate, 16, 1, 0))},
	{"ping without a flag", RuleYamuxFlags, in(ping(0, 0))},
	{"ping with two flags", RuleYamuxFlags, in(ping(flagSYN|flagACK, 0))},
	{"go away with a flag", RuleYamuxFlags, in(header(yamuxGoAway, flagSYN, 0, 0))},
	{"SYN with this node's parity", RuleYamuxParity, in(syn(2))},
	{"SYN twice", RuleYamuxReuse, in(syn(1) + syn(1))},
	{"SYN of an id far below the latest", RuleYamuxReuse, in(syn(9999) + syn(1))},
	{"SYN of an overtaken id, twice", RuleYamuxReuse, in(syn(5) + syn(3) + syn(3))},
	{"SYN of a finished id", RuleYamuxReuse, steps(in(syn(1)), out(ack(1), fin(1)), in(fin(1)+syn(1)))},
	{"stream 0", RuleYamuxStream, in(data(0, 1))},
	{"SYN of stream 0", RuleYamuxStream, in(syn(0))},
	{"DATA for a stream never opened", RuleYamuxStream, in(data(1, 1))},
	{"DATA for a stream this node never opened", RuleYamuxStream, in(data(2, 1))},
	{"RST for a stream never opened", RuleYamuxStream, in(rst(1))},
	{"grant for a later stream", RuleYamuxStream, in(syn(1) + more(3, 1))},
	{"DATA after both FIN", RuleYamuxStream, steps(in(syn(1)), out(ack(1), fin(1)), in(fin(1)+data(1, 1)))},
	{"DATA for an id that was skipped", RuleYamuxStream, in(syn(5) + data(3, 1))},
	{"FIN after both FIN", RuleYamuxFin, steps(in(syn(1)), out(ack(1), fin(1)), in(fin(1)+fin(1)))},
	{"DATA after RST", RuleYamuxStream, in(syn(1) + rst(1) + data(1, 1))},
	{"ACK of a stream the peer opened", RuleYamuxAck, in(syn(1) + ack(1))},
	{"second ACK", RuleYamuxAck, steps(out(syn(2)), in(ack(2)+ack(2)))},
	{"DATA before ACK", RuleYamuxAck, steps(out(syn(2)), in(data(2, 1)))},
	{"grant before ACK", RuleYamuxAck, steps(out(syn(2)), in(more(2, 1)))},
	{"FIN before ACK", RuleYamuxAck, steps(out(syn(2)), in(fin(2)))},
	{"second FIN", RuleYamuxFin, in(syn(1) + fin(1) + fin(1))},
	{"DATA after FIN", RuleYamuxFin, in(syn(1) + fin(1) + data(1, 1))},
	{"DATA over the window", RuleYamuxWindow, in(syn(1) + header(yamuxData, 0, 1, initialWindow+1))},
	{"DATA over what is left of the window", RuleYamuxWindow, in(syn(1) + data(1, initialWindow) + header(yamuxData, 0, 1, 1))},
	{"DATA of 4 GiB", RuleYamuxWindow, in(syn(1) + header(yamuxData, 0, 1, -1))},
	{"DATA over the window of a stream that is reset here", RuleYamuxWindow,
		steps(in(syn(1)), out(ack(1), fin(1)), in(data(1, initialWindow)+header(yamuxData, 0, 1, 1)))},
	{"grants of more than 2 GiB", RuleYamuxWindow, in(syn(1) + more(1, 1<<31-1-initialWindow) + more(1, 1))},
	{"a grant of 4 GiB", RuleYamuxWindow, in(syn(1) + more(1, -1))},
	{"SYN with a grant of 4 GiB", RuleYamuxWindow, in(header(yamuxWindowUpdate, flagSYN, 1, -1))},
	{"too many without ACK", RuleYamuxBacklog, in(repeat(2*maxUnacked+1, func(i int) string { return syn(uint32(2*i + 1)) }))},
	{"pings with a stream id", RuleYamuxPing, in(header(yamuxPing, flagSYN, 1, 0))},
	{"answer to no ping", RuleYamuxPing, in(ping(flagACK, 0))},
	{"answer to another ping", RuleYamuxPing, steps(out(ping(flagSYN, 7)), in(ping(flagACK, 8)))},
	{"second answer", RuleYamuxPing, steps(out(ping(flagSYN, 7)), in(ping(flagACK, 7)+ping(flagACK, 7)))},
	{"ping flood", RuleYamuxRate, in(repeat(200, func(i int) string { return ping(flagSYN, i) }))},
	{"answered ping flood", RuleYamuxRate, slices.Repeat(steps(in(ping(flagSYN, 0)), out(ping(flagACK, 0))), 200)},
	{"SYN and RST flood", RuleYamuxRate, in(repeat(200_000, func(i int) string { return syn(uint32(2*i+1)) + rst(uint32(2*i+1)) }))},
	{"go away with a stream id", RuleYamuxGoAway, in(header(yamuxGoAway, 0, 1, 0))},
	{"go away with reason 3", RuleYamuxGoAway, in(header(yamuxGoAway, 0, 0, 3))},
	{"second go away", RuleYamuxGoAway, in(away() + away())},
}

func TestGuardViolations(t *testing.T) {
	for _, c := range guardViolations {
		t.Run(c.name, func(t *testing.T) {
			g, w := testGuard()
			_, err := play(g, w, c.steps)
			if ruleOf(err) != c.rule {
				t.Fatalf("%v, want %s", err, c.rule)
			}
			if w.aborted != err {
				t.Fatalf("the link was aborted with %v", w.aborted)
			}
			if _, again := g.Read(make([]byte, 4096)); again != err {
				t.Fatalf("the next Read returned %v", again)
			}
		})
	}
	for _, rule := range Rules() {
		if strings.HasPrefix(string(rule), "yamux-") &&
			!slices.ContainsFunc(guardViolations, func(c struct {
				name  string
				rule  container.Rule
				steps []step
			}) bool {
				return c.rule == rule
			}) {
			t.Errorf("no case for %s", rule)
		}
	}
}

// lives is what yamux sees of a text: no bodies and no grants.
func lives(text string) (seen string) {
	for text != "" {
		h := parseHeader([]byte(text))
		text = text[yamuxHeaderLen:]
		switch {
		case h.kind == yamuxData:
			text = text[h.length:]
			fallthrough
		case h.kind == yamuxWindowUpdate:
			if h.flags != 0 {
				seen += header(yamuxWindowUpdate, h.flags, h.id, 0)
			}
		default:
			seen += header(h.kind, h.flags, h.id, int(h.length))
		}
	}
	return seen
}

// TestGuardHidesTheBadHeader: of a text that breaks a rule, neither yamux nor
// the stream sees anything of the record with the bad header, nor after it.
func TestGuardHidesTheBadHeader(t *testing.T) {
	good := syn(1) + data(1, 100)
	for size := 1; size < 300; size++ {
		g, w := testGuard()
		w.in = &chunks{text: good + data(3, 50) + good, size: size}
		seen, err := io.ReadAll(bufio.NewReader(g))
		if ruleOf(err) != RuleYamuxStream || !strings.HasPrefix(lives(good), string(seen)) {
			t.Fatalf("records of %d: %v, yamux saw %q", size, err, seen)
		}
		got := 0
		if f := g.flows[1]; f != nil {
			got = f.to.(*sponge).got
		}
		bad := (len(good) + yamuxHeaderLen - 1) / size * size // where the record with the last byte of the bad header begins
		if want := max(0, min(100, bad-2*yamuxHeaderLen)); got != want {
			t.Fatalf("records of %d: the stream got %d bytes, want %d", size, got, want)
		}
	}
}

// chunks is a reader of pieces.
type chunks struct {
	text string
	size int
}

func (c *chunks) Read(p []byte) (int, error) {
	if c.text == "" {
		return 0, io.EOF
	}
	n := copy(p, c.text[:min(c.size, len(c.text))])
	c.text = c.text[n:]
	return n, nil
}

// TestGuardPasses: what a legal peer may send, late and in any order that a
// race can give it, is no violation, and yamux sees no more of it than it knows
// what to do with.
func TestGuardPasses(t *testing.T) {
	for _, c := range []struct {
		name  string
		steps []step
		seen  string
	}{
		{"a stream of the peer's", steps(in(syn(1)+data(1, 9)), out(ack(1), data(1, 3)), in(more(1, 500)+fin(1)), out(fin(1))),
			syn(1) + data(1, 9) + more(1, 500) + fin(1)},
		{"a stream of this node's", steps(out(syn(2)), in(ack(2)+data(2, 5)), out(fin(2)), in(fin(2))),
			ack(2) + data(2, 5) + fin(2)},
		{"ids that overtake each other", in(syn(7) + syn(3) + syn(1) + data(1, 1)), syn(7) + syn(3) + syn(1) + data(1, 1)},
		{"SYN with DATA", in(header(yamuxData, flagSYN, 1, 1) + "x"), header(yamuxData, flagSYN, 1, 1) + "x"},
		{"FIN with DATA", in(syn(1) + header(yamuxData, flagFIN, 1, 1) + "x"), syn(1) + header(yamuxData, flagFIN, 1, 1) + "x"},
		{"FIN with DATA that nobody reads", steps(in(syn(1)), out(ack(1), fin(1)), in(header(yamuxData, flagFIN, 1, 1)+"x")), syn(1) + fin(1)},
		{"nothing, said politely", in(syn(1) + data(1, 0) + more(1, 0)), syn(1) + data(1, 0) + more(1, 0)},
		{"grant after FIN", in(syn(1) + fin(1) + more(1, 1)), syn(1) + fin(1) + more(1, 1)},
		{"grant and RST for a stream that is over", steps(in(syn(1)), out(ack(1), fin(1)), in(fin(1)+more(1, 1)+rst(1))), syn(1) + fin(1)},
		{"ids with gaps", in(syn(3) + syn(9) + data(3, 1)), syn(3) + syn(9) + data(3, 1)},
		{"a full window", in(syn(1) + data(1, initialWindow)), syn(1) + data(1, initialWindow)},
		{"RST instead of ACK", steps(out(syn(2)), in(rst(2))), rst(2)},
		{"a stream reset here: DATA in flight, then FIN", steps(in(syn(1)), out(ack(1), fin(1)), in(data(1, 99)+more(1, 5)+data(1, 7)+fin(1))),
			syn(1) + more(1, 5) + fin(1)},
		{"RST crosses FIN", steps(in(syn(1)), out(ack(1), fin(1)), in(fin(1)+rst(1))), syn(1) + fin(1)},
		{"RST after FIN", steps(in(syn(1)), out(ack(1)), in(fin(1)+rst(1))), syn(1) + fin(1) + rst(1)},
		{"RST crosses RST", steps(in(syn(1)+rst(1)+rst(1)), out(ack(1))), syn(1) + rst(1)},
		{"closed before ACK", steps(out(syn(2), fin(2)), in(ack(2)+data(2, 1)+fin(2))), ack(2) + fin(2)},
		{"SYN after this node's go away", steps(out(away()), in(syn(1))), syn(1)},
		{"pings", steps(in(ping(flagSYN, 1)), out(ping(flagACK, 1), ping(flagSYN, 0)), in(ping(flagACK, 0))),
			ping(flagSYN, 1) + ping(flagACK, 0)},
		{"go away", in(away()), away()},
		{"as many as a node opens before ACK", in(repeat(maxUnacked, func(i int) string { return syn(uint32(2*i + 1)) })),
			repeat(maxUnacked, func(i int) string { return syn(uint32(2*i + 1)) })},
		{"10,000 streams opened and closed at once", in(repeat(10_000, func(i int) string {
			return syn(uint32(2*i+1)) + rst(uint32(2*i+1))
		})), repeat(10_000, func(i int) string { return syn(uint32(2*i+1)) + rst(uint32(2*i+1)) })},
	} {
		t.Run(c.name, func(t *testing.T) {
			g, w := testGuard()
			seen, err := play(g, w, c.steps)
			if err != nil {
				t.Fatal(err)
			}
			if want := lives(c.seen); seen != want {
				t.Fatalf("yamux saw\n%q, want\n%q", seen, want)
			}
		})
	}
}

// TestHugeBodyOfAForgottenStream: a body that nobody wants may be as long as its
// length field can say, which is more than an int of 32 bits holds.
func TestHugeBodyOfAForgottenStream(t *testing.T) {
	for _, length := range []uint32{1<<31 - 1, 1 << 31, 1<<32 - 1} {
		g, w := testGuard()
		huge := string(appendHeader(nil, yamuxData, flagRST, 1, length))
		seen, err := play(g, w, steps(in(syn(1)), out(ack(1), fin(1)), in(fin(1)), in(huge, strings.Repeat("x", 100))))
		if err != nil || seen != syn(1)+fin(1) {
			t.Errorf("%d bytes: yamux saw %q, %v", length, seen, err)
		}
		if want := int64(length) - 100; g.bodyIn != want {
			t.Errorf("%d bytes are left, want %d", g.bodyIn, want)
		}
	}
}

func TestGuardWritesHeaderAndBodyAsOne(t *testing.T) {
	g, w := testGuard()
	play(g, w, steps(out(syn(2)), in(ack(2)), out(data(2, 10), data(2, 60000), fin(2))))
	want := []string{syn(2), data(2, 10), data(2, 60000), fin(2)}
	if !slices.Equal(w.out(), want) {
		t.Fatalf("%d writes", len(w.out()))
	}
}

// TestGuardKeepsItsOwnLaws: whatever yamux's callers race to write, the peer's
// guard finds nothing wrong with it.
func TestGuardKeepsItsOwnLaws(t *testing.T) {
	for name, c := range map[string]struct {
		steps []step
		want  []string
	}{
		"DATA and grants after FIN":               {out(syn(2), fin(2), data(2, 5), more(2, 1<<24), fin(2)), []string{syn(2), fin(2)}},
		"DATA after the peer's RST":               {steps(out(syn(2)), in(ack(2)+rst(2)), out(data(2, 5), fin(2))), []string{syn(2)}},
		"anything after both FIN":                 {steps(out(syn(2), fin(2)), in(ack(2)+fin(2)), out(data(2, 5), rst(2))), []string{syn(2), fin(2)}},
		"ACK after the peer's RST":                {steps(in(syn(1)+rst(1)), out(ack(1))), nil},
		"ACK of a stream that was finished first": {steps(in(syn(1)+fin(1)), out(more(1, 1<<24), fin(1))), []string{ack(1), fin(1)}},
		"yamux's grants":                          {steps(in(syn(1)), out(header(yamuxWindowUpdate, flagACK, 1, 1<<24), more(1, 1<<24))), []string{ack(1)}},
		"yamux's grant with SYN":                  {out(header(yamuxWindowUpdate, flagSYN, 2, 1<<24)), []string{syn(2)}},
		"a dropped body stays dropped":            {out(syn(2), fin(2), data(2, 5), syn(4), data(4, 1)), []string{syn(2), fin(2), syn(4), data(4, 1)}},
	} {
		t.Run(name, func(t *testing.T) {
			g, w := testGuard()
			if _, err := play(g, w, c.steps); err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(w.out(), c.want) {
				t.Fatalf("wrote %q, want %q", w.out(), c.want)
			}
		})
	}
}

// TestGuardGrants follows one stream's window.
func TestGuardGrants(t *testing.T) {
	g, w := testGuard()
	play(g, w, steps(in(syn(1)), out(ack(1)), in(data(1, initialWindow))))
	f := g.flows[1]
	if f.window.unread != initialWindow {
		t.Fatalf("%d bytes unread", f.window.unread)
	}
	w.text = ""
	g.read(f, initialWindow/2-1)
	if len(w.out()) != 0 {
		t.Fatal("granted before half the window was free")
	}
	g.read(f, 1)
	// A stream that is read as fast as it comes gets a larger window: it now
	// has half the first one unread, and the grant fills up four times that one.
	want := more(1, 4*initialWindow-initialWindow/2)
	if !slices.Equal(w.out(), []string{want}) {
		t.Fatalf("wrote %q, want %q", w.out(), want)
	}
	if _, err := play(g, w, in(data(1, 4*initialWindow-initialWindow/2))); err != nil {
		t.Fatal(err)
	}
	if _, err := play(g, w, in(data(1, 1))); ruleOf(err) != RuleYamuxWindow {
		t.Fatalf("one byte more than was granted: %v", err)
	}
}

// TestGuardNeverStarves: with the budget used up, a stream that is read still
// gets a window.
func TestGuardNeverStarves(t *testing.T) {
	g, w := testGuard()
	g.account.all.resize(1, []*account{g.account})
	play(g, w, steps(in(syn(1)), out(ack(1))))
	f := g.flows[1]
	for range 100 {
		n := min(f.window.credit, companyWindow/2)
		if n == 0 {
			t.Fatal("no window")
		}
		if _, err := play(g, w, in(data(1, n))); err != nil {
			t.Fatal(err)
		}
		g.read(f, n)
		if f.window.kept() > initialWindow {
			t.Fatalf("a window of %d under pressure", f.window.credit+f.window.unread)
		}
	}
}

// TestGrantsAreKept: whatever becomes of the round trip and the budget, the
// window that the guard holds a peer to is the one that the peer was granted.
func TestGrantsAreKept(t *testing.T) {
	t.Parallel()
	g, w := testGuard()
	play(g, w, steps(in(syn(1)), out(ack(1))))
	f := g.flows[1]
	random := rand.New(rand.NewPCG(1, 2))
	credit, seen := initialWindow, len(w.out())
	for i := range 2000 {
		g.rtt.Store(int64(random.IntN(100)) * int64(time.Millisecond))
		g.account.all.resize(random.Int64N(1<<28), []*account{g.account})
		n := random.IntN(min(credit, 1<<20) + 1)
		if n > 0 {
			if _, err := play(g, w, in(data(1, n))); err != nil {
				t.Fatalf("step %d: %v", i, err)
			}
		}
		credit -= n
		g.read(f, random.IntN(f.window.unread+1))
		for _, text := range w.out()[seen:] {
			credit += int(parseHeader([]byte(text)).length)
		}
		seen = len(w.out())
		if f.window.credit != credit {
			t.Fatalf("step %d: the peer may send %d, the guard allows %d", i, credit, f.window.credit)
		}
	}
}

func TestWindowFollowsTheRoundTrip(t *testing.T) {
	for _, c := range []struct {
		rtt         time.Duration
		bulk, mixed int
	}{
		{0, 4 << 20, 64 << 10}, {100 * time.Microsecond, 4 << 20, 64 << 10}, {2 * time.Millisecond, 4 << 20, 16 << 20 / 25},
		{25 * time.Millisecond, 32 << 20, 8 << 20}, {50 * time.Millisecond, 64 << 20, 16 << 20}, {time.Second, 64 << 20, 64 << 20},
	} {
		if bulk, mixed := windowFor(c.rtt, false), windowFor(c.rtt, true); bulk != c.bulk || mixed != c.mixed {
			t.Errorf("%v: %d and %d, want %d and %d", c.rtt, bulk, mixed, c.bulk, c.mixed)
		}
	}
}

// TestGuardGivesUpOnAFIN: a peer that never answers a FIN costs nothing for
// long, and what it still sends is no violation until it must know.
func TestGuardGivesUpOnAFIN(t *testing.T) { synctest.Test(t, testGuardGivesUpOnAFIN) }

func testGuardGivesUpOnAFIN(t *testing.T) {
	g, w := testGuard()
	play(g, w, steps(in(syn(1)), out(ack(1), fin(1))))
	g.giveUp(g.late(time.Now()))
	if len(w.out()) != 2 {
		t.Fatalf("gave up at once: %q", w.out())
	}
	g.giveUp(g.late(time.Now().Add(closeTimeout + time.Second)))
	if w.out()[len(w.out())-1] != rst(1) {
		t.Fatalf("wrote %q", w.out())
	}
	// yamux is told that the stream is over; the peer's late DATA is not for it.
	time.Sleep(lateAfterReset + time.Second)
	seen, err := play(g, w, steps(in(data(1, 5)), out(ping(flagSYN, 0)), in(data(1, 5)+more(1, 1))))
	if err != nil || seen != fin(1) {
		t.Fatalf("%v, yamux saw %q", err, seen)
	}
	// The answer to a ping sent long enough after RST: now it knows.
	if _, err = play(g, w, in(ping(flagACK, 0))); err != nil {
		t.Fatal(err)
	}
	if len(g.flows) != 0 {
		t.Fatalf("%d flows left", len(g.flows))
	}
	if _, err = play(g, w, in(data(1, 5))); ruleOf(err) != RuleYamuxStream {
		t.Fatal(err)
	}
}

// TestNoHeaderCutsAClose: what yamux still writes while the sealed close is under
// way is refused, and ends nothing: what was queued before it gets its time.
func TestNoHeaderCutsAClose(t *testing.T) {
	g, w := testGuard()
	g.readOnce.Do(func() { close(g.readDone) })
	g.closeConn()
	w.broken = true
	if err := say(g, ping(flagACK, 1)); err == nil {
		t.Error("written all the same")
	}
	if w.aborted != nil {
		t.Error("cut:", w.aborted)
	}
}

// FuzzGuard: whatever comes, in whatever pieces, the guard gives yamux the same
// bytes and the same verdict, only whole legal headers, and holds nothing back.
func FuzzGuard(f *testing.F) {
	for _, c := range guardViolations {
		var b strings.Builder
		for _, s := range c.steps {
			if !s.out {
				b.WriteString(s.text)
			}
		}
		if b.Len() < 4096 {
			f.Add([]byte(b.String()), byte(7))
		}
	}
	f.Add([]byte(syn(1)+data(1, 20)+more(1, 9)+fin(1)+syn(3)+rst(3)+ping(flagSYN, 1)+away()), byte(5))
	f.Fuzz(func(t *testing.T, text []byte, size byte) {
		run := func(size int) ([]byte, error) {
			g, w := testGuard()
			w.in = &chunks{text: string(text), size: size}
			return io.ReadAll(bufio.NewReader(g))
		}
		whole, err := run(1 << 20)
		pieces, err2 := run(1 + int(size))
		if fmt.Sprint(err) != fmt.Sprint(err2) {
			t.Fatalf("whole: %v, in pieces: %v", err, err2)
		}
		// A violation may cost what came before it in the same piece.
		if !bytes.HasPrefix(pieces, whole) && !bytes.HasPrefix(whole, pieces) {
			t.Fatalf("whole:\n%q, in pieces:\n%q", whole, pieces)
		}
		if err == nil && !bytes.Equal(whole, pieces) {
			t.Fatalf("whole:\n%q, in pieces:\n%q", whole, pieces)
		}
		if len(whole) > len(text) {
			t.Fatal("more out than in")
		}
	})
}

// TestGuardWakesFirst: yamux learns of an error, by which it shuts down, only
// after the streams do.
func TestGuardWakesFirst(t *testing.T) {
	t.Parallel()
	for name, use := range map[string]func(g *guard) error{
		"Read": func(g *guard) error {
			_, err := g.Read(make([]byte, 4096))
			return err
		},
		"Write": func(g *guard) error {
			go g.Read(make([]byte, 4096)) // which the abort ends
			_, err := g.Write([]byte(syn(2)))
			return err
		},
		"Write alone": func(g *guard) error {
			_, err := g.Write([]byte(syn(2)))
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			var ended atomic.Bool
			g, w := testGuard()
			g.hooks.ended = func(error) { ended.Store(true) }
			w.in, w.broken = iotest.ErrReader(errTest), true
			if err := use(g); !errors.Is(err, errTest) {
				t.Fatal(err)
			}
			if !ended.Load() {
				t.Fatal("the streams sleep on")
			}
		})
	}
}

// TestGrantOnABusyLink: a grant for which there is no room now is made later,
// and is not taken for made.
func TestGrantOnABusyLink(t *testing.T) {
	g, w := testGuard()
	play(g, w, steps(in(syn(1)), out(ack(1)), in(data(1, initialWindow))))
	f := g.flows[1]
	w.text, w.full = "", true
	g.freed(f, initialWindow)
	granted := func() (sum int) {
		g.writeMu.Lock()
		defer g.writeMu.Unlock()
		for _, text := range w.out() {
			sum += int(parseHeader([]byte(text)).length)
		}
		return sum
	}
	eventually(t, "the peer may send again", func() bool { return granted() > 0 })
	g.mu.Lock()
	defer g.mu.Unlock()
	if sum := granted(); sum != f.window.credit {
		t.Fatalf("granted %d, and %d are counted", sum, f.window.credit)
	}
}

// TestGuardWaitsForLateData: what the peer had under way when a stream was
// reset is no violation for some time, even if a ping was answered meanwhile.
func TestGuardWaitsForLateData(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, w := testGuard()
		play(g, w, steps(in(syn(1)), out(ack(1), fin(1))))
		time.Sleep(closeTimeout + time.Second)
		g.giveUp(g.late(time.Now()))
		for i := range 4 { // pings that were sent before lateAfterReset has passed
			time.Sleep(time.Second)
			if _, err := play(g, w, steps(out(ping(flagSYN, i)), in(ping(flagACK, i)+data(1, 5)))); err != nil {
				t.Fatalf("%d s after the reset: %v", i+1, err)
			}
		}
	})
}
