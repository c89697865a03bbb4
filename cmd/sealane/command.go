package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
)

// A command is one subcommand. Its texts are in text.go; help is made from them.
type command struct {
	name      string
	arguments string // as shown in the usage line, after the options
	summary   string // one line
	details   string
	options   []option
	run       func(p *process, in input) int

	// main, if set, is a command that reads its own arguments.
	main func(args []string, stdout, stderr io.Writer) int
}

// An option is a flag of a command.
type option struct {
	name  string
	value string // what stands for the value in help; "" for a switch
	help  string
}

// input is what a person gave a command.
type input struct {
	command   *command
	arguments []string
	values    map[string]*string
	switches  map[string]*bool
}

func (in input) value(name string) string { return *in.values[name] }
func (in input) set(name string) bool     { return *in.switches[name] }

// execute reads the arguments and runs the command.
func (c *command) execute(p *process, args []string) int {
	if c.main != nil {
		return c.main(args, p.stdout, p.stderr)
	}
	in, err := c.parse(args)
	if errors.Is(err, flag.ErrHelp) {
		c.printHelp(p.stdout)
		return exitOK
	}
	if err != nil {
		return p.usageError(c.name, err)
	}
	return c.run(p, in)
}

// parse reads options and arguments in any order.
func (c *command) parse(args []string) (input, error) {
	in := input{command: c, values: make(map[string]*string), switches: make(map[string]*bool)}
	flags := flag.NewFlagSet(c.name, flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	for _, o := range c.options {
		if o.value == "" {
			in.switches[o.name] = flags.Bool(o.name, false, "")
		} else {
			in.values[o.name] = flags.String(o.name, "", "")
		}
	}
	for len(args) > 0 {
		if err := flags.Parse(args); err != nil {
			return in, err
		}
		args = flags.Args()
		if len(args) > 0 {
			in.arguments = append(in.arguments, args[0])
			args = args[1:]
		}
	}
	// What a script's variable was to hold, and did not: the default that
	// stands for no option is not what was meant.
	var empty error
	flags.Visit(func(f *flag.Flag) {
		if v := in.values[f.Name]; v != nil && *v == "" {
			empty = fmt.Errorf("the value of -%s is empty", f.Name)
		}
	})
	if empty != nil {
		return in, empty
	}
	if len(in.arguments) > 0 && c.arguments == "" {
		return in, fmt.Errorf("unexpected argument %q", in.arguments[0])
	}
	return in, nil
}
