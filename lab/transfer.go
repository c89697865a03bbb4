package lab

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sealane/sealane/test/pattern"
)

// A Transfer sends Up bytes to a Target, half-closes, and gets Down bytes back.
// Both directions are streams of the pattern.
type Transfer struct {
	Seed     uint64
	Up, Down uint32
	Silence  uint32 // milliseconds between the two
}

// headerLen is a Transfer on the wire, its fields in their order.
const headerLen = 20

func (x Transfer) header() []byte {
	b := binary.BigEndian.AppendUint64(nil, x.Seed)
	b = binary.BigEndian.AppendUint32(b, x.Up)
	b = binary.BigEndian.AppendUint32(b, x.Down)
	return binary.BigEndian.AppendUint32(b, x.Silence)
}

func parseTransfer(header []byte) Transfer {
	word := func(i int) uint32 { return binary.BigEndian.Uint32(header[i:]) }
	return Transfer{Seed: binary.BigEndian.Uint64(header), Up: word(8), Down: word(12), Silence: word(16)}
}

func (x Transfer) up() pattern.Stream   { return pattern.Stream(x.Seed) }
func (x Transfer) down() pattern.Stream { return pattern.Stream(^x.Seed) }

// A Tally counts how transfers ended. Only Complete and Failed are good ends.
type Tally struct {
	Complete, Failed           atomic.Int64
	truncated, wrong, hung     atomic.Int64 // seen by the client
	targetTruncated, targetBad atomic.Int64 // seen by the target
}

func (t *Tally) String() string {
	return fmt.Sprintf("%d complete, %d failed with an error; silent truncations %d at the client and %d at the target, wrong bytes %d and %d, hangs %d",
		t.Complete.Load(), t.Failed.Load(), t.truncated.Load(), t.targetTruncated.Load(), t.wrong.Load(), t.targetBad.Load(), t.hung.Load())
}

// OK reports whether nothing ended in a way that must never happen.
func (t *Tally) OK() bool {
	return t.truncated.Load()+t.wrong.Load()+t.hung.Load()+t.targetTruncated.Load()+t.targetBad.Load() == 0
}

// Run does one transfer from the client's side and counts its end. The error
// is nil if it is complete. A transfer hangs if no byte moves for the limit,
// however long all of it takes on a machine that is busy.
func (t *Tally) Run(x Transfer, address string, limit time.Duration) error {
	err := x.client(address, limit)
	var netErr net.Error
	switch {
	case err == nil:
		t.Complete.Add(1)
	case errors.Is(err, errTruncated):
		t.truncated.Add(1)
	case isWrong(err):
		t.wrong.Add(1)
	case errors.As(err, &netErr) && netErr.Timeout():
		t.hung.Add(1)
	default:
		t.Failed.Add(1)
	}
	return err
}

var errTruncated = errors.New("a clean end before the last byte")

// client does one transfer. Its errors besides errTruncated and wrong bytes are
// those of the connection.
func (x Transfer) client(address string, limit time.Duration) error {
	c, err := net.DialTimeout("tcp", address, limit)
	if err != nil {
		return err
	}
	conn := &impatient{TCPConn: c.(*net.TCPConn), limit: limit}
	defer conn.Close()
	conn.moved(0)
	sent := make(chan error, 1)
	var halfClosed atomic.Bool
	go func() {
		_, err := io.Copy(conn, io.MultiReader(bytes.NewReader(x.header()), x.up().Reader(int64(x.Up))))
		if err == nil {
			halfClosed.Store(true)
			err = conn.CloseWrite()
		}
		sent <- err
	}()
	err = x.receive(conn)
	if errors.Is(err, errTruncated) && !halfClosed.Load() && wasReset(conn.TCPConn) {
		err = syscall.ECONNRESET
	}
	if err != nil {
		conn.SetLinger(0)
		conn.Close() // ends the sender too
	}
	if sendErr := <-sent; err == nil {
		err = sendErr
	}
	return err
}

// An impatient conn has a deadline that moves when bytes do, in either
// direction.
type impatient struct {
	*net.TCPConn
	limit time.Duration
	bytes atomic.Int64
}

func (c *impatient) moved(n int) {
	c.bytes.Add(int64(n))
	c.SetDeadline(time.Now().Add(c.limit))
}

