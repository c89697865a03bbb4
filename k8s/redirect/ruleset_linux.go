package redirect

import (
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

	// outputPriority puts the redirect before Docker's and kube-proxy's own rules (-100), so that what the listener
	// sees as the original destination is the address that the app dialed, not one of a Service's pods.
	outputPriority = -110

	tcpFIN, tcpSYN, tcpRST, tcpACK = 0x01, 0x02, 0x04, 0x10
)

// loopback is never caught, whatever the options say.
var loopback = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}

// A ruleset is the whole table, as it is sent to the kernel or as it was read back from it.
type ruleset struct {
	table  *nftables.Table
	sets   []set
	chains []chain
}

type set struct {
	nft       *nftables.Set
	intervals []interval
}

type chain struct {
	nft   *nftables.Chain
	rules [][]expr.Any
}

// build makes the table for valid options.
func build(o Options) *ruleset {
	rs := &ruleset{table: &nftables.Table{Name: tableName, Family: nftables.TableFamilyINet}}
	rs.addOutput(o)
	if len(o.GuardInbound) > 0 {
		rs.addInput(o)
	}
	return rs
}

// addOutput makes the chain that catches the namespace's own connections. The exceptions come first.
func (rs *ruleset) addOutput(o Options) {
	c := rs.addChain("output", nftables.ChainTypeNAT, nftables.ChainHookOutput, outputPriority)
	accept := []expr.Any{&expr.Verdict{Kind: expr.VerdictReturn}}

	// Conntrack takes a packet from the middle of a connection that it did not know for a new one. Without this rule
	// the first such packet after the rules came, an ssh server's answer say, would be redirected and reset.
	c.add(tcp(), notOpening(), accept)
	c.add(ifname(expr.MetaKeyOIFNAME, "lo"), accept)
	except4, except6 := split(slices.Concat(o.ExceptCIDRs, loopback))
	c.add(rs.inSet(daddr4, "except4", nftables.TypeIPAddr, except4), accept)
	c.add(rs.inSet(daddr6, "except6", nftables.TypeIP6Addr, except6), accept)
	for _, uid := range o.ExceptUIDs {
		c.add(meta(expr.MetaKeySKUID, binaryutil.NativeEndian.PutUint32(uid)), accept)
	}
	if o.Mark != 0 {
		c.add(meta(expr.MetaKeyMARK, binaryutil.NativeEndian.PutUint32(o.Mark)), accept)
	}
	if len(o.ExceptPorts) > 0 {
		c.add(tcp(), rs.inSet(dport, "except_ports", nftables.TypeInetService, portIntervals(o.ExceptPorts)), accept)
	}

	caught := tcp()
	if len(o.Ports) > 0 {
		caught = append(caught, rs.inSet(dport, "catch_ports", nftables.TypeInetService, portIntervals(o.Ports))...)
	}
	target := []expr.Any{
		&expr.Counter{},
		&expr.Immediate{Register: 1, Data: binary.BigEndian.AppendUint16(nil, o.To)},
		&expr.Redir{RegisterProtoMin: 1},
	}
	if len(o.CIDRs) == 0 {
		c.add(caught, target)
		return
	}
	catch4, catch6 := split(o.CIDRs)
	if len(catch4) > 0 {
		c.add(rs.inSet(daddr4, "catch4", nftables.TypeIPAddr, catch4), caught, target)
	}
	if len(catch6) > 0 {
		c.add(rs.inSet(daddr6, "catch6", nftables.TypeIP6Addr, catch6), caught, target)
	}
}

// addInput makes the chain that keeps plaintext from outside away from the app's ports. The sidecar reaches them
// through loopback, as everything within a pod does. Only what opens a connection is dropped: without that nothing is
// ever delivered, and a guarded range may hold the local ports of the pod's own connections, whose answers must pass.
func (rs *ruleset) addInput(o Options) {
	c := rs.addChain("input", nftables.ChainTypeFilter, nftables.ChainHookInput, *nftables.ChainPriorityFilter)
	accept := []expr.Any{&expr.Verdict{Kind: expr.VerdictReturn}}

	c.add(tcp(), notOpening(), accept)
	c.add(ifname(expr.MetaKeyIIFNAME, "lo"), accept)
	probes4, probes6 := split(o.ProbeSources)
	if len(probes4) > 0 {
		c.add(rs.inSet(saddr4, "probes4", nftables.TypeIPAddr, probes4), accept)
	}
	if len(probes6) > 0 {
		c.add(rs.inSet(saddr6, "probes6", nftables.TypeIP6Addr, probes6), accept)
	}
	c.add(tcp(), rs.inSet(dport, "guard_ports", nftables.TypeInetService, portIntervals(o.GuardInbound)),
		[]expr.Any{&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop}})
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

// inSet makes the named set and a match of field against it.
func (rs *ruleset) inSet(f field, name string, t nftables.SetDatatype, intervals []interval) []expr.Any {
	rs.sets = append(rs.sets, set{
		nft:       &nftables.Set{Table: rs.table, Name: name, KeyType: t, Interval: true},
		intervals: mergeIntervals(intervals),
	})
	return append(f.load(), &expr.Lookup{SourceRegister: 1, SetName: name})
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
	dport    = field{"tcp dport", expr.PayloadBaseTransportHeader, 2, 2, 0}
	tcpFlags = field{"tcp flags", expr.PayloadBaseTransportHeader, 13, 1, 0}
	fields   = []field{saddr4, daddr4, saddr6, daddr6, dport, tcpFlags}
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

// notOpening matches every TCP packet but the first of a connection.
func notOpening() []expr.Any {
	return append(tcpFlags.load(),
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{tcpFIN | tcpSYN | tcpRST | tcpACK}, Xor: []byte{0}},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte{tcpSYN}})
}
