package proxy

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
)

// A Destination is where a connection wants to go: a host name or an address,
// never both, and a port.
type Destination struct {
	Name string     // lower case; "" if Addr is set
	Addr netip.Addr // unmapped, without a zone
	Port uint16
}

// ParseDestination reads HOST:PORT, with IPv6 in brackets, as it stands in an
// OPEN frame or comes from an app. It refuses zones, names with empty labels,
// control or other odd characters, and names that some resolvers would read
// as an IP address, such as 127.1, 0x7f000001 or 2130706433.
func ParseDestination(s string) (Destination, error) {
	d, err := parseDestination(s)
	if err != nil {
		return Destination{}, fmt.Errorf("destination %q: %w", s, err)
	}
	return d, nil
}

func parseDestination(s string) (Destination, error) {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return Destination{}, errors.New("is not HOST:PORT, with IPv6 in brackets")
	}
	if strings.HasPrefix(s, "[") != strings.Contains(host, ":") {
		return Destination{}, errors.New("brackets are for IPv6 addresses alone")
	}
	p, err := parsePort(port)
	if err != nil {
		return Destination{}, err
	}
	return newDestination(host, p)
}

// newDestination takes a host, an IP literal or a name, and a port apart from
// each other, as SOCKS5 gives them.
func newDestination(host string, port uint16) (Destination, error) {
	if port == 0 {
		return Destination{}, errors.New("port 0 cannot be dialed")
	}
	if a, err := netip.ParseAddr(host); err == nil {
		if a.Zone() != "" {
			return Destination{}, errors.New("an address with a zone means something else on every host")
		}
		return Destination{Addr: a.Unmap(), Port: port}, nil
	}
	name, err := checkName(host)
	if err != nil {
		return Destination{}, err
	}
	return Destination{Name: name, Port: port}, nil
}

func (d Destination) String() string {
	return net.JoinHostPort(d.host(), strconv.Itoa(int(d.Port)))
}

func (d Destination) host() string {
	if d.Name != "" {
		return d.Name
	}
	return d.Addr.String()
}

// checkName returns the name in lower case if it can be looked up without a
// surprise: labels of 1 to 63 letters, digits, '-' and '_', at most 253
// characters, and not an IP literal in disguise. One final dot, which says that
// a name is complete, is accepted and taken away.
func checkName(s string) (string, error) {
	s = strings.TrimSuffix(s, ".")
	switch {
	case s == "":
		return "", errors.New("the host is empty")
	case len(s) > 253:
		return "", errors.New("the host name is longer than 253 characters")
	}
	last := ""
	for label := range strings.SplitSeq(s, ".") {
		if label == "" {
			return "", errors.New("the host name has an empty label; write no leading or doubled dot")
		}
		if len(label) > 63 {
			return "", errors.New("the host name has a label longer than 63 characters")
		}
		for _, c := range []byte(label) {
			if !isLabelByte(c) {
				return "", fmt.Errorf("%q cannot stand in a host name", c)
			}
		}
		last = label
	}
	if isNumber(last) {
		return "", errors.New("an IP address in disguise; write it as four decimal numbers, or in brackets")
	}
	return strings.ToLower(s), nil
}

func isLabelByte(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '_'
}

// isNumber says whether inet_aton and its kin would read the last label of a
// name as a number, and so the whole name as an IPv4 address.
func isNumber(label string) bool {
	digits, set := label, "0123456789"
	if len(label) >= 2 && label[0] == '0' && (label[1] == 'x' || label[1] == 'X') {
		digits, set = label[2:], "0123456789abcdefABCDEF"
	}
	return strings.Trim(digits, set) == ""
}

// An Endpoint is something to listen on or to dial on this host: HOST:PORT,
// unix:PATH, or, to listen only, systemd:NAME.
type Endpoint struct {
	Network string // "tcp", "unix" or "systemd"
	Address string // HOST:PORT, the path, or the name
}

// ParseEndpoint reads the address of a target: HOST:PORT or unix:PATH.
func ParseEndpoint(s string) (Endpoint, error) {
	if path, ok := strings.CutPrefix(s, "unix:"); ok {
		return unixEndpoint(s, path)
	}
	d, err := parseDestination(s)
	if err != nil {
		return Endpoint{}, fmt.Errorf("address %q: %w; write HOST:PORT or unix:PATH", s, err)
	}
	return Endpoint{Network: "tcp", Address: d.String()}, nil
}

// ParseListen reads the address of a listener: HOST:PORT, where the host may
// be left out for all addresses and the port may be 0, unix:PATH, or
// systemd:NAME for a socket passed by systemd under that name.
func ParseListen(s string) (Endpoint, error) {
	if path, ok := strings.CutPrefix(s, "unix:"); ok {
		return unixEndpoint(s, path)
	}
	if name, ok := strings.CutPrefix(s, "systemd:"); ok {
		if name == "" || strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r >= 0x7f || r == ':' }) {
			return Endpoint{}, fmt.Errorf("listen address %q: write systemd:NAME with the socket unit's FileDescriptorName", s)
		}
		return Endpoint{Network: "systemd", Address: name}, nil
	}
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return Endpoint{}, fmt.Errorf("listen address %q: write HOST:PORT (IPv6 in brackets), unix:PATH or systemd:NAME", s)
	}
	p, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return Endpoint{}, fmt.Errorf("listen address %q: %q is no port; write a number from 0 to 65535", s, port)
	}
	if _, err := netip.ParseAddr(host); host != "" && err != nil {
		if host, err = checkName(host); err != nil {
			return Endpoint{}, fmt.Errorf("listen address %q: %w", s, err)
		}
	}
	return Endpoint{Network: "tcp", Address: net.JoinHostPort(host, strconv.FormatUint(p, 10))}, nil
}

// maxUnixPath is what fits into sun_path of a Linux sockaddr_un, less the
// final zero byte.
const maxUnixPath = 107

func unixEndpoint(s, path string) (Endpoint, error) {
	switch {
	case path == "" || path == "@":
		return Endpoint{}, fmt.Errorf("address %q: the path is missing; write unix:PATH", s)
	case strings.ContainsRune(path, 0):
		return Endpoint{}, fmt.Errorf("address %q: a path holds no zero byte", s)
	case len(path) > maxUnixPath:
		return Endpoint{}, fmt.Errorf("address %q: the path of a unix socket has at most %d bytes", s, maxUnixPath)
	}
	return Endpoint{Network: "unix", Address: path}, nil
}

// RelativeTo resolves a relative unix path against dir, the folder of the
// config file. Other endpoints and abstract sockets (unix:@NAME) stay as they are.
func (e Endpoint) RelativeTo(dir string) Endpoint {
	if e.Network == "unix" && !filepath.IsAbs(e.Address) && !strings.HasPrefix(e.Address, "@") {
		e.Address = filepath.Join(dir, e.Address)
	}
	return e
}

func (e Endpoint) String() string {
	if e.Network == "tcp" {
		return e.Address
	}
	return e.Network + ":" + e.Address
}
