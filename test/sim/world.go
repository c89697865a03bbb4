package sim

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/sealane/sealane/session"
	"github.com/sealane/sealane/test/pattern"
)

// A world is a plan that runs, in a bubble of testing/synctest.
type world struct {
	plan  *Plan
	net   *network
	story *story
	nodes []*node
	apps  []*app
	ends  sync.WaitGroup // servers' sides

	operating sync.Mutex

	mu   sync.Mutex
	draw draw

	// onFailure is called with the first thing that must not be. It does not
	// return: a world that has failed cannot be ended.
	onFailure func(Failure)
}

// A Failure is what must not be.
type Failure struct {
	Seed  uint64
	Kind  string // its kind alone
	Text  string
	Story string
	Stack string `json:",omitempty"`
}

// patience is how long apps and nodes have after the last fault.
const patience = 30 * time.Minute

// Run runs a plan. It has to be called in a bubble.
func Run(plan *Plan, onFailure func(Failure)) (hash uint64) {
	w := &world{plan: plan, story: newStory(), draw: newDraw(plan.Seed, 4), onFailure: onFailure}
	w.net = newNetwork(&plan.Net, plan.Seed, w.story)
	for i := range plan.Apps {
		plan.Apps[i].ID = i
		w.apps = append(w.apps, newApp(w, &plan.Apps[i]))
	}
	w.begin()
	w.live()
	w.rest()
	w.close()
	return w.story.hash
}

func (w *world) begin() {
	for i := range w.plan.Nodes {
		n, err := w.newNode(i)
		if err != nil {
			w.fail("start", "%v", err)
		}
		w.nodes = append(w.nodes, n)
	}
	for _, n := range w.nodes {
		for r := range n.processes {
			if err := n.start(r); err != nil {
				w.fail("start", "%s: %v", n.name, err)
			}
		}
	}
}

// live lets everything happen that the plan has, and waits until all apps are
// done: none waits for ever once the network is well.
func (w *world) live() {
	var clients, trouble sync.WaitGroup
	for _, a := range w.apps {
		clients.Go(a.run)
	}
	for i := range w.plan.Visits {
		clients.Go(func() { w.visit(i, &w.plan.Visits[i]) })
	}
	for i := range w.plan.Duets {
		clients.Go(func() { w.duet(i, &w.plan.Duets[i]) })
	}
	for i := range w.plan.Faults {
		trouble.Go(func() { w.fault(&w.plan.Faults[i]) })
	}
	for i := range w.plan.Ops {
		trouble.Go(func() { w.operate(&w.plan.Ops[i]) })
	}
	within(drainTime+patience, trouble.Wait, func() { w.fail("operator waits", "faults and operators do not end") })
	w.net.heal()
	w.story.add("network", "is well")
	within(patience, func() { clients.Wait(); w.ends.Wait() }, func() { w.fail("app waits", "%s", w.unfinished()) })
	for _, a := range w.apps {
		if why := a.unexplained(); why != "" {
			w.fail("error without a cause", "%v: %s", a, why)
		}
	}
}

// within calls late if f takes longer.
func within(limit time.Duration, f, late func()) {
	done := make(chan struct{})
	go func() {
		f()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(limit):
		late()
	}
}

// unfinished says which apps are not done.
func (w *world) unfinished() string {
	var b strings.Builder
	for _, a := range w.apps {
		a.mu.Lock()
		sides := append([]*side{a.client}, a.servers...)
		for _, s := range sides {
			if s != nil && s.failure() == nil && (!s.ended.Load() || !s.whole.Load()) {
				fmt.Fprintf(&b, "%v, its %s: sent %d of %d, ended %v, got %d of %d, end seen %v\n",
					a, s.party, s.sent.Load(), s.out.Length, s.ended.Load(), s.got.Load(), s.in.Length, s.whole.Load())
			}
		}
		if a.client == nil && a.openErr == nil {
			fmt.Fprintf(&b, "%v: opening\n", a)
		}
		a.mu.Unlock()
	}
	return b.String()
}

// unexplained says what of an app's end the plan has no cause for, or "".
func (a *app) unexplained() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	p := a.world.plan
	switch {
	case !p.calm() || a.plan.Reset == Server: // which may come before the answer to the client
		return ""
	case a.openErr != nil:
		if p.Proxy && a.plan.Target == TargetRefuses && !p.mayFailToOpen(a.plan) && !errors.As(a.openErr, new(refusal)) {
			return "is not told that its target refuses: " + a.openErr.Error()
		}
		if a.plan.Target == TargetRefuses || a.plan.Target == TargetHangs || p.mayFailToOpen(a.plan) {
			return ""
		}
		return "does not open: " + a.openErr.Error()
	case a.plan.Reset != Nobody:
		return ""
	case p.Proxy && a.plan.forwarded() && len(a.servers) == 0 && a.client.failure() != nil:
		// There is no answer: a forward that does not open is reset.
		if a.plan.Target == TargetRefuses || a.plan.Target == TargetHangs || p.mayFailToOpen(a.plan) {
			return ""
		}
	}
	for _, s := range append([]*side{a.client}, a.servers...) {
		if s == nil {
			continue
		}
		if err := s.failure(); err != nil {
			return fmt.Sprintf("its %s: %v", s.party, err)
		}
	}
	if len(a.servers) != 1 {
		return fmt.Sprintf("its target was connected %d times", len(a.servers))
	}
	return ""
}

