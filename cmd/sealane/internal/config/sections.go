package config

import (
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/sealane/sealane/mux"
	"github.com/sealane/sealane/proxy"
	"github.com/sealane/sealane/session"
)

func (l *loader) peer(n *node) {
	p := mux.Peer{Links: 1}
	l.fields(n, "a peer",
		field{"name", func(n *node) {
			assign(&p.Name)(parsed(&l.decoder, n, "name", checkName))
			if p.Name != "" && slices.Contains(l.names, p.Name) {
				l.fail(n.at, "two peers are named %q; rename one, or list both keys under one", p.Name)
			}
		}, "name is missing; give the peer a name, such as name: db"},
		field{"keys", func(n *node) {
			l.some(n, "keys", func(n *node) { p.Keys = append(p.Keys, l.peerKey(n, n.text, p.Name)...) })
		}, ""},
		field{"key_files", func(n *node) {
			l.some(n, "key_files", func(n *node) { p.Keys = append(p.Keys, l.keyFile(n, p.Name)...) })
		}, ""},
		field{"address", func(n *node) {
			l.oneOrMore(n, "address", func(n *node) {
				e, ok := parsed(&l.decoder, n, "address", proxy.ParseEndpoint)
				if ok && e.Network != "tcp" {
					l.fail(n.at, "address: links go over TCP; write HOST:PORT")
				}
				p.Addresses = append(p.Addresses, e.Address)
			})
		}, ""},
		field{"links", func(n *node) { assign(&p.Links)(l.integer(n, "links", 1, 64)) }, ""},
	)
	if n.kind != mapping {
		return
	}
	if !n.has("keys") && !n.has("key_files") {
		l.fail(n.at, `keys is missing; list the peer's public keys, which its "sealane keygen" or "sealane pubkey" prints`)
	}
	if p.Name != "" {
		l.names = append(l.names, p.Name)
	}
	l.Peers = append(l.Peers, p)
}

func (n *node) has(key string) bool {
	return slices.ContainsFunc(n.entries, func(e entry) bool { return e.key == key })
}

// peerKey decodes one public key and keeps it from being listed twice.
func (l *loader) peerKey(n *node, text, peer string) []session.PublicKey {
	if n.kind != scalar {
		l.fail(n.at, "a key is %v; write its 43 characters in quotes", n.kind)
		return nil
	}
	key, err := session.ParsePublicKey(text)
	if err != nil {
		l.fail(n.at, `%v; copy what "sealane pubkey" prints`, err)
		return nil
	}
	if first, again := l.keys[key]; again {
		l.fail(n.at, "this key is already listed for peer %s (%v); a key belongs to one peer, once", first.peer, first.at)
		return nil
	}
	l.keys[key] = keyPlace{peer, n.at}
	return []session.PublicKey{key}
}

// keyFile reads public keys from a file, one on each line.
func (l *loader) keyFile(n *node, peer string) []session.PublicKey {
	b, path, ok := l.read(n, "key_files", public)
	if !ok {
		return nil
	}
	lines := strings.Fields(string(b))
	if len(lines) == 0 {
		l.fail(n.at, `key_files: %s is empty; write what "sealane pubkey" prints into it`, path)
	}
	var keys []session.PublicKey
	for _, line := range lines {
		if _, err := session.ParsePublicKey(line); err != nil {
			l.fail(n.at, `key_files: %s: %v; write what "sealane pubkey" prints into it`, path, err)
			return nil
		}
		keys = append(keys, l.peerKey(n, line, peer)...)
	}
	return keys
}

