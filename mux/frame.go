package mux

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// A frame is type (1 byte) | length (3 bytes) | body (SPEC.md section 7).
const (
	frameHeaderLen = 4

	frameOpen   byte = 1
	frameOpened byte = 2
	frameData   byte = 3
	frameEnd    byte = 4
	frameReset  byte = 5

	maxOpenBody   = 4 << 10
	maxOpenedText = 256
	maxDataBody   = 65535
	endBody       = 8
	resetBody     = 1
)

// Status is the answer to an OPEN.
type Status byte

const (
	StatusOK             Status = 0
	StatusDenied         Status = 1
	StatusUnknownService Status = 2
	StatusRefused        Status = 3
	StatusUnreachable    Status = 4
	StatusTimedOut       Status = 5
	StatusNameNotFound   Status = 6
	StatusOverloaded     Status = 7
)

var statusNames = [...]string{
	"ok", "denied", "unknown service", "refused", "unreachable", "timed out", "name not found", "overloaded",
}

func (s Status) String() string {
	if int(s) < len(statusNames) {
		return statusNames[s]
	}
	return "status " + strconv.Itoa(int(s))
}

// ResetCode says why a stream was aborted.
type ResetCode byte

const (
	ResetUnspecified  ResetCode = 0
	ResetApp          ResetCode = 1
	ResetTimedOut     ResetCode = 2
	ResetShuttingDown ResetCode = 3
	ResetOverloaded   ResetCode = 4
)

var resetNames = [...]string{"unspecified", "app reset", "timed out", "shutting down", "overloaded"}

func (c ResetCode) String() string {
	if int(c) < len(resetNames) {
		return resetNames[c]
	}
	return resetNames[0]
}

// Open says where a stream leads, as its OPEN frame does.
type Open struct {
	// To is a service name or host:port, with an IPv6 address in brackets.
	To string
	// From is the app's ip:port, "" if it came through a unix socket.
	From string
	// Via is the kind of listener that the app used: forward, socks5, connect
	// or transparent.
	Via string
}

// appendOpen appends an OPEN frame. It fails if o has no legal form.
func appendOpen(b []byte, o Open) ([]byte, error) {
	if err := o.check(); err != nil {
		return b, err
	}
	start := len(b)
	b = append(b, frameOpen, 0, 0, 0)
	b = o.appendJSON(b)
	putLength(b[start:], len(b)-start-frameHeaderLen)
	return b, nil
}

// appendJSON appends the one legal form. check has made sure that no value
// needs an escape.
func (o Open) appendJSON(b []byte) []byte {
	b = append(b, `{"to":"`...)
	b = append(b, o.To...)
	b = append(b, `","from":"`...)
	b = append(b, o.From...)
	b = append(b, `","via":"`...)
	b = append(b, o.Via...)
	return append(b, `"}`...)
}

// parseOpen reads an OPEN's body: it is legal only if a writer would have
// produced the same bytes for the same values.
func parseOpen(body []byte) (Open, error) {
	var v struct {
		To   string `json:"to"`
		From string `json:"from"`
		Via  string `json:"via"`
	}
	if json.Unmarshal(body, &v) != nil {
		return Open{}, violation(RuleFrameOpen, "OPEN is not JSON")
	}
	o := Open{To: v.To, From: v.From, Via: v.Via}
	if o.check() != nil {
		return Open{}, violation(RuleFrameOpen, "OPEN has an illegal value")
	}
	if string(o.appendJSON(make([]byte, 0, len(body)))) != string(body) {
		return Open{}, violation(RuleFrameOpen, "OPEN is not in its one form")
	}
	return o, nil
}

// check tells whether o can be written: its values are then short, ASCII and
// free of characters that JSON escapes.
func (o Open) check() error {
	if !validService(o.To) && !validHostPort(o.To) {
		return errors.New("destination is neither a service name nor host:port")
	}
	if o.From != "" {
		ap, err := netip.ParseAddrPort(o.From)
		if err != nil || ap.Addr().Zone() != "" || ap.String() != o.From {
			return errors.New("source is not ip:port")
		}
	}
	switch o.Via {
	case "forward", "socks5", "connect", "transparent":
		return nil
	}
	return errors.New("unknown kind of listener")
}

// validService matches [a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?.
func validService(s string) bool {
	if len(s) == 0 || len(s) > 63 || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}

// maxHostLen is the longest DNS name, with its final dot.
const maxHostLen = 254

