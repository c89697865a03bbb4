package main

import (
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// maxDescriptors is what a process with the privilege gives itself.
const maxDescriptors = 1 << 20

// raiseDescriptors raises the descriptor limit as far as the system lets this
// process, and returns it.
func raiseDescriptors() uint64 {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return 0
	}
	for _, hard := range []uint64{max(limit.Max, maxDescriptors), limit.Max} {
		if unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: hard, Max: hard}) == nil {
			return hard
		}
	}
	return limit.Cur
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
