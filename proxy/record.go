package proxy

import (
	"sync"
	"time"

	"github.com/rs/zerolog"
)

// A record is what becomes the one log line of a connection.
type record struct {
	p       *Proxy
	start   time.Time
	release func() // gives the connection's place back
	carried bool   // a splice will do that

	via       string // the listener's kind, ViaService or ViaEgress
	listener  string // "" for streams from peers
	peer      string // "" while none is chosen
	target    string // as asked for
	dialed    string // the address behind it, where this node dialed
	from      string // the app's address
	openedVia string // on streams from peers: the kind of listener over there
}

// serve runs handle with a connection's new record, and releases the
// connection's place unless handle has passed it on to a splice.
func (p *Proxy) serve(via string, release func(), handle func(*record)) {
	rec := &record{p: p, start: time.Now(), via: via, release: release}
	handle(rec)
	if !rec.carried {
		release()
	}
}

// failed writes the line of a connection that was not opened.
func (r *record) failed(f *failure) {
	r.p.count(r.peer, r.via, f.result)
	r.p.refusals.add(Refusal{
		Time: time.Now(), Via: r.via, Peer: r.peer, From: r.from, Target: r.target, Result: f.result, Reason: f.reason,
	})
	skipped, ok := r.p.refusalLines.take(time.Now())
	if !ok {
		return
	}
	e := r.p.log().Warn()
	if skipped > 0 {
		e.Int("suppressed", skipped)
	}
	r.fields(e).Str("result", string(f.result)).Str("reason", f.reason).Msg("connection refused")
}

// unused writes the line of a connection that ended before its app's first
// byte, which is what health checks look like. It was not refused anything.
func (r *record) unused() {
	r.fields(r.p.log().Debug()).Msg("connection ended before its first byte")
}

// finished writes the line of a connection that was open.
func (r *record) finished(o outcome, in, out int64) {
	r.p.count(r.peer, r.via, o.result)
	e := r.p.log().Info()
	r.fields(e).Int64("bytes_in", in).Int64("bytes_out", out).Str("result", string(o.result))
	if o.reason != "" {
		e.Str("reason", o.reason)
	}
	e.Msg("connection finished")
}

func (r *record) fields(e *zerolog.Event) *zerolog.Event {
	for _, f := range [...]struct{ key, value string }{
		{"via", r.via}, {"listener", r.listener}, {"peer", r.peer}, {"target", r.target}, {"dialed", r.dialed},
		{"from", r.from}, {"opened_via", r.openedVia},
	} {
		if f.value != "" {
			e.Str(f.key, f.value)
		}
	}
	return e.Dur("duration", time.Since(r.start))
}

// A Refusal is a connection that was not opened.
type Refusal struct {
	Time   time.Time `json:"time"`
	Via    string    `json:"via"`
	Peer   string    `json:"peer,omitempty"`
	From   string    `json:"from,omitempty"`
	Target string    `json:"target,omitempty"`
	Result Result    `json:"result"`
	Reason string    `json:"reason"`
}

// refusalRing keeps the last refusals.
type refusalRing struct {
	mu   sync.Mutex
	ring [32]Refusal
	n    int
}

func (r *refusalRing) add(f Refusal) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ring[r.n%len(r.ring)] = f
	r.n++
}

// list returns them, the latest first.
func (r *refusalRing) list() []Refusal {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]Refusal, 0, min(r.n, len(r.ring)))
	for i := r.n - 1; i >= max(0, r.n-len(r.ring)); i-- {
		out = append(out, r.ring[i%len(r.ring)])
	}
	return out
}

// A lineLimiter lets burst lines through at once and perSecond lasting, so
// that outsiders cannot fill the log.
type lineLimiter struct {
	mu      sync.Mutex
	tokens  float64
	last    time.Time
	skipped int
}

const (
	linesPerSecond = 20
	lineBurst      = 100
)

// take reports whether a line may be written, and how many were not since the
// last one that was.
func (l *lineLimiter) take(now time.Time) (skipped int, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.last.IsZero() {
		l.tokens = lineBurst
	} else {
		l.tokens = min(lineBurst, l.tokens+now.Sub(l.last).Seconds()*linesPerSecond)
	}
	l.last = now
	if l.tokens < 1 {
		l.skipped++
		return 0, false
	}
	l.tokens--
	skipped, l.skipped = l.skipped, 0
	return skipped, true
}
