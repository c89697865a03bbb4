package main

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sealane/sealane/test/pattern"
)

// delayed starts a delay line and returns its two ends. The second is closed at the end of the stream.
func delayed(delay time.Duration, flight int) (w, r net.Conn, result chan error) {
	in, src := net.Pipe()
	dst, out := net.Pipe()
	result = make(chan error, 1)
	go func() {
		err := delayCopy(dst, src, delay, flight)
		dst.Close()
		src.Close()
		result <- err
	}()
	return in, out, result
}

func TestDelayKeepsRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const delay = 25 * time.Millisecond
		w, r, result := delayed(delay, 1<<20)
		sent := make([]byte, 300_000)
		pattern.Stream(1).Fill(sent, 0)
		start := time.Now()
		go func() {
			for rest := sent; len(rest) > 0; {
				n := min(len(rest), 1+rand.IntN(5000))
				w.Write(rest[:n])
				rest = rest[n:]
			}
			w.Close()
		}()
		got, err := io.ReadAll(r)
		if err != nil || !bytes.Equal(got, sent) {
			t.Errorf("%d bytes of %d, %v", len(got), len(sent), err)
		}
		// All the writes took no time, so all the bytes come after one delay.
		if took := time.Since(start); took != delay {
			t.Errorf("took %s", took)
		}
		if err := <-result; err != nil {
			t.Error(err)
		}
	})
}

func TestDelayFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const delay = 25 * time.Millisecond
		w, r, result := delayed(delay, 1000)
		start := time.Now()
		go func() {
			w.Write(pattern.EndChunk()[:3000])
			w.Close()
		}()
		buf := make([]byte, 1000)
		for i := range 3 {
			if _, err := io.ReadFull(r, buf); err != nil || !bytes.Equal(buf, pattern.EndChunk()[i*1000:(i+1)*1000]) {
				t.Fatalf("part %d: wrong, %v", i, err)
			}
			// Each part has to wait until the one before could be acknowledged.
			if at, want := time.Since(start), time.Duration(1+2*i)*delay; at != want {
				t.Errorf("part %d came after %s, want %s", i, at, want)
			}
		}
		if _, err := r.Read(buf); !errors.Is(err, io.EOF) {
			t.Errorf("at the end: %v", err)
		}
		if err := <-result; err != nil {
			t.Error(err)
		}
	})
}

// TestDelayEndsWithReceiver checks that nothing hangs where the receiver goes away with the line full.
func TestDelayEndsWithReceiver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, r, result := delayed(time.Millisecond, 100)
		r.Close()
		n, err := w.Write(make([]byte, 1000))
		if err == nil {
			t.Errorf("wrote %d bytes to nobody", n)
		}
		if err := <-result; err == nil {
			t.Error("no error")
		}
	})
}
