package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// tick is the unit of CPU time in /proc: USER_HZ is 100 wherever Linux runs Go.
const tick = 10 * time.Millisecond

// usage is what a set of processes has used up to now.
type usage struct {
	cpu  time.Duration // user and system
	rss  int64         // resident bytes
	peak int64         // sum of each process's highest
}

// usageOf adds up the process groups led by these processes.
func usageOf(procs []*process) (usage, error) {
	groups := make(map[int]bool)
	for _, p := range procs {
		groups[p.cmd.Process.Pid] = true
	}
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return usage{}, err
	}
	var sum usage
	for _, dir := range dirs {
		stat, err := readStat(dir)
		if gone(err) || err == nil && !groups[stat.group] {
			continue
		}
		if err != nil {
			return usage{}, err
		}
		rss, peak, err := readMemory(dir)
		if err != nil && !gone(err) {
			return usage{}, err
		}
		sum.cpu += stat.cpu
		sum.rss += rss
		sum.peak += peak
	}
	return sum, nil
}

// gone tells that a process has ended since its entry in /proc was listed.
func gone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH)
}

type procStat struct {
	group int
	cpu   time.Duration
}

// readStat reads a process's group and CPU time, see proc_pid_stat(5).
func readStat(dir string) (procStat, error) {
	b, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return procStat{}, err
	}
	s := string(b)
	// The name, in parentheses, may hold anything.
	f := strings.Fields(s[strings.LastIndexByte(s, ')')+1:])
	if len(f) < 13 {
		return procStat{}, fmt.Errorf("%s/stat: too few fields", dir)
	}
	group, err1 := strconv.Atoi(f[2])
	user, err2 := strconv.ParseInt(f[11], 10, 64)
	system, err3 := strconv.ParseInt(f[12], 10, 64)
	if err := errors.Join(err1, err2, err3); err != nil {
		return procStat{}, fmt.Errorf("%s/stat: %w", dir, err)
	}
	return procStat{group, time.Duration(user+system) * tick}, nil
}

// readMemory reads a process's resident memory and its peak, in bytes. A process that is ending has none.
func readMemory(dir string) (rss, peak int64, err error) {
	b, err := os.ReadFile(filepath.Join(dir, "status"))
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 2 || f[0] != "VmRSS:" && f[0] != "VmHWM:" {
			continue
		}
		kib, err := strconv.ParseInt(f[1], 10, 64)
		if err != nil {
			return 0, 0, fmt.Errorf("%s/status: %w", dir, err)
		}
		if f[0] == "VmRSS:" {
			rss = kib << 10
		} else {
			peak = kib << 10
		}
	}
	return rss, peak, nil
}

// machineCPU is the CPU time that all processes of the machine have used. Interrupts are left out: the kernel
// does much of the loopback's work there and charges it to nobody.
func machineCPU() (time.Duration, error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	line, _, _ := strings.Cut(string(b), "\n")
	f := strings.Fields(line) // cpu user nice system ...
	if len(f) < 4 || f[0] != "cpu" {
		return 0, errors.New("/proc/stat: no line of all CPUs")
	}
	var sum time.Duration
	for _, s := range f[1:4] {
		ticks, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("/proc/stat: %w", err)
		}
		sum += time.Duration(ticks) * tick
	}
	return sum, nil
}

// ownCPU is what this process has used.
func ownCPU() (time.Duration, error) {
	s, err := readStat("/proc/self")
	return s.cpu, err
}
