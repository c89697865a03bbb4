package proxy

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"slices"
	"sync"
	"time"

	socks5 "github.com/armon/go-socks5"
	//lint:ignore SA1019 go-socks5 still takes its contexts from here.
	netctx "golang.org/x/net/context"

	"github.com/sealane/sealane/mux"
)

const socksVersion = 5

// Replies of RFC 1928.
const (
	replyOK          byte = 0
	replyGeneral     byte = 1
	replyDenied      byte = 2
	replyUnreachable byte = 4
	replyRefused     byte = 5
	replyTTLExpired  byte = 6
)

// socksReply is the reply for a connection that was not opened.
func socksReply(r Result) byte {
	switch r {
	case ResultDenied, ResultNoRoute, ResultBadRequest:
		return replyDenied
	case ResultRefused:
		return replyRefused
	case ResultUnreachable, ResultNameNotFound:
		return replyUnreachable
	case ResultTimedOut:
		return replyTTLExpired
	}
	return replyGeneral // unknown service, overloaded, no link
}

// socks5 serves a SOCKS5 client. go-socks5 speaks the protocol up to its
// reply; then the connection is taken back from it, with what it has read
// ahead, and spliced like any other.
func (l *listener) socks5(cfg *Listener, rec *record, c net.Conn) {
	h := &socksHandshake{l: l, rec: rec, client: c, requested: sync.OnceFunc(l.awaitRequest(c))}
	conf := &socks5.Config{
		Resolver: unresolved{},
		Dial:     h.dial,
		Logger:   log.New(io.Discard, "", 0), // its lines hold raw client bytes
	}
	if len(cfg.Users) > 0 {
		conf.Credentials = newCredentials(cfg.Users)
	} else {
		// Some clients offer nothing but a user and a password.
		conf.AuthMethods = []socks5.Authenticator{socks5.NoAuthAuthenticator{}, socks5.UserPassAuthenticator{Credentials: anybody{}}}
	}
	server, err := socks5.New(conf)
	r := &hearing{Reader: c}
	if err == nil {
		h.greeting, err = readGreeting(r)
	}
	if err == nil {
		err = server.ServeConn(socksConn{c, h})
	}
	h.requested()
	c.SetDeadline(time.Time{}) // the reply is written
	switch {
	case !r.heard:
		newConn(c, nil).reset()
		rec.unused()
	case h.failure != nil:
		rec.failed(h.failure)
		l.closeRefused(c)
	case h.far == nil:
		rec.failed(&failure{result: ResultBadRequest, reason: h.explain(err)})
		l.closeRefused(c)
	case !h.replied:
		h.far.abort(mux.ResetApp)
		newConn(c, nil).reset()
		rec.failed(&failure{result: ResultReset, reason: "the app went away before the reply"})
	default:
		l.carry(rec, newConn(c, h.ahead), h.far)
	}
}

// A socksHandshake is one client's handshake. go-socks5 runs it and calls the
// methods below in one goroutine at a time.
type socksHandshake struct {
	l         *listener
	rec       *record
	client    net.Conn
	requested func() // ends the request's deadline
	greeting  []byte // read already, and not yet by go-socks5

	far     far      // once it is open
	failure *failure // or why it is not
	replied bool     // the reply was written
	ahead   []byte   // what go-socks5 had read behind the request
}

// readGreeting reads a client's first message and returns it with its methods in
// order: go-socks5 takes the first that it knows, and none at all is to go before
// a user and a password. What is no greeting it returns as far as it has read.
func readGreeting(r io.Reader) ([]byte, error) {
	b := make([]byte, 2, 2+255)
	if _, err := io.ReadFull(r, b[:1]); err != nil || b[0] != socksVersion {
		return b[:1], err
	}
	if _, err := io.ReadFull(r, b[1:]); err != nil {
		return nil, err
	}
	b = b[:2+int(b[1])]
	_, err := io.ReadFull(r, b[2:])
	slices.Sort(b[2:])
	return b, err
}

