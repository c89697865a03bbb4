package proxy

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"hash/crc32"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
)

func addrPort(s string) netip.AddrPort {
	if s == "" {
		return netip.AddrPort{}
	}
	return netip.MustParseAddrPort(s)
}

const hexSignature = "0d0a0d0a000d0a515549540a"

func TestProxyHeaderBytes(t *testing.T) {
	for _, tt := range []struct{ src, dst, want string }{
		{"192.0.2.1:1000", "10.0.0.1:5432", "21" + "11" + "0012" + "c0000201" + "0a000001" + "03e8" + "1538" + "e00003776562"},
		{"[2001:db8::1]:1000", "10.0.0.1:5432", "21" + "21" + "002a" + "20010db8000000000000000000000001" + "00000000000000000000ffff0a000001" + "03e8" + "1538" + "e00003776562"},
		{"192.0.2.1:1000", "", "21" + "11" + "0012" + "c0000201" + "00000000" + "03e8" + "0000" + "e00003776562"},
		{"", "10.0.0.1:5432", "21" + "00" + "0006" + "e00003776562"},
	} {
		got := hex.EncodeToString(appendProxyHeader(nil, addrPort(tt.src), addrPort(tt.dst), "web"))
		if got != hexSignature+tt.want {
			t.Errorf("%s to %s:\n%s, want\n%s", tt.src, tt.dst, got, hexSignature+tt.want)
		}
		back, err := readProxyHeader(bytes.NewReader(appendProxyHeader(nil, addrPort(tt.src), addrPort(tt.dst), "web")))
		if err != nil || back != addrPort(tt.src) {
			t.Errorf("%s reads back as %v, %v", tt.src, back, err)
		}
	}
}

func TestReadProxyHeader(t *testing.T) {
	sig := proxySignature
	v4 := "\xc0\x00\x02\x01\x0a\x00\x00\x01\x03\xe8\x15\x38"
	for _, tt := range []struct{ name, in, want, err string }{
		{"tcp4", sig + "\x21\x11\x00\x0c" + v4, "192.0.2.1:1000", ""},
		{"tcp4 with TLVs", sig + "\x21\x11\x00\x13" + v4 + "\x04\x00\x04abcd", "192.0.2.1:1000", ""},
		{"local", sig + "\x20\x00\x00\x00", "", ""},
		{"local with addresses", sig + "\x20\x11\x00\x0c" + v4, "", ""},
		{"unspec", sig + "\x21\x00\x00\x03abc", "", ""},
		{"version 1", "PROXY TCP4 192.0.2.1 10.0.0.1 1000 5432\r\n", "", "no PROXY protocol v2 header"},
		{"nothing", "", "", "no PROXY protocol header"},
		{"plain bytes", "GET / HTTP/1.1\r\n\r\n", "", "no PROXY protocol v2 header"},
		{"version 3", sig + "\x31\x11\x00\x0c" + v4, "", "version and command"},
		{"unknown command", sig + "\x22\x11\x00\x0c" + v4, "", "version and command"},
		{"udp", sig + "\x21\x12\x00\x0c" + v4, "", "not TCP"},
		{"unix", sig + "\x21\x31\x00\x0c" + v4, "", "not TCP"},
		{"short", sig + "\x21\x11\x00\x0b" + v4, "", "too short"},
		{"cut", sig + "\x21\x11\x00\x0c" + v4[:5], "", "ends early"},
		{"too long", sig + "\x21\x11\xff\xff" + v4, "", "of 65535 bytes"},
		{"broken TLV", sig + "\x21\x11\x00\x0e" + v4 + "\x04\x00", "", "broken TLV"},
		{"TLV too long", sig + "\x21\x11\x00\x10" + v4 + "\x04\x00\x02a", "", "broken TLV"},
		{"wrong checksum", sig + "\x21\x11\x00\x13" + v4 + "\x03\x00\x04abcd", "", "wrong checksum"},
		{"short checksum", sig + "\x21\x11\x00\x11" + v4 + "\x03\x00\x02ab", "", "broken checksum"},
	} {
		got, err := readProxyHeader(strings.NewReader(tt.in + "rest"))
		if tt.err != "" {
			if err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("%s: %v, %v, want the error %q", tt.name, got, err, tt.err)
			}
			continue
		}
		if err != nil || got != addrPort(tt.want) {
			t.Errorf("%s: %v, %v, want %s", tt.name, got, err, tt.want)
		}
	}
}

func TestProxyHeaderChecksum(t *testing.T) {
	b := []byte(proxySignature + "\x21\x11\x00\x13\xc0\x00\x02\x01\x0a\x00\x00\x01\x03\xe8\x15\x38\x03\x00\x04\x00\x00\x00\x00")
	binary.BigEndian.PutUint32(b[len(b)-4:], crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
	if got, err := readProxyHeader(bytes.NewReader(b)); err != nil || got != addrPort("192.0.2.1:1000") {
		t.Errorf("%v, %v", got, err)
	}
}

// In from a load balancer, out to the target with the peer's name.
func TestProxyProtocolEndToEnd(t *testing.T) {
	got := make(chan []byte, 1)
	target := newTarget(t, "", func(c net.Conn) {
		all, _ := io.ReadAll(c)
		got <- all
	})
	l := listenOn(t, KindForward, "127.0.0.1:0")
	l.ProxyProtocol = true
	services := serviceAt(t, target)
	services[0].ProxyProtocol = true
	n := newNodes(t, Config{Listeners: []Listener{l}}, Config{Services: services})

	c := dialTo(t, "tcp", n.web.addr(0))
	header := appendProxyHeader(nil, addrPort("192.0.2.7:4711"), addrPort("198.51.100.1:443"), "lb")
	c.Write(append(header, "payload"...))
	halfClose(t, c)
	io.Copy(io.Discard, c)
	want := append(appendProxyHeader(nil, addrPort("192.0.2.7:4711"), addrPort(target), "web"), "payload"...)
	if g := <-got; !bytes.Equal(g, want) {
		t.Errorf("the target got\n%q, want\n%q", g, want)
	}
	if o := n.link.lastOpen(t); o.From != "192.0.2.7:4711" {
		t.Errorf("opened %+v", o)
	}

	c = dialTo(t, "tcp", n.web.addr(0))
	io.WriteString(c, "no header at all, but long enough")
	wantReset(t, c)
	n.web.log.want(t, "result=bad_request", "reason=no PROXY protocol v2 header")
}

func FuzzReadProxyHeader(f *testing.F) {
	f.Add(appendProxyHeader(nil, addrPort("192.0.2.1:1"), addrPort("10.0.0.1:2"), "web"))
	f.Add(appendProxyHeader(nil, addrPort("[2001:db8::1]:1"), addrPort("10.0.0.1:2"), "web"))
	f.Add([]byte(proxySignature + "\x20\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		from, err := readProxyHeader(r)
		if err != nil {
			return
		}
		// Exactly the header was read.
		if used := len(b) - r.Len(); used != proxyHeaderLen+int(binary.BigEndian.Uint16(b[14:])) {
			t.Errorf("read %d bytes of %q", used, b)
		}
		if from.IsValid() && from.Addr().Is4In6() {
			t.Errorf("source %v is not unmapped", from)
		}
	})
}
