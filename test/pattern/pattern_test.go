package pattern

import (
	"bytes"
	"errors"
	"io"
	"testing"
)

// TestOneBytePlace: a byte that is lost, doubled, swapped or changed does not
// pass the checker, at any place, and what passes is all of it.
func TestOneBytePlace(t *testing.T) {
	const length = 2*ChunkSize + 1000
	s := Stream(77)
	sent, err := io.ReadAll(s.Reader(length))
	if err != nil || len(sent) != length {
		t.Fatal(len(sent), err)
	}
	filled := make([]byte, length)
	s.Fill(filled[:ChunkSize+5], 0)
	s.Fill(filled[ChunkSize+5:], ChunkSize+5)
	if !bytes.Equal(sent, filled) {
		t.Fatal("Reader and Fill differ")
	}
	c := &Checker{Stream: s, Length: length}
	if _, err := io.Copy(c, bytes.NewReader(sent)); err != nil || !c.Whole() {
		t.Fatal(err)
	}
	for _, at := range []int{0, 1, 63, ChunkSize - 1, ChunkSize, length - 40} {
		lost := append(bytes.Clone(sent[:at]), sent[at+1:]...)
		doubled := append(bytes.Clone(sent[:at+1]), sent[at:]...)
		changed := bytes.Clone(sent)
		changed[at] ^= 4
		moved := bytes.Clone(sent)
		copy(moved[at:at+32], Stream(78).Chunk(0))
		for what, bad := range map[string][]byte{"lost": lost, "doubled": doubled, "changed": changed, "moved": moved} {
			c := &Checker{Stream: s, Length: length}
			_, err := c.Write(bad)
			if wrong := (*Wrong)(nil); !errors.As(err, &wrong) && c.Whole() {
				t.Errorf("%s at %d passes", what, at)
			}
		}
	}
}

func TestLocate(t *testing.T) {
	streams := []Stream{3, 9, 1 << 40}
	got := make([]byte, 100)
	streams[2].Fill(got, 3*ChunkSize+7)
	in, offset, found := Locate(got, streams, 5*ChunkSize)
	if !found || in != streams[2] || offset != 3*ChunkSize+7 {
		t.Fatal(in, offset, found)
	}
	if _, _, found := Locate(got, streams[:2], ChunkSize); found {
		t.Fatal("found where it is not")
	}
}

func TestChunksDiffer(t *testing.T) {
	seen := make(map[*byte]bool)
	for n := range uint64(positions) {
		seen[&Stream(3).Chunk(n)[0]] = true
	}
	if len(seen) != positions || bytes.Equal(Stream(0).Chunk(0), EndChunk()) {
		t.Fatalf("%d of %d chunks differ", len(seen), positions)
	}
	_ = Stream(1<<64 - 1).Chunk(1<<64 - 1)
}
