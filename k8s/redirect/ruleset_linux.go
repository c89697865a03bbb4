package redirect

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

const (
	tableName = "sealane"

	redirectChain = "output"
	strayChain    = "strays"
	listenerChain = "listener"
	guardChain    = "input"

	// outputPriority puts the redirect first among the chains that translate addresses (the kernel allows none at
	// -200 or below): Docker's and kube-proxy's are at -100. What comes first decides, so no other table's rules send a
	// caught connection elsewhere, and what the listener sees as the original destination is the address that the app
	// dialed, not one of a Service's pods.
	outputPriority = -199
	// strayPriority is between connection tracking (-200) and the translation of addresses (-100): the connection's
	// state is known and the destination is still the one that the app meant.
	strayPriority = -150

	tcpFIN, tcpSYN, tcpRST, tcpACK = 0x01, 0x02, 0x04, 0x10
	tcpOpening                     = tcpFIN | tcpSYN | tcpRST | tcpACK // the flags that tell a connection's first packet
)

// loopback is never caught, whatever the options say.
var loopback = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}

// A ruleset is the whole table, as it is sent to the kernel or as it was read back from it.
type ruleset struct {
	table  *nftables.Table
	sets   []set
	chains []chain
}

// A set holds intervals or, where the key is put together of several fields, exact keys.
type set struct {
	nft       *nftables.Set
	intervals []interval
	keys      [][]byte
}

type chain struct {
	nft   *nftables.Chain
	rules [][]expr.Any
}

// build makes the table for valid options. The connections in before were open when there were no rules.
func build(o Options, before []socket) *ruleset {
	rs := newRuleset(o, before)
	rs.addOutput(o)
	rs.addStrays(o, before)
	rs.addListener(o)
	if len(o.GuardInbound) > 0 {
		rs.addInput(o)
	}
	return rs
}

// refusing is rs but that it refuses the connections that rs would redirect. What was redirected before goes on: the
// kernel translates addresses as long as there is a chain for it. An older version's table has no strays to tell, and
// cannot refuse: it only redirects nothing new.
func (rs *ruleset) refusing() *ruleset {
	waits := func(rule []expr.Any) bool { return renderRule(rule) == renderRule(awaited()) }
	redirects := func(rule []expr.Any) bool {
		return slices.ContainsFunc(rule, func(e expr.Any) bool { _, ok := e.(*expr.Redir); return ok })
	}
	needless := waits
	if rs.chain(strayChain) == nil {
		needless = redirects
	}
	r := &ruleset{table: rs.table, sets: rs.sets}
	for _, c := range rs.chains {
		r.chains = append(r.chains, chain{c.nft, slices.DeleteFunc(slices.Clone(c.rules), needless)})
	}
	return r
}

// newRuleset makes the table with the sets that several chains look into.
func newRuleset(o Options, before []socket) *ruleset {
	rs := &ruleset{table: &nftables.Table{Name: tableName, Family: nftables.TableFamilyINet}}
	except4, except6 := split(slices.Concat(o.ExceptCIDRs, loopback))
	rs.define("except4", nftables.TypeIPAddr, except4)
	rs.define("except6", nftables.TypeIP6Addr, except6)
	rs.define("except_ports", nftables.TypeInetService, portIntervals(o.ExceptPorts))
	rs.define("catch_ports", nftables.TypeInetService, portIntervals(o.Ports))
	catch4, catch6 := split(o.CIDRs)
	rs.define("catch4", nftables.TypeIPAddr, catch4)
	rs.define("catch6", nftables.TypeIP6Addr, catch6)
	rs.defineBefore(before)
	return rs
}

// addOutput makes the chain that catches the namespace's own connections. The exceptions come first.
func (rs *ruleset) addOutput(o Options) {
	c := rs.addChain(redirectChain, nftables.ChainTypeNAT, nftables.ChainHookOutput, outputPriority)
	// Conntrack takes a packet from the middle of a connection that it did not know for a new one. Without this rule
	// the first such packet after the rules came, an ssh server's answer say, would be redirected and reset.
	c.add(tcp(), notOpening(), leave())
	c.addExceptions(o)
	c.addCaught(o, []expr.Any{
		&expr.Counter{},
		&expr.Immediate{Register: 1, Data: binary.BigEndian.AppendUint16(nil, o.To)},
		&expr.Redir{RegisterProtoMin: 1},
	})
}

