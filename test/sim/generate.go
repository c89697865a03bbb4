package sim

import (
	"slices"
	"time"

	"github.com/sealane/sealane/session"
)

// span is how long things begin to happen in a world.
const span = 30 * time.Second

// Generate makes the plan of a seed.
func Generate(seed uint64) *Plan {
	d := newDraw(seed, 1)
	p := &Plan{Seed: seed, Proxy: d.chance(0.4), Net: generateNet(d)}
	count := pick(d, 2, 2, 2, 3, 3, 4)
	for i := range count {
		p.Nodes = append(p.Nodes, generateNode(d, i, count))
	}
	generateLinks(d, p)
	generateApps(d, p)
	if d.chance(0.5) {
		generateDuets(d, p)
	}
	storm := d.chance(0.4)
	if d.chance(0.5) {
		generateStalls(d, p)
	}
	if storm {
		generateFaults(d, p)
	}
	if d.chance(0.6) {
		generateOps(d, p, storm)
	}
	if storm && d.chance(0.3) {
		p.Nodes[d.IntN(count)].Memory = d.spread(128<<10, 8<<20)
	}
	if storm && d.chance(0.2) {
		n := &p.Nodes[d.IntN(count)]
		n.Idle, n.HalfClose = 5*time.Second+d.upTo(time.Minute), 5*time.Second+d.upTo(time.Minute)
	}
	generateScene(d, p)
	generateDoors(newDraw(seed, 5), p)
	generateLimits(newDraw(seed, 6), p)
	if d := newDraw(seed, 7); !storm && d.chance(0.3) {
		p.Nodes[d.IntN(count)].Memory = d.spread(64<<10, 8<<20)
	}
	return p
}

func generateNet(d draw) Net {
	n := Net{
		Latency: d.log(50 * time.Millisecond),
		Buffer:  int(d.spread(4<<10, 1<<20)),
		Pieces:  pick(d, PiecesWhole, PiecesTiny, PiecesEdges, PiecesEdges, PiecesMixed, PiecesMixed),
		Late:    pick(d, 0, 0.02, 0.3),
	}
	switch {
	case d.chance(0.25):
		n.Bandwidth = int(d.spread(300e3, 2e6))
		n.Buffer = int(d.spread(64<<10, 1<<20))
	case d.chance(0.3):
		n.Bandwidth = int(d.spread(3e6, 1e9))
	}
	return n
}

func generateNode(d draw, i, count int) Node {
	n := Node{
		Transform: pick(d, session.TransformJSON, session.TransformPacked, session.TransformPacked, session.TransformGzip),
		ChaCha:    d.chance(0.3),
		Memory:    256 << 20,
		Links:     pick(d, 1, 1, 1, 2, 3),
		Replicas:  1,
	}
	if d.chance(0.2) {
		n.Padding = 8192
	}
	if d.chance(0.7) {
		n.KeyRecords = uint64(d.spread(1, 50))
	}
	if d.chance(0.5) {
		n.Batch = d.between(1, 32)
	}
	if d.chance(0.5) {
		n.Buffers = d.between(8, 16)
	}
	if d.chance(0.2) {
		n.Streams = d.between(2, 20)
	}
	if d.chance(0.15) {
		n.Replicas = 2
	}
	if d.chance(0.2) {
		n.Handshake, n.Dial = 4*time.Second+d.upTo(10*time.Second), 4*time.Second+d.upTo(20*time.Second)
	}
	return n
}

// generateLinks links every two nodes, one way or both.
func generateLinks(d draw, p *Plan) {
	for i := range p.Nodes {
		for j := range i {
			way := d.IntN(4)
			if way != 1 {
				p.Nodes[i].Dials = append(p.Nodes[i].Dials, j)
			}
			if way <= 1 {
				p.Nodes[j].Dials = append(p.Nodes[j].Dials, i)
			}
		}
	}
	// A replica does not dial: its peers would not know which of two it is.
	for i := range p.Nodes {
		if len(p.Nodes[i].Dials) > 0 {
			p.Nodes[i].Replicas = 1
		}
	}
}

// budget is how many bytes a world carries, about.
const budget = 6 << 20

func generateApps(d draw, p *Plan) {
	count := d.between(1, 12)
	left := int64(budget)
	bulk := d.chance(0.4)
	for range count {
		a := generateApp(d, p)
		if bulk && a.Turns == 0 {
			pick(d, &a.Up, &a.Down).Length = d.spread(256<<10, 4<<20)
		}
		a.Up.Length = min(a.Up.Length, left)
		left -= a.Up.Length
		a.Down.Length = min(a.Down.Length, left)
		left -= a.Down.Length
		a.Up.bound()
		a.Down.bound()
		p.add(a)
	}
	if d.chance(0.15) {
		generateCrowd(d, p)
	}
}

func (p *Plan) add(a App) {
	a.ID = len(p.Apps)
	p.Apps = append(p.Apps, a)
}

