// Command mutate breaks the code on purpose, one place at a time, and shows
// what notices: the simulator, and by which seed, or a package's own tests.
//
//	go run ./test/mutate                     # every mutation against the simulator
//	go run ./test/mutate -tests              # and against its package's own tests
//	go run ./test/mutate -run rekey -v       # some, with what the tests say
//
// A mutation is a file in test/mutate/mutations:
//
//	What a user would meet, in a line or more.
//	-- mux/guard.go
//	the text there now
//	==
//	the text instead
//	-- another file, or the same one again
//
// The text has to be in its file exactly once, so that a mutation survives
// whatever moves around it and says so when its place is gone. Files are
// exchanged by the go command's overlay: the tree itself is never touched.
package main

import (
	"flag"
	"fmt"
	"os"
	"regexp"
	"slices"
	"time"
)

func main() {
	run := flag.String("run", "", "mutations whose name matches this regular expression")
	dir := flag.String("dir", "test/mutate/mutations", "where mutations are")
	seeds := flag.Int("seeds", 2000, "how many seeds the simulator tries for each; 0: none")
	tests := flag.Bool("tests", false, "run the package's own tests, too")
	timeout := flag.Duration("timeout", 3*time.Minute, "how long a package's own tests may take")
	tags := flag.String("tags", "poison", "build tags")
	keep := flag.String("keep", "", "only write the overlay of the one mutation that matches into this folder, for `go test -overlay`")
	verbose := flag.Bool("v", false, "show what the tests say")
	flag.Parse()
	r := runner{seeds: *seeds, tests: *tests, tags: *tags, verbose: *verbose, keep: *keep, timeout: *timeout}
	if err := r.main(*dir, *run); err != nil {
		fmt.Fprintln(os.Stderr, "mutate:", err)
		os.Exit(1)
	}
	if r.missed > 0 || r.broken > 0 {
		os.Exit(1)
	}
}

func (r *runner) main(dir, pattern string) error {
	match, err := regexp.Compile(pattern)
	if err != nil {
		return err
	}
	mutations, err := load(dir)
	if err != nil {
		return err
	}
	mutations = slices.DeleteFunc(mutations, func(m mutation) bool { return !match.MatchString(m.name) })
	if r.keep != "" {
		if len(mutations) != 1 {
			return fmt.Errorf("%d mutations match", len(mutations))
		}
		overlay, err := mutations[0].apply(r.keep)
		fmt.Println(overlay)
		return err
	}
	fmt.Println(r.head())
	for _, m := range mutations {
		begun := time.Now()
		res := r.try(m)
		fmt.Println(r.row(m, res, time.Since(begun)))
	}
	fmt.Println(r.sum())
	return nil
}
