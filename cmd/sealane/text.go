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
	"net"
	"os"
	"strconv"
	"strings"

	"github.com/sealane/sealane/k8s/inject"
	"github.com/sealane/sealane/k8s/redirect"
	"github.com/sealane/sealane/mux"
	"github.com/sealane/sealane/proxy"
	"github.com/sealane/sealane/session"
)

// commands is the table of subcommands, in the order of the help.
func commands() []*command {
	config := option{"c", "FILE", "the config file (default: the variable SEALANE_CONFIG)"}
	return []*command{
		{
			name: "demo", run: runDemo,
			summary: "show two sidecars at work on this host",
			details: "Starts a small app and two sidecars on loopback, fetches a page through them, and shows what\n" +
				"went over the link beside what the app and its client said. Needs no config and no root.",
			options: []option{{"once", "", "end after that; else it goes on until Ctrl-C, to be tried with curl"}},
		},
		{
			name: "run", run: runRun,
			summary: "run the sidecar",
			details: "TERM and INT drain it: nothing new is taken, connections finish until timeouts.drain, and a\n" +
				"second signal cuts them. HUP reloads the config and keys; what a config needs beyond sandbox of\n" +
				"the one at the start takes a restart. After USR1 peers open nothing new here, and all else goes\n" +
				"on. Logs go to stderr.",
			options: []option{
				config,
				{"watch", "", "reload when a file of the config changes, too"},
				{"no-sandbox", "", "do not restrict the process to the files and ports of its config"},
			},
		},
		{
			name: "check", run: runCheck,
			summary: "check a config file",
			details: "Reads the config and every file that it names, and prints each error with its line and\n" +
				"column. Exits 78 if there is one. Warnings are of what is allowed and may surprise. It\n" +
				"touches no network.",
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
			name: "leave", run: runLeave,
			summary: "make peers open nothing new at the sidecar of this container",
			details: "Sends USR1 to the sidecar that runs here. It is for a hook that runs before the sidecar and\n" +
				"its app are told to end, such as Kubernetes' preStop.",
		},
		{
			name: "pubkey", arguments: "FILE", run: runPubkey,
			summary: "print the public key of a key file",
			details: "Prints the 43 characters that the peers list under keys.",
			options: []option{{"identity", "", "print an SDMP identity container instead, with the key and its fingerprint"}},
		},
		{
			name: "status", run: runStatus,
			summary: "show the state of a running sidecar",
			details: "Asks the admin endpoint for its peers, links, listeners, connections and recent refusals.",
			options: []option{
				{"admin", "ADDR", "HOST:PORT or unix:PATH (default: the variable SEALANE_ADMIN, else " + defaultAdmin + ")"},
				{"json", "", "as JSON"},
				{"ready", "", "only exit with 0 if ready, else with 1; for exec probes"},
				{"watch", "", "show it anew every second, with rates"},
			},
		},
		{
			name: "redirect", arguments: "up|down|show|watch", main: redirect.Main,
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

func errNoAdmin(address string, err error) error {
	var reason *net.OpError
	if errors.As(err, &reason) {
		err = reason.Err
	}
	return fmt.Errorf("no answer from the admin address %s (%w); is sealane running there, with admin in its config?", address, err)
}

// showReady says what a sidecar that is not ready waits for.
func (p *process) showReady(err error) int {
	if err != nil {
		return p.fail(err)
	}
	fmt.Fprintln(p.stdout, "ready")
	return exitOK
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

// print writes the one line that a command is for. Where that cannot be
// written, a script must not take nothing for an answer.
func (p *process) print(line any) int {
	if _, err := fmt.Fprintln(p.stdout, line); err != nil {
		return p.fail(err)
	}
	return exitOK
}

// badConfig prints the errors of a config as they are: each line starts with
// the place, which editors know how to open.
func (p *process) badConfig(err error) int {
	fmt.Fprintln(p.stderr, err)
	return exitConfig
}

// refusalText says in one line who asked for what and why it came to nothing.
func refusalText(r proxy.Refusal) string {
	target := "a connection"
	if r.Target != "" {
		target = strconv.Quote(r.Target)
	}
	who := ""
	if r.From != "" {
		who = " for " + strconv.Quote(r.From)
	}
	return fmt.Sprintf("%s%s by %s: %s", target, who, r.Via, r.Reason)
}

// linkProblems say why an attempt at a link failed, and where to look.
var linkProblems = map[mux.LinkResult]string{
	mux.LinkUnreachable: "no address of the peer can be connected to; check its address, and that it runs",
	mux.LinkRejected:    "the other end has another key, or nothing in common with this node; check that the peer's key is the one at that address",
	mux.LinkNotFound:    "the peer does not know this node's key; add it to the peer's config",
	mux.LinkNoRoom:      "the peer takes no more links now; it has as many as its limits.links leaves for this node",
	mux.LinkUnknown:     "a node with a key of no peer was turned away",
	mux.LinkViolation:   "the link ended because of a byte that does not belong",
	mux.LinkTimedOut:    "the handshake took too long",
	mux.LinkLimited:     "a limit of this node was reached (limits.links, limits.handshakes)",
	mux.LinkBroken:      "the connection ended during the handshake",
}

func violationText(rule session.Rule) string {
	return fmt.Sprintf("a link was ended because it broke rule %s of SPEC.md", rule)
}

func (p *process) demoIntroduction(d *demo) {
	fmt.Fprintf(p.stdout, `A client, an app and two sidecars, all on this host:

  client -> %s (forward) or %s (SOCKS5)
         -> sidecar of the client  ==== sealed link through %s ====>  sidecar of the app
         -> the app on 127.0.0.1:%s, which speaks plain HTTP

`, d.near.listenerAddress(0), d.near.listenerAddress(1), d.capture.address(), d.appPort)
}

func (p *process) demoExchange(e *exchange) {
	fmt.Fprintf(p.stdout, "Fetched %s: %s\n  %s\n  by hand: %s\n\n", e.what, e.status, strings.TrimSpace(string(e.body)), e.curl)
}

// wireShown is how much of each container the demo shows, and textsShown of how
// many in each direction.
const (
	wireShown  = 120
	textsShown = 4
)

func (p *process) demoWire(e *exchange, out, in []string) {
	fmt.Fprintf(p.stdout, "What the client and the app said %s:\n\n", e.what)
	for line := range strings.Lines(string(e.request) + string(e.response)) {
		fmt.Fprintf(p.stdout, "  %s\n", strings.TrimRight(line, "\r\n"))
	}
	fmt.Fprintf(p.stdout, "\nWhat went over the link meanwhile, the first %d characters of each container:\n", wireShown)
	p.demoTexts("to the app's sidecar", out)
	p.demoTexts("back to the client's sidecar", in)
}

func (p *process) demoTexts(direction string, texts []string) {
	fmt.Fprintf(p.stdout, "\n%s (%s):\n", direction, count(len(texts), "container"))
	for _, text := range texts[:min(len(texts), textsShown)] {
		fmt.Fprintln(p.stdout, text[:min(len(text), wireShown)])
	}
}

func (p *process) demoInvitation(d *demo) {
	fmt.Fprintf(p.stdout, "\nTry the curl lines above, or look at http://%s/ in a browser. Ctrl-C ends the demo.\n", d.near.adminAddress())
}