// closingTime is what a stream takes to be forgotten whose peer never answers
// its end, and then some.
const closingTime = 90 * time.Second

// rest checks that nothing is left of what apps did, and that every node can
// still be used.
func (w *world) rest() {
	time.Sleep(closingTime)
	w.checkAccounts()
	w.roundTrips()
	time.Sleep(10 * time.Second)
	w.checkAccounts()
}

func (w *world) checkAccounts() {
	for _, n := range w.nodes {
		for _, p := range n.running() {
			if used, _ := p.mux.Unread(); used != 0 {
				w.fail("account", "%s has %d bytes unread, without a stream", n.name, used)
			}
			if granted := p.mux.Granted(); granted != 0 {
				w.fail("account", "%s has granted %d bytes, without a stream", n.name, granted)
			}
			for _, peer := range p.mux.Status() {
				if peer.Streams != 0 {
					w.fail("account", "%s counts %d streams with %s, and there are none", n.name, peer.Streams, peer.Name)
				}
				for _, l := range peer.Links {
					if l.Streams != 0 {
						w.fail("account", "%s counts %d streams on a link with %s, and there are none", n.name, l.Streams, peer.Name)
					}
				}
			}
			if p.proxy == nil {
				continue
			}
			for _, l := range p.proxy.Status() {
				if l.Open != 0 {
					w.fail("account", "%s counts %d connections of its listener, and there are none", n.name, l.Open)
				}
			}
		}
	}
}

// roundTrips has an app beside each node reach every other one.
func (w *world) roundTrips() {
	first := len(w.apps)
	for i := range w.nodes {
		for j := range w.nodes {
			if i == j {
				continue
			}
			half := Half{Length: 100e3, Chunk: 40e3, Room: 40e3}
			plan := &App{ID: len(w.apps), From: i, To: j, Target: TargetOK, Up: half, Down: half, Turns: 2}
			plan.Up.Lazy = true // and so takes of the link's buffers
			w.apps = append(w.apps, newApp(w, plan))
		}
	}
	var clients sync.WaitGroup
	for _, a := range w.apps[first:] {
		clients.Go(a.run)
	}
	within(patience, func() { clients.Wait(); w.ends.Wait() }, func() { w.fail("app waits", "after all: %s", w.unfinished()) })
	for _, a := range w.apps[first:] {
		if a.openErr != nil {
			w.fail("useless", "%s does not reach %s any more: %v", w.nodes[a.plan.From].name, w.nodes[a.plan.To].name, a.openErr)
		}
		if err := a.client.failure(); err != nil {
			w.fail("useless", "%s cannot use %s any more: %v", w.nodes[a.plan.From].name, w.nodes[a.plan.To].name, err)
		}
	}
}

// close ends the nodes, and checks that no connection and no goroutine is left.
func (w *world) close() {
	for _, n := range w.nodes {
		for _, p := range n.running() {
			within(patience, p.close, func() { w.fail("close waits", "%s does not end", n.name) })
		}
	}
	time.Sleep(closingTime)
	if left := w.net.left(); len(left) > 0 {
		w.fail("connection left", "%s", strings.Join(left, "\n"))
	}
	if left := goroutines(); left != "" {
		w.fail("goroutine left", "%s", left)
	}
}

// goroutines are the stacks of the others in this bubble.
func goroutines() string {
	buf := make([]byte, 1<<20)
	stacks := strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n")
	var left []string
	for _, s := range stacks[1:] {
		if head, _, _ := strings.Cut(s, "\n"); strings.Contains(head, "synctest bubble") && !strings.Contains(s, "synctest.Run") && !strings.Contains(s, "testingSynctestTest") {
			left = append(left, s)
		}
	}
	return strings.Join(left, "\n\n")
}

// fail reports what must not be.
func (w *world) fail(kind, format string, args ...any) {
	buf := make([]byte, 1<<20)
	w.onFailure(Failure{
		Seed: w.plan.Seed, Kind: kind, Text: fmt.Sprintf(format, args...), Story: w.story.String(),
		Stack: string(buf[:runtime.Stack(buf, strings.HasSuffix(kind, " waits"))]),
	})
}

// violated is every node's hook: honest nodes do not see a violation, unless
// the network changed a byte.
func (w *world) violated(n *node, peer string, rule session.Rule) {
	w.story.add(n.name, "violation by %q: %s", peer, rule)
	// A node that has another key cannot read what was meant for the one before.
	if !w.plan.tampers() && !(w.plan.rotates() && strings.HasPrefix(string(rule), "handshake-")) {
		w.fail("violation", "%s counts a violation of %q: %s", n.name, peer, rule)
	}
}

// cutByDrain is for a drain that had all the time in the world. A node that
// closes behind its own drain waits a second for bytes to move (SPEC.md section
// 4): what stands still for longer may keep its last word from the other, which
// then counts what it cannot know.
func (w *world) cutByDrain(p *process, cut int) {
	w.story.add(p.node.name, "the drain cut %d", cut)
	if w.plan.calm() && w.plan.longestStall() < time.Second {
		w.fail("cut by a drain", "%s: %d", p.node.name, cut)
	}
}

// streams are those of all apps, for who looks where bytes come from.
func (w *world) streams() (list []pattern.Stream) {
	for i := range w.apps {
		list = append(list, streamOf(i, Client), streamOf(i, Server))
	}
	return list
}

func (w *world) draws(n int) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.draw.IntN(n)
}
