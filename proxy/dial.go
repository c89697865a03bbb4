package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/sealane/sealane/internal/dial"
	"github.com/sealane/sealane/mux"
)

// keepAlive is for every socket towards apps and targets. Its idle time stays
// under the 60 seconds after which the kernel forgets a half-closed redirected
// connection, whose FIN would then never arrive.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 30 * time.Second, Interval: 10 * time.Second, Count: 6}

// A failure says why a connection was not opened.
type failure struct {
	result Result
	reason string // for the log of this node
	text   string // for the peer; holds nothing of this node's inside
}

func (f *failure) Error() string { return string(f.result) + ": " + f.reason }

// status is the answer to an OPEN that failed this way.
func (f *failure) status() mux.Status {
	switch f.result {
	case ResultUnknownService:
		return mux.StatusUnknownService
	case ResultRefused:
		return mux.StatusRefused
	case ResultUnreachable:
		return mux.StatusUnreachable
	case ResultTimedOut:
		return mux.StatusTimedOut
	case ResultNameNotFound:
		return mux.StatusNameNotFound
	case ResultOverloaded, ResultCut:
		return mux.StatusOverloaded
	}
	return mux.StatusDenied
}

// A dialer reaches targets from this node.
type dialer struct {
	resolve lookupFunc
	dial    func(ctx context.Context, network, address string) (net.Conn, error)
}

func newDialer(cfg *Config) dialer {
	d := dialer{resolve: cfg.Resolve, dial: cfg.Dial}
	if d.resolve == nil {
		d.resolve = net.DefaultResolver.LookupNetIP
	}
	if d.dial == nil {
		nd := &net.Dialer{KeepAliveConfig: keepAlive}
		nd.SetMultipathTCP(false) // a reset must be a TCP reset
		nd.ControlContext = targetControl(cfg.Mark)
		d.dial = nd.DialContext
	}
	return d
}

// targetControl prepares a target's socket before it connects: a process that is
// killed, or a dial that is given up, resets its target (see newConn), and its
// urgent byte stays in line.
func targetControl(mark uint32) func(ctx context.Context, network, address string, c syscall.RawConn) error {
	return func(_ context.Context, network, address string, c syscall.RawConn) error {
		if mark != 0 {
			if err := MarkControl(mark)(network, address, c); err != nil {
				return err
			}
		}
		if network == "unix" {
			return nil
		}
		var err error
		if cerr := c.Control(func(fd uintptr) { err = errors.Join(resetOnClose(fd), urgentInLine(fd)) }); cerr != nil {
			return cerr
		}
		return err
	}
}

// MarkControl returns a Control function for a net.Dialer that sets SO_MARK,
// so that redirect rules can exempt the connection. Where the process may not
// set marks, connections go unmarked: rules then exempt it by uid.
func MarkControl(mark uint32) func(network, address string, c syscall.RawConn) error {
	return func(_, _ string, c syscall.RawConn) error {
		var err error
		if cerr := c.Control(func(fd uintptr) { err = setMark(fd, mark) }); cerr != nil {
			return cerr
		}
		if err != nil && !errors.Is(err, os.ErrPermission) {
			return fmt.Errorf("set SO_MARK: %w", err)
		}
		return nil
	}
}

// lookup returns the addresses of a destination that an app or a peer gave.
// A name with a dot is looked up as it stands: completed with a search domain
// it would be another name than the one that the rules were asked about. One
// without is what this host's resolver makes of it, as in the config.
func (d dialer) lookup(ctx context.Context, dest Destination) ([]netip.Addr, *failure) {
	if dest.Name == "" {
		return []netip.Addr{dest.Addr}, nil
	}
	host := dest.Name
	if strings.Contains(host, ".") {
		host += "."
	}
	return d.lookupHost(ctx, host)
}

// lookupHost looks a host up as the system does, search domains among it
// unless it ends with a dot.
func (d dialer) lookupHost(ctx context.Context, host string) ([]netip.Addr, *failure) {
	found, err := d.resolve(ctx, "ip", host)
	if err == nil && len(found) == 0 {
		err = errNoAddress(host)
	}
	if err != nil {
		return nil, lookupFailure(ctx, strings.TrimSuffix(host, "."), err)
	}
	addrs := make([]netip.Addr, 0, len(found))
	for _, a := range found {
		addrs = append(addrs, a.Unmap().WithZone(""))
	}
	return addrs, nil
}

func lookupFailure(ctx context.Context, name string, err error) *failure {
	var dns *net.DNSError
	switch {
	case errors.As(err, &dns) && dns.IsNotFound:
		return &failure{ResultNameNotFound, "the name " + name + " has no address", "name not found"}
	case ctx.Err() != nil, errors.As(err, &dns) && dns.IsTimeout:
		return &failure{ResultTimedOut, "looking up " + name + " took too long", "name lookup timed out"}
	}
	return &failure{ResultUnreachable, "looking up " + name + " failed: " + err.Error(), "name lookup failed"}
}

// dialAny connects to the first address that answers. They are tried in turn,
// families alternating.
func (d dialer) dialAny(ctx context.Context, addrs []netip.Addr, port uint16) (net.Conn, *failure) {
	targets := make([]netip.AddrPort, len(addrs))
	for i, a := range alternate(addrs) {
		targets[i] = netip.AddrPortFrom(a, port)
	}
	var worst error
	c, _, err := dial.First(ctx, targets, dial.HeadStart, func(ctx context.Context, a netip.AddrPort) (net.Conn, error) {
		return d.dial(ctx, "tcp", a.String())
	}, func(_ netip.AddrPort, err error) {
		if worst == nil || dialResult(err) == ResultRefused {
			worst = err
		}
	})
	switch {
	case err == nil:
		return c, nil
	case worst == nil, ctx.Err() != nil && dialResult(worst) != ResultRefused:
		worst = err
	}
	return nil, dialFailure(worst)
}

// alternate orders addresses so that the families take turns, each in the
// order of the resolver.
func alternate(addrs []netip.Addr) []netip.Addr {
	var first, second []netip.Addr
	for _, a := range addrs {
		if a.Is4() == addrs[0].Is4() {
			first = append(first, a)
		} else {
			second = append(second, a)
		}
	}
	out := make([]netip.Addr, 0, len(addrs))
	for i := range max(len(first), len(second)) {
		if i < len(first) {
			out = append(out, first[i])
		}
		if i < len(second) {
			out = append(out, second[i])
		}
	}
	return out
}

func dialFailure(err error) *failure {
	f := &failure{result: dialResult(err), reason: err.Error()}
	switch f.result {
	case ResultRefused:
		f.text = "connection refused"
	case ResultTimedOut:
		f.text = "connecting timed out"
	case ResultOverloaded:
		f.text = "out of resources"
	case ResultCut:
		f.text = "shutting down"
	default:
		f.text = "unreachable"
	}
	return f
}

func dialResult(err error) Result {
	var ne net.Error
	switch {
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ENOENT):
		return ResultRefused // ENOENT: nobody made the unix socket
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE), errors.Is(err, syscall.EAGAIN),
		errors.Is(err, syscall.ENOBUFS), errors.Is(err, syscall.ENOMEM), errors.Is(err, syscall.EADDRNOTAVAIL):
		return ResultOverloaded // EADDRNOTAVAIL: no local port is left
	case errors.Is(err, context.Canceled):
		return ResultCut
	case errors.As(err, &ne) && ne.Timeout(), errors.Is(err, context.DeadlineExceeded):
		return ResultTimedOut
	}
	return ResultUnreachable
}
