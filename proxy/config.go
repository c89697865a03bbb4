package proxy

import (
	"context"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/rs/zerolog"
)

// Config is everything a Proxy does. Update replaces it as a whole.
type Config struct {
	Listeners []Listener
	Routes    []Route // for socks5, connect and transparent; the first match wins
	Services  []Service
	Egress    []EgressRule

	// Within, if not nil, is a second policy that must allow everything, too:
	// the one of a config that cannot take effect as a whole, but may have taken
	// something away. What it leads elsewhere is refused.
	Within *Policy

	// Peers holds the names of all known peers. A stream with a peer that an
	// Update takes away is reset.
	Peers []string

	// Own holds the TCP ports of this process beside those of Listeners: the
	// link and admin listeners. Egress, services and direct routes never reach
	// them, nor the ports of Listeners, on any local address. OwnSockets holds the
	// paths of unix sockets, which no service reaches, nor those of Listeners.
	Own        []uint16
	OwnSockets []string

	Timeouts Timeouts

	// Mark is set as SO_MARK on every connection that this process dials, so
	// that redirect rules can exempt it. 0 sets none.
	Mark uint32

	// Resolve looks up a host's addresses of network "ip", "ip4" or "ip6". If
	// nil, the system's resolver does. A host that ends with a dot is absolute.
	Resolve func(ctx context.Context, network, host string) ([]netip.Addr, error)

	// Activated holds the sockets that systemd passed to this process, by name,
	// as ActivatedSockets finds them.
	Activated map[string][]*os.File

	// Replaced holds sockets of this process, not of Listeners, that the caller
	// closes after this Update: Listeners may take their ports. It is not kept.
	Replaced []net.Listener

	// Dial connects to a checked address. If nil, a net.Dialer does.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)

	// Listen binds a listener's TCP address. If nil, a net.ListenConfig does.
	// Its connections are then none of the kernel's, and idle ones do not doze.
	Listen func(ctx context.Context, network, address string) (net.Listener, error)

	Log   zerolog.Logger
	Hooks Hooks
}

// A Policy is what apps and peers may reach.
type Policy struct {
	Routes   []Route
	Services []Service
	Egress   []EgressRule
}

// Kind is the protocol that a listener speaks with its apps.
type Kind string

const (
	KindForward     Kind = "forward"     // none: every connection goes to Listener.To
	KindSOCKS5      Kind = "socks5"      // RFC 1928, CONNECT only
	KindConnect     Kind = "connect"     // HTTP CONNECT
	KindTransparent Kind = "transparent" // none: the kernel knows the original destination
)

// A Listener accepts connections from apps.
type Listener struct {
	Kind    Kind
	Address Endpoint // as ParseListen gives it

	// To is where a forward listener's connections go: a peer's service.
	To Target

	// Users may use a socks5 or connect listener. It needs some unless it is
	// bound to loopback or a unix socket.
	Users []User

	// ProxyProtocol makes a forward listener demand a PROXY protocol v2 header
	// on each connection, from a load balancer in front of it.
	ProxyProtocol bool

	// Mode and Owner apply to a unix socket. Mode 0 means 0600; Owner is
	// "user", "user:group" or ":group", by name or number; "" leaves it.
	Mode  fs.FileMode
	Owner string
}

// A User is a name and password for a socks5 or connect listener.
type User struct {
	Name, Password string
}

// A Target is where a route leads.
type Target struct {
	Peer    string // "" if Direct
	Service string // "" lets the destination travel to the peer
	Direct  bool   // dial from here, in plaintext
}

// A Route leads destinations to a target.
type Route struct {
	Match Match
	To    Target
}

// A Service is a target that peers reach by name.
type Service struct {
	Name    string
	Address Endpoint // as ParseEndpoint gives it
	Allow   []string // peers

	// ProxyProtocol sends a PROXY protocol v2 header with the app's address
	// and the peer's name ahead of the stream.
	ProxyProtocol bool
}

// An EgressRule lets peers reach destinations by address.
type EgressRule struct {
	Allow []string // peers
	Match []Match
}

// Timeouts bound a stream's life. 0 means no limit, except for Dial.
type Timeouts struct {
	// Dial bounds the time until a stream is open: waiting for a link,
	// looking up the name, connecting. 0 means 10 seconds.
	Dial time.Duration
	// Idle resets a stream on which neither direction moved a byte for so long.
	Idle time.Duration
	// HalfClose does the same, in place of Idle, once one direction has ended.
	HalfClose time.Duration
}
