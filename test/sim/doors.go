package sim

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/sealane/sealane/proxy"
)

// Ports of a proxy's listeners. Each app that comes by a forward has one of its
// own, and a service, for a forward names no target.
const (
	connectPort      = 8118
	connectUsersPort = 8119
	socksPort        = 8120
	socksUsersPort   = 8121
	forwardPorts     = 20000 // and an app's number
)

const userName, userPassword = "user", "a password"

// forwarded says that the app's target is a service.
func (a *App) forwarded() bool { return a.Via == ViaForward || a.Via == ViaBalancer }

// authorized says that the app's listener knows users.
func (a *App) authorized() bool { return a.Via == ViaConnectUser || a.Via == ViaSOCKSUser }

// port is where the app's listener is.
func (a *App) port() uint16 {
	switch a.Via {
	case ViaConnectUser:
		return connectUsersPort
	case ViaSOCKS:
		return socksPort
	case ViaSOCKSUser:
		return socksUsersPort
	case ViaForward, ViaBalancer:
		return uint16(forwardPorts + a.ID)
	}
	return connectPort
}

func (a *App) service() string { return fmt.Sprintf("app-%d", a.ID) }

func loopback(port uint16) proxy.Endpoint {
	return proxy.Endpoint{Network: "tcp", Address: fmt.Sprintf("127.0.0.1:%d", port)}
}

// listeners are those of a node that knows some peers.
func (n *node) listeners(peers []string) []proxy.Listener {
	users := []proxy.User{{Name: "another", Password: userPassword}, {Name: userName, Password: userPassword}}
	list := []proxy.Listener{
		{Kind: proxy.KindConnect, Address: loopback(connectPort)},
		{Kind: proxy.KindConnect, Address: loopback(connectUsersPort), Users: users},
		{Kind: proxy.KindSOCKS5, Address: loopback(socksPort)},
		{Kind: proxy.KindSOCKS5, Address: loopback(socksUsersPort), Users: users},
	}
	for i := range n.world.plan.Apps {
		a := &n.world.plan.Apps[i]
		if to := n.world.nodes[a.To].name; a.forwarded() && a.From == n.index && slices.Contains(peers, to) {
			list = append(list, proxy.Listener{
				Kind: proxy.KindForward, Address: loopback(a.port()), To: proxy.Target{Peer: to, Service: a.service()},
				ProxyProtocol: a.Via == ViaBalancer,
			})
		}
	}
	return list
}

// services are what forwards of others lead to.
func (n *node) services(peers []string) (list []proxy.Service) {
	for i := range n.world.plan.Apps {
		if a := &n.world.plan.Apps[i]; a.forwarded() && a.To == n.index {
			list = append(list, proxy.Service{
				Name: a.service(), Address: proxy.Endpoint{Network: "tcp", Address: targetOf(a)}, Allow: peers, ProxyProtocol: a.Announced,
			})
		}
	}
	return list
}

// A message is something that a client says to a listener before its bytes
// flow, and what it expects then.
type message struct {
	text   []byte
	answer func(*bufio.Reader) error // nil: none
}

// head is all that an app says.
func (a *App) head(password string) []message {
	switch a.Via {
	case ViaForward:
		return nil
	case ViaBalancer:
		return []message{{text: proxyHeader(balanced(a), netip.MustParseAddrPort(targetOf(a)))}}
	case ViaSOCKS, ViaSOCKSUser:
		return a.socks(password)
	}
	head := "CONNECT " + targetOf(a) + " HTTP/1.1\r\nHost: " + targetOf(a) + "\r\n"
	if a.authorized() {
		head += "Proxy-Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte(userName+":"+password)) + "\r\n"
	}
	return []message{{[]byte(head + "\r\n"), connectAnswer}}
}

func (a *App) socks(password string) (list []message) {
	method := byte(0)
	if a.authorized() {
		method = 2
	}
	list = append(list, message{[]byte{5, 1, method}, exactly("SOCKS5 method", []byte{5, method})})
	if a.authorized() {
		text := append([]byte{1, byte(len(userName))}, userName...)
		text = append(append(text, byte(len(password))), password...)
		list = append(list, message{text, exactly("SOCKS5 password", []byte{1, 0})})
	}
	to := netip.MustParseAddrPort(targetOf(a))
	text := []byte{5, 1, 0}
	if a.ID%2 == 0 {
		text = append(append(text, 1), to.Addr().AsSlice()...)
	} else { // an address may stand where a name does
		name := to.Addr().String()
		text = append(append(text, 3, byte(len(name))), name...)
	}
	return append(list, message{binary.BigEndian.AppendUint16(text, to.Port()), socksAnswer})
}

// A refusal is an answer: nothing was opened, and the client knows why.
type refusal string

