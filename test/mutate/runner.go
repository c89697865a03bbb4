package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A runner tries mutations and counts what comes of them.
type runner struct {
	seeds   int
	tests   bool
	tags    string
	verbose bool
	keep    string        // a folder for the overlay; nothing is run
	timeout time.Duration // of a package's own tests: some slips make them wait

	tried, missed, broken int
	byPackage             map[string]*tally // own tests
}

type tally struct{ tried, survived int }

// A result is what came of one mutation.
type result struct {
	err  error  // it does not apply, or does not build
	seed int    // that found it, counted from 1; 0: none
	how  string // it was found
	own  string // what the package's own tests said
}

func (r *runner) try(m mutation) (res result) {
	folder, err := os.MkdirTemp("", "sealane-mutate-")
	if err != nil {
		return result{err: err}
	}
	defer os.RemoveAll(folder)
	overlay, err := m.apply(folder)
	if err != nil {
		r.broken++
		return result{err: err}
	}
	r.tried++
	if r.seeds > 0 {
		out, err := r.goTest(overlay, "./test/sim", "-run=^TestSim$", "-seeds="+strconv.Itoa(r.seeds), "-shrink=false")
		switch found := foundAt.FindStringSubmatch(out); {
		case err == nil:
			r.missed++
		case found == nil:
			r.broken++
			return result{err: errors.New("the simulator does not run: " + last(out))}
		default:
			res.seed, _ = strconv.Atoi(found[1])
			res.how = found[2]
		}
	}
	if r.tests {
		res.own = r.ownTests(m, overlay)
	}
	return res
}

// foundAt is how the simulator tells of a failure.
var foundAt = regexp.MustCompile(`seed (\d+): ([^:\n]+): `)

// ownTests runs the tests of the packages that a mutation edits.
func (r *runner) ownTests(m mutation, overlay string) string {
	if r.byPackage == nil {
		r.byPackage = make(map[string]*tally)
	}
	verdict := "survived"
	for _, dir := range m.packages() {
		out, err := r.goTest(overlay, "./"+dir, "-failfast", "-timeout="+r.timeout.String())
		if err == nil {
			continue
		}
		verdict = "found"
		if found := failedTest.FindStringSubmatch(out); found != nil {
			verdict += " by " + found[1]
		}
	}
	for _, dir := range m.packages() {
		if r.byPackage[dir] == nil {
			r.byPackage[dir] = new(tally)
		}
		r.byPackage[dir].tried++
		if verdict == "survived" {
			r.byPackage[dir].survived++
		}
	}
	return verdict
}

// failedTest is how the go command names the test that failed, or hung.
var failedTest = regexp.MustCompile(`(?m)^(?:\s*--- FAIL: |\t+)((?:Test|Fuzz|Example)[\w/]+) \(\d`)

func (r *runner) goTest(overlay, dir string, args ...string) (string, error) {
	cmd := exec.Command("go", append([]string{"test", "-count=1", "-timeout=0", "-vet=off", "-tags=" + r.tags, "-overlay=" + overlay, dir}, args...)...)
	out, err := cmd.CombinedOutput()
	if r.verbose {
		os.Stderr.Write(out)
	}
	return string(out), err
}

func last(out string) string {
	lines := strings.Split(strings.TrimSpace(out), "\n")
	return strings.Join(lines[max(0, len(lines)-5):], "; ")
}

func (r *runner) head() string {
	head, line := "| mutation | what a user would meet | found by seed | as |", "| --- | --- | ---: | --- |"
	if r.tests {
		head, line = head+" own tests |", line+" --- |"
	}
	return head + "\n" + line
}

func (r *runner) row(m mutation, res result, took time.Duration) string {
	seed, how := strconv.Itoa(res.seed), res.how
	switch {
	case res.err != nil:
		seed, how = "-", "BROKEN: "+res.err.Error()
	case r.seeds == 0:
		seed, how = "", ""
	case res.seed == 0:
		seed, how = "-", fmt.Sprintf("NOT FOUND in %d", r.seeds)
	}
	row := fmt.Sprintf("| %s | %s | %s | %s |", m.name, m.what, seed, how)
	if r.tests {
		row += " " + res.own + " |"
	}
	if r.verbose {
		row += fmt.Sprintf(" %v", took.Round(time.Second))
	}
	return row
}

func (r *runner) sum() string {
	var b strings.Builder
	fmt.Fprintf(&b, "\n%d mutations", r.tried)
	if r.seeds > 0 {
		fmt.Fprintf(&b, ", %d not found by the simulator in %d seeds", r.missed, r.seeds)
	}
	if r.broken > 0 {
		fmt.Fprintf(&b, ", and %d that do not apply or build", r.broken)
	}
	var packages []string
	for dir := range r.byPackage {
		packages = append(packages, dir)
	}
	slices.Sort(packages)
	for _, dir := range packages {
		t := r.byPackage[dir]
		fmt.Fprintf(&b, "\n%s: %d of %d survive its own tests (%d %%)", dir, t.survived, t.tried, 100*t.survived/t.tried)
	}
	return b.String()
}
