package sim

import (
	"time"

	"github.com/sealane/sealane/session"
)

// A scene is added to a world for a place in the code that chance alone hardly
// ever reaches: each needs several things at once.

// generateScene adds one to some worlds.
func generateScene(d draw, p *Plan) {
	if d.chance(0.5) {
		pick(d, generateJam, generateJam, generateLastCall, generateBrim)(d, p)
	}
}

// slow makes a network that much can wait for.
func (p *Plan) slow(d draw, most int64) {
	p.Net.Bandwidth, p.Net.Buffer = int(d.spread(200e3, most)), int(d.spread(8<<10, 512<<10))
}

// twoNodes are any two.
func (p *Plan) twoNodes(d draw) (from, to int) {
	from = d.IntN(len(p.Nodes))
	return from, (from + 1 + d.IntN(len(p.Nodes)-1)) % len(p.Nodes)
}

// generateJam has two nodes whose sessions are full for long, with uploads that
// fill records, or all but a few bytes of them, and hold all buffers of a link.
// Beside them the grants of a download have to get through.
func generateJam(d draw, p *Plan) {
	p.slow(d, 1e6)
	a, b := p.twoNodes(d)
	for _, i := range [...]int{a, b} {
		p.Nodes[i].Batch, p.Nodes[i].Buffers, p.Nodes[i].Links = d.between(1, 3), d.between(1, 8), 1
	}
	// Of some nothing is given up, of others nearly everything; some have few
	// records at a time, so that a session is full and nobody waits for it.
	quit, exact, most, within := 0.2, 0.2, 14, 4*time.Second
	switch d.IntN(3) {
	case 0:
		quit = 0.9
		p.Nodes[a].Buffers = d.between(1, 3)
	case 1:
		quit, exact, most, within = 0, 1, 10, 2*time.Second
		p.Nodes[a].Batch = 1
		p.Net = Net{Latency: d.log(100 * time.Microsecond), Bandwidth: int(d.spread(700e3, 2e6)), Buffer: int(d.spread(8<<10, 64<<10)), Pieces: p.Net.Pieces}
	}
	for range d.between(3, most) {
		app := App{From: a, To: b, Target: TargetOK, Start: d.upTo(within), Up: generateBulk(d, exact), Down: generateBulk(d, 0)}
		if d.chance(max(0.7, exact)) {
			app.Down.Length = d.spread(1, 3000)
		}
		if d.chance(quit) {
			app.Reset, app.ResetAt = pick(d, Client, Server), d.Int64N(app.Up.Length)
		}
		if d.chance(0.2 * (1 - exact)) {
			app.From, app.To = b, a
		}
		p.add(app)
	}
	for range d.between(1, 2) {
		// Small frames have small windows, and so many grants.
		cargo := Half{Length: d.spread(1<<20, 3<<20), Chunk: d.between(4<<10, 8<<10), Even: true, Sink: true, Room: 1 << 20}
		p.add(App{From: a, To: b, Target: TargetOK, Start: d.upTo(time.Second), Up: Half{Length: 1, Chunk: 1, Room: 1}, Down: cargo})
	}
}

// fullFrame is how much of an app fills a record with its frame.
const fullFrame = session.MaxBody - 12 - frameHead

// generateBulk is a direction that goes as fast as it can, or, with a chance,
// a few records that are full.
func generateBulk(d draw, exact float64) Half {
	h := Half{Length: d.spread(200<<10, 1<<20), Lazy: d.chance(0.7), Sink: d.chance(0.7), Even: true, Room: 128 << 10}
	h.Chunk = pick(d, int(d.spread(64<<10, 1<<20)), fullFrame-d.between(0, 24), 8*session.MaxBody)
	if d.chance(exact) {
		h.Length, h.Chunk, h.EndAfter = int64(pick(d, 1, 2, 2, 2, 3)*fullFrame), fullFrame, d.upTo(10*time.Second)
	}
	return h
}

// generateLastCall has a node drain while it still sends a lot that its apps
// have done with.
func generateLastCall(d draw, p *Plan) {
	p.slow(d, 500e3)
	a, b := p.twoNodes(d)
	p.Nodes[a].Batch, p.Nodes[a].Links = d.between(8, 32), 1
	for range d.between(1, 4) {
		app := App{From: a, To: b, Target: TargetOK, Start: d.upTo(200 * time.Millisecond), Up: generateBulk(d, 0), Down: generateBulk(d, 0)}
		app.Down.Length = d.spread(0, 3000)
		if d.chance(0.3) {
			app.From, app.To, app.Up, app.Down = b, a, app.Down, app.Up
		}
		p.add(app)
	}
	p.Ops = append(p.Ops, Op{At: 300*time.Millisecond + d.upTo(4*time.Second), Kind: OpDrain, Node: a, Peer: b})
}

// What the frames of a stream take of its first window (SPEC.md sections 5 and 7).
const (
	firstWindow = 256 << 10
	frameHead   = 4
	openFrame   = frameHead + len(`{"to":"","from":"10.0.0.1:1","via":"forward"}`) // and To
	openedFrame = frameHead + 1
	endFrame    = frameHead + 8
)

// generateBrim fills a stream's first window to the last byte, or nearly, while
// nobody reads there: END, or the RESET behind it, may find no room. Who has
// sent END then gives the connection up.
func generateBrim(d draw, p *Plan) {
	from, to := p.twoNodes(d)
	for range d.between(2, 6) {
		a := App{ID: len(p.Apps), From: from, To: to, Start: d.upTo(5 * time.Second), Target: TargetOK}
		a.Reset = pick(d, Client, Server)
		// Of who resets, the END fits as just as it can.
		up, down := d.between(-2, 8), d.between(-2, 8)
		if other := d.between(-endFrame, -1); a.Reset == Client {
			down = other
		} else {
			up = other
		}
		a.Up = brim(d, openFrame+len(targetOf(&a)), up)
		a.Down = brim(d, openedFrame, down)
		resets, waits := &a.Up, &a.Down
		if a.Reset == Server {
			resets, waits = waits, resets
		}
		a.ResetAt, a.ResetAfter = resets.Length, time.Second+d.upTo(20*time.Second)
		if d.chance(0.5) { // who is left could still end, before the other's RST comes in a minute
			waits.Length, waits.EndAfter = d.spread(1, 3000), a.ResetAfter+hearing+d.upTo(closingTime/3)
		}
		p.add(a)
	}
}

// brim is a direction that leaves so many bytes of the first window behind END.
func brim(d draw, first, left int) Half {
	h := Half{Chunk: d.between(30<<10, 60<<10), Even: true, Room: d.between(1, 60<<10), Pause: time.Minute + d.upTo(4*time.Minute)}
	room := firstWindow - first - endFrame - left
	frames := (room + h.Chunk + frameHead - 1) / (h.Chunk + frameHead)
	h.Length = int64(room - frames*frameHead)
	return h
}
