package main

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// A watcher polls files for changes. It polls because that sees every way in
// which a file comes to have other content: written in place, renamed over, or
// behind a symlink that a ConfigMap's update swaps.
type watcher struct {
	changed chan struct{}
	cancel  chan struct{}
	done    sync.WaitGroup

	mu    sync.Mutex
	files []string
	seen  string // the state of files that was reported; "" if none was
}

func newWatcher(files []string, interval time.Duration) *watcher {
	w := &watcher{changed: make(chan struct{}, 1), cancel: make(chan struct{})}
	w.watch(files)
	w.done.Go(func() { w.poll(interval) })
	return w
}

// watch makes files the ones to watch. Other ones than before are reported as
// changed once: they may have been, since they were read.
func (w *watcher) watch(files []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !slices.Equal(files, w.files) {
		w.files, w.seen = slices.Clone(files), ""
	}
}

func (w *watcher) stop() {
	close(w.cancel)
	w.done.Wait()
}

// poll reports a change once the files have been the same for an interval, so
// that none is read half written.
func (w *watcher) poll(interval time.Duration) {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	before := ""
	for {
		select {
		case <-w.cancel:
			return
		case <-ticker.C:
		}
		w.mu.Lock()
		now := state(w.files)
		report := now != w.seen && now == before
		if report {
			w.seen = now
		}
		w.mu.Unlock()
		before = now
		if report {
			select {
			case w.changed <- struct{}{}:
			default:
			}
		}
	}
}

// state is a text that changes whenever a file's content may have.
func state(files []string) string {
	var b strings.Builder
	for _, name := range files {
		info, err := os.Stat(name)
		if err != nil {
			fmt.Fprintf(&b, "%q gone\n", name)
			continue
		}
		fmt.Fprintf(&b, "%q %d %d", name, info.Size(), info.ModTime().UnixNano())
		if s, ok := info.Sys().(*syscall.Stat_t); ok {
			// The change time also tells of a chmod, which may mend a key file.
			fmt.Fprintf(&b, " %d %d %d.%09d", s.Dev, s.Ino, s.Ctim.Sec, s.Ctim.Nsec)
		}
		b.WriteByte('\n')
	}
	return b.String()
}
