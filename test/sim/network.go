package sim

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"syscall"
	"time"
)

// A network connects the world's nodes with each other, and each node with its
// apps and targets. It is as TCP: a stream of bytes each way, of bounded
// buffers, that ends with FIN or breaks with a reset. What it does to them, and
// when, is drawn.
type network struct {
	plan  *Net
	story *story

	mu        sync.Mutex
	draw      draw
	listeners map[string]*listener
	pairs     []*pair
	dials     map[[2]int]dialing
	ports     int
	number    int // of connections
}

// dialing is what is wrong with connecting from one node to another.
type dialing struct {
	kind  FaultKind
	until time.Time
}

func newNetwork(plan *Net, seed uint64, s *story) *network {
	return &network{
		plan: plan, story: s, draw: newDraw(seed, 2), ports: 20000,
		listeners: make(map[string]*listener), dials: make(map[[2]int]dialing),
	}
}

// nodeIP is the address of a node's process, of which it may have several.
func nodeIP(node, replica int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, 0, byte(replica), byte(node + 1)})
}

// hostOf is the node that has an address.
func hostOf(a net.Addr) int {
	ip := a.(*net.TCPAddr).AddrPort().Addr().As4()
	return int(ip[3]) - 1
}

// A listener accepts what is dialed at its address.
type listener struct {
	net     *network
	address *net.TCPAddr
	conns   chan *conn
	done    chan struct{}
	once    sync.Once
}

const backlog = 512

func (n *network) listen(address string) (*listener, error) {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.listeners[address] != nil {
		return nil, &net.OpError{Op: "listen", Net: "tcp", Err: os.NewSyscallError("bind", syscall.EADDRINUSE)}
	}
	l := &listener{net: n, address: net.TCPAddrFromAddrPort(ap), conns: make(chan *conn, backlog), done: make(chan struct{})}
	n.listeners[address] = l
	return l, nil
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case <-l.done:
		return nil, net.ErrClosed
	default:
	}
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

// Close resets what was not accepted.
func (l *listener) Close() error {
	l.once.Do(func() {
		l.net.mu.Lock()
		delete(l.net.listeners, l.address.String())
		l.net.mu.Unlock()
		close(l.done)
		for {
			select {
			case c := <-l.conns:
				c.SetLinger(0)
				c.Close()
			default:
				return
			}
		}
	})
	return nil
}

func (l *listener) Addr() net.Addr { return l.address }

// dialer returns what a node's process dials with. Between nodes the plan's
// faults apply; to itself, as to its apps and targets, they do not.
func (n *network) dialer(from netip.Addr) func(ctx context.Context, network, address string) (net.Conn, error) {
	return func(ctx context.Context, _, address string) (net.Conn, error) {
		c, err := n.dial(ctx, from, address)
		if err != nil {
			return nil, err
		}
		return c, nil
	}
}

func (n *network) dial(ctx context.Context, from netip.Addr, address string) (*conn, error) {
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	n.ports++
	local := netip.AddrPortFrom(from, uint16(n.ports))
	between := from != to.Addr()
	p := newPair(n, local, to, between)
	trouble := n.dials[[2]int{hostOf(p.ends[0].local), hostOf(p.ends[0].remote)}]
	if !between || time.Now().After(trouble.until) {
		trouble = dialing{}
	}
	wait := n.plan.Latency
	if !between {
		wait = 0
	}
	wait += n.draw.log(time.Millisecond)
	n.mu.Unlock()
	if err := sleep(ctx, wait); err != nil {
		return nil, dialError(err)
	}
	switch trouble.kind {
	case FaultDialHangs:
		<-ctx.Done()
		return nil, dialError(ctx.Err())
	case FaultDialFails:
		return nil, dialError(os.NewSyscallError("connect", syscall.ECONNREFUSED))
	}
	return n.meet(p, address, trouble)
}

// meet connects a pair with who listens at an address.
func (n *network) meet(p *pair, address string, trouble dialing) (*conn, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	l := n.listeners[address]
	if l == nil {
		return nil, dialError(os.NewSyscallError("connect", syscall.ECONNREFUSED))
	}
	switch trouble.kind {
	case FaultDialSplits:
		p.ends[n.draw.IntN(2)].in.cutAt = 1 + n.draw.Int64N(8000)
	case FaultDialStalls:
		p.ends[n.draw.IntN(2)].in.stalled = trouble.until
	}
	select {
	case l.conns <- p.ends[1]:
		n.pairs = append(n.pairs, p)
		return p.ends[0], nil
	default:
		return nil, dialError(os.NewSyscallError("connect", syscall.ETIMEDOUT))
	}
}

