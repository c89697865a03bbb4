//go:build linux

package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os/exec"
	"reflect"
	"strings"
	"testing"
	"time"
)

// podOf is the pod that every kind of workload in these tests makes.
const podOf = `{metadata: {labels: {app: NAME}, annotations: {sealane.dev/config: node, sealane.dev/identity: node-key}},
  spec: {terminationGracePeriodSeconds: 0, RESTART containers: [{name: app, image: "sealane.test/app:e2e", args: [ARGS]}]}}`

const serveArgs = `serve, ":8080"`

// fill makes a pod template of podOf.
func fill(name, restart, args string) string {
	return strings.NewReplacer("NAME", name, "RESTART", restart, "ARGS", args).Replace(podOf)
}

// workloads are one of each kind.
func workloads(ns string) map[string]string {
	selector := func(name string) string { return "selector: {matchLabels: {app: " + name + "}}" }
	meta := func(name string) string { return "metadata: {name: " + name + ", namespace: " + ns + "}" }
	job := "spec: {backoffLimit: 0, template: " + fill("NAME", "restartPolicy: Never,", `load, "0", "http://nowhere"`) + "}"
	return map[string]string{
		"deployment":  "{apiVersion: apps/v1, kind: Deployment, " + meta("deployment") + ", spec: {" + selector("deployment") + ", template: " + fill("deployment", "", serveArgs) + "}}",
		"statefulset": "{apiVersion: apps/v1, kind: StatefulSet, " + meta("statefulset") + ", spec: {serviceName: x, " + selector("statefulset") + ", template: " + fill("statefulset", "", serveArgs) + "}}",
		"daemonset":   "{apiVersion: apps/v1, kind: DaemonSet, " + meta("daemonset") + ", spec: {" + selector("daemonset") + ", template: " + fill("daemonset", "", serveArgs) + "}}",
		"replicaset":  "{apiVersion: apps/v1, kind: ReplicaSet, " + meta("replicaset") + ", spec: {" + selector("replicaset") + ", template: " + fill("replicaset", "", serveArgs) + "}}",
		"job":         "{apiVersion: batch/v1, kind: Job, " + meta("job") + ", " + strings.ReplaceAll(job, "NAME", "job") + "}",
		"cronjob":     "{apiVersion: batch/v1, kind: CronJob, " + meta("cronjob") + `, spec: {schedule: "0 0 1 1 *", jobTemplate: {` + strings.ReplaceAll(job, "NAME", "cronjob") + "}}}",
		"pod":         strings.Replace(fill("pod", "", serveArgs), "{metadata: {", "{apiVersion: v1, kind: Pod, metadata: {name: pod, namespace: "+ns+", ", 1),
	}
}

// nodeConfig is a sidecar's that needs no peer.
const nodeConfig = "identity: node.key\nlisten: \"[::]:7423\"\nadmin: 127.0.0.1:7424\n"

// optedIn makes a namespace that the webhook injects, with what its pods need.
func optedIn(t *testing.T, name string, labels ...string) {
	t.Helper()
	namespace(t, name, labels...)
	nodeKeys(t, name, map[string][]string{"node": nil})
	apply(t, "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: node, namespace: "+name+"}\ndata:\n  sealane.yaml: |\n"+indent(nodeConfig, 4))
}

func TestWebhook(t *testing.T) {
	applyFolder(t, "injector")
	t.Cleanup(func() {
		kubectl := func(args ...string) {
			if out, err := c.Kubectl(context.Background(), "", args...); err != nil {
				t.Errorf("%v %s", err, out)
			}
		}
		if t.Failed() {
			out, _ := c.Kubectl(context.Background(), "", "logs", "-n", "sealane-system", "deployment/sealane-injector", "--all-pods", "--tail=40")
			t.Log(out)
		}
		kubectl("delete", "-k", "../injector", "--wait", "--timeout=2m")
	})
	rollout(t, "sealane-system", "deployment/sealane-injector")
	optedIn(t, "opted-in", "sealane.dev/inject=enabled")
	namespace(t, "left-out")
	// kube-proxy learns of an endpoint up to a second after the rollout is done.
	waitFor(t, time.Minute, "the webhook to answer", func() bool { return create(t, "opted-in", "first") == nil })

	t.Run("every kind", everyKindInjected)
	t.Run("same pod as offline", samePodAsOffline)
	t.Run("bad annotations", badAnnotations)
	t.Run("disabled", disabledPod)
	t.Run("applied again", appliedAgain)
	t.Run("rotation", rotationWithoutOutage)
	t.Run("down", webhookDown)
}

