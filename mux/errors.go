package mux

import (
	"errors"
	"fmt"
	"strconv"
)

var (
	// ErrNoLink: no link to the peer came up in time.
	ErrNoLink = errors.New("no link to the peer")
	// ErrUnknownPeer: no peer of that name is configured.
	ErrUnknownPeer = errors.New("unknown peer")
	// ErrTruncated: a stream ended without END or RESET, because its link died
	// or its peer gave it up. What was read of it is not the whole.
	ErrTruncated = errors.New("stream ended before its end")
	// ErrClosed: the Mux is closed.
	ErrClosed = errors.New("mux closed")
	// ErrPeerRemoved: an Update took the peer, or the key of the link, away.
	ErrPeerRemoved = errors.New("peer removed")

	errGoAway = errors.New("the peer takes no more streams on this link")
)

// An OpenError is a peer's answer to an OPEN, other than ok. A limit of this
// node is reported the same way, as StatusOverloaded.
type OpenError struct {
	Status Status
	Text   string
}

func (e *OpenError) Error() string {
	if e.Text == "" {
		return "stream refused: " + e.Status.String()
	}
	return "stream refused: " + e.Status.String() + ": " + strconv.Quote(e.Text)
}

// A ResetError is a stream's error after RESET.
type ResetError struct {
	Code ResetCode
	// Remote tells whether the peer sent it.
	Remote bool
}

func (e *ResetError) Error() string {
	if e.Remote {
		return "stream reset by the peer: " + e.Code.String()
	}
	return "stream reset: " + e.Code.String()
}

// A DrainError says how many streams did not finish in a drain: it had to cut
// them, or their links ended before they did, or before the peers had taken all.
type DrainError struct{ Cut int }

func (e *DrainError) Error() string {
	return fmt.Sprintf("drain ended with %d streams cut", e.Cut)
}
