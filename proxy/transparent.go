package proxy

import "net"

// transparent serves a connection that redirect rules sent here.
//
// The stream is opened before the app has sent a byte: nothing is sniffed, so
// protocols in which the server speaks first work. The app's connect has long
// succeeded; a failure can only be a reset.
func (l *listener) transparent(rec *record, c net.Conn) {
	near := newConn(c, nil)
	refuse := func(f *failure) {
		near.reset()
		rec.failed(f)
	}
	t, ok := c.(*net.TCPConn)
	if !ok {
		refuse(&failure{result: ResultBadRequest, reason: "not a TCP connection"})
		return
	}
	orig, err := originalDst(t)
	if err != nil {
		refuse(&failure{result: ResultBadRequest, reason: err.Error()})
		return
	}
	dest := Destination{Addr: orig.Addr(), Port: orig.Port()}
	rec.target = dest.String()
	// A connection to this listener itself, or to any other port of this
	// process, would come back for ever.
	if why, refused := l.p.state.Load().policy.own.refuses(dest.Addr, dest.Port); refused {
		refuse(&failure{result: ResultDenied, reason: why})
		return
	}
	l.run(rec, near, Target{}, dest)
}
