//go:build linux

package main

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// workload is a Deployment of the test app with its sealane.yaml, injected by
// the offline command. args is what the app does.
func workload(t *testing.T, namespace, name, args string, replicas int, extra, config string) {
	t.Helper()
	manifest := fmt.Sprintf(`
apiVersion: apps/v1
kind: Deployment
metadata: {name: %[1]s, namespace: %[2]s}
spec:
  replicas: %[4]d
  minReadySeconds: 10 # peers look for new addresses at most that long after one is gone
  selector: {matchLabels: {app: %[1]s}}
  template:
    metadata:
      labels: {app: %[1]s}
      annotations: {sealane.dev/config: %[1]s, sealane.dev/identity: %[1]s-key}
    spec:
      terminationGracePeriodSeconds: 60
      containers:
      - name: app
        image: sealane.test/app:e2e
        args: [%[3]s]
%[5]s`, name, namespace, args, replicas, indent(extra, 8))
	inject := exec.CommandContext(t.Context(), bin, "inject", "--image", "sealane:dev", "-f", "-")
	inject.Stdin = strings.NewReader(manifest)
	injected, err := output(inject)
	if err != nil {
		t.Fatal(err)
	}
	apply(t, fmt.Sprintf("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: %s, namespace: %s}\ndata:\n  sealane.yaml: |\n%s", name, namespace, indent(config, 4)))
	apply(t, injected)
}

func indent(text string, n int) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		b.WriteString(strings.Repeat(" ", n) + line)
	}
	return b.String()
}

const (
	// serverExtra makes the app go on for a moment when its pod begins to end,
	// as servers behind any load balancer do.
	serverExtra = "readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}\nlifecycle: {preStop: {sleep: {seconds: 3}}}\n"

	serverConfig = `identity: node.key
listen: "[::]:7423"
admin: 127.0.0.1:7424
peers:
- {name: client, key_files: [client.pub]}
services:
- {name: app, address: "127.0.0.1:8080", allow: [client]}
timeouts: {drain: 50s}
`
	clientConfig = `identity: node.key
admin: 127.0.0.1:7424
peers:
- {name: server, key_files: [server.pub], address: server-sealane:7423, links: 2}
listeners:
- transparent: 127.0.0.1:15006
routes:
- {match: "server:8080", to: {peer: server, service: app}}
`
	serverServices = `
apiVersion: v1
kind: Service
metadata: {name: server, namespace: %[1]s}
spec: {selector: {app: server}, ports: [{port: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: server-sealane, namespace: %[1]s}
spec: {clusterIP: None, publishNotReadyAddresses: true, selector: {app: server}, ports: [{port: 7423}]}
`
)

// pair brings up a server and a client that asks it all the time.
func pair(t *testing.T, ns string, replicas int, load string) {
	t.Helper()
	namespace(t, ns)
	nodeKeys(t, ns, map[string][]string{"server": {"client"}, "client": {"server"}})
	apply(t, fmt.Sprintf(serverServices, ns))
	workload(t, ns, "server", `serve, ":8080"`, replicas, serverExtra, serverConfig)
	rollout(t, ns, "deployment/server")
	workload(t, ns, "client", load, 1, "", clientConfig)
	rollout(t, ns, "deployment/client")
}

func logs(t *testing.T, ns, pod, container string) []string {
	t.Helper()
	return strings.Split(strings.TrimSpace(kubectl(t, "logs", "-n", ns, pod, "-c", container)), "\n")
}

func count(lines []string, prefix string) (n int) {
	for _, l := range lines {
		if strings.HasPrefix(l, prefix) {
			n++
		}
	}
	return n
}

// Every request that a server accepted before its pod was deleted is answered,
// because its sidecar ends after it.
func TestDeletedPodFinishesWhatItAccepted(t *testing.T) {
	const ns = "deleted"
	pair(t, ns, 1, `load, "8", "http://server:8080/work?for=3s"`)
	server := onePod(t, ns, "app=server").Metadata.Name
	waitFor(t, time.Minute, "requests in flight", func() bool { return count(logs(t, ns, server, "app"), "begin") >= 16 })

	// The log ends with the pod, so it is read until then.
	follow := c.KubectlCommand(t.Context(), "logs", "-n", ns, server, "-c", "app", "--follow")
	var log strings.Builder
	follow.Stdout = &log
	if err := follow.Start(); err != nil {
		t.Fatal(err)
	}
	kubectl(t, "delete", "pod", "-n", ns, server, "--wait")
	_ = follow.Wait() // its end is the container's
	served := strings.Split(log.String(), "\n")

	client := onePod(t, ns, "app=client").Metadata.Name
	answers := strings.Join(logs(t, ns, client, "app"), "\n") + "\n"
	accepted := 0
	for _, line := range served {
		if id, begun := strings.CutPrefix(line, "begin "); begun {
			accepted++
			if !strings.Contains(answers, "ok "+id+"\n") {
				t.Errorf("request %s was accepted and not answered", id)
			}
		}
	}
	if count(served, "ending") != 1 || accepted < 16 {
		t.Errorf("the server's log is\n%s", log.String())
	}
	t.Logf("%d requests were accepted, all are answered", accepted)
}

// While the two servers behind one peer name are replaced one after the other,
// every new connection finds the one that is there.
func TestRollingUpdateFailsNoNewConnection(t *testing.T) {
	const ns = "rolling"
	pair(t, ns, 2, `load, "4", "http://server:8080/work?for=20ms"`)
	client := onePod(t, ns, "app=client").Metadata.Name
	answered := func() int { return count(logs(t, ns, client, "app"), "ok") }
	waitFor(t, time.Minute, "load", func() bool { return answered() > 100 })
	for range 2 {
		kubectl(t, "rollout", "restart", "-n", ns, "deployment/server")
		rollout(t, ns, "deployment/server")
		waitFor(t, 2*time.Minute, "the old servers to end", func() bool { return len(podNames(t.Context(), ns, "app=server")) == 2 })
	}
	before := answered()
	waitFor(t, time.Minute, "load after the updates", func() bool { return answered() > before+100 })
	all := logs(t, ns, client, "app")
	if n := count(all, "failed"); n > 0 {
		for _, l := range all {
			if strings.HasPrefix(l, "failed") {
				t.Log(l)
			}
		}
		t.Errorf("%d of %d connections failed", n, len(all))
	}
	t.Logf("%d connections, none failed", len(all))
}
