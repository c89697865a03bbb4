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

// findSidecar gives the process that is "sealane run" and sees the files that
// this one sees, of which there must be one. Containers of a pod may share
// process ids, and a host sees those of all: what no two of them share is the
// list of mounts, in which each mount has a number of its own.
func findSidecar(proc string) (int, error) {
	mounts, err := os.ReadFile(filepath.Join(proc, "self", "mountinfo"))
	if err != nil {
		return 0, err
	}
	found, elsewhere := 0, 0
	for _, pid := range sidecars(proc) {
		theirs, err := os.ReadFile(filepath.Join(proc, strconv.Itoa(pid), "mountinfo"))
		switch {
		case err != nil || !bytes.Equal(theirs, mounts):
			elsewhere = pid
		case found != 0:
			return 0, errors.New("several sidecars run here; send the one that is meant the signal USR1")
		default:
			found = pid
		}
	}
	switch {
	case found != 0:
		return found, nil
	case elsewhere != 0:
		return 0, fmt.Errorf("no sidecar runs in this container; if process %d of another one is meant, send it the signal USR1", elsewhere)
	}
	return 0, errors.New("no sidecar runs here")
}

// sidecars lists the processes that are "sealane run".
func sidecars(proc string) []int {
	files, err := filepath.Glob(filepath.Join(proc, "[0-9]*", "cmdline"))
	if err != nil {
		return nil // the pattern is good
	}
	var pids []int
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			continue // it has ended, or is none of this user's business
		}
		args := bytes.Split(text, []byte{0})
		if len(args) < 2 || filepath.Base(string(args[0])) != "sealane" || string(args[1]) != "run" {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(name))); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}
