// The system's own resolver would load libraries, which the sandbox forbids.
//go:debug netdns=go

// Sealane carries an app's TCP connections to another host inside sealed SDMP
// containers. This is the binary: it reads files, flags and the environment,
// builds the logger, and is the only place that ends the process.
package main

import (
	"io"
	"os"
)

func main() {
	os.Exit(execute(&process{args: os.Args[1:], stdout: os.Stdout, stderr: os.Stderr, getenv: os.Getenv}))
}

// Exit codes, of which the last two are those of sysexits.h.
const (
	exitOK     = 0
	exitError  = 1  // runtime error, or a drain that had to cut streams
	exitUsage  = 64 // bad usage
	exitConfig = 78 // bad config
)

// process is what a command sees of the world.
type process struct {
	args           []string
	stdout, stderr io.Writer
	getenv         func(string) string
}

func execute(p *process) int {
	if len(p.args) == 0 {
		printUsage(p.stderr)
		return exitUsage
	}
	name := p.args[0]
	switch name {
	case "-h", "-help", "--help", "help":
		return help(p)
	case "-version", "--version":
		name = "version"
	}
	for _, c := range commands() {
		if c.name == name {
			return c.execute(p, p.args[1:])
		}
	}
	return p.usageError("", errUnknownCommand(name))
}

func help(p *process) int {
	if p.args[0] == "help" && len(p.args) > 1 {
		for _, c := range commands() {
			if c.name == p.args[1] {
				return c.execute(p, []string{"--help"})
			}
		}
		return p.usageError("", errUnknownCommand(p.args[1]))
	}
	printUsage(p.stdout)
	return exitOK
}
