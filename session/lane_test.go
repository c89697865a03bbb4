package session

import (
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// A choir is a session whose one end queues words, and whose other tells in
// which order they left.
type choir struct {
	*Conn
	t *testing.T
	r *Conn
}

func newChoir(t *testing.T) choir {
	i, r, _ := memSession(t, TransformPacked)
	c := choir{i, t, r}
	c.hold(true)
	t.Cleanup(func() { c.hold(false) })
	return c
}

// hold makes it look as if somebody were sending: nothing leaves.
func (c choir) hold(on bool) {
	c.tx.mu.Lock()
	defer c.tx.mu.Unlock()
	c.tx.busy = on
	c.tx.work.Signal()
}

// turn queues a word in turn, filled up to n bytes.
func (c choir) turn(word string, n int) Mark {
	c.t.Helper()
	b := NewBuffer()
	clear(b.Body()[:n])
	copy(b.Body(), word)
	mark, err := c.QueueBuffer(b, n)
	if err != nil {
		c.t.Fatal(err)
	}
	return mark
}

func (c choir) first(word string, behind Mark) {
	c.t.Helper()
	if err := c.QueueFirst([]byte(word), behind); err != nil {
		c.t.Fatal(err)
	}
}

// leaves flushes, and says if other words than these leave, or in another
// order.
func (c choir) leaves(want string) {
	c.t.Helper()
	c.hold(false)
	c.Flush()
	var words []string
	for len(words) < len(strings.Fields(want)) {
		bodies, err := c.r.ReadRecords(make([][]byte, 0, MaxRecords))
		if err != nil {
			c.t.Fatal(err)
		}
		for _, b := range bodies {
			words = append(words, strings.FieldsFunc(string(b), func(r rune) bool { return r == 0 || r == ' ' })...)
		}
	}
	c.hold(true)
	if got := strings.Join(words, " "); got != want {
		c.t.Errorf("%q left, want %q", got, want)
	}
}

// TestLane: what is queued first leaves first, but never ahead of what it is to
// stay behind, and that holds on until the batch with it has left.
func TestLane(t *testing.T) {
	c := newChoir(t)
	for _, size := range []int{100, MaxBody} { // copied, and not
		bulk := c.turn("bulk", size)
		c.first("ping ", Mark{})
		c.first("end ", bulk)
		c.first("pong ", Mark{})
		c.turn("more", size)
		c.first("fin ", bulk)
		c.leaves("ping pong bulk end more fin")
		c.turn("others", size)
		c.first("reset ", bulk)
		c.leaves("reset others")
	}
}

// TestTryFirst: it is refused, with nothing queued, where something of the same
// kind waits anywhere, and where half of the lane is taken.
func TestTryFirst(t *testing.T) {
	c := newChoir(t)
	try := func(word string, behind Mark) (Mark, bool) { return c.TryFirst([]byte(word), behind, false) }
	ahead, ok := try("one ", Mark{})
	if _, again := try("no ", ahead); !ok || again {
		t.Errorf("one piece goes first: %v, and a second: %v", ok, again)
	}
	bulk := c.turn("bulk", 5)
	if _, ok := try("no ", bulk); ok {
		t.Error("a piece goes ahead of the one before it")
	}
	c.first("end ", ahead)
	c.leaves("one end bulk")
	c.tx.amount.Store(leastAmount)
	n := 0
	for piece := strings.Repeat("x", 100); ; n++ {
		if _, ok := try(piece, bulk); !ok {
			break
		}
	}
	if n != leastAmount/100 {
		t.Errorf("%d pieces of 100 bytes went first, want %d", n, leastAmount/100)
	}
	c.first("more", Mark{}) // there is room for what cannot wait
}

// TestBatchIsBounded: what gathers, in turn and in the lane, is as much as the
// transport takes in a time, and nobody who waits for the one keeps the other
// waiting.
func TestBatchIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newChoir(t)
		c.tx.amount.Store(3 * leastAmount)
		var turns, lane int // bytes
		go func() {
			for c.BeginTurn(1000) == nil {
				c.turn("bulk", 1000)
				c.EndTurn()
				turns += 1000
			}
		}()
		synctest.Wait()
		go func() {
			for c.QueueFirst(make([]byte, 1000), Mark{}) == nil {
				lane += 1000
			}
		}()
		synctest.Wait()
		if most := 3 * leastAmount; turns > most || turns < most-1000 || lane > most || lane < most-1000 {
			t.Errorf("%d bytes in turn, %d in the lane, want %d at most", turns, lane, most)
		}
		c.hold(false)
		c.Abort(nil)
	})
}

// TestALargeRecordStillLeaves: one that is more than may gather leaves alone.
func TestALargeRecordStillLeaves(t *testing.T) {
	c := newChoir(t)
	c.tx.amount.Store(leastAmount)
	for _, word := range []string{"one", "two"} {
		if err := c.BeginTurn(MaxBody); err != nil {
			t.Fatal(err)
		}
		c.turn(word, MaxBody)
		c.EndTurn()
		c.leaves(word)
	}
}

// TestGrain: what one frame takes shrinks with the rate, and fills whole
// blocks where there is padding.
func TestGrain(t *testing.T) {
	for _, c := range []struct{ amount, padding, want int }{
		{leastAmount, 0, leastAmount},
		{20_000, 0, 20_000},
		{mostAmount, 0, MaxBody},
		{leastAmount, paddingBlock, paddingBlock - recordHeader},
		{20_000, paddingBlock, 2*paddingBlock - recordHeader},
		{mostAmount, paddingBlock, MaxBody},
	} {
		var conn Conn
		conn.tx.amount.Store(int64(c.amount))
		conn.info.padding = c.padding
		if got := conn.Grain(); got != c.want {
			t.Errorf("%d bytes gather, padding %d: %d, want %d", c.amount, c.padding, got, c.want)
		}
	}
}

// A plodding conn takes its time for each write.
type plodding struct{ net.Conn }

func (c plodding) Write(p []byte) (int, error) {
	time.Sleep(2 * time.Millisecond)
	return c.Conn.Write(p)
}

// TestTurns: who sends much does not keep the others who do from theirs. Who
// is sending for all misses some.
func TestTurns(t *testing.T) {
	i, r, _ := memSession(t, TransformPacked)
	i.transport.Conn = plodding{i.transport.Conn}
	i.tx.amount.Store(leastAmount)
	const voices, songs = 4, 30
	var wg sync.WaitGroup
	for v := range voices {
		wg.Go(func() {
			for range songs {
				if i.BeginTurn(leastAmount) != nil {
					return // the test is over
				}
				b := NewBuffer()
				clear(b.Body()[:leastAmount])
				b.Body()[0] = byte(v)
				i.QueueBuffer(b, leastAmount)
				i.EndTurn()
				i.Flush()
			}
		})
	}
	var sung [voices]int
	for range voices * songs {
		piece := make([]byte, leastAmount)
		if _, err := io.ReadFull(r, piece); err != nil {
			t.Fatal(err)
		}
		v := piece[0]
		if sung[v]++; sung[v] == songs && slices.Min(sung[:]) < songs/4 {
			t.Errorf("one has sung all, and another hardly: %v", sung)
		}
	}
	wg.Wait()
}
