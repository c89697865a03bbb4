package main

import (
	"slices"
	"sync"
	"time"

	"github.com/sealane/sealane/proxy"
)

// maxEvents is how many events are kept for people to look at.
const maxEvents = 50

// The kinds of events.
const (
	eventRefusal   = "refusal"
	eventViolation = "violation"
	eventLink      = "link"
	eventConfig    = "config"
)

// An event is something that a person who looks at this node may want to know:
// a refusal, a violation, a link that came or went, a reload.
type event struct {
	Time  time.Time `json:"time"` // of the last one
	Kind  string    `json:"kind"`
	Peer  string    `json:"peer"`  // "" if none is known
	Text  string    `json:"text"`  // in plain words
	Count int       `json:"count"` // how often in a row
}

// events keeps the most recent events. Repeats are counted, so that one noisy
// peer does not push everything else out.
type events struct {
	mu   sync.Mutex
	list []event // the oldest first
}

func (e *events) add(kind, peer, text string) {
	now := time.Now()
	e.mu.Lock()
	defer e.mu.Unlock()
	for i, old := range e.list {
		if old.Kind == kind && old.Peer == peer && old.Text == text {
			old.Time, old.Count = now, old.Count+1
			e.list = append(append(e.list[:i:i], e.list[i+1:]...), old)
			return
		}
	}
	if len(e.list) == maxEvents {
		e.list = append(e.list[:0:0], e.list[1:]...)
	}
	e.list = append(e.list, event{now, kind, peer, text, 1})
}

// recent lists the events together with the proxy's refusals, the most recent
// first.
func (e *events) recent(refusals []proxy.Refusal) []event {
	e.mu.Lock()
	list := slices.Clone(e.list)
	e.mu.Unlock()
	for _, r := range refusals {
		list = append(list, event{r.Time, eventRefusal, r.Peer, refusalText(r), 1})
	}
	slices.SortStableFunc(list, func(a, b event) int { return b.Time.Compare(a.Time) })
	return list[:min(len(list), maxEvents)]
}
