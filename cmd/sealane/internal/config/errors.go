package config

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// A position is a place in the config file, or the name of the variable that
// overrides the value there.
type position struct {
	line, column int
	variable     string
}

// An Error is one thing wrong with a config, at the place that has to change.
type Error struct {
	File         string
	Line, Column int    // 0 where the file as a whole is meant
	Variable     string // the SEALANE_* variable that holds the value, instead of a place in the file
	Message      string // what is wrong and what to do
}

func (e Error) Error() string {
	switch {
	case e.Variable != "":
		return e.Variable + ": " + e.Message
	case e.Line == 0:
		return e.File + ": " + e.Message
	}
	return fmt.Sprintf("%s:%d:%d: %s", e.File, e.Line, e.Column, e.Message)
}

// Invalid is what Load returns for a config with errors: all of them, in the
// order of the file, and the files that were read or looked for, a change of
// which may mend it.
type Invalid struct {
	Errors []Error
	Files  []string
}

func (e *Invalid) Error() string {
	lines := make([]string, len(e.Errors))
	for i := range e.Errors {
		lines[i] = e.Errors[i].Error()
	}
	return strings.Join(lines, "\n")
}

func (l *loader) invalid() *Invalid {
	slices.SortStableFunc(l.errs, byPlace)
	return &Invalid{l.errs, l.Files}
}

func byPlace(a, b Error) int {
	return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
}
