//go:build linux

// Command e2e starts and ends the test cluster. See package cluster.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/sealane/sealane/k8s/e2e/cluster"
)

const usage = `Usage, in the folder of this module and as root:
  go run . up            start the cluster
  go run . kubectl ...   run kubectl on it
  go run . node ...      run a command on its node
  go run . down          end it and remove all that it made
The cluster's files are in $SEALANE_E2E_DIR, by default sealane-e2e in the temporary folder.
`

func main() {
	cluster.Node()
	if len(os.Args) < 2 {
		fmt.Fprint(os.Stderr, usage)
		os.Exit(64)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, os.Args[1], os.Args[2:])
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		os.Exit(exit.ExitCode())
	case err != nil:
		fmt.Fprintln(os.Stderr, "e2e:", err)
		os.Exit(1)
	}
}

// theCluster is the one that this module's folder and the environment name.
func theCluster() (*cluster.Cluster, error) {
	source, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return nil, fmt.Errorf("find this module: %w", err)
	}
	dir := os.Getenv("SEALANE_E2E_DIR")
	if dir == "" {
		dir = filepath.Join(os.TempDir(), "sealane-e2e")
	}
	return cluster.New(dir, strings.TrimSpace(string(source)), os.Stdout)
}

func run(ctx context.Context, verb string, args []string) error {
	c, err := theCluster()
	if err != nil {
		return err
	}
	switch verb {
	case "up":
		return c.Up(ctx)
	case "down":
		return c.Down()
	case "kubectl":
		return attached(c.KubectlCommand(ctx, args...))
	case "node":
		return attached(c.EnterNode(ctx, args[0], args[1:]...))
	}
	return fmt.Errorf("unknown command %q\n%s", verb, usage)
}

func attached(cmd *exec.Cmd) error {
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	return cmd.Run()
}
