package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"github.com/sealane/sealane/test/pattern"
)

// spoil is one direction of a relay that does harm.
type spoil func(dst io.Writer, src io.Reader) error

const block = 32 << 10

func flip(at int64) spoil {
	return func(dst io.Writer, src io.Reader) error {
		var one [1]byte
		if err := copyThen(dst, src, at, one[:]); err != nil {
			return err
		}
		one[0] ^= 0x10
		return writeThen(dst, src, one[:])
	}
}

func cut(at int64) spoil {
	return func(dst io.Writer, src io.Reader) error { return copyThen(dst, src, at, nil) }
}

func swap(at int64) spoil {
	return func(dst io.Writer, src io.Reader) error {
		var two [2 * block]byte
		if err := copyThen(dst, src, at, two[:]); err != nil {
			return err
		}
		return writeThen(dst, src, two[block:], two[:block])
	}
}

func repeat(at int64) spoil {
	return func(dst io.Writer, src io.Reader) error {
		var one [block]byte
		if err := copyThen(dst, src, at, one[:]); err != nil {
			return err
		}
		return writeThen(dst, src, one[:], one[:])
	}
}

func drop(at int64) spoil {
	return func(dst io.Writer, src io.Reader) error {
		if err := copyThen(dst, src, at, make([]byte, block)); err != nil {
			return err
		}
		return writeThen(dst, src)
	}
}

func surplus(dst io.Writer, src io.Reader) error {
	if err := relayCopy(dst, src); err != nil {
		return err
	}
	_, err := dst.Write([]byte{0})
	return err
}

// copyThen copies n bytes and reads the next ones into buf.
func copyThen(dst io.Writer, src io.Reader, n int64, buf []byte) error {
	if _, err := io.CopyN(dst, src, n); err != nil {
		return err
	}
	_, err := io.ReadFull(src, buf)
	return err
}

// writeThen writes some blocks and copies the rest.
func writeThen(dst io.Writer, src io.Reader, blocks ...[]byte) error {
	for _, b := range blocks {
		if _, err := dst.Write(b); err != nil {
			return err
		}
	}
	return relayCopy(dst, src)
}

// throughRelay starts a target and a relay before it, and connects to that.
func throughRelay(t *testing.T, up, down spoil) *loadConn {
	t.Helper()
	target, relay := listen(t), listen(t)
	go runTarget(target, func(error) {})
	go acceptLoop(relay, func(c net.Conn) {
		out, err := net.Dial("tcp", target.Addr().String())
		if err != nil {
			hangUp(c)
			return
		}
		joinConns(c, out, func(dst io.Writer, src io.Reader) error {
			if src == io.Reader(c) {
				return up(dst, src)
			}
			return down(dst, src)
		})
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	c, err := dial(ctx, relay.Addr().String(), 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// Each transfer has at least one chunk beside its end chunk, however short its time.
const shortest = 20 * time.Millisecond

var exchanges = map[string]func(c *loadConn) error{
	"upload": func(c *loadConn) error {
		if _, err := c.upload(shortest); err != nil {
			return err
		}
		return c.finish()
	},
	"download": func(c *loadConn) error {
		if _, err := c.download(shortest); err != nil {
			return err
		}
		return c.finish()
	},
	"echo": func(c *loadConn) error {
		if err := c.startEcho(128); err != nil {
			return err
		}
		for range 3000 {
			if err := c.echo(); err != nil {
				return err
			}
		}
		return nil
	},
}

func TestFaithfulRelay(t *testing.T) {
	for name, exchange := range exchanges {
		t.Run(name, func(t *testing.T) {
			if err := exchange(throughRelay(t, relayCopy, relayCopy)); err != nil {
				t.Error(err)
			}
		})
	}
	t.Run("several", func(t *testing.T) {
		c := throughRelay(t, relayCopy, relayCopy)
		for range 3 {
			up, err1 := c.upload(shortest)
			down, err2 := c.download(shortest)
			if err := errors.Join(err1, err2); err != nil {
				t.Fatal(err)
			}
			if up.bytes < 2*pattern.ChunkSize || down.bytes < 2*pattern.ChunkSize {
				t.Errorf("%d bytes up, %d down", up.bytes, down.bytes)
			}
		}
		if err := c.finish(); err != nil {
			t.Error(err)
		}
	})
}

// TestHarmIsSeen checks that the load client notices each kind of harm, in each direction in which bytes flow.
func TestHarmIsSeen(t *testing.T) {
	harms := map[string]func(int64) spoil{"flip": flip, "cut": cut, "swap": swap, "repeat": repeat, "drop": drop}
	for harm, spoilAt := range harms {
		for _, at := range []int64{headerSize + 5, 70_000, pattern.ChunkSize + headerSize + 1000} {
			for _, exchange := range []string{"upload", "download", "echo"} {
				if exchange == "echo" && (harm == "swap" || harm == "repeat" || harm == "drop") {
					continue // one message at a time: there are no blocks
				}
				up, down := spoilAt(at), spoil(relayCopy)
				if exchange == "download" {
					up, down = down, up
				}
				t.Run(fmt.Sprintf("%s at %d/%s", harm, at, exchange), func(t *testing.T) {
					err := exchanges[exchange](throughRelay(t, up, down))
					if err == nil {
						t.Fatal("not seen")
					}
					wrong := (*pattern.Wrong)(nil)
					if exchange == "download" && harm != "cut" && harm != "drop" && !errors.As(err, &wrong) {
						t.Errorf("not called wrong bytes: %v", err)
					}
				})
			}
		}
	}
	t.Run("wrong command", func(t *testing.T) {
		if err := exchanges["upload"](throughRelay(t, flip(9), relayCopy)); err == nil {
			t.Error("not seen")
		}
	})
	t.Run("surplus", func(t *testing.T) {
		err := exchanges["download"](throughRelay(t, relayCopy, surplus))
		if wrong := (*pattern.Wrong)(nil); !errors.As(err, &wrong) {
			t.Errorf("got %v", err)
		}
	})
}

// TestTargetReports checks that the target says what arrived wrong, and where.
func TestTargetReports(t *testing.T) {
	l := listen(t)
	reports := make(chan error, 1)
	go runTarget(l, func(err error) { reports <- err })
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	bad := bytes.Clone(pattern.Stream(7).Chunk(1))
	bad[300]++
	for _, b := range [][]byte{header{cmd: cmdUpload, seed: 7}.bytes(), pattern.Stream(7).Chunk(0), bad} {
		if _, err := c.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	wrong := (*pattern.Wrong)(nil)
	if err := <-reports; !errors.As(err, &wrong) || wrong.Offset != pattern.ChunkSize+300 {
		t.Errorf("got %v", err)
	}
}

func TestHeader(t *testing.T) {
	h := header{cmdDownload, 12, 34}
	if got, err := parseHeader(h.bytes()); err != nil || got != h {
		t.Errorf("got %v, %v", got, err)
	}
	for i := range headerSize {
		b := h.bytes()
		b[i] ^= 1
		if _, err := parseHeader(b); err == nil {
			t.Errorf("byte %d may be wrong", i)
		}
	}
}
