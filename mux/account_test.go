package mux

import "testing"

// testAccounts are those of several peers.
func testAccounts(limit int64, n int) (all *accounts, list []*account) {
	all = newAccounts(limit)
	for range n {
		list = append(list, all.account())
	}
	all.resize(limit, list)
	return all, list
}

// testAccount is that of the one peer of a node.
func testAccount(limit int64) *account {
	_, list := testAccounts(limit, 1)
	return list[0]
}

// fill opens streams until there is no memory for one, each with the largest
// window that it gets, and returns how many.
func fill(t *testing.T, a *account) (n int) {
	t.Helper()
	for ; a.open(1<<30) == ""; n++ {
		level := a.begin()
		a.widen(level, level, maxWindow, true)
	}
	return n
}

// TestAccountsHold: one peer takes what is nobody's share, and no more; each of
// the others then has its share.
func TestAccountsHold(t *testing.T) {
	for _, c := range []struct {
		limit        int64
		peers        int
		first, other int64 // what they may hold, in 64ths of the limit
	}{
		{64 << 20, 1, 64, 0},
		{64 << 20, 2, 48, 16},
		{256 << 20, 8, 36, 4},
		{16 << 20, 32, 33, 1},
	} {
		all, list := testAccounts(c.limit, c.peers)
		for i, a := range list {
			fill(t, a)
			want := c.other
			if i == 0 {
				want = c.first
			}
			if want = want * c.limit / 64; a.held >= want+floor || a.held <= want-floor {
				t.Errorf("%d peers, %d MiB: peer %d holds %d of %d", c.peers, c.limit>>20, i, a.held, want)
			}
		}
		if all.held > c.limit {
			t.Errorf("%d peers, %d MiB: %d bytes", c.peers, c.limit>>20, all.held)
		}
	}
}

// TestSharesThatCannotBeKept: with less memory than a floor for each peer in
// half of it, each peer has a stream all the same, and that is all it costs.
func TestSharesThatCannotBeKept(t *testing.T) {
	const peers = 500
	all, list := testAccounts(1<<20, peers)
	for i, a := range list {
		if n := fill(t, a); n != 1 {
			t.Fatalf("peer %d has %d streams", i, n)
		}
	}
	if all.held != peers*floor {
		t.Fatalf("%d bytes", all.held)
	}
}

// TestWindowsShrink: with each stream that stands still the next one gets less,
// but four thousand find room in 64 MiB.
func TestWindowsShrink(t *testing.T) {
	a := testAccount(64 << 20)
	last := maxWindow
	for i := range 4096 {
		if limit := a.open(1 << 30); limit != "" {
			t.Fatalf("refused by %s after %d", limit, i)
		}
		level := a.begin()
		if level = a.widen(level, level, 4<<20, false); level > last && level > initialWindow || level < floor {
			t.Fatalf("stream %d: a window of %d after one of %d", i, level, last)
		}
		last = level
	}
	if last > 4*floor {
		t.Errorf("the last one has %d", last)
	}
}

// TestProvenReaders have room beside any number of streams that stand still
// while few have more than a crowd's part.
func TestProvenReaders(t *testing.T) {
	a := testAccount(64 << 20)
	for range 400 {
		a.open(1 << 30)
		level := a.begin()
		a.widen(level, level, 4<<20, false)
	}
	a.open(1 << 30)
	level := a.begin()
	if n := a.widen(level, level, 4<<20, true); n < 256<<10 {
		t.Errorf("a window of %d", n)
	}
}

// TestAccountGoesBack: all that was taken can be given back.
func TestAccountGoesBack(t *testing.T) {
	all, list := testAccounts(1<<20, 2)
	a := list[0]
	a.open(10)
	level := a.begin()
	level = a.widen(level, level/2, 100<<10, false)
	a.move(level, 300<<10)
	all.resize(64<<10, list)
	if !a.over() {
		t.Error("a smaller limit is not noticed")
	}
	a.dissolve()
	all.resize(1<<20, list[1:])
	a.move(300<<10, 7)
	a.end(7)
	a.close()
	if all.held != 0 || all.reserved != list[1].share || a.streams != 0 || a.flows != 0 {
		t.Errorf("%d held, %d reserved for a share of %d, %d streams, %d flows", all.held, all.reserved, list[1].share, a.streams, a.flows)
	}
}
