//go:build race

package mux

const raceDetector = true
