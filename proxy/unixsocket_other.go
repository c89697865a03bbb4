//go:build !linux

package proxy

import (
	"io/fs"
	"net"
	"os"
)

// lockFolder works on Linux only.
func lockFolder(string) (unlock func()) { return func() {} }

func bindUnix(path string, o ownership) (*net.UnixListener, fs.FileInfo, error) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: path})
	if err != nil {
		return nil, nil, err
	}
	file, err := ownUnix(path, nil, o)
	if err != nil {
		l.Close()
		return nil, nil, err
	}
	return l, file, nil
}

func ownUnix(path string, _ fs.FileInfo, o ownership) (fs.FileInfo, error) {
	if o.uid >= 0 || o.gid >= 0 {
		if err := os.Lchown(path, o.uid, o.gid); err != nil {
			return nil, err
		}
	}
	if err := os.Chmod(path, o.mode); err != nil {
		return nil, err
	}
	return os.Lstat(path)
}
