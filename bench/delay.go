package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

const (
	oneWay = 25 * time.Millisecond

	// Bytes under way at most: what lets 2 GB/s through at this distance, more than anything here carries,
	// and what Linux's largest default TCP window allows.
	anyRate   = 96 << 20
	tcpWindow = 6 << 20
)

// runDelay is the hidden subcommand that puts distance between two proxies: a
// forwarder that delivers each byte delay after it came in, both ways, at whatever rate the bytes come.
// At most flight bytes are under way in a direction at a time, a byte counting from its arrival until
// its acknowledgement could be back at the sender, as in a TCP window.
//
// The first round trip, TCP's own handshake, isn't delayed.
func runDelay(l net.Listener, to string, delay time.Duration, flight int) error {
	return acceptLoop(l, func(c net.Conn) {
		out, err := net.Dial("tcp", to)
		if err != nil {
			hangUp(c)
			return
		}
		joinConns(c, out, func(dst io.Writer, src io.Reader) error {
			return delayCopy(dst, src, delay, flight)
		})
	})
}

const (
	maxMarks  = 16384 // reads under way at a time
	delayRead = 256 << 10
)

// mark is what one read call brought and when it's due: at the receiver, or as free room at the sender.
type mark struct {
	n   int
	err error
	at  time.Time
}

// delayLine is one direction of the forwarder: a ring that the reader fills and the writer empties. Neither
// channel ever blocks its sender, since the reader allows no more than maxMarks marks at a time.
type delayLine struct {
	ring      []byte
	delay     time.Duration
	due       chan mark     // reader to writer: bytes in the ring
	delivered chan mark     // writer to reader: room in the ring, once acknowledged
	done      chan struct{} // the writer has gone

	// the reader's own
	room, marks int
	next        *mark // received from delivered, not due yet
}

// delayCopy copies until the end of src, which it returns nil for, delay after it came.
func delayCopy(dst io.Writer, src io.Reader, delay time.Duration, flight int) error {
	d := &delayLine{
		ring: make([]byte, flight), delay: delay, room: flight,
		due: make(chan mark, maxMarks), delivered: make(chan mark, maxMarks), done: make(chan struct{}),
	}
	go d.read(src)
	return d.write(dst)
}

func (d *delayLine) read(src io.Reader) {
	defer close(d.due)
	for at := 0; d.reclaim(); {
		n, err := src.Read(d.ring[at:min(at+min(d.room, delayRead), len(d.ring))])
		at = (at + n) % len(d.ring)
		d.room -= n
		d.marks++
		d.due <- mark{n, err, time.Now().Add(d.delay)}
		if err != nil {
			return
		}
	}
}

// reclaim takes back the room of acknowledged bytes, waits for some when there is none, and reports
// whether the writer is still there.
func (d *delayLine) reclaim() bool {
	for {
		full := d.room == 0 || d.marks == maxMarks
		if d.next == nil && !d.nextDelivered(full) {
			return !full
		}
		wait := time.Until(d.next.at)
		if wait > 0 && !full {
			return true
		}
		time.Sleep(wait)
		d.room += d.next.n
		d.marks--
		d.next = nil
	}
}

// nextDelivered fetches the next delivered mark. It waits for one if told to, until the writer has gone.
func (d *delayLine) nextDelivered(wait bool) bool {
	select {
	case m := <-d.delivered:
		d.next = &m
		return true
	default:
	}
	if !wait {
		return false
	}
	select {
	case m := <-d.delivered:
		d.next = &m
		return true
	case <-d.done:
		return false
	}
}

func (d *delayLine) write(dst io.Writer) error {
	defer close(d.done)
	at := 0
	for m := range d.due {
		time.Sleep(time.Until(m.at))
		if m.n > 0 {
			if _, err := dst.Write(d.ring[at : at+m.n]); err != nil {
				return fmt.Errorf("deliver: %w", err)
			}
		}
		at = (at + m.n) % len(d.ring)
		if m.err != nil && !errors.Is(m.err, io.EOF) {
			return m.err
		}
		d.delivered <- mark{n: m.n, at: time.Now().Add(d.delay)}
	}
	return nil
}
