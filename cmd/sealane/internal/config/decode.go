package config

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// A decoder collects the errors of one config, so that all are reported.
type decoder struct {
	file string
	errs []Error
}

func (d *decoder) fail(at position, format string, args ...any) {
	d.errs = append(d.errs, d.errorAt(at, fmt.Sprintf(format, args...)))
}

func (d *decoder) errorAt(at position, message string) Error {
	return Error{File: d.file, Line: at.line, Column: at.column, Variable: at.variable, Message: message}
}

// A field is one key that a mapping may have.
type field struct {
	name   string
	decode func(*node)
	// missing is the message for a mapping without this key; "" if it may be left out.
	missing string
}

// fields decodes a mapping: each known key once, the others are errors. name
// is what the mapping is called in messages; the whole file is "".
func (d *decoder) fields(n *node, name string, fields ...field) {
	if n.kind != mapping {
		d.fail(n.at, "%s is %v; write a mapping with %s", cmp.Or(name, "the config"), n.kind, names(fields))
		return
	}
	first := make(map[string]entry)
	for _, e := range n.entries {
		before, again := first[e.key]
		switch {
		case again:
			d.fail(e.at, "duplicate key %q; it is already on line %d, remove one of them", e.key, before.at.line)
			continue
		case slices.ContainsFunc(fields, func(f field) bool { return f.name == e.key }):
		case name == "":
			d.fail(e.at, "unknown key %q; the keys here are %s", e.key, names(fields))
		default:
			d.fail(e.at, "unknown key %q in %s; the keys here are %s", e.key, name, names(fields))
		}
		first[e.key] = e
	}
	// In the order of the fields, so that a name is known where it is needed.
	for _, f := range fields {
		e, ok := first[f.name]
		switch {
		case !ok && f.missing != "":
			d.fail(n.at, "%s", f.missing)
		case ok && e.value.kind == null:
			d.fail(e.value.at, "%s has no value; write one or remove the key", e.key)
		case ok:
			f.decode(e.value)
		}
	}
}

func names(fields []field) string {
	var s []string
	for _, f := range fields {
		s = append(s, f.name)
	}
	return enumerate(s, "and")
}

// enumerate writes "a, b and c".
func enumerate(s []string, last string) string {
	if len(s) < 2 {
		return strings.Join(s, "")
	}
	return strings.Join(s[:len(s)-1], ", ") + " " + last + " " + s[len(s)-1]
}

// text decodes a value that is not empty.
func (d *decoder) text(n *node, name string) (string, bool) {
	switch {
	case n.kind != scalar:
		d.fail(n.at, "%s is %v; write one value", name, n.kind)
		return "", false
	case n.text == "":
		d.fail(n.at, "%s is empty; write a value or remove the key", name)
		return "", false
	case strings.ContainsFunc(n.text, unicode.IsControl):
		d.fail(n.at, "%s: %q has a line break or another control character in it; write one line", name, n.text)
		return "", false
	}
	return n.text, true
}

// parsed decodes a value with a parser of its text, whose errors say what to
// write.
func parsed[T any](d *decoder, n *node, name string, parse func(string) (T, error)) (T, bool) {
	var zero T
	s, ok := d.text(n, name)
	if !ok {
		return zero, false
	}
	v, err := parse(s)
	if err != nil {
		d.fail(n.at, "%v", err)
		return zero, false
	}
	return v, true
}

// list decodes a list, which may be empty.
func (d *decoder) list(n *node, name string, item func(*node)) {
	if n.kind != list {
		d.fail(n.at, "%s is %v; write a list", name, n.kind)
	}
	for _, i := range n.items {
		if i.kind == null {
			d.fail(i.at, "an item of %s has no value; write one or remove it", name)
			continue
		}
		item(i)
	}
}

// some decodes a list with at least one item.
func (d *decoder) some(n *node, name string, item func(*node)) {
	if n.kind == list && len(n.items) == 0 {
		d.fail(n.at, "%s is an empty list; add an item", name)
	}
	d.list(n, name, item)
}

