package sim

import (
	"encoding/json"
	"math"
	"math/rand/v2"
	"slices"
	"time"
)

// A Plan is a world before it begins. Generate makes one of a seed; the shrinker
// leaves parts of it out, and what it is left with can be kept as JSON.
type Plan struct {
	Note   string  `json:",omitzero"` // of a kept one: what it found
	Seed   uint64  // of all that is drawn while it runs
	Proxy  bool    `json:",omitzero"` // apps connect to proxies, and proxies to targets
	Net    Net     `json:",omitzero"`
	Nodes  []Node  `json:",omitzero"`
	Apps   []App   `json:",omitzero"`
	Visits []Visit `json:",omitzero"`
	Duets  []Duet  `json:",omitzero"`
	Faults []Fault `json:",omitzero"`
	Ops    []Op    `json:",omitzero"`
}

// Net is how the network is when nothing is wrong with it.
type Net struct {
	Latency   time.Duration `json:",omitzero"` // one way
	Bandwidth int           `json:",omitzero"` // bytes per second of a direction; 0: any
	Buffer    int           `json:",omitzero"` // bytes of a direction that are sent and not read
	Pieces    Pieces        `json:",omitzero"`
	Late      float64       `json:",omitzero"` // the chance that the next piece comes later
}

// Pieces is how reads are cut.
type Pieces string

const (
	PiecesWhole Pieces = "whole" // whatever is there
	PiecesTiny  Pieces = "tiny"  // a few bytes
	PiecesEdges Pieces = "edges" // at the edges of records and headers, and a byte beside them
	PiecesMixed Pieces = "mixed" // of any size
)

// Node is a node's configuration.
type Node struct {
	Transform  string `json:",omitzero"`
	Padding    int    `json:",omitzero"`
	ChaCha     bool   `json:",omitzero"`
	KeyRecords uint64 `json:",omitzero"` // records that a key seals; 0: the usual
	Batch      int    `json:",omitzero"` // records that gather; 0: the usual
	Buffers    int    `json:",omitzero"` // that a link's streams read into; 0: the usual
	Memory     int64  `json:",omitzero"`
	Streams    int    `json:",omitzero"` // with one peer; 0: the usual
	Links      int    `json:",omitzero"` // with each node that it dials
	Dials      []int  `json:",omitzero"` // nodes
	Replicas   int    `json:",omitzero"` // processes behind its name, at least 1
	Room       int    `json:",omitzero"` // for links of all peers; 0: the usual
	Handshakes int    `json:",omitzero"` // at a time; 0: the usual

	Handshake time.Duration `json:",omitzero"` // timeouts; 0: the usual, or none
	Dial      time.Duration `json:",omitzero"`
	Idle      time.Duration `json:",omitzero"`
	HalfClose time.Duration `json:",omitzero"`
}

// App is a connection from an app beside one node to an app beside another.
type App struct {
	ID       int `json:",omitzero"`
	From, To int
	Start    time.Duration `json:",omitzero"`
	Target   Target        `json:",omitzero"`
	Via      Via           `json:",omitzero"` // with proxies: the listener
	Head     Head          `json:",omitzero"` // and how the client comes to it
	// Announced has a service's target be told who comes.
	Announced bool          `json:",omitzero"`
	Up, Down  Half          `json:",omitzero"` // from the client, and to it
	Turns     int           `json:",omitzero"` // request and response alternate, that many times; 0: both at once
	Patience  time.Duration `json:",omitzero"` // the client gives up opening after so long; 0: hardly ever
	Reset     Party         `json:",omitzero"` // resets the connection
	ResetAt   int64         `json:",omitzero"` // once it has written and read so many bytes

	ResetAfter time.Duration `json:",omitzero"` // and so long after that
	Last       Party         `json:",omitzero"` // ends its direction only once it has seen the other's end
}

// Via is a proxy's listener.
type Via string

const (
	ViaConnect     Via = "" // HTTP CONNECT
	ViaConnectUser Via = "connect, with a password"
	ViaSOCKS       Via = "socks5"
	ViaSOCKSUser   Via = "socks5, with a password"
	ViaForward     Via = "forward"  // to a service
	ViaBalancer    Via = "balancer" // a forward that is told who comes, by PROXY protocol
)

