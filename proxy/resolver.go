package proxy

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"
)

// resolverAge is how long Go's resolver goes by what it has read of a file
// before it looks whether that has changed.
const resolverAge = 5 * time.Second

// resolverFiles say what the system's resolver answers. Go's own resolver keeps
// each of them.
var resolverFiles = []string{"/etc/hosts", "/etc/resolv.conf", "/etc/nsswitch.conf"}

// A strictResolver is the system's resolver for questions whose answer decides
// what may leave in plaintext: it gives no part of an answer where another part
// failed, none where an earlier search domain's lookup failed, and none that
// may be older than one of the resolver's files: apps that ask by a new file
// may get another address.
type strictResolver struct {
	net net.Resolver

	mu    sync.Mutex
	files []*resolverFile
}

// newStrictResolver looks at the files before anything is looked up.
func newStrictResolver(files ...string) *strictResolver {
	r := &strictResolver{net: net.Resolver{StrictErrors: true}}
	for _, path := range files {
		now := stat(path)
		r.files = append(r.files, &resolverFile{path: path, known: now, seen: now})
	}
	return r
}

func (r *strictResolver) lookup(ctx context.Context, network, host string) ([]netip.Addr, error) {
	if err := r.settled(); err != nil {
		return nil, err
	}
	addrs, err := r.net.LookupNetIP(ctx, network, host)
	if changed := r.settled(); changed != nil { // while it was read
		return nil, changed
	}
	return addrs, err
}

// settled says which file the resolver may not know yet.
func (r *strictResolver) settled() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, f := range r.files {
		if err := f.settled(); err != nil {
			return err
		}
	}
	return nil
}

// A resolverFile is a file of the resolver's. There may be none.
type resolverFile struct {
	path    string
	known   os.FileInfo // what Go's resolver has read; nil: there was none
	seen    os.FileInfo // at the last look
	changed time.Time   // when a change was noticed
}

func (f *resolverFile) settled() error {
	now := stat(f.path)
	if !sameFile(f.seen, now) {
		f.seen, f.changed = now, time.Now()
	}
	switch {
	case sameFile(f.known, now) && time.Since(f.changed) > resolverAge:
		return nil
	case f.known != nil && now != nil && !sameFile(f.known, now) && f.known.ModTime().Equal(now.ModTime()):
		// Go goes by a file's time, and would not notice this one, ever.
		return fmt.Errorf("%s was replaced by a file of the same time; touch it", f.path)
	case time.Since(f.changed) > resolverAge:
		f.known = now
		return nil
	}
	return fmt.Errorf("%s changed a moment ago; ask again in 5 seconds", f.path)
}

// stat returns nil where there is no file.
func stat(path string) os.FileInfo {
	info, err := os.Stat(path)
	if err != nil {
		return nil
	}
	return info
}

func sameFile(a, b os.FileInfo) bool {
	if a == nil || b == nil {
		return a == nil && b == nil
	}
	return os.SameFile(a, b) && a.ModTime().Equal(b.ModTime()) && a.Size() == b.Size()
}
