package proxy

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// Go's resolver notices a new hosts file after up to 5 seconds: until then
// its answers are none. A file that is put in the old one's place counts, too.
func TestHostsFileSettles(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		r := newStrictResolver()
		r.hosts = filepath.Join(dir, "hosts")
		write := func(path, text string) {
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		changes := []func(){
			func() { write(r.hosts, "10.0.0.5 db.internal\n") }, // there was none
			func() { write(r.hosts, "10.0.0.5 db.internal db\n") },
			func() {
				write(r.hosts+".new", "10.0.0.6 db.internal db\n") // of the same size
				if err := os.Rename(r.hosts+".new", r.hosts); err != nil {
					t.Fatal(err)
				}
			},
			func() { os.Remove(r.hosts) },
		}
		for i, change := range changes {
			if !r.settled() {
				t.Errorf("unsettled before change %d", i)
			}
			change()
			if r.settled() {
				t.Errorf("settled at once after change %d", i)
			}
			time.Sleep(hostsAge)
			if r.settled() {
				t.Errorf("settled too early after change %d", i)
			}
			time.Sleep(time.Second)
		}
	})
}

// An answer that may be older than the hosts file is none, also where the file
// changed while it was on its way.
func TestHostsFileChangesDuringALookup(t *testing.T) {
	server := newDNSServer(t)
	server.set(func(s *dnsServer) { s.addrs["db.internal."] = "10.0.0.5" })
	r := newStrictResolver()
	r.hosts = filepath.Join(t.TempDir(), "hosts")
	changes := false
	r.net.PreferGo = true
	r.net.Dial = func(ctx context.Context, _, _ string) (net.Conn, error) {
		if changes {
			if err := os.WriteFile(r.hosts, []byte("10.0.0.6 db.internal\n"), 0o600); err != nil {
				t.Error(err)
			}
		}
		return new(net.Dialer).DialContext(ctx, "udp", server.addr)
	}
	want := []netip.Addr{netip.MustParseAddr("10.0.0.5")}
	if addrs, err := r.lookup(t.Context(), "ip4", "db.internal"); err != nil || !slices.Equal(addrs, want) {
		t.Fatalf("without a change: %v, %v", addrs, err)
	}
	changes = true
	if addrs, err := r.lookup(t.Context(), "ip4", "db.internal"); !errors.Is(err, errHostsChanged) || addrs != nil {
		t.Errorf("with a change: %v, %v", addrs, err)
	}
}