func (r refusal) Error() string { return string(r) }

func connectAnswer(r *bufio.Reader) error {
	line, err := r.ReadString('\n')
	switch {
	case err != nil:
		return err
	case !strings.HasPrefix(line, "HTTP/1.1 200 "):
		return refusal(strings.TrimSpace(line))
	}
	_, err = r.ReadString('\n')
	return err
}

func socksAnswer(r *bufio.Reader) error {
	b := make([]byte, 10)
	if _, err := io.ReadFull(r, b[:4]); err != nil {
		return err
	}
	if b[1] != 0 {
		return refusal(fmt.Sprintf("SOCKS5 reply %d", b[1]))
	}
	_, err := io.ReadFull(r, b[4:])
	return err
}

// exactly expects an answer that has only one form.
func exactly(what string, want []byte) func(*bufio.Reader) error {
	return func(r *bufio.Reader) error {
		b := make([]byte, len(want))
		if _, err := io.ReadFull(r, b); err != nil {
			return err
		}
		if !bytes.Equal(b, want) {
			return refusal(fmt.Sprintf("%s: %x", what, b))
		}
		return nil
	}
}

// openThrough connects with the proxy of a process.
func (a *app) openThrough(ctx context.Context, p *process) (duplex, error) {
	c, err := a.world.net.dial(ctx, p.ip, netip.AddrPortFrom(p.ip, a.plan.port()).String())
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	a.from = c.local.AddrPort()
	a.mu.Unlock()
	deadline, _ := ctx.Deadline()
	c.SetDeadline(deadline)
	answers := bufio.NewReader(c)
	if err := a.greet(c, answers); err != nil {
		c.abort()
		return nil, err
	}
	c.SetDeadline(time.Time{})
	return &connected{c, answers}, nil
}

// greet says an app's head. One that is early sends all of it, and what comes
// behind, before it looks at an answer.
func (a *app) greet(c *conn, answers *bufio.Reader) error {
	messages := a.plan.head(userPassword)
	early := a.plan.Head.Early
	d := newDraw(a.world.plan.Seed, uint64(500+a.plan.ID))
	for _, m := range messages {
		if err := a.plan.Head.say(c, d, m.text); err != nil {
			return fmt.Errorf("head: %w", err)
		}
		if early == 0 && m.answer != nil {
			if err := m.answer(answers); err != nil {
				return err
			}
		}
	}
	if early == 0 {
		return nil
	}
	b := make([]byte, early)
	streamOf(a.plan.ID, Client).Fill(b, 0)
	a.early.Store(early)
	if _, err := c.Write(b); err != nil {
		return fmt.Errorf("early bytes: %w", err)
	}
	for _, m := range messages {
		if m.answer == nil {
			continue
		}
		if err := m.answer(answers); err != nil {
			return err
		}
	}
	return nil
}

// say writes a message in pieces.
func (h *Head) say(c *conn, d draw, text []byte) error {
	for cuts := h.Cuts; cuts > 0 && len(text) > 1; cuts-- {
		n := d.between(1, len(text)-1)
		if _, err := c.Write(text[:n]); err != nil {
			return err
		}
		text = text[n:]
		time.Sleep(h.Pause)
	}
	_, err := c.Write(text)
	return err
}

// visit comes to an app's listener, and nothing is to come of it: no target is
// reached, and it is not kept for longer than a head may take.
func (w *world) visit(i int, plan *Visit) {
	if plan.App >= len(w.plan.Apps) || w.plan.Apps[plan.App].Via == ViaForward {
		return // of a smaller world, which has left its app out
	}
	time.Sleep(plan.Start)
	who, a := fmt.Sprintf("visit %d", i), &w.plan.Apps[plan.App]
	running := w.nodes[a.From].running()
	if len(running) == 0 {
		return
	}
	ip := running[0].ip
	c, err := w.net.dial(context.Background(), ip, netip.AddrPortFrom(ip, a.port()).String())
	if err != nil {
		w.story.add(who, "%v", err)
		return
	}
	defer c.abort()
	password := userPassword
	if plan.Wrong {
		password = "a passwore"
	}
	var text []byte
	for _, m := range a.head(password) {
		text = append(text, m.text...)
	}
	if !plan.Wrong {
		text = text[:min(plan.Bytes, len(text)-1)]
	}
	c.Write(text) // what has ended is seen below
	c.SetReadDeadline(time.Now().Add(plan.Stay))
	answer, err := io.ReadAll(c)
	w.story.add(who, "sent %d bytes of a head, and got %q, %v", len(text), answer, err)
	if errors.Is(err, os.ErrDeadlineExceeded) && plan.Stay >= tooLong {
		w.fail("visitor waits", "%s, who has not said what it wants, is still kept after %v", who, plan.Stay)
	}
	if !plan.Wrong && carried(a.Via, answer) || plan.Wrong && err == nil && !w.plan.drains() && !turnedAway(a.Via, answer) {
		w.fail("wrong answer", "%s is answered %q", who, answer)
	}
	if !plan.Reset {
		c.Close()
	}
}

