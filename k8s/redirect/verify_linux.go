package redirect

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// verifyTime bounds the check of one family. It is this long because an address that has just been given to an
	// interface cannot be used until the kernel has looked for duplicates.
	verifyTime = 5 * time.Second
	// attemptTime bounds one connection. Loopback answers at once.
	attemptTime = time.Second
	// retryPause is the time between two attempts.
	retryPause = 100 * time.Millisecond
)

// family is what differs between IPv4 and IPv6 while checking.
type family struct {
	name     string
	domain   int
	loopback netip.Addr
	// probe is an address of a range reserved for documentation: the best destination, because nobody answers there.
	probe netip.Addr
}

var families = []family{
	{"IPv4", unix.AF_INET, netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("192.0.2.1")},
	{"IPv6", unix.AF_INET6, netip.IPv6Loopback(), netip.MustParseAddr("2001:db8::1")},
}

func (f family) has(a netip.Addr) bool { return a.Is4() == f.loopback.Is4() }

// verify makes a connection in each family and sees it arrive at the listener's port.
func verify(ctx context.Context, o Options) ([]Family, error) {
	var reports []Family
	for _, f := range families {
		r, err := verifyFamily(ctx, o, f)
		if err != nil {
			return nil, fmt.Errorf("the redirect does not work for %s: %w", f.name, err)
		}
		r.Name = f.name
		reports = append(reports, r)
	}
	return reports, nil
}

func verifyFamily(ctx context.Context, o Options, f family) (Family, error) {
	own, err := ownPrefixes(f)
	if err != nil {
		return Family{}, err
	}
	if len(own) == 0 {
		return Family{State: Absent, Detail: "no interface that is up has an address, loopback and link-local ones aside"}, nil
	}
	candidates := destinations(o, f, own)
	if len(candidates) == 0 {
		return Family{State: NotCaught, Detail: "the options leave out every address of this family that could be tried"}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, verifyTime)
	defer cancel()
	var failure error
	for {
		if dst, routed := firstRouted(f, candidates); routed {
			var detail string
			if detail, failure = proveRedirect(ctx, o, f, dst); failure == nil {
				return Family{State: Verified, Detail: detail}, nil
			}
			if errors.As(failure, new(finalError)) {
				return Family{}, failure
			}
		}
		select {
		case <-time.After(retryPause):
		case <-ctx.Done():
			if failure != nil {
				return Family{}, failure
			}
			return Family{State: Absent, Detail: "it has an address but no route to any destination that is caught"}, nil
		}
	}
}

// ownPrefixes lists the addresses of the family with which a connection could leave the namespace.
func ownPrefixes(f family) ([]netip.Prefix, error) {
	interfaces, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("listing the interfaces: %w", err)
	}
	var own []netip.Prefix
	for _, i := range interfaces {
		if i.Flags&net.FlagUp == 0 || i.Flags&net.FlagLoopback != 0 {
			continue
		}
		addrs, err := i.Addrs()
		if err != nil {
			return nil, fmt.Errorf("listing the addresses of %s: %w", i.Name, err)
		}
		for _, a := range addrs {
			p, err := netip.ParsePrefix(a.String())
			if err == nil && f.has(p.Addr()) && !p.Addr().IsLinkLocalUnicast() {
				own = append(own, p)
			}
		}
	}
	return own, nil
}

// destinations lists addresses of the family that the rules should catch, the most harmless first: nothing but the
// first packet of a connection goes to one even if the redirect fails.
func destinations(o Options, f family, own []netip.Prefix) []netip.AddrPort {
	addrs := []netip.Addr{f.probe}
	for _, p := range slices.Concat(o.CIDRs, own) {
		if f.has(p.Addr()) {
			first := p.Masked().Addr()
			addrs = append(addrs, first.Next(), first.Next().Next(), first)
		}
	}
	var found []netip.AddrPort
	for _, a := range addrs {
		dst := netip.AddrPortFrom(a, o.testPort())
		usable := a.IsValid() && f.has(a) && a.IsGlobalUnicast() &&
			!slices.ContainsFunc(own, func(p netip.Prefix) bool { return p.Addr() == a })
		if usable && o.catches(dst) {
			found = append(found, dst)
		}
	}
	return found
}

// firstRouted returns the first destination that packets may leave for. Connecting a UDP socket asks the kernel
// for the route and sends nothing.
func firstRouted(f family, dsts []netip.AddrPort) (netip.AddrPort, bool) {
	for _, dst := range dsts {
		c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(dst))
		if err != nil {
			continue
		}
		src := c.LocalAddr().(*net.UDPAddr).AddrPort().Addr()
		c.Close()
		if !src.IsLoopback() {
			return dst, true
		}
	}
	return netip.AddrPort{}, false
}

