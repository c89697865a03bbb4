package sim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sealane/sealane/session"
	"github.com/sealane/sealane/test/pattern"
)

// duetPorts are where duets are answered.
const duetPorts = 7500

// A voice is one end of a duet.
type voice struct {
	world   *world
	who     string
	conn    *session.Conn
	draw    draw
	own     pattern.Stream
	length  int64
	chunk   int
	written *atomic.Int64 // of own
	theirs  pattern.Checker
	sung    *atomic.Int64 // what the other has given to Write
	records int
	brim    bool
	mark    session.Mark // of what was queued last
	marked  bool         // nothing was written behind that
}

// duet has two ends of a session talk, and checks what a Conn guarantees: who
// reads gets a prefix of what was written, io.EOF only behind all of it, and,
// where the network has no faults, all of it, whoever calls Close how often.
func (w *world) duet(i int, plan *Duet) {
	time.Sleep(plan.Start)
	who := fmt.Sprintf("duet %d", i)
	there, here, err := w.shake(i, plan)
	if err != nil {
		w.story.add(who, "no session: %v", err)
		if w.plan.still() {
			w.fail("error without a cause", "%s: no session: %v", who, err)
		}
		return
	}
	var up, down atomic.Int64
	upStream, downStream := streamOf(1000+i, Client), streamOf(1000+i, Server)
	a := &voice{
		world: w, who: who + ", who closes", conn: there, draw: newDraw(w.plan.Seed, uint64(100+2*i)), own: upStream, length: plan.Up,
		chunk: plan.Chunk, written: &up, theirs: pattern.Checker{Stream: downStream, Length: plan.Down}, sung: &down, records: plan.Records, brim: plan.Brim,
	}
	b := &voice{
		world: w, who: who + ", the other", conn: here, draw: newDraw(w.plan.Seed, uint64(101+2*i)), own: downStream, length: plan.Down,
		chunk: plan.Chunk, written: &down, theirs: pattern.Checker{Stream: upStream, Length: plan.Up}, sung: &up, records: plan.Records, brim: plan.Brim,
	}
	var all sync.WaitGroup
	all.Go(func() { b.sing() })
	all.Go(func() { b.end(b.listen()) })
	all.Go(func() { a.listen() })
	all.Go(func() {
		if err := a.sing(); err != nil && w.plan.still() {
			w.fail("error without a cause", "%s: write: %v", a.who, err)
		}
		a.close(plan)
	})
	all.Wait()
	there.Abort(nil)
	here.Abort(nil)
}

