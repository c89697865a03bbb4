package mux

import "slices"

const (
	// maxRefused bounds the streams of a peer that were refused and that it has
	// not ended.
	maxRefused = 1 << 17

	// maxRefusals is about how many bytes of answers are written together.
	maxRefusals = 16 << 10

	// minQueue is how many of those that the peer has reset may wait for an
	// answer all the same.
	minQueue = 256
)

// refusals are the streams that the peer opened and a limit refuses. yamux does
// not learn of them, and what comes for them is dropped: however many a peer
// opens, each costs no more than an entry here until the peer has ended it.
type refusals struct {
	open    map[uint32]refusal
	queue   []uint32 // those to be answered
	running bool     // a goroutine answers them
	leaving bool     // behind a go away they stay unanswered
}

type refusal struct {
	memory   bool // what refused it: the limit on memory, or the one on streams
	fin      bool // the peer's has come
	answered bool
}

// limit is what refused the stream.
func (r refusal) limit() Limit {
	if r.memory {
		return LimitMemory
	}
	return LimitStreams
}

func refusalText(limit Limit) string {
	if limit == LimitMemory {
		return "out of memory for more streams"
	}
	return "too many streams"
}

// add refuses the stream that a SYN opens.
func (r *refusals) add(syn yamuxHeader, limit Limit) {
	if r.open == nil {
		r.open = make(map[uint32]refusal)
	}
	r.open[syn.id] = refusal{memory: limit == LimitMemory, fin: syn.flags&flagFIN != 0}
	if len(r.queue) > 2*len(r.open)+minQueue {
		r.queue = slices.DeleteFunc(r.queue, func(id uint32) bool { _, ok := r.open[id]; return !ok })
	}
	r.queue = append(r.queue, syn.id)
}

// inboundRefused checks a header for a refused stream.
func (g *guard) inboundRefused(h yamuxHeader, r refusal) error {
	switch {
	case h.flags&flagACK != 0:
		return violation(RuleYamuxAck, "ACK where none is due")
	case h.flags&flagRST != 0 || h.flags&flagFIN != 0 && r.answered:
		g.forgive(h.id)
	case r.fin && (h.kind == yamuxData || h.flags&flagFIN != 0):
		return violation(RuleYamuxFin, "data or FIN after FIN")
	case h.flags&flagFIN != 0:
		r.fin = true
		g.refusals.open[h.id] = r
	}
	return nil
}

// forgive forgets a refused stream, with mu held.
func (g *guard) forgive(id uint32) {
	delete(g.refusals.open, id)
	g.account.forgive(1)
}

// answerRefused has the refused streams answered. It is the link's reader's,
// which must not block.
func (g *guard) answerRefused() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.refusals.queue) > 0 && !g.refusals.running {
		g.refusals.running = true
		go g.writeRefusals()
	}
}

// writeRefusals writes the answers, some at a time.
func (g *guard) writeRefusals() {
	defer g.conn.FlushFirst()
	for {
		g.writeMu.Lock()
		text := g.nextRefusals()
		if text == nil || g.queue(nil, text) != nil {
			g.writeMu.Unlock()
			return
		}
		g.writeMu.Unlock()
	}
}

// nextRefusals makes the next answers, nil if there are no more.
func (g *guard) nextRefusals() (text []byte) {
	g.mu.Lock()
	defer g.mu.Unlock()
	r := &g.refusals
	for len(r.queue) > 0 && len(text) < maxRefusals {
		id := r.queue[0]
		r.queue = r.queue[1:]
		e, ok := r.open[id]
		if !ok {
			continue // the peer has reset it
		}
		text = appendHeader(text, yamuxWindowUpdate, flagACK, id, 0)
		if !r.leaving {
			opened := appendOpened(nil, StatusOverloaded, refusalText(e.limit()))
			text = appendHeader(text, yamuxData, 0, id, uint32(len(opened)))
			text = append(text, opened...)
		}
		text = appendHeader(text, yamuxWindowUpdate, flagFIN, id, 0)
		if e.answered = true; e.fin {
			g.forgive(id)
		} else {
			r.open[id] = e
		}
	}
	if text == nil {
		r.queue, r.running = nil, false
	}
	return text
}
