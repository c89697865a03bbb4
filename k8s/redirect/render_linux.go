package redirect

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// String writes the table in nft's syntax. It works on what build made and on what the kernel gave back alike.
func (rs *ruleset) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "table inet %s {\n", rs.table.Name)
	for _, s := range rs.sets {
		if len(s.keys) > 0 {
			fmt.Fprintf(&b, "\tset %s {\n\t\ttype %s\n\t\telements = { %s }\n\t}\n\n", s.nft.Name, s.nft.KeyType.Name, renderKeys(s.keys))
			continue
		}
		fmt.Fprintf(&b, "\tset %s {\n\t\ttype %s\n\t\tflags interval\n\t\telements = { %s }\n\t}\n\n",
			s.nft.Name, s.nft.KeyType.Name, renderIntervals(s))
	}
	for i, c := range rs.chains {
		if i > 0 {
			b.WriteByte('\n')
		}
		fmt.Fprintf(&b, "\tchain %s {\n\t\ttype %s hook %s priority %d; policy accept;\n",
			c.nft.Name, c.nft.Type, hookName(*c.nft.Hooknum), *c.nft.Priority)
		for _, r := range c.rules {
			fmt.Fprintf(&b, "\t\t%s\n", renderRule(r))
		}
		b.WriteString("\t}\n")
	}
	b.WriteString("}\n")
	return b.String()
}

// counts differ from one moment to the next.
var counts = regexp.MustCompile(`packets \d+ bytes \d+`)

// otherNames are the names of sets that a later table has.
var otherNames = regexp.MustCompile(`((?:set |@)\w+)` + other + `\b`)

// canonical is String without what depends on what was there before.
func (rs *ruleset) canonical() string {
	return otherNames.ReplaceAllString(withoutCounts(rs.String()), "$1")
}

func withoutCounts(rules string) string { return counts.ReplaceAllString(rules, "packets 0 bytes 0") }

// replacement is a script for nft that does what install does: put this table in place of whatever is there, at once.
func (rs *ruleset) replacement() string {
	return fmt.Sprintf("table inet %[1]s\ndelete table inet %[1]s\n%[2]s", rs.table.Name, rs)
}

func hookName(h nftables.ChainHook) string {
	if h == *nftables.ChainHookInput {
		return "input"
	}
	return "output"
}

func renderIntervals(s set) string {
	parts := make([]string, len(s.intervals))
	for i, iv := range s.intervals {
		if s.nft.KeyType.Name == nftables.TypeInetService.Name {
			parts[i] = renderPorts(iv)
		} else {
			parts[i] = renderAddresses(iv)
		}
	}
	return strings.Join(parts, ", ")
}

// renderKeys writes what socket.key made.
func renderKeys(keys [][]byte) string {
	parts := make([]string, len(keys))
	for i, k := range keys {
		var ends []string
		for end := range slices.Chunk(k, len(k)/2) {
			a, _ := netip.AddrFromSlice(end[:len(end)-4])
			ends = append(ends, fmt.Sprintf("%s . %d", a, binary.BigEndian.Uint16(end[len(end)-4:])))
		}
		parts[i] = strings.Join(ends, " . ")
	}
	return strings.Join(parts, ", ")
}

func renderPorts(iv interval) string {
	lo, hi := binary.BigEndian.Uint16(iv.lo), binary.BigEndian.Uint16(iv.hi)
	if lo == hi {
		return fmt.Sprint(lo)
	}
	return fmt.Sprintf("%d-%d", lo, hi)
}

func renderAddresses(iv interval) string {
	lo, _ := netip.AddrFromSlice(iv.lo)
	hi, _ := netip.AddrFromSlice(iv.hi)
	for bits := 0; bits <= lo.BitLen(); bits++ {
		p := netip.PrefixFrom(lo, bits)
		if p == p.Masked() && slices.Equal(prefixInterval(p).hi, iv.hi) {
			if bits == lo.BitLen() {
				return lo.String()
			}
			return p.String()
		}
	}
	return fmt.Sprintf("%s-%s", lo, hi)
}

// renderRule writes one rule. Every match loads a value into a register and then compares it, so the text of what was
// loaded last is kept until its comparison comes.
func renderRule(rule []expr.Any) string {
	var words []string
	var m match
	var port uint16
	for _, e := range rule {
		switch e := e.(type) {
		case *expr.Meta, *expr.Payload, *expr.Ct, *expr.Bitwise:
			m.load(e)
		case *expr.Cmp:
			words = append(words, m.compare(e))
		case *expr.Lookup:
			words = append(words, fmt.Sprintf("%s @%s", m.loaded, e.SetName))
		case *expr.Counter:
			words = append(words, fmt.Sprintf("counter packets %d bytes %d", e.Packets, e.Bytes))
		case *expr.Immediate:
			port = binary.BigEndian.Uint16(e.Data)
		case *expr.Redir:
			words = append(words, fmt.Sprintf("redirect to :%d", port))
		case *expr.Reject:
			words = append(words, "reject with tcp reset")
		case *expr.Verdict:
			words = append(words, map[expr.VerdictKind]string{expr.VerdictReturn: "return", expr.VerdictDrop: "drop"}[e.Kind])
		default: // another program's rule in this table
			words = append(words, fmt.Sprintf("[%T]", e))
		}
	}
	return implied.Replace(strings.Join(words, " "))
}

