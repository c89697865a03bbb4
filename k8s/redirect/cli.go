package redirect

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"os/signal"
	"os/user"
	"strconv"
	"syscall"
)

// All text that a person reads from "sealane redirect" is in this file, errors of the kernel aside. Reports go to
// stdout; warnings and errors go to stderr and say what to do.

const usage = `Usage:
  sealane redirect up [options]    install the rules, in place of any that are there, and prove that they work
  sealane redirect down            cut the connections that were redirected, then remove the rules
  sealane redirect show            print the installed rules
  sealane redirect watch           put the rules back whenever another program removes them, until it is ended

Sends TCP connections that programs in this network namespace open to the sidecar's transparent listener, for IPv4
and IPv6. Connections to loopback, connections that were open before, and the sidecar's own are left alone.
If up fails, the rules that were there are in force as before; if there were none, what would be caught is refused.
Needs Linux 5.2 and the capability NET_ADMIN; the sidecar itself needs neither.

Options of up:
  --to PORT                port of the transparent listener (default 15006)
  --ports LIST             catch these destination ports only, such as 5432,8000-8999
  --cidrs LIST             catch these destinations only, such as 10.0.0.0/8,fd00::/8
  --except-ports LIST      do not catch these ports
  --except-cidrs LIST      do not catch these destinations
  --except-uid LIST        do not catch these users' connections: the sidecar's user, by number or name (default 7423)
  --sidecar-uid LIST       let only these users answer on the port (default: those of --except-uid)
  --mark NUMBER            do not catch connections with this packet mark
  --guard-inbound LIST     drop TCP connections from outside to these ports of this host
  --probe-sources LIST     let these addresses reach the guarded ports all the same; the word gateway stands for
                           the next hops of the default routes, from which a pod's node may probe it
  --dry-run                print the rules as a script for nft and change nothing; needs no capability
`

const (
	exitOK      = 0
	exitFailure = 1
	exitUsage   = 64
)

// Main runs "sealane redirect" with the arguments after that word and returns the exit code.
func Main(args []string, stdout, stderr io.Writer) int {
	err := run(args, stdout, stderr)
	switch {
	case err == nil:
		return exitOK
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(stdout, usage)
		return exitOK
	}
	if errors.As(err, new(usageError)) {
		fmt.Fprintf(stderr, "sealane: %v; see \"sealane redirect --help\"\n", err)
		return exitUsage
	}
	fmt.Fprintf(stderr, "sealane: redirect: %v\n", err)
	return exitFailure
}

// A usageError is a mistake in the command line.
type usageError struct{ error }

func run(args []string, stdout, stderr io.Writer) error {
	if len(args) == 0 {
		return usageError{errors.New("say up, down, show or watch")}
	}
	switch args[0] {
	case "up":
		return runUp(args[1:], stdout, stderr)
	case "down":
		return runDown(args[1:], stdout)
	case "show":
		return runShow(args[1:], stdout)
	case "watch":
		return runWatch(args[1:], stdout, stderr)
	case "help", "-h", "-help", "--help":
		return flag.ErrHelp
	}
	return usageError{fmt.Errorf("%q is none of up, down, show and watch", args[0])}
}

