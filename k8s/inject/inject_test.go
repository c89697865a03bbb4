package inject

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

var update = flag.Bool("update", false, "write the golden files anew")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var options = Options{Image: "sealane:test"}

// manifests are the inputs of the golden files.
func manifests(t *testing.T) map[string]string {
	t.Helper()
	paths, err := filepath.Glob("testdata/*.[yj]*")
	if err != nil {
		t.Fatal(err)
	}
	texts := make(map[string]string)
	for _, p := range paths {
		if !strings.HasSuffix(p, ".golden") {
			texts[p] = readFile(t, p)
		}
	}
	if len(texts) < 9 {
		t.Fatalf("found %d manifests in testdata, want one for each kind", len(texts))
	}
	return texts
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestGolden(t *testing.T) {
	for path, text := range manifests(t) {
		t.Run(filepath.Base(path), func(t *testing.T) {
			got, _, err := Manifest(text, options)
			if err != nil {
				t.Fatal(err)
			}
			golden := path + ".golden"
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if want := readFile(t, golden); got != want {
				t.Errorf("injected manifest differs from %s:\n%s", golden, got)
			}
			again, _, err := Manifest(got, options)
			if err != nil || again != got {
				t.Errorf("injected twice is not injected once: %v\n%s", err, again)
			}
		})
	}
}

// Every line of a YAML manifest in block style is in the injected one, in its
// order: injection only adds lines.
func TestUntouchedLines(t *testing.T) {
	for _, name := range []string{"deployment.yaml", "statefulset.yaml", "cronjob.yaml", "list.yaml"} {
		text := readFile(t, "testdata/"+name)
		for _, newline := range []string{"\n", "\r\n"} {
			in := strings.ReplaceAll(text, "\n", newline)
			out, _, err := Manifest(in, options)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			rest := out
			for line := range strings.Lines(in) {
				_, after, found := strings.Cut(rest, line)
				if !found {
					t.Fatalf("%s: line %q is missing or moved", name, line)
				}
				rest = after
			}
			if strings.Count(out, "\n") != strings.Count(out, newline) {
				t.Errorf("%s: line ends are mixed", name)
			}
		}
	}
}

// The webhook sees the pods that a workload's controller makes of its
// template. Injecting those must give what the offline command writes there.
func TestOfflineAndWebhookGiveTheSamePod(t *testing.T) {
	pods := 0
	for path, text := range manifests(t) {
		injected := readFile(t, path+".golden")
		before, after := podsOf(t, text), podsOf(t, injected)
		if len(before) != len(after) {
			t.Fatalf("%s: %d pods became %d", path, len(before), len(after))
		}
		for i := range before {
			r, err := Object(before[i], options)
			if err != nil {
				t.Fatal(err)
			}
			var got any = before[i]
			for _, op := range asJSON(t, r.Patch) {
				if got, err = apply(got, op); err != nil {
					t.Fatal(err)
				}
			}
			if !reflect.DeepEqual(got, any(after[i])) {
				t.Errorf("%s: the webhook's pod is\n%v\nthe offline command's is\n%v", path, got, after[i])
			}
			pods++
		}
	}
	if pods < 9 {
		t.Errorf("compared %d pods", pods)
	}
}

// asJSON sends a patch the way of the webhook's answer.
func asJSON(t *testing.T, ops []Op) []Op {
	t.Helper()
	text, err := json.Marshal(ops)
	if err != nil {
		t.Fatal(err)
	}
	tree, err := decodeJSON(string(text))
	if err != nil {
		t.Fatal(err)
	}
	var back []Op
	list, _ := tree.([]any)
	for _, item := range list {
		m := item.(map[string]any)
		back = append(back, Op{Op: m["op"].(string), Path: m["path"].(string), Value: m["value"]})
	}
	return back
}

// podsOf gives the pods that the objects of a manifest would make.
func podsOf(t *testing.T, text string) []map[string]any {
	t.Helper()
	var pods []map[string]any
	var visit func(obj map[string]any)
	visit = func(obj map[string]any) {
		if items, ok := obj["items"].([]any); ok {
			for _, item := range items {
				visit(item.(map[string]any))
			}
		}
		path, holdsPods := templates[kindOf(obj)]
		if !holdsPods {
			return
		}
		for _, key := range path {
			obj = obj[key].(map[string]any)
		}
		pod := map[string]any{"apiVersion": "v1", "kind": "Pod", "spec": obj["spec"]}
		if obj["metadata"] != nil {
			pod["metadata"] = obj["metadata"]
		}
		pods = append(pods, pod)
	}
	for _, d := range split(text) {
		tree, err := decodeYAML(d.text)
		if err != nil {
			t.Fatal(err)
		}
		visit(tree.(map[string]any))
	}
	return pods
}

// A pod that went through the API server has its defaults and the service
// account's mounts; the webhook sees such a pod again on reinvocation.
func TestDefaultedPodIsLeftAlone(t *testing.T) {
	pod := podsOf(t, readFile(t, "testdata/deployment.yaml.golden"))[0]
	inits := pod["spec"].(map[string]any)["initContainers"].([]any)
	for _, c := range inits {
		c := c.(map[string]any)
		c["imagePullPolicy"] = "IfNotPresent"
		c["terminationMessagePath"] = "/dev/termination-log"
		mounts, _ := c["volumeMounts"].([]any)
		c["volumeMounts"] = append(mounts, map[string]any{"name": "kube-api-access-x", "mountPath": "/var/run/secrets"})
	}
	inits[0].(map[string]any)["env"].([]any)[0].(map[string]any)["valueFrom"].(map[string]any)["fieldRef"].(map[string]any)["apiVersion"] = "v1"
	r, err := Object(pod, options)
	if err != nil || len(r.Patch) != 0 {
		t.Errorf("patch %v, error %v, want none", r.Patch, err)
	}
	pod["metadata"].(map[string]any)["annotations"].(map[string]any)[annSkipOutbound] = "53"
	if r, err = Object(pod, options); err != nil || len(r.Patch) == 0 {
		t.Errorf("a changed annotation had no effect: patch %v, error %v", r.Patch, err)
	}
}

func TestRefused(t *testing.T) {
	const head = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: p\n  annotations:\n    "
	const body = "\nspec:\n  containers:\n  - {name: app, image: app}\n"
	deployment := "apiVersion: apps/v1\nkind: Deployment\nmetadata:\n  name: d\n  annotations: {sealane.dev/config: c}\nspec:\n  template:\n    spec:\n      containers: [{name: a}]\n"
	for _, c := range []struct{ manifest, want string }{
		{head + "sealane.dev/confg: x" + body, "unknown annotation sealane.dev/confg: known are"},
		{head + "sealane.dev/inject: maybe" + body, `annotation sealane.dev/inject: "maybe" is neither enabled nor disabled`},
		{head + "sealane.dev/inject: true" + body, "annotation sealane.dev/inject is not a string: quote it"},
		{head + "sealane.dev/config: My_Config" + body, `annotation sealane.dev/config: "My_Config" is not the name of a ConfigMap`},
		{head + "sealane.dev/identity: ''" + body, `annotation sealane.dev/identity: "" is not the name of a Secret`},
		{head + "sealane.dev/skip-outbound-ports: '70000'" + body, `annotation sealane.dev/skip-outbound-ports: "70000" is neither a port`},
		{head + "sealane.dev/skip-inbound-ports: http" + body, `annotation sealane.dev/skip-inbound-ports: "http" is neither a port`},
		{head + "sealane.dev/skip-cidrs: 10.0.0.0/33" + body, `annotation sealane.dev/skip-cidrs: "10.0.0.0/33" is neither an address`},
		{head + "sealane.dev/image: 'a b'" + body, `annotation sealane.dev/image: "a b" is not the name of an image`},
		{head + "a: b" + body + "  hostNetwork: true\n", "hostNetwork is set"},
		{head + "a: b" + body + "  os: {name: windows}\n", "spec.os.name is windows"},
		{head + "a: b" + strings.Replace(body, "name: app", "name: sealane", 1), `container "sealane" has a name that the injected containers use`},
		{head + "a: b" + "\nspec: {containers: []}\n", "spec.containers is empty"},
		{deployment, "annotation sealane.dev/config has no effect here: it belongs in spec.template.metadata.annotations"},
		{"apiVersion: v1\nkind: Pod\nkind: Pod\n", "cannot be read"},
		{"apiVersion: v1\nkind: List\nx: &spec\n  containers: [{name: a}]\nitems:\n- apiVersion: v1\n  kind: Pod\n  spec: *spec\n", "cannot be edited in place"},
	} {
		out, _, err := Manifest(c.manifest, options)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s\ngave error %v, want %q; output %q", c.manifest, err, c.want, out)
		}
	}
}

