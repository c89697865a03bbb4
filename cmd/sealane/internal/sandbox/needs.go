package sandbox

import (
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/sealane/sealane/cmd/sealane/internal/config"
	"github.com/sealane/sealane/proxy"
)

// Needs is what a process does with a config after its start-up.
type Needs struct {
	// Read holds the files of the config, which a reload reads again.
	Read []string
	// Sockets holds the folders in which unix sockets are made and removed.
	Sockets []string
	// Bind and Connect hold TCP ports.
	Bind, Connect []Ports
	// Abstract names a target that is a unix socket without a path, if there is one.
	Abstract string
	// Room is what later configs may need. It is granted with the rest; that
	// it was not is nothing that this config lacks.
	Room Room
}

// Room is what sandbox of a config grants in advance.
type Room struct {
	Ports []Ports  // to listen on and to connect to
	Paths []string // to read; in folders sockets may be made, too
}

// Ports is a range of ports and what it is for.
type Ports struct {
	First, Last uint16
	For         string
}

// all says whether the range leaves no port out that can be dialed.
func (p Ports) all() bool { return p.First <= 1 && p.Last == 65535 }

// For lists what a process needs that runs this config.
func For(c *config.Config) Needs {
	n := Needs{Read: c.Files, Room: Room{Paths: c.Sandbox.Paths}}
	for _, r := range c.Sandbox.Ports {
		n.Room.Ports = append(n.Room.Ports, Ports{r.First, r.Last, "sandbox.ports"})
	}
	n.listen(c.Listen, "listen")
	n.listen(c.Admin, "admin")
	for _, l := range c.Listeners {
		n.listen(l.Address, string(l.Kind)+" listener")
	}
	// An answer that is too long for UDP comes over TCP.
	n.Connect = append(n.Connect, Ports{53, 53, "DNS"})
	for _, p := range c.Peers {
		for _, address := range p.Addresses {
			n.dial(proxy.Endpoint{Network: "tcp", Address: address}, "peer "+p.Name)
		}
	}
	for _, s := range c.Services {
		n.dial(s.Address, "service "+s.Name)
	}
	for _, r := range c.Egress {
		for _, m := range r.Match {
			n.match(m, "egress")
		}
	}
	for _, r := range c.Routes {
		if r.To.Direct {
			n.match(r.Match, "direct route")
		}
	}
	return n
}

// listen adds an address that is listened on. A socket that systemd passed is
// open already.
func (n *Needs) listen(e proxy.Endpoint, what string) {
	switch {
	case e.Network == "tcp":
		if port, ok := portOf(e); ok {
			n.Bind = append(n.Bind, Ports{port, port, what})
		}
	case e.Network == "unix" && !strings.HasPrefix(e.Address, "@"):
		n.Sockets = append(n.Sockets, filepath.Dir(e.Address))
	}
}

// dial adds an address that is connected to.
func (n *Needs) dial(e proxy.Endpoint, what string) {
	switch {
	case e.Network == "tcp":
		if port, ok := portOf(e); ok {
			n.Connect = append(n.Connect, Ports{port, port, what})
		}
	case strings.HasPrefix(e.Address, "@"):
		n.Abstract = what
	}
}

func (n *Needs) match(m proxy.Match, what string) {
	first, last := m.Ports()
	n.Connect = append(n.Connect, Ports{first, last, fmt.Sprintf("%s %q", what, m)})
}

func portOf(e proxy.Endpoint) (uint16, bool) {
	_, s, err := net.SplitHostPort(e.Address)
	if err != nil {
		return 0, false
	}
	port, err := strconv.ParseUint(s, 10, 16)
	return uint16(port), err == nil
}
