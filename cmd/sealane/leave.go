package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
)

// leaveSignal tells a sidecar that it is about to be ended.
const leaveSignal = syscall.SIGUSR1

// runLeave signals the sidecar of its own container. A container image without
// a shell has no other way to do so before the container is told to end.
func runLeave(p *process, _ input) int {
	pid, err := findSidecar("/proc")
	if err == nil {
		err = syscall.Kill(pid, leaveSignal)
	}
	if err != nil {
		return p.fail(fmt.Errorf("tell the sidecar to leave: %w", err))
	}
	return exitOK
}

// findSidecar gives the process that is "sealane run", of which there must be
// one.
func findSidecar(proc string) (int, error) {
	files, err := filepath.Glob(filepath.Join(proc, "[0-9]*", "cmdline"))
	if err != nil {
		return 0, err
	}
	found := 0
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			continue // it has ended, or is none of this user's business
		}
		args := bytes.Split(text, []byte{0})
		if len(args) < 2 || filepath.Base(string(args[0])) != "sealane" || string(args[1]) != "run" {
			continue
		}
		if found != 0 {
			return 0, errors.New("several sidecars run here; send the one that is meant the signal USR1")
		}
		if found, err = strconv.Atoi(filepath.Base(filepath.Dir(name))); err != nil {
			return 0, err
		}
	}
	if found == 0 {
		return 0, errors.New("no sidecar runs here")
	}
	return found, nil
}
