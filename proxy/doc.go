// Package proxy joins apps, peers and targets.
//
// It accepts connections from apps on its listeners (forward, SOCKS5, HTTP
// CONNECT, transparent), finds where they go by the route table, and opens a
// stream to that peer. At the other end it checks what a peer asks for against
// services and egress rules, dials the target and carries the bytes.
//
// One engine serves both ends: something that knows where a connection wants
// to go (a listener, or an OPEN frame), something that dials it (the routes
// over an Opener, or the exit policy over a dialer), and a splice.
//
// What it guarantees:
//
//   - A direction ends cleanly at one side only if it ended cleanly at the
//     other. Anything else, a dead link first of all, resets the connection.
//   - A half-closed connection stays open in its other direction.
//   - The address that was checked is the one that is dialed.
//   - A reader that stops stops its own sender, and holds a bounded buffer.
package proxy
