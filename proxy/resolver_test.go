package proxy

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// Go's resolver notices a new file after up to 5 seconds: until then its
// answers are none. A file that is put in the old one's place counts, too.
func TestResolverFileSettles(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		hosts, config := filepath.Join(dir, "hosts"), filepath.Join(dir, "resolv.conf")
		r := newStrictResolver(hosts, config)
		changes := []func(){
			func() { write(t, hosts, "10.0.0.5 db.internal\n") }, // there was none
			func() { write(t, hosts, "10.0.0.5 db.internal db\n") },
			func() { replace(t, hosts, "10.0.0.6 db.internal db\n") }, // of the same size
			func() { os.Remove(hosts) },
			func() { write(t, config, "nameserver 10.0.0.1\n") },
			func() { replace(t, config, "nameserver 10.0.0.2\n") },
		}
		for i, change := range changes {
			if err := r.settled(); err != nil {
				t.Errorf("before change %d: %v", i, err)
			}
			change()
			if r.settled() == nil {
				t.Errorf("settled at once after change %d", i)
			}
			time.Sleep(resolverAge)
			if r.settled() == nil {
				t.Errorf("settled too early after change %d", i)
			}
			time.Sleep(time.Second)
		}
	})
}

// What changed before the first question has changed all the same: something
// else may have made Go's resolver read the old file.
func TestResolverFileChangedEarly(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	r := newStrictResolver(path)
	write(t, path, "nameserver 10.0.0.1\n")
	if r.settled() == nil {
		t.Error("settled at the first question")
	}
}

// Go's resolver never notices a file that has the time of the one that it has
// read: systems that are built to be the same each time have such files.
func TestResolverFileOfSameTime(t *testing.T) {
	path := filepath.Join(t.TempDir(), "hosts")
	build := func(text string) {
		replace(t, path, text)
		if err := os.Chtimes(path, time.Time{}, time.Unix(1, 0)); err != nil {
			t.Fatal(err)
		}
	}
	build("10.0.0.5 db.internal\n")
	if err := os.Link(path, path+".old"); err != nil { // or the next may get its inode
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		r := newStrictResolver(path)
		time.Sleep(time.Minute)
		if err := r.settled(); err != nil {
			t.Fatal(err)
		}
		replace(t, path, "10.0.0.7 db.internal\n") // for less than it takes to be read
		if r.settled() == nil {
			t.Error("settled at once")
		}
		build("10.0.0.6 db.internal\n")
		r.settled()
		time.Sleep(time.Hour)
		if r.settled() == nil {
			t.Error("settled, and the resolver still goes by the old file")
		}
		if err := os.Chtimes(path, time.Time{}, time.Unix(2, 0)); err != nil {
			t.Fatal(err)
		}
		r.settled()
		time.Sleep(resolverAge + time.Second)
		if err := r.settled(); err != nil {
			t.Error(err)
		}
	})
}

// Production's resolver watches what Go's own keeps.
func TestResolverFiles(t *testing.T) {
	p, err := newProxy(Config{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	var watched []string
	for _, f := range p.resolver.files {
		watched = append(watched, f.path)
	}
	if want := []string{"/etc/hosts", "/etc/resolv.conf", "/etc/nsswitch.conf"}; !slices.Equal(watched, want) {
		t.Errorf("%v are watched, not %v", watched, want)
	}
}

// write makes a file of the test's time, which may not be the system's.
func write(t *testing.T, path, text string) {
	t.Helper()
	if err := errors.Join(os.WriteFile(path, []byte(text), 0o600), os.Chtimes(path, time.Time{}, time.Now())); err != nil {
		t.Fatal(err)
	}
}

func replace(t *testing.T, path, text string) {
	t.Helper()
	write(t, path+".new", text)
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// An answer that may be older than the hosts file is none, also where the file
// changed while it was on its way.
func TestHostsFileChangesDuringALookup(t *testing.T) {
	server := newDNSServer(t)
	server.set(func(s *dnsServer) { s.addrs["db.internal."] = "10.0.0.5" })
	hosts := filepath.Join(t.TempDir(), "hosts")
	r := newStrictResolver(hosts)
	changes := false
	r.net.PreferGo = true
	r.net.Dial = func(ctx context.Context, _, _ string) (net.Conn, error) {
		if changes {
			if err := os.WriteFile(hosts, []byte("10.0.0.6 db.internal\n"), 0o600); err != nil {
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
	if addrs, err := r.lookup(t.Context(), "ip4", "db.internal"); err == nil || !strings.Contains(err.Error(), "changed a moment ago") || addrs != nil {
		t.Errorf("with a change: %v, %v", addrs, err)
	}
}