func (l *loader) listener(n *node) {
	var out proxy.Listener
	kinds := []proxy.Kind{proxy.KindForward, proxy.KindSOCKS5, proxy.KindConnect, proxy.KindTransparent}
	var at, to position
	var fields []field
	for _, kind := range kinds {
		fields = append(fields, field{string(kind), func(n *node) {
			if out.Kind != "" {
				l.fail(n.at, "a listener is either %s or %s; make this one an item of its own", out.Kind, kind)
				return
			}
			out.Kind, at = kind, n.at
			out.Address, _ = l.endpoint(n, string(kind), kind)
		}, ""})
	}
	l.fields(n, "a listener", append(fields,
		field{"to", func(n *node) { out.To, to = l.target(n), n.at }, ""},
		field{"users", func(n *node) { l.some(n, "users", func(n *node) { l.user(n, &out) }) }, ""},
		field{"proxy_protocol", func(n *node) { out.ProxyProtocol = l.boolean(n, "proxy_protocol") }, ""},
		field{"mode", func(n *node) { assign(&out.Mode)(parsed(&l.decoder, n, "mode", parseMode)) }, ""},
		field{"owner", func(n *node) { assign(&out.Owner)(parsed(&l.decoder, n, "owner", proxy.ParseOwner)) }, ""},
	)...)
	if n.kind != mapping {
		return
	}
	if out.Kind == "" {
		l.fail(n.at, "a listener needs one of forward, socks5, connect or transparent with its address")
		return
	}
	l.checkListener(n, out, at, to)
	l.Listeners = append(l.Listeners, out)
}

// checkListener checks which keys stand beside which. at is the place of the
// address, to that of where it leads.
func (l *loader) checkListener(n *node, out proxy.Listener, at, to position) {
	only := func(key string, fits bool, where string) {
		for _, e := range n.entries {
			if e.key == key && !fits {
				l.fail(e.at, "%s is for %s; remove it here", key, where)
			}
		}
	}
	forward := out.Kind == proxy.KindForward
	login := out.Kind == proxy.KindSOCKS5 || out.Kind == proxy.KindConnect
	known := out.Address != (proxy.Endpoint{})
	only("to", forward, "forward listeners; the others use routes")
	only("proxy_protocol", forward, "forward listeners")
	only("users", login, "socks5 and connect listeners")
	// One without a path has no file, and lets everybody in whatever its mode.
	file := out.Address.Network == "unix" && !strings.HasPrefix(out.Address.Address, "@")
	only("mode", !known || file, "unix sockets that have a path")
	only("owner", !known || file, "unix sockets that have a path")
	switch {
	case forward && !n.has("to"):
		l.fail(n.at, "to is missing; say where the forward leads, such as to: {peer: db, service: postgres}")
	case forward && out.To.Service == "" && out.To.Peer != "":
		l.fail(to, "service is missing in to; name a service of %s, such as to: {peer: %s, service: postgres}", out.To.Peer, out.To.Peer)
	case forward && out.To.Direct:
		l.fail(to, "a forward leads to a peer's service; write to: {peer: NAME, service: NAME}")
	case login && known && !isLocal(out.Address) && !n.has("users"):
		l.fail(at, "%s: %v can be reached from other hosts; add users, or listen on 127.0.0.1 or unix:PATH", out.Kind, out.Address)
	case out.Kind == proxy.KindTransparent && out.Address.Network == "unix":
		l.fail(at, "transparent: redirected connections come over TCP; write HOST:PORT or systemd:NAME")
	}
}

// parseMode reads permissions as chmod takes them.
func parseMode(s string) (fs.FileMode, error) {
	v, err := strconv.ParseUint(s, 8, 32)
	if err != nil || v == 0 || v > 0o777 || len(s) > 4 {
		return 0, fmt.Errorf("%q is not a file mode; write it in octal, such as 0660", s)
	}
	return fs.FileMode(v), nil
}

// maxCredential is what SOCKS5 has room for (RFC 1929).
const maxCredential = 255

// checkUser checks a user's name, which HTTP ends at a colon.
func checkUser(s string) (string, error) {
	if len(s) > maxCredential || strings.ContainsFunc(s, func(r rune) bool { return r == ':' || unicode.IsControl(r) }) {
		return "", fmt.Errorf("%q is not a user name; use at most %d bytes, no colon and no control characters", s, maxCredential)
	}
	return s, nil
}

func (l *loader) user(n *node, to *proxy.Listener) {
	var u proxy.User
	l.fields(n, "a user",
		field{"name", func(n *node) {
			assign(&u.Name)(parsed(&l.decoder, n, "name", checkUser))
			if u.Name != "" && slices.ContainsFunc(to.Users, func(o proxy.User) bool { return o.Name == u.Name }) {
				l.fail(n.at, "user %q is listed twice; remove one of them", u.Name)
			}
		}, "name is missing; write the user's name"},
		field{"password_file", func(n *node) { u.Password = l.password(n) },
			"password_file is missing; write the user's password into a file of its own and name it here"},
	)
	to.Users = append(to.Users, u)
}

