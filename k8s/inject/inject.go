// Package inject adds a sealane sidecar to Kubernetes pods: the redirect init
// container that sends the app's connections to the sidecar, the sidecar
// itself as a native sidecar container, and the volume with its config and key.
//
// The usual path is Object, which takes a Pod or anything that holds a pod
// template as a tree decoded from JSON or YAML, and gives the operations of a
// JSON patch. The admission webhook answers with these operations; the offline
// command (Main) applies the same ones to the text of a manifest, so that both
// give the same pod and the rest of the manifest keeps its form.
//
// Injection is idempotent: a pod that already holds what would be injected is
// left alone, also after the API server has added its defaults to it. A pod
// that cannot be protected is refused, never passed on as it is.
package inject

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/sealane/sealane/k8s/redirect"
)

// Names that injection claims in a pod.
const (
	redirectName = "sealane-redirect" // init container
	sidecarName  = "sealane"          // native sidecar container and volume
)

// linkPort is where sidecars listen for links. It stays open from outside.
const linkPort = 7423

// binary is the program's path in the container image, which has no shell and
// no PATH.
const binary = "/sealane"

// mutatePod gives the spec of a pod with the sidecar in it. The spec handed in
// is not changed.
func mutatePod(spec map[string]any, a annotations) (map[string]any, []string, error) {
	if err := injectable(spec); err != nil {
		return nil, nil, err
	}
	out := maps.Clone(spec)
	wanted := []any{redirectContainer(a), sidecarContainer(a)}
	inits, err := objects(spec, "initContainers")
	if err != nil {
		return nil, nil, err
	}
	if len(inits) < 2 || !covers(inits[0], wanted[0]) || !covers(inits[1], wanted[1]) {
		out["initContainers"] = append(wanted, without(inits, redirectName, sidecarName)...)
	}
	volumes, err := objects(spec, "volumes")
	if err != nil {
		return nil, nil, err
	}
	wantedVolume := volume(a)
	if i := slices.IndexFunc(volumes, func(v any) bool { return nameOf(v) == sidecarName }); i < 0 || !covers(volumes[i], wantedVolume) {
		out["volumes"] = append(without(volumes, sidecarName), wantedVolume)
	}
	return out, warnings(spec), nil
}

// injectable says why a pod with this spec cannot be protected.
func injectable(spec map[string]any) error {
	containers, err := objects(spec, "containers")
	if err != nil {
		return err
	}
	if len(containers) == 0 {
		return fmt.Errorf("spec.containers is empty: there is no app to inject a sidecar for")
	}
	for _, c := range containers {
		if n := nameOf(c); n == redirectName || n == sidecarName {
			return fmt.Errorf("container %q has a name that the injected containers use: rename it", n)
		}
	}
	if spec["hostNetwork"] == true {
		return fmt.Errorf("hostNetwork is set: redirect rules would catch the node's own traffic, so the pod is not injected; set %s to disabled if it is meant to go without", annInject)
	}
	if os, ok := spec["os"].(map[string]any); ok && os["name"] == "windows" {
		return fmt.Errorf("spec.os.name is windows: redirect rules need Linux; set %s to disabled", annInject)
	}
	return nil
}

// warnings names what a person should know about a pod that is injected.
func warnings(spec map[string]any) []string {
	var found []string
	uid := func(holder map[string]any) bool {
		sc, _ := holder["securityContext"].(map[string]any)
		return sc != nil && sc["runAsUser"] == int64(redirect.DefaultUID)
	}
	say := func(what string) {
		found = append(found, fmt.Sprintf("%s runs as uid %d, whose connections are not redirected: it speaks plaintext past the sidecar", what, redirect.DefaultUID))
	}
	if uid(spec) {
		say("the pod")
	}
	for _, field := range []string{"initContainers", "containers"} {
		list, _ := objects(spec, field)
		for _, c := range list {
			if m := c.(map[string]any); nameOf(m) != sidecarName && uid(m) {
				say(fmt.Sprintf("container %q", nameOf(m)))
			}
		}
	}
	return found
}

// redirectContainer installs the rules before anything else in the pod runs.
// It is root, because NET_ADMIN is granted to a process only as root, and has
// nothing else.
func redirectContainer(a annotations) map[string]any {
	args := []any{
		"redirect", "up",
		"--to", strconv.Itoa(redirect.DefaultPort),
		"--except-uid", strconv.Itoa(redirect.DefaultUID),
	}
	if len(a.skipOutbound) > 0 {
		args = append(args, "--except-ports", formatPorts(a.skipOutbound))
	}
	if a.skipCIDRs != "" {
		args = append(args, "--except-cidrs", a.skipCIDRs)
	}
	open := append([]redirect.PortRange{{Lo: linkPort, Hi: linkPort}}, a.skipInbound...)
	if guarded := complement(open); len(guarded) > 0 {
		args = append(args, "--guard-inbound", formatPorts(guarded), "--probe-sources", "$(HOST_IPS),gateway")
	}
	return map[string]any{
		"name":  redirectName,
		"image": a.image,
		"args":  args,
		// The kubelet's probes come from one of the node's addresses, or from
		// the one that it has on the pods' bridge.
		"env": []any{map[string]any{
			"name":      "HOST_IPS",
			"valueFrom": map[string]any{"fieldRef": map[string]any{"fieldPath": "status.hostIPs"}},
		}},
		"resources": requests("10m", "16Mi"),
		"securityContext": map[string]any{
			"allowPrivilegeEscalation": false,
			"capabilities":             map[string]any{"drop": []any{"ALL"}, "add": []any{"NET_ADMIN"}},
			"privileged":               false,
			"readOnlyRootFilesystem":   true,
			"runAsGroup":               int64(0),
			"runAsNonRoot":             false,
			"runAsUser":                int64(0),
			"seccompProfile":           map[string]any{"type": "RuntimeDefault"},
		},
	}
}

