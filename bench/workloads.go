package main

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// cell is one measurement: one row, one pair, one round. All its connections end with its context.
type cell struct {
	ctx     context.Context
	abort   context.CancelCauseFunc
	entry   string
	proxies []*process
	set     settings
	far     bool
}

const (
	echoSize    = 128
	connectSize = 64
	atATime     = 16 // connections being made at a time
)

// inParallel runs f n times at once. The first error ends the cell, and is what it returns.
func (c *cell) inParallel(n int, f func(i int) error) error {
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			if err := f(i); err != nil {
				c.abort(err)
			}
		})
	}
	wg.Wait()
	return context.Cause(c.ctx)
}

// dialAll opens n connections, some at a time, and makes them echoes of messages of this size if it isn't 0.
func (c *cell) dialAll(n, size int) ([]*loadConn, error) {
	conns := make([]*loadConn, n)
	var next atomic.Int64
	err := c.inParallel(min(n, atATime), func(int) error {
		for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
			conn, err := dial(c.ctx, c.entry, i)
			if err != nil {
				return err
			}
			conns[i] = conn
			if size > 0 {
				if err := conn.startEcho(size); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		closeAll(conns)
		return nil, err
	}
	return conns, nil
}

func closeAll(conns []*loadConn) {
	for _, conn := range conns {
		if conn != nil {
			_ = conn.Close() // all bytes that matter have arrived
		}
	}
}

// transferRow sends or fetches chunks on some connections at once.
func transferRow(id string, n int, up bool) func(*cell) (values, error) {
	return func(c *cell) (values, error) {
		conns, err := c.dialAll(n, 0)
		if err != nil {
			return nil, err
		}
		defer closeAll(conns)
		warm, phase := c.set.warm, c.set.phase
		if c.far {
			warm, phase = c.set.farWarm, c.set.farPhase
		}
		if _, err := c.transferAll(conns, up, warm); err != nil {
			return nil, err
		}
		before, err := usageOf(c.proxies)
		if err != nil {
			return nil, err
		}
		t, err := c.transferAll(conns, up, phase)
		if err != nil {
			return nil, err
		}
		after, err := usageOf(c.proxies)
		if err != nil {
			return nil, err
		}
		for _, conn := range conns {
			if err := conn.finish(); err != nil {
				return nil, err
			}
		}
		v := values{id + ".rate": t.rate()}
		if len(c.proxies) > 0 {
			v[id+".cpu"] = (after.cpu - before.cpu).Seconds() / (float64(t.bytes) / 1e9)
			v[id+".peak"] = float64(after.peak) / (1 << 20)
		}
		return v, nil
	}
}

// transferAll runs one transfer on each connection.
func (c *cell) transferAll(conns []*loadConn, up bool, d time.Duration) (transfer, error) {
	var total atomic.Int64
	start := time.Now()
	err := c.inParallel(len(conns), func(i int) error {
		one := conns[i].download
		if up {
			one = conns[i].upload
		}
		t, err := one(d)
		total.Add(t.bytes)
		return err
	})
	return transfer{total.Load(), time.Since(start)}, err
}

// echoFor does round trips for d and returns how long each took.
func echoFor(conn *loadConn, d time.Duration) ([]time.Duration, error) {
	took := make([]time.Duration, 0, 1<<16)
	for start, last := time.Now(), time.Now(); ; {
		if err := conn.echo(); err != nil {
			return nil, err
		}
		now := time.Now()
		took = append(took, now.Sub(last))
		if last = now; now.Sub(start) >= d {
			return took, nil
		}
	}
}

// echoAll does round trips on all connections at once and returns how long each took, sorted.
func (c *cell) echoAll(conns []*loadConn, d time.Duration) ([]time.Duration, error) {
	took := make([][]time.Duration, len(conns))
	err := c.inParallel(len(conns), func(i int) (err error) {
		took[i], err = echoFor(conns[i], d)
		return err
	})
	all := slices.Concat(took...)
	slices.Sort(all)
	return all, err
}

// echoRow does short round trips on some connections at once.
func echoRow(id string, n int) func(*cell) (values, error) {
	return func(c *cell) (values, error) {
		conns, err := c.dialAll(n, echoSize)
		if err != nil {
			return nil, err
		}
		defer closeAll(conns)
		if _, err := c.echoAll(conns, c.set.warm); err != nil {
			return nil, err
		}
		start := time.Now()
		took, err := c.echoAll(conns, c.set.phase)
		if err != nil {
			return nil, err
		}
		return values{
			id + ".ops": float64(len(took)) / time.Since(start).Seconds(),
			id + ".p50": micros(percentile(took, 50)),
			id + ".p99": micros(percentile(took, 99)),
		}, nil
	}
}

// percentile of sorted times.
func percentile(sorted []time.Duration, p int) time.Duration {
	return sorted[min(len(sorted)*p/100, len(sorted)-1)]
}

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

// connectRow makes connections that carry 64 bytes there and back.
func connectRow(c *cell) (values, error) {
	var next atomic.Int64
	connectFor := func(d time.Duration) (float64, error) {
		var done atomic.Int64
		start := time.Now()
		err := c.inParallel(atATime, func(int) error {
			for time.Since(start) < d {
				if err := c.connectOnce(int(next.Add(1))); err != nil {
					return err
				}
				done.Add(1)
			}
			return nil
		})
		return float64(done.Load()) / time.Since(start).Seconds(), err
	}
	if _, err := connectFor(c.set.warm); err != nil {
		return nil, err
	}
	rate, err := connectFor(c.set.phase)
	return values{"connect.ops": rate}, err
}

func (c *cell) connectOnce(n int) error {
	conn, err := dial(c.ctx, c.entry, n)
	if err != nil {
		return err
	}
	if err := conn.startEcho(connectSize - headerSize); err != nil {
		_ = conn.Close() // the error that counts is err
		return err
	}
	return conn.Close()
}

// mixedRow compares round trips alone with the same beside an upload.
func mixedRow(c *cell) (values, error) {
	echoes, err := c.dialAll(1, echoSize)
	if err != nil {
		return nil, err
	}
	defer closeAll(echoes)
	uploads, err := c.dialAll(1, 0)
	if err != nil {
		return nil, err
	}
	defer closeAll(uploads)
	if _, err := c.echoAll(echoes, c.set.warm); err != nil {
		return nil, err
	}
	alone, err := c.echoAll(echoes, c.set.phase)
	if err != nil {
		return nil, err
	}
	var beside []time.Duration
	var bulk transfer
	err = c.inParallel(2, func(i int) (err error) {
		if i == 0 {
			// The upload is under way before and after what is measured.
			bulk, err = uploads[0].upload(2*c.set.warm + c.set.phase)
			return err
		}
		if _, err := echoFor(echoes[0], c.set.warm); err != nil {
			return err
		}
		beside, err = echoFor(echoes[0], c.set.phase)
		slices.Sort(beside)
		return err
	})
	if err != nil {
		return nil, err
	}
	a, b := percentile(alone, 99), percentile(beside, 99)
	return values{
		"mixed.alone": micros(a), "mixed.beside": micros(b), "mixed.times": float64(b) / float64(a),
		"mixed.rate": bulk.rate(),
	}, uploads[0].finish()
}

// heldRow opens n connections, lets them be idle, looks at the proxies' memory,
// and checks that every so many of them still work.
func heldRow(id string, n, every int) func(*cell) (values, error) {
	return func(c *cell) (values, error) {
		before, err := c.settledMemory()
		if err != nil {
			return nil, err
		}
		conns, err := c.dialAll(n, connectSize)
		if err != nil {
			return nil, err
		}
		defer closeAll(conns)
		after, err := c.settledMemory()
		if err != nil {
			return nil, err
		}
		for i := 0; i < n; i += every {
			if err := conns[i].echo(); err != nil {
				return nil, err
			}
		}
		return values{
			id + ".each":  float64(after-before) / float64(n) / (1 << 10),
			id + ".all":   float64(after) / (1 << 20),
			id + ".count": float64(len(conns)),
		}, nil
	}
}

// settledMemory is the proxies' resident memory once it has stayed the same, within 1 %, for 5 s, or when
// the time for that is over.
func (c *cell) settledMemory() (int64, error) {
	var last int64
	start, steady := time.Now(), time.Now()
	for {
		now, err := usageOf(c.proxies)
		if err != nil {
			return 0, err
		}
		if diff := now.rss - last; diff > last/100 || diff < -last/100 {
			last, steady = now.rss, time.Now()
		}
		if time.Since(start) >= c.set.settle || time.Since(steady) >= 5*time.Second {
			return now.rss, nil
		}
		select {
		case <-c.ctx.Done():
			return 0, context.Cause(c.ctx)
		case <-time.After(100 * time.Millisecond):
		}
	}
}
