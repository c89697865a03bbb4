package main

import (
	"os"
	"regexp"
	"slices"
	"testing"
)

// TestSpecListsEveryRule: the table of SPEC.md section 6 and the rules in the
// code are the same list.
func TestSpecListsEveryRule(t *testing.T) {
	text, err := os.ReadFile("../../SPEC.md")
	if err != nil {
		t.Fatal(err)
	}
	var listed, known []string
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z0-9]+-[a-z0-9]+)` \\|").FindAllStringSubmatch(string(text), -1) {
		listed = append(listed, m[1])
	}
	for _, rule := range allRules() {
		known = append(known, string(rule))
	}
	for _, rule := range known {
		if !slices.Contains(listed, rule) {
			t.Errorf("SPEC.md does not list %s", rule)
		}
	}
	for _, rule := range listed {
		if !slices.Contains(known, rule) {
			t.Errorf("SPEC.md lists %s, which the code does not know", rule)
		}
	}
	if len(listed) != len(known) {
		t.Errorf("SPEC.md lists %d rules, the code has %d", len(listed), len(known))
	}
}
