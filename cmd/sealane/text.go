package main

// Every text that a person reads on the terminal is made in this file, but for
// the messages of the config (internal/config) and the log.
//
// Rules: errors go to stderr and start with "sealane:"; they name what was
// wrong and, after a semicolon, what to do. Results go to stdout, one fact on a
// line, in a form that a script can use. No colour, but by sealane status on a
// terminal. A command that worked and has nothing to say says nothing.

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/sealane/sealane/k8s/inject"
	"github.com/sealane/sealane/k8s/redirect"
)

// commands is the table of subcommands, in the order of the help.
func commands() []*command {
	config := option{"c", "FILE", "the config file (default: the variable SEALANE_CONFIG)"}
	return []*command{
		{
			name: "check", run: runCheck,
			summary: "check a config file",
			details: "Reads the config and every file that it names, and prints each error with its line and\n" +
				"column. Exits 78 if there is one. It touches no network.",
			options: []option{config},
		},
		{
			name: "completion", arguments: "bash|zsh|fish", run: runCompletion,
			summary: "print a script that completes sealane's commands in a shell",
			details: "In bash: source <(sealane completion bash). In zsh: source <(sealane completion zsh).\n" +
				"In fish: sealane completion fish | source.",
		},
		{
			name: "inject", main: func(args []string, stdout, stderr io.Writer) int {
				return inject.Main(inject.DefaultImage(versionName()), args, os.Stdin, stdout, stderr)
			},
			summary: "add sidecars to the workloads of a Kubernetes manifest",
		},
		{
			name: "keygen", run: runKeygen,
			summary: "make a node key",
			details: "With -o, writes the key with mode 0600 to a new file and prints the public key, which the\n" +
				"peers list. Without, prints the key as PEM on stdout and the public key on stderr.",
			options: []option{{"o", "FILE", "write the key to this file, which must not exist"}},
		},
		{
			name: "pubkey", arguments: "FILE", run: runPubkey,
			summary: "print the public key of a key file",
			details: "Prints the 43 characters that the peers list under keys.",
			options: []option{{"identity", "", "print an SDMP identity container instead, with the key and its fingerprint"}},
		},
		{
			name: "redirect", arguments: "up|down|show", main: redirect.Main,
			summary: "send an app's connections to the transparent listener",
		},
		{
			name: "version", run: runVersion,
			summary: "print the version",
		},
	}
}

func printUsage(w io.Writer) {
	fmt.Fprint(w, "Sealane carries an app's TCP connections to another host inside sealed containers.\n\n"+
		"Usage: sealane COMMAND [OPTIONS]\n\n")
	for _, c := range commands() {
		fmt.Fprintf(w, "  %-10s %s\n", c.name, c.summary)
	}
	fmt.Fprint(w, "\n\"sealane COMMAND --help\" says more about one.\n"+
		"Exit codes: 0 clean, 1 runtime error or forced drain, 64 bad usage, 78 bad config.\n")
}

func (c *command) printHelp(w io.Writer) {
	usage := "Usage: sealane " + c.name
	if len(c.options) > 0 {
		usage += " [OPTIONS]"
	}
	if c.arguments != "" {
		usage += " " + c.arguments
	}
	fmt.Fprintf(w, "%s\n\n%s.\n", usage, strings.ToUpper(c.summary[:1])+c.summary[1:])
	if c.details != "" {
		fmt.Fprintf(w, "\n%s\n", c.details)
	}
	if len(c.options) > 0 {
		fmt.Fprintln(w)
	}
	for _, o := range c.options {
		fmt.Fprintf(w, "  %-15s %s\n", o.usage(), o.help)
	}
}

func (o option) usage() string {
	dashes := "--"
	if len(o.name) == 1 {
		dashes = "-"
	}
	return strings.TrimSpace(dashes + o.name + " " + o.value)
}

var errNoShell = errors.New("name one shell: bash, zsh or fish")

func errUnknownCommand(name string) error {
	return fmt.Errorf("there is no command %q", name)
}

// usageError says what was wrong with the arguments and where the help is.
func (p *process) usageError(command string, err error) int {
	where := "sealane"
	if command != "" {
		where += " " + command
	}
	fmt.Fprintf(p.stderr, "sealane: %v; see \"%s --help\"\n", err, where)
	return exitUsage
}

// fail says why a command could not do its work.
func (p *process) fail(err error) int {
	fmt.Fprintf(p.stderr, "sealane: %v\n", err)
	return exitError
}

// badConfig prints the errors of a config as they are: each line starts with
// the place, which editors know how to open.
func (p *process) badConfig(err error) int {
	fmt.Fprintln(p.stderr, err)
	return exitConfig
}
