package mux

import "syscall"

// reuseAddr lets one source address have more connections than ports that rest.
func reuseAddr(_, _ string, raw syscall.RawConn) error {
	var err error
	raw.Control(func(fd uintptr) { err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1) })
	return err
}
