// Package systemd tells systemd how the process is doing, in the words of
// sd_notify(3): ready, reloading, stopping, alive.
//
// A nil *Manager is that of a process which systemd did not start: everything
// it is told goes nowhere.
package systemd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"
)

// A Manager is systemd, as the parent of this process.
type Manager struct {
	send     func(message string) error
	close    func() error
	watchdog time.Duration // how long it waits for a sign of life; 0 for ever
}

// Connect finds the manager that the environment names. It is nil if there is
// none. The connection is made here, before a sandbox may forbid it.
func Connect(getenv func(string) string, pid int) (*Manager, error) {
	path := getenv("NOTIFY_SOCKET")
	if path == "" {
		return nil, nil
	}
	if path[0] != '/' && path[0] != '@' {
		return nil, fmt.Errorf("NOTIFY_SOCKET %q is neither a path nor an abstract socket", path)
	}
	watchdog, err := watchdogInterval(getenv, pid)
	if err != nil {
		return nil, err
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Net: "unixgram", Name: path})
	if err != nil {
		return nil, fmt.Errorf("connect to systemd: %w", err)
	}
	return &Manager{
		send: func(message string) error {
			_, err := c.Write([]byte(message))
			return err
		},
		close:    c.Close,
		watchdog: watchdog,
	}, nil
}

// watchdogInterval reads WatchdogSec= as sd_watchdog_enabled(3) does.
func watchdogInterval(getenv func(string) string, pid int) (time.Duration, error) {
	value := getenv("WATCHDOG_USEC")
	if of := getenv("WATCHDOG_PID"); value == "" || of != "" && of != strconv.Itoa(pid) {
		return 0, nil
	}
	usec, err := strconv.ParseInt(value, 10, 64)
	if err != nil || usec <= 0 || usec > int64(24*time.Hour/time.Microsecond) {
		return 0, fmt.Errorf("WATCHDOG_USEC %q is no number of microseconds", value)
	}
	return time.Duration(usec) * time.Microsecond, nil
}

// Close ends the connection.
func (m *Manager) Close() error {
	if m == nil {
		return nil
	}
	return m.close()
}

// Ready says that the process does its work: after the start, and after each
// reload. status is a line for "systemctl status".
func (m *Manager) Ready(status string) error { return m.tell("READY=1", statusLine(status)) }

// Reloading says that a reload began. Ready ends it, whether it was good or not.
func (m *Manager) Reloading() error {
	if m == nil {
		return nil
	}
	now, err := monotonic()
	if err != nil {
		return err
	}
	return m.tell("RELOADING=1", fmt.Sprintf("MONOTONIC_USEC=%d", now.Microseconds()))
}

// Stopping says that the process drains and then ends. It asks for as long as
// that may take; 0 asks for no more than the unit's TimeoutStopSec.
func (m *Manager) Stopping(status string, limit time.Duration) error {
	lines := []string{"STOPPING=1", statusLine(status)}
	if limit > 0 {
		lines = append(lines, fmt.Sprintf("EXTEND_TIMEOUT_USEC=%d", (limit+stopSlack).Microseconds()))
	}
	return m.tell(lines...)
}

// stopSlack is for what follows a drain: sealed closes, the last log lines.
const stopSlack = 10 * time.Second

// Status changes the line for "systemctl status".
func (m *Manager) Status(status string) error { return m.tell(statusLine(status)) }

func (m *Manager) tell(lines ...string) error {
	if m == nil {
		return nil
	}
	if err := m.send(strings.Join(lines, "\n")); err != nil {
		return fmt.Errorf("tell systemd %s: %w", lines[0], err)
	}
	return nil
}

// statusLine keeps a status from being read as more than one line.
func statusLine(s string) string {
	return "STATUS=" + strings.NewReplacer("\n", " ", "\r", " ", "\x00", " ").Replace(s)
}

// Watch gives signs of life until ctx ends, at twice the pace that systemd asks
// for. alive does what a dead process could not do; while it hangs there is no
// sign, and systemd kills the process. Watch waits for it before it returns.
func (m *Manager) Watch(ctx context.Context, alive func()) error {
	if m == nil || m.watchdog == 0 {
		return nil
	}
	ticker := time.NewTicker(m.watchdog / 2)
	defer ticker.Stop()
	var errs []error
	for {
		alive()
		if err := m.tell("WATCHDOG=1"); err != nil && len(errs) == 0 {
			errs = append(errs, err) // the next one may get through
		}
		select {
		case <-ctx.Done():
			return errors.Join(errs...)
		case <-ticker.C:
		}
	}
}
