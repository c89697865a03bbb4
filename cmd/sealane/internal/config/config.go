package config

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sealane/sealane/mux"
	"github.com/sealane/sealane/proxy"
	"github.com/sealane/sealane/session"
)

// The variables that override the config, for containers. SEALANE_CONFIG,
// the path of the file itself, is the caller's.
const (
	envIdentity = "SEALANE_IDENTITY"
	envListen   = "SEALANE_LISTEN"
	envAdmin    = "SEALANE_ADMIN"
	envLogLevel = "SEALANE_LOG_LEVEL"
)

// Config is a config file that was read and checked as a whole.
type Config struct {
	File     string
	Revision string   // names the content of every file that was read
	Files    []string // every file that was read, File first

	Identity string
	Key      *session.PrivateKey

	Listen      proxy.Endpoint // links from peers; zero if there are none
	Admin       proxy.Endpoint // zero for no admin endpoint
	AdminUnsafe bool

	LogLevel  string
	LogFormat string

	Transform string
	Padding   int
	Mark      uint32 // of this node's own connections; 0 for none
	Peers     []mux.Peer

	Listeners []proxy.Listener
	Routes    []proxy.Route
	Services  []proxy.Service
	Egress    []proxy.EgressRule

	Limits   Limits
	Timeouts Timeouts
	Sandbox  Sandbox

	Warnings []Error // what is allowed and may surprise, in the order of the file
}

// Limits bound what peers and apps can make this process hold.
type Limits struct {
	Links          int
	StreamsPerPeer int
	Handshakes     int
	Memory         int64
}

// Timeouts are durations; 0 means no limit.
type Timeouts struct {
	Handshake, Dial, Link, Idle, HalfClose, Drain time.Duration
}

// Sandbox is room beyond what the config needs, for what later ones need.
type Sandbox struct {
	Ports []PortRange // to listen on and to connect to
	Paths []string    // files, and folders with all that is beneath them
}

// PortRange is a range of TCP ports. 0, alone, is one that the kernel picks.
type PortRange struct{ First, Last uint16 }

// Default is the config of a file that sets nothing.
func Default(file string) *Config {
	return &Config{
		File: file, Files: []string{file},
		LogLevel: "info", LogFormat: "json", Transform: "json",
		Limits:   Limits{Links: 1024, StreamsPerPeer: 4096, Handshakes: 64, Memory: 256 << 20},
		Timeouts: Timeouts{Handshake: 10 * time.Second, Dial: 10 * time.Second, Link: 15 * time.Second, Drain: 30 * time.Second},
	}
}

// Load reads the config file and what it names. getenv gives the SEALANE_*
// overrides; an empty value is none. The error is an *Invalid with every error,
// unless the file cannot be read at all.
func Load(file string, getenv func(string) string) (*Config, error) {
	src, err := readFile(file, maxFile, anyone)
	if err != nil {
		return nil, err
	}
	return parse(file, src, getenv)
}

func parse(file string, src []byte, getenv func(string) string) (*Config, error) {
	l := &loader{
		decoder: decoder{file: file},
		Config:  Default(file),
		dir:     filepath.Dir(file),
		content: sha256.New(),
		keys:    make(map[session.PublicKey]keyPlace),
	}
	l.content.Write(src)
	root, err := parseYAML(src)
	var syntax *syntaxError
	if errors.As(err, &syntax) {
		l.fail(syntax.at, "%s", syntax.message)
		return nil, l.invalid()
	}
	if root.kind == mapping {
		override(root, getenv)
	}
	l.root(root)
	l.crossCheck()
	if len(l.errs) > 0 {
		return nil, l.invalid()
	}
	l.Revision = hex.EncodeToString(l.content.Sum(nil)[:6])
	return l.Config, nil
}