func runUp(args []string, stdout, stderr io.Writer) error {
	o, dryRun, err := parseUp(args)
	if err != nil {
		return err
	}
	if dryRun {
		script, err := DryRun(o)
		if err == nil {
			fmt.Fprint(stdout, script)
		}
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	report, err := Up(ctx, o)
	if err != nil {
		return err
	}
	for _, f := range report.Families {
		fmt.Fprintf(stdout, "%s: %s: %s\n", f.Name, f.State, f.Detail)
	}
	if len(o.GuardInbound) > 0 {
		fmt.Fprintln(stdout, "guard: in force: the kernel has its rules as they were asked for")
	}
	for _, w := range report.Warnings {
		fmt.Fprintf(stderr, "warning: %s\n", w)
	}
	return nil
}

func runDown(args []string, stdout io.Writer) error {
	if err := parse(newFlags("down"), args); err != nil {
		return err
	}
	found, err := Down()
	if err != nil {
		return err
	}
	if found {
		fmt.Fprintln(stdout, "the redirected connections were cut and the rules removed: connections leave as the programs open them")
	} else {
		fmt.Fprintln(stdout, "no rules were installed")
	}
	return nil
}

func runShow(args []string, stdout io.Writer) error {
	if err := parse(newFlags("show"), args); err != nil {
		return err
	}
	rules, err := Show()
	if err != nil {
		return err
	}
	if rules == "" {
		rules = "no rules are installed\n"
	}
	fmt.Fprint(stdout, rules)
	return nil
}

func runWatch(args []string, stdout, stderr io.Writer) error {
	if err := parse(newFlags("watch"), args); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	fmt.Fprintln(stdout, "watching the rules")
	return Watch(ctx, func() {
		fmt.Fprintln(stderr, "warning: another program has removed the rules; they are back. Until then, connections left as the "+
			"programs open them, and redirected ones went on to their real destination: find out what removes the rules")
	})
}

func newFlags(name string) *flag.FlagSet {
	fs := flag.NewFlagSet(name, flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	return fs
}

func parse(fs *flag.FlagSet, args []string) error {
	err := fs.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return err
	case err != nil:
		return usageError{err}
	case fs.NArg() > 0:
		return usageError{fmt.Errorf("%q is one argument too many", fs.Arg(0))}
	}
	return nil
}

// parseUp reads the options of up.
func parseUp(args []string) (o Options, dryRun bool, err error) {
	o = Options{To: DefaultPort, ExceptUIDs: []uint32{DefaultUID}}
	fs := newFlags("up")
	fs.BoolVar(&dryRun, "dry-run", false, "")
	// An empty list, which a script's unset variable makes, would be as good as no option: no guard, say.
	set := func(name string, read func(string) error) {
		fs.Func(name, "", func(s string) error {
			if s == "" && name != "except-uid" { // a mark may exempt the sidecar
				return errors.New("it is empty; leave the option out if that is meant")
			}
			return read(s)
		})
	}
	set("to", func(s string) (err error) { o.To, err = parsePort(s); return })
	set("ports", func(s string) (err error) { o.Ports, err = ParsePorts(s); return })
	set("cidrs", func(s string) (err error) { o.CIDRs, err = ParseCIDRs(s); return })
	set("except-ports", func(s string) (err error) { o.ExceptPorts, err = ParsePorts(s); return })
	set("except-cidrs", func(s string) (err error) { o.ExceptCIDRs, err = ParseCIDRs(s); return })
	set("except-uid", func(s string) (err error) { o.ExceptUIDs, err = parseUIDs(s); return })
	set("sidecar-uid", func(s string) (err error) { o.SidecarUIDs, err = parseUIDs(s); return })
	set("mark", func(s string) (err error) { o.Mark, err = parseMark(s); return })
	set("guard-inbound", func(s string) (err error) { o.GuardInbound, err = ParsePorts(s); return })
	set("probe-sources", func(s string) (err error) { o.ProbeSources, err = parseSources(s, gateways); return })
	if err := parse(fs, args); err != nil {
		return o, false, err
	}
	if err := o.Validate(); err != nil {
		return o, false, usageError{err}
	}
	return o, dryRun, nil
}

// parseSources reads a list of addresses in which the word gateway stands for what gateways gives.
func parseSources(s string, gateways func() ([]netip.Prefix, error)) ([]netip.Prefix, error) {
	var list, found []netip.Prefix
	for item := range items(s) {
		var err error
		if item == "gateway" {
			found, err = gateways()
		} else {
			found, err = ParseCIDRs(item)
		}
		if err != nil {
			return nil, err
		}
		list = append(list, found...)
	}
	return list, nil
}

func parsePort(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("%q is no port", s)
	}
	return uint16(n), nil
}

func parseMark(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 0, 32)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("%q is no mark: a mark is a number such as 0x1d00, not zero", s)
	}
	return uint32(n), nil
}

// parseUIDs reads numbers and names of users.
func parseUIDs(s string) ([]uint32, error) {
	var uids []uint32
	for item := range items(s) {
		n, err := strconv.ParseUint(item, 10, 32)
		if err != nil {
			u, uerr := user.Lookup(item)
			if uerr != nil {
				return nil, fmt.Errorf("there is no user %q", item)
			}
			if n, err = strconv.ParseUint(u.Uid, 10, 32); err != nil {
				return nil, fmt.Errorf("the user %q has no number", item)
			}
		}
		uids = append(uids, uint32(n))
	}
	return uids, nil
}