// dial is called with the request's destination. It returns a stand-in for
// the target: go-socks5 is to write its reply and give up the connection.
func (h *socksHandshake) dial(_ netctx.Context, _, addr string) (net.Conn, error) {
	h.requested()
	dest, err := ParseDestination(addr)
	if err != nil {
		h.failure = &failure{result: ResultDenied, reason: err.Error()}
		return nil, h.failure
	}
	h.rec.target = dest.String()
	far, f := h.l.open(h.rec, h.client, Target{}, dest)
	h.client.SetWriteDeadline(time.Now().Add(h.l.p.waits.request)) // for the reply
	if f != nil {
		h.failure = f
		return nil, f
	}
	h.far = far
	return &handedBack{h: h}, nil
}

// explain says why there was no request, without the client's bytes.
func (h *socksHandshake) explain(err error) string {
	var ne net.Error
	switch {
	case h.l.p.draining.Err() != nil:
		return "shutting down"
	case errors.As(err, &ne) && ne.Timeout():
		return "no SOCKS5 request in time"
	case err == nil:
		return "SOCKS5 command other than CONNECT"
	}
	return fmt.Sprintf("SOCKS5 handshake failed: %q", err.Error())
}

// A socksConn is the client's connection as go-socks5 sees it.
type socksConn struct {
	net.Conn
	h *socksHandshake
}

func (c socksConn) Read(b []byte) (int, error) {
	if len(c.h.greeting) > 0 {
		n := copy(b, c.h.greeting)
		c.h.greeting = c.h.greeting[n:]
		return n, nil
	}
	return c.Conn.Read(b)
}

// Write puts the right code into the reply to a failed request: go-socks5
// itself picks one of three by the words in an error's text.
func (c socksConn) Write(b []byte) (int, error) {
	if f := c.h.failure; f != nil && len(b) > 1 {
		b = bytes.Clone(b)
		b[1] = socksReply(f.result)
	}
	n, err := c.Conn.Write(b)
	if err == nil && c.h.far != nil {
		c.h.replied = true
	}
	return n, err
}

// WriteTo is called for what the client sends after the request, once what
// was read ahead has been written. There is nothing to copy here.
func (c socksConn) WriteTo(io.Writer) (int64, error) { return 0, nil }

// Close leaves the connection open: the listener owns it.
func (c socksConn) Close() error { return nil }

// A handedBack stands for the target. It takes what go-socks5 had read ahead,
// and makes its copying end at once.
type handedBack struct {
	net.Conn // nil: go-socks5 calls nothing else
	h        *socksHandshake
}

// LocalAddr must be a *net.TCPAddr, or go-socks5 panics. It goes into the
// reply, where it tells the client nothing.
func (*handedBack) LocalAddr() net.Addr { return &net.TCPAddr{IP: net.IPv4zero} }

func (t *handedBack) Write(b []byte) (int, error) {
	t.h.ahead = append(t.h.ahead, b...)
	return len(b), nil
}

func (*handedBack) WriteTo(io.Writer) (int64, error) { return 0, nil }

func (*handedBack) CloseWrite() error { return nil }

func (*handedBack) Close() error { return nil }

// unresolved leaves names to the peer.
type unresolved struct{}

func (unresolved) Resolve(ctx netctx.Context, _ string) (netctx.Context, net.IP, error) {
	return ctx, nil, nil
}

// credentials holds hashes, so that comparing takes one time for all lengths.
type credentials map[string][sha256.Size]byte

func newCredentials(users []User) credentials {
	c := make(credentials, len(users))
	for _, u := range users {
		c[u.Name] = sha256.Sum256([]byte(u.Password))
	}
	return c
}

// anybody is for a listener without users.
type anybody struct{}

func (anybody) Valid(string, string) bool { return true }

func (c credentials) Valid(user, password string) bool {
	want, known := c[user]
	got := sha256.Sum256([]byte(password))
	return subtle.ConstantTimeCompare(want[:], got[:]) == 1 && known
}
