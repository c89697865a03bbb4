package session

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"crypto/mlkem"
	"crypto/mlkem/mlkemtest"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"time"
)

// errReset is a read or write on a connection that the other end has closed
// for good.
var errReset = errors.New("connection reset")

// A flow is one direction of an in-memory connection: unbounded, so that a
// writer never waits, and with the deadlines of a net.Conn. It works under
// testing/synctest.
type flow struct {
	mu       sync.Mutex
	change   sync.Cond
	data     []byte
	fin      bool // the writer is done: io.EOF once data is read
	dead     bool // the reader is gone: writes fail
	deadline time.Time
	timer    *time.Timer
}

func newFlow() *flow {
	f := &flow{}
	f.change.L = &f.mu
	return f
}

func (f *flow) write(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.dead || f.fin {
		return 0, errReset
	}
	f.data = append(f.data, p...)
	f.change.Broadcast()
	return len(p), nil
}

func (f *flow) read(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for {
		switch {
		case f.dead:
			return 0, net.ErrClosed
		case !f.deadline.IsZero() && !time.Now().Before(f.deadline):
			return 0, os.ErrDeadlineExceeded
		case len(f.data) > 0:
			n := copy(p, f.data)
			f.data = f.data[n:]
			return n, nil
		case f.fin:
			return 0, io.EOF
		}
		f.change.Wait()
	}
}

func (f *flow) set(fin, dead bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fin, f.dead = f.fin || fin, f.dead || dead
	if f.timer != nil && dead {
		f.timer.Stop()
	}
	f.change.Broadcast()
}

func (f *flow) setDeadline(t time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.timer != nil {
		f.timer.Stop()
		f.timer = nil
	}
	f.deadline = t
	if d := time.Until(t); !t.IsZero() && d > 0 && !f.dead {
		f.timer = time.AfterFunc(d, func() {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.change.Broadcast()
		})
	}
	f.change.Broadcast()
}

// peek returns what was written and not yet read.
func (f *flow) peek() []byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	return bytes.Clone(f.data)
}

// A memConn is one end of an in-memory connection.
type memConn struct{ in, out *flow }

// memPair is a connection as it should be: what a writes, b reads.
func memPair() (a, b *memConn) {
	up, down := newFlow(), newFlow()
	return &memConn{down, up}, &memConn{up, down}
}

func (c *memConn) Read(p []byte) (int, error)  { return c.in.read(p) }
func (c *memConn) Write(p []byte) (int, error) { return c.out.write(p) }
func (c *memConn) CloseWrite() error           { c.out.set(true, false); return nil }

func (c *memConn) Close() error {
	c.in.set(false, true)
	c.out.set(true, false)
	return nil
}

func (c *memConn) SetDeadline(t time.Time) error      { return c.SetReadDeadline(t) }
func (c *memConn) SetReadDeadline(t time.Time) error  { c.in.setDeadline(t); return nil }
func (c *memConn) SetWriteDeadline(t time.Time) error { return nil } // writes never wait
func (c *memConn) LocalAddr() net.Addr                { return memAddr{} }
func (c *memConn) RemoteAddr() net.Addr               { return memAddr{} }

type memAddr struct{}

func (memAddr) Network() string { return "memory" }
func (memAddr) String() string  { return "memory" }

// seeded is a stream of bytes that depends on its name alone.
func seeded(name string) *rand.ChaCha8 { return rand.NewChaCha8(sha256.Sum256([]byte(name))) }

func seededBytes(name string, n int) []byte {
	b := make([]byte, n)
	seeded(name).Read(b)
	return b
}

// seededKey is a node key that depends on its name alone.
func seededKey(name string) *PrivateKey {
	key, err := ecdh.X25519().NewPrivateKey(seededBytes(name, 32))
	if err != nil {
		panic(err)
	}
	return &PrivateKey{key}
}

// seededEncapsulation is ML-KEM's encapsulation with fixed randomness.
func seededEncapsulation(randomness []byte) func(*mlkem.EncapsulationKey768) ([]byte, []byte) {
	return func(k *mlkem.EncapsulationKey768) ([]byte, []byte) {
		shared, ciphertext, err := mlkemtest.Encapsulate768(k, randomness)
		if err != nil {
			panic(err)
		}
		return shared, ciphertext
	}
}

func seededDecoys(name string) *Decoys {
	key, err := mlkem.NewDecapsulationKey768(seededBytes(name+" decoys", mlkem.SeedSize))
	if err != nil {
		panic(err)
	}
	return newDecoys(key)
}

// seededConfigs are two nodes that know each other and whose every byte on
// the wire depends on name, the transform and the cipher alone.
func seededConfigs(name, transform, cipher string) (ic, rc Config) {
	chacha := func() bool { return cipher == cipherChaCha }
	ic = Config{
		Key: seededKey(name + " initiator"), Transform: transform, preferChaCha: chacha,
		entropy: seeded(name + " initiator's entropy"),
	}
	peer := ic.Key.Public()
	rc = Config{
		Key: seededKey(name + " responder"), Transform: transform, preferChaCha: chacha,
		entropy:     seeded(name + " responder's entropy"),
		encapsulate: seededEncapsulation(seededBytes(name+" encapsulation", 32)),
		Authorize:   func(k PublicKey) bool { return k == peer },
		Replay:      NewReplayCache(),
		Decoys:      seededDecoys(name),
	}
	return ic, rc
}

// shakeMem runs both roles, each over its own conn, for at most limit.
func shakeMem(a, b net.Conn, ic, rc Config, limit time.Duration) (e ends) {
	var wg sync.WaitGroup
	wg.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		defer cancel()
		e.r, e.rErr = Respond(ctx, b, rc)
	})
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	e.i, e.iErr = Initiate(ctx, a, rc.Key.Public(), ic)
	wg.Wait()
	return e
}

// tap records both directions of a link, and where each write ended.
type tap struct {
	net.Conn
	mu      sync.Mutex
	in, out bytes.Buffer
	ends    []int
}

func (c *tap) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.in.Write(p[:n])
	return n, err
}

func (c *tap) Write(p []byte) (int, error) {
	c.mu.Lock()
	c.out.Write(p)
	c.ends = append(c.ends, c.out.Len())
	c.mu.Unlock()
	return c.Conn.Write(p)
}

// captured returns what was written and what was read.
func (c *tap) captured() (out, in []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return bytes.Clone(c.out.Bytes()), bytes.Clone(c.in.Bytes())
}

func (c *tap) CloseWrite() error {
	return c.Conn.(interface{ CloseWrite() error }).CloseWrite()
}

// respondTo gives the responder all of wire, then the end of the stream. It
// returns what the responder answered.
func respondTo(rc Config, wire ...[]byte) (answer []byte, c *Conn, err error) {
	a, b := memPair()
	for _, w := range wire {
		a.Write(w)
	}
	a.CloseWrite()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c, err = Respond(ctx, b, rc)
	return a.in.peek(), c, err
}

// initiateWith gives the initiator all of wire as the responder's.
func initiateWith(ic Config, peer PublicKey, wire ...[]byte) (sent []byte, c *Conn, err error) {
	a, b := memPair()
	for _, w := range wire {
		b.Write(w)
	}
	b.CloseWrite()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c, err = Initiate(ctx, a, peer, ic)
	return b.in.peek(), c, err
}