// A finalError is a failure that another attempt would not change.
type finalError struct{ error }

// proveRedirect connects to dst and finds the connection among those of the listener's port instead: of a socket that
// it opens there itself or, where the port is taken (by the sidecar, when the rules are renewed beside it), of that one.
// The connection never comes about: its answer is discarded by the dialing socket or, if the listening one is of
// somebody who may not answer on the port, by the rules. So nobody learns of it but the kernel.
func proveRedirect(ctx context.Context, o Options, f family, dst netip.AddrPort) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, attemptTime)
	defer cancel()
	at := netip.AddrPortFrom(f.loopback, o.To)
	by := at.String()
	ln, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at))
	switch {
	case err == nil:
		defer ln.Close()
	case errors.Is(err, unix.EADDRINUSE):
		by = fmt.Sprintf("the process that listens on port %d", o.To)
	default:
		return "", fmt.Errorf("listening on %s: %w", at, err)
	}
	d, err := dial(o, f, dst)
	if err != nil {
		return "", err
	}
	defer d.close()
	for {
		sockets, err := tcpSockets()
		if err != nil {
			return "", err
		}
		for _, s := range sockets {
			if s.local == at && s.remote == d.local {
				return fmt.Sprintf("a connection to %s arrived at %s", dst, by), nil
			}
		}
		select {
		case <-time.After(retryPause):
		case <-ctx.Done():
			return "", fmt.Errorf("a connection to %s did not arrive at %s", dst, by)
		}
	}
}

// checkListener refuses a listener that is not the sidecar's. Sockets that the redirect does not lead to are nobody's
// business: any user may open one at another address of loopback.
func checkListener(o Options) error {
	sockets, err := tcpSockets()
	if err != nil {
		return err
	}
	for _, s := range sockets {
		if s.state == stateListen && s.local.Port() == o.To && isRedirectTarget(s.local.Addr()) && !slices.Contains(o.sidecarUIDs(), s.uid) {
			return finalError{fmt.Errorf("the process that listens on port %d runs as user %d, which is not the sidecar's: if it is the "+
				"sidecar, name that user with --except-uid, or with --mark and --sidecar-uid; if not, end it", o.To, s.uid)}
		}
	}
	return nil
}

// isRedirectTarget reports whether a socket that listens on the address is sent what is redirected.
func isRedirectTarget(a netip.Addr) bool {
	return a.IsUnspecified() || slices.ContainsFunc(families, func(f family) bool { return f.loopback == a })
}

// A dialed socket is a connection attempt that the rules should catch.
type dialed struct {
	fd    int
	local netip.AddrPort
}

// dial starts a connection to dst as a user that is not exempt, by a socket that discards every answer.
func dial(o Options, f family, dst netip.AddrPort) (*dialed, error) {
	var fd int
	err := asCaughtUser(o, func() (err error) {
		fd, err = unix.Socket(f.domain, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("opening a socket: %w", err)
	}
	d := &dialed{fd: fd}
	deaf := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: 0}}
	program := &unix.SockFprog{Len: 1, Filter: &deaf[0]}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, program); err != nil {
		d.close()
		return nil, fmt.Errorf("attaching a filter to a socket: %w", err)
	}
	if err := unix.Connect(fd, sockaddr(dst)); err != nil && err != unix.EINPROGRESS {
		d.close()
		return nil, fmt.Errorf("connecting to %s: %w", dst, err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		d.close()
		return nil, fmt.Errorf("connecting to %s: %w", dst, err)
	}
	d.local = addrPort(name)
	return d, nil
}

func (d *dialed) close() {
	unix.SetsockoptLinger(d.fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	unix.Close(d.fd)
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
	}
	return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
}

func addrPort(sa unix.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port))
	}
	return netip.AddrPort{}
}

// asCaughtUser runs f, which opens a socket, as a user whose connections are caught: as this process's user unless
// that one is exempt. The kernel takes a socket's owner from the file system user of the thread that opened it.
func asCaughtUser(o Options, f func() error) error {
	own := os.Geteuid()
	if !slices.Contains(o.ExceptUIDs, uint32(own)) {
		return f()
	}
	other := 1
	for slices.Contains(o.ExceptUIDs, uint32(other)) {
		other++
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Setfsuid(other); err != nil {
		return err
	}
	defer unix.Setfsuid(own)
	if now, err := unix.SetfsuidRetUid(-1); err != nil || now != other {
		return finalError{fmt.Errorf("this process runs as user %d, which is exempt, so its own connection proves nothing, and "+
			"it may not change the user: run it as another one", own)}
	}
	return f()
}