// addStrays makes the chain that stops packets which the options catch and which the kernel would send to their real
// destination all the same: of a redirected connection that it no longer knows (it forgets half-closed ones after a
// minute, and all of them when somebody flushes them) or finds a fault with, and openings that it does not track.
// Translation leaves all of these alone. A connection that was open before the rules came is not one of them.
func (rs *ruleset) addStrays(o Options, before []socket) {
	c := rs.addChain(strayChain, nftables.ChainTypeFilter, nftables.ChainHookOutput, strayPriority)
	c.add(state(expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED), leave())
	c.add(awaited())
	if len(o.Ports) == 0 {
		// The answers of a server here, which another program may have the kernel not track, go to any port.
		c.add(tcp(), notOpening(), state(expr.CtStateBitUNTRACKED), leave())
	}
	c.addExceptions(o)
	known4, known6 := splitConnections(before)
	if len(known4) > 0 {
		c.add(tcp(), notOpening(), tuple(saddr4, daddr4), among("before4"), leave())
	}
	if len(known6) > 0 {
		c.add(tcp(), notOpening(), tuple(saddr6, daddr6), among("before6"), leave())
	}
	// What the kernel finds a fault with may be of a healthy connection, whose next packet it finds none with.
	c.addCaught(o, slices.Concat(state(expr.CtStateBitINVALID), drop()))
	c.addCaught(o, []expr.Any{&expr.Counter{}, &expr.Reject{Type: unix.NFT_REJECT_TCP_RST}})
}

// awaited leaves the first packet of a connection to the redirect.
func awaited() []expr.Any { return slices.Concat(tcp(), opening(), state(expr.CtStateBitNEW), leave()) }

// addListener makes the chain that keeps everybody but the sidecar from answering on the redirect port: while the
// sidecar is down, any user may listen there, and would be sent what others' programs say. No connection comes about
// without a SYN from either end, so it is enough to stop those. Who has opened the listening socket is known for them,
// even before the connection is accepted.
func (rs *ruleset) addListener(o Options) {
	c := rs.addChain(listenerChain, nftables.ChainTypeFilter, nftables.ChainHookOutput, *nftables.ChainPriorityFilter)
	c.add(tcp(), withoutSYN(), leave())
	for _, uid := range o.sidecarUIDs() {
		c.add(owner(uid), leave())
	}
	for _, f := range families {
		source := saddr4
		if !f.loopback.Is4() {
			source = saddr6
		}
		c.add(source.equals(f.loopback.AsSlice()), tcp(), sport.equals(binary.BigEndian.AppendUint16(nil, o.To)), drop())
	}
}

// addExceptions lets pass what is not caught, whatever its destination's port and address.
func (c *chain) addExceptions(o Options) {
	c.add(ifname(expr.MetaKeyOIFNAME, "lo"), leave())
	c.add(daddr4.load(), among("except4"), leave())
	c.add(daddr6.load(), among("except6"), leave())
	for _, uid := range o.ExceptUIDs {
		c.add(owner(uid), leave())
	}
	if o.Mark != 0 {
		c.add(meta(expr.MetaKeyMARK, binaryutil.NativeEndian.PutUint32(o.Mark)), leave())
	}
	if len(o.ExceptPorts) > 0 {
		c.add(tcp(), dport.load(), among("except_ports"), leave())
	}
}

// addCaught does what then says with what is caught.
func (c *chain) addCaught(o Options, then []expr.Any) {
	caught := tcp()
	if len(o.Ports) > 0 {
		caught = slices.Concat(caught, dport.load(), among("catch_ports"))
	}
	if len(o.CIDRs) == 0 {
		c.add(caught, then)
		return
	}
	catch4, catch6 := split(o.CIDRs)
	if len(catch4) > 0 {
		c.add(daddr4.load(), among("catch4"), caught, then)
	}
	if len(catch6) > 0 {
		c.add(daddr6.load(), among("catch6"), caught, then)
	}
}