// oneOrMore decodes a value or a list of them.
func (d *decoder) oneOrMore(n *node, name string, item func(*node)) {
	if n.kind == scalar {
		item(n)
		return
	}
	d.some(n, name, item)
}

func (d *decoder) boolean(n *node, name string) bool {
	if n.kind != scalar || n.quoted || n.text != "true" && n.text != "false" {
		d.fail(n.at, "%s is not true or false; write one of them without quotes", name)
	}
	return n.text == "true"
}

func (d *decoder) choice(n *node, name string, choices ...string) (string, bool) {
	s, ok := d.text(n, name)
	if ok && !slices.Contains(choices, s) {
		d.fail(n.at, "%s: %q is not known; write %s", name, s, enumerate(choices, "or"))
		return "", false
	}
	return s, ok
}

// integer decodes a decimal number from low to high.
func (d *decoder) integer(n *node, name string, low, high int) (int, bool) {
	s, ok := d.text(n, name)
	if !ok {
		return 0, false
	}
	v, err := strconv.Atoi(s)
	if err != nil || strconv.Itoa(v) != s || v < low || v > high {
		d.fail(n.at, "%s: %q is not a whole number from %d to %d", name, s, low, high)
		return 0, false
	}
	return v, true
}

// duration decodes a time with its unit. 0s means no limit, unless low is
// above it.
func (d *decoder) duration(n *node, name string, low, high time.Duration) (time.Duration, bool) {
	s, ok := d.text(n, name)
	if !ok {
		return 0, false
	}
	v, err := time.ParseDuration(s)
	switch {
	case err != nil:
		d.fail(n.at, "%s: %q is not a time with a unit; write it like 500ms, 10s or 5m", name, s)
	case v < low || v > high:
		d.fail(n.at, "%s: %q is not from %v to %v", name, s, low, high)
	default:
		return v, true
	}
	return 0, false
}

// size decodes a number of bytes with a binary unit.
func (d *decoder) size(n *node, name string, low, high int64) (int64, bool) {
	v, ok := parsed(d, n, name, func(s string) (int64, error) {
		v, err := parseSize(s)
		if err != nil {
			err = fmt.Errorf("%s: %w", name, err)
		}
		return v, err
	})
	if ok && (v < low || v > high) {
		d.fail(n.at, "%s: %q is not from %s to %s", name, n.text, formatSize(low), formatSize(high))
		return 0, false
	}
	return v, ok
}

var sizeUnits = []struct {
	name  string
	shift int
}{{"GiB", 30}, {"MiB", 20}, {"KiB", 10}, {"B", 0}}

func parseSize(s string) (int64, error) {
	for _, unit := range sizeUnits {
		number, ok := strings.CutSuffix(s, unit.name)
		if !ok {
			continue
		}
		v, err := strconv.ParseUint(strings.TrimSuffix(number, " "), 10, 63)
		if err != nil || v > math.MaxInt64>>unit.shift {
			break
		}
		return int64(v) << unit.shift, nil
	}
	return 0, fmt.Errorf("%q is not a size; write it like 512KiB, 256MiB or 2GiB", s)
}

func formatSize(v int64) string {
	for _, unit := range sizeUnits {
		if v%(1<<unit.shift) == 0 {
			return strconv.FormatInt(v>>unit.shift, 10) + unit.name
		}
	}
	return strconv.FormatInt(v, 10) + "B"
}

// checkName checks the name of a peer or service (SPEC section 7).
func checkName(s string) (string, error) {
	ok := len(s) >= 1 && len(s) <= 63 && s[0] != '-' && s[len(s)-1] != '-'
	for _, c := range []byte(s) {
		ok = ok && ('a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '-')
	}
	if !ok {
		return "", fmt.Errorf("%q is not a name; use 1 to 63 of a-z, 0-9 and -, with no - at either end", s)
	}
	return s, nil
}
