// Package seam has what the simulator (test/sim) changes in the packages that
// it runs. It is internal, so that nothing outside this module can set any of
// it, and nothing in production does.
package seam

// Session is for session.Config's Tune. Zero leaves a value as it is.
type Session struct {
	// PreferChaCha puts ChaCha20-Poly1305 first, as without AES instructions.
	PreferChaCha bool
	// Batch is how many records gather while the ones before are sent.
	Batch int
}

// Mux is for mux.Config's Tune. Zero leaves a value as it is.
type Mux struct {
	// Buffers is how many buffers the streams of a link may have read into.
	Buffers int
}