// addInput makes the chain that keeps plaintext from outside away from the app's ports. The sidecar reaches them
// through loopback, as everything within a pod does. Only what opens a connection is dropped: without that nothing is
// ever delivered, and a guarded range may hold the local ports of the pod's own connections, whose answers must pass.
func (rs *ruleset) addInput(o Options) {
	c := rs.addChain(guardChain, nftables.ChainTypeFilter, nftables.ChainHookInput, *nftables.ChainPriorityFilter)
	probes4, probes6 := split(o.ProbeSources)
	rs.define("probes4", nftables.TypeIPAddr, probes4)
	rs.define("probes6", nftables.TypeIP6Addr, probes6)
	rs.define("guard_ports", nftables.TypeInetService, portIntervals(o.GuardInbound))

	c.add(tcp(), notOpening(), leave())
	c.add(ifname(expr.MetaKeyIIFNAME, "lo"), leave())
	if len(probes4) > 0 {
		c.add(saddr4.load(), among("probes4"), leave())
	}
	if len(probes6) > 0 {
		c.add(saddr6.load(), among("probes6"), leave())
	}
	c.add(tcp(), dport.load(), among("guard_ports"), drop())
}

func (rs *ruleset) addChain(name string, t nftables.ChainType, hook *nftables.ChainHook, prio nftables.ChainPriority) *chain {
	policy := nftables.ChainPolicyAccept
	rs.chains = append(rs.chains, chain{nft: &nftables.Chain{
		Name: name, Table: rs.table, Type: t, Hooknum: hook, Priority: &prio, Policy: &policy,
	}})
	return &rs.chains[len(rs.chains)-1]
}

func (c *chain) add(parts ...[]expr.Any) {
	var rule []expr.Any
	for _, p := range parts {
		rule = append(rule, p...)
	}
	c.rules = append(c.rules, rule)
}

// define makes a named set, if there is anything to put into it.
func (rs *ruleset) define(name string, t nftables.SetDatatype, intervals []interval) {
	if len(intervals) > 0 {
		rs.sets = append(rs.sets, set{
			nft:       &nftables.Set{Table: rs.table, Name: name, KeyType: t, Interval: true},
			intervals: mergeIntervals(intervals),
		})
	}
}

// A field is a part of the packet and how nft writes it.
type field struct {
	name    string
	base    expr.PayloadBase
	offset  uint32
	length  uint32
	nfproto byte // the family that the offset is for, or 0
}

var (
	saddr4   = field{"ip saddr", expr.PayloadBaseNetworkHeader, 12, 4, unix.NFPROTO_IPV4}
	daddr4   = field{"ip daddr", expr.PayloadBaseNetworkHeader, 16, 4, unix.NFPROTO_IPV4}
	saddr6   = field{"ip6 saddr", expr.PayloadBaseNetworkHeader, 8, 16, unix.NFPROTO_IPV6}
	daddr6   = field{"ip6 daddr", expr.PayloadBaseNetworkHeader, 24, 16, unix.NFPROTO_IPV6}
	sport    = field{"tcp sport", expr.PayloadBaseTransportHeader, 0, 2, 0}
	dport    = field{"tcp dport", expr.PayloadBaseTransportHeader, 2, 2, 0}
	tcpFlags = field{"tcp flags", expr.PayloadBaseTransportHeader, 13, 1, 0}
	fields   = []field{saddr4, daddr4, saddr6, daddr6, sport, dport, tcpFlags}
)

func (f field) load() []expr.Any {
	var e []expr.Any
	if f.nfproto != 0 {
		e = meta(expr.MetaKeyNFPROTO, []byte{f.nfproto})
	}
	return append(e, &expr.Payload{DestRegister: 1, Base: f.base, Offset: f.offset, Len: f.length})
}

func meta(key expr.MetaKey, value []byte) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: key, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: value},
	}
}