// Head is how a client says what it wants of a listener.
type Head struct {
	Cuts  int           `json:",omitzero"` // of each message
	Pause time.Duration `json:",omitzero"` // at each
	Early int64         `json:",omitzero"` // bytes that do not wait for the answer, as the rest of the head does not
}

// Visit is somebody at the listener of an app's client who never gets as far as
// a connection.
type Visit struct {
	App   int
	Start time.Duration `json:",omitzero"`
	Bytes int           `json:",omitzero"` // of a head, never all
	Wrong bool          `json:",omitzero"` // all of it, with a wrong password
	Stay  time.Duration `json:",omitzero"` // and then it goes
	Reset bool          `json:",omitzero"` // with a reset
}

// Duet is a session without a mux: both ends send, and who opened it closes it
// once it has sent everything.
type Duet struct {
	From, To int
	Start    time.Duration `json:",omitzero"`
	Up, Down int64         `json:",omitzero"` // bytes
	Chunk    int           `json:",omitzero"` // bytes that are written together, at most
	Records  int           `json:",omitzero"` // that are read together; 0: bytes are
	Brim     bool          `json:",omitzero"` // what is written fills a record but for a few bytes, or is a few bytes
	Closes   int           `json:",omitzero"` // callers of Close
	Gap      time.Duration `json:",omitzero"` // between them
}

// Target is what meets a connection at its end.
type Target string

const (
	TargetOK      Target = "ok"
	TargetRefuses Target = "refuses"
	TargetHangs   Target = "hangs" // and never answers
	TargetSlow    Target = "slow"  // answers late
)

// Party is an end of an app's connection.
type Party string

const (
	Nobody Party = ""
	Client Party = "client"
	Server Party = "server"
)

// Half is one direction of a connection.
type Half struct {
	Length   int64         `json:",omitzero"`
	Lazy     bool          `json:",omitzero"` // the writer has the stream read from it
	Chunk    int           `json:",omitzero"` // bytes that are written together, at most
	Even     bool          `json:",omitzero"` // always so many
	Sink     bool          `json:",omitzero"` // the reader has the stream write to it
	Room     int           `json:",omitzero"` // bytes that are read together, at most
	Hurry    time.Duration `json:",omitzero"` // the reader's deadline: it gives up after so long, and tries again; 0: none
	Doze     bool          `json:",omitzero"` // it does not, but waits to be woken
	PauseAt  int64         `json:",omitzero"` // the reader stops there
	Pause    time.Duration `json:",omitzero"` // for so long
	EndAfter time.Duration `json:",omitzero"` // all is written; then comes the end
}

// Fault is something that the network does between two nodes.
type Fault struct {
	At   time.Duration `json:",omitzero"`
	Kind FaultKind     `json:",omitzero"`
	A, B int           // nodes
	Way  int           `json:",omitzero"` // of a connection: 0 towards who accepted it, 1 back, 2 both
	All  bool          `json:",omitzero"` // connections between them; or else one
	For  time.Duration `json:",omitzero"` // it lasts so long
}

// FaultKind is what happens.
type FaultKind string

const (
	FaultStall      FaultKind = "stall"      // bytes are late
	FaultCut        FaultKind = "cut"        // reset, at both ends
	FaultHalfClose  FaultKind = "half-close" // an end that nobody sent
	FaultBlackHole  FaultKind = "black hole" // bytes vanish
	FaultTamper     FaultKind = "tamper"     // one byte is another
	FaultDialFails  FaultKind = "dial fails"
	FaultDialHangs  FaultKind = "dial hangs"
	FaultDialSplits FaultKind = "dial cut"    // connects, and is cut in the handshake
	FaultDialStalls FaultKind = "dial stalls" // connects, and one direction is late
)

// Op is something that an operator does to a node.
type Op struct {
	At   time.Duration `json:",omitzero"`
	Kind OpKind        `json:",omitzero"`
	Node int           `json:",omitzero"`
	Peer int           `json:",omitzero"` // of OpRemove
	For  time.Duration `json:",omitzero"` // until the second part of it
}

// OpKind is what is done.
type OpKind string

const (
	OpReload OpKind = "reload"  // the same configuration
	OpRemove OpKind = "remove"  // a peer, and add it again
	OpRotate OpKind = "rotate"  // the node's key; peers know both
	OpForget OpKind = "forget"  // OpRotate, and peers drop the old key
	OpDrain  OpKind = "drain"   // and restart
	OpKill   OpKind = "kill -9" // and restart
)

