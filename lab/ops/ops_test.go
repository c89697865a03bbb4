package ops

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sealane/sealane/lab"
)

// The tests that may run beside others wait for sidecars more than they work,
// in their quick form. -parallel on the command line still counts: it is read
// later.
func TestMain(m *testing.M) {
	if lab.Quick() {
		if err := flag.Set("test.parallel", "8"); err != nil {
			panic(err)
		}
	}
	lab.Main(m)
}

// size picks the size of a test's form.
func size[T any](short, long T) T {
	if lab.Long() {
		return long
	}
	return short
}

// quick picks what is less where somebody waits for the tests.
func quick[T any](less, usual T) T {
	if lab.Quick() {
		return less
	}
	return usual
}

// beside lets a test run beside others where somebody waits for the tests. In
// CI it has the machine to itself, and what it logs is a measurement.
func beside(t *testing.T) {
	if lab.Quick() {
		t.Parallel()
	}
}

// transferLimit is when an app must know, on a loaded machine too.
const transferLimit = 2 * time.Minute

// A node is a sidecar with its files, which outlives its process.
type node struct {
	*lab.Process
	t      *testing.T
	dir    string
	name   string
	admin  string
	config string   // as last written, without what write adds
	under  []string // a program that starts the sidecar
	flags  []string
}

// newNode is a node with a key, and the key's public name.
func newNode(t *testing.T, dir, name string) (n *node, key string) {
	t.Helper()
	return &node{t: t, dir: dir, name: name, admin: lab.Address(t)}, lab.Key(t, filepath.Join(dir, name+".key"))
}

func (n *node) file() string { return filepath.Join(n.dir, n.name+".yaml") }

// write replaces the config at once, as an editor or a ConfigMap does. It sets
// an identity unless the config has one.
func (n *node) write(config string) {
	n.t.Helper()
	n.config = config
	if !strings.Contains(config, "identity:") {
		config = "identity: " + n.name + ".key\n" + config
	}
	config = "admin: " + n.admin + "\n" + config
	if err := os.WriteFile(n.file()+".new", []byte(config), 0o600); err != nil {
		n.t.Fatal(err)
	}
	if err := os.Rename(n.file()+".new", n.file()); err != nil {
		n.t.Fatal(err)
	}
}

// start runs the sidecar with a config. Ready does not wait for links.
func (n *node) start(config string) {
	n.t.Helper()
	n.write(config)
	args := append(append(n.under, lab.Build(n.t), "run", "-c", n.file()), n.flags...)
	n.Process = lab.Start(n.t, "", args[0], args[1:]...)
	lab.Eventually(n.t, n.name+" is there", func() bool { return n.metric("go_goroutines") > 0 })
}

func (n *node) ready() { n.t.Helper(); lab.Ready(n.t, n.admin) }

func (n *node) metric(name string) float64 { return lab.Metric(n.admin, name) }

// reload sends HUP and waits until the sidecar has counted the reload.
func (n *node) reload(result string) {
	n.t.Helper()
	before := n.reloads(result)
	n.Process.Process.Signal(syscall.SIGHUP)
	n.reloaded(result, before)
}

func (n *node) reloads(result string) float64 {
	return n.metric(fmt.Sprintf("sealane_config_reloads_total{result=%q}", result))
}

func (n *node) reloaded(result string, before float64) {
	n.t.Helper()
	lab.Eventually(n.t, n.name+" reloads", func() bool { return n.reloads(result) > before })
}

// linksSince waits until every link is younger than a step, as an operator
// sees in sealane status.
func (n *node) linksSince(step time.Time) {
	n.t.Helper()
	lab.Eventually(n.t, "the links of "+n.name+" are new", func() bool {
		var status struct {
			Peers []struct {
				Links []struct {
					Age float64 `json:"age_seconds"`
				} `json:"links"`
			} `json:"peers"`
		}
		out, err := lab.Try(n.t, nil, lab.Build(n.t), "status", "--json", "--admin", n.admin)
		if err != nil || json.Unmarshal([]byte(out), &status) != nil {
			return false
		}
		elapsed, links := time.Since(step).Seconds(), 0
		for _, p := range status.Peers {
			for _, l := range p.Links {
				links++
				if l.Age >= elapsed {
					return false
				}
			}
		}
		return links > 0
	})
}

// stop drains the sidecar and returns its exit code.
func (n *node) stop() int {
	n.Process.Process.Signal(syscall.SIGTERM)
	return n.ended()
}

// ended waits for the sidecar's end and returns its exit code.
func (n *node) ended() int {
	n.Wait()
	return n.ProcessState.ExitCode()
}

// logged waits for words in the log.
func (n *node) logged(words ...string) {
	n.t.Helper()
	lab.Eventually(n.t, fmt.Sprintf("%s logs %q", n.name, words), func() bool {
		for line := range strings.Lines(n.Out.String()) {
			found := true
			for _, w := range words {
				found = found && strings.Contains(line, w)
			}
			if found {
				return true
			}
		}
		return false
	})
}

// A pair is two sidecars with a target behind far and two ways to it through
// near: a transfer's target and an echo.
type pair struct {
	near, far         *node
	nearKey, farKey   string
	link              string
	target            *lab.Target
	tally             lab.Tally
	echo              string // where the echo is
	transfers, echoes string // near's listeners
}

