package sim

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/sealane/sealane/internal/seam"
	"github.com/sealane/sealane/mux"
	"github.com/sealane/sealane/proxy"
	"github.com/sealane/sealane/session"
)

const (
	linkPort    = 7423
	appPorts    = 1000            // and an app's number
	openTimeout = 3 * time.Minute // of an app
	dialTimeout = time.Minute     // of a proxy
)

// A node is a name that has keys, and the processes behind it.
type node struct {
	world *world
	index int
	plan  *Node
	name  string

	mu        sync.Mutex
	key       *session.PrivateKey
	known     []session.PublicKey // what its peers take for its keys
	removed   map[int]bool        // peers that it does not know at present
	processes []*process
}

// A process is a sidecar of a node: all of it that does without a kernel.
type process struct {
	node    *node
	replica int
	ip      netip.Addr
	mux     *mux.Mux
	proxy   *proxy.Proxy // nil in a world without
	links   *listener
	down    bool
}

func (w *world) newNode(index int) (*node, error) {
	key, err := session.GenerateKey()
	if err != nil {
		return nil, err
	}
	return &node{
		world: w, index: index, plan: &w.plan.Nodes[index], name: fmt.Sprintf("n%d", index),
		key: key, known: []session.PublicKey{key.Public()}, removed: make(map[int]bool),
		processes: make([]*process, w.plan.Nodes[index].Replicas),
	}, nil
}

// start starts the process of a replica.
func (n *node) start(replica int) error {
	p := &process{node: n, replica: replica, ip: nodeIP(n.index, replica)}
	cfg := n.muxConfig(p)
	var err error
	if p.mux, err = mux.New(cfg); err != nil {
		return err
	}
	if n.world.plan.Proxy {
		if p.proxy, err = proxy.New(n.proxyConfig(p), p.mux); err != nil {
			return err
		}
		if err := p.proxy.Start(); err != nil {
			return err
		}
	}
	ln, err := n.world.net.listen(netip.AddrPortFrom(p.ip, linkPort).String())
	if err != nil {
		return err
	}
	p.links = ln
	n.mu.Lock()
	n.processes[replica] = p
	n.mu.Unlock()
	go p.mux.Serve(ln)
	p.mux.Start()
	return nil
}

// running are the processes that are up.
func (n *node) running() (list []*process) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, p := range n.processes {
		if p != nil && !p.down {
			list = append(list, p)
		}
	}
	return list
}

// stop marks the process as down; what ends it is the caller's business.
func (p *process) stop() {
	p.node.mu.Lock()
	defer p.node.mu.Unlock()
	p.down = true
}

func (n *node) muxConfig(p *process) mux.Config {
	w := n.world
	cfg := mux.Config{
		Memory: n.plan.Memory, StreamsPerPeer: n.plan.Streams, Peers: n.peers(),
		HandshakeTimeout: n.plan.Handshake, DialTimeout: n.plan.Dial, Links: n.plan.Room, Handshakes: n.plan.Handshakes,
		Log:     w.logger(n.name),
		Handler: func(in *mux.Inbound) { w.serveRaw(p, in) },
		Dialer:  w.net.dialer(p.ip),
		Hooks: mux.Hooks{
			Violation: func(peer string, rule session.Rule) { w.violated(n, peer, rule) },
			Refused:   func(limit mux.Limit) { w.story.add(n.name, "refuses: %s", limit) },
		},
	}
	if w.plan.Proxy {
		cfg.Handler = func(in *mux.Inbound) { p.proxy.Handle(in) }
	}
	n.mu.Lock()
	cfg.Session.Key = n.key
	n.mu.Unlock()
	n.plan.tune(&cfg.Session)
	cfg.Tune(seam.Mux{Buffers: n.plan.Buffers})
	return cfg
}

// peers is what the node knows of the others now.
func (n *node) peers() (list []mux.Peer) {
	for _, o := range n.world.nodes {
		n.mu.Lock()
		removed := n.removed[o.index]
		n.mu.Unlock()
		if o == n || removed {
			continue
		}
		o.mu.Lock()
		p := mux.Peer{Name: o.name, Keys: append([]session.PublicKey(nil), o.known...), Links: n.plan.Links}
		o.mu.Unlock()
		for _, to := range n.plan.Dials {
			if to != o.index {
				continue
			}
			for r := range o.plan.Replicas {
				p.Addresses = append(p.Addresses, netip.AddrPortFrom(nodeIP(to, r), linkPort).String())
			}
		}
		list = append(list, p)
	}
	return list
}

