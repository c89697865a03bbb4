package proxy

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

// ListenUnix listens on a unix socket, over a file that a dead process left
// behind. The file has its mode (0: 0600) and its owner ("user", "user:group"
// or ":group", by name or number; "" leaves it) before anybody can connect.
// Closing the listener removes the file, unless another has taken its place.
func ListenUnix(path string, mode fs.FileMode, owner string) (net.Listener, error) {
	if strings.HasPrefix(path, "@") {
		return net.Listen("unix", path)
	}
	o, err := parseOwnership(mode, owner)
	if err != nil {
		return nil, err
	}
	// Of two processes that start at once, one would find the other's socket
	// bound but not yet listening, and take it for one of the dead.
	defer lockFolder(filepath.Dir(path))()
	if err := removeStale(path); err != nil {
		return nil, err
	}
	l, file, err := bindUnix(path, o)
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false) // which would not look whose file it is
	return &unixListener{UnixListener: l, path: path, file: file}, nil
}

// A unixListener is bound to a file.
type unixListener struct {
	*net.UnixListener
	path   string
	file   fs.FileInfo
	remove sync.Once
}

// Close removes the file first: as long as it is there somebody listens, and
// no other process puts its own in that place.
func (l *unixListener) Close() error {
	l.remove.Do(func() { removeSame(l.path, l.file) })
	return l.UnixListener.Close()
}

func removeSame(path string, file fs.FileInfo) {
	if now, err := os.Lstat(path); err == nil && os.SameFile(file, now) {
		os.Remove(path)
	}
}

// removeStale removes a socket file that nobody listens on. Anything else at
// that path is left alone.
func removeStale(path string) error {
	st, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if st.Mode()&fs.ModeSocket == 0 {
		return fmt.Errorf("%s exists and is no socket; choose another path or remove it", path)
	}
	c, err := net.Dial("unix", path)
	if err == nil {
		c.Close()
		return fmt.Errorf("%s: another process listens there: %w", path, syscall.EADDRINUSE)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return err
	}
	return os.Remove(path)
}

// ownership is what the file of a unix socket is given. -1 leaves an id as it is.
type ownership struct {
	mode     fs.FileMode
	uid, gid int
}

func parseOwnership(mode fs.FileMode, owner string) (ownership, error) {
	o := ownership{mode: mode}
	if mode == 0 {
		o.mode = 0o600
	}
	var err error
	o.uid, o.gid, err = lookupOwner(owner)
	return o, err
}

// lookupOwner reads "user", "user:group" or ":group", by name or number. -1
// leaves an id as it is.
func lookupOwner(s string) (uid, gid int, err error) {
	userName, groupName, _ := strings.Cut(s, ":")
	uid, err = lookupID(userName, func(name string) (string, error) {
		u, err := user.Lookup(name)
		if err != nil {
			return "", err
		}
		return u.Uid, nil
	})
	if err != nil {
		return 0, 0, fmt.Errorf("owner %q: %w", s, err)
	}
	gid, err = lookupID(groupName, func(name string) (string, error) {
		g, err := user.LookupGroup(name)
		if err != nil {
			return "", err
		}
		return g.Gid, nil
	})
	if err != nil {
		return 0, 0, fmt.Errorf("owner %q: %w", s, err)
	}
	return uid, gid, nil
}

func lookupID(name string, byName func(string) (string, error)) (int, error) {
	if name == "" {
		return -1, nil
	}
	id := name
	if strings.Trim(name, "0123456789") != "" {
		var err error
		if id, err = byName(name); err != nil {
			return 0, err
		}
	}
	n, err := strconv.ParseUint(id, 10, 31)
	return int(n), err
}