// validHostPort tells whether s is host:port with a host of letters, digits,
// dots, hyphens and underscores, or an IPv6 address in brackets, and a port
// from 1 to 65535 without leading zeros. What a host means is not its concern.
func validHostPort(s string) bool {
	i := strings.LastIndexByte(s, ':')
	if i < 1 || !validPort(s[i+1:]) {
		return false
	}
	host := s[:i]
	if host[0] == '[' {
		if host[len(host)-1] != ']' {
			return false
		}
		a, err := netip.ParseAddr(host[1 : len(host)-1])
		return err == nil && a.Is6() && a.Zone() == ""
	}
	if len(host) > maxHostLen {
		return false
	}
	for i := range len(host) {
		c := host[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '.' && c != '_' {
			return false
		}
	}
	return true
}

func validPort(s string) bool {
	if len(s) == 0 || len(s) > 5 || s[0] == '0' {
		return false
	}
	n, err := strconv.ParseUint(s, 10, 16)
	return err == nil && n > 0 && s[0] != '+'
}

// appendOpened appends an OPENED frame. Characters of text that are not
// printable ASCII become '?', and it is cut to its limit.
func appendOpened(b []byte, status Status, text string) []byte {
	if len(text) > maxOpenedText {
		text = text[:maxOpenedText]
	}
	start := len(b)
	b = append(b, frameOpened, 0, 0, 0, byte(status))
	for i := range len(text) {
		c := text[i]
		if !printable(c) {
			c = '?'
		}
		b = append(b, c)
	}
	putLength(b[start:], 1+len(text))
	return b
}

func parseOpened(body []byte) (Status, string, error) {
	if int(body[0]) >= len(statusNames) {
		return 0, "", violation(RuleFrameOpened, "OPENED has an unknown status")
	}
	for _, c := range body[1:] {
		if !printable(c) {
			return 0, "", violation(RuleFrameOpened, "OPENED has a text that is not printable ASCII")
		}
	}
	return Status(body[0]), string(body[1:]), nil
}

func printable(c byte) bool { return c >= 0x20 && c < 0x7f }

func appendEnd(b []byte, count uint64) []byte {
	b = append(b, frameEnd, 0, 0, endBody)
	return binary.BigEndian.AppendUint64(b, count)
}

func appendReset(b []byte, code ResetCode) []byte {
	return append(b, frameReset, 0, 0, resetBody, byte(code))
}

func parseReset(code byte) ResetCode {
	if int(code) >= len(resetNames) {
		return ResetUnspecified
	}
	return ResetCode(code)
}

func putLength(frame []byte, n int) {
	frame[1], frame[2], frame[3] = byte(n>>16), byte(n>>8), byte(n)
}

// parseFrameHeader checks a frame's type and the bounds of its length, before
// anything is allocated for its body.
func parseFrameHeader(h [frameHeaderLen]byte) (kind byte, length int, err error) {
	kind, length = h[0], int(h[1])<<16|int(h[2])<<8|int(h[3])
	var low, high int
	switch kind {
	case frameOpen:
		low, high = 2, maxOpenBody
	case frameOpened:
		low, high = 1, 1+maxOpenedText
	case frameData:
		low, high = 1, maxDataBody
	case frameEnd:
		low, high = endBody, endBody
	case frameReset:
		low, high = resetBody, resetBody
	default:
		return 0, 0, violation(RuleFrameType, "reserved frame type "+strconv.Itoa(int(kind)))
	}
	if length < low || length > high {
		return 0, 0, violation(RuleFrameLength, fmt.Sprintf("%s frame of %d bytes", frameName(kind), length))
	}
	return kind, length, nil
}

func frameName(kind byte) string {
	switch kind {
	case frameOpen:
		return "OPEN"
	case frameOpened:
		return "OPENED"
	case frameData:
		return "DATA"
	case frameEnd:
		return "END"
	}
	return "RESET"
}

// A frameOrder follows the frames of one direction of a stream and tells
// whether the next one may come. The zero value is an opener's direction.
type frameOrder struct {
	accepter bool
	first    bool // the first frame has come
	ended    bool // END has come
	reset    bool // RESET has come
	count    uint64
}

// next checks a frame by its header. For DATA it adds to the count.
func (o *frameOrder) next(kind byte, length int) error {
	want := frameOpen
	if o.accepter {
		want = frameOpened
	}
	switch {
	case o.reset:
		return violation(RuleFrameOrder, frameName(kind)+" after RESET")
	case !o.first:
		if kind != want {
			return violation(RuleFrameOrder, frameName(kind)+" before "+frameName(want))
		}
		o.first = true
	case kind == frameOpen || kind == frameOpened:
		return violation(RuleFrameOrder, frameName(kind)+" after the first frame")
	case o.ended && kind != frameReset:
		return violation(RuleFrameOrder, frameName(kind)+" after END")
	case kind == frameData:
		o.count += uint64(length)
	case kind == frameEnd:
		o.ended = true
	case kind == frameReset:
		o.reset = true
	}
	return nil
}

// end checks an END's body against what DATA carried.
func (o *frameOrder) end(body []byte) error {
	if binary.BigEndian.Uint64(body) != o.count {
		return violation(RuleFrameCount, "END does not count what DATA carried")
	}
	return nil
}
