// Package dial connects to one of several addresses, and waits between attempts.
package dial

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"time"
)

// HeadStart is how long an address has before the next one is tried beside it
// (RFC 8305).
const HeadStart = 250 * time.Millisecond

// First returns the first connection to one of the addresses, which are tried
// in order: the next one when the one before has failed or had its head start.
// A connection that comes later is closed. It calls failed for each that could
// not be had, in turn.
func First(ctx context.Context, addrs []netip.AddrPort, headStart time.Duration,
	connect func(context.Context, netip.AddrPort) (net.Conn, error), failed func(netip.AddrPort, error),
) (net.Conn, netip.AddrPort, error) {
	if len(addrs) == 1 {
		c, err := connect(ctx, addrs[0])
		if err != nil {
			failed(addrs[0], err)
		}
		return c, addrs[0], err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	results := make(chan result)
	var failures []error
	next := time.NewTimer(0)
	defer next.Stop()
	for started := 0; len(failures) < len(addrs); {
		select {
		case <-next.C:
			if started < len(addrs) {
				go attempt(ctx, addrs[started], connect, results)
				started++
				next.Reset(headStart)
			}
		case r := <-results:
			if r.err == nil {
				return r.conn, r.addr, nil
			}
			failures = append(failures, r.err)
			failed(r.addr, r.err)
			next.Reset(0)
		case <-ctx.Done():
			return nil, netip.AddrPort{}, fmt.Errorf("connecting: %w", ctx.Err())
		}
	}
	if len(failures) == 0 {
		return nil, netip.AddrPort{}, errNowhere
	}
	return nil, netip.AddrPort{}, errors.Join(failures...)
}

var errNowhere = errors.New("no address to connect to")

type result struct {
	conn net.Conn
	addr netip.AddrPort
	err  error
}

func attempt(ctx context.Context, a netip.AddrPort, connect func(context.Context, netip.AddrPort) (net.Conn, error), results chan<- result) {
	c, err := connect(ctx, a)
	select {
	case results <- result{c, a, err}:
	case <-ctx.Done():
		if err == nil {
			c.Close()
		}
	}
}

// A Backoff is the wait before the next attempt: Min at first, doubled until
// it is Max.
type Backoff struct {
	Min, Max time.Duration
	next     time.Duration
}

// Reset starts over.
func (b *Backoff) Reset() { b.next = 0 }

// Next is the whole of the next wait, 0 if that is the first.
func (b *Backoff) Next() time.Duration { return b.next }

// Wait returns the time to wait: half of it fixed, half at random.
func (b *Backoff) Wait() time.Duration {
	d := min(max(b.next, b.Min), b.Max)
	b.next = min(2*d, b.Max)
	return d/2 + rand.N(d/2+1)
}
