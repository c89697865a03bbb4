//go:build !linux

package proxy

import (
	"errors"
	"net"

	"github.com/sealane/sealane/mux"
)

// A sockReader reads from a conn's socket.
type sockReader struct{ lazy mux.LazyReader }

func (r *sockReader) init(c *conn) { r.lazy = mux.Lazy(c.socket) }

func (r *sockReader) read(take func() [][]byte, drop func()) (int, error) {
	return r.lazy.ReadLazy(take, drop)
}

func (r *sockReader) release() {}

// A sockWriter never writes without waiting.
type sockWriter struct{}

func (w *sockWriter) write([][]byte) (int, error) { return 0, nil }

// broken is known on Linux only.
func (c *conn) broken() bool { return false }

// limitKernel works on Linux only.
func (c *conn) limitKernel(bool) {}

func setMark(uintptr, uint32) error { return errors.New("socket marks exist on Linux only") }

func resetOnClose(uintptr) error { return nil }

func urgentInLine(uintptr) error { return nil }

// setSharing works on Linux only: elsewhere a reload cannot bind beside its
// own socket, and is refused.
func setSharing(uintptr, bool) error { return errors.New("ports are shared on Linux only") }

func bindsIPv6Only() bool { return false }

// spareDescriptor refuses waiting connections on Linux only.
type spareDescriptor struct{}

func (*spareDescriptor) hold() {}

func (*spareDescriptor) free() {}

func (*spareDescriptor) refuse(net.Listener) bool { return false }

func closeOnExec(int) {}