func everyKindInjected(t *testing.T) {
	all := workloads("opted-in")
	for kind, manifest := range all {
		out := apply(t, manifest)
		if !strings.Contains(out, "created") {
			t.Errorf("%s: %s", kind, out)
		}
	}
	kubectl(t, "create", "job", "-n", "opted-in", "--from=cronjob/cronjob", "cronjob-now")
	for kind := range all {
		waitFor(t, 2*time.Minute, kind+" to run", func() bool {
			list := pods(t, "opted-in", "app="+kind)
			return len(list) == 1 && (list[0].container("app").Ready || list[0].Status.Phase == "Succeeded")
		})
		p := onePod(t, "opted-in", "app="+kind)
		inits := p.Status.InitContainerStatuses
		if len(inits) != 2 || inits[0].Name != "sealane-redirect" || inits[1].Name != "sealane" {
			t.Errorf("%s: init containers %+v", kind, inits)
		}
	}
	for _, kind := range []string{"job", "cronjob"} {
		waitFor(t, time.Minute, kind+" to be complete", func() bool {
			return onePod(t, "opted-in", "app="+kind).Status.Phase == "Succeeded"
		})
	}
}

// samePodAsOffline compares what the API server would store for a pod that the
// webhook injects, and for one that the offline command injected.
func samePodAsOffline(t *testing.T) {
	manifest := func(ns string) string {
		return strings.Replace(workloads(ns)["pod"], "name: pod,", "name: compared,", 1)
	}
	// The image is the webhook's default.
	image := strings.TrimSpace(kubectl(t, "get", "pod", "pod", "-n", "opted-in", "-o", "jsonpath={.spec.initContainers[0].image}"))
	inject := exec.CommandContext(t.Context(), bin, "inject", "--image", image, "-f", "-")
	inject.Stdin = strings.NewReader(manifest("left-out"))
	injected, err := output(inject)
	if err != nil {
		t.Fatal(err)
	}
	stored := func(manifest string) map[string]any {
		out, err := c.Kubectl(t.Context(), manifest, "create", "--dry-run=server", "-o", "json", "-f", "-")
		if err != nil {
			t.Fatal(err)
		}
		var p pod
		if err := json.Unmarshal([]byte(out), &p); err != nil {
			t.Fatal(err)
		}
		withoutServiceAccount(p.Spec)
		return p.Spec
	}
	byWebhook, offline := stored(manifest("opted-in")), stored(injected)
	if !reflect.DeepEqual(byWebhook, offline) {
		t.Errorf("the webhook's pod is\n%v\nthe offline command's is\n%v", byWebhook, offline)
	}
}

// withoutServiceAccount removes the volume that the API server adds, which has
// a random name, and its mounts.
func withoutServiceAccount(spec map[string]any) {
	prune := func(holder map[string]any, key string) {
		var kept []any
		list, _ := holder[key].([]any)
		for _, item := range list {
			if name := item.(map[string]any)["name"].(string); !strings.HasPrefix(name, "kube-api-access-") {
				kept = append(kept, item)
			}
		}
		holder[key] = kept
	}
	prune(spec, "volumes")
	for _, key := range []string{"containers", "initContainers"} {
		list, _ := spec[key].([]any)
		for _, container := range list {
			prune(container.(map[string]any), "volumeMounts")
		}
	}
}

func badAnnotations(t *testing.T) {
	for _, kind := range []string{"pod", "deployment", "statefulset", "daemonset", "job", "cronjob"} {
		manifest := strings.Replace(workloads("opted-in")[kind], "name: "+kind, "name: bad-"+kind, 1)
		for from, want := range map[string]string{
			"sealane.dev/confg: node":                "unknown annotation sealane.dev/confg: known are",
			`sealane.dev/skip-cidrs: "10.0.0.0/33"`:  `annotation sealane.dev/skip-cidrs: "10.0.0.0/33" is neither an address nor a CIDR`,
			`sealane.dev/inject: "sometimes"`:        `annotation sealane.dev/inject: "sometimes" is neither enabled nor disabled`,
			`sealane.dev/skip-inbound-ports: "http"`: `annotation sealane.dev/skip-inbound-ports: "http" is neither a port`,
		} {
			out, err := c.Kubectl(t.Context(), strings.Replace(manifest, "sealane.dev/config: node", from, 1), "apply", "-f", "-")
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s with %s: error %v, output %s", kind, from, err, out)
			}
		}
	}
}

