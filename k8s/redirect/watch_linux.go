package redirect

import (
	"context"
	"errors"
	"time"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// endingSet is in a table that is about to be removed on purpose, for whoever watches.
const endingSet = "ending"

// ending is the table with which rs ends: it redirects nothing new.
func (rs *ruleset) ending() *ruleset {
	end := rs.refusing()
	end.sets = append(end.sets[:len(end.sets):len(end.sets)], set{
		nft:       &nftables.Set{Table: rs.table, Name: endingSet, KeyType: nftables.TypeInetService, Interval: true},
		intervals: portIntervals([]PortRange{{0, 0}}),
	})
	return end
}

func (rs *ruleset) isEnding() bool {
	for _, s := range rs.sets {
		if plainName(s.nft.Name) == endingSet {
			return true
		}
	}
	return false
}

// Watch puts the rules back as soon as another program has removed them, as a flush of all tables does, until ctx is
// done, and says so each time. The kernel remembers the redirected connections, so those on which nothing was sent
// meanwhile, not even an acknowledgement, go on. Rules that Down removes are gone for good.
func Watch(ctx context.Context, restored func()) error {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return explain("opening a netlink socket", err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if err := conn.JoinGroup(unix.NFNLGRP_NFTABLES); err != nil {
		return explain("watching the rules", err)
	}
	var w watcher
	for news := true; ; {
		if news {
			if err := w.look(restored); err != nil {
				return err
			}
		}
		msgs, err := conn.Receive()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENOBUFS): // some were missed
			news = true
		case err != nil:
			return explain("watching the rules", err)
		default:
			news = w.hear(msgs)
		}
	}
}

// A watcher knows the rules that were there last.
type watcher struct {
	last   *ruleset
	ending bool // on purpose
}

// hear reports whether any of the messages is about the table.
func (w *watcher) hear(msgs []netlink.Message) (news bool) {
	for _, m := range msgs {
		const header = 4 // nfgenmsg: family (1) | version (1) | subsystem (2)
		if m.Header.Type>>8 != unix.NFNL_SUBSYS_NFTABLES || len(m.Data) < header || m.Data[0] != unix.NFPROTO_INET {
			continue
		}
		attrs, err := netlink.UnmarshalAttributes(m.Data[header:])
		if err != nil {
			continue
		}
		names := make(map[uint16]string) // the first is the table's, the second that of what is in it
		for _, a := range attrs {
			if a.Type <= unix.NFTA_SET_NAME {
				names[a.Type] = unix.ByteSliceToString(a.Data)
			}
		}
		if names[unix.NFTA_SET_TABLE] != tableName {
			continue
		}
		news = true
		// The set comes after all others of its table, and its elements and its end say nothing: those of a table that was
		// removed may all be heard before the first look.
		if m.Header.Type&0xff == unix.NFT_MSG_NEWSET {
			w.ending = plainName(names[unix.NFTA_SET_NAME]) == endingSet
		}
	}
	return news
}

// look compares what is installed with what was.
func (w *watcher) look(restored func()) error {
	now, err := installed()
	for range 3 { // what is read while it is replaced may be of both
		if err == nil && (now == nil || now.isWhole()) {
			break
		}
		time.Sleep(10 * time.Millisecond)
		now, err = installed()
	}
	switch {
	case err != nil:
		return explain("reading the rules", err)
	case now != nil && now.isWhole():
		w.last, w.ending = now, now.isEnding()
	case w.ending:
		w.last = nil
	case w.last != nil:
		if err := install(w.last); err != nil {
			return explain("putting back the rules", err)
		}
		restored()
	}
	return nil
}

// isWhole reports whether nothing is missing that every table has.
func (rs *ruleset) isWhole() bool {
	return len(rs.rules(redirectChain)) > 0 && len(rs.rules(strayChain)) > 0 && len(rs.rules(listenerChain)) > 0
}
