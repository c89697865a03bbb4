package proxy

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// unixBacklog is as much as the system's net.core.somaxconn usually allows.
const unixBacklog = 4096

// lockWait is how long another process may take to bind its socket. Everybody
// who can read the folder can hold its lock, and must not keep sealane from
// starting: after that it goes on without.
const lockWait = 2 * time.Second

// lockFolder waits until no other sealane binds or removes a socket in a
// folder. The function that it returns ends that for this one.
func lockFolder(dir string) (unlock func()) {
	f, err := os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return func() {} // binding tells what is wrong with it
	}
	for end := time.Now().Add(lockWait); ; time.Sleep(5 * time.Millisecond) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) || time.Now().After(end) {
			return func() { f.Close() }
		}
	}
}

// bindUnix makes the socket and its file. It listens only once the file has
// its owner and mode; until then connections are refused.
func bindUnix(path string, o ownership) (_ *net.UnixListener, file fs.FileInfo, err error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socket", err)
	}
	socket := os.NewFile(uintptr(fd), path)
	defer socket.Close() // the listener has a duplicate
	// The mode that the file has from its first moment on.
	if err := unix.Fchmod(fd, 0o600); err != nil {
		return nil, nil, os.NewSyscallError("fchmod", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		return nil, nil, os.NewSyscallError("bind", err)
	}
	defer func() {
		if err != nil && file != nil {
			removeSame(path, file)
		}
	}()
	if file, err = ownUnix(path, nil, o); err != nil {
		return nil, file, err
	}
	if err := unix.Listen(fd, unixBacklog); err != nil {
		return nil, file, os.NewSyscallError("listen", err)
	}
	l, err := net.FileListener(socket)
	if err != nil {
		return nil, file, err
	}
	return l.(*net.UnixListener), file, nil
}

// ownUnix gives the file of a socket its owner and mode, and returns which file
// that is. In a folder where others may write, something else may be there by
// now, such as a symbolic link to what they want to have. So the file is
// opened first, without following links, and must be want or, if that is nil,
// a socket that this user has just made.
func ownUnix(path string, want fs.FileInfo, o ownership) (fs.FileInfo, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, os.NewSyscallError("fstat", err)
	}
	made := st.Mode&unix.S_IFMT == unix.S_IFSOCK && int(st.Uid) == os.Geteuid() && st.Nlink == 1
	if want == nil && !made || want != nil && !os.SameFile(want, info) {
		return nil, fmt.Errorf("%s: another file has taken the socket's place; use a folder where nobody else may write", path)
	}
	if o.uid >= 0 || o.gid >= 0 {
		if err := unix.Fchownat(fd, "", o.uid, o.gid, unix.AT_EMPTY_PATH); err != nil {
			return info, &fs.PathError{Op: "chown", Path: path, Err: err}
		}
	}
	// This leads to the open file, whatever is at path. Without /proc there is
	// the system call of Linux 6.6 for it.
	err = unix.Chmod(filepath.Join("/proc/self/fd", strconv.Itoa(fd)), uint32(o.mode))
	if errors.Is(err, unix.ENOENT) {
		err = unix.Fchmodat(fd, "", uint32(o.mode), unix.AT_EMPTY_PATH)
	}
	if err != nil {
		return info, &fs.PathError{Op: "chmod", Path: path, Err: err}
	}
	return info, nil
}
