package redirect

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// States of linux/tcp_states.h, as the kernel's tables have them.
const (
	stateFinWait1  = 0x04
	stateTimeWait  = 0x06
	stateClose     = 0x07
	stateCloseWait = 0x08
	stateLastAck   = 0x09
	stateListen    = 0x0a
	stateClosing   = 0x0b
)

// A socket is one end of a TCP connection, or waits for one.
type socket struct {
	local, remote netip.AddrPort
	state         byte
	uid           uint32
}

// isConnection reports whether a program may still send or receive by the socket.
func (s socket) isConnection() bool {
	return s.state != stateListen && s.state != stateTimeWait && s.state != stateClose
}

// tcpSockets lists the TCP sockets of this network namespace.
func tcpSockets() ([]socket, error) {
	var sockets []socket
	for _, name := range []string{"/proc/self/net/tcp", "/proc/self/net/tcp6"} {
		text, err := os.ReadFile(name)
		if errors.Is(err, fs.ErrNotExist) { // the kernel was started without IPv6
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("listing the TCP sockets: %w", err)
		}
		rows, err := parseSockets(text)
		if err != nil {
			return nil, fmt.Errorf("listing the TCP sockets in %s: %w", name, err)
		}
		sockets = append(sockets, rows...)
	}
	return sockets, nil
}

// parseSockets reads rows such as
//
//	0: 0100007F:3A9E 00000000:0000 0A 00000000:00000000 00:00000000 00000000  7423  0 12345 ...
func parseSockets(text []byte) ([]socket, error) {
	var sockets []socket
	sc := bufio.NewScanner(bytes.NewReader(text))
	sc.Scan() // the heading
	for sc.Scan() {
		cols := strings.Fields(sc.Text())
		if len(cols) < 8 {
			return nil, fmt.Errorf("a row of %d columns", len(cols))
		}
		local, err1 := parseProcAddr(cols[1])
		remote, err2 := parseProcAddr(cols[2])
		state, err3 := strconv.ParseUint(cols[3], 16, 8)
		uid, err4 := strconv.ParseUint(cols[7], 10, 32)
		if err := errors.Join(err1, err2, err3, err4); err != nil {
			return nil, err
		}
		sockets = append(sockets, socket{local, remote, byte(state), uint32(uid)})
	}
	return sockets, sc.Err()
}

// parseProcAddr reads an address as the kernel prints it: 32-bit words in the machine's own byte order, then the port.
func parseProcAddr(s string) (netip.AddrPort, error) {
	addr, port, _ := strings.Cut(s, ":")
	raw, err := hex.DecodeString(addr)
	if err != nil {
		return netip.AddrPort{}, err
	}
	for word := range slices.Chunk(raw[:len(raw)/4*4], 4) {
		binary.BigEndian.PutUint32(word, binary.NativeEndian.Uint32(word))
	}
	a, ok := netip.AddrFromSlice(raw)
	p, err := strconv.ParseUint(port, 16, 16)
	if !ok || err != nil {
		return netip.AddrPort{}, fmt.Errorf("%q is no address", s)
	}
	return netip.AddrPortFrom(a.Unmap(), uint16(p)), nil
}

// warnings names what the exemption lets out in plaintext.
func warnings(o Options) []string {
	var w []string
	if slices.Contains(o.ExceptUIDs, 0) {
		w = append(w, "user 0 is exempt: nothing that root runs is caught")
	}
	if fastOpen() {
		w = append(w, "net.ipv4.tcp_fastopen lets servers take data with the packet that opens a connection, ahead of every answer: while the "+
			"sidecar is down, a user who listens on its port gets the first bytes of programs that use TCP Fast Open; set it to 1")
	}
	for _, p := range exemptProcesses(o.ExceptUIDs) {
		w = append(w, fmt.Sprintf("process %d (%s) runs as the exempt user %d: its connections are not caught and leave in plaintext",
			p.pid, p.name, p.uid))
	}
	return w
}

// fastOpen reports whether servers of this network namespace may use TCP Fast Open, for either family. The rules stop
// the answer to an opening and not the opening, because whose the listening socket is shows in the answer alone.
func fastOpen() bool {
	text, err := os.ReadFile("/proc/sys/net/ipv4/tcp_fastopen")
	if err != nil {
		return false
	}
	const server = 0x2
	n, err := strconv.ParseUint(strings.TrimSpace(string(text)), 0, 32)
	return err == nil && n&server != 0
}

type process struct {
	pid  int
	name string
	uid  uint32
}

// exemptProcesses lists the processes of this network namespace, other than sealane's own, whose user is one of uids.
// A process that it may not look into, or that ends meanwhile, is left out: the list serves warnings only. Root's are
// left out too, they have a warning of their own.
func exemptProcesses(uids []uint32) []process {
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		return nil
	}
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	var found []process
	for _, dir := range dirs {
		pid, _ := strconv.Atoi(filepath.Base(dir))
		status, err := os.ReadFile(dir + "/status")
		if err != nil {
			continue
		}
		p := process{pid: pid, name: statusField(status, "Name", 0)}
		uid, err := strconv.ParseUint(statusField(status, "Uid", 1), 10, 32)
		p.uid = uint32(uid)
		if err != nil || uid == 0 || p.name == "sealane" || !slices.Contains(uids, p.uid) {
			continue
		}
		if ns, err := os.Readlink(dir + "/ns/net"); err == nil && ns == own {
			found = append(found, p)
		}
	}
	return found
}

// statusField returns the n-th value of a line of /proc/PID/status. The effective user is the second value of Uid.
func statusField(status []byte, name string, n int) string {
	for line := range strings.Lines(string(status)) {
		key, rest, _ := strings.Cut(line, ":")
		if values := strings.Fields(rest); key == name && n < len(values) {
			return values[n]
		}
	}
	return ""
}
