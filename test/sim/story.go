package sim

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
)

// A story is what happened in a world, in its time. It is bounded: of a long
// one the middle is left out.
type story struct {
	begun time.Time

	mu    sync.Mutex
	first []string
	last  []string // a ring
	count int
	hash  uint64
}

const (
	storyFirst = 60
	storyLast  = 1500
)

func newStory() *story { return &story{begun: time.Now(), hash: 14695981039346656037} }

func (s *story) add(who, format string, args ...any) {
	line := fmt.Sprintf("%12.6fs %-9s %s", time.Since(s.begun).Seconds(), who, fmt.Sprintf(format, args...))
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range len(line) {
		s.hash = (s.hash ^ uint64(line[i])) * 1099511628211
	}
	switch {
	case s.count < storyFirst:
		s.first = append(s.first, line)
	case len(s.last) < storyLast:
		s.last = append(s.last, line)
	default:
		s.last[(s.count-storyFirst)%storyLast] = line
	}
	s.count++
}

func (s *story) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var b strings.Builder
	for _, line := range s.first {
		fmt.Fprintln(&b, line)
	}
	if left := s.count - storyFirst - storyLast; left > 0 {
		fmt.Fprintf(&b, "%12s  ... %d lines are left out ...\n", "", left)
	}
	for i := range s.last {
		fmt.Fprintln(&b, s.last[(max(s.count-storyFirst, storyLast)+i)%len(s.last)])
	}
	return b.String()
}

// teller puts a node's log into the story.
func (s *story) teller(who string) io.Writer { return teller{s, who} }

type teller struct {
	story *story
	who   string
}

func (t teller) Write(line []byte) (int, error) {
	t.story.add(t.who, "%s", strings.TrimSpace(string(line)))
	return len(line), nil
}