func (n *node) proxyConfig(p *process) proxy.Config {
	w := n.world
	cfg := proxy.Config{
		Log:      w.logger(n.name),
		Timeouts: proxy.Timeouts{Dial: dialTimeout, Idle: n.plan.Idle, HalfClose: n.plan.HalfClose},
		Dial: func(ctx context.Context, _, address string) (net.Conn, error) {
			return w.dialTarget(ctx, p, address)
		},
		Listen: func(_ context.Context, _, address string) (net.Listener, error) {
			return w.net.listenLocal(p.ip, address)
		},
		Peers: []string{},
	}
	egress := proxy.EgressRule{Match: []proxy.Match{match("10.9.0.0/16:*")}}
	for _, peer := range n.peers() {
		cfg.Peers = append(cfg.Peers, peer.Name)
		egress.Allow = append(egress.Allow, peer.Name)
		index, _ := strconv.Atoi(peer.Name[1:])
		cfg.Routes = append(cfg.Routes, proxy.Route{
			Match: match(fmt.Sprintf("%v/32:*", targetIP(index))), To: proxy.Target{Peer: peer.Name},
		})
	}
	cfg.Listeners = n.listeners(cfg.Peers)
	if len(egress.Allow) > 0 {
		cfg.Egress = []proxy.EgressRule{egress}
		cfg.Services = n.services(cfg.Peers)
	}
	return cfg
}

func match(s string) proxy.Match {
	m, err := proxy.ParseMatch(s)
	if err != nil {
		panic(err) // a constant of this package
	}
	return m
}

// targetIP is where the targets beside a node are.
func targetIP(node int) netip.Addr { return netip.AddrFrom4([4]byte{10, 9, 0, byte(node + 1)}) }

func targetOf(a *App) string {
	return netip.AddrPortFrom(targetIP(a.To), uint16(appPorts+a.ID)).String()
}

// reload gives the node's processes what it knows now.
func (n *node) reload() {
	for _, p := range n.running() {
		err := p.mux.Update(n.muxConfig(p))
		if err == nil && p.proxy != nil {
			err = p.proxy.Update(n.proxyConfig(p))
		}
		if err != nil && !n.gone(p) {
			n.world.fail("reload", "%s: %v", n.name, err)
		}
	}
}

func (n *node) gone(p *process) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return p.down
}

// reloadAll is an operator's change of what all know.
func (w *world) reloadAll() {
	for _, n := range w.nodes {
		n.reload()
	}
}

// rotate gives the node a new key, which its peers know before.
func (n *node) rotate() error {
	key, err := session.GenerateKey()
	if err != nil {
		return err
	}
	n.mu.Lock()
	n.known = append(n.known, key.Public())
	n.mu.Unlock()
	n.world.reloadAll()
	time.Sleep(time.Second)
	n.mu.Lock()
	n.key = key
	n.mu.Unlock()
	n.reload()
	return nil
}

// forget makes the peers drop all keys of the node but its own.
func (n *node) forget() {
	n.mu.Lock()
	n.known = []session.PublicKey{n.key.Public()}
	n.mu.Unlock()
	n.world.reloadAll()
}

// drainTime is more than an app takes that is alive.
const drainTime = patience

// drain ends a process as TERM does, and starts it again.
func (p *process) drain() {
	w := p.node.world
	ctx, cancel := context.WithTimeout(context.Background(), drainTime)
	defer cancel()
	p.mux.Leave()
	if p.proxy != nil {
		if cut := p.proxy.Drain(ctx); cut > 0 {
			w.cutByDrain(p, cut)
		}
	}
	p.stop()
	err := p.mux.Drain(ctx)
	if e := (*mux.DrainError)(nil); errors.As(err, &e) {
		w.cutByDrain(p, e.Cut)
	}
	if p.proxy != nil {
		p.proxy.Close()
	}
	p.links.Close() // Serve may not have begun
	w.story.add(p.node.name, "drained: %v", err)
}

// kill ends a process without a word. Its goroutines have to end somehow.
func (p *process) kill() {
	p.stop()
	p.node.world.net.cutOff(p.ip)
	p.close()
}

func (p *process) close() {
	p.stop()
	if p.proxy != nil {
		p.proxy.Close()
	}
	p.mux.Close()
	p.links.Close() // Serve may not have begun
}

func (w *world) logger(name string) zerolog.Logger {
	return zerolog.New(w.story.teller(name)).Level(zerolog.DebugLevel)
}

// tune gives a session what the plan has for it.
func (n *Node) tune(cfg *session.Config) {
	cfg.Transform, cfg.Padding = n.Transform, n.Padding
	if n.KeyRecords > 0 {
		cfg.RekeyRecords = n.KeyRecords + 2 // room for a rekey and a close
	}
	cfg.Tune(seam.Session{PreferChaCha: n.ChaCha, Batch: n.Batch})
}
