package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strconv"
	"syscall"

	"github.com/sealane/sealane/proxy"
)

// sockets are what systemd passed to this process, by name.
type sockets map[string][]*os.File

// listen binds the address of a key of the config, links' or the admin's, and
// says in words what to do if it cannot be had.
func (s sockets) listen(key string, e proxy.Endpoint) (net.Listener, error) {
	var l net.Listener
	var err error
	switch e.Network {
	case "systemd":
		files := s[e.Address]
		if len(files) != 1 {
			return nil, fmt.Errorf("%s: systemd passed %d sockets named %q, one is needed; set FileDescriptorName=%s in the socket unit",
				key, len(files), e.Address, e.Address)
		}
		l, err = net.FileListener(files[0])
	case "unix":
		l, err = proxy.ListenUnix(e.Address, 0, "") // for this user alone
	default:
		var lc net.ListenConfig
		lc.SetMultipathTCP(false) // of which the sandbox sees nothing
		l, err = lc.Listen(context.Background(), "tcp", e.Address)
	}
	if err != nil {
		return nil, bindError(key, e, err)
	}
	return l, nil
}

// bindError says in words what to do about an address that cannot be had.
func bindError(key string, e proxy.Endpoint, err error) error {
	advice := ""
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		advice = "; another process has it (ss -lntpx shows which): stop that one or choose another address"
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		advice = "; this host has no such address: use one of its own, or 0.0.0.0"
	case errors.Is(err, syscall.EACCES):
		advice = "; this user may not: use a port above 1023, or another folder for a unix socket"
	case errors.Is(err, fs.ErrNotExist):
		advice = "; make the folder first"
	}
	return fmt.Errorf("%s: cannot listen on %v: %w%s", key, e, cause(err), advice)
}

// cause is the system's own word for a failed call.
func cause(err error) error {
	var number syscall.Errno
	if errors.As(err, &number) {
		return number
	}
	return err
}

// portOf is the TCP port of a listener, if it has one.
func portOf(l net.Listener) (uint16, bool) {
	if l == nil {
		return 0, false
	}
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		return 0, false
	}
	n, err := strconv.ParseUint(port, 10, 16)
	return uint16(n), err == nil
}

// socketOf is the path of a listener's unix socket, if it has one.
func socketOf(l net.Listener) (string, bool) {
	if l == nil {
		return "", false
	}
	a, ok := l.Addr().(*net.UnixAddr)
	if !ok {
		return "", false
	}
	return a.Name, true
}
