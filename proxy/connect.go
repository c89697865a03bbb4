package proxy

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/sealane/sealane/mux"
)

// maxConnectHead bounds a CONNECT request's head.
const maxConnectHead = 8 << 10

// connect serves a client of HTTP CONNECT (RFC 9110, section 9.3.6). Requests
// with any other method are refused, never forwarded.
func (l *listener) connect(cfg *Listener, rec *record, c net.Conn) {
	requested := l.awaitRequest(c)
	r := &hearing{Reader: c}
	head, ahead, err := readHead(r)
	var dest Destination
	if err == nil {
		dest, err = parseConnect(head, cfg.Users)
	}
	requested()
	c.SetWriteDeadline(time.Now().Add(l.p.waits.request)) // for the answer
	var bad *badRequest
	switch {
	case err != nil && !r.heard:
		newConn(c, nil).reset()
		rec.unused()
		return
	case errors.As(err, &bad):
		writeAnswer(c, bad.status, bad.header, bad.reason)
		rec.failed(&failure{result: bad.result, reason: bad.reason})
		l.closeRefused(c)
		return
	case err != nil:
		newConn(c, nil).reset()
		rec.failed(&failure{result: ResultBadRequest, reason: "no HTTP request: " + err.Error()})
		return
	}
	rec.target = dest.String()
	far, f := l.open(rec, c, Target{}, dest)
	c.SetWriteDeadline(time.Now().Add(l.p.waits.request))
	if f != nil {
		writeAnswer(c, connectStatus(f.result), "", string(f.result))
		rec.failed(f)
		l.closeRefused(c)
		return
	}
	if _, err := c.Write([]byte("HTTP/1.1 200 Connection established\r\n\r\n")); err != nil {
		far.abort(mux.ResetApp)
		newConn(c, nil).reset()
		rec.failed(&failure{result: ResultReset, reason: "the app went away before the answer"})
		return
	}
	c.SetWriteDeadline(time.Time{})
	l.carry(rec, newConn(c, ahead), far)
}

// connectStatus is the HTTP status for a connection that was not opened.
func connectStatus(r Result) string {
	switch r {
	case ResultDenied, ResultNoRoute:
		return "403 Forbidden"
	case ResultTimedOut:
		return "504 Gateway Timeout"
	case ResultOverloaded, ResultNoLink, ResultCut:
		return "503 Service Unavailable"
	}
	return "502 Bad Gateway" // unknown service, refused, unreachable, no such name
}

// writeAnswer refuses a request. reason is a word or sentence of this
// program's own, never the client's bytes.
func writeAnswer(c net.Conn, status, header, reason string) {
	body := reason + "\n"
	fmt.Fprintf(c, "HTTP/1.1 %s\r\n%sContent-Type: text/plain\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s",
		status, header, len(body), body)
}

// A badRequest is a request that is answered with an error status.
type badRequest struct {
	status, header, reason string
	result                 Result
}

func (e *badRequest) Error() string { return e.status + ": " + e.reason }

func malformed(reason string) *badRequest {
	return &badRequest{"400 Bad Request", "", reason, ResultBadRequest}
}

var errHeadTooLong = &badRequest{"431 Request Header Fields Too Large", "", "the request's head is longer than 8 KiB", ResultBadRequest}

var emptyLine = []byte("\r\n")

// readHead reads a request's head, up to and with its empty line, and returns
// it and what came behind it. One empty line ahead of it is ignored (RFC 9112,
// section 2.2).
func readHead(c io.Reader) (head, ahead []byte, err error) {
	buf := make([]byte, 0, 1<<10)
	for {
		if len(buf) == cap(buf) {
			if len(buf) >= maxConnectHead {
				return nil, nil, errHeadTooLong
			}
			buf = append(make([]byte, 0, 2*cap(buf)), buf...)
		}
		n, err := c.Read(buf[len(buf):cap(buf)])
		seen := max(0, len(buf)-3)
		buf = buf[:len(buf)+n]
		if i := bytes.Index(buf[seen:], []byte("\r\n\r\n")); i >= 0 {
			end := seen + i + 4
			return bytes.TrimPrefix(buf[:end], emptyLine), buf[end:], nil
		}
		if start := bytes.TrimPrefix(buf, emptyLine); len(start) > 0 && !isTokenByte(start[0]) && string(start) != "\r" {
			return nil, nil, malformed("not an HTTP request")
		}
		if err != nil {
			return nil, nil, err
		}
	}
}

