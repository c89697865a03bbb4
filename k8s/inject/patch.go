package inject

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// Op is one operation of a JSON patch (RFC 6902). Injection uses add, remove
// and replace, and no key that would need escaping in a path.
type Op struct {
	Op    string
	Path  string
	Value any // unless Op is remove
}

// MarshalJSON writes the value of every operation that has one, also a null.
func (o Op) MarshalJSON() ([]byte, error) {
	m := map[string]any{"op": o.Op, "path": o.Path}
	if o.Op != "remove" {
		m["value"] = o.Value
	}
	return json.Marshal(m)
}

// diff gives the operations that make b of a. List items that are equal at the
// start and the end of both are kept, so that inserting a container does not
// touch the others.
func diff(path string, a, b any) []Op {
	if reflect.DeepEqual(a, b) {
		return nil
	}
	switch b := b.(type) {
	case map[string]any:
		if a, ok := a.(map[string]any); ok {
			return diffObjects(path, a, b)
		}
	case []any:
		if a, ok := a.([]any); ok {
			return diffLists(path, a, b)
		}
	}
	return []Op{{Op: "replace", Path: path, Value: b}}
}

func diffObjects(path string, a, b map[string]any) []Op {
	var ops []Op
	for _, k := range slices.Sorted(maps.Keys(b)) {
		old, present := a[k]
		if !present {
			ops = append(ops, Op{Op: "add", Path: path + "/" + k, Value: b[k]})
			continue
		}
		ops = append(ops, diff(path+"/"+k, old, b[k])...)
	}
	return ops
}

func diffLists(path string, a, b []any) []Op {
	head := 0
	for head < min(len(a), len(b)) && reflect.DeepEqual(a[head], b[head]) {
		head++
	}
	tail := 0
	for tail < min(len(a), len(b))-head && reflect.DeepEqual(a[len(a)-1-tail], b[len(b)-1-tail]) {
		tail++
	}
	var ops []Op
	for i := len(a) - tail - 1; i >= head; i-- {
		ops = append(ops, Op{Op: "remove", Path: path + "/" + strconv.Itoa(i)})
	}
	for i := head; i < len(b)-tail; i++ {
		ops = append(ops, Op{Op: "add", Path: path + "/" + strconv.Itoa(i), Value: b[i]})
	}
	return ops
}

// apply does one operation on a decoded tree and gives the new tree, which
// shares what did not change with the old one.
func apply(tree any, op Op) (any, error) {
	return applyAt(tree, strings.Split(op.Path, "/")[1:], op)
}

func applyAt(tree any, path []string, op Op) (any, error) {
	key, last := path[0], len(path) == 1
	switch t := tree.(type) {
	case map[string]any:
		t = maps.Clone(t)
		var err error
		switch {
		case !last:
			t[key], err = applyAt(t[key], path[1:], op)
		case op.Op == "remove":
			delete(t, key)
		default:
			t[key] = op.Value
		}
		return t, err
	case []any:
		i, err := strconv.Atoi(key)
		if err != nil || i > len(t) || (i == len(t) && (!last || op.Op != "add")) {
			return nil, fmt.Errorf("no item %s in a list of %d", key, len(t))
		}
		t = slices.Clone(t)
		switch {
		case !last:
			t[i], err = applyAt(t[i], path[1:], op)
		case op.Op == "remove":
			t = slices.Delete(t, i, i+1)
		case op.Op == "add":
			t = slices.Insert(t, i, op.Value)
		default:
			t[i] = op.Value
		}
		return t, err
	}
	return nil, fmt.Errorf("no place %s in a %T", key, tree)
}