// override puts the values of the variables into the tree, so that they are
// decoded and checked like those of the file.
func override(root *node, getenv func(string) string) {
	set := func(m *node, key, variable string) {
		value := getenv(variable)
		if value == "" {
			return
		}
		at := position{variable: variable}
		m.entries = slices.DeleteFunc(m.entries, func(e entry) bool { return e.key == key })
		m.entries = append(m.entries, entry{key, at, &node{kind: scalar, at: at, text: value}})
	}
	set(root, "identity", envIdentity)
	set(root, "listen", envListen)
	set(root, "admin", envAdmin)
	if getenv(envLogLevel) == "" {
		return
	}
	i := slices.IndexFunc(root.entries, func(e entry) bool { return e.key == "log" })
	if i < 0 {
		root.entries = append(root.entries, entry{key: "log", value: &node{kind: mapping}})
		i = len(root.entries) - 1
	}
	if log := root.entries[i].value; log.kind == mapping {
		set(log, "level", envLogLevel)
	}
}

// loader decodes one config.
type loader struct {
	decoder
	*Config
	dir     string // relative paths start here
	content interface {
		Write([]byte) (int, error)
		Sum([]byte) []byte
	}

	adminAt    position
	names      []string    // of peers, those with other errors included
	references []reference // to peers
	keys       map[session.PublicKey]keyPlace
	bound      []boundAt  // addresses that this process listens on
	targets    []target   // of services
	routes     []position // of Routes' matches
}

// A target is where a service leads, at a place of the config.
type target struct {
	to proxy.Endpoint
	at position
}

// A reference is a mention of a peer by name.
type reference struct {
	name string
	at   position
}

type keyPlace struct {
	peer string
	at   position
}

func (l *loader) root(n *node) {
	l.fields(n, "",
		field{"identity", l.identity, `identity is missing; make a key with "sealane keygen -o node.key" and write identity: node.key`},
		field{"listen", l.listen, ""},
		field{"admin", l.admin, ""},
		field{"admin_unsafe", func(n *node) { l.AdminUnsafe = l.boolean(n, "admin_unsafe") }, ""},
		field{"log", l.log, ""},
		field{"transform", func(n *node) { assign(&l.Transform)(l.choice(n, "transform", "json", "packed", "gzip")) }, ""},
		field{"padding", l.padding, ""},
		field{"mark", l.mark, ""},
		field{"peers", func(n *node) { l.list(n, "peers", l.peer) }, ""},
		field{"listeners", func(n *node) { l.list(n, "listeners", l.listener) }, ""},
		field{"routes", func(n *node) { l.list(n, "routes", l.route) }, ""},
		field{"services", func(n *node) { l.list(n, "services", l.service) }, ""},
		field{"egress", func(n *node) { l.list(n, "egress", l.egressRule) }, ""},
		field{"limits", l.limits, ""},
		field{"timeouts", l.timeouts, ""},
		field{"sandbox", l.sandbox, ""},
	)
}

// assign keeps a decoded value if it was good.
func assign[T any](to *T) func(T, bool) {
	return func(v T, ok bool) {
		if ok {
			*to = v
		}
	}
}

// path resolves a path of the config.
func (l *loader) path(s string) string {
	if filepath.IsAbs(s) {
		return s
	}
	return filepath.Join(l.dir, s)
}

// read reads a file that the value at n names.
func (l *loader) read(n *node, name string, want access) ([]byte, string, bool) {
	s, ok := l.text(n, name)
	if !ok {
		return nil, "", false
	}
	path := l.path(s)
	l.Files = append(l.Files, path)
	b, err := readFile(path, maxSecret, want)
	if err != nil {
		l.fail(n.at, "%s: %v", name, err)
		return nil, path, false
	}
	l.content.Write(b)
	return b, path, true
}

func (l *loader) identity(n *node) {
	b, path, ok := l.read(n, "identity", secret)
	l.Identity = path
	if !ok {
		return
	}
	key, err := session.ParsePrivateKey(b)
	if err != nil {
		l.fail(n.at, `identity: %s: %v; make a key with "sealane keygen -o FILE"`, path, err)
		return
	}
	l.Key = key
}