func TestMainCommand(t *testing.T) {
	run := func(stdin string, args ...string) (int, string, string) {
		var stdout, stderr strings.Builder
		code := Main("sealane:test", args, strings.NewReader(stdin), &stdout, &stderr)
		return code, stdout.String(), stderr.String()
	}
	if code, out, _ := run(readFile(t, "testdata/job.yaml"), "-f", "-"); code != 0 || out != readFile(t, "testdata/job.yaml.golden") {
		t.Errorf("standard input: exit code %d, output\n%s", code, out)
	}
	code, out, errs := run("", "-f", "testdata/pod.yaml", "--image", "other:1")
	if code != 0 || !strings.Contains(out, "image: other:1") {
		t.Errorf("--image: exit code %d, output\n%s", code, out)
	}
	if want := `warning: Pod "shell-é": container "shell" runs as uid 7423`; !strings.Contains(errs, want) {
		t.Errorf("standard error %q, want %q in it", errs, want)
	}
	two := readFile(t, "testdata/deployment.yaml") + "---\napiVersion: v1\nkind: Pod\nspec: {}\n"
	code, out, errs = run(two, "-f", "-")
	if code != exitData || out != "" || !strings.Contains(errs, "document at line 40") {
		t.Errorf("a bad document: exit code %d, output %q, standard error %q", code, out, errs)
	}
	if code, _, errs := run(""); code != exitUsage || !strings.Contains(errs, "-f FILE") {
		t.Errorf("no file: exit code %d, standard error %q", code, errs)
	}
	if code, _, _ := run("", "-f", "testdata/absent.yaml"); code != exitError {
		t.Errorf("absent file: exit code %d", code)
	}
}

