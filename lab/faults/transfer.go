package faults

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A transfer sends up bytes to the target, half-closes, and gets down bytes
// and their SHA-256 back. Both directions are pseudo-random from the seed.
type transfer struct {
	Seed     uint64
	Up, Down uint32
}

// headerLen is a transfer on the wire: seed, up, down.
const headerLen = 16

func (x transfer) header() []byte {
	b := binary.BigEndian.AppendUint64(nil, x.Seed)
	b = binary.BigEndian.AppendUint32(b, x.Up)
	return binary.BigEndian.AppendUint32(b, x.Down)
}

// stream gives the bytes of one direction.
func (x transfer) stream(down bool) io.Reader {
	n, seed := x.Up, x.Seed
	if down {
		n, seed = x.Down, ^x.Seed
	}
	var key [32]byte
	binary.BigEndian.PutUint64(key[:], seed)
	return io.LimitReader(rand.NewChaCha8(key), int64(n))
}

// tally counts how transfers ended. Only complete and failed are good ends.
type tally struct {
	complete, failed           atomic.Int64
	truncated, wrong, hung     atomic.Int64 // seen by the client
	targetTruncated, targetBad atomic.Int64 // seen by the target
}

func (t *tally) String() string {
	return fmt.Sprintf("%d complete, %d failed with an error; silent truncations %d at the client and %d at the target, wrong bytes %d and %d, hangs %d",
		t.complete.Load(), t.failed.Load(), t.truncated.Load(), t.targetTruncated.Load(), t.wrong.Load(), t.targetBad.Load(), t.hung.Load())
}

// ok reports whether nothing ended in a way that must never happen.
func (t *tally) ok() bool {
	return t.truncated.Load()+t.wrong.Load()+t.hung.Load()+t.targetTruncated.Load()+t.targetBad.Load() == 0
}

// run does one transfer from the client's side and counts its end.
func (t *tally) run(x transfer, address string, limit time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	err := x.client(ctx, address)
	var netErr net.Error
	switch {
	case err == nil:
		t.complete.Add(1)
	case errors.Is(err, errTruncated):
		t.truncated.Add(1)
	case errors.Is(err, errWrong):
		t.wrong.Add(1)
	case ctx.Err() != nil || errors.As(err, &netErr) && netErr.Timeout():
		t.hung.Add(1)
	default:
		t.failed.Add(1)
	}
}

var (
	errTruncated = errors.New("a clean end before the last byte")
	errWrong     = errors.New("wrong bytes")
)

// client does one transfer. Its errors besides errTruncated and errWrong are
// those of the connection.
func (x transfer) client(ctx context.Context, address string) error {
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	conn := c.(*net.TCPConn)
	defer conn.Close()
	end, _ := ctx.Deadline()
	conn.SetDeadline(end)
	sent := make(chan error, 1)
	var halfClosed atomic.Bool
	go func() {
		_, err := io.Copy(conn, io.MultiReader(bytes.NewReader(x.header()), x.stream(false)))
		if err == nil {
			halfClosed.Store(true)
			err = conn.CloseWrite()
		}
		sent <- err
	}()
	err = x.receive(conn)
	if errors.Is(err, errTruncated) && !halfClosed.Load() && wasReset(conn) {
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
func (x transfer) receive(conn io.Reader) error {
	got, want := sha256.New(), sha256.New()
	n, err := io.CopyN(got, conn, int64(x.Down))
	if err == io.EOF {
		return fmt.Errorf("%w: %d of %d", errTruncated, n, x.Down)
	}
	if err != nil {
		return err
	}
	io.Copy(want, x.stream(true))
	sum := make([]byte, sha256.Size+1)
	k, err := io.ReadFull(conn, sum)
	switch {
	case err == nil:
		return fmt.Errorf("%w: more than was sent", errWrong)
	case k == sha256.Size && err == io.ErrUnexpectedEOF:
	case err == io.EOF || err == io.ErrUnexpectedEOF:
		return fmt.Errorf("%w: in the hash", errTruncated)
	default:
		return err
	}
	if !bytes.Equal(got.Sum(nil), want.Sum(nil)) || !bytes.Equal(sum[:k], want.Sum(nil)) {
		return errWrong
	}
	return nil
}

// A target answers transfers and can be taken down and up again.
type target struct {
	tally   *tally
	address string
	mu      sync.Mutex
	l       net.Listener
	wg      sync.WaitGroup
}

func newTarget(t *tally, address string) (*target, error) {
	g := &target{tally: t, address: address}
	return g, g.up()
}

// up listens, on the same port each time.
func (g *target) up() error {
	l, err := net.Listen("tcp", g.address)
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

// down refuses new connections; those that run go on.
func (g *target) down() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.l.Close()
}

// serve answers one transfer. Whatever is wrong with what arrives it tells the
// tally; a reset or a timeout is an honest end.
func (g *target) serve(conn *net.TCPConn) {
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(2 * time.Minute))
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
	x := transfer{binary.BigEndian.Uint64(header), binary.BigEndian.Uint32(header[8:]), binary.BigEndian.Uint32(header[12:])}
	got, want := sha256.New(), sha256.New()
	n, err := io.Copy(got, conn)
	if err != nil {
		conn.SetLinger(0)
		return
	}
	if n < int64(x.Up) {
		g.tally.targetTruncated.Add(1)
		return
	}
	io.Copy(want, x.stream(false))
	if !bytes.Equal(got.Sum(nil), want.Sum(nil)) {
		g.tally.targetBad.Add(1)
		return
	}
	sum := sha256.New()
	if _, err := io.Copy(io.MultiWriter(conn, sum), x.stream(true)); err != nil {
		conn.SetLinger(0)
		return
	}
	if _, err := conn.Write(sum.Sum(nil)); err != nil {
		conn.SetLinger(0)
	}
}