func disabledPod(t *testing.T) {
	manifest := strings.Replace(workloads("opted-in")["pod"], "sealane.dev/config: node", "sealane.dev/inject: disabled", 1)
	apply(t, strings.Replace(manifest, "name: pod,", "name: disabled,", 1))
	if names := kubectl(t, "get", "pod", "disabled", "-n", "opted-in", "-o", "jsonpath={.spec.initContainers}"); names != "" {
		t.Errorf("a disabled pod has init containers %s", names)
	}
}

// appliedAgain applies the injector's manifests over what runs, as an upgrade
// does: the certificates that the injector keeps are not lost.
func appliedAgain(t *testing.T) {
	before := caBundle(t)
	applyFolder(t, "injector")
	if after := caBundle(t); after != before {
		t.Errorf("the caBundle changed from\n%s\nto\n%s", before, after)
	}
	if err := create(t, "opted-in", "again"); err != nil {
		t.Error(err)
	}
}

func caBundle(t *testing.T) string {
	t.Helper()
	text, err := base64.StdEncoding.DecodeString(kubectl(t, "get", "mutatingwebhookconfiguration", "sealane-injector", "-o", "jsonpath={.webhooks[0].clientConfig.caBundle}"))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// create asks for a pod without keeping it.
func create(t *testing.T, ns, name string) error {
	manifest := strings.Replace(workloads(ns)["pod"], "name: pod,", "name: "+name+",", 1)
	out, err := c.Kubectl(t.Context(), manifest, "create", "--dry-run=server", "-o", "name", "-f", "-")
	if err == nil && strings.TrimSpace(out) != "pod/"+name {
		err = fmt.Errorf("output %s", out)
	}
	return err
}

// rotationWithoutOutage lets the authorities rotate every 20 seconds, and
// creates pods all the while.
func rotationWithoutOutage(t *testing.T) {
	kubectl(t, "patch", "deployment", "sealane-injector", "-n", "sealane-system", "--type=json",
		`--patch=[{"op": "add", "path": "/spec/template/spec/containers/0/args", "value": ["--rotate-every=20s"]}]`)
	seen := make(map[string]bool)
	created := 0
	waitFor(t, 3*time.Minute, "four authorities", func() bool {
		if err := create(t, "opted-in", "rotated"); err != nil {
			t.Fatalf("after %d pods and %d authorities: %v", created, len(seen), err)
		}
		created++
		for _, cert := range strings.SplitAfter(strings.TrimSpace(caBundle(t)), "-----END CERTIFICATE-----") {
			if cert = strings.TrimSpace(cert); cert != "" {
				seen[cert] = true
			}
		}
		return len(seen) >= 4
	})
	rollout(t, "sealane-system", "deployment/sealane-injector")
	t.Logf("%d pods were created while %d authorities came", created, len(seen))
}

// webhookDown stops the injector: namespaces that opted in start nothing
// without their sidecar, the others do not notice.
func webhookDown(t *testing.T) {
	kubectl(t, "scale", "-n", "sealane-system", "--replicas=0", "deployment/sealane-injector")
	waitFor(t, time.Minute, "the injector to end", func() bool {
		return len(podNames(t.Context(), "sealane-system", "")) == 0
	})
	err := create(t, "opted-in", "blocked")
	if err == nil || !strings.Contains(err.Error(), `failed calling webhook "pods.sealane.dev"`) {
		t.Errorf("in a namespace that opted in: %v", err)
	}
	for _, ns := range []string{"left-out", "kube-system", "sealane-system"} {
		manifest := `{apiVersion: v1, kind: Pod, metadata: {name: free, namespace: ` + ns + `}, spec: {
			securityContext: {runAsNonRoot: true, runAsUser: 1, seccompProfile: {type: RuntimeDefault}},
			containers: [{name: app, image: "sealane.test/app:e2e", securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}}]}}`
		if out, err := c.Kubectl(t.Context(), manifest, "create", "--dry-run=server", "-f", "-"); err != nil {
			t.Errorf("in %s: %v %s", ns, err, out)
		}
	}
	kubectl(t, "scale", "-n", "sealane-system", "--replicas=2", "deployment/sealane-injector")
	rollout(t, "sealane-system", "deployment/sealane-injector")
	waitFor(t, time.Minute, "the webhook to answer again", func() bool { return create(t, "opted-in", "back") == nil })
}