// tooLong is more than a listener waits for a head, and then for the client to
// hang up.
const tooLong = 15 * time.Second

// carried says that an answer tells of an open connection.
func carried(via Via, answer []byte) bool {
	if via == ViaSOCKS || via == ViaSOCKSUser {
		return bytes.Contains(answer, []byte{5, 0, 0, 1})
	}
	return bytes.HasPrefix(answer, []byte("HTTP/1.1 200 "))
}

// turnedAway says that an answer is the one to a wrong password.
func turnedAway(via Via, answer []byte) bool {
	if via == ViaSOCKSUser {
		return bytes.Equal(answer, []byte{5, 2, 1, 1})
	}
	return bytes.HasPrefix(answer, []byte("HTTP/1.1 407 "))
}

// announced is a target of a service that is told who comes: only then does it
// begin.
func (a *app) announced(c *conn) {
	w := a.world
	src, peer, err := readProxyHeader(c, netip.MustParseAddrPort(targetOf(a.plan)))
	if err == io.EOF || errors.As(err, new(*os.SyscallError)) {
		w.story.add(a.String(), "its target is let go before it is told who comes: %v", err)
		c.abort()
		return
	}
	a.mu.Lock()
	want := a.from
	a.mu.Unlock()
	if a.plan.Via == ViaBalancer {
		want = balanced(a.plan)
	}
	if from := w.nodes[a.plan.From].name; err != nil || src != want || peer != from {
		w.fail("wrong head", "%v: its target is told that %v of %q comes, not %v of %q: %v", a, src, peer, want, from, err)
	}
	a.serve(c)
}

// balanced is where an app's balancer says that it comes from.
func balanced(a *App) netip.AddrPort {
	ip := netip.AddrFrom4([4]byte{192, 0, 2, byte(a.ID)})
	if a.ID%2 == 1 {
		ip = netip.AddrFrom16([16]byte{0: 0x20, 1: 0x01, 2: 0x0d, 3: 0xb8, 15: byte(a.ID)})
	}
	return netip.AddrPortFrom(ip, uint16(4000+a.ID))
}

const proxySignature = "\r\n\r\n\x00\r\nQUIT\n"

// proxyHeader is PROXY protocol version 2, as a balancer sends it.
func proxyHeader(src, dst netip.AddrPort) []byte {
	family := byte(0x11)
	a, b := src.Addr().AsSlice(), dst.Addr().AsSlice()
	if src.Addr().Is6() {
		mapped := dst.Addr().As16()
		family, b = 0x21, mapped[:]
	}
	body := append(a, b...)
	body = binary.BigEndian.AppendUint16(body, src.Port())
	body = binary.BigEndian.AppendUint16(body, dst.Port())
	body = append(body, 0x04, 0, 3, 0, 0, 0) // PP2_TYPE_NOOP
	head := append([]byte(proxySignature), 0x21, family)
	return append(binary.BigEndian.AppendUint16(head, uint16(len(body))), body...)
}

// readProxyHeader reads a header with the name of a peer, and nothing behind it.
func readProxyHeader(r io.Reader, want netip.AddrPort) (src netip.AddrPort, peer string, err error) {
	head := make([]byte, 16)
	if _, err := io.ReadFull(r, head); err != nil {
		return src, "", err
	}
	body := make([]byte, binary.BigEndian.Uint16(head[14:]))
	if _, err := io.ReadFull(r, body); err != nil {
		return src, "", err
	}
	size := map[byte]int{0x11: 4, 0x21: 16}[head[13]]
	if string(head[:12]) != proxySignature || head[12] != 0x21 || size == 0 || len(body) < 2*size+4+3 {
		return src, "", fmt.Errorf("%x%x is no header", head, body)
	}
	from, _ := netip.AddrFromSlice(body[:size])
	to, _ := netip.AddrFromSlice(body[size : 2*size])
	src = netip.AddrPortFrom(from, binary.BigEndian.Uint16(body[2*size:]))
	dst := netip.AddrPortFrom(to.Unmap(), binary.BigEndian.Uint16(body[2*size+2:]))
	tlv := body[2*size+4:]
	if dst != want || tlv[0] != 0xe0 || int(binary.BigEndian.Uint16(tlv[1:])) != len(tlv)-3 {
		return src, "", fmt.Errorf("a header for %v with %x, not for %v", dst, tlv, want)
	}
	return src, string(tlv[3:]), nil
}
