package proxy

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"
)

// hostsAge is how long Go's resolver goes by what it has read of the hosts
// file before it looks whether that has changed.
const hostsAge = 5 * time.Second

var errHostsChanged = errors.New("the hosts file changed a moment ago; ask again in 5 seconds")

// A strictResolver is the system's resolver for questions whose answer decides
// what may leave in plaintext: it gives no part of an answer where another part
// failed, none where an earlier search domain's lookup failed, and none that
// may be older than the hosts file.
type strictResolver struct {
	net   net.Resolver
	hosts string // the file's path

	mu      sync.Mutex
	looked  bool
	seen    os.FileInfo // nil: there was none
	changed time.Time   // when a change was noticed
}

func newStrictResolver() *strictResolver {
	return &strictResolver{net: net.Resolver{StrictErrors: true}, hosts: "/etc/hosts"}
}

func (r *strictResolver) lookup(ctx context.Context, network, host string) ([]netip.Addr, error) {
	if !r.settled() {
		return nil, errHostsChanged
	}
	addrs, err := r.net.LookupNetIP(ctx, network, host)
	if !r.settled() { // while it was read
		return nil, errHostsChanged
	}
	return addrs, err
}

// settled reports whether the resolver knows the present hosts file. There
// may be none.
func (r *strictResolver) settled() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	now, err := os.Stat(r.hosts)
	if err != nil {
		now = nil
	}
	if r.looked && !sameFile(r.seen, now) {
		r.changed = time.Now()
	}
	r.looked, r.seen = true, now
	return time.Since(r.changed) > hostsAge
}

func sameFile(a, b os.FileInfo) bool {
	if a == nil || b == nil {
		return a == nil && b == nil
	}
	return os.SameFile(a, b) && a.ModTime().Equal(b.ModTime()) && a.Size() == b.Size()
}
