package dial

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"
)

var two = []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:1"), netip.MustParseAddrPort("192.0.2.2:1")}

// A closing conn tells when it is closed.
type closing struct {
	net.Conn
	closed chan struct{}
}

func (c *closing) Close() error {
	close(c.closed)
	return nil
}

// TestFirst: the second address has its turn when the first one has failed or
// had its head start, and the connection that loses is closed.
func TestFirst(t *testing.T) {
	for name, c := range map[string]struct {
		first error
		takes time.Duration
	}{"refused": {errors.New("refused"), 0}, "late": {nil, HeadStart}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				late := &closing{closed: make(chan struct{})}
				var failures []netip.AddrPort
				begun := time.Now()
				_, addr, err := First(t.Context(), two, HeadStart, func(ctx context.Context, a netip.AddrPort) (net.Conn, error) {
					if a != two[0] {
						return &closing{}, nil
					}
					if c.first == nil {
						<-ctx.Done() // and answers all the same
						return late, nil
					}
					return nil, c.first
				}, func(a netip.AddrPort, _ error) { failures = append(failures, a) })
				if err != nil || addr != two[1] || time.Since(begun) != c.takes {
					t.Errorf("%v after %v: %v", addr, time.Since(begun), err)
				}
				if c.first != nil && (len(failures) != 1 || failures[0] != two[0]) {
					t.Errorf("failed: %v", failures)
				}
				if c.first == nil {
					<-late.closed
				}
			})
		})
	}
}

// TestNoneOfThem: all failures are told, and a wait for them ends with its
// context.
func TestNoneOfThem(t *testing.T) {
	for _, addrs := range [][]netip.AddrPort{two, two[:1]} {
		refused := errors.New("refused")
		failures := 0
		_, _, err := First(t.Context(), addrs, time.Hour, func(context.Context, netip.AddrPort) (net.Conn, error) {
			return nil, refused
		}, func(netip.AddrPort, error) { failures++ })
		if !errors.Is(err, refused) || failures != len(addrs) {
			t.Errorf("%d failures, %v", failures, err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		_, _, err = First(ctx, addrs, 0, func(ctx context.Context, _ netip.AddrPort) (net.Conn, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}, func(netip.AddrPort, error) {})
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
	}
}

// TestBackoff: a peer that is not there is tried again, less and less often.
func TestBackoff(t *testing.T) {
	b := Backoff{Min: 250 * time.Millisecond, Max: 5 * time.Second}
	full := b.Min
	for i := range 10 {
		if next := b.Next(); i > 0 && next != full {
			t.Fatalf("wait %d is told to be %v, want %v", i, next, full)
		}
		d := b.Wait()
		if d < full/2 || d > full {
			t.Fatalf("wait %d is %v, want %v to %v", i, d, full/2, full)
		}
		full = min(2*full, b.Max)
	}
	b.Reset()
	if d := b.Wait(); d > b.Min {
		t.Fatalf("wait after a reset is %v", d)
	}
}

// TestNowhere: no address is no connection.
func TestNowhere(t *testing.T) {
	if c, _, err := First(t.Context(), nil, HeadStart, nil, nil); c != nil || err == nil {
		t.Fatal(c, err)
	}
}
