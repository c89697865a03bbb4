package ops

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/sealane/sealane/lab"
	"github.com/sealane/sealane/session"
)

// TestHostilePeer has a peer with a valid key, and a mux of its own, take what
// it can of a sidecar's memory, beside an honest peer. That one sees no error,
// and what is resident stays within limits.memory and a constant.
func TestHostilePeer(t *testing.T) {
	unhurried(t)
	for _, attack := range []struct {
		name string
		run  func(h *hostile) string
	}{
		{"unfinished opens", func(h *hostile) string { return h.unfinishedOpens(size(12_000, 130_000)) }},
		{"tiny frames", func(h *hostile) string { return h.tinyFrames(size(40, 200)) }},
		{"all links", func(h *hostile) string { return h.allLinks(size(100, 1024)) }},
		{"unread", func(h *hostile) string { return h.unread(size(500, 1500), 50_000) }},
	} {
		t.Run(attack.name, func(t *testing.T) {
			beside(t)
			testHostile(t, attack.run)
		})
	}
}

// unhurried is for tests that keep a machine busy for longer than go test ./...
// has.
func unhurried(t *testing.T) {
	t.Helper()
	if !lab.Long() && os.Getenv("CI") == "" {
		t.Skip("ten seconds of a busy machine: with CI set, or SEALANE_LAB=long")
	}
}

const hostileMemory = 64 << 10 // KiB

func testHostile(t *testing.T, attack func(h *hostile) string) {
	p := newPair(t)
	h := &hostile{t: t, link: p.link}
	dir := lab.TempDir(t, "")
	public := lab.Key(t, dir+"/hostile.key")
	h.key = readKey(t, dir+"/hostile.key")
	peer, err := session.ParsePublicKey(p.farKey)
	if err != nil {
		t.Fatal(err)
	}
	h.peer = peer
	config := strings.Replace(p.farConfig("[near, hostile]"), "peers: [", fmt.Sprintf("peers: [{name: hostile, keys: [%q]}, ", public), 1)
	p.far.start(config + fmt.Sprintf("  - {name: hangs, address: %q, allow: [hostile]}\nlimits: {memory: 64MiB, links: %d}\n", blackhole(t), size(100, 1024)))
	p.far.ready()
	p.near.start(p.nearConfig(fmt.Sprintf("[%q]", p.farKey)))
	p.near.ready()
	lab.Eventually(t, "the link is up", func() bool { return p.near.metric(`sealane_link_up{peer="far"}`) == 1 })

	alone := p.throughput(t, func() {})
	before := lab.PeakResident(t, p.far.Process)
	var what string
	beside := p.throughput(t, func() { what = attack(h) })
	peak := lab.PeakResident(t, p.far.Process)
	if r := p.setups(t, 3); r.first < 3 {
		t.Errorf("links of the honest peer's: %v", r)
	}
	h.hangUp()
	t.Logf("%s: peak resident %d MiB, %d before, limits.memory %d; honest peer %.0f MiB/s, %.0f alone",
		what, peak>>10, before>>10, hostileMemory>>10, beside, alone)
	if peak > hostileMemory+residentBase {
		t.Error("too much memory")
	}
	if lab.Long() && beside < alone/4 { // half, and a margin for the attacker's own use of the machine
		t.Error("the honest peer has lost its throughput")
	}
}

// throughput is what the honest peer's transfers come to, in MiB/s, while
// something runs and for some time.
func (p *pair) throughput(t *testing.T, run func()) float64 {
	const each = 1 << 20
	var bytes atomic.Int64
	stop := make(chan struct{})
	begun := time.Now()
	var wg sync.WaitGroup
	for i := range 2 {
		wg.Go(func() {
			for seed := uint64(i); ; seed += 2 {
				if err := p.tally.Run(lab.Transfer{Seed: seed, Up: each, Down: each}, p.transfers, transferLimit); err != nil {
					t.Errorf("a transfer of the honest peer's: %v", err)
				}
				bytes.Add(2 * each)
				select {
				case <-stop:
					return
				default:
				}
			}
		})
	}
	run()
	time.Sleep(size(500*time.Millisecond, 5*time.Second))
	close(stop)
	wg.Wait()
	return float64(bytes.Load()) / (1 << 20) / time.Since(begun).Seconds()
}

func readKey(t *testing.T, file string) *session.PrivateKey {
	t.Helper()
	pem, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	key, err := session.ParsePrivateKey(pem)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// blackhole is an address that answers no connection: of a listener whose queue
// is full.
func blackhole(t *testing.T) (address string) {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Close(fd) })
	address = lab.Address(t)
	to, err := net.ResolveTCPAddr("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Port: to.Port, Addr: [4]byte(to.IP.To4())}); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	for {
		c, err := net.DialTimeout("tcp", address, 300*time.Millisecond)
		if err != nil {
			return address
		}
		t.Cleanup(func() { c.Close() })
	}
}

// A hostile peer speaks sessions, and yamux as it likes.
type hostile struct {
	t    *testing.T
	link string
	key  *session.PrivateKey
	peer session.PublicKey

	mu    sync.Mutex
	conns []*session.Conn
}

