// Bench measures sealane side by side with plain TCP relays and with other
// proxies, on loopback:
//
//	go run ./bench                                  # everything, about 25 minutes
//	go run ./bench -rows up1,rr1 -rounds 7          # some rows; -list names rows and pairs
//	go run ./bench -pairs plain,sealane-json        # some pairs
//	go run ./bench -json out.json -svg out.svg      # for programs, and as a picture
//	go run ./bench -config pairs.json               # with pairs of your own
//	go run ./bench -short                           # half a minute: does everything of this project work?
//
// It builds sealane, starts a pair of proxies and a target for each measurement, loads them with its own client,
// which checks every byte, and ends them. Rounds are interleaved (every row with pair A, pair B, ..., then again),
// and ratios are taken within a round, so that a change in the machine's speed touches both sides of a ratio. CPU time and
// memory are those of the proxies alone, read from /proc. The exit code is 1 if a byte was wrong or a
// measurement failed, never because something was slow; pairs that aren't this project's can't fail the run.
//
// The pairs are "direct" (no proxy), "plain" (two relays without encryption, part of this
// program), sealane-json, sealane-packed, and, where installed, stunnel (stunnel4), haproxy and spiped from
// Debian's packages, with mutual authentication and without a log line for each connection, as sealane; sealane-gzip on demand.
// A file of further pairs looks like this; see pairSpec for the placeholders:
//
//	{"pairs": [{
//	  "name": "ghostunnel",
//	  "needs": ["ghostunnel"],
//	  "commands": [
//	    ["ghostunnel", "server", "--listen", "{link}", "--target", "{target}", "--cacert", "{dir}/ca.pem",
//	     "--cert", "{dir}/cert.pem", "--key", "{dir}/key.pem", "--allow-cn", "localhost"],
//	    ["ghostunnel", "client", "--listen", "{entry}", "--target", "{peer}", "--cacert", "{dir}/ca.pem",
//	     "--cert", "{dir}/cert.pem", "--key", "{dir}/key.pem", "--override-server-name", "localhost"]
//	  ]
//	}]}
//
// Two pairs of rows go through a forwarder between the proxies that delays each byte by 25 ms each way. In farup and fardown
// it lets any rate through, so that only the proxies' own windows and the CPU bound it. In wanup and wandown at most
// 6 MiB are under way in a direction (-flight), as with Linux's largest default TCP window, which is what a link over a real distance would
// meet; there, what a proxy adds to the bytes on the wire costs as much of the rate.
//
// Sizes that do not fit the machine (18,000 connections need as many descriptors, 8,000 through plain relays twice as
// many) are left out, with the reason in the table.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

func main() {
	err := run(os.Args[1:], os.Stdout, os.Stderr)
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(args []string, stdout, stderr io.Writer) error {
	if len(args) > 0 && isHidden(args[0]) {
		return runHidden(args[0], args[1:], stderr) // until a signal ends it
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return runBench(ctx, args, stdout, stderr)
}

func isHidden(command string) bool {
	return command == "target" || command == "relay" || command == "delay"
}

// runHidden is one of the helpers that the benchmark starts as processes of their own.
func runHidden(command string, args []string, stderr io.Writer) error {
	f := flag.NewFlagSet(command, flag.ContinueOnError)
	listen := f.String("listen", "127.0.0.1:0", "address to listen on")
	to := f.String("to", "", "address to forward to")
	delay := f.Duration("delay", 0, "time that a byte is held back")
	flight := f.Int("flight", anyRate, "bytes under way at most")
	if err := f.Parse(args); err != nil {
		return err
	}
	l, err := net.Listen("tcp", *listen)
	if err != nil {
		return err
	}
	switch command {
	case "relay":
		return runRelay(l, *to)
	case "delay":
		return runDelay(l, *to, *delay, *flight)
	}
	return runTarget(l, func(err error) { fmt.Fprintln(stderr, err) })
}

// options are the command line.
type options struct {
	rows, pairs, config, sealane string
	json, svg                    string
	rounds, flight               int
	phase                        time.Duration
	short, list                  bool
}

func parseOptions(args []string, stderr io.Writer) (options, error) {
	var o options
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.SetOutput(stderr)
	f.StringVar(&o.rows, "rows", "", "comma-separated rows (default all)")
	f.StringVar(&o.pairs, "pairs", "", "comma-separated pairs (default all that are installed; in the short form this project's own)")
	f.StringVar(&o.config, "config", "", "JSON `file` with further pairs")
	f.StringVar(&o.sealane, "sealane", "", "sealane `binary` (default: build ./cmd/sealane)")
	f.StringVar(&o.json, "json", "", "write the results to `file` as JSON")
	f.StringVar(&o.svg, "svg", "", "draw throughput and latency into `file`")
	f.IntVar(&o.rounds, "rounds", 0, "interleaved rounds (default 5, in the short form 1)")
	f.IntVar(&o.flight, "flight", tcpWindow, "bytes under way at most in wanup and wandown")
	f.DurationVar(&o.phase, "time", 2*time.Second, "how long each measurement lasts")
	f.BoolVar(&o.short, "short", false, "only check that everything works")
	f.BoolVar(&o.list, "list", false, "list rows and pairs")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if f.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q", f.Arg(0))
	}
	if o.rounds == 0 {
		if o.rounds = 5; o.short {
			o.rounds = 1
		}
	}
	if o.rounds < 0 || o.rounds > 1000 || o.phase <= 0 || o.phase > maxDownload/4 || o.flight < 1 {
		return o, errors.New("-rounds, -time or -flight is out of range")
	}
	return o, nil
}

func runBench(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	o, err := parseOptions(args, stderr)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "sealane-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir) // what a failure leaves is in the system's folder for such things
	b, missing, err := newBench(o, dir, stderr)
	if err != nil {
		return err
	}
	if o.list {
		fmt.Fprintln(stdout, "rows: ", strings.Join(rowIDs(b.rows), " "))
		fmt.Fprintln(stdout, "pairs:", strings.Join(pairNames(b.pairs), " "))
		return nil
	}
	load := loadAverage()
	if err := b.buildSealane(ctx, o); err != nil {
		return err
	}
	rep := b.report(b.run(ctx))
	rep.Missing, rep.Short, rep.Machine.Load = missing, o.short, load
	if err := rep.write(o, stdout); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return errors.New("interrupted")
	}
	if rep.Failed {
		return errors.New("wrong bytes or failures: see the table")
	}
	return nil
}

