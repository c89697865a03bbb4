package session

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// long reports whether the tests take every case, as CI does, or a sample.
// The race detector, which slows them tenfold, gets the sample.
func long() bool {
	return !raceDetector && (os.Getenv("CI") == "true" || os.Getenv("SEALANE_LONG") == "1")
}

// What the two apps of the recorded exchange say to each other.
const (
	appUp   = "what the initiator's app says"
	appDown = "what the responder's app answers"
)

// A tampering is what the adversary does to one byte of one direction.
type tampering struct {
	fromInitiator bool
	offset        int
	act           byte // 'f'lip, 'd'rop, 'r'epeat, 't'runcate before; 0: nothing
}

func (c tampering) String() string {
	from := "responder"
	if c.fromInitiator {
		from = "initiator"
	}
	return fmt.Sprintf("%c at byte %d from the %s", c.act, c.offset, from)
}

// A middle passes on what is written to it, but for one tampering.
type middle struct {
	*memConn
	tampering
	mine bool // the tampering is for this direction
	n    int  // bytes passed so far
	cut  bool
}

func (m *middle) Write(p []byte) (int, error) {
	at := m.offset - m.n
	m.n += len(p)
	if !m.mine || m.act == 0 || m.cut || at < 0 || at >= len(p) {
		if m.cut {
			return len(p), nil
		}
		return m.memConn.Write(p)
	}
	out := bytes.Clone(p[:at])
	switch m.act {
	case 'f':
		out = append(append(out, p[at]^1<<(m.offset%8)), p[at+1:]...)
	case 'd':
		out = append(out, p[at+1:]...)
	case 'r':
		out = append(append(out, p[at]), p[at:]...)
	case 't':
		m.cut = true
	}
	if _, err := m.memConn.Write(out); err != nil {
		return 0, err
	}
	if m.cut {
		return len(p), m.memConn.CloseWrite()
	}
	return len(p), nil
}

// An outcome is what the two apps saw.
type outcome struct {
	iErr, rErr error // nil only if the exchange ran to its sealed close
	iGot, rGot []byte
}

// converse is the exchange over two conns: the initiator's app speaks, the
// responder's, which reads through ReadRecords, answers, the initiator closes.
func converse(a, b net.Conn, ic, rc Config) (o outcome) {
	const patience = 10 * time.Second
	e := shakeMem(a, b, ic, rc, patience)
	o.iErr, o.rErr = e.iErr, e.rErr
	var wg sync.WaitGroup
	wg.Go(func() {
		if e.i == nil {
			return
		}
		defer e.i.Abort(nil)
		e.i.SetReadDeadline(time.Now().Add(patience))
		if _, o.iErr = io.WriteString(e.i, appUp); o.iErr != nil {
			return
		}
		o.iGot = make([]byte, len(appDown))
		var n int
		n, o.iErr = io.ReadFull(e.i, o.iGot)
		o.iGot = o.iGot[:n]
		if o.iErr == nil {
			o.iErr = e.i.Close()
		}
	})
	wg.Go(func() {
		if e.r == nil {
			return
		}
		defer e.r.Abort(nil)
		e.r.SetReadDeadline(time.Now().Add(2 * patience))
		o.rGot = make([]byte, len(appUp))
		var n int
		r := reader(e.r, true)
		if n, o.rErr = io.ReadFull(r, o.rGot); o.rErr != nil {
			o.rGot = o.rGot[:n]
			return
		}
		if _, o.rErr = io.WriteString(e.r, appDown); o.rErr != nil {
			return
		}
		if n, o.rErr = r.Read(make([]byte, 1)); n > 0 {
			o.rErr = errors.New("more than was sent")
		} else if o.rErr == io.EOF {
			o.rErr = nil
		}
	})
	wg.Wait()
	return o
}

// tamper runs the exchange with one tampering, in a bubble whose clock is not
// the wall's: a deadline costs nothing.
func tamper(t *testing.T, transform string, c tampering) (o outcome) {
	synctest.Test(t, func(*testing.T) {
		a, b := memPair()
		ic, rc := seededConfigs("adversary", transform, cipherAES)
		o = converse(&middle{memConn: a, tampering: c, mine: c.fromInitiator},
			&middle{memConn: b, tampering: c, mine: !c.fromInitiator}, ic, rc)
	})
	return o
}

