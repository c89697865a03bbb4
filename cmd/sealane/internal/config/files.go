package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"syscall"

	"github.com/sealane/sealane/session"
)

// maxSecret bounds a key or password file.
const maxSecret = 64 << 10

// access says what the permissions of a file must keep out.
type access int

const (
	secret access = iota // others must not own, read or write it
	public               // others must not own or write it
	anyone               // nothing
)

// readFile reads a regular file of at most limit bytes whose permissions are
// safe. They are checked on the opened file, so that it cannot be swapped in
// between.
func readFile(path string, limit int64, want access) ([]byte, error) {
	// Without O_NONBLOCK, opening a FIFO would wait for its other end.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, fileError(path, err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fileError(path, err)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file; name one", path)
	}
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		groups, err := os.Getgroups()
		if err != nil {
			return nil, fmt.Errorf("look up this process's groups: %w", err)
		}
		if err := checkOwner(path, int(stat.Uid), os.Geteuid(), want); err != nil {
			return nil, err
		}
		mayReadGroup := stat.Uid == 0 && (int(stat.Gid) == os.Getegid() || slices.Contains(groups, int(stat.Gid)))
		if err := checkMode(path, info.Mode(), want, mayReadGroup); err != nil {
			return nil, err
		}
	}
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, fileError(path, err)
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("%s is larger than %d bytes; is it the right file?", path, limit)
	}
	return b, nil
}

// checkOwner refuses a file that another user, root aside, could change at
// will, whatever its mode: they would choose this node's key, or its peers.
func checkOwner(path string, owner, self int, want access) error {
	if want == anyone || owner == 0 || owner == self {
		return nil
	}
	return fmt.Errorf("%s belongs to another user (number %d), who can change it; run sealane as that user, or: chown %d %s", path, owner, self, path)
}

// checkMode applies the rule for key files: others may not read, group and
// others may not write, and group may read only where root owns the file and
// this process is in its group, as with a Kubernetes Secret and fsGroup.
func checkMode(path string, mode fs.FileMode, want access, mayReadGroup bool) error {
	perm := mode.Perm()
	switch {
	case want == anyone:
		return nil
	case perm&0o022 != 0 && want == public:
		return fmt.Errorf("%s can be written by others than its owner (mode %04o); run: chmod go-w %s", path, perm, path)
	case want == public:
		return nil
	case perm&0o022 != 0:
		return fmt.Errorf("%s can be written by others than its owner (mode %04o); run: chmod 600 %s", path, perm, path)
	case perm&0o004 != 0:
		return fmt.Errorf("%s can be read by everyone (mode %04o); run: chmod 600 %s", path, perm, path)
	case perm&0o040 != 0 && !mayReadGroup:
		return fmt.Errorf("%s can be read by its group (mode %04o), which is allowed only if root owns it and this process is in that group; run: chmod 600 %s",
			path, perm, path)
	}
	return nil
}

// fileError is the error of a file operation in words: which file, why, and
// what may help.
func fileError(path string, err error) error {
	advice := ""
	switch {
	case errors.Is(err, fs.ErrNotExist):
		advice = "; relative paths start at the folder of the config file"
	case errors.Is(err, fs.ErrPermission):
		advice = "; let the user that sealane runs as read it"
	}
	var pathError *fs.PathError
	if errors.As(err, &pathError) {
		err = pathError.Err
	}
	return fmt.Errorf("%s: %w%s", path, err, advice)
}

// ReadKey reads a node key under the rules for key files.
func ReadKey(path string) (*session.PrivateKey, error) {
	b, err := readFile(path, maxSecret, secret)
	if err != nil {
		return nil, err
	}
	key, err := session.ParsePrivateKey(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return key, nil
}