func generateApp(d draw, p *Plan) App {
	from := d.IntN(len(p.Nodes))
	to := (from + 1 + d.IntN(len(p.Nodes)-1)) % len(p.Nodes)
	a := App{From: from, To: to, Start: d.upTo(span / 2), Target: TargetOK, Up: generateHalf(d), Down: generateHalf(d)}
	switch d.IntN(12) {
	case 0:
		a.Target = TargetRefuses
	case 1:
		a.Target = TargetHangs
	case 2:
		a.Target = TargetSlow
	}
	if d.chance(0.25) {
		a.Turns = d.between(1, 40)
		a.Up.Length, a.Down.Length = min(a.Up.Length, 40<<10), min(a.Down.Length, 40<<10)
	}
	if d.chance(0.2) {
		a.Reset = pick(d, Client, Server)
		a.ResetAt = d.Int64N(a.Up.Length + a.Down.Length + 1)
	}
	if d.chance(0.1) {
		a.Patience = d.log(10 * time.Second)
	}
	if d.chance(0.15) {
		a.Last = pick(d, Client, Server)
	}
	if a.Target == TargetSlow && d.chance(0.5) { // which may be connected just then
		a.Patience = time.Second + d.upTo(5*time.Second)
	}
	return a
}

func generateHalf(d draw) Half {
	h := Half{Length: d.spread(0, 2<<20), Lazy: d.chance(0.5), Sink: d.chance(0.5)}
	if d.chance(0.3) {
		h.Length = d.spread(1, 3000)
	}
	if d.chance(0.05) {
		h.Length = 0
	}
	h.Chunk = int(d.spread(1, 256<<10))
	if d.chance(0.1) { // a record is full, or nearly
		h.Chunk = session.MaxBody - d.between(0, 40)
	}
	h.Room = int(d.spread(1, 256<<10))
	if d.chance(0.3) && h.Length > 0 {
		h.PauseAt = d.Int64N(h.Length)
		h.Pause = d.log(60 * time.Second)
	}
	if d.chance(0.2) {
		h.Hurry = max(20*time.Millisecond, d.log(5*time.Second))
		h.Doze = d.chance(0.5)
	}
	if d.chance(0.3) {
		h.EndAfter = d.log(20 * time.Second)
	}
	return h
}

func generateDuets(d draw, p *Plan) {
	for range d.between(1, 3) {
		from := d.IntN(len(p.Nodes))
		p.Duets = append(p.Duets, Duet{
			From: from, To: (from + 1 + d.IntN(len(p.Nodes)-1)) % len(p.Nodes), Start: d.upTo(span),
			Up: d.spread(0, 2<<20), Down: d.spread(0, 2<<20), Chunk: int(d.spread(4<<10, 256<<10)),
			Records: pick(d, 0, 1, 4, session.MaxRecords), Closes: pick(d, 1, 1, 2, 3), Gap: d.log(2 * time.Second),
			Brim: d.chance(0.4),
		})
	}
}

// bound has a long direction carried in not too many pieces.
func (h *Half) bound() {
	if h.Length > 2000 && h.Chunk < session.MaxBody-40 {
		h.Chunk = max(h.Chunk, int(h.Length/300))
		h.Room = max(h.Room, int(h.Length/300))
	}
}

// generateCrowd adds many short connections at once.
func generateCrowd(d draw, p *Plan) {
	like := generateApp(d, p)
	count := d.between(20, 300)
	hasty := d.chance(0.4)
	for range count {
		a := like
		a.Up, a.Down = generateHalf(d), generateHalf(d)
		a.Up.Length, a.Down.Length = d.spread(0, 400), d.spread(0, 400)
		a.Up.Pause, a.Down.Pause = 0, 0
		a.Start += d.upTo(time.Second)
		a.Turns = 0
		if d.chance(0.3) {
			a.Target = pick(d, TargetOK, TargetRefuses)
		}
		if a.ResetAt = 0; d.chance(0.1) {
			a.Reset = pick(d, Client, Server)
		}
		if a.Patience = 0; hasty {
			a.Patience = d.log(200 * time.Millisecond)
		}
		p.add(a)
	}
}

func generateStalls(d draw, p *Plan) {
	for range d.between(1, 5) {
		f := generateFault(d, p, FaultStall)
		f.For = d.log(2 * time.Second)
		p.Faults = append(p.Faults, f)
	}
}

func generateFault(d draw, p *Plan, kind FaultKind) Fault {
	a := d.IntN(len(p.Nodes))
	b := (a + 1 + d.IntN(len(p.Nodes)-1)) % len(p.Nodes)
	return Fault{At: d.upTo(span), Kind: kind, A: a, B: b, Way: d.IntN(3), All: d.chance(0.3), For: d.log(60 * time.Second)}
}

