package main

import (
	"fmt"
	"io/fs"
	"slices"

	"github.com/sealane/sealane/cmd/sealane/internal/config"
	"github.com/sealane/sealane/mux"
	"github.com/sealane/sealane/proxy"
	"github.com/sealane/sealane/session"
)

// A reload that is refused because next cannot have what it needs must not
// keep open what next closes: whoever takes a key out of a config wants it out.
// So base, the last config that took effect, is cut down to what next allows,
// too. Nobody gets what one of the two does not give.
//
// Peers, keys and listeners are cut here; routes, services and egress are asked
// of both configs, for which next's are handed to the proxy beside base's. The
// node's own key, link address, limits and timeouts give nobody access: base's
// stay.

// withdraw returns base as next leaves it, and what that took away, in words.
func withdraw(base, next *config.Config) (*config.Config, []string) {
	left := *base
	w := withdrawal{next: next, left: &left}
	w.peers(base)
	w.listeners(base)
	w.policy(base)
	w.doors(base)
	return &left, w.gone
}

type withdrawal struct {
	next, left *config.Config
	gone       []string
}

func (w *withdrawal) took(format string, args ...any) {
	w.gone = append(w.gone, fmt.Sprintf(format, args...))
}

// peers keeps those with a key in both configs.
func (w *withdrawal) peers(base *config.Config) {
	w.left.Peers = nil
	for _, p := range base.Peers {
		var now mux.Peer
		if i := slices.IndexFunc(w.next.Peers, func(o mux.Peer) bool { return o.Name == p.Name }); i >= 0 {
			now = w.next.Peers[i]
		}
		keys := slices.DeleteFunc(slices.Clone(p.Keys), func(k session.PublicKey) bool { return !slices.Contains(now.Keys, k) })
		switch {
		case len(keys) == 0:
			w.took("peer %s", p.Name)
			continue
		case len(keys) < len(p.Keys):
			w.took("%s of peer %s", count(len(p.Keys)-len(keys), "key"), p.Name)
		}
		p.Keys = keys
		w.left.Peers = append(w.left.Peers, p)
	}
}

func (w *withdrawal) hasPeer(name string) bool { return slices.Contains(peerNames(w.left), name) }

// listeners keeps those that are in both configs and lead to the same place. One
// that is to have more addresses keeps its own, and of one that is to have fewer
// those are left.
func (w *withdrawal) listeners(base *config.Config) {
	w.left.Listeners = nil
	for _, l := range base.Listeners {
		i := counterpart(l, w.next.Listeners)
		if i < 0 || w.next.Listeners[i].To != l.To || w.next.Listeners[i].Owner != l.Owner || l.To.Peer != "" && !w.hasPeer(l.To.Peer) {
			w.took("listener %s %v", l.Kind, l.Address)
			continue
		}
		now := w.next.Listeners[i]
		if !now.Address.Covers(l.Address) {
			w.took("listener %s %v but for %v", l.Kind, l.Address, now.Address)
			l.Address = now.Address
		}
		users, ok := commonUsers(l.Users, now.Users)
		if !ok {
			w.took("listener %s %v: it has no user in both configs", l.Kind, l.Address)
			continue
		}
		mode := permissions(l) & permissions(now)
		if !slices.Equal(users, l.Users) || mode != permissions(l) {
			w.took("users of listener %s %v", l.Kind, l.Address)
		}
		l.Users = users
		if l.Address.Network == "unix" {
			l.Mode = mode
		}
		w.left.Listeners = append(w.left.Listeners, l)
	}
}

// counterpart is the index of what a listener has become: one with its address,
// or with a part of it, or of which it is a part.
func counterpart(l proxy.Listener, next []proxy.Listener) int {
	same := slices.IndexFunc(next, func(o proxy.Listener) bool { return o.Kind == l.Kind && o.Address == l.Address })
	if same >= 0 {
		return same
	}
	return slices.IndexFunc(next, func(o proxy.Listener) bool {
		return o.Kind == l.Kind && (o.Address.Covers(l.Address) || l.Address.Covers(o.Address))
	})
}

// permissions is the mode of a listener's socket.
func permissions(l proxy.Listener) fs.FileMode {
	if l.Mode == 0 {
		return 0o600
	}
	return l.Mode
}

// commonUsers returns who may use a listener by both lists. An empty one lets
// everybody in. It is not ok if nobody is left.
func commonUsers(a, b []proxy.User) (users []proxy.User, ok bool) {
	switch {
	case len(a) == 0:
		return b, true
	case len(b) == 0:
		return a, true
	}
	users = slices.DeleteFunc(slices.Clone(a), func(u proxy.User) bool { return !slices.Contains(b, u) })
	return users, len(users) > 0
}

// policy keeps of base what names a peer that is left, and notes where next
// differs: the proxy asks both.
func (w *withdrawal) policy(base *config.Config) {
	w.left.Services, w.left.Egress = nil, nil
	for _, s := range base.Services {
		i := slices.IndexFunc(w.next.Services, func(o proxy.Service) bool { return o.Name == s.Name })
		lost := func(peer string) bool {
			return i < 0 || !slices.Contains(w.next.Services[i].Allow, peer) || !w.hasPeer(peer)
		}
		allow := slices.DeleteFunc(slices.Clone(s.Allow), lost)
		switch {
		case len(allow) == 0:
			w.took("service %s", s.Name)
			continue
		case w.next.Services[i].Address != s.Address:
			w.took("service %s, which is to be at another address", s.Name)
		case len(allow) < len(s.Allow):
			w.took("service %s for %s", s.Name, count(len(s.Allow)-len(allow), "peer"))
		}
		s.Allow = allow
		w.left.Services = append(w.left.Services, s)
	}
	for _, r := range base.Egress {
		r.Allow = slices.DeleteFunc(slices.Clone(r.Allow), func(peer string) bool { return !w.hasPeer(peer) })
		if len(r.Allow) > 0 {
			w.left.Egress = append(w.left.Egress, r)
		}
	}
	if !allows(w.next.Egress, base.Egress) {
		w.took("egress that the new rules do not allow")
	}
	// What is only added behind the old routes changes the way of nothing.
	if n := len(base.Routes); len(w.next.Routes) < n || !slices.Equal(base.Routes, w.next.Routes[:n]) {
		w.took("routes that lead elsewhere by the new ones")
	}
}

// allows says whether each pattern of a peer in old is one of its in rules, too.
func allows(rules, old []proxy.EgressRule) bool {
	for _, r := range old {
		for _, peer := range r.Allow {
			for _, m := range r.Match {
				if !slices.ContainsFunc(rules, func(o proxy.EgressRule) bool {
					return slices.Contains(o.Allow, peer) && slices.Contains(o.Match, m)
				}) {
					return false
				}
			}
		}
	}
	return true
}

// doors closes what next has no use for, or opens to fewer.
func (w *withdrawal) doors(base *config.Config) {
	none := proxy.Endpoint{}
	if base.Listen != none && w.next.Listen == none {
		w.took("listen %v", base.Listen)
		w.left.Listen = none
	}
	w.left.AdminUnsafe = base.AdminUnsafe && w.next.AdminUnsafe
	private := w.next.Admin.Network == "unix" && base.Admin.Network != "unix"
	exposed := base.AdminUnsafe && !w.next.AdminUnsafe && base.Admin != w.next.Admin
	if base.Admin != none && (w.next.Admin == none || private || exposed) {
		w.took("admin %v", base.Admin)
		w.left.Admin = none
	}
}
