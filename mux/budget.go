package mux

import "sync/atomic"

// A budget bounds the bytes that arrived and were not yet read, over all
// streams of all links. It never blocks: a stream's window keeps the sender
// waiting, and whoever sees the budget exceeded asks for a stream to be reset.
type budget struct {
	limit atomic.Int64
	used  atomic.Int64
	// full has an element while the budget may be exceeded and nobody has
	// acted on it.
	full chan struct{}
}

func newBudget(limit int64) *budget {
	b := &budget{full: make(chan struct{}, 1)}
	b.limit.Store(limit)
	return b
}

func (b *budget) add(n int) {
	if b.used.Add(int64(n)) > b.limit.Load() {
		select {
		case b.full <- struct{}{}:
		default:
		}
	}
}

func (b *budget) release(n int) { b.used.Add(-int64(n)) }

func (b *budget) exceeded() bool { return b.used.Load() > b.limit.Load() }

// window bounds what one stream may be granted, so that one stream alone
// never takes more than an eighth of what is left.
func (b *budget) window(want int) int {
	left := (b.limit.Load() - b.used.Load()) / 8
	return int(max(minWindow, min(int64(want), left)))
}
