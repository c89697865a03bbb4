package sim

import "time"

// fault makes a fault happen when its time comes.
func (w *world) fault(f *Fault) {
	time.Sleep(f.At)
	w.story.add("network", "%s between n%d and n%d, way %d, all %v, for %v", f.Kind, f.A, f.B, f.Way, f.All, f.For)
	switch f.Kind {
	case FaultDialFails, FaultDialHangs, FaultDialSplits, FaultDialStalls:
		w.net.mu.Lock()
		w.net.dials[[2]int{f.A, f.B}] = dialing{f.Kind, time.Now().Add(f.For)}
		w.net.dials[[2]int{f.B, f.A}] = w.net.dials[[2]int{f.A, f.B}]
		w.net.mu.Unlock()
		return
	}
	pairs := w.net.between(f.A, f.B)
	if !f.All && len(pairs) > 1 {
		pairs = pairs[w.draws(len(pairs)):][:1]
	}
	for _, p := range pairs {
		p.suffer(f)
	}
	if f.Kind == FaultBlackHole {
		time.Sleep(f.For)
		for _, p := range pairs {
			p.reset()
		}
	}
}

// suffer makes a fault happen to a connection.
func (p *pair) suffer(f *Fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if f.Kind == FaultCut {
		p.resetLocked()
		return
	}
	for way, d := range [...]*pipe{p.ends[1].in, p.ends[0].in} {
		if f.Way != 2 && f.Way != way || d.err != nil {
			continue
		}
		switch f.Kind {
		case FaultStall:
			d.stalled = time.Now().Add(f.For)
		case FaultHalfClose:
			d.end()
		case FaultBlackHole:
			d.hole = true
		case FaultTamper:
			d.tamper = true
		}
		d.changed.Broadcast()
	}
}

// operate does an operator's work when its time comes.
func (w *world) operate(o *Op) {
	time.Sleep(o.At)
	n := w.nodes[o.Node]
	w.story.add("operator", "%s n%d, for %v", o.Kind, o.Node, o.For)
	// One at a time: operators wait for each other.
	w.operating.Lock()
	defer w.operating.Unlock()
	switch o.Kind {
	case OpReload:
		n.reload()
	case OpRemove:
		w.remove(n, o.Peer, true)
		time.Sleep(o.For)
		w.remove(n, o.Peer, false)
	case OpRotate, OpForget:
		if err := n.rotate(); err != nil {
			w.fail("operator", "rotate: %v", err)
		}
		if o.Kind == OpForget {
			time.Sleep(o.For)
			n.forget()
		}
	case OpDrain, OpKill:
		w.restart(n, o.Kind == OpKill)
	}
}

func (w *world) remove(n *node, peer int, removed bool) {
	n.mu.Lock()
	n.removed[peer] = removed
	n.mu.Unlock()
	n.reload()
}

// restart ends a process of the node and starts it again.
func (w *world) restart(n *node, kill bool) {
	running := n.running()
	if len(running) == 0 {
		return
	}
	p := running[w.draws(len(running))]
	if kill {
		p.kill()
	} else {
		p.drain()
	}
	if err := n.start(p.replica); err != nil {
		w.fail("operator", "starting %s again: %v", n.name, err)
	}
	w.story.add(n.name, "runs again")
}
