package redirect

import (
	"encoding/binary"
	"fmt"
	"net/netip"
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
	var loaded string
	var value func([]byte) string
	var port uint16
	for _, e := range rule {
		switch e := e.(type) {
		case *expr.Meta:
			loaded, value = renderMeta(e.Key)
		case *expr.Payload:
			loaded, value = renderPayload(e)
		case *expr.Bitwise:
			loaded += fmt.Sprintf(" & (%s)", strings.ReplaceAll(renderFlags(e.Mask), ",", " | "))
		case *expr.Cmp:
			op := ""
			if e.Op == expr.CmpOpNeq {
				op = "!= "
			}
			words = append(words, fmt.Sprintf("%s %s%s", loaded, op, value(e.Data)))
		case *expr.Lookup:
			words = append(words, fmt.Sprintf("%s @%s", loaded, e.SetName))
		case *expr.Counter:
			words = append(words, fmt.Sprintf("counter packets %d bytes %d", e.Packets, e.Bytes))
		case *expr.Immediate:
			port = binary.BigEndian.Uint16(e.Data)
		case *expr.Redir:
			words = append(words, fmt.Sprintf("redirect to :%d", port))
		case *expr.Verdict:
			words = append(words, map[expr.VerdictKind]string{expr.VerdictReturn: "return", expr.VerdictDrop: "drop"}[e.Kind])
		default: // another program's rule in this table
			words = append(words, fmt.Sprintf("[%T]", e))
		}
	}
	return implied.Replace(strings.Join(words, " "))
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
		if f.base == p.Base && f.offset == p.Offset && f.length == p.Len {
			return f.name, renderFlags
		}
	}
	return fmt.Sprintf("[payload %d %d %d]", p.Base, p.Offset, p.Len), func(b []byte) string { return fmt.Sprintf("0x%x", b) }
}

func renderFlags(b []byte) string {
	var names []string
	for _, f := range []struct {
		bit  byte
		name string
	}{{tcpFIN, "fin"}, {tcpSYN, "syn"}, {tcpRST, "rst"}, {tcpACK, "ack"}} {
		if b[0]&f.bit != 0 {
			names = append(names, f.name)
		}
	}
	return strings.Join(names, ",")
}
