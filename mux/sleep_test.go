package mux

import (
	"errors"
	"io"
	"testing"
	"time"
)

// TestSleeperLearnsOfDeadLink: a stream whose END is sent and that nobody
// reads, because it sleeps, is woken when its link dies, however close the two
// are.
func TestSleeperLearnsOfDeadLink(t *testing.T) {
	for _, early := range []bool{true, false} {
		handler, streams := accepted()
		a, _ := pair(t, handler, nil, nil)
		s := open(t, a, "b")
		<-streams
		if err := s.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		woken := make(chan struct{})
		die := func() { s.link.fail(errDead); <-s.link.done }
		if early {
			die()
		}
		asleep := s.Sleep(func() { close(woken) })
		if !early {
			die()
		}
		if asleep {
			select {
			case <-woken:
			case <-time.After(10 * time.Second):
				t.Fatal("nobody wakes it")
			}
		} else if !early {
			t.Fatal("it does not sleep")
		}
		if _, err := s.Read(make([]byte, 1)); !errors.Is(err, ErrTruncated) || err == io.EOF {
			t.Fatal(err)
		}
	}
}