func (p *Plan) String() string {
	b, _ := json.MarshalIndent(p, "", "\t")
	return string(b)
}

// gentle says that the fault ends no link.
func (f *Fault) gentle() bool { return f.Kind == FaultStall && f.For <= 2*time.Second }

// gentle says that the op ends no connection.
func (o *Op) gentle() bool { return o.Kind == OpReload || o.Kind == OpRotate || o.Kind == OpDrain }

// smallMemory is a limit for which connections may be refused.
const smallMemory = 16 << 20

// calm says that nothing in the world is a reason for a connection to fail.
func (p *Plan) calm() bool {
	for i := range p.Faults {
		if !p.Faults[i].gentle() {
			return false
		}
	}
	for i := range p.Ops {
		if !p.Ops[i].gentle() {
			return false
		}
	}
	for i := range p.Nodes {
		if n := &p.Nodes[i]; n.Idle > 0 || n.HalfClose > 0 {
			return false
		}
	}
	return true
}

// longestStall is how long bytes stand still at most.
func (p *Plan) longestStall() (longest time.Duration) {
	for i := range p.Faults {
		if p.Faults[i].Kind == FaultStall {
			longest = max(longest, p.Faults[i].For)
		}
	}
	return longest
}

// quick says that nothing has to wait long for what is before it.
func (p *Plan) quick() bool { return p.Net.Bandwidth == 0 || p.Net.Bandwidth > 3e6 }

// still says that the network has no faults at all.
func (p *Plan) still() bool { return len(p.Faults) == 0 }

// tampers says that bytes are changed on the way.
func (p *Plan) tampers() bool {
	for i := range p.Faults {
		if p.Faults[i].Kind == FaultTamper {
			return true
		}
	}
	return false
}

// rotates says that a node changes its key.
func (p *Plan) rotates() bool {
	for i := range p.Ops {
		if p.Ops[i].Kind == OpRotate || p.Ops[i].Kind == OpForget {
			return true
		}
	}
	return false
}

// mayFailToOpen says that a connection may be refused although its target
// answers.
func (p *Plan) mayFailToOpen(a *App) bool {
	if a.Patience > 0 {
		return true
	}
	for i := range p.Nodes {
		if n := p.Nodes[i].Streams; n > 0 && n < 2*len(p.Apps) {
			return true
		}
		if p.Nodes[i].Memory < smallMemory {
			return true
		}
	}
	for i := range p.Ops {
		o := &p.Ops[i]
		if o.Kind == OpDrain && (o.Node == a.From || o.Node == a.To) {
			return true
		}
		// An old link keeps its room from the new one while it has streams.
		if o.Kind != OpReload && (p.Nodes[a.From].Room > 0 || p.Nodes[a.To].Room > 0) {
			return true
		}
	}
	return false
}

// drains says that a node is drained.
func (p *Plan) drains() bool {
	return slices.ContainsFunc(p.Ops, func(o Op) bool { return o.Kind == OpDrain })
}

// A draw is a random source with what plans and worlds draw of it.
type draw struct{ *rand.Rand }

// newDraw makes the source of one part of a world: what one part draws changes
// nothing for the others.
func newDraw(seed uint64, part uint64) draw {
	return draw{rand.New(rand.NewPCG(seed, part*0x9e3779b97f4a7c15+1))}
}

func (d draw) chance(p float64) bool { return d.Float64() < p }

// between is from low to high, both possible.
func (d draw) between(low, high int) int { return low + d.IntN(high-low+1) }

// spread is from low to high, small ones as likely as large ones.
func (d draw) spread(low, high int64) int64 {
	if low >= high {
		return low
	}
	l, h := math.Log(float64(max(low, 1))), math.Log(float64(high)+1)
	return min(high, max(low, int64(math.Exp(l+d.Float64()*(h-l)))))
}

func (d draw) upTo(t time.Duration) time.Duration { return time.Duration(d.Int64N(int64(t) + 1)) }

// log is a time of any order of magnitude up to t.
func (d draw) log(t time.Duration) time.Duration {
	return time.Duration(d.spread(int64(time.Microsecond), int64(t)))
}

func pick[T any](d draw, of ...T) T { return of[d.IntN(len(of))] }
