package mux

import "github.com/sealane/sealane/session/container"

// The laws of yamux headers: the yamux specification, version 0, and what no
// working peer does.
const (
	// RuleYamuxVersion: a header's version is not 0.
	RuleYamuxVersion container.Rule = "yamux-version"
	// RuleYamuxType: a header's type is not data, window update, ping or go away.
	RuleYamuxType container.Rule = "yamux-type"
	// RuleYamuxFlags: unknown flags, or flags that do not go together or with the
	// header's type.
	RuleYamuxFlags container.Rule = "yamux-flags"
	// RuleYamuxParity: a stream opened with an id of the other node's parity.
	RuleYamuxParity container.Rule = "yamux-parity"
	// RuleYamuxReuse: a stream opened with an id that was used before, or that is
	// far below the latest.
	RuleYamuxReuse container.Rule = "yamux-reuse"
	// RuleYamuxStream: a header for a stream that was never opened, is over, or is
	// not a stream's.
	RuleYamuxStream container.Rule = "yamux-stream"
	// RuleYamuxAck: an accepter's first header without ACK, or an ACK anywhere else.
	RuleYamuxAck container.Rule = "yamux-ack"
	// RuleYamuxFin: data or a second FIN after FIN.
	RuleYamuxFin container.Rule = "yamux-fin"
	// RuleYamuxWindow: more data than the window that was granted, or a grant
	// that no window can hold.
	RuleYamuxWindow container.Rule = "yamux-window"
	// RuleYamuxBacklog: more opened streams waiting for an ACK than a node allows itself.
	RuleYamuxBacklog container.Rule = "yamux-backlog"
	// RuleYamuxRate: more SYNs, RSTs or pings per second than any use needs.
	RuleYamuxRate container.Rule = "yamux-rate"
	// RuleYamuxPing: a ping with a stream id, or an answer to a ping never sent.
	RuleYamuxPing container.Rule = "yamux-ping"
	// RuleYamuxGoAway: a go away with a stream id or an unknown reason, or a second one.
	RuleYamuxGoAway container.Rule = "yamux-goaway"
)

// The laws of frames.
const (
	// RuleFrameType: a frame type that is reserved.
	RuleFrameType container.Rule = "frame-type"
	// RuleFrameLength: a length that the frame's type does not allow.
	RuleFrameLength container.Rule = "frame-length"
	// RuleFrameOrder: a frame where its type has no place.
	RuleFrameOrder container.Rule = "frame-order"
	// RuleFrameOpen: an OPEN whose JSON or whose values are not in the one legal form.
	RuleFrameOpen container.Rule = "frame-open"
	// RuleFrameOpened: an OPENED with an unknown status or text that is not printable ASCII.
	RuleFrameOpened container.Rule = "frame-opened"
	// RuleFrameCount: an END whose count is not what DATA carried.
	RuleFrameCount container.Rule = "frame-count"
)

// Rules lists the rules of this package.
func Rules() []container.Rule {
	return []container.Rule{
		RuleYamuxVersion, RuleYamuxType, RuleYamuxFlags, RuleYamuxParity, RuleYamuxReuse, RuleYamuxStream, RuleYamuxAck,
		RuleYamuxFin, RuleYamuxWindow, RuleYamuxBacklog, RuleYamuxRate, RuleYamuxPing, RuleYamuxGoAway,
		RuleFrameType, RuleFrameLength, RuleFrameOrder, RuleFrameOpen, RuleFrameOpened, RuleFrameCount,
	}
}

func violation(rule container.Rule, detail string) error {
	return &container.Violation{Rule: rule, Detail: detail}
}
