package mux

import (
	"fmt"
	"time"
)

// inbound checks one header.
func (g *guard) inbound(h yamuxHeader) error {
	if h.version != 0 {
		return violation(RuleYamuxVersion, fmt.Sprintf("yamux version %d", h.version))
	}
	switch h.kind {
	case yamuxPing:
		return g.inboundPing(h)
	case yamuxGoAway:
		return g.inboundGoAway(h)
	case yamuxData, yamuxWindowUpdate:
	default:
		return violation(RuleYamuxType, fmt.Sprintf("yamux type %d", h.kind))
	}
	if err := checkShape(h); err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	f, err := g.inboundFlow(h)
	if err != nil {
		return err
	}
	if f != nil {
		if err := g.inboundStream(f, h); err != nil {
			return err
		}
	}
	if h.kind == yamuxData {
		g.bodyIn = int64(h.length)
	}
	g.bodyFlow = f
	g.bodySkip = f == nil || f.localFin || f.dead
	g.bodyEnds = f != nil && h.flags&(flagFIN|flagRST) != 0
	return nil
}

// inboundFlow finds the flow of a header. It returns nil, without an error, if
// the header is to be ignored.
func (g *guard) inboundFlow(h yamuxHeader) (*flow, error) {
	if h.flags&flagRST != 0 && !g.rstRate.take() {
		return nil, violation(RuleYamuxRate, "too many RST")
	}
	own := h.id%2 == 1 == g.odd
	if h.flags&flagSYN != 0 {
		return g.inboundSYN(h, own)
	}
	if r, ok := g.refusals.open[h.id]; ok {
		return nil, g.inboundRefused(h, r)
	}
	if f := g.flows[h.id]; f != nil {
		return f, nil
	}
	if own && h.id > g.lastOut || !own && !g.wasOpened(h.id) {
		return nil, violation(RuleYamuxStream, "a stream that was never opened")
	}
	switch {
	case h.flags&flagRST != 0 || h.kind == yamuxWindowUpdate && h.flags == 0:
		// The peer gave up on a FIN just as it was sent, or read on after its own.
		return nil, nil
	case h.flags&flagFIN != 0:
		return nil, violation(RuleYamuxFin, "a FIN for a stream that is over")
	}
	return nil, violation(RuleYamuxStream, "a stream that is over")
}

func (g *guard) inboundSYN(h yamuxHeader, own bool) (*flow, error) {
	switch {
	case own:
		return nil, violation(RuleYamuxParity, "SYN with an id of this node's parity")
	case g.wasOpened(h.id):
		return nil, violation(RuleYamuxReuse, "SYN with an id that is not new")
	case !g.synRate.take():
		return nil, violation(RuleYamuxRate, "too many SYN")
	case g.unackedIn >= 2*maxUnacked:
		return nil, violation(RuleYamuxBacklog, "too many streams without ACK")
	}
	g.markOpened(h.id)
	f, refused := g.newFlow(h.id, false)
	if refused == "" {
		g.unackedIn++
		return f, nil
	}
	if !g.account.refuse() {
		return nil, violation(RuleYamuxBacklog, "too many streams")
	}
	g.refusals.add(h, refused)
	return nil, nil
}

// wasOpened reports whether the peer has opened a stream with this id.
func (g *guard) wasOpened(id uint32) bool {
	_, gap := g.gaps[id]
	return id <= g.lastIn && !gap
}

// markOpened notes a new id. A peer's ids may overtake each other on their way
// to the wire, so those that it has skipped may still come, as far as maxGaps
// remembers them.
func (g *guard) markOpened(id uint32) {
	if id <= g.lastIn {
		delete(g.gaps, id)
		return
	}
	first := id % 2 // the ids of one parity start at 1 or 2
	if first == 0 {
		first = 2
	}
	if g.lastIn > 0 {
		first = g.lastIn + 2
	}
	g.lastIn = id
	if id-first > 2*maxGaps {
		clear(g.gaps)
		first = id - 2*maxGaps
	}
	for skipped := first; skipped < id && len(g.gaps) < 2*maxGaps; skipped += 2 {
		g.gaps[skipped] = struct{}{}
	}
}

