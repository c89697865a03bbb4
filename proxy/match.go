package proxy

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// A Match is one pattern of a route or of an egress rule: a host part and a
// port part, as in "*.db.internal:5432", "10.1.0.0/16:*" or "[fd00::/8]:8000-8999".
//
//   - "*" as the host matches every name and every address.
//   - Other hosts with a "*" in them are globs. They match names only; "*"
//     stands for any run of characters, dots included.
//   - A plain host name matches that name, whatever its case.
//   - One final dot of a name or glob says nothing and is taken away.
//   - A CIDR or an IP literal matches addresses. IPv4-mapped IPv6 is unmapped
//     before anything is compared, in patterns as in addresses.
//
// The port part is one port, a range such as 8000-8999, or "*".
// The zero Match matches nothing.
type Match struct {
	text   string
	kind   matchKind
	host   string       // lower case, for globs and names
	prefix netip.Prefix // for matchPrefix
	lo, hi uint16
}

type matchKind uint8

const (
	matchNothing matchKind = iota
	matchAny
	matchGlob
	matchName
	matchPrefix
)

// ParseMatch reads a pattern. Its errors say what to write instead.
func ParseMatch(s string) (Match, error) {
	m, err := parseMatch(s)
	if err != nil {
		return Match{}, fmt.Errorf("pattern %q: %w", s, err)
	}
	m.text = s
	return m, nil
}

func parseMatch(s string) (Match, error) {
	host, ports, err := splitPattern(s)
	if err != nil {
		return Match{}, err
	}
	var m Match
	if m.lo, m.hi, err = parsePorts(ports); err != nil {
		return Match{}, err
	}
	bracketed := strings.HasPrefix(s, "[")
	switch {
	case host == "*":
		m.kind = matchAny
	case strings.Contains(host, "/"):
		m.kind = matchPrefix
		m.prefix, err = parsePrefix(host, bracketed)
	case bracketed || looksLikeAddr(host):
		m.kind = matchPrefix
		m.prefix, err = parseSingle(host, bracketed)
	case strings.Contains(host, "*"):
		m.kind = matchGlob
		m.host, err = parseGlob(host)
	default:
		m.kind = matchName
		m.host, err = checkName(host)
	}
	if err != nil {
		return Match{}, err
	}
	return m, nil
}

// splitPattern cuts HOST:PORTS, where an IPv6 host stands in brackets. Unlike
// net.SplitHostPort it names the mistake in terms of a pattern.
func splitPattern(s string) (host, ports string, err error) {
	if s == "" {
		return "", "", errors.New("is empty; write HOST:PORT, and *:* for everything")
	}
	if rest, ok := strings.CutPrefix(s, "["); ok {
		host, after, ok := strings.Cut(rest, "]")
		if !ok {
			return "", "", errors.New("the opening bracket is never closed; write [ADDRESS]:PORT")
		}
		ports, ok := strings.CutPrefix(after, ":")
		if !ok {
			return "", "", errors.New("has no port; add :PORT, a range such as :8000-8999, or :* after the bracket")
		}
		return host, ports, nil
	}
	i := strings.LastIndexByte(s, ':')
	if i < 0 {
		return "", "", errors.New("has no port; add :PORT, a range such as :8000-8999, or :*")
	}
	host, ports = s[:i], s[i+1:]
	switch {
	case host == "":
		return "", "", errors.New("has no host; write * to match every host")
	case strings.Contains(host, ":"):
		return "", "", errors.New("IPv6 is written in brackets, as in [fd00::/8]:443")
	}
	return host, ports, nil
}

func parsePorts(s string) (lo, hi uint16, err error) {
	if s == "*" {
		return 1, 65535, nil
	}
	first, last, isRange := strings.Cut(s, "-")
	if lo, err = parsePort(first); err != nil {
		return 0, 0, err
	}
	if !isRange {
		return lo, lo, nil
	}
	if hi, err = parsePort(last); err != nil {
		return 0, 0, err
	}
	if lo > hi {
		return 0, 0, fmt.Errorf("the port range %d-%d runs backwards; write %d-%d", lo, hi, hi, lo)
	}
	return lo, hi, nil
}

// parsePort reads a port from 1 to 65535 in plain decimal: no sign, no
// leading zero.
func parsePort(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 || s[0] == '0' || s[0] == '+' {
		return 0, fmt.Errorf("%q is no port; write a number from 1 to 65535", s)
	}
	return uint16(n), nil
}

