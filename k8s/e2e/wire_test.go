//go:build linux

package main

import (
	"bytes"
	"net/netip"
	"regexp"
	"slices"
	"testing"

	"github.com/sealane/sealane/k8s/e2e/cluster"
)

// linkPort is where sidecars listen.
const linkPort = 7423

// containers matches the texts that a link may carry (SPEC section 2), back to
// back, of which the last may not be whole yet.
var (
	text = `\{"sdmp":\{"version":"0\.13","schemas":\["(` +
		`shared_key"\]\},"shared_key":\{"group":"X25519MLKEM768","share":"[A-Za-z0-9_-]*"\}\}|` +
		`encrypted"\]\},"encrypted":\{"iv":"[A-Za-z0-9_-]{16}","payload":"[A-Za-z0-9_-]*","recipients":\[\]\}\})`
	containers = regexp.MustCompile(`^(` + text + `)*`)
)

const opening = `{"sdmp":{"version":"0.13","schemas":["`

// sealed checks that all that two pods sent each other is sealed containers,
// from the first byte of each connection that began in the capture.
func sealed(t *testing.T, segments []cluster.Segment, a, b netip.Addr) {
	t.Helper()
	noPlaintext(t, segments, a, b)
	streams, whole := 0, 0
	for flow, list := range flows(segments, a, b) {
		start := slices.IndexFunc(list, func(s cluster.Segment) bool { return s.SYN })
		if start < 0 {
			continue // began before the capture
		}
		stream := reassemble(list, list[start].Seq+1)
		streams++
		matched := containers.Find(stream)
		whole += len(matched)
		if rest := stream[len(matched):]; len(rest) > 0 && !bytes.HasPrefix(rest, []byte(opening)[:min(len(rest), len(opening))]) {
			t.Errorf("%v: after %d bytes of containers comes %.120q", flow, len(matched), rest)
		}
	}
	if streams < 2 || whole < 100_000 {
		t.Errorf("the capture holds %d directions of links and %d bytes of containers: too little to judge by", streams, whole)
	}
	t.Logf("%d bytes in %d directions of links are sealed containers", whole, streams)
}

// noPlaintext checks that two pods sent each other nothing but on links, and
// there no word that the database's protocol speaks in.
func noPlaintext(t *testing.T, segments []cluster.Segment, a, b netip.Addr) {
	t.Helper()
	bytesSeen := 0
	for flow, list := range flows(segments, a, b) {
		for _, s := range list {
			bytesSeen += len(s.Payload)
			if len(s.Payload) > 0 && s.Src.Port() != linkPort && s.Dst.Port() != linkPort {
				t.Fatalf("%v carries %.60q", flow, s.Payload)
			}
			for _, word := range []string{"pgbench", "SELECT", "select", "postgres", "SCRAM-SHA-256"} {
				if bytes.Contains(s.Payload, []byte(word)) {
					t.Fatalf("%v carries %q", flow, word)
				}
			}
		}
	}
	if bytesSeen == 0 {
		t.Error("the capture saw nothing between the pods")
	}
}

type flow struct{ src, dst netip.AddrPort }

// flows groups the segments between two addresses by direction.
func flows(segments []cluster.Segment, a, b netip.Addr) map[flow][]cluster.Segment {
	all := make(map[flow][]cluster.Segment)
	for _, s := range segments {
		if src, dst := s.Src.Addr(), s.Dst.Addr(); src == a && dst == b || src == b && dst == a {
			f := flow{s.Src, s.Dst}
			all[f] = append(all[f], s)
		}
	}
	return all
}

// reassemble gives the bytes from a sequence number on, as far as no segment
// is missing. Segments come more than once.
func reassemble(segments []cluster.Segment, next uint32) []byte {
	var stream []byte
	for progress := true; progress; {
		progress = false
		for _, s := range segments {
			skip := int32(next - s.Seq)
			if !s.SYN && skip >= 0 && int(skip) < len(s.Payload) {
				stream = append(stream, s.Payload[skip:]...)
				next = s.Seq + uint32(len(s.Payload))
				progress = true
			}
		}
	}
	return stream
}