func (l *loader) listen(n *node) {
	e, ok := l.endpoint(n, "listen", "")
	if ok && e.Network == "unix" {
		l.fail(n.at, "listen: links come over TCP; write HOST:PORT")
		return
	}
	l.Listen = e
}

func (l *loader) admin(n *node) {
	l.Admin, _ = l.endpoint(n, "admin", "")
	l.adminAt = n.at
}

// A boundAt is an address that this process listens on, and its place.
type boundAt struct {
	endpoint proxy.Endpoint
	kind     proxy.Kind // "" for what is no listener
	at       position
}

// endpoint decodes an address to listen on, of a listener if kind is not "",
// and keeps it from being used twice.
func (l *loader) endpoint(n *node, name string, kind proxy.Kind) (proxy.Endpoint, bool) {
	e, ok := parsed(&l.decoder, n, name, proxy.ParseListen)
	if !ok {
		return e, false
	}
	e = e.RelativeTo(l.dir)
	for _, b := range l.bound {
		switch overlaps := e.Overlaps(kind, b.endpoint, b.kind); {
		case overlaps && e == b.endpoint:
			l.fail(n.at, "%s: %v is already listened on (%v); choose another address", name, e, b.at)
			return e, false
		case overlaps:
			l.fail(n.at, "%s: %v and %v (%v) have an address in common; choose another port, or one address for each", name, e, b.endpoint, b.at)
			return e, false
		}
	}
	l.bound = append(l.bound, boundAt{e, kind, n.at})
	return e, true
}

func (l *loader) log(n *node) {
	l.fields(n, "log",
		field{"level", func(n *node) {
			assign(&l.LogLevel)(l.choice(n, "log.level", "trace", "debug", "info", "warn", "error"))
		}, ""},
		field{"format", func(n *node) { assign(&l.LogFormat)(l.choice(n, "log.format", "json", "console")) }, ""},
	)
}

func (l *loader) padding(n *node) {
	s, ok := l.choice(n, "padding", "0", "8192")
	if ok && s == "8192" {
		l.Padding = 8192
	}
}

func (l *loader) mark(n *node) {
	s, ok := l.text(n, "mark")
	if !ok {
		return
	}
	v, err := strconv.ParseUint(s, 0, 32)
	if err != nil || v == 0 {
		l.fail(n.at, "mark: %q is no packet mark; write a number such as 0x1d00, the same as in sealane redirect --mark", s)
		return
	}
	l.Mark = uint32(v)
}

func (l *loader) limits(n *node) {
	count := func(to *int, name string, high int) field {
		return field{name, func(n *node) { assign(to)(l.integer(n, "limits."+name, 1, high)) }, ""}
	}
	l.fields(n, "limits",
		count(&l.Limits.Links, "links", 1<<20),
		count(&l.Limits.StreamsPerPeer, "streams_per_peer", 1<<20),
		count(&l.Limits.Handshakes, "handshakes", 1<<16),
		field{"memory", func(n *node) { assign(&l.Limits.Memory)(l.size(n, "limits.memory", 1<<20, 1<<40)) }, ""},
	)
}

func (l *loader) timeouts(n *node) {
	timeout := func(to *time.Duration, name string, low, high time.Duration) field {
		return field{name, func(n *node) { assign(to)(l.duration(n, "timeouts."+name, low, high)) }, ""}
	}
	const month = 30 * 24 * time.Hour
	l.fields(n, "timeouts",
		// Without a limit on these three, connections that say nothing would pile up.
		timeout(&l.Timeouts.Handshake, "handshake", 100*time.Millisecond, 5*time.Minute),
		timeout(&l.Timeouts.Dial, "dial", 100*time.Millisecond, 10*time.Minute),
		timeout(&l.Timeouts.Link, "link", 3*time.Second, 10*time.Minute),
		timeout(&l.Timeouts.Idle, "idle", 0, month),
		timeout(&l.Timeouts.HalfClose, "half_close", 0, month),
		timeout(&l.Timeouts.Drain, "drain", 0, month),
	)
}

