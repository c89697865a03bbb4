// Package sim is a world in one process: two to four nodes, each the real
// session, mux and, where it needs no kernel, proxy, with apps, targets,
// operators and a network that is drawn from a seed. It runs in a bubble of
// testing/synctest, so that hours of it take milliseconds.
//
// A seed makes a Plan (generate.go), and Run runs it (world.go): the network
// cuts, delays, loses and changes bytes (network.go, pipe.go, operators.go),
// apps carry patterns that say where each byte belongs (apps.go), duets use a
// session without a mux (duet.go), and operators reload, rotate, drain and kill
// (operators.go, node.go). What must always hold is checked as it happens: what
// is read is a prefix of what was written; a clean end comes behind all of it
// alone; no honest node counts a violation; nobody waits for ever; in a calm
// world nothing fails at all; and at the end nothing is left of what was there.
//
// docs/simulator.md says how to use it, what a seed repeats, and what it finds
// of slips that are put in on purpose.
package sim
