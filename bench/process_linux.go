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
