//go:build !linux

package redirect

import (
	"context"
	"errors"
	"net/netip"
)

var errLinuxOnly = errors.New("redirect rules are made with nftables, which only Linux has: on this system " +
	"use the forward, socks5 or connect listeners")

// DryRun returns what Up would install, as a script for nft.
func DryRun(Options) (string, error) { return "", errLinuxOnly }

// Up is for Linux only.
func Up(context.Context, Options) (Report, error) { return Report{}, errLinuxOnly }

// Down is for Linux only.
func Down() (bool, error) { return false, errLinuxOnly }

// Watch is for Linux only.
func Watch(context.Context, func()) error { return errLinuxOnly }

// Show is for Linux only.
func Show() (string, error) { return "", errLinuxOnly }

func gateways() ([]netip.Prefix, error) { return nil, errLinuxOnly }
