package session

import "github.com/sealane/sealane/internal/seam"

// Tune sets what only the simulator of this module changes: seam is internal.
func (c *Config) Tune(s seam.Session) {
	if s.PreferChaCha {
		c.preferChaCha = func() bool { return true }
	}
	c.batch = s.Batch
}