func newPair(t *testing.T) *pair {
	t.Helper()
	dir := lab.TempDir(t, "")
	p := &pair{link: lab.Address(t), transfers: lab.Address(t), echoes: lab.Address(t)}
	p.near, p.nearKey = newNode(t, dir, "near")
	p.far, p.farKey = newNode(t, dir, "far")
	p.target = lab.NewTarget(t, &p.tally)
	p.echo = serve(t, func(c *net.TCPConn) {
		if _, err := io.Copy(c, c); err != nil {
			c.SetLinger(0)
		}
	})
	return p
}

// start runs both with what the configs have beside the usual.
func (p *pair) start(near, far string) {
	p.near.t.Helper()
	p.far.start(p.farConfig("[near]") + far)
	p.far.ready()
	p.near.start(p.nearConfig(fmt.Sprintf("[%q]", p.farKey)) + near)
	p.near.ready()
}

func (p *pair) nearConfig(farKeys string) string {
	return fmt.Sprintf(`peers: [{name: far, keys: %s, address: "%s"}]
listeners:
  - {forward: "%s", to: {peer: far, service: transfers}}
  - {forward: "%s", to: {peer: far, service: echo}}
`, farKeys, p.link, p.transfers, p.echoes)
}

func (p *pair) farConfig(allow string) string {
	return fmt.Sprintf(`listen: %s
peers: [{name: near, keys: [%q]}]
services:
  - {name: transfers, address: "%s", allow: %s}
  - {name: echo, address: "%s", allow: %s}
`, p.link, p.nearKey, p.target.Address, allow, p.echo, allow)
}

// serve runs a TCP server until the test ends.
func serve(t *testing.T, handle func(*net.TCPConn)) (address string) {
	t.Helper()
	return serveOn(t, "tcp", lab.Address(t), func(c net.Conn) { handle(c.(*net.TCPConn)) })
}

// serveOn runs a server until the test ends.
func serveOn(t *testing.T, network, address string, handle func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				handle(c)
			}()
		}
	}()
	return l.Addr().String()
}

// load runs transfers through an address, each on a connection of its own,
// until done is called. Then it waits for the last of them and returns how
// many there were.
func load(t *testing.T, tally *lab.Tally, address string, clients int, most uint32) (done func() int64) {
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for i := range clients {
		wg.Go(func() {
			random := rand.New(rand.NewPCG(uint64(i), 5))
			for {
				select {
				case <-stop:
					return
				default:
				}
				x := lab.Transfer{Seed: random.Uint64(), Up: random.Uint32N(most), Down: random.Uint32N(most)}
				if err := tally.Run(x, address, transferLimit); err != nil {
					t.Logf("transfer: %v", err)
					select {
					case <-stop:
					case <-time.After(100 * time.Millisecond): // no need for thousands of lines
					}
				}
			}
		})
	}
	return func() int64 {
		close(stop)
		wg.Wait()
		return tally.Complete.Load()
	}
}

// A busy stream sends random pieces to an echo and checks what comes back,
// over and over.
type busy struct {
	stop   chan struct{}
	rounds int
	bytes  int64
	err    error
	done   chan struct{}
}

// keepBusy opens count streams and returns once each has gone around.
func keepBusy(t *testing.T, address string, count, piece int) []*busy {
	t.Helper()
	streams := make([]*busy, count)
	var ready sync.WaitGroup
	for i := range streams {
		b := &busy{stop: make(chan struct{}), done: make(chan struct{})}
		streams[i] = b
		ready.Add(1)
		go func() {
			defer close(b.done)
			b.err = b.run(address, rand.New(rand.NewPCG(uint64(i), 7)), piece, sync.OnceFunc(ready.Done))
		}()
	}
	ready.Wait()
	for i, b := range streams {
		select {
		case <-b.done:
			t.Fatalf("stream %d: %v", i, b.err)
		default:
		}
	}
	return streams
}

var errEcho = errors.New("another echo than what was sent")

func (b *busy) run(address string, random *rand.Rand, piece int, started func()) error {
	defer started()
	c, err := net.Dial("tcp", address)
	if err != nil {
		return err
	}
	defer c.Close()
	sent, got := make([]byte, piece), make([]byte, piece)
	for {
		for i := range sent {
			sent[i] = byte(random.Uint32())
		}
		c.SetDeadline(time.Now().Add(transferLimit))
		n := 1 + random.IntN(piece)
		if _, err := c.Write(sent[:n]); err != nil {
			return err
		}
		if _, err := io.ReadFull(c, got[:n]); err != nil {
			return err
		}
		if string(got[:n]) != string(sent[:n]) {
			return errEcho
		}
		b.rounds++
		b.bytes += int64(n)
		started()
		select {
		case <-b.stop:
			return b.end(c.(*net.TCPConn))
		case <-time.After(time.Duration(random.IntN(20)) * time.Millisecond): // as apps do
		}
	}
}

// end half-closes and wants the echo's clean end.
func (b *busy) end(c *net.TCPConn) error {
	if err := c.CloseWrite(); err != nil {
		return err
	}
	if n, err := c.Read(make([]byte, 1)); err != io.EOF {
		return fmt.Errorf("no clean end but %d bytes, %v", n, err)
	}
	return nil
}

// finish ends the streams and returns how many broke, and their rounds.
func finish(t *testing.T, streams []*busy) (broken, rounds int) {
	t.Helper()
	for _, b := range streams {
		close(b.stop)
	}
	for i, b := range streams {
		<-b.done
		rounds += b.rounds
		if b.err != nil {
			broken++
			t.Logf("stream %d, after %d rounds: %v", i, b.rounds, b.err)
		}
	}
	return broken, rounds
}

// isReset reports whether an app saw an abort and no clean end.
func isReset(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}
