package mux

import (
	"sync"

	"github.com/rs/zerolog"
)

// A limitedLog writes lines that outsiders can cause at will: of each kind a
// burst, then one a second. The next line says how many were left out.
type limitedLog struct {
	log zerolog.Logger

	mu    sync.Mutex
	kinds map[string]*limitedKind
}

type limitedKind struct {
	rate    bucket
	skipped int
}

func newLimitedLog(log zerolog.Logger) *limitedLog {
	return &limitedLog{log: log, kinds: make(map[string]*limitedKind)}
}

// warn starts a line of a kind, or returns a nil event, which writes nothing.
func (l *limitedLog) warn(kind string) *zerolog.Event { return l.event(kind, zerolog.WarnLevel) }

func (l *limitedLog) debug(kind string) *zerolog.Event { return l.event(kind, zerolog.DebugLevel) }

func (l *limitedLog) event(kind string, level zerolog.Level) *zerolog.Event {
	l.mu.Lock()
	defer l.mu.Unlock()
	k := l.kinds[kind]
	if k == nil {
		k = &limitedKind{rate: bucket{rate: 1, burst: 10}}
		l.kinds[kind] = k
	}
	if !k.rate.take() {
		k.skipped++
		return nil
	}
	e := l.log.WithLevel(level)
	if k.skipped > 0 {
		e = e.Int("skipped", k.skipped)
		k.skipped = 0
	}
	return e
}