// parseConnect reads a head strictly: lines end with CRLF, a request line is
// CONNECT HOST:PORT HTTP/1.x, fields are NAME: VALUE without folding, and no
// body is announced.
func parseConnect(head []byte, users []User) (Destination, error) {
	lines := strings.Split(strings.TrimSuffix(string(head), "\r\n\r\n"), "\r\n")
	dest, err := parseRequestLine(lines[0])
	if err != nil {
		return Destination{}, err
	}
	authorized := len(users) == 0
	for _, line := range lines[1:] {
		name, value, err := parseField(line)
		if err != nil {
			return Destination{}, err
		}
		switch strings.ToLower(name) {
		case "proxy-authorization":
			authorized = authorized || basicAuthorized(value, users)
		case "transfer-encoding":
			return Destination{}, malformed("a CONNECT request has no body")
		case "content-length":
			if value != "0" {
				return Destination{}, malformed("a CONNECT request has no body")
			}
		}
	}
	if !authorized {
		return Destination{}, &badRequest{
			"407 Proxy Authentication Required", "Proxy-Authenticate: Basic realm=\"proxy\"\r\n",
			"no valid user and password", ResultBadRequest,
		}
	}
	return dest, nil
}

// onlyConnect is for people who meant this listener for plain http:// requests.
const onlyConnect = "this proxy takes CONNECT alone, no http:// requests: set HTTPS_PROXY and not HTTP_PROXY to it, " +
	"or tell the client to tunnel (curl --proxytunnel), or use a socks5 listener"

func parseRequestLine(line string) (Destination, error) {
	parts := strings.Split(line, " ")
	if len(parts) != 3 || strings.ContainsFunc(line, isControl) {
		return Destination{}, malformed("not a request line")
	}
	switch version := parts[2]; {
	case version == "HTTP/1.1", version == "HTTP/1.0":
	case strings.HasPrefix(version, "HTTP/"):
		return Destination{}, &badRequest{"505 HTTP Version Not Supported", "", "only HTTP/1.1 and HTTP/1.0 are spoken here", ResultBadRequest}
	default:
		return Destination{}, malformed("not a request line")
	}
	if parts[0] != "CONNECT" {
		return Destination{}, &badRequest{"405 Method Not Allowed", "Allow: CONNECT\r\n", onlyConnect, ResultBadRequest}
	}
	dest, err := ParseDestination(parts[1])
	if err != nil {
		return Destination{}, malformed("the request's target is not a valid HOST:PORT")
	}
	return dest, nil
}

// parseField reads one header field (RFC 9112, section 5).
func parseField(line string) (name, value string, err error) {
	name, value, ok := strings.Cut(line, ":")
	if !ok || name == "" || strings.ContainsFunc(name, func(r rune) bool { return r > 0x7f || !isTokenByte(byte(r)) }) {
		return "", "", malformed("a header field without a valid name")
	}
	value = strings.Trim(value, " \t")
	if strings.ContainsFunc(value, func(r rune) bool { return isControl(r) && r != '\t' }) {
		return "", "", malformed("a header field with control characters")
	}
	return name, value, nil
}

func isControl(r rune) bool { return r < 0x20 || r == 0x7f }

// isTokenByte says whether c may stand in a method or field name.
func isTokenByte(c byte) bool {
	return isLabelByte(c) || strings.IndexByte("!#$%&'*+.^`|~", c) >= 0
}

func basicAuthorized(value string, users []User) bool {
	scheme, encoded, _ := strings.Cut(value, " ")
	if !strings.EqualFold(scheme, "Basic") {
		return false
	}
	raw, err := base64.StdEncoding.DecodeString(strings.TrimLeft(encoded, " "))
	if err != nil {
		return false
	}
	name, password, ok := strings.Cut(string(raw), ":")
	return ok && newCredentials(users).Valid(name, password)
}

// closeRefused closes a connection whose client was answered. What the client
// has sent and nobody will read must not turn the close into a reset, which
// could overtake the answer: so the end is sent first, and a little of that
// is read.
func (l *listener) closeRefused(c net.Conn) {
	defer c.Close()
	cw, ok := c.(interface{ CloseWrite() error })
	if !ok || cw.CloseWrite() != nil {
		return
	}
	c.SetReadDeadline(time.Now().Add(l.p.waits.linger))
	var buf [4 << 10]byte
	for read := 0; read < maxLinger; {
		n, err := c.Read(buf[:])
		if err != nil {
			return
		}
		read += n
	}
}

// maxLinger is how many bytes of a refused client are read before it hangs up.
const maxLinger = 256 << 10