func generateFaults(d draw, p *Plan) {
	kinds := []FaultKind{
		FaultStall, FaultCut, FaultCut, FaultHalfClose, FaultBlackHole, FaultDialFails, FaultDialHangs, FaultDialSplits,
	}
	if d.chance(0.2) {
		kinds = append(kinds, FaultTamper, FaultTamper, FaultTamper)
	}
	for range d.between(1, 8) {
		p.Faults = append(p.Faults, generateFault(d, p, pick(d, kinds...)))
	}
}

func generateOps(d draw, p *Plan, storm bool) {
	kinds := []OpKind{OpReload, OpRotate, OpDrain, OpDrain, OpDrain}
	if storm {
		kinds = append(kinds, OpRemove, OpForget, OpKill, OpKill)
	}
	for range d.between(1, 3) {
		a := d.IntN(len(p.Nodes))
		p.Ops = append(p.Ops, Op{
			At: d.upTo(span), Kind: pick(d, kinds...), Node: a, Peer: (a + 1 + d.IntN(len(p.Nodes)-1)) % len(p.Nodes),
			For: d.log(60 * time.Second),
		})
		if o := &p.Ops[len(p.Ops)-1]; o.Kind == OpDrain && d.chance(0.5) {
			stallDrain(d, p, o)
		}
	}
}

// stallDrain has the network stand still now and then while a node drains: for
// longer than a close waits, and not as long as a link lives.
func stallDrain(d draw, p *Plan, o *Op) {
	for range d.between(2, 6) {
		f := generateFault(d, p, FaultStall)
		f.A, f.B, f.Way, f.All = o.Node, o.Peer, 2, true
		f.At, f.For = o.At+d.upTo(10*time.Second), 1200*time.Millisecond+d.upTo(800*time.Millisecond)
		p.Faults = append(p.Faults, f)
	}
}

// generateDoors has apps come to their proxies by all listeners, with heads of
// all kinds, and others come in vain.
func generateDoors(d draw, p *Plan) {
	if !p.Proxy {
		return
	}
	crowd := len(p.Apps) > 12
	for i := range p.Apps {
		a := &p.Apps[i]
		a.Via = pick(d, ViaConnect, ViaConnectUser, ViaSOCKS, ViaSOCKSUser, ViaForward, ViaBalancer)
		if crowd && i >= 12 && a.forwarded() { // each of those has a listener of its own
			a.Via = ViaSOCKS
		}
		a.Announced = a.forwarded() && d.chance(0.5)
		if d.chance(0.4) {
			a.Head.Cuts, a.Head.Pause = d.between(1, 4), d.log(500*time.Millisecond)
		}
		if d.chance(0.3) { // it outlives what bounds its head
			h := pick(d, &a.Up, &a.Down)
			h.Pause, h.PauseAt = 11*time.Second+d.upTo(20*time.Second), h.Length/2
		}
		if first := a.firstTurn(); first > 0 && d.chance(0.4) {
			a.Head.Early = d.spread(1, min(first, 2000))
		}
	}
	if d.chance(0.5) {
		generateVisits(d, p)
	}
}

// firstTurn is how much the client may write without an answer.
func (a *App) firstTurn() int64 {
	if a.Turns == 0 {
		return a.Up.Length
	}
	return (a.Up.Length + int64(a.Turns) - 1) / int64(a.Turns)
}

func generateVisits(d draw, p *Plan) {
	for range d.between(1, 20) {
		v := Visit{App: d.IntN(len(p.Apps)), Start: d.upTo(span), Stay: d.log(20 * time.Second), Reset: d.chance(0.3)}
		a := &p.Apps[v.App]
		switch {
		case a.Via == ViaForward:
			continue // it asks for nothing: who comes is connected
		case a.authorized() && d.chance(0.3):
			v.Wrong = true
		case d.chance(0.7):
			v.Bytes = d.between(1, 100)
		}
		p.Visits = append(p.Visits, v)
	}
}

// generateLimits leaves nodes little room: for a link with each of the others
// and not for many more, and for few handshakes at a time.
func generateLimits(d draw, p *Plan) {
	// Of a name with replicas some may be left without a link: its share is one.
	alone := !slices.ContainsFunc(p.Nodes, func(n Node) bool { return n.Replicas > 1 })
	for i := range p.Nodes {
		n := &p.Nodes[i]
		if alone && d.chance(0.15) {
			n.Room = d.between(len(p.Nodes)-1, 2*len(p.Nodes))
		}
		if d.chance(0.2) {
			n.Handshakes = d.between(1, 3)
		}
	}
	if p.calm() || d.chance(0.7) {
		return
	}
	// Handshakes that wait for their other end hold what others need.
	for range d.between(1, 4) {
		f := generateFault(d, p, FaultDialStalls)
		f.For = max(f.For, d.upTo(30*time.Second))
		p.Faults = append(p.Faults, f)
		if d.chance(0.7) { // and its links have to come up again
			cut := f
			cut.Kind, cut.Way, cut.All = FaultCut, 2, true
			cut.At += d.log(time.Second)
			p.Faults = append(p.Faults, cut)
		}
	}
}
