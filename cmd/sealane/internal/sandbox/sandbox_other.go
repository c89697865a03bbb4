//go:build !linux

package sandbox

import "runtime"

// Harden does nothing: this system has no such thing.
func Harden() error { return nil }

// Enter restricts nothing: Landlock is Linux's.
func Enter(Needs) (*Sandbox, error) {
	return &Sandbox{why: "there is no Landlock on " + runtime.GOOS}, nil
}
