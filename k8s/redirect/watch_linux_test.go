package redirect

import (
	"testing"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// A down is so quick that a watch may hear all of it before it looks.
func TestWatchHearsThatTheEndIsOnPurpose(t *testing.T) {
	message := func(kind uint16, set string) netlink.Message {
		attrs, err := netlink.MarshalAttributes([]netlink.Attribute{
			{Type: unix.NFTA_SET_TABLE, Data: append([]byte(tableName), 0)}, {Type: unix.NFTA_SET_NAME, Data: append([]byte(set), 0)},
		})
		if err != nil {
			t.Fatal(err)
		}
		return netlink.Message{
			Header: netlink.Header{Type: netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | kind)},
			Data:   append([]byte{unix.NFPROTO_INET, 0, 0, 0}, attrs...),
		}
	}
	down := []netlink.Message{
		message(unix.NFT_MSG_NEWSET, "except4"), message(unix.NFT_MSG_NEWSET, endingSet), message(unix.NFT_MSG_NEWSETELEM, endingSet),
		message(unix.NFT_MSG_DELSET, "except4"), message(unix.NFT_MSG_DELSET, endingSet),
	}
	var w watcher
	for n := 2; n <= len(down); n++ {
		if w = (watcher{}); !w.hear(down[:n]) || !w.ending {
			t.Errorf("after %d messages of a down, the end is not on purpose", n)
		}
	}
	if !w.hear([]netlink.Message{message(unix.NFT_MSG_NEWSET, "except4"+other)}) || w.ending {
		t.Error("after an up, the next end is on purpose")
	}
}
