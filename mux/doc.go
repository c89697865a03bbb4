// Package mux keeps links to peers and carries app connections over them as
// streams (SPEC.md section 7).
//
// A Mux dials its peers, accepts their links, and runs one yamux connection in
// each sealed session. Open gives a stream to a service or address behind a
// peer; Config.Handler is called for each stream that a peer opens here.
//
// What the package guarantees: a Stream's Read returns io.EOF only after the
// peer's END frame with the right count, so that a truncated transfer is never
// taken for a complete one; a stream that is not read stops itself and nothing
// else; one byte that does not belong on a link (a yamux header or a frame
// that SPEC.md does not allow) ends that link and every stream on it, before
// yamux or an app has seen that byte; and whatever outsiders can make this
// node hold (half-open handshakes, links, streams, unread bytes) is bounded.
//
// From the bottom up: guard checks yamux's bytes and carries those of streams
// (guard.go, inbound.go), within what each peer's account has room for
// (account.go, window.go, grants.go) and without a stream for those that a limit
// refuses (refusals.go); link owns a session and its yamux connection (link.go),
// and ends when it shows no sign of life (liveness.go, watch.go); Stream speaks
// frames (frame.go, parser.go) and passes app bytes on: out in splice.go, in by
// receive.go and queue.go. peer keeps links up (peer.go, dial.go, room.go),
// acceptor takes links in (accept.go), Mux ties them together (mux.go). What
// leaves first, and how much of it gathers, is session's business.
package mux