// A hostileLink counts what its peer has acknowledged and refused.
type hostileLink struct {
	conn           *session.Conn
	id             uint32
	unacked        chan struct{}
	acked, refused atomic.Int64
}

// maxUnacked is less than what is a violation.
const maxUnacked = 200

func (h *hostile) dial() (*hostileLink, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c, err := new(net.Dialer).DialContext(ctx, "tcp", h.link)
	if err != nil {
		return nil, err
	}
	conn, err := session.Initiate(ctx, c, h.peer, session.Config{Key: h.key})
	if err != nil {
		return nil, err
	}
	h.mu.Lock()
	h.conns = append(h.conns, conn)
	h.mu.Unlock()
	l := &hostileLink{conn: conn, id: 1, unacked: make(chan struct{}, maxUnacked)}
	go l.read()
	return l, nil
}

func (h *hostile) mustDial() *hostileLink {
	l, err := h.dial()
	if err != nil {
		h.t.Fatal(err)
	}
	return l
}

func (h *hostile) hangUp() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, c := range h.conns {
		c.Abort(nil)
	}
}

// read takes in what comes, and ends no stream.
func (l *hostileLink) read() {
	const overloaded = 7
	r := bufio.NewReader(l.conn)
	var header [12]byte
	for {
		if _, err := io.ReadFull(r, header[:]); err != nil {
			return
		}
		if header[3]&2 != 0 && header[1] == 1 {
			l.acked.Add(1)
			<-l.unacked
		}
		switch n := binary.BigEndian.Uint32(header[8:]); header[1] {
		case 0:
			body := make([]byte, n)
			if _, err := io.ReadFull(r, body); err != nil {
				return
			}
			if len(body) > 4 && body[0] == 2 && body[4] == overloaded {
				l.refused.Add(1)
			}
		case 2:
			if header[3] == 1 {
				l.conn.Write(yamux(2, 2, 0, int(n), ""))
			}
		}
	}
}

// yamux is a header, and what is behind it.
func yamux(kind byte, flags uint16, id uint32, length int, body string) []byte {
	b := []byte{0, kind}
	b = binary.BigEndian.AppendUint16(b, flags)
	b = binary.BigEndian.AppendUint32(b, id)
	b = binary.BigEndian.AppendUint32(b, uint32(length))
	return append(b, body...)
}

func frame(kind byte, body string) string {
	return string([]byte{kind, byte(len(body) >> 16), byte(len(body) >> 8), byte(len(body))}) + body
}

// begin opens a stream with these bytes in it.
func (l *hostileLink) begin(text string) error {
	select {
	case l.unacked <- struct{}{}:
	case <-l.conn.Done():
		return l.conn.Err()
	}
	id := l.id
	l.id += 2
	_, err := l.conn.Write(append(yamux(1, 1, id, 0, ""), yamux(0, 0, id, len(text), text)...))
	return err
}

const openHangs = `{"to":"hangs","from":"","via":"forward"}`

// unfinishedOpens opens streams that lack the last byte of their OPEN.
func (h *hostile) unfinishedOpens(count int) string {
	const links = 5
	text := frame(1, strings.Repeat("x", 4096))
	text = text[:len(text)-1]
	var wg sync.WaitGroup
	var acked, refused, broken atomic.Int64
	for range links {
		wg.Go(func() {
			l, err := h.dial()
			if err != nil {
				h.t.Error(err)
				return
			}
			for range count / links {
				if err := l.begin(text); err != nil {
					broken.Add(1)
					break
				}
			}
			acked.Add(l.acked.Load())
			refused.Add(l.refused.Load())
		})
	}
	wg.Wait()
	return fmt.Sprintf("%d SYNs with an unfinished OPEN of 4 KiB, %d acknowledged, %d refused, %d links ended", count, acked.Load(), refused.Load(), broken.Load())
}

// tinyFrames has links with a burst of frames of one byte each.
func (h *hostile) tinyFrames(links int) string {
	frames := strings.Repeat(frame(3, "x"), 8000)
	for range links {
		l := h.mustDial()
		if err := l.begin(frame(1, openHangs)); err != nil {
			h.t.Error(err)
		}
		for range 6 {
			if _, err := l.conn.Write(yamux(0, 0, 1, len(frames), frames)); err != nil {
				break
			}
		}
	}
	return fmt.Sprintf("%d links with a burst of 48,000 frames each", links)
}

// allLinks has as many links as it gets.
func (h *hostile) allLinks(most int) string {
	n := 0
	for range most {
		if _, err := h.dial(); err != nil {
			break
		}
		n++
	}
	return fmt.Sprintf("%d links of %d", n, most)
}

// unread sends bytes for streams whose dial hangs.
func (h *hostile) unread(count, each int) string {
	l := h.mustDial()
	text := frame(1, openHangs) + frame(3, strings.Repeat(string([]byte{byte(rand.IntN(256))}), each))
	sent := 0
	for ; sent < count; sent++ {
		if l.begin(text) != nil {
			break
		}
	}
	return fmt.Sprintf("%d streams of %d with %d bytes unread each, %d of them refused", sent, count, each, l.refused.Load())
}
