package config

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
)

// maxRoom is how many ports sandbox.ports may hold. Each is two rules for the
// kernel, and an allowance that the config does not need at present.
const maxRoom = 4096

func (l *loader) sandbox(n *node) {
	l.fields(n, "sandbox",
		field{"ports", l.sandboxPorts, ""},
		field{"paths", func(n *node) { l.list(n, "sandbox.paths", l.sandboxPath) }, ""},
	)
}

func (l *loader) sandboxPorts(n *node) {
	total, over := 0, false
	l.list(n, "sandbox.ports", func(n *node) {
		r, ok := parsed(&l.decoder, n, "sandbox.ports", parsePortRange)
		if !ok {
			return
		}
		overlaps := func(o PortRange) bool { return r.First <= o.Last && o.First <= r.Last }
		if i := slices.IndexFunc(l.Sandbox.Ports, overlaps); i >= 0 {
			l.fail(n.at, "sandbox.ports: %q has ports in it that %q has, too; remove or shorten one of them", n.text, l.Sandbox.Ports[i])
			return
		}
		l.Sandbox.Ports = append(l.Sandbox.Ports, r)
		if total += int(r.Last) - int(r.First) + 1; total > maxRoom && !over {
			over = true
			l.fail(n.at, "sandbox.ports: with %q these are more than %d ports; grant fewer, the ports of the config itself need no room", n.text, maxRoom)
		}
	})
}

// String writes the range as the config has it.
func (r PortRange) String() string {
	if r.First == r.Last {
		return strconv.Itoa(int(r.First))
	}
	return fmt.Sprintf("%d-%d", r.First, r.Last)
}

// parsePortRange reads a port or FIRST-LAST, in plain decimal.
func parsePortRange(s string) (PortRange, error) {
	first, last, isRange := strings.Cut(s, "-")
	r := PortRange{}
	var ok, okLast bool
	r.First, ok = plainPort(first)
	r.Last, okLast = r.First, ok
	if isRange {
		r.Last, okLast = plainPort(last)
	}
	switch {
	case !ok || !okLast || isRange && r.First == 0:
		return r, fmt.Errorf("sandbox.ports: %q is no port and no range; write a port from 1 to 65535, a range such as 6000-6999, or 0 for ports that the kernel picks", s)
	case r.First > r.Last:
		return r, fmt.Errorf("sandbox.ports: %q runs backwards; write %d-%d", s, r.Last, r.First)
	}
	return r, nil
}

func plainPort(s string) (uint16, bool) {
	v, err := strconv.ParseUint(s, 10, 16)
	return uint16(v), err == nil && strconv.FormatUint(v, 10) == s
}

// sandboxPath decodes a path. The kernel grants what is there at the start, not
// a name, which a config may be ahead of.
func (l *loader) sandboxPath(n *node) {
	s, ok := l.text(n, "sandbox.paths")
	if !ok {
		return
	}
	path := l.path(s)
	if slices.Contains(l.Sandbox.Paths, path) {
		l.fail(n.at, "sandbox.paths: %s is listed twice; remove one of them", path)
		return
	}
	if _, err := os.Stat(path); err != nil {
		l.Warnings = append(l.Warnings, l.errorAt(n.at, fmt.Sprintf("warning: sandbox.paths: %v; only what is there when sealane starts is granted", fileError(path, err))))
	}
	l.Sandbox.Paths = append(l.Sandbox.Paths, path)
}
