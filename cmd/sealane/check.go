package main

import (
	"errors"
	"fmt"

	"github.com/sealane/sealane/cmd/sealane/internal/config"
)

var errNoConfig = errors.New("no config file given; name one with -c FILE or the variable SEALANE_CONFIG")

// configFile is the file that -c or SEALANE_CONFIG names.
func configFile(p *process, in input) (string, error) {
	if file := in.value("c"); file != "" {
		return file, nil
	}
	if file := p.getenv("SEALANE_CONFIG"); file != "" {
		return file, nil
	}
	return "", errNoConfig
}

func runCheck(p *process, in input) int {
	file, err := configFile(p, in)
	if err != nil {
		return p.usageError(in.command.name, err)
	}
	c, err := config.Load(file, p.getenv)
	if err != nil {
		return p.badConfig(err)
	}
	for _, w := range c.Warnings {
		fmt.Fprintln(p.stderr, w)
	}
	fmt.Fprintf(p.stdout, "%s is fine: %s, %s, %s, %s, %s\n", file, count(len(c.Peers), "peer"), count(len(c.Listeners), "listener"),
		count(len(c.Routes), "route"), count(len(c.Services), "service"), count(len(c.Egress), "egress rule"))
	return exitOK
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
