//go:build !linux

package proxy

import "errors"

// Without epoll no connection sleeps.

type poller struct{}

func newPoller() (*poller, error) { return nil, errors.ErrUnsupported }

func (*poller) run() {}

func (*poller) close() {}

type sleeper struct{ poller *poller }

func (c *conn) canSleep() bool { return false }

func (c *conn) register(func()) {}

func (c *conn) sleep() bool { return false }

func (c *conn) unregister() {}