func (c *impatient) Read(b []byte) (int, error) {
	n, err := c.TCPConn.Read(b)
	return n, c.progress(n, err)
}

func (c *impatient) Write(b []byte) (int, error) {
	n, err := c.TCPConn.Write(b)
	return n, c.progress(n, err)
}

func (c *impatient) progress(n int, err error) error {
	if n > 0 {
		c.moved(n)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("after %d bytes: %w", c.bytes.Load(), err)
	}
	return err
}

// ReadFrom is io.Copy's way without the kernel's, which tells of no progress.
func (c *impatient) ReadFrom(r io.Reader) (int64, error) {
	return io.Copy(struct{ io.Writer }{c}, r)
}

// wasReset tells a reset from a FIN after an end of file, as long as this side
// has sent no FIN: Linux reports a reset to one call only, and when that was
// the sender's write, the next read looks like a clean end.
func wasReset(conn *net.TCPConn) bool {
	raw, err := conn.SyscallConn()
	if err != nil {
		return false
	}
	const stateClose = 7 // TCP_CLOSE; after a FIN it would be TCP_CLOSE_WAIT
	closed := false
	raw.Control(func(fd uintptr) {
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		closed = err == nil && info.State == stateClose
	})
	return closed
}

// receive checks the down direction to its very end.
func (x Transfer) receive(conn io.Reader) error {
	got := pattern.Checker{Stream: x.down(), Length: int64(x.Down)}
	// Without the WriteTo of a TCPConn, which tells of no progress.
	if _, err := io.Copy(&got, struct{ io.Reader }{conn}); err != nil {
		return err
	}
	if !got.Whole() {
		return fmt.Errorf("%w: %d of %d", errTruncated, got.Offset, x.Down)
	}
	return nil
}

func isWrong(err error) bool {
	wrong := (*pattern.Wrong)(nil)
	return errors.As(err, &wrong)
}

// A Target answers transfers and can be taken down and up again.
type Target struct {
	Address string
	tally   *Tally
	mu      sync.Mutex
	l       net.Listener
	wg      sync.WaitGroup
}

// NewTarget is a Target that is up, until the test ends.
func NewTarget(t *testing.T, tally *Tally) *Target {
	t.Helper()
	g := &Target{Address: fmt.Sprintf("127.0.0.1:%d", FreePort(t)), tally: tally}
	if err := g.Up(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.Down)
	return g
}

// Up listens, on the same port each time.
func (g *Target) Up() error {
	l, err := net.Listen("tcp", g.Address)
	if err != nil {
		return err
	}
	g.mu.Lock()
	g.l = l
	g.mu.Unlock()
	g.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			g.wg.Go(func() { g.serve(c.(*net.TCPConn)) })
		}
	})
	return nil
}

// Down refuses new connections; those that run go on.
func (g *Target) Down() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.l.Close()
}

// serve answers one transfer. Whatever is wrong with what arrives it tells the
// tally; a reset or a timeout is an honest end.
func (g *Target) serve(conn *net.TCPConn) {
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(5 * time.Minute))
	header := make([]byte, headerLen)
	switch n, err := io.ReadFull(conn, header); {
	case err == io.EOF && n == 0:
		// A stream that was opened and given up before its first byte ends
		// like this only if its client closed without sending: ours never do.
		g.tally.targetTruncated.Add(1)
		return
	case err == io.ErrUnexpectedEOF:
		g.tally.targetTruncated.Add(1)
		return
	case err != nil:
		conn.SetLinger(0)
		return
	}
	x := parseTransfer(header)
	got := pattern.Checker{Stream: x.up(), Length: int64(x.Up)}
	switch _, err := io.Copy(&got, conn); {
	case isWrong(err):
		g.tally.targetBad.Add(1)
		return
	case err != nil:
		conn.SetLinger(0)
		return
	case !got.Whole():
		g.tally.targetTruncated.Add(1)
		return
	}
	time.Sleep(time.Duration(x.Silence) * time.Millisecond) // the silence is what is asked for
	if _, err := io.Copy(conn, x.down().Reader(int64(x.Down))); err != nil {
		conn.SetLinger(0)
	}
}