// newBench chooses what to measure.
func newBench(o options, dir string, stderr io.Writer) (*bench, []string, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, nil, err
	}
	limit, err := raiseDescriptors()
	if err != nil {
		return nil, nil, err
	}
	binary := filepath.Join(dir, "sealane")
	if o.sealane != "" {
		if binary, err = filepath.Abs(o.sealane); err != nil {
			return nil, nil, err
		}
	}
	pairs := builtinPairs(self, binary)
	if o.config != "" {
		more, err := readPairs(o.config)
		if err != nil {
			return nil, nil, err
		}
		pairs = append(pairs, more...)
	}
	set := fullSettings(o.phase)
	if o.short {
		set = shortSettings()
	}
	all := allRows(set, o.flight)
	if o.short {
		all = withoutGoals(all)
	}
	chosen, missing, err := choosePairs(pairs, o.pairs, o.short)
	if err != nil {
		return nil, nil, err
	}
	rows, err := chooseRows(all, o.rows)
	if err != nil {
		return nil, nil, err
	}
	return &bench{
		self: self, dir: dir, set: set, rows: rows, pairs: chosen, rounds: o.rounds, limit: limit, progress: stderr,
	}, missing, nil
}

// raiseDescriptors lets this process, and those it starts, have as many descriptors as the hard limit allows.
func raiseDescriptors() (int, error) {
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		return 0, fmt.Errorf("read the limit of descriptors: %w", err)
	}
	l.Cur = l.Max
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		return 0, fmt.Errorf("raise the limit of descriptors: %w", err)
	}
	return int(min(l.Cur, 1<<30)), nil
}

// buildSealane builds the binary that the sealane pairs start, if one is measured and none was given.
func (b *bench) buildSealane(ctx context.Context, o options) error {
	wanted := false
	for _, p := range b.pairs {
		wanted = wanted || strings.HasPrefix(p.Name, "sealane-")
	}
	if !wanted || o.sealane != "" {
		return nil
	}
	fmt.Fprintln(b.progress, "building sealane")
	wd, err := os.Getwd()
	if err != nil {
		return err
	}
	_, err = output(ctx, wd, []string{"go", "build", "-o", filepath.Join(b.dir, "sealane"), "github.com/sealane/sealane/cmd/sealane"})
	return err
}

func pairNames(pairs []pairSpec) []string {
	var names []string
	for _, p := range pairs {
		names = append(names, p.Name)
	}
	return names
}

// loadAverage is the system's of the last minute.
func loadAverage() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	load, _, _ := strings.Cut(string(b), " ")
	return load
}

// write the report to all the places that the options name.
func (r *report) write(o options, stdout io.Writer) error {
	if err := r.writeTable(stdout); err != nil {
		return err
	}
	for name, write := range map[string]func(io.Writer) error{o.json: r.writeJSON, o.svg: r.writeSVG} {
		if name == "" {
			continue
		}
		f, err := os.Create(name)
		if err != nil {
			return err
		}
		if err := errors.Join(write(f), f.Close()); err != nil {
			return fmt.Errorf("write %s: %w", name, err)
		}
	}
	return nil
}
