package sandbox

import (
	"fmt"
	"os"
	"slices"
	"strings"
)

// A Sandbox is what Enter left to the process. A nil Sandbox restricts
// nothing.
type Sandbox struct {
	abi     int
	why     string // why Landlock does nothing, "" if it does something
	files   bool   // Landlock restricts files
	read    grants
	proc    grants // what the metrics of the process itself are read from
	sockets grants
	bind    *portSet // nil: not restricted
	connect *portSet // nil: not restricted
	anyPort string   // why connect is not restricted although the kernel could
	scoped  bool     // abstract unix sockets of other processes are out of reach
	signals bool     // and so are other processes' signals

	// pinned keeps what was granted in /proc in the kernel's caches: looked
	// up anew, it would be another inode.
	pinned []*os.File
}

// Complete says whether all that Landlock can restrict is restricted, as far
// as the config allows.
func (s *Sandbox) Complete() bool { return s != nil && s.why == "" && s.bind != nil }

// Covers says whether another config gets by with what was granted. The error
// names what it lacks.
func (s *Sandbox) Covers(n Needs) error {
	if s == nil {
		return nil
	}
	m := s.missing(n)
	lacks := slices.Concat(m.files, m.ports, m.other)
	if len(lacks) == 0 {
		return nil
	}
	room := ""
	if keys := m.keys(); len(keys) > 0 {
		room = "; for a reload to have room for it, add it to " + strings.Join(keys, " and ") + " and restart once"
	}
	return fmt.Errorf("the sandbox was set when sealane started and cannot be widened; restart sealane to let it %s%s", strings.Join(lacks, ", "), room)
}

// Awaits names the keys of a config that grant room which takes a restart.
func (s *Sandbox) Awaits(r Room) []string {
	if s == nil {
		return nil
	}
	n := Needs{Read: r.Paths, Bind: r.Ports, Connect: r.Ports}
	for _, path := range r.Paths {
		if info, err := os.Stat(path); err == nil && info.IsDir() {
			n.Sockets = append(n.Sockets, path)
		}
	}
	return s.missing(n).keys()
}

// String describes what was applied, and why something was not, for the log.
func (s *Sandbox) String() string {
	switch {
	case s == nil:
		return "off"
	case s.why != "":
		return "files and ports are not restricted: " + s.why
	}
	parts := []string{fmt.Sprintf("Landlock ABI %d", s.abi), "reads " + s.read.String()}
	if len(s.sockets) > 0 {
		parts = append(parts, "makes unix sockets in "+s.sockets.String())
	}
	switch {
	case s.bind == nil:
		parts = append(parts, "TCP ports are not restricted: Landlock can from ABI 4 on (Linux 6.7)")
	case s.connect == nil:
		parts = append(parts, "listens on TCP ports "+s.bind.String(), "connects to any TCP port: "+s.anyPort+" needs it")
	default:
		parts = append(parts, "listens on TCP ports "+s.bind.String(), "connects to TCP ports "+s.connect.String())
	}
	if s.signals {
		parts = append(parts, "signals no other process")
	}
	return strings.Join(parts, "; ")
}