// A match is what a rule has loaded to compare.
type match struct {
	loaded string
	value  func([]byte) string // writes what it is compared with
	states string              // of connection tracking: those that are asked for
	equal  string              // the operator, where nft wants it to be said
}

func (m *match) load(e expr.Any) {
	m.equal = ""
	switch e := e.(type) {
	case *expr.Meta:
		m.loaded, m.value = renderMeta(e.Key)
	case *expr.Payload:
		before := m.loaded
		m.loaded, m.value = renderPayload(e)
		if e.DestRegister != 1 { // one more field of a key
			m.loaded = before + " . " + m.loaded
		}
	case *expr.Ct:
		m.loaded, m.value = "ct state", nil
	case *expr.Bitwise:
		if m.value == nil {
			m.states = renderBits(binaryutil.NativeEndian.Uint32(e.Mask), stateNames)
			return
		}
		m.loaded += fmt.Sprintf(" & (%s)", strings.ReplaceAll(m.value(e.Mask), ",", " | "))
		m.equal = "== "
	}
}

func (m *match) compare(e *expr.Cmp) string {
	if m.value == nil {
		return "ct state " + m.states
	}
	op := m.equal
	if e.Op == expr.CmpOpNeq {
		op = "!= "
	}
	return fmt.Sprintf("%s %s%s", m.loaded, op, m.value(e.Data))
}

// implied drops what nft adds by itself when it reads a field of a protocol.
var implied = strings.NewReplacer("meta nfproto ipv4 ip ", "ip ", "meta nfproto ipv6 ip6 ", "ip6 ", "meta l4proto tcp tcp ", "tcp ")

func renderMeta(key expr.MetaKey) (name string, value func([]byte) string) {
	number := func(b []byte) string { return fmt.Sprint(binaryutil.NativeEndian.Uint32(b)) }
	text := func(b []byte) string { return fmt.Sprintf("%q", strings.TrimRight(string(b), "\x00")) }
	switch key {
	case expr.MetaKeyL4PROTO:
		return "meta l4proto", func(b []byte) string {
			if b[0] == unix.IPPROTO_TCP {
				return "tcp"
			}
			return fmt.Sprint(b[0])
		}
	case expr.MetaKeyNFPROTO:
		return "meta nfproto", func(b []byte) string {
			return map[byte]string{unix.NFPROTO_IPV4: "ipv4", unix.NFPROTO_IPV6: "ipv6"}[b[0]]
		}
	case expr.MetaKeySKUID:
		return "meta skuid", number
	case expr.MetaKeyMARK:
		return "meta mark", func(b []byte) string { return fmt.Sprintf("0x%08x", binaryutil.NativeEndian.Uint32(b)) }
	case expr.MetaKeyIIFNAME:
		return "iifname", text
	case expr.MetaKeyOIFNAME:
		return "oifname", text
	}
	return fmt.Sprintf("[meta %d]", key), func(b []byte) string { return fmt.Sprintf("0x%x", b) }
}

func renderPayload(p *expr.Payload) (name string, value func([]byte) string) {
	for _, f := range fields {
		if f.base != p.Base || f.offset != p.Offset || f.length != p.Len {
			continue
		}
		switch f {
		case tcpFlags:
			return f.name, func(b []byte) string { return cmp.Or(renderBits(uint32(b[0]), flagNames), "0") }
		case sport, dport:
			return f.name, func(b []byte) string { return fmt.Sprint(binary.BigEndian.Uint16(b)) }
		}
		return f.name, func(b []byte) string { a, _ := netip.AddrFromSlice(b); return a.String() }
	}
	return fmt.Sprintf("[payload %d %d %d]", p.Base, p.Offset, p.Len), func(b []byte) string { return fmt.Sprintf("0x%x", b) }
}

// A bitName is how nft calls a bit.
type bitName struct {
	bit  uint32
	name string
}

var (
	flagNames  = []bitName{{tcpFIN, "fin"}, {tcpSYN, "syn"}, {tcpRST, "rst"}, {tcpACK, "ack"}}
	stateNames = []bitName{
		{expr.CtStateBitINVALID, "invalid"}, {expr.CtStateBitESTABLISHED, "established"}, {expr.CtStateBitRELATED, "related"},
		{expr.CtStateBitNEW, "new"}, {expr.CtStateBitUNTRACKED, "untracked"},
	}
)

func renderBits(bits uint32, names []bitName) string {
	var set []string
	for _, n := range names {
		if bits&n.bit != 0 {
			set = append(set, n.name)
		}
	}
	return strings.Join(set, ",")
}
