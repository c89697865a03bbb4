package main

import (
	"io"
	"sync/atomic"

	"github.com/rs/zerolog"

	"github.com/sealane/sealane/cmd/sealane/internal/config"
)

// A logSink is where every logger of the process writes to, in the format and
// from the level up that the config says at present: a reload changes both
// under loggers that were handed out long before.
type logSink struct {
	out     io.Writer
	current atomic.Pointer[logFormat]
}

type logFormat struct {
	level zerolog.Level
	w     io.Writer
}

func newLogSink(out io.Writer, cfg *config.Config) *logSink {
	s := &logSink{out: out}
	s.configure(cfg)
	return s
}

func (s *logSink) configure(cfg *config.Config) {
	f := &logFormat{level: zerolog.InfoLevel, w: s.out}
	if level, err := zerolog.ParseLevel(cfg.LogLevel); err == nil {
		f.level = level
	}
	if cfg.LogFormat == "console" {
		f.w = zerolog.ConsoleWriter{Out: s.out, TimeFormat: "15:04:05.000", NoColor: !isTerminal(s.out)}
	}
	s.current.Store(f)
}

func (s *logSink) logger() zerolog.Logger { return zerolog.New(s).With().Timestamp().Logger() }

func (s *logSink) Write(p []byte) (int, error) { return s.current.Load().w.Write(p) }

// WriteLevel implements zerolog.LevelWriter.
func (s *logSink) WriteLevel(level zerolog.Level, p []byte) (int, error) {
	f := s.current.Load()
	if level < f.level {
		return len(p), nil
	}
	return f.w.Write(p)
}
