package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"time"
)

// bench is one run of the whole benchmark.
type bench struct {
	self     string // this program, for its hidden subcommands
	dir      string
	set      settings
	rows     []row
	pairs    []pairSpec
	rounds   int
	limit    int // descriptors of a process
	progress io.Writer
}

// sample is what one cell gave: values, or why there are none.
type sample struct {
	values  values
	err     error
	skipped string
	others  float64 // part of the machine's CPU time that unrelated processes took meanwhile
}

// key names the cells of a row and a pair, one for each round.
type key struct{ row, pair string }

// run measures every row with every pair, round by round, so that what is compared is measured close together.
// A pair that fails at a row isn't tried there again.
func (b *bench) run(ctx context.Context) map[key][]sample {
	samples := make(map[key][]sample)
	for round := range b.rounds {
		for _, r := range b.rows {
			if r.rounds > 0 && round >= r.rounds {
				continue
			}
			for _, p := range b.pairs {
				if !r.suits(p) {
					continue
				}
				k := key{r.id, p.Name}
				if n := len(samples[k]); n > 0 && samples[k][n-1].values == nil {
					continue
				}
				if ctx.Err() != nil {
					return samples
				}
				samples[k] = append(samples[k], b.sample(ctx, round, r, p))
			}
		}
	}
	return samples
}

func (b *bench) sample(ctx context.Context, round int, r row, p pairSpec) sample {
	if why := r.tooBig(p, b.limit); why != "" {
		return sample{skipped: why}
	}
	start := time.Now()
	s := b.measure(ctx, r, p)
	if s.err != nil {
		fmt.Fprintf(b.progress, "round %d/%d %s %s: %v\n", round+1, b.rounds, r.id, p.Name, s.err)
	} else {
		fmt.Fprintf(b.progress, "round %d/%d %s %s: %.1f s\n", round+1, b.rounds, r.id, p.Name, time.Since(start).Seconds())
	}
	return s
}

// measure sets the stage, runs the row, and leaves nothing behind.
func (b *bench) measure(ctx context.Context, r row, p pairSpec) (s sample) {
	timeout := r.timeout
	if timeout == 0 {
		timeout = time.Minute + 4*b.set.farPhase
	}
	timed, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("not done after %s", timeout))
	defer cancel()
	st, err := b.openStage(timed, p, r.flight)
	if err != nil {
		return sample{err: err}
	}
	defer func() { s.err = errors.Join(s.err, st.close()) }()

	cellCtx, abort := context.WithCancelCause(timed)
	defer abort(nil)
	before, err1 := b.unrelatedCPU(st)
	start := time.Now()
	s.values, s.err = r.run(&cell{cellCtx, abort, st.entry, st.proxies, b.set, r.flight > 0})
	after, err2 := b.unrelatedCPU(st)
	s.others = max(0, (after-before).Seconds()/time.Since(start).Seconds()/float64(runtime.NumCPU()))
	// With a proxy gone, another process may have answered in its place.
	if s.err = errors.Join(s.err, st.complaints(), st.ended(), err1, err2); s.err != nil {
		s.err = errors.Join(s.err, st.lastWords())
		if cause := context.Cause(timed); cause != nil && !errors.Is(s.err, cause) {
			s.err = errors.Join(cause, s.err)
		}
		s.values = nil
	}
	return s
}

// openStage tries again where another program may have taken a port.
func (b *bench) openStage(ctx context.Context, p pairSpec, flight int) (*stage, error) {
	var last error
	for range 3 {
		st, err := openStage(ctx, b.dir, b.self, p, flight)
		if err == nil {
			return st, nil
		}
		if last = err; ctx.Err() != nil {
			break
		}
	}
	return nil, last
}

// unrelatedCPU is the CPU time spent so far by processes that have no part in the measurement.
func (b *bench) unrelatedCPU(st *stage) (time.Duration, error) {
	all, err1 := machineCPU()
	own, err2 := ownCPU()
	started, err3 := usageOf(st.all())
	return all - own - started.cpu, errors.Join(err1, err2, err3)
}
