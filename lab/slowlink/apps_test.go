//go:build linux

package slowlink

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sealane/sealane/test/pattern"
)

// What an app asks of the target, in the first byte. Behind upload and download
// comes the number of a pattern.Stream.
const (
	askUpload   = 'u'
	askDownload = 'd'
	askEcho     = 'e'
	askOne      = '1' // one byte, answered by one
)

// messageSize is that of an echo.
const messageSize = 128

// patience is how long an app waits for a new connection or an answer.
const patience = 30 * time.Second

// A target is what the apps talk to.
type target struct{ uploaded atomic.Int64 }

// serve listens on a TCP address, and tells on a unix socket how much has
// come.
func (x *target) serve(address, counter string) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	c, err := net.Listen("unix", counter)
	if err != nil {
		return err
	}
	go accept(c, func(c net.Conn) error {
		return binary.Write(c, binary.BigEndian, x.uploaded.Load())
	})
	fmt.Println("listening")
	return accept(l, x.answer)
}

func accept(l net.Listener, serve func(net.Conn) error) error {
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			if err := serve(c); errors.As(err, new(*pattern.Wrong)) {
				fmt.Println(err)
			}
		}()
	}
}

func (x *target) answer(c net.Conn) error {
	head := make([]byte, 1)
	if _, err := io.ReadFull(c, head); err != nil {
		return err
	}
	switch head[0] {
	case askOne:
		_, err := c.Write(head)
		return err
	case askEcho:
		message := make([]byte, messageSize)
		for {
			if _, err := io.ReadFull(c, message); err != nil {
				return err
			}
			if _, err := c.Write(message); err != nil {
				return err
			}
		}
	}
	var seed uint64
	if err := binary.Read(c, binary.BigEndian, &seed); err != nil {
		return err
	}
	if head[0] == askDownload {
		return send(c, pattern.Stream(seed))
	}
	return receive(c, pattern.Stream(seed), &x.uploaded)
}

func send(c net.Conn, s pattern.Stream) error {
	for n := uint64(0); ; n++ {
		if _, err := c.Write(s.Chunk(n)); err != nil {
			return err
		}
	}
}

func receive(c net.Conn, s pattern.Stream, count *atomic.Int64) error {
	buf := make([]byte, 64<<10)
	for offset := int64(0); ; {
		n, err := c.Read(buf)
		if err := s.Check(buf[:n], offset); err != nil {
			return err
		}
		offset += int64(n)
		count.Add(int64(n))
		if err != nil {
			return err
		}
	}
}

// A load is what the apps do.
type load struct {
	Address, Counter string
	Count            int  // bulk transfers
	Down             bool // they are downloads
	Warm, Alone      time.Duration
	Beside           time.Duration
}

// A result is what they saw. Rates are of the apps' bytes, in Mbit/s.
type result struct {
	Connects, Trips []time.Duration
	Alone, Beside   float64

	mu     sync.Mutex
	Failed []string
}

func (l load) dial() (net.Conn, error) {
	c, err := net.DialTimeout("tcp", l.Address, patience)
	if err != nil {
		return nil, err
	}
	c.(*net.TCPConn).SetLinger(0)
	return c, c.SetDeadline(time.Now().Add(patience))
}

// run prints a result.
func (l load) run() error {
	echo, err := l.open(time.Now().Add(patience))
	if err != nil {
		return err
	}
	downloaded := new(atomic.Int64)
	var r result
	for i := range l.Count {
		go func() {
			for {
				r.failed(fmt.Errorf("bulk: %w", l.bulk(uint64(i)*7, downloaded)))
			}
		}()
	}
	time.Sleep(l.Warm)
	alone := l.meter(downloaded)
	time.Sleep(l.Alone)
	r.Alone = alone()
	beside := l.meter(downloaded)
	end := time.Now().Add(l.Beside)
	var wg sync.WaitGroup
	wg.Go(func() { r.repeat(end, &r.Connects, l.connect) })
	wg.Go(func() { r.repeat(end, &r.Trips, func() error { return trip(echo) }) })
	time.Sleep(time.Until(end))
	r.Beside = beside()
	wg.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	slices.Sort(r.Connects)
	slices.Sort(r.Trips)
	return json.NewEncoder(os.Stdout).Encode(&r)
}

// open returns a connection that echoes, once there is one.
func (l load) open(end time.Time) (net.Conn, error) {
	for {
		c, err := l.dial()
		if err == nil {
			c.Write([]byte{askEcho})
			if err = trip(c); err == nil {
				return c, nil
			}
			c.Close()
		}
		if time.Now().After(end) {
			return nil, err
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// bulk is one transfer. It goes on until the process ends.
func (l load) bulk(seed uint64, count *atomic.Int64) error {
	c, err := l.dial()
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Time{})
	ask := byte(askUpload)
	if l.Down {
		ask = askDownload
	}
	if _, err := c.Write(binary.BigEndian.AppendUint64([]byte{ask}, seed)); err != nil {
		return err
	}
	if l.Down {
		return receive(c, pattern.Stream(seed), count)
	}
	return send(c, pattern.Stream(seed))
}

// meter begins to measure the rate at which bulk arrives.
func (l load) meter(downloaded *atomic.Int64) (rate func() float64) {
	count := func() (n int64) {
		if l.Down {
			return downloaded.Load()
		}
		c, err := net.Dial("unix", l.Counter)
		if err == nil {
			defer c.Close()
			err = binary.Read(c, binary.BigEndian, &n)
		}
		if err != nil {
			panic(err)
		}
		return n
	}
	begin, from := time.Now(), count()
	return func() float64 { return float64(count()-from) * 8 / 1e6 / time.Since(begin).Seconds() }
}

// repeat does something time and again, and notes how long it took.
func (r *result) repeat(end time.Time, took *[]time.Duration, do func() error) {
	for time.Now().Before(end) {
		begin := time.Now()
		err := do()
		d := time.Since(begin)
		if err != nil {
			r.failed(err)
		}
		*took = append(*took, d)
		time.Sleep(20 * time.Millisecond)
	}
}

func (r *result) failed(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.Failed = append(r.Failed, err.Error())
}

// connect makes a connection and has one byte answered.
func (l load) connect() error {
	c, err := l.dial()
	if err != nil {
		return err
	}
	defer c.Close()
	b := []byte{askOne}
	if _, err := c.Write(b); err != nil {
		return err
	}
	_, err = io.ReadFull(c, b)
	return err
}

// trip has a message echoed.
func trip(c net.Conn) error {
	c.SetDeadline(time.Now().Add(patience))
	message := make([]byte, messageSize)
	if _, err := c.Write(message); err != nil {
		return err
	}
	_, err := io.ReadFull(c, message)
	return err
}
