package mux

import (
	"bytes"
	"crypto/sha256"
	"io"
	"sync"
	"testing"
)

// TestManyStreams moves hashed data over many streams in both directions at
// the same time, some of them slow.
func TestManyStreams(t *testing.T) {
	a, b := pair(t, echo, func(c *Config) { c.Handler = echo }, nil)
	var wg sync.WaitGroup
	for i := range 100 {
		from, to := a, "b"
		if i%4 == 3 {
			from, to = b, "a"
		}
		wg.Go(func() {
			s, err := from.Open(testContext(t), to, toEcho)
			if err != nil {
				t.Error(err)
				return
			}
			want := randomBytes(uint64(i), 300_000+i)
			go func() {
				if _, err := s.ReadFrom(bytes.NewReader(want)); err != nil {
					t.Error(err)
				}
				s.CloseWrite()
			}()
			h := sha256.New()
			n, err := s.WriteTo(h)
			if err != nil || n != int64(len(want)) || !bytes.Equal(h.Sum(nil), sum(want)) {
				t.Errorf("stream %d: %d bytes, %v", i, n, err)
			}
		})
	}
	wg.Wait()
	eventually(t, "no streams are left", func() bool { return a.streams.Load() == 0 && b.streams.Load() == 0 })
}

func sum(b []byte) []byte { h := sha256.Sum256(b); return h[:] }

func BenchmarkOpen(b *testing.B) {
	a, _ := pair(b, func(in *Inbound) {
		if s, err := in.Accept(); err == nil {
			io.Copy(io.Discard, s)
			s.CloseWrite()
		}
	}, nil, nil)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			s, err := a.Open(testContext(b), "b", toEcho)
			if err != nil {
				b.Error(err)
				return
			}
			s.CloseWrite()
			io.Copy(io.Discard, s)
		}
	})
}

func BenchmarkUpload(b *testing.B) {
	a, _ := pair(b, func(in *Inbound) {
		if s, err := in.Accept(); err == nil {
			io.Copy(io.Discard, s)
			s.CloseWrite()
		}
	}, nil, nil)
	s := open(b, a, "b")
	p := make([]byte, 128<<10)
	b.SetBytes(int64(len(p)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.Write(p); err != nil {
			b.Fatal(err)
		}
	}
	s.CloseWrite()
	io.Copy(io.Discard, s)
}
