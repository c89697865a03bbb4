//go:build !linux

package main

import (
	"errors"
	"syscall"
)

// The benchmark needs Linux's /proc and loopback addresses. Elsewhere it only compiles.
func ownGroup() *syscall.SysProcAttr { return nil }

func awaitEnd(int) error { return errors.ErrUnsupported }

func portByConnect(_, _ string, _ syscall.RawConn) error { return nil }