// password reads a file with a password, without the line break at its end.
func (l *loader) password(n *node) string {
	b, path, ok := l.read(n, "password_file", secret)
	if !ok {
		return ""
	}
	s := strings.TrimSuffix(strings.TrimSuffix(string(b), "\n"), "\r")
	if len(s) < 1 || len(s) > maxCredential || strings.ContainsAny(s, "\r\n\x00") {
		l.fail(n.at, "password_file: %s must hold one line of 1 to %d bytes", path, maxCredential)
	}
	return s
}

// target decodes where something leads: direct, or a mapping with a peer.
func (l *loader) target(n *node) proxy.Target {
	var t proxy.Target
	if n.kind == scalar {
		if n.text != "direct" {
			l.fail(n.at, "to: %q is not known; write direct, {peer: NAME} or {peer: NAME, service: NAME}", n.text)
			return t
		}
		return proxy.Target{Direct: true}
	}
	l.fields(n, "to",
		field{"peer", func(n *node) { t.Peer = l.peerName(n, "peer") }, "peer is missing; name the peer to go through"},
		field{"service", func(n *node) { assign(&t.Service)(parsed(&l.decoder, n, "service", checkName)) }, ""},
	)
	return t
}

// peerName decodes a mention of a peer, which crossCheck resolves: peers may
// stand further down in the file.
func (l *loader) peerName(n *node, name string) string {
	s, ok := l.text(n, name)
	if ok {
		l.references = append(l.references, reference{s, n.at})
	}
	return s
}

func (l *loader) route(n *node) {
	var r proxy.Route
	var at position
	l.fields(n, "a route",
		field{"match", func(n *node) {
			at = n.at
			assign(&r.Match)(parsed(&l.decoder, n, "match", proxy.ParseMatch))
		}, `match is missing; write the destinations, such as match: "*.internal:443"`},
		field{"to", func(n *node) { r.To = l.target(n) },
			"to is missing; say where the route leads: to: {peer: NAME} or to: direct"},
	)
	l.Routes, l.routes = append(l.Routes, r), append(l.routes, at)
}

func (l *loader) service(n *node) {
	var s proxy.Service
	l.fields(n, "a service",
		field{"name", func(n *node) {
			assign(&s.Name)(parsed(&l.decoder, n, "name", checkName))
			if s.Name != "" && slices.ContainsFunc(l.Services, func(o proxy.Service) bool { return o.Name == s.Name }) {
				l.fail(n.at, "two services are named %q; rename one of them", s.Name)
			}
		}, "name is missing; give the service the name that peers ask for, such as name: postgres"},
		field{"address", func(n *node) {
			e, ok := parsed(&l.decoder, n, "address", proxy.ParseEndpoint)
			s.Address = e.RelativeTo(l.dir)
			if ok {
				l.targets = append(l.targets, target{s.Address, n.at})
			}
		}, "address is missing; write where the service is, such as address: 127.0.0.1:5432"},
		field{"allow", func(n *node) { s.Allow = l.allow(n) }, "allow is missing; list the peers that may use the service"},
		field{"proxy_protocol", func(n *node) { s.ProxyProtocol = l.boolean(n, "proxy_protocol") }, ""},
	)
	l.Services = append(l.Services, s)
}

func (l *loader) egressRule(n *node) {
	var r proxy.EgressRule
	l.fields(n, "an egress rule",
		field{"allow", func(n *node) { r.Allow = l.allow(n) }, "allow is missing; list the peers that the rule is for"},
		field{"match", func(n *node) {
			l.some(n, "match", func(n *node) {
				if m, ok := parsed(&l.decoder, n, "match", proxy.ParseMatch); ok {
					r.Match = append(r.Match, m)
				}
			})
		}, `match is missing; list the destinations, such as match: ["*.internal:443"]`},
	)
	l.Egress = append(l.Egress, r)
}

func (l *loader) allow(n *node) []string {
	var peers []string
	l.some(n, "allow", func(n *node) {
		name := l.peerName(n, "allow")
		if slices.Contains(peers, name) {
			l.fail(n.at, "allow: %q is listed twice; remove one of them", name)
		}
		peers = append(peers, name)
	})
	return peers
}
