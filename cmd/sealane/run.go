package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"github.com/rs/zerolog"

	"github.com/sealane/sealane/cmd/sealane/internal/config"
	"github.com/sealane/sealane/cmd/sealane/internal/sandbox"
	"github.com/sealane/sealane/cmd/sealane/internal/systemd"
	"github.com/sealane/sealane/proxy"
)

// runRun is the sidecar: it runs until it is told to stop, or cannot go on.
func runRun(p *process, in input) int {
	file, err := configFile(p, in)
	if err != nil {
		return p.usageError(in.command.name, err)
	}
	// Before the first secret is read.
	hardenError := sandbox.Harden()
	cfg, err := config.Load(file, p.getenv)
	if err != nil {
		return p.badConfig(err)
	}
	var w *watcher
	if in.set("watch") {
		w = newWatcher(cfg.Files, time.Second) // a change from here on counts
		defer w.stop()
	}
	p.boundMemory(cfg)
	sink := newLogSink(p.stderr, cfg)
	log := sink.logger()
	if hardenError != nil {
		log.Warn().Err(hardenError).Msg("core dumps or new privileges could not be switched off")
	}
	reportDescriptors(log, raiseDescriptors(), cfg)

	// Before anything listens, so that no signal that follows can be lost.
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, leaveSignal)
	defer signal.Stop(signals)

	sockets, err := proxy.ActivatedSockets(p.getenv, os.Getpid())
	if err != nil {
		return p.fail(err)
	}
	manager, err := systemd.Connect(p.getenv, os.Getpid())
	if err != nil {
		return p.fail(err)
	}
	defer manager.Close()
	var box *sandbox.Sandbox
	n, err := startNode(cfg, log, nodeOptions{sockets: sockets, confine: func() (err error) {
		box, err = enterSandbox(cfg, log, in.set("no-sandbox"))
		return err
	}})
	if err != nil {
		log.Error().Err(err).Msg("could not start")
		return exitError
	}
	r := &runner{
		node: n, signals: signals, sink: sink, manager: manager, watcher: w, sandbox: box,
		load: func() (*config.Config, error) { return config.Load(file, p.getenv) }, boundMemory: p.boundMemory,
	}
	return r.run()
}

// enterSandbox leaves to this process what the config needs, unless off says
// that it keeps all it has.
func enterSandbox(cfg *config.Config, log zerolog.Logger, off bool) (*sandbox.Sandbox, error) {
	if off {
		log.Warn().Msg("sandbox off, as --no-sandbox says")
		return nil, nil
	}
	box, err := sandbox.Enter(sandbox.For(cfg))
	if err != nil {
		return nil, fmt.Errorf("%w; --no-sandbox does without the sandbox", err)
	}
	level := zerolog.InfoLevel
	if !box.Complete() {
		level = zerolog.WarnLevel
	}
	log.WithLevel(level).Stringer("applied", box).Msg("sandbox")
	return box, nil
}

// memoryBase is what a sidecar may use beside unread bytes.
const memoryBase = 40 << 20

// boundMemory keeps what waits for the garbage collector from doubling what
// limits.memory allows. GOMEMLIMIT goes first.
func (p *process) boundMemory(cfg *config.Config) {
	if p.getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(cfg.Limits.Memory + memoryBase)
	}
}

// reportDescriptors says how many descriptors there are, one for each app
// connection, and warns where that is less than the config allows.
func reportDescriptors(log zerolog.Logger, limit uint64, cfg *config.Config) {
	wanted := uint64(cfg.Limits.StreamsPerPeer) + uint64(cfg.Limits.Links)
	if limit < wanted {
		log.Warn().Uint64("descriptors", limit).Uint64("wanted", wanted).
			Msg("the descriptor limit is below limits.streams_per_peer and limits.links together; " +
				"connections past it are refused; raise the hard limit (ulimit -Hn, LimitNOFILE=)")
		return
	}
	log.Info().Uint64("descriptors", limit).Msg("descriptor limit raised to what the system allows")
}

// A runner reacts to what happens to a running node.
type runner struct {
	node    *node
	signals <-chan os.Signal
	watcher *watcher // nil without --watch
	load    func() (*config.Config, error)
	sink    *logSink
	manager *systemd.Manager // nil without systemd
	sandbox *sandbox.Sandbox // nil without one

	boundMemory func(*config.Config)
}

