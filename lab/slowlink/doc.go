// Package slowlink measures what bulk transfers on a slow link leave for others:
// how long a new connection takes beside them, and a round trip of 128 bytes on
// an open one, through sealane and through plain TCP in the same run.
//
// Two network namespaces are joined by a cable with a token bucket at either
// end. The whole table (half an hour; -rates, -counts and -ways choose cells):
//
//	CI=true go test -v -timeout 2h ./lab/slowlink -args -all
//
// With -check instead, a few cells are measured, and must keep their targets
// with a margin of 2.
package slowlink