func dialError(err error) error { return &net.OpError{Op: "dial", Net: "tcp", Err: err} }

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// between are the connections between two nodes that live.
func (n *network) between(a, b int) (list []*pair) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, p := range n.pairs {
		x, y := hostOf(p.ends[0].local), hostOf(p.ends[0].remote)
		if p.between && p.lives() && (x == a && y == b || x == b && y == a) {
			list = append(list, p)
		}
	}
	return list
}

// cutOff resets all connections of a process, as its end without a word does.
func (n *network) cutOff(ip netip.Addr) {
	n.mu.Lock()
	pairs := n.pairs
	n.mu.Unlock()
	for _, p := range pairs {
		for _, c := range p.ends {
			if c.local.AddrPort().Addr() == ip {
				p.reset()
			}
		}
	}
}

// heal ends all stalls and troubles, and resets what a black hole has.
func (n *network) heal() {
	n.mu.Lock()
	pairs := n.pairs
	clear(n.dials)
	n.mu.Unlock()
	for _, p := range pairs {
		p.mu.Lock()
		hole := p.ends[0].in.hole || p.ends[1].in.hole
		for _, c := range p.ends {
			c.in.stalled, c.in.cutAt = time.Time{}, 0
			c.in.changed.Broadcast()
		}
		p.mu.Unlock()
		if hole {
			p.reset()
		}
	}
}

// left are the connections that an end has not closed.
func (n *network) left() (list []string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, p := range n.pairs {
		p.mu.Lock()
		for side, c := range p.ends {
			if !c.closed {
				list = append(list, fmt.Sprintf("%v, its end %d, which is %v", p, side, c.local))
			}
		}
		p.mu.Unlock()
	}
	return list
}

// A pair is a connection: its two ends.
type pair struct {
	net     *network
	number  int
	between bool // nodes
	mu      sync.Mutex
	draw    draw
	ends    [2]*conn
}

// newPair is called with the network's mu held.
func newPair(n *network, local, remote netip.AddrPort, between bool) *pair {
	n.number++
	p := &pair{net: n, number: n.number, between: between, draw: draw{newDraw(n.draw.Uint64(), 3).Rand}}
	a, b := net.TCPAddrFromAddrPort(local), net.TCPAddrFromAddrPort(remote)
	there, back := p.newPipe(), p.newPipe()
	p.ends[0] = &conn{pair: p, local: a, remote: b, in: back, out: there, linger: -1}
	p.ends[1] = &conn{pair: p, local: b, remote: a, in: there, out: back, linger: -1}
	return p
}

func (p *pair) String() string {
	return fmt.Sprintf("connection %d from %v to %v", p.number, p.ends[0].local, p.ends[0].remote)
}

func (p *pair) lives() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.ends[0].closed && !p.ends[1].closed && p.ends[0].in.err == nil
}

// reset breaks the connection: what is under way is lost.
func (p *pair) reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.resetLocked()
}

func (p *pair) resetLocked() {
	for _, c := range p.ends {
		c.in.fail(os.NewSyscallError("read", syscall.ECONNRESET))
	}
}

// yield lets others run, as calls of a network do: mostly not, at times for
// long. It is what makes the same world run in another order.
func (p *pair) yield() {
	p.mu.Lock()
	n, nap := 0, time.Duration(0)
	switch r := p.draw.IntN(100); {
	case r < 25:
		n = p.draw.between(1, 4)
	case r < 27:
		nap = p.draw.log(time.Millisecond)
	}
	p.mu.Unlock()
	for range n {
		runtime.Gosched()
	}
	if nap > 0 {
		time.Sleep(nap)
	}
}

// A conn is one end of a connection.
type conn struct {
	pair          *pair
	local, remote *net.TCPAddr
	in, out       *pipe

	// Under the pair's mu.
	closed          bool
	linger          int
	readBy, writeBy deadline
}

// A deadline wakes a pipe when it passes.
type deadline struct {
	at    time.Time
	timer *time.Timer
}

func (d *deadline) set(t time.Time, p *pipe) {
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	d.at = t
	if left := time.Until(t); !t.IsZero() && left > 0 {
		d.timer = time.AfterFunc(left, p.wake)
	}
	p.changed.Broadcast()
}

func (d *deadline) passed() bool { return !d.at.IsZero() && !time.Now().Before(d.at) }

func (c *conn) Read(p []byte) (int, error) {
	c.pair.yield()
	c.pair.mu.Lock()
	defer c.pair.mu.Unlock()
	n, err := c.await()
	if err != nil || len(p) == 0 {
		return 0, err
	}
	return c.in.take(p[:min(len(p), n)]), nil
}

