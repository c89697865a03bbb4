package proxy

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
)

// ActivatedSockets returns the sockets that systemd passed to the process pid
// (sd_listen_fds(3)), by the FileDescriptorName of their units. Call it once:
// it takes the descriptors over.
func ActivatedSockets(getenv func(string) string, pid int) (map[string][]*os.File, error) {
	if getenv("LISTEN_PID") != strconv.Itoa(pid) {
		return nil, nil // meant for another process, or for none
	}
	n, err := strconv.Atoi(getenv("LISTEN_FDS"))
	if err != nil || n < 0 || n > 1<<16 {
		return nil, fmt.Errorf("LISTEN_FDS %q is no number of sockets", getenv("LISTEN_FDS"))
	}
	names := strings.Split(getenv("LISTEN_FDNAMES"), ":")
	sockets := make(map[string][]*os.File)
	for i := range n {
		name := "unknown" // what systemd says where a unit has no name
		if i < len(names) && names[i] != "" {
			name = names[i]
		}
		fd := activatedStart + i
		closeOnExec(fd)
		sockets[name] = append(sockets[name], os.NewFile(uintptr(fd), "systemd:"+name))
	}
	return sockets, nil
}

// activatedStart is SD_LISTEN_FDS_START.
const activatedStart = 3

// activated listens on the sockets of that name. The descriptors in Activated
// stay open, so that a reload can take a listener away and bring it back.
func (c *Config) activated(name string) ([]net.Listener, error) {
	var socks []net.Listener
	for _, f := range c.Activated[name] {
		s, err := net.FileListener(f)
		if err != nil {
			for _, s := range socks {
				s.Close()
			}
			return nil, fmt.Errorf("the socket that systemd passed as %q: %w", name, err)
		}
		if tcp, ok := s.(*net.TCPListener); ok {
			prepareListening(tcp)
		}
		socks = append(socks, s)
	}
	if len(socks) == 0 {
		return nil, fmt.Errorf("systemd passed no socket named %q; set FileDescriptorName=%s in the .socket unit and start the service through it", name, name)
	}
	return socks, nil
}