// shake makes a session over the network between two nodes.
func (w *world) shake(i int, plan *Duet) (there, here *session.Conn, err error) {
	client, server := session.Config{}, session.Config{Replay: session.NewReplayCache()}
	w.plan.Nodes[plan.From].tune(&client)
	w.plan.Nodes[plan.To].tune(&server)
	if client.Key, err = session.GenerateKey(); err != nil {
		return nil, nil, err
	}
	if server.Key, err = session.GenerateKey(); err != nil {
		return nil, nil, err
	}
	server.Authorize = func(k session.PublicKey) bool { return k == client.Key.Public() }
	address := netip.AddrPortFrom(nodeIP(plan.To, 0), uint16(duetPorts+i)).String()
	l, err := w.net.listen(address)
	if err != nil {
		return nil, nil, err
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	raw, err := w.net.dial(ctx, nodeIP(plan.From, 0), address)
	if err != nil {
		return nil, nil, err
	}
	accepted, err := l.Accept()
	if err != nil {
		raw.Close()
		return nil, nil, err
	}
	var responded sync.WaitGroup
	var refused error
	responded.Go(func() { here, refused = session.Respond(ctx, accepted, server) })
	there, err = session.Initiate(ctx, raw, server.Key.Public(), client)
	responded.Wait()
	if err = errors.Join(err, refused); err == nil {
		return there, here, nil
	}
	for _, c := range []*session.Conn{there, here} {
		if c != nil {
			c.Abort(nil)
		}
	}
	return nil, nil, err
}

// sing writes all that this end has to say, in all the ways that a Conn has.
func (v *voice) sing() error {
	for sent := int64(0); sent < v.length; {
		p := make([]byte, min(v.length-sent, int64(v.next())))
		v.own.Fill(p, sent)
		sent += int64(len(p))
		v.written.Store(sent)
		if err := v.write(p); err != nil {
			return err
		}
	}
	return nil
}

// next is how much is written next.
func (v *voice) next() int {
	switch {
	case !v.brim:
		return v.draw.between(1, v.chunk)
	case v.draw.chance(0.5):
		return v.draw.between(1, 100)
	}
	return session.MaxBody - v.draw.between(0, 100)
}

// write has the bytes leave in order, whichever way they take.
func (v *voice) write(p []byte) error {
	ways := 4
	if !v.marked {
		ways = 2 // what waits in turn could be overtaken
	}
	switch v.draw.IntN(ways) {
	case 0:
		v.marked = false
		_, err := v.conn.Write(p)
		return err
	case 2:
		if len(p) < 4<<10 {
			if mark, ok := v.conn.TryFirst(p, v.mark, true); ok {
				v.mark = mark
				return nil
			}
		}
	case 3:
		if len(p) < 4<<10 {
			defer v.conn.FlushFirst()
			return v.conn.QueueFirst(p, v.mark)
		}
	}
	defer v.conn.Flush()
	for len(p) > 0 {
		b := session.NewBuffer()
		n := copy(b.Body()[:v.conn.Grain()], p)
		if err := v.conn.BeginTurn(n); err != nil {
			b.Free()
			return err
		}
		var err error
		v.mark, err = v.conn.QueueBuffer(b, n)
		v.conn.EndTurn()
		if err != nil {
			return err
		}
		v.marked = true
		p = p[n:]
	}
	return nil
}

// listen reads and checks until the session ends, and returns how.
func (v *voice) listen() error {
	buf := make([]byte, 100<<10)
	bodies := make([][]byte, 0, max(v.records, 1))
	for {
		var err error
		if v.records == 0 {
			var n int
			n, err = v.conn.Read(buf)
			v.hear(buf[:n])
		} else {
			bodies, err = v.conn.ReadRecords(bodies[:0])
			for _, b := range bodies {
				v.hear(b)
			}
		}
		if err != nil {
			return err
		}
	}
}

func (v *voice) hear(p []byte) {
	w := v.world
	if _, err := v.theirs.Write(p); err != nil {
		w.fail("wrong bytes", "%s: %v", v.who, err)
	}
	if v.theirs.Offset > v.sung.Load() {
		w.fail("more bytes", "%s: %d were read, %d were written", v.who, v.theirs.Offset, v.sung.Load())
	}
}

// end checks how it ended for who did not close.
func (v *voice) end(err error) {
	w := v.world
	w.story.add(v.who, "read %d of %d: %v", v.theirs.Offset, v.theirs.Length, err)
	violation := (*session.Violation)(nil)
	switch {
	case errors.As(err, &violation) && !w.plan.tampers():
		w.fail("violation", "%s: %v", v.who, err)
	case err == io.EOF && !v.theirs.Whole():
		w.fail("silent truncation", "%s: a sealed close after %d of %d bytes", v.who, v.theirs.Offset, v.theirs.Length)
	case err != io.EOF && w.plan.still():
		w.fail("error without a cause", "%s: after %d of %d bytes: %v", v.who, v.theirs.Offset, v.theirs.Length, err)
	}
}

// close closes as often as planned, each time in a goroutine of its own.
func (v *voice) close(plan *Duet) {
	var all sync.WaitGroup
	for range plan.Closes {
		all.Go(func() {
			if err := v.conn.Close(); err != nil && !errors.Is(err, net.ErrClosed) && v.world.plan.still() {
				v.world.fail("error without a cause", "%s: close: %v", v.who, err)
			}
		})
		time.Sleep(plan.Gap / 3)
	}
	all.Wait()
}
