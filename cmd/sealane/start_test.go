package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/sealane/sealane/cmd/sealane/internal/config"
)

// TestNothingServedBeforeTheSandbox: while the process is being restricted all
// is bound, and nobody gets an answer.
func TestNothingServedBeforeTheSandbox(t *testing.T) {
	dir := folder(t, newKey(t), `
listen: 127.0.0.1:0
admin: unix:admin.sock
peers: [{name: far, keys: [%q]}]
listeners: [{socks5: "unix:socks.sock"}]
`, newKey(t).Public())
	cfg, err := config.Load(filepath.Join(dir, "sealane.yaml"), func(string) string { return "" })
	if err != nil {
		t.Fatal(err)
	}
	refused := errors.New("no sandbox today")
	greeting := map[string]string{"socks.sock": "\x05\x01\x00", "admin.sock": "GET /live HTTP/1.0\r\nHost: localhost\r\n\r\n"}
	var apps []net.Conn
	_, err = startNode(cfg, zerolog.Nop(), nodeOptions{confine: func() error {
		for name, text := range greeting {
			c := dialUnix(t, filepath.Join(dir, name))
			apps = append(apps, c)
			c.Write([]byte(text))
			c.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
			if n, err := c.Read(make([]byte, 1)); err == nil || n > 0 {
				t.Errorf("%s answers before the sandbox", name)
			}
		}
		return refused
	}})
	if !errors.Is(err, refused) {
		t.Errorf("the start ended with %v", err)
	}
	for _, c := range apps {
		c.SetReadDeadline(time.Now().Add(time.Minute))
		if n, err := c.Read(make([]byte, 1)); n > 0 || errors.Is(err, context.DeadlineExceeded) || err == nil {
			t.Errorf("after the sandbox failed an app read %d, %v", n, err)
		}
	}
	// And the process says first what it has given up.
	s := startSidecar(t, dir)
	if at := strings.Index(s.text(), `"message":"sandbox"`); at < 0 || at > strings.Index(s.text(), `"message":"started"`) {
		t.Errorf("the sandbox comes after the start:\n%s", s.text())
	}
}

func dialUnix(t *testing.T, path string) net.Conn {
	t.Helper()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// TestTwoStartsAtOnce: two processes with one config, over what a killed one
// left behind. One runs and can be reached, the other says why it does not.
func TestTwoStartsAtOnce(t *testing.T) {
	dir := folder(t, newKey(t), "admin: unix:admin.sock\n")
	for round := range 20 {
		ends := make(chan *sidecar, 2)
		var both []*sidecar
		for range cap(ends) {
			s := &sidecar{t: t, dir: dir, exited: make(chan struct{})}
			s.command = exec.Command("sealane", "run", "-c", filepath.Join(dir, "sealane.yaml"))
			s.command.Stderr = s
			both = append(both, s)
		}
		for _, s := range both {
			if err := s.command.Start(); err != nil {
				t.Fatal(err)
			}
			go func() {
				s.command.Wait()
				close(s.exited)
				ends <- s
			}()
			t.Cleanup(func() { s.command.Process.Kill() })
		}
		var loser *sidecar
		select {
		case loser = <-ends:
		case <-time.After(time.Minute):
			t.Fatalf("round %d: both run", round)
		}
		if !strings.Contains(loser.text(), "another process has it") {
			t.Errorf("round %d: the one that ended says\n%s", round, loser.text())
		}
		winner := both[0]
		if winner == loser {
			winner = both[1]
		}
		winner.waitFor("started", 1)
		if err := live(filepath.Join(dir, "admin.sock")); err != nil {
			t.Errorf("round %d: %v", round, err)
		}
		winner.command.Process.Kill() // and leave a dead socket for the next two
		<-winner.exited
		if t.Failed() {
			return
		}
	}
}

func live(socket string) error {
	client := http.Client{Timeout: time.Minute, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}
	r, err := client.Get("http://localhost/live")
	if err != nil {
		return err
	}
	r.Body.Close()
	if r.StatusCode != http.StatusOK {
		return fmt.Errorf("status %d", r.StatusCode)
	}
	return nil
}
