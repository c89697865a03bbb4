package sandbox

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/landlock-lsm/go-landlock/landlock"
	ll "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"
)

const (
	readRights = ll.AccessFSReadFile
	procRights = ll.AccessFSReadFile | ll.AccessFSReadDir
	// A socket's folder is listed by nobody, but opened to be locked.
	socketRights = ll.AccessFSMakeSock | ll.AccessFSRemoveFile | ll.AccessFSReadDir
)

// signalsFixed is the erratum without which a kernel of ABI 6 keeps a process
// from signalling its own threads, which Go's scheduler does.
const signalsFixed = 1 << 1

// Harden keeps other processes of the same user, and core dumps, from the
// memory with the keys, and keeps this process from ever gaining privileges.
func Harden() error {
	return errors.Join(
		os.NewSyscallError("prctl(PR_SET_DUMPABLE)", unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)),
		os.NewSyscallError("setrlimit(RLIMIT_CORE)", unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{})),
		os.NewSyscallError("prctl(PR_SET_NO_NEW_PRIVS)", ll.AllThreadsPrctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)),
	)
}

// Enter restricts the process, for good, to what it needs. An error means
// that the kernel could have, and that nothing or only a part was done. A
// kernel without Landlock is no error: the Sandbox says so.
func Enter(n Needs) (*Sandbox, error) {
	abi, err := ll.LandlockGetABIVersion()
	switch {
	case errors.Is(err, unix.ENOSYS):
		return &Sandbox{why: "this kernel has no Landlock (Linux 5.13 is the first), or a seccomp filter hides it"}, nil
	case errors.Is(err, unix.EOPNOTSUPP):
		return &Sandbox{why: "Landlock is built into this kernel but switched off; add landlock to the kernel's lsm= parameter"}, nil
	case err != nil:
		return &Sandbox{why: "asking the kernel for Landlock: " + err.Error()}, nil
	}
	if errata, err := ll.LandlockGetErrata(); err != nil || errata&signalsFixed == 0 {
		abi = min(abi, 5)
	}
	// The zone file is read once, at the first use of local time.
	_, _ = time.Now().Zone()

	s := &Sandbox{abi: abi}
	s.read.system()
	s.read.readable(n.Read)
	for _, dir := range n.Sockets {
		s.sockets.add(dir)
	}
	for _, path := range n.Room.Paths {
		s.read.add(path)
		if info, err := os.Stat(path); err == nil && info.IsDir() {
			s.sockets.add(path)
		}
	}
	s.pinProc()
	if abi >= 4 {
		s.restrictPorts(n)
	}
	if err := s.restrict(n, min(abi, 7)); err != nil {
		s.unpin()
		return nil, fmt.Errorf("enter the sandbox: %w", err)
	}
	s.files = true
	return s, nil
}

// pinProc grants what the metrics of the process itself are read from.
func (s *Sandbox) pinProc() {
	for _, path := range []string{"/proc/self", "/proc/stat"} {
		f, err := os.Open(path)
		if err != nil {
			continue // no /proc, no such metrics
		}
		s.pinned = append(s.pinned, f)
		s.proc.add(path)
	}
}

func (s *Sandbox) unpin() {
	for _, f := range s.pinned {
		f.Close()
	}
}

func (s *Sandbox) restrictPorts(n Needs) {
	s.bind = setOf(slices.Concat(n.Bind, n.Room.Ports))
	for _, r := range n.Connect {
		if r.all() {
			s.anyPort = r.For
			return
		}
	}
	s.connect = setOf(slices.Concat(n.Connect, n.Room.Ports))
}

// restrict hands the rules to the kernel. Newer rights than those of ABI 7
// are left alone: a rule is only used once it was tried.
func (s *Sandbox) restrict(n Needs, abi int) error {
	c := landlock.V7
	if s.bind == nil {
		c.HandledAccessNet = 0
	} else if s.connect == nil {
		c.HandledAccessNet = ll.AccessNetBindTCP
	}
	if n.Abstract != "" {
		c.Scoped = ll.ScopeSignal
	}
	var rules []landlock.Rule
	for _, g := range s.read {
		rules = append(rules, landlock.PathAccess(readRights, g.path))
	}
	for _, g := range s.proc {
		rights := landlock.AccessFSSet(procRights)
		if !g.info.IsDir() {
			rights = readRights
		}
		rules = append(rules, landlock.PathAccess(rights, g.path))
	}
	for _, g := range s.sockets {
		rules = append(rules, landlock.PathAccess(socketRights, g.path))
	}
	if s.bind != nil {
		s.bind.each(func(port uint16) { rules = append(rules, landlock.BindTCP(port)) })
	}
	if s.connect != nil {
		s.connect.each(func(port uint16) { rules = append(rules, landlock.ConnectTCP(port)) })
	}
	s.signals = abi >= 6
	s.scoped = abi >= 6 && n.Abstract == ""
	return c.BestEffort().Restrict(rules...)
}