// crossCheck checks what spans several keys.
func (l *loader) crossCheck() {
	if l.Admin != (proxy.Endpoint{}) && !l.AdminUnsafe && !isLocal(l.Admin) {
		l.fail(l.adminAt, "admin: %v can be reached from other hosts, and it has no password; use 127.0.0.1 or unix:PATH, or add admin_unsafe: true",
			l.Admin)
	}
	for _, r := range l.references {
		switch {
		case slices.Contains(l.names, r.name):
		case len(l.names) == 0:
			l.fail(r.at, "no peer is named %q; add it under peers", r.name)
		default:
			l.fail(r.at, "no peer is named %q; the peers are %s", r.name, enumerate(l.names, "and"))
		}
	}
	for _, t := range l.targets {
		l.checkTarget(t)
	}
	l.warnOfDirect()
	slices.SortStableFunc(l.Warnings, byPlace)
	if l.Key == nil {
		return
	}
	if own, ok := l.keys[l.Key.Public()]; ok {
		l.fail(own.at, "this is the node's own key (identity); write the key of %s here", own.peer)
	}
}

// checkTarget refuses a service that leads back into this process. What only
// a lookup tells is refused when it is dialed.
func (l *loader) checkTarget(t target) {
	var first position
	for _, b := range l.bound {
		if leadsTo(t.to, b.endpoint) && (first == position{} || b.at.line < first.line) {
			first = b.at
		}
	}
	if first != (position{}) {
		l.fail(t.at, "address: this sidecar itself listens on %v (%v), so a service there would lead back into it; write the server's address", t.to, first)
	}
}

// leadsTo says whether a connection to an address of this host may arrive at
// a socket that is bound: for TCP its port decides, on whatever local address,
// as it does for egress.
func leadsTo(to, bound proxy.Endpoint) bool {
	if to.Network != bound.Network || to.Network != "tcp" {
		return to.Network == bound.Network && to.Network == "unix" && filepath.Clean(to.Address) == filepath.Clean(bound.Address)
	}
	host, port, err := net.SplitHostPort(to.Address)
	boundHost, boundPort, boundErr := net.SplitHostPort(bound.Address)
	if err != nil || boundErr != nil || port != boundPort {
		return false
	}
	ip, err := netip.ParseAddr(host)
	ip = ip.Unmap()
	return host == boundHost || host == "localhost" || strings.HasSuffix(host, ".localhost") ||
		err == nil && (ip.IsLoopback() || ip.IsUnspecified() || isInterface(ip))
}

// isInterface says whether an interface of this host has the address.
func isInterface(ip netip.Addr) bool {
	addrs, err := net.InterfaceAddrs()
	return err == nil && slices.ContainsFunc(addrs, func(a net.Addr) bool {
		n, ok := a.(*net.IPNet)
		return ok && n.IP.Equal(ip.AsSlice())
	})
}

func (l *loader) warnOfDirect() {
	for _, c := range proxy.Cautions(l.Routes) {
		l.Warnings = append(l.Warnings, l.errorAt(l.routes[c.Route], "warning: route "+c.Text))
	}
}

// isLocal says whether only processes of this host can connect to the address.
func isLocal(e proxy.Endpoint) bool {
	if e.Network != "tcp" {
		return e.Network == "unix"
	}
	host, _, err := net.SplitHostPort(e.Address)
	if err != nil {
		return false
	}
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.Unmap().IsLoopback()
}

func (p position) String() string {
	if p.variable != "" {
		return p.variable
	}
	return fmt.Sprintf("line %d", p.line)
}