// inboundStream checks a header against its flow, and tells yamux of it if it
// is about the stream's life.
func (g *guard) inboundStream(f *flow, h yamuxHeader) error {
	ends := h.flags & (flagFIN | flagRST)
	if f.remoteFin && ends&flagRST == 0 && (h.kind == yamuxData || ends != 0) {
		return violation(RuleYamuxFin, "data or FIN after FIN")
	}
	if err := g.checkACK(f, h); err != nil {
		return err
	}
	var err error
	if h.kind == yamuxData {
		g.heard(f, h.length)
		err = g.arrived(f, int64(h.length))
	} else {
		err = f.credited(h)
	}
	if err != nil {
		return err
	}
	// yamux no longer knows a stream that this node has reset.
	if h.flags != 0 && f.localRST.IsZero() {
		g.inject = appendHeader(g.inject, yamuxWindowUpdate, h.flags, f.id, 0)
	}
	if ends == 0 {
		return nil
	}
	f.remoteFin = true
	if ends&flagRST != 0 || f.localFin {
		g.forget(f, true)
	}
	return nil
}

// checkACK holds an accepter to ACK (or RST) first and never again. A plain
// yamux that sees FIN before it has accepted the stream forgets the ACK.
func (g *guard) checkACK(f *flow, h yamuxHeader) error {
	switch {
	case h.flags&flagACK != 0 && (!f.outbound || f.acked):
		return violation(RuleYamuxAck, "ACK where none is due")
	case h.flags&flagACK != 0:
		f.acked = true
		g.opened()
	case f.outbound && !f.acked && h.flags&flagRST == 0 && !f.localFin:
		return violation(RuleYamuxAck, "a header before ACK")
	}
	return nil
}

// forget removes a flow for which nothing more may come. If the peer has ended
// it, or answered what came behind, it has taken all that was sent there.
func (g *guard) forget(f *flow, taken bool) {
	if g.flows[f.id] != f {
		return
	}
	delete(g.flows, f.id)
	f.taken = taken
	if !f.localRST.IsZero() {
		g.resets--
	}
	g.account.end(f.window.level)
	f.to.over(taken)
	if f.acked {
		return
	}
	if f.outbound {
		g.opened()
	} else {
		g.unackedIn--
	}
}

// opened gives back the place among opens that a stream's opener took.
func (g *guard) opened() {
	select {
	case <-g.opens:
	default:
	}
}

func (g *guard) inboundPing(h yamuxHeader) error {
	if h.id != 0 {
		return violation(RuleYamuxPing, "ping with a stream id")
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	switch h.flags {
	case flagSYN:
		g.inject = appendHeader(g.inject, yamuxPing, flagSYN, 0, h.length)
		g.pongsDue++
		if !g.pingRate.take() || g.pongsDue > int(g.pingRate.burst) {
			return violation(RuleYamuxRate, "too many pings")
		}
	case flagACK:
		sent, ok := g.pings[h.length]
		if !ok {
			return violation(RuleYamuxPing, "an answer to no ping")
		}
		delete(g.pings, h.length)
		g.inject = appendHeader(g.inject, yamuxPing, flagACK, 0, h.length)
		g.forgetReset(sent)
	default:
		return violation(RuleYamuxFlags, fmt.Sprintf("ping with flags %#x", h.flags))
	}
	return nil
}

// forgetReset forgets flows that were reset before a ping that is now
// answered: the peer has seen the RST, and has had time to send what it had
// under way.
func (g *guard) forgetReset(before time.Time) {
	if g.resets == 0 {
		return
	}
	for _, f := range g.flows {
		if !f.localRST.IsZero() && f.localRST.Before(before.Add(-lateAfterReset)) {
			g.forget(f, true)
		}
	}
}

func (g *guard) inboundGoAway(h yamuxHeader) error {
	const normal, internalError = 0, 2
	if h.flags != 0 {
		return violation(RuleYamuxFlags, fmt.Sprintf("go away with flags %#x", h.flags))
	}
	if h.id != 0 || h.length > internalError {
		return violation(RuleYamuxGoAway, "go away with a stream id or an unknown reason")
	}
	g.mu.Lock()
	again := g.goneAway
	g.goneAway = true
	g.inject = appendHeader(g.inject, yamuxGoAway, 0, 0, h.length)
	g.mu.Unlock()
	if again {
		return violation(RuleYamuxGoAway, "a second go away")
	}
	if h.length != normal {
		return errPeerFault // yamux would end the link the hard way
	}
	g.hooks.goAway()
	return nil
}
