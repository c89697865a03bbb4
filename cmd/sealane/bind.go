package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"syscall"

	"github.com/sealane/sealane/proxy"
)

// sockets are what systemd passed to this process, by name.
type sockets map[string][]*os.File

// A door is where one key of the config is listened on: one socket for each
// family that its address means.
type door struct {
	socks []net.Listener
	text  string // for people
}

func newDoor(e proxy.Endpoint, socks ...net.Listener) *door {
	d := &door{socks: socks, text: socks[0].Addr().String()}
	if len(socks) > 1 {
		// All are on one port, which the kernel may have picked.
		host, _, _ := net.SplitHostPort(e.Address)
		_, port, _ := net.SplitHostPort(d.text)
		d.text = net.JoinHostPort(host, port)
	}
	return d
}

// all lists the sockets, none of no door.
func (d *door) all() []net.Listener {
	if d == nil {
		return nil
	}
	return d.socks
}

func (d *door) close() {
	for _, s := range d.all() {
		s.Close()
	}
}

// listen binds the address of a key of the config, links' or the admin's, and
// says in words what to do if it cannot be had. Sockets of beside, which are
// about to be closed, are no obstacle.
func (s sockets) listen(key string, e proxy.Endpoint, beside []net.Listener) (*door, error) {
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
		var socks []net.Listener
		if socks, err = proxy.Listen(context.Background(), e, beside); err == nil {
			return newDoor(e, socks...), nil
		}
	}
	if err != nil {
		return nil, bindError(key, e, err)
	}
	return newDoor(e, l), nil
}

// bindError says in words what to do about an address that cannot be had.
func bindError(key string, e proxy.Endpoint, err error) error {
	advice := ""
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		advice = "; another process has it (ss -lntpx shows which): stop that one or choose another address"
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		advice = "; this host has no such address: use one of its own, or 0.0.0.0 or [::]"
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

// port is the door's TCP port, if it has one.
func (d *door) port() (uint16, bool) {
	if d == nil {
		return 0, false
	}
	t, ok := d.socks[0].Addr().(*net.TCPAddr)
	if !ok {
		return 0, false
	}
	return t.AddrPort().Port(), true
}

// path is that of the door's unix socket, if it has one.
func (d *door) path() (string, bool) {
	if d == nil {
		return "", false
	}
	a, ok := d.socks[0].Addr().(*net.UnixAddr)
	if !ok {
		return "", false
	}
	return a.Name, true
}
