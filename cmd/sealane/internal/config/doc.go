// Package config reads sealane's config file.
//
// Load reads a YAML file and the SEALANE_* variables, checks everything that
// can be checked without touching the network, reads the keys and passwords
// that the file names, and returns a Config or every error in it, each with
// its line and column and what to do about it.
//
// The YAML that it takes is a subset: one document of mappings, lists and
// plain or quoted values. Anchors, aliases, merge keys, tags and directives
// are refused, and so is nesting deeper than any config needs, before the
// parser sees the text.
package config
