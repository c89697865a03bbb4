package main

import (
	"errors"
	"syscall"
)

// ownGroup puts a child into a process group of its own, by which it's measured and ended, and has the
// kernel kill it should the benchmark die.
func ownGroup() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}

// awaitEnd returns once the child has ended, and leaves it to be reaped: until then, no other process group
// can get its number.
func awaitEnd(pid int) error {
	const (
		idIsPID = 1 // P_PID
		noReap  = syscall.WEXITED | syscall.WNOWAIT
	)
	for {
		_, _, errno := syscall.Syscall6(syscall.SYS_WAITID, idIsPID, uintptr(pid), 0, noReap, 0, 0)
		if errno == 0 {
			return nil
		}
		if !errors.Is(errno, syscall.EINTR) {
			return errno
		}
	}
}

// portByConnect has bind choose the address only, and connect the port. A port that bind has chosen is lost to
// every other connection that the machine makes, from whichever address: the proxies would find none left.
func portByConnect(_, _ string, c syscall.RawConn) error {
	const bindAddressNoPort = 24 // IP_BIND_ADDRESS_NO_PORT
	var failed error
	err := c.Control(func(fd uintptr) {
		failed = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_IP, bindAddressNoPort, 1)
	})
	return errors.Join(err, failed)
}
