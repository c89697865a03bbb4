package sim

import "slices"

// tries is how often a smaller world is run before it counts as one that does
// not fail: the scheduler has a say, too.
const tries = 3

// most bounds the worlds that shrinking runs.
const most = 400

// shrink leaves out of a plan what its failure does not need.
func shrink(p *Plan, f *Failure, run func(*Plan) *Failure) (*Plan, *Failure) {
	s := &shrinker{plan: p, failure: f, run: run, left: most}
	for again := true; again && s.left > 0; {
		again = false
		again = cut(s, func(p *Plan) *[]App { return &p.Apps }) || again
		again = cut(s, func(p *Plan) *[]Visit { return &p.Visits }) || again
		again = cut(s, func(p *Plan) *[]Duet { return &p.Duets }) || again
		again = cut(s, func(p *Plan) *[]Fault { return &p.Faults }) || again
		again = cut(s, func(p *Plan) *[]Op { return &p.Ops }) || again
		again = s.dropNodes() || again
		again = s.simplify() || again
	}
	return s.plan, s.failure
}

type shrinker struct {
	plan    *Plan
	failure *Failure
	run     func(*Plan) *Failure
	left    int
}

// try takes a smaller plan if it fails in the same way.
func (s *shrinker) try(p *Plan) bool {
	for range tries {
		if s.left--; s.left < 0 {
			return false
		}
		if f := s.run(p); f != nil && f.Kind == s.failure.Kind {
			s.plan, s.failure = p, f
			return true
		}
	}
	return false
}

// clone is deep enough for what shrinking changes.
func (p *Plan) clone() *Plan {
	q := *p
	q.Nodes, q.Apps = slices.Clone(p.Nodes), slices.Clone(p.Apps)
	q.Visits, q.Duets = slices.Clone(p.Visits), slices.Clone(p.Duets)
	q.Faults, q.Ops = slices.Clone(p.Faults), slices.Clone(p.Ops)
	for i := range q.Nodes {
		q.Nodes[i].Dials = slices.Clone(q.Nodes[i].Dials)
	}
	return &q
}

// cut leaves elements of a list out, halves first.
func cut[T any](s *shrinker, list func(*Plan) *[]T) (any bool) {
	for size := max(1, len(*list(s.plan))/2); size >= 1; size /= 2 {
		for at := 0; at+size <= len(*list(s.plan)); {
			p := s.plan.clone()
			*list(p) = slices.Delete(*list(p), at, at+size)
			if s.try(p) {
				any = true
			} else {
				at += size
			}
		}
	}
	return any
}

// dropNodes leaves out the last nodes that nothing of the rest needs.
func (s *shrinker) dropNodes() (any bool) {
	for len(s.plan.Nodes) > 2 {
		last := len(s.plan.Nodes) - 1
		for _, a := range s.plan.Apps {
			if a.From == last || a.To == last {
				return any
			}
		}
		for _, d := range s.plan.Duets {
			if d.From == last || d.To == last {
				return any
			}
		}
		p := s.plan.clone()
		p.Nodes = p.Nodes[:last]
		for i := range p.Nodes {
			p.Nodes[i].Dials = slices.DeleteFunc(p.Nodes[i].Dials, func(j int) bool { return j == last })
		}
		p.Faults = slices.DeleteFunc(p.Faults, func(f Fault) bool { return f.A == last || f.B == last })
		p.Ops = slices.DeleteFunc(p.Ops, func(o Op) bool { return o.Node == last || o.Peer == last })
		if !s.try(p) {
			return any
		}
		any = true
	}
	return any
}

// simplify makes what is left more like the usual, one thing at a time.
func (s *shrinker) simplify() (any bool) {
	changes := []func(*Plan) bool{
		func(p *Plan) bool { return set(&p.Proxy, false) },
		func(p *Plan) bool { return set(&p.Net.Pieces, PiecesWhole) },
		func(p *Plan) bool { return set(&p.Net.Late, 0) },
		func(p *Plan) bool { return set(&p.Net.Bandwidth, 0) },
	}
	for i := range s.plan.Nodes {
		changes = append(changes,
			func(p *Plan) bool { return set(&p.Nodes[i].Padding, 0) },
			func(p *Plan) bool { return set(&p.Nodes[i].KeyRecords, 0) },
			func(p *Plan) bool { return set(&p.Nodes[i].Batch, 0) },
			func(p *Plan) bool { return set(&p.Nodes[i].Buffers, 0) },
			func(p *Plan) bool { return set(&p.Nodes[i].Links, 1) },
			func(p *Plan) bool { return set(&p.Nodes[i].Replicas, 1) },
			func(p *Plan) bool { return set(&p.Nodes[i].ChaCha, false) },
			func(p *Plan) bool { return set(&p.Nodes[i].Streams, 0) },
			func(p *Plan) bool { return set(&p.Nodes[i].Room, 0) },
			func(p *Plan) bool { return set(&p.Nodes[i].Handshakes, 0) })
	}
	if len(s.plan.Apps) <= 4 {
		for i := range s.plan.Apps {
			changes = append(changes,
				func(p *Plan) bool { return set(&p.Apps[i].Turns, 0) },
				func(p *Plan) bool { return set(&p.Apps[i].Via, ViaConnect) },
				func(p *Plan) bool { return set(&p.Apps[i].Head.Cuts, 0) },
				func(p *Plan) bool { return set(&p.Apps[i].Head.Early, 0) },
				func(p *Plan) bool { return set(&p.Apps[i].Up.Length, 0) },
				func(p *Plan) bool { return set(&p.Apps[i].Down.Length, 0) },
				func(p *Plan) bool { return set(&p.Apps[i].Up.Pause, 0) },
				func(p *Plan) bool { return set(&p.Apps[i].Down.Pause, 0) },
				func(p *Plan) bool { return set(&p.Apps[i].Up.Lazy, false) },
				func(p *Plan) bool { return set(&p.Apps[i].Down.Lazy, false) },
				func(p *Plan) bool { return set(&p.Apps[i].Up.Sink, false) },
				func(p *Plan) bool { return set(&p.Apps[i].Down.Sink, false) })
		}
	}
	for _, change := range changes {
		p := s.plan.clone()
		if change(p) && s.try(p) {
			any = true
		}
	}
	return any
}

// set reports whether it changed anything.
func set[T comparable](v *T, to T) bool {
	changed := *v != to
	*v = to
	return changed
}
