package main

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/sealane/sealane/mux"
)

func TestFindSidecar(t *testing.T) {
	type running struct{ line, mounts string }
	for _, c := range []struct {
		name    string
		running map[string]running // by process id
		pid     int
		err     string
	}{
		{"one", map[string]running{"1": {"/sealane run -c x", "own"}, "7": {"/sealane leave", "own"}, "8": {"postgres run", "own"}}, 1, ""},
		{"none", map[string]running{"7": {"/sealane leave", "own"}, "9": {"", "own"}}, 0, "no sidecar runs here"},
		{"two", map[string]running{"1": {"sealane run", "own"}, "2": {"/usr/bin/sealane run", "own"}}, 0, "several sidecars"},
		{"containers", map[string]running{"12": {"/sealane run", "other"}, "20": {"/sealane run", "own"}, "30": {"/sealane run", "third"}}, 20, ""},
		{"elsewhere", map[string]running{"12": {"/sealane run", "other"}}, 0, "no sidecar runs in this container; if process 12"},
	} {
		t.Run(c.name, func(t *testing.T) {
			proc := t.TempDir()
			c.running["self"] = running{"sealane leave", "own"}
			for pid, r := range c.running {
				if err := os.Mkdir(filepath.Join(proc, pid), 0o755); err != nil {
					t.Fatal(err)
				}
				text := strings.ReplaceAll(r.line, " ", "\x00") + "\x00"
				write(t, filepath.Join(proc, pid, "cmdline"), text, 0o644)
				write(t, filepath.Join(proc, pid, "mountinfo"), r.mounts, 0o644)
			}
			pid, err := findSidecar(proc)
			if pid != c.pid && c.err == "" || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
				t.Errorf("process %d, error %v", pid, err)
			}
		})
	}
}

// TestLeaveOwnContainer: in each of two mount namespaces, as containers of a
// pod with shared process ids have, "sealane leave" picks the sidecar there.
func TestLeaveOwnContainer(t *testing.T) {
	start := func() (s *sidecar, leave func()) {
		dir := folder(t, newKey(t), "admin: unix:admin.sock\n")
		// The shell stays, to run "leave" beside the sidecar and to end it.
		shell := `mount --make-rprivate / || exit
sealane run -c "$0" &
read go && sealane leave
read end
kill -9 $!`
		command := inMountNamespace(t, exec.Command("sh", "-c", shell, filepath.Join(dir, "sealane.yaml")))
		in, err := command.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		s = startCommand(t, dir, command)
		t.Cleanup(func() {
			in.Close()
			<-s.exited
		})
		return s, func() { io.WriteString(in, "go\n") }
	}
	const leaving = "leaving: peers open what is new elsewhere"
	first, leaveFirst := start()
	second, leaveSecond := start()
	leaveSecond()
	second.waitFor(leaving, 1)
	if len(first.lines(leaving)) > 0 {
		t.Error("the other container's sidecar leaves")
	}
	leaveFirst()
	first.waitFor(leaving, 1)
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
