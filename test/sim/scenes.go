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
	p.Net.Bandwidth, p.Net.Buffer = int(d.spread(200e3, most)), int(d.spread(32<<10, 512<<10))
}

// twoNodes are any two.
func (p *Plan) twoNodes(d draw) (from, to int) {
	from = d.IntN(len(p.Nodes))
	return from, (from + 1 + d.IntN(len(p.Nodes)-1)) % len(p.Nodes)
}

// generateJam has two nodes whose sessions are full for long: uploads that
// fill records but for a few bytes and hold all buffers of a link, of which
// many are given up in their midst, and others whose grants have to get through.
func generateJam(d draw, p *Plan) {
	p.slow(d, 1e6)
	a, b := p.twoNodes(d)
	for _, i := range [...]int{a, b} {
		p.Nodes[i].Batch, p.Nodes[i].Buffers, p.Nodes[i].Links = d.between(1, 4), d.between(2, 12), 1
	}
	quitters := d.chance(0.5)
	for range d.between(2, 9) {
		app := App{From: a, To: b, Target: TargetOK, Start: d.upTo(2 * time.Second), Up: generateBulk(d), Down: generateBulk(d)}
		if d.chance(0.3) {
			app.From, app.To = b, a
		}
		if d.chance(0.5) {
			app.Down.Length = d.spread(1, 3000)
		}
		if quitters && d.chance(0.7) {
			app.Reset, app.ResetAt = pick(d, Client, Server), d.Int64N(app.Up.Length)
		}
		p.add(app)
	}
}

// generateBulk is a direction that goes as fast as it can.
func generateBulk(d draw) Half {
	h := Half{Length: d.spread(200<<10, 1<<20), Lazy: d.chance(0.7), Sink: d.chance(0.7), Even: true, Room: 128 << 10}
	h.Chunk = pick(d, int(d.spread(64<<10, 1<<20)), session.MaxBody-d.between(12, 40), 8*session.MaxBody)
	return h
}

// generateLastCall has a node drain while it still sends a lot that its apps
// have done with.
func generateLastCall(d draw, p *Plan) {
	p.slow(d, 500e3)
	a, b := p.twoNodes(d)
	p.Nodes[a].Batch, p.Nodes[a].Links = d.between(8, 32), 1
	for range d.between(1, 4) {
		app := App{From: a, To: b, Target: TargetOK, Start: d.upTo(200 * time.Millisecond), Up: generateBulk(d), Down: generateBulk(d)}
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
		if d.chance(0.5) { // who is left has much to do, and room for it
			waits.Length, waits.EndAfter = d.spread(1, 3000), 3*time.Minute+d.upTo(3*time.Minute)
		}
		a.ResetAt, a.ResetAfter = resets.Length, time.Second+d.upTo(20*time.Second)
		p.add(a)
	}
}

// brim is a direction that leaves so many bytes of the first window behind END.
func brim(d draw, first, left int) Half {
	h := Half{Chunk: d.between(64<<10, 120<<10), Even: true, Room: d.between(1, 60<<10), Pause: time.Minute + d.upTo(4*time.Minute)}
	room := firstWindow - first - endFrame - left
	frames := (room + h.Chunk + frameHead - 1) / (h.Chunk + frameHead)
	h.Length = int64(room - frames*frameHead)
	return h
}
