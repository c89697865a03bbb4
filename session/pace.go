package session

import (
	"slices"
	"time"
)

const (
	// queueTime is how long what gathers for the transport is to take it. It
	// is given more once what the kernel has not sent takes half of that: so
	// much whoever comes next waits for at most, and leaves first.
	queueTime = 6 * time.Millisecond

	// leastAmount and mostAmount bound what gathers. Fewer bytes than the first
	// are mostly headers, more than the second make nothing faster.
	leastAmount = 4 << 10
	mostAmount  = batchRecords * maxBody

	// A sample of the rate ends after so many bytes, or so long: less may have
	// gone into buffers on the way.
	sampleBytes = 512 << 10
	sampleTime  = 20 * time.Millisecond

	// samplePause is how much of a pause between two batches counts if the
	// kernel had nothing left to send by its end. A longer one says more about
	// the apps, or about how busy this machine is, than about the transport.
	samplePause = 2 * time.Millisecond

	// firstAmount gathers until samples say more. Whoever has read more than
	// that for a link that turns out to be slow keeps the others waiting once.
	firstAmount = 2 * leastAmount
	firstRate   = firstAmount / float64(queueTime) * float64(time.Second)
)

// A pace is the rate at which a transport takes bytes: the middle one of the
// last three samples, since one alone may be a stall, or the filling of a buffer
// on the way. The zero value has none yet.
type pace struct {
	samples [3]float64 // bytes a second
	next    int        // of samples

	begun, last time.Time // of the sample that is being taken
	bytes       int
	unsent      int // bytes that the kernel held at its last
}

// observe notes that n bytes were written from one time to another, whether the
// kernel was dry before that, and how many it then had not sent.
func (p *pace) observe(n, unsent int, dry bool, from, to time.Time) {
	if p.begun.IsZero() {
		p.begun, p.last = from, from
	}
	if idle := from.Sub(p.last) - samplePause; dry && idle > 0 {
		p.begun = p.begun.Add(idle)
	}
	p.bytes += n + p.unsent - unsent
	p.unsent, p.last = unsent, to
	took := to.Sub(p.begun)
	if took < sampleTime && p.bytes < sampleBytes {
		return
	}
	if p.samples[0] == 0 {
		p.samples = [3]float64{firstRate, firstRate, firstRate}
	}
	p.samples[p.next] = max(1, float64(p.bytes)/max(took, time.Microsecond).Seconds())
	p.next = (p.next + 1) % len(p.samples)
	p.begun, p.bytes = to, 0
}

// amount is how many bytes may gather.
func (p *pace) amount() int {
	if p.samples[0] == 0 {
		return firstAmount
	}
	sorted := p.samples
	slices.Sort(sorted[:])
	return int(max(leastAmount, min(mostAmount, sorted[1]*queueTime.Seconds())))
}
