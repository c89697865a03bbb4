package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// process is a program that the benchmark started, and what it started in turn: a process group.
type process struct {
	name string
	cmd  *exec.Cmd
	log  string // file with what it wrote to stdout and stderr
	done chan struct{}

	mu     sync.Mutex
	reaped bool // its number may be another's
}

// start runs args with its output in a file in dir.
func start(dir string, args []string) (*process, error) {
	name := filepath.Base(args[0])
	log, err := os.CreateTemp(dir, name+"-*.log")
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	defer log.Close() // the child has its own descriptor
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = dir, environ(), log, log
	cmd.SysProcAttr = ownGroup()
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	p := &process{name: name, cmd: cmd, log: log.Name(), done: make(chan struct{})}
	go p.reap()
	return p, nil
}

// environ is this process's environment without what would override sealane's configs.
func environ() []string {
	return slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "SEALANE_") })
}

// reap waits for the end of the process, and ends with it what it may have started.
func (p *process) reap() {
	defer close(p.done)
	_ = awaitEnd(p.cmd.Process.Pid) // can only fail if there is nothing to wait for
	p.signal(syscall.SIGKILL)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.reaped = true
	_ = p.cmd.Wait() // cmd.ProcessState says how it ended
}

// stopAll ends the process groups, at first politely.
func stopAll(procs []*process) {
	for _, p := range procs {
		p.signal(syscall.SIGTERM)
	}
	patience, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	for _, p := range procs {
		select {
		case <-p.done:
		case <-patience.Done():
			p.signal(syscall.SIGKILL)
			<-p.done
		}
	}
}

// signal reaches the whole group, as long as there is one.
func (p *process) signal(sig syscall.Signal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.reaped {
		// It can only fail because every process of the group has ended.
		_ = syscall.Kill(-p.cmd.Process.Pid, sig)
	}
}

// ended returns an error if the process isn't running any more.
func (p *process) ended() error {
	select {
	case <-p.done:
		return fmt.Errorf("%s has ended: %s", p.name, p.cmd.ProcessState)
	default:
		return nil
	}
}

// lastWords is the end of what the process has printed, on one line.
func (p *process) lastWords() string {
	b, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return strings.Join(strings.Fields(string(b[max(0, len(b)-400):])), " ")
}

// output runs a command to its end and returns what it wrote to stdout.
func output(ctx context.Context, dir string, args []string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir, cmd.Env = dir, environ()
	out, err := cmd.Output()
	if err == nil {
		return strings.TrimSpace(string(out)), nil
	}
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		err = fmt.Errorf("%w: %s", err, strings.TrimSpace(string(exit.Stderr)))
	}
	return "", fmt.Errorf("%s: %w", strings.Join(args, " "), err)
}
