package session

import (
	"crypto/sha256"
	"sync"
)

// replayEntries is how many message 1s a responder remembers (SPEC.md
// section 3). Older ones, replayed, get a message 2 that nobody can use.
const replayEntries = 65536

// A ReplayCache remembers the hashes of the last accepted message-1 ephemeral
// keys. The zero value is not usable; see NewReplayCache.
type ReplayCache struct {
	mu   sync.Mutex
	seen map[[32]byte]struct{}
	ring [][32]byte
	next int
}

// NewReplayCache returns an empty cache. It grows to about 6 MiB with use.
func NewReplayCache() *ReplayCache {
	return &ReplayCache{seen: make(map[[32]byte]struct{})}
}

// has reports whether an ephemeral key was accepted before. It costs a hash,
// so that a flood of replays does no public-key work.
func (r *ReplayCache) has(ephemeral []byte) bool {
	sum := sha256.Sum256(ephemeral)
	r.mu.Lock()
	defer r.mu.Unlock()
	_, ok := r.seen[sum]
	return ok
}

// add records an accepted ephemeral key. It reports false if it is there
// already: of two concurrent replays one fails here.
func (r *ReplayCache) add(ephemeral []byte) bool {
	sum := sha256.Sum256(ephemeral)
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.seen[sum]; ok {
		return false
	}
	if len(r.ring) < replayEntries {
		r.ring = append(r.ring, sum)
	} else {
		delete(r.seen, r.ring[r.next])
		r.ring[r.next] = sum
		r.next = (r.next + 1) % replayEntries
	}
	r.seen[sum] = struct{}{}
	return true
}