// await waits until there is something to read, with the pair's mu held, and
// returns how many bytes are read together.
func (c *conn) await() (int, error) {
	d := c.in
	for {
		switch {
		case c.closed:
			return 0, net.ErrClosed
		case c.readBy.passed():
			return 0, os.ErrDeadlineExceeded
		}
		n, next := d.ready(time.Now())
		switch {
		case n > 0:
			return n, nil
		case d.err != nil:
			return 0, d.err
		case d.size == 0 && d.fin && !d.hole && next == 0:
			return 0, io.EOF
		}
		d.wait(next)
	}
}

// ReadLazy is mux.LazyReader's.
func (c *conn) ReadLazy(take func() [][]byte, drop func()) (total int, err error) {
	c.pair.yield()
	c.pair.mu.Lock()
	n, err := c.await()
	c.pair.mu.Unlock()
	if err != nil {
		return 0, err
	}
	for _, room := range take() {
		c.pair.mu.Lock()
		m := c.in.take(room[:min(len(room), n)])
		c.pair.mu.Unlock()
		n -= m
		total += m
	}
	return total, nil
}

func (c *conn) Write(p []byte) (total int, err error) {
	c.pair.yield()
	c.pair.mu.Lock()
	defer c.pair.mu.Unlock()
	for {
		if err := c.writable(); err != nil {
			return total, err
		}
		n := c.out.put(p)
		total += n
		p = p[n:]
		if len(p) == 0 {
			return total, nil
		}
		c.out.wait(0)
	}
}

// TryWrite is mux.Sink's.
func (c *conn) TryWrite(pieces [][]byte) (total int, err error) {
	c.pair.mu.Lock()
	defer c.pair.mu.Unlock()
	if err := c.writable(); err != nil {
		return 0, err
	}
	for _, p := range pieces {
		n := c.out.put(p)
		total += n
		if n < len(p) {
			break
		}
	}
	return total, nil
}

func (c *conn) writable() error {
	switch {
	case c.closed || c.out.fin && c.out.finByWriter:
		return net.ErrClosed
	case c.in.err != nil || c.out.err != nil:
		return os.NewSyscallError("write", syscall.ECONNRESET)
	case c.writeBy.passed():
		return os.ErrDeadlineExceeded
	}
	return nil
}

func (c *conn) CloseWrite() error {
	c.pair.mu.Lock()
	defer c.pair.mu.Unlock()
	if c.closed {
		return net.ErrClosed
	}
	if c.in.err != nil {
		return os.NewSyscallError("shutdown", syscall.ENOTCONN)
	}
	c.out.end()
	c.out.finByWriter = true
	return nil
}

// SetLinger is a TCPConn's: 0 makes Close a reset.
func (c *conn) SetLinger(seconds int) error {
	c.pair.mu.Lock()
	defer c.pair.mu.Unlock()
	c.linger = seconds
	return nil
}

// Close ends the connection as a kernel does: what was written still arrives,
// unless the other end has sent something that nobody will read.
func (c *conn) Close() error {
	c.pair.mu.Lock()
	defer c.pair.mu.Unlock()
	if c.closed {
		return net.ErrClosed
	}
	c.closed = true
	c.readBy.set(time.Time{}, c.in)
	c.writeBy.set(time.Time{}, c.out)
	c.out.end()
	c.out.finByWriter = true
	c.in.deaf = true
	if c.linger == 0 || c.in.size > 0 {
		c.pair.resetLocked()
	}
	return nil
}

func (c *conn) LocalAddr() net.Addr  { return c.local }
func (c *conn) RemoteAddr() net.Addr { return c.remote }

func (c *conn) SetDeadline(t time.Time) error {
	c.SetReadDeadline(t)
	return c.SetWriteDeadline(t)
}

func (c *conn) SetReadDeadline(t time.Time) error {
	c.pair.mu.Lock()
	defer c.pair.mu.Unlock()
	if c.closed {
		return net.ErrClosed
	}
	c.readBy.set(t, c.in)
	return nil
}

func (c *conn) SetWriteDeadline(t time.Time) error {
	c.pair.mu.Lock()
	defer c.pair.mu.Unlock()
	if c.closed {
		return net.ErrClosed
	}
	c.writeBy.set(t, c.out)
	return nil
}

// SyscallConn says that the kernel knows nothing of this.
func (c *conn) SyscallConn() (syscall.RawConn, error) { return nil, syscall.ENOTSUP }

// listenLocal binds what a process takes for its loopback address.
func (n *network) listenLocal(ip netip.Addr, address string) (net.Listener, error) {
	loopback, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil, err
	}
	l, err := n.listen(netip.AddrPortFrom(ip, loopback.Port()).String())
	if err != nil {
		return nil, err
	}
	return &localListener{l, net.TCPAddrFromAddrPort(loopback)}, nil
}

type localListener struct {
	*listener
	loopback *net.TCPAddr
}

func (l *localListener) Addr() net.Addr { return l.loopback }
