package main

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/sealane/sealane/mux"
)

func TestFindSidecar(t *testing.T) {
	for _, c := range []struct {
		name    string
		running map[string]string // command line by process id
		pid     int
		err     string
	}{
		{"one", map[string]string{"1": "/sealane run -c x", "7": "/sealane leave", "8": "postgres run"}, 1, ""},
		{"none", map[string]string{"7": "/sealane leave", "9": ""}, 0, "no sidecar runs here"},
		{"two", map[string]string{"1": "sealane run", "2": "/usr/bin/sealane run"}, 0, "several sidecars"},
	} {
		t.Run(c.name, func(t *testing.T) {
			proc := t.TempDir()
			for pid, line := range c.running {
				if err := os.Mkdir(filepath.Join(proc, pid), 0o755); err != nil {
					t.Fatal(err)
				}
				text := strings.ReplaceAll(line, " ", "\x00") + "\x00"
				if err := os.WriteFile(filepath.Join(proc, pid, "cmdline"), []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			pid, err := findSidecar(proc)
			if pid != c.pid && c.err == "" || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
				t.Errorf("process %d, error %v", pid, err)
			}
		})
	}
}

// TestLeave: a sidecar that leaves keeps its connections, and peers open
// nothing new there.
func TestLeave(t *testing.T) {
	near, far := pair(t, "")
	c := dial(t, near.forward())
	if err := talk(c, "before\n"); err != nil {
		t.Fatal(err)
	}
	far.signal(leaveSignal)
	far.waitFor("leaving: peers open what is new elsewhere", 1)
	eventually(t, func() string {
		r, _, err := near.client().report(t.Context())
		if err != nil {
			return err.Error()
		}
		for _, l := range r.Peers[0].Links {
			if l.State == string(mux.LinkStateDraining) {
				return ""
			}
		}
		return "no link drains"
	})
	if err := talk(c, "after\n"); err != nil {
		t.Error(err)
	}
	c.Close()
	far.signal(syscall.SIGTERM)
	if code := far.wait(); code != exitOK {
		t.Errorf("exit code %d", code)
	}
}