func tcp() []expr.Any { return meta(expr.MetaKeyL4PROTO, []byte{unix.IPPROTO_TCP}) }

func ifname(key expr.MetaKey, name string) []expr.Any {
	padded := make([]byte, unix.IFNAMSIZ)
	copy(padded, name)
	return meta(key, padded)
}

func owner(uid uint32) []expr.Any {
	return meta(expr.MetaKeySKUID, binaryutil.NativeEndian.PutUint32(uid))
}

func (f field) equals(value []byte) []expr.Any {
	return append(f.load(), &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: value})
}

// among matches what was loaded against a set.
func among(name string) []expr.Any { return []expr.Any{&expr.Lookup{SourceRegister: 1, SetName: name}} }

func leave() []expr.Any { return []expr.Any{&expr.Verdict{Kind: expr.VerdictReturn}} }

func drop() []expr.Any { return []expr.Any{&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop}} }

// opening matches the first packet of a connection.
func opening() []expr.Any { return flags(tcpOpening, expr.CmpOpEq, tcpSYN) }

// notOpening matches every TCP packet but the first of a connection.
func notOpening() []expr.Any { return flags(tcpOpening, expr.CmpOpNeq, tcpSYN) }

// withoutSYN matches what neither opens a connection nor answers an opening.
func withoutSYN() []expr.Any { return flags(tcpSYN, expr.CmpOpEq, 0) }

func flags(mask byte, op expr.CmpOp, value byte) []expr.Any {
	return append(tcpFlags.load(),
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{mask}, Xor: []byte{0}},
		&expr.Cmp{Op: op, Register: 1, Data: []byte{value}})
}

// state matches packets in one of the states of connection tracking.
func state(bits uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Register: 1, Key: expr.CtKeySTATE},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(bits), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
}

// The connections that were open before are known by both ends.
var (
	beforeType4 = nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetService, nftables.TypeIPAddr, nftables.TypeInetService)
	beforeType6 = nftables.MustConcatSetType(nftables.TypeIP6Addr, nftables.TypeInetService, nftables.TypeIP6Addr, nftables.TypeInetService)
)

// tuple loads what the keys of those types are made of, each field from a 4-byte register on.
func tuple(source, destination field) []expr.Any {
	loads := source.load()
	register := uint32(unix.NFT_REG32_00) + source.length/4
	for _, f := range []field{sport, destination, dport} {
		loads = append(loads, &expr.Payload{DestRegister: register, Base: f.base, Offset: f.offset, Len: f.length})
		register += (f.length + 3) / 4
	}
	return loads
}

// key is the connection in a set of beforeType4 or beforeType6.
func (c socket) key() []byte {
	var k []byte
	for _, a := range []netip.AddrPort{c.local, c.remote} {
		k = append(k, a.Addr().AsSlice()...)
		k = append(binary.BigEndian.AppendUint16(k, a.Port()), 0, 0)
	}
	return k
}

func (rs *ruleset) defineBefore(before []socket) {
	v4, v6 := splitConnections(before)
	for _, s := range []struct {
		name string
		t    nftables.SetDatatype
		keys [][]byte
	}{{"before4", beforeType4, v4}, {"before6", beforeType6, v6}} {
		if len(s.keys) > 0 {
			rs.sets = append(rs.sets, set{
				nft:  &nftables.Set{Table: rs.table, Name: s.name, KeyType: s.t, Concatenation: true},
				keys: s.keys,
			})
		}
	}
}

// splitConnections gives the keys of the connections of each family, each once.
func splitConnections(cs []socket) (v4, v6 [][]byte) {
	for _, c := range cs {
		switch local, remote := c.local.Addr(), c.remote.Addr(); {
		case local.Is4() && remote.Is4():
			v4 = append(v4, c.key())
		case local.Is6() && remote.Is6():
			v6 = append(v6, c.key())
		}
	}
	for _, keys := range []*[][]byte{&v4, &v6} {
		slices.SortFunc(*keys, bytes.Compare)
		*keys = slices.CompactFunc(*keys, bytes.Equal)
	}
	return v4, v6
}
