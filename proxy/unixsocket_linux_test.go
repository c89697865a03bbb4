package proxy

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
)

// stale leaves a socket as a process does that was killed.
func stale(t *testing.T, path string) {
	t.Helper()
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	dead.Close()
}

// TestUnixAtOnce: of many that start at once over a dead one's socket, one gets
// it and keeps it.
func TestUnixAtOnce(t *testing.T) {
	path := socketPath(t)
	for round := range 100 {
		if round%2 == 0 {
			stale(t, path)
		}
		var all sync.WaitGroup
		var got atomic.Pointer[net.Listener]
		start := make(chan struct{})
		for range 8 {
			all.Go(func() {
				<-start
				l, err := ListenUnix(path, 0, "")
				switch {
				case err == nil && !got.CompareAndSwap(nil, &l):
					t.Errorf("round %d: two listen on one path", round)
					l.Close()
				case err != nil && !errors.Is(err, syscall.EADDRINUSE):
					t.Errorf("round %d: %v", round, err)
				}
			})
		}
		close(start)
		all.Wait()
		if got.Load() == nil {
			t.Fatalf("round %d: nobody listens", round)
		}
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Errorf("round %d: the one that listens cannot be reached: %v", round, err)
		} else {
			c.Close()
		}
		(*got.Load()).Close()
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Fatalf("round %d: the file is left: %v", round, err)
		}
	}
}

// TestUnixRestrictedFromTheStart watches the file while it is made: it never
// has another mode, and nobody is let in before it has its final one.
func TestUnixRestrictedFromTheStart(t *testing.T) {
	path := socketPath(t)
	stop, watched := make(chan struct{}), make(chan struct{})
	modes := make(map[fs.FileMode]bool)
	go func() {
		defer close(watched)
		for {
			select {
			case <-stop:
				return
			default:
			}
			if info, err := os.Lstat(path); err == nil {
				modes[info.Mode().Perm()] = true
			}
		}
	}()
	for range 500 {
		l, err := ListenUnix(path, 0o600, "")
		if err != nil {
			t.Fatal(err)
		}
		l.Close()
	}
	close(stop)
	<-watched
	if len(modes) != 1 || !modes[0o600] {
		t.Errorf("modes seen: %v, want 0600 alone", modes)
	}
}

// TestUnixOwnFile: what has come into the socket's place is given to nobody.
func TestUnixOwnFile(t *testing.T) {
	path := socketPath(t)
	l, err := ListenUnix(path, 0, "")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	precious := filepath.Join(filepath.Dir(path), "precious")
	if err := os.WriteFile(precious, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	gid := os.Getgid()
	if os.Geteuid() == 0 {
		gid = 12345
	}
	before, err := os.Stat(precious)
	if err != nil {
		t.Fatal(err)
	}
	file := l.(*unixListener).file
	for what, replace := range map[string]func() error{
		"link": func() error { return os.Symlink(precious, path) },
		"file": func() error { return os.WriteFile(path, nil, 0o600) },
	} {
		if err := errors.Join(os.Remove(path), replace()); err != nil {
			t.Fatal(err)
		}
		for _, want := range []fs.FileInfo{nil, file} { // at the start, and in a reload
			if _, err := ownUnix(path, want, ownership{0o666, -1, gid}); err == nil || !strings.Contains(err.Error(), "taken the socket's place") {
				t.Errorf("a %s in the socket's place: %v", what, err)
			}
		}
		after, err := os.Stat(precious)
		if err != nil {
			t.Fatal(err)
		}
		if after.Mode() != before.Mode() || after.Sys().(*syscall.Stat_t).Gid != before.Sys().(*syscall.Stat_t).Gid {
			t.Errorf("%s: what it leads to has changed to %v, group %d", what, after.Mode(), after.Sys().(*syscall.Stat_t).Gid)
		}
	}
	l.Close()
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("closing has removed another's file: %v", err)
	}
}

// TestUnixHeldLock: whoever holds the folder's lock delays a start and cannot
// prevent it.
func TestUnixHeldLock(t *testing.T) {
	t.Parallel()
	path := socketPath(t)
	unlock := lockFolder(filepath.Dir(path))
	defer unlock()
	l, err := ListenUnix(path, 0, "")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
}