func parsePrefix(s string, bracketed bool) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("%q is no CIDR; write ADDRESS/BITS, as in 10.1.0.0/16", s)
	}
	if err := checkBrackets(p.Addr(), bracketed); err != nil {
		return netip.Prefix{}, err
	}
	if m := p.Masked(); m != p {
		return netip.Prefix{}, fmt.Errorf("%s has bits set after its first %d; write %s", p, p.Bits(), m)
	}
	if p.Addr().Is4In6() {
		// A masked prefix can hold ::ffff:0:0 only with 96 bits or more.
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p, nil
}

func parseSingle(s string, bracketed bool) (netip.Prefix, error) {
	a, err := netip.ParseAddr(s)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("%q is no IP address; names stand without brackets", s)
	}
	if a.Zone() != "" {
		return netip.Prefix{}, fmt.Errorf("%q has a zone; write the address without %%%s", s, a.Zone())
	}
	if err := checkBrackets(a, bracketed); err != nil {
		return netip.Prefix{}, err
	}
	a = a.Unmap()
	return netip.PrefixFrom(a, a.BitLen()), nil
}

func checkBrackets(a netip.Addr, bracketed bool) error {
	if a.Is4() && bracketed {
		return fmt.Errorf("IPv4 stands without brackets; write %s", a)
	}
	return nil
}

// looksLikeAddr says whether s is an IPv4 literal in its one canonical form.
func looksLikeAddr(s string) bool {
	a, err := netip.ParseAddr(s)
	return err == nil && a.Is4()
}

// parseGlob checks the fixed characters of a glob like those of a name.
func parseGlob(s string) (string, error) {
	if strings.Contains(s, "**") {
		return "", errors.New("two * in a row mean no more than one; write one")
	}
	if strings.Trim(s, "0123456789.*") == "" {
		return "", errors.New("globs match names only; write a CIDR for addresses, as in 10.1.0.0/16")
	}
	s = strings.ToLower(strings.TrimSuffix(s, "."))
	for label := range strings.SplitSeq(s, ".") {
		if label == "" {
			return "", errors.New("has an empty label; write no leading or doubled dot")
		}
	}
	for _, c := range []byte(s) {
		if c != '*' && c != '.' && !isLabelByte(c) {
			return "", fmt.Errorf("%q cannot stand in a host pattern; only letters, digits, '-', '_', '.' and '*' can", c)
		}
	}
	return s, nil
}

// String returns the pattern as it was written.
func (m Match) String() string { return m.text }

// Ports returns the first and the last port that the pattern matches.
func (m Match) Ports() (first, last uint16) { return m.lo, m.hi }

// Matches reports whether the pattern matches d: d's name if it has one, else
// its address.
func (m Match) Matches(d Destination) bool {
	if d.Name != "" {
		return m.matchesName(d.Name, d.Port)
	}
	return m.matchesAddr(d.Addr, d.Port)
}

func (m Match) matchesPort(port uint16) bool {
	return m.kind != matchNothing && m.lo <= port && port <= m.hi
}

// sharesPort reports whether both patterns match some port.
func (m Match) sharesPort(o Match) bool { return m.lo <= o.hi && o.lo <= m.hi }

func (m Match) matchesName(name string, port uint16) bool {
	if !m.matchesPort(port) {
		return false
	}
	switch m.kind {
	case matchAny:
		return true
	case matchName:
		return strings.EqualFold(m.host, name)
	case matchGlob:
		return globMatches(m.host, strings.ToLower(name))
	}
	return false
}

func (m Match) matchesAddr(a netip.Addr, port uint16) bool {
	if !m.matchesPort(port) {
		return false
	}
	switch m.kind {
	case matchAny:
		return true
	case matchPrefix:
		return m.prefix.Contains(a.Unmap())
	}
	return false
}

// HostName returns the plain host name that the pattern is for, and whether
// it is for one: not for "*", globs, CIDRs and IP literals.
func (m Match) HostName() (string, bool) {
	return m.host, m.kind == matchName
}

// globMatches matches s against a glob with "*" only. It runs in time linear
// in len(s) for each "*": the last "*" alone is ever retried.
func globMatches(glob, s string) bool {
	star, mark := -1, 0
	g, i := 0, 0
	for i < len(s) {
		switch {
		case g < len(glob) && glob[g] == '*':
			star, mark = g, i
			g++
		case g < len(glob) && glob[g] == s[i]:
			g++
			i++
		case star >= 0:
			mark++
			g, i = star+1, mark
		default:
			return false
		}
	}
	for g < len(glob) && glob[g] == '*' {
		g++
	}
	return g == len(glob)
}
