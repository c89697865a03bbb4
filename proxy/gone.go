package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/sealane/sealane/mux"
)

// errAppGone ends what is being opened for an app that has gone. It makes the
// peer see the app's reset.
var errAppGone = fmt.Errorf("the app has gone: %w", &mux.ResetError{Code: mux.ResetApp})

// open opens the way to where an app's connection goes, see reach, and gives up
// as soon as the app has gone, here and at the peer: hundreds of them would
// otherwise hold their places until the dial times out.
//
// An app has gone when it has reset its connection. One that has only ended its
// direction awaits its answer, or has sent what is to be delivered: TCP does not
// tell the two apart, and neither has gone.
func (l *listener) open(rec *record, app net.Conn, to Target, dest Destination) (far, *failure) {
	ctx, cancel := context.WithCancelCause(l.p.ctx)
	defer cancel(nil)
	defer l.p.poller.watch(app, func() { cancel(errAppGone) })()
	far, f := l.p.reach(ctx, rec, l, to, dest)
	if f != nil && errors.Is(context.Cause(ctx), errAppGone) {
		f = &failure{result: ResultReset, reason: "the app went away before it was answered"}
	}
	return far, f
}
