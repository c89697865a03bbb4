package inject

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Options are what injection needs to know besides the object.
type Options struct {
	Image string // sidecar image of pods that name none
}

// DefaultImage is the sidecar image of a version of the program. A character of
// the version that no image tag has becomes a dash.
func DefaultImage(version string) string {
	return "sealane:" + strings.Map(func(r rune) rune {
		if r < utf8.RuneSelf && (unicode.IsLetter(r) || unicode.IsDigit(r)) || strings.ContainsRune("_.-", r) {
			return r
		}
		return '-'
	}, version)
}

// Result is what injection does to one object.
type Result struct {
	Patch    []Op     // RFC 6902; empty when there is nothing to do
	Warnings []string // for the person who applies the object
}

// templates are the kinds that hold pods, and where: the path of the object
// that has the pod's metadata and spec.
var templates = map[string][]string{
	"v1/Pod":                   {},
	"v1/PodTemplate":           {"template"},
	"v1/ReplicationController": {"spec", "template"},
	"apps/v1/Deployment":       {"spec", "template"},
	"apps/v1/StatefulSet":      {"spec", "template"},
	"apps/v1/DaemonSet":        {"spec", "template"},
	"apps/v1/ReplicaSet":       {"spec", "template"},
	"batch/v1/Job":             {"spec", "template"},
	"batch/v1/CronJob":         {"spec", "jobTemplate", "spec", "template"},
}

// JSON gives what injection does to a Kubernetes object written in JSON.
func JSON(text []byte, o Options) (Result, error) {
	tree, err := decodeJSON(string(text))
	if err != nil {
		return Result{}, err
	}
	obj, ok := tree.(map[string]any)
	if !ok {
		return Result{}, fmt.Errorf("not a JSON object")
	}
	return Object(obj, o)
}

// Object gives what injection does to a Kubernetes object decoded from JSON or
// YAML: to its pod template, or to those of a List's items. An object that
// holds no pods is left alone.
func Object(obj map[string]any, o Options) (Result, error) {
	kind := kindOf(obj)
	if kind == "v1/List" {
		return list(obj, o)
	}
	path, holdsPods := templates[kind]
	if !holdsPods {
		return Result{}, nil
	}
	r, err := template(obj, path, o)
	if err != nil {
		return Result{}, fmt.Errorf("%s: %w", Describe(obj), err)
	}
	return r, nil
}

// Describe names an object as a person would: Deployment "web".
func Describe(obj map[string]any) string {
	meta, _ := obj["metadata"].(map[string]any)
	name, _ := meta["name"].(string)
	if name == "" {
		name, _ = meta["generateName"].(string)
	}
	return fmt.Sprintf("%v %q", obj["kind"], name)
}

func kindOf(obj map[string]any) string {
	version, _ := obj["apiVersion"].(string)
	kind, _ := obj["kind"].(string)
	return version + "/" + kind
}

func list(obj map[string]any, o Options) (Result, error) {
	var all Result
	items, _ := obj["items"].([]any)
	for i, item := range items {
		m, ok := item.(map[string]any)
		if !ok {
			continue
		}
		r, err := Object(m, o)
		if err != nil {
			return Result{}, err
		}
		for _, op := range r.Patch {
			op.Path = "/items/" + strconv.Itoa(i) + op.Path
			all.Patch = append(all.Patch, op)
		}
		all.Warnings = append(all.Warnings, r.Warnings...)
	}
	return all, nil
}

func template(obj map[string]any, path []string, o Options) (Result, error) {
	pod, at := obj, ""
	for _, key := range path {
		next, ok := pod[key].(map[string]any)
		if !ok {
			return Result{}, fmt.Errorf("%s is missing", strings.Join(path, "."))
		}
		pod, at = next, at+"/"+key
	}
	podAnnotations := annotationsOf(pod)
	if len(path) > 0 {
		if err := misplaced(annotationsOf(obj), podAnnotations, path); err != nil {
			return Result{}, err
		}
	}
	a, err := parseAnnotations(podAnnotations, o.Image)
	if err != nil || a.disabled {
		return Result{}, err
	}
	spec, ok := pod["spec"].(map[string]any)
	if !ok {
		return Result{}, fmt.Errorf("the pod's spec is missing")
	}
	mutated, warnings, err := mutatePod(spec, a)
	if err != nil {
		return Result{}, err
	}
	patch := diff(at+"/spec", spec, mutated)
	for i, w := range warnings {
		warnings[i] = Describe(obj) + ": " + w
	}
	return Result{Patch: patch, Warnings: warnings}, nil
}

func annotationsOf(obj map[string]any) map[string]any {
	meta, _ := obj["metadata"].(map[string]any)
	annotations, _ := meta["annotations"].(map[string]any)
	return annotations
}

// misplaced refuses annotations on the workload that its pods do not have:
// only the pod's own count, and the mistake would go unnoticed.
func misplaced(outer, pod map[string]any, path []string) error {
	for _, key := range slices.Sorted(maps.Keys(outer)) {
		if strings.HasPrefix(key, prefix) && outer[key] != pod[key] {
			return fmt.Errorf("annotation %s has no effect here: it belongs in %s.metadata.annotations", key, strings.Join(path, "."))
		}
	}
	return nil
}