// sidecarContainer runs for as long as the pod does: restartPolicy Always in
// initContainers starts it before the app and ends it after the app. The
// startup probe runs inside it, because its admin address is on loopback.
func sidecarContainer(a annotations) map[string]any {
	return map[string]any{
		"name":          sidecarName,
		"image":         a.image,
		"args":          []any{"run", "--watch", "-c", "/etc/sealane/sealane.yaml"},
		"ports":         []any{map[string]any{"name": "sealane", "containerPort": int64(linkPort), "protocol": "TCP"}},
		"resources":     requests("10m", "32Mi"),
		"restartPolicy": "Always",
		// The kubelet calls this when the pod begins to end, before the app is
		// told: peers go elsewhere while the app still serves.
		"lifecycle": map[string]any{"preStop": map[string]any{"exec": map[string]any{"command": []any{binary, "leave"}}}},
		"startupProbe": map[string]any{
			"exec":             map[string]any{"command": []any{binary, "status", "--ready"}},
			"periodSeconds":    int64(1),
			"timeoutSeconds":   int64(5),
			"failureThreshold": int64(120),
		},
		"volumeMounts": []any{map[string]any{"name": sidecarName, "mountPath": "/etc/sealane", "readOnly": true}},
		"securityContext": map[string]any{
			"allowPrivilegeEscalation": false,
			"capabilities":             map[string]any{"drop": []any{"ALL"}},
			"privileged":               false,
			"readOnlyRootFilesystem":   true,
			"runAsGroup":               int64(0),
			"runAsNonRoot":             true,
			"runAsUser":                int64(redirect.DefaultUID),
			"seccompProfile":           map[string]any{"type": "RuntimeDefault"},
		},
	}
}

// volume holds the config and the key in one directory, so that the config
// names the key as node.key. The files are root's, with mode 0440. Their group
// is the pod's fsGroup, which the sidecar is then in, or else group 0, which is
// why the sidecar runs with it: setting an fsGroup for its sake would change
// the owner of every other volume of the pod.
func volume(a annotations) map[string]any {
	return map[string]any{
		"name": sidecarName,
		"projected": map[string]any{
			"defaultMode": int64(0o440),
			"sources": []any{
				map[string]any{"configMap": map[string]any{"name": a.config}},
				map[string]any{"secret": map[string]any{"name": a.identity}},
			},
		},
	}
}

func requests(cpu, memory string) map[string]any {
	return map[string]any{"requests": map[string]any{"cpu": cpu, "memory": memory}}
}

// complement gives the ports that are in none of the ranges.
func complement(ranges []redirect.PortRange) []redirect.PortRange {
	sorted := slices.SortedFunc(slices.Values(ranges), func(a, b redirect.PortRange) int { return int(a.Lo) - int(b.Lo) })
	var out []redirect.PortRange
	next := 1
	for _, r := range sorted {
		if int(r.Lo) > next {
			out = append(out, redirect.PortRange{Lo: uint16(next), Hi: r.Lo - 1})
		}
		next = max(next, int(r.Hi)+1)
	}
	if next <= 65535 {
		out = append(out, redirect.PortRange{Lo: uint16(next), Hi: 65535})
	}
	return out
}

func formatPorts(ranges []redirect.PortRange) string {
	var b strings.Builder
	for i, r := range ranges {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprint(&b, r.Lo)
		if r.Hi != r.Lo {
			fmt.Fprintf(&b, "-%d", r.Hi)
		}
	}
	return b.String()
}

// covers reports whether have holds everything that want does. An object or a
// list of objects may hold more, which is what the API server's defaults and
// its service account mounts look like; a list of scalars must be equal.
func covers(have, want any) bool {
	switch want := want.(type) {
	case map[string]any:
		have, ok := have.(map[string]any)
		if !ok {
			return false
		}
		for k, v := range want {
			if !covers(have[k], v) {
				return false
			}
		}
		return true
	case []any:
		have, ok := have.([]any)
		if !ok {
			return false
		}
		if len(want) == 0 {
			return len(have) == 0
		}
		if _, isObject := want[0].(map[string]any); !isObject {
			return reflect.DeepEqual(have, want)
		}
		for _, w := range want {
			if !slices.ContainsFunc(have, func(h any) bool { return covers(h, w) }) {
				return false
			}
		}
		return true
	}
	return reflect.DeepEqual(have, want)
}

// objects gives the list of objects under key; absent and null are empty.
func objects(m map[string]any, key string) ([]any, error) {
	if m[key] == nil {
		return nil, nil
	}
	list, ok := m[key].([]any)
	if !ok {
		return nil, fmt.Errorf("spec.%s is not a list", key)
	}
	for i, item := range list {
		if _, ok := item.(map[string]any); !ok {
			return nil, fmt.Errorf("spec.%s[%d] is not an object", key, i)
		}
	}
	return list, nil
}

func nameOf(v any) string {
	m, _ := v.(map[string]any)
	name, _ := m["name"].(string)
	return name
}

func without(list []any, names ...string) []any {
	return slices.DeleteFunc(slices.Clone(list), func(v any) bool { return slices.Contains(names, nameOf(v)) })
}
