package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

const (
	defaultAdmin  = "127.0.0.1:7424"
	watchInterval = time.Second
)

// runStatus asks a running sidecar's admin endpoint.
func runStatus(p *process, in input) int {
	client := newAdminClient(firstOf(in.value("admin"), p.getenv("SEALANE_ADMIN"), defaultAdmin))
	defer client.http.CloseIdleConnections()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	switch {
	case in.set("ready"):
		return p.showReady(client.ready(ctx))
	case in.set("watch"):
		return p.watchStatus(ctx, client, in.set("json"))
	}
	r, raw, err := client.report(ctx)
	if err != nil {
		return p.fail(err)
	}
	if in.set("json") {
		p.stdout.Write(raw)
		return exitOK
	}
	writeReport(p.stdout, r, nil, p.colour())
	return exitOK
}

func firstOf(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

// watchStatus shows the state every second until it is interrupted.
func (p *process) watchStatus(ctx context.Context, client *adminClient, asJSON bool) int {
	var before *report
	for {
		r, raw, err := client.report(ctx)
		switch {
		case ctx.Err() != nil:
			return exitOK
		case err != nil:
			return p.fail(err)
		case asJSON:
			p.stdout.Write(raw)
		default:
			var b strings.Builder
			if p.colour() {
				b.WriteString(clearScreen)
			}
			writeReport(&b, r, before, p.colour())
			fmt.Fprintln(p.stdout, b.String())
		}
		before = r
		select {
		case <-ctx.Done():
			return exitOK
		case <-time.After(watchInterval):
		}
	}
}

// colour says whether stdout is a terminal on which colours are welcome.
func (p *process) colour() bool {
	return isTerminal(p.stdout) && p.getenv("NO_COLOR") == "" && p.getenv("TERM") != "dumb"
}

// An adminClient asks an admin endpoint at HOST:PORT or unix:PATH.
type adminClient struct {
	address string
	http    *http.Client
}

func newAdminClient(address string) *adminClient {
	network, target := "tcp", address
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		network, target = "unix", path
	}
	var dialer net.Dialer
	return &adminClient{address, &http.Client{
		Timeout: 5 * time.Second,
		Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, network, target)
		}},
	}}
}

// maxReport bounds what is read from the endpoint.
const maxReport = 64 << 20

func (c *adminClient) get(ctx context.Context, path string) (int, []byte, error) {
	// The host is what the endpoint's guard expects; the address is the dialer's.
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://localhost"+path, nil)
	if err != nil {
		return 0, nil, err
	}
	response, err := c.http.Do(request)
	if err != nil {
		return 0, nil, errNoAdmin(c.address, err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, maxReport))
	if err != nil {
		return 0, nil, errNoAdmin(c.address, err)
	}
	return response.StatusCode, body, nil
}

func (c *adminClient) report(ctx context.Context) (*report, []byte, error) {
	status, body, err := c.get(ctx, "/status")
	if err != nil {
		return nil, nil, err
	}
	var r report
	if status != http.StatusOK {
		return nil, nil, fmt.Errorf("%s answers %d; is it sealane's admin address?", c.address, status)
	}
	if err := json.Unmarshal(body, &r); err != nil {
		return nil, nil, fmt.Errorf("%s answers something else; is it sealane's admin address?", c.address)
	}
	return &r, body, nil
}

// ready returns nil if the sidecar is ready, else what it waits for.
func (c *adminClient) ready(ctx context.Context) error {
	status, body, err := c.get(ctx, "/ready")
	if err != nil {
		return err
	}
	if status != http.StatusOK {
		return errors.New(strings.ReplaceAll(strings.TrimSpace(string(body)), "\n", "; "))
	}
	return nil
}