func TestDefaultImage(t *testing.T) {
	for version, want := range map[string]string{"v1.2.3": "sealane:v1.2.3", "v0.0.0-2026+dirty": "sealane:v0.0.0-2026-dirty", "é": "sealane:-"} {
		if got := DefaultImage(version); got != want {
			t.Errorf("DefaultImage(%q) = %q, want %q", version, got, want)
		}
	}
}

// The examples hold what injection would write there.
func TestExamplesAreInjected(t *testing.T) {
	for _, path := range []string{"postgres/db/statefulset.yaml", "postgres/shop/deployment.yaml", "job/job.yaml"} {
		pod := podsOf(t, readFile(t, "../examples/"+path))[0]
		volumes := pod["spec"].(map[string]any)["volumes"].([]any)
		sources := volumes[len(volumes)-1].(map[string]any)["projected"].(map[string]any)["sources"].([]any)
		pod["metadata"] = map[string]any{"annotations": map[string]any{
			annConfig:   nameOf(sources[0].(map[string]any)["configMap"]),
			annIdentity: nameOf(sources[1].(map[string]any)["secret"]),
		}}
		r, err := Object(pod, Options{Image: "sealane:dev"})
		if err != nil || len(r.Patch) != 0 {
			t.Errorf("%s: error %v, patch %v", path, err, r.Patch)
		}
	}
}