func (r *runner) run() int {
	r.told(r.manager.Ready(r.node.summary()))
	ctx, cancel := context.WithCancel(context.Background())
	var watchdog sync.WaitGroup
	watchdog.Go(func() {
		// A node whose locks are all free answers.
		r.told(r.manager.Watch(ctx, func() { r.node.report() }))
	})
	defer watchdog.Wait()
	defer cancel()
	for {
		select {
		case s := <-r.signals:
			switch s {
			case syscall.SIGHUP:
				r.reload(causeSignal)
			case leaveSignal:
				r.node.logger.Info().Msg("leaving: peers open what is new elsewhere")
				r.node.mux.Leave()
			default:
				return r.drain(s)
			}
		case <-r.changes():
			r.reload(causeFile)
		}
	}
}

func (r *runner) changes() <-chan struct{} {
	if r.watcher == nil {
		return nil
	}
	return r.watcher.changed
}

// told logs that systemd could not be told something.
func (r *runner) told(err error) {
	if err != nil {
		r.node.logger.Warn().Err(err).Msg("systemd does not listen")
	}
}

// What leads to a reload.
const (
	causeSignal = "signal"
	causeFile   = "file changed"
)

// reload applies the config anew. A bad one changes nothing; of one that this
// process cannot have, what it takes away takes effect.
func (r *runner) reload(why string) {
	cfg, err := r.load()
	files := r.node.config().Files
	var invalid *config.Invalid
	switch {
	case err == nil:
		files = cfg.Files
		err = r.sandbox.Covers(sandbox.For(cfg))
	case errors.As(err, &invalid):
		// What mends it may be a file that only the bad config names, and what
		// kept that from being read may be the sandbox.
		files = append(files[:len(files):len(files)], invalid.Files...)
		err = errors.Join(err, r.sandbox.Covers(sandbox.Needs{Read: invalid.Files}))
	default: // the config itself cannot be read, perhaps because its folder is another one by now
		err = errors.Join(err, r.sandbox.Covers(sandbox.Needs{Read: files}))
	}
	if r.watcher != nil {
		r.watcher.watch(files)
	}
	if why == causeFile && r.node.knows(cfg, err) {
		return // another file, or another time, and the same content
	}
	r.told(r.manager.Reloading())
	var withdrawn []string
	switch {
	case err == nil:
		withdrawn, err = r.node.update(cfg)
	case cfg != nil:
		withdrawn, err = r.node.refuse(cfg, err)
	}
	if err == nil {
		r.sink.configure(cfg)
		r.boundMemory(cfg)
	}
	r.node.reloaded(why, cfg, withdrawn, err)
	if err == nil {
		r.noteRoom(cfg)
	}
	r.told(r.manager.Ready(r.node.summary()))
}

// noteRoom says that what a config newly grants in advance is not there yet.
func (r *runner) noteRoom(cfg *config.Config) {
	if keys := r.sandbox.Awaits(sandbox.For(cfg).Room); len(keys) > 0 {
		r.node.logger.Warn().Strs("keys", keys).Msg("the sandbox is as it was set at the start; what these keys add to it takes effect at a restart")
	}
}

// drain stops the node: nothing new is taken, what runs may finish until the
// deadline. A second signal forces the end.
func (r *runner) drain(s os.Signal) int {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	limit := r.node.config().Timeouts.Drain
	if limit > 0 {
		defer time.AfterFunc(limit, cancel).Stop()
	}
	r.node.logger.Info().Str("signal", s.String()).Dur("deadline", limit).Msg("draining")
	r.told(r.manager.Stopping("draining", limit))
	done := make(chan int, 1)
	go func() { done <- r.node.drain(ctx) }()
	for {
		select {
		case s := <-r.signals:
			if s == syscall.SIGHUP || s == leaveSignal {
				continue
			}
			r.node.logger.Warn().Msg("second signal: cutting what is left")
			cancel()
		case cut := <-done:
			r.node.close()
			if cut > 0 {
				r.node.logger.Error().Int("cut", cut).Msg("stopped; connections had to be cut")
				return exitError
			}
			r.node.logger.Info().Msg("stopped; every connection had finished")
			return exitOK
		}
	}
}