// recordExchange returns, per direction, where each message of the untouched
// exchange ends: message 1, message 3 and the first data record of the
// initiator, message 2 and record 0 of the responder.
func recordExchange(t *testing.T, transform string) (initiator, responder []int) {
	a, b := memPair()
	ta, tb := &tap{Conn: a}, &tap{Conn: b}
	ic, rc := seededConfigs("adversary", transform, cipherAES)
	if o := converse(ta, tb, ic, rc); o.iErr != nil || o.rErr != nil || string(o.iGot) != appDown || string(o.rGot) != appUp {
		t.Fatalf("the untouched exchange: %+v", o)
	}
	return ta.ends, tb.ends
}

// tamperings lists the cases for the bytes from start to end. In the short
// form a stride thins them out, least at the edges.
func tamperings(fromInitiator bool, start, end, stride int) (cases []tampering) {
	for offset := start; offset < end; offset++ {
		edge := offset-start < 110 && offset%3 == 0 || end-offset < 25
		switch {
		case long():
		case raceDetector && offset%(5*stride) != 0:
			continue
		case !edge && offset%stride != 0:
			continue
		}
		for _, act := range []byte("fdrt") {
			cases = append(cases, tampering{fromInitiator, offset, act})
		}
	}
	return cases
}

// TestAdversaryInTheMiddle changes one byte of a link, one case at a time:
// every byte of the handshake and of the first record each way.
func TestAdversaryInTheMiddle(t *testing.T) {
	var total atomic.Int64
	for _, transform := range []string{TransformJSON, TransformPacked, TransformGzip} {
		i, r := recordExchange(t, transform)
		var cases []tampering
		if transform == TransformJSON { // the handshake is the same in all three
			cases = append(cases, tamperings(true, 0, i[0], 67)...)
			cases = append(cases, tamperings(false, 0, r[0], 67)...)
			cases = append(cases, tamperings(true, i[0], i[1], 5)...)
		}
		cases = append(cases, tamperings(true, i[1], i[2], 5)...)
		cases = append(cases, tamperings(false, r[0], r[1], 5)...)
		var unseen atomic.Int64
		t.Run(transform, func(t *testing.T) {
			const workers = 4
			for w := range workers {
				t.Run("", func(t *testing.T) {
					t.Parallel()
					for k := w; k < len(cases) && !t.Failed(); k += workers {
						c := cases[k]
						end := i[2]
						if !c.fromInitiator {
							end = r[1]
						}
						if !judge(t, transform, c, end) {
							unseen.Add(1)
						}
						total.Add(1)
					}
				})
			}
		})
		t.Logf("%s: %d cases, %d unseen", transform, len(cases), unseen.Load())
		if transform != TransformGzip && unseen.Load() > 0 {
			t.Errorf("%s: %d cases went unseen", transform, unseen.Load())
		}
	}
	fmt.Printf("adversary in the middle: %d cases\n", total.Load())
}

// judge runs one case, whose direction's first record ends at end. It reports
// whether the link failed: both ends must, and nothing at all may be delivered.
// Two exceptions: what comes behind the record's text leaves that text as it
// was, so the other end may have had its answer and closed before this one
// fails; and DEFLATE has encodings that differ and mean the same, so under gzip
// a case may go unseen if the exchange ran its whole course.
func judge(t *testing.T, transform string, c tampering, end int) bool {
	o := tamper(t, transform, c)
	whole := o.iErr == nil && o.rErr == nil && string(o.iGot) == appDown && string(o.rGot) == appUp
	if transform == TransformGzip && whole {
		return false
	}
	late := c.offset >= end-behind(transform, c.act)
	if o.iErr == nil && o.rErr == nil || !late && (o.iErr == nil || o.rErr == nil) {
		t.Errorf("%s, %v: initiator %v, responder %v", transform, c, o.iErr, o.rErr)
		return !whole
	}
	if got := string(o.iGot) + string(o.rGot); got != "" && !late || !strings.HasPrefix(appDown, string(o.iGot)) || !strings.HasPrefix(appUp, string(o.rGot)) {
		t.Errorf("%s, %v: %q and %q were delivered", transform, c, o.iGot, o.rGot)
	}
	return true
}

// behind is how many of a first record's last bytes can be tampered with and
// leave its text whole: a repeated brace or tag byte stands behind it, and
// under gzip the end of its block and the sync flush do.
func behind(transform string, act byte) int {
	switch {
	case transform == TransformGzip:
		return 7
	case act != 'r':
		return 0
	case transform == TransformJSON:
		return 2
	}
	return 1
}
