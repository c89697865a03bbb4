package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"time"

	"github.com/sealane/sealane/test/pattern"
)

// loadConn is one app connection of the load client.
type loadConn struct {
	net.Conn
	buf  []byte // for a chunk, made when one is received
	stop func() bool

	// of an echo
	seed, n uint64
	msg     []byte
}

// sources is how many addresses the connections come from: one has only about 28,000 ports.
const sources = 60

// dial connects to the client-side proxy from the n-th source address. The
// connection fails once ctx ends.
func dial(ctx context.Context, addr string, n int) (*loadConn, error) {
	d := net.Dialer{Control: portByConnect}
	if host, _, err := net.SplitHostPort(addr); err == nil && host == "127.0.0.1" {
		d.LocalAddr = &net.TCPAddr{IP: net.IPv4(127, 0, 0, byte(2+n%sources))}
	}
	c, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("connect to the proxy: %w", err)
	}
	lc := &loadConn{Conn: c}
	lc.stop = context.AfterFunc(ctx, func() {
		// A deadline in the past ends blocked calls; the error is theirs to report.
		_ = c.SetDeadline(time.Unix(1, 0))
	})
	return lc, nil
}

// Close is a plain close: the load client has read all that it waits for.
func (c *loadConn) Close() error {
	c.stop()
	return c.Conn.Close()
}

// transfer is how much went through and how long it took.
type transfer struct {
	bytes   int64
	elapsed time.Duration
}

// rate in MB/s.
func (t transfer) rate() float64 { return float64(t.bytes) / 1e6 / t.elapsed.Seconds() }

// upload sends chunks for d and waits until the target has confirmed the last of them.
func (c *loadConn) upload(d time.Duration) (transfer, error) {
	seed := rand.Uint64()
	start := time.Now()
	if err := c.command(header{cmd: cmdUpload, seed: seed}); err != nil {
		return transfer{}, err
	}
	sent, err := sendChunks(c, seed, d)
	if err != nil {
		return transfer{}, err
	}
	reply := make([]byte, headerSize)
	if _, err := io.ReadFull(c, reply); err != nil {
		return transfer{}, fmt.Errorf("no acknowledgement of %d bytes: %w", sent, noCleanEnd(err))
	}
	t := transfer{sent, time.Since(start)}
	return t, pattern.Compare("acknowledgement", 0, reply, header{cmdAck, seed, uint64(sent)}.bytes())
}

// download receives chunks that the target sends for d.
func (c *loadConn) download(d time.Duration) (transfer, error) {
	if c.buf == nil {
		c.buf = make([]byte, pattern.ChunkSize)
	}
	seed := rand.Uint64()
	start := time.Now()
	if err := c.command(header{cmdDownload, seed, uint64(d.Milliseconds())}); err != nil {
		return transfer{}, err
	}
	got, err := receiveChunks(c, seed, c.buf)
	return transfer{got, time.Since(start)}, err
}

func (c *loadConn) command(h header) error {
	if _, err := c.Write(h.bytes()); err != nil {
		return fmt.Errorf("send command: %w", err)
	}
	return nil
}

// startEcho makes the connection an echo of messages of this size and does the first one.
func (c *loadConn) startEcho(size int) error {
	c.seed, c.n, c.msg = rand.Uint64(), 0, make([]byte, size)
	first := header{cmdEcho, c.seed, uint64(size)}.bytes()
	return c.roundTrip(append(first, message(c.seed, 0, size)...))
}

// echo sends the next message and waits until it's back.
func (c *loadConn) echo() error { return c.roundTrip(message(c.seed, c.n, len(c.msg))) }

func (c *loadConn) roundTrip(request []byte) error {
	if _, err := c.Write(request); err != nil {
		return fmt.Errorf("send message %d: %w", c.n, err)
	}
	if _, err := io.ReadFull(c, c.msg); err != nil {
		return fmt.Errorf("message %d did not come back: %w", c.n, noCleanEnd(err))
	}
	if err := pattern.Compare(fmt.Sprintf("message %d", c.n), 0, c.msg, message(c.seed, c.n, len(c.msg))); err != nil {
		return err
	}
	c.n++
	return nil
}

// finish says goodbye after transfers and checks that nothing follows the last of them.
func (c *loadConn) finish() error {
	if err := c.command(header{cmd: cmdBye}); err != nil {
		return err
	}
	var one [1]byte
	switch n, err := c.Read(one[:]); {
	case n > 0:
		return &pattern.Wrong{What: "end of the connection, where there is a surplus byte,"}
	case err == nil || errors.Is(err, io.EOF):
		return c.Close()
	default:
		return fmt.Errorf("no clean end of the connection: %w", err)
	}
}
