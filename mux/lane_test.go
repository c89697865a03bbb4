package mux

import (
	"context"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"
)

// A strait conn takes 4 MB a second, and says nothing of what it has taken.
type strait struct{ net.Conn }

func (c strait) Write(p []byte) (total int, err error) {
	for len(p) > 0 {
		n := min(len(p), 8<<10)
		time.Sleep(2 * time.Millisecond)
		if n, err = c.Conn.Write(p[:n]); err != nil {
			return total + n, err
		}
		total += n
		p = p[n:]
	}
	return total, nil
}

// TestSmallThingsDoNotWaitForBulk: beside many uploads on a slow link, a new
// stream and a round trip wait for a few hundredths of a second's worth of what
// the others send, and for the turn of none.
func TestSmallThingsDoNotWaitForBulk(t *testing.T) {
	t.Parallel()
	const uploads = 40
	var arrived atomic.Int64
	a, _ := pair(t, func(in *Inbound) {
		s, err := in.Accept()
		if err != nil {
			return
		}
		kind := make([]byte, 1)
		if _, err := io.ReadFull(s, kind); err != nil {
			return
		}
		if kind[0] == 'e' {
			io.Copy(s, s)
			return
		}
		for buf := make([]byte, 64<<10); ; {
			n, err := s.Read(buf)
			arrived.Add(int64(n))
			if err != nil {
				return
			}
		}
	}, func(c *Config) {
		c.Dialer = func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := new(net.Dialer).DialContext(ctx, network, address)
			return strait{conn}, err
		}
	}, nil)
	talker := func() *Stream {
		s := open(t, a, "b")
		s.Write([]byte{'e'})
		return s
	}
	trip := func(s *Stream) {
		t.Helper()
		s.Write([]byte("ping"))
		if _, err := io.ReadFull(s, make([]byte, 4)); err != nil {
			t.Fatal(err)
		}
	}
	old := talker()
	for range uploads {
		s := open(t, a, "b")
		s.Write([]byte{'u'})
		go s.ReadFrom(endless{})
	}
	eventually(t, "the uploads fill the link", func() bool { return arrived.Load() > 2<<20 })
	least := int64(1 << 62) // of several, for this machine may be busy
	for range 5 {
		before := arrived.Load()
		trip(old)
		trip(talker())
		least = min(least, arrived.Load()-before)
	}
	// Three round trips of some 50 kB each. In turn it would be 40 frames of 32 kB.
	if least > 600<<10 {
		t.Errorf("three round trips took as long as %d bytes of bulk", least)
	}
}
