//go:build !linux

package proxy

import (
	"errors"
	"net"
)

// Without epoll no connection sleeps.

type poller struct{}

func newPoller() (*poller, error) { return nil, errors.ErrUnsupported }

func (*poller) run() {}

func (*poller) close() {}

// watch notices nothing here: what is being opened goes on until it times out.
func (*poller) watch(net.Conn, func()) (stop func()) { return func() {} }

type sleeper struct{ poller *poller }

func (c *conn) canSleep() bool { return false }

func (c *conn) register(func()) {}

func (c *conn) sleep() bool { return false }

func (c *conn) unregister() {}
