package main

import (
	"strings"
	"testing"
	"time"
)

func shell(t *testing.T, script string) *process {
	t.Helper()
	p, err := start(t.TempDir(), []string{"sh", "-c", script})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stopAll([]*process{p}) })
	return p
}

func TestUsage(t *testing.T) {
	// A group of two: the shell and its child, which keeps a core busy.
	p := shell(t, "(while :; do :; done) & wait")
	deadline := time.Now().Add(time.Minute)
	for {
		u, err := usageOf([]*process{p})
		if err != nil {
			t.Fatal(err)
		}
		if u.cpu > 0 && u.rss > 0 && u.peak >= u.rss {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("got %+v", u)
		}
	}
	stopAll([]*process{p})
	awaitGone(t, p)
	if all, err := machineCPU(); err != nil || all <= 0 {
		t.Errorf("machine: %v, %v", all, err)
	}
}

// TestStopDeaf ends a process that ignores SIGTERM, with its child.
func TestStopDeaf(t *testing.T) {
	p := shell(t, "trap '' TERM; sleep 1000 & while :; do sleep 1000; done")
	if err := p.ended(); err != nil {
		t.Fatal(err)
	}
	stopAll([]*process{p, p})
	awaitGone(t, p)
}

// TestOrphan checks that what a process has started ends with it.
func TestOrphan(t *testing.T) {
	p := shell(t, "sleep 1000 & echo last words; exit 3")
	<-p.done
	awaitGone(t, p)
	if err := p.ended(); err == nil || !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("got %v", err)
	}
	if got := p.lastWords(); got != "last words" {
		t.Errorf("got %q", got)
	}
}

// awaitGone waits until no process of the group has memory any more.
func awaitGone(t *testing.T, p *process) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; {
		u, err := usageOf([]*process{p})
		if err != nil {
			t.Fatal(err)
		}
		if u.rss == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("still there: %+v", u)
		}
	}
}
