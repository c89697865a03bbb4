package redirect

import (
	"bytes"
	"encoding/binary"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
)

// What an installed table does is read from its rules: whoever removes it was not told the options it was made with.

func (rs *ruleset) set(name string) (set, bool) {
	i := slices.IndexFunc(rs.sets, func(s set) bool { return plainName(s.nft.Name) == name && rs.uses(s.nft.Name) })
	if i < 0 {
		return set{}, false
	}
	return rs.sets[i], true
}

func (rs *ruleset) chain(name string) *nftables.Chain {
	for _, c := range rs.chains {
		if c.nft.Name == name {
			return c.nft
		}
	}
	return nil
}

// sort puts sets and chains in the order in which they are made. The kernel's is the one in which they came.
func (rs *ruleset) sort() {
	slices.SortStableFunc(rs.sets, func(a, b set) int {
		return slices.Index(setOrder, plainName(a.nft.Name)) - slices.Index(setOrder, plainName(b.nft.Name))
	})
	slices.SortStableFunc(rs.chains, func(a, b chain) int {
		return slices.Index(chainOrder, a.nft.Name) - slices.Index(chainOrder, b.nft.Name)
	})
}

var (
	setOrder = []string{"except4", "except6", "except_ports", "catch_ports", "catch4", "catch6", "before4", "before6",
		"probes4", "probes6", "guard_ports", endingSet}
	chainOrder = []string{redirectChain, strayChain, listenerChain, guardChain}
)

func (s set) contains(key []byte) bool {
	return slices.ContainsFunc(s.intervals, func(iv interval) bool {
		return len(iv.lo) == len(key) && bytes.Compare(iv.lo, key) <= 0 && bytes.Compare(key, iv.hi) <= 0
	}) || slices.ContainsFunc(s.keys, func(k []byte) bool { return bytes.Equal(k, key) })
}

// uses reports whether any rule looks into the set.
func (rs *ruleset) uses(name string) bool {
	return slices.ContainsFunc(rs.chains, func(c chain) bool {
		return slices.ContainsFunc(c.rules, func(rule []expr.Any) bool {
			return slices.ContainsFunc(rule, func(e expr.Any) bool {
				l, ok := e.(*expr.Lookup)
				return ok && l.SetName == name
			})
		})
	})
}

// other ends the names of sets of every second table.
const other = "_"

// besides is rs with names for its sets that are free while the rules of now are in force.
func (rs *ruleset) besides(now *ruleset) *ruleset {
	ending := other
	if slices.ContainsFunc(now.sets, func(s set) bool { return strings.HasSuffix(s.nft.Name, other) && now.uses(s.nft.Name) }) {
		ending = ""
	}
	renamed := func(name string) string { return plainName(name) + ending }
	next := &ruleset{table: rs.table}
	for _, s := range rs.sets {
		if !rs.uses(s.nft.Name) && s.nft.Name != endingSet {
			continue
		}
		nft := *s.nft
		nft.Name = renamed(nft.Name)
		next.sets = append(next.sets, set{&nft, s.intervals, s.keys})
	}
	for _, c := range rs.chains {
		n := chain{nft: c.nft}
		for _, rule := range c.rules {
			rule = slices.Clone(rule)
			for i, e := range rule {
				if l, ok := e.(*expr.Lookup); ok {
					look := *l
					look.SetName = renamed(l.SetName)
					rule[i] = &look
				}
			}
			n.rules = append(n.rules, rule)
		}
		next.chains = append(next.chains, n)
	}
	return next
}

func plainName(set string) string { return strings.TrimSuffix(set, other) }

// wasOpen reports whether the connection is one that the rules found open when they came.
func (rs *ruleset) wasOpen(c socket) bool {
	before4, _ := rs.set("before4")
	before6, _ := rs.set("before6")
	return before4.contains(c.key()) || before6.contains(c.key())
}

// catches reports whether the rules would catch the connection, if it is one that this namespace opened.
func (rs *ruleset) catches(c socket) bool {
	in := func(key []byte, names ...string) bool {
		return slices.ContainsFunc(names, func(n string) bool { s, ok := rs.set(n); return ok && s.contains(key) })
	}
	has := func(names ...string) bool {
		return slices.ContainsFunc(names, func(n string) bool { _, ok := rs.set(n); return ok })
	}
	address, port := c.remote.Addr().AsSlice(), binary.BigEndian.AppendUint16(nil, c.remote.Port())
	switch {
	case rs.wasOpen(c), slices.Contains(rs.users(redirectChain), c.uid):
		return false
	case in(address, "except4", "except6"), in(port, "except_ports"):
		return false
	case has("catch_ports") && !in(port, "catch_ports"):
		return false
	}
	return !has("catch4", "catch6") || in(address, "catch4", "catch6")
}

// isSidecars reports whether this is the sidecar's end of a redirected connection: by the port, or, as the port may have
// been another one when it was opened, by the user.
func (rs *ruleset) isSidecars(c socket) bool {
	return c.local.Port() == rs.port() || slices.Contains(rs.users(listenerChain), c.uid)
}

// users lists the users that a chain lets pass.
func (rs *ruleset) users(chain string) []uint32 {
	var uids []uint32
	for _, rule := range rs.rules(chain) {
		m, isMeta := rule[0].(*expr.Meta)
		if isMeta && m.Key == expr.MetaKeySKUID && len(rule) > 1 {
			if c, ok := rule[1].(*expr.Cmp); ok && len(c.Data) == 4 {
				uids = append(uids, binaryutil.NativeEndian.Uint32(c.Data))
			}
		}
	}
	return uids
}

// port is where the table redirects to, or 0 if it redirects nothing.
func (rs *ruleset) port() uint16 {
	for _, rule := range rs.rules(redirectChain) {
		for _, e := range rule {
			if i, ok := e.(*expr.Immediate); ok && len(i.Data) == 2 {
				return binary.BigEndian.Uint16(i.Data)
			}
		}
	}
	return 0
}

// rules lists a chain's rules, empty ones aside.
func (rs *ruleset) rules(name string) [][]expr.Any {
	for _, c := range rs.chains {
		if c.nft.Name == name {
			return slices.DeleteFunc(slices.Clone(c.rules), func(r []expr.Any) bool { return len(r) == 0 })
		}
	}
	return nil
}
