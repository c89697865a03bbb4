package mux

import "github.com/sealane/sealane/internal/seam"

// Tune sets what only the simulator of this module changes: seam is internal.
func (c *Config) Tune(s seam.Mux) { c.buffers = s.Buffers }
