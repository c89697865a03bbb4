//go:build linux

package main

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
)

// Every kustomization renders offline, and the API server takes each as
// strictly as it can.
func TestManifests(t *testing.T) {
	namespace(t, "manifests")
	for _, dir := range []string{"base", "injector", "examples/postgres", "examples/job"} {
		rendered := kubectl(t, "kustomize", "../"+dir)
		if dir == "base" {
			kubectl(t, "apply", "--validate=strict", "-n", "manifests", "-k", "../"+dir)
			continue
		}
		// The others are applied for good by the tests that use them.
		if !strings.Contains(rendered, "kind: ") {
			t.Errorf("%s renders to %q", dir, rendered)
		}
	}
	policy := kubectl(t, "describe", "networkpolicy", "sealane", "-n", "manifests")
	if !strings.Contains(policy, "To Port: 7423/TCP") {
		t.Errorf("the NetworkPolicy lets in\n%s", policy)
	}
}

// postgres brings examples/postgres up in its namespace, as docs/kubernetes.md
// says.
func postgres(t *testing.T) {
	t.Helper()
	namespace(t, "orders")
	nodeKeys(t, "orders", map[string][]string{"orders": {"shop", "report"}, "shop": {"orders"}, "report": {"orders"}})
	applyFolder(t, "examples/postgres")
	rollout(t, "orders", "statefulset/orders-db")
	rollout(t, "orders", "deployment/shop-web")
}

const (
	database = "app.kubernetes.io/name=orders-db"
	shop     = "app.kubernetes.io/name=shop"
)

func TestPostgres(t *testing.T) {
	postgres(t)
	t.Run("order", func(t *testing.T) { startOrder(t, onePod(t, "orders", shop)) })
	t.Run("pgbench and the wire", pgbenchAndWire)
	t.Run("plaintext is refused", plaintextRefused)
	t.Run("job", jobCompletes)
	t.Run("the app waits for its sidecar", appWaits)
	t.Run("a killed sidecar cuts traffic", killedSidecar)
	t.Run("a changed config is taken over", changedConfig)
}

// startOrder checks that the redirect container ended before the sidecar
// started, that the app's own init container came after the sidecar, and the
// app last.
func startOrder(t *testing.T, p pod) {
	redirect := p.container("sealane-redirect").State.Terminated
	sidecar := p.container("sealane").State.Running
	migrate := p.container("migrate").State.Terminated
	web := p.container("web").State.Running
	if redirect == nil || sidecar == nil || migrate == nil || web == nil {
		t.Fatalf("containers %+v %+v", p.Status.InitContainerStatuses, p.Status.ContainerStatuses)
	}
	for i, at := range []time.Time{sidecar.StartedAt, migrate.StartedAt, migrate.FinishedAt, web.StartedAt} {
		before := []time.Time{redirect.FinishedAt, sidecar.StartedAt, migrate.StartedAt, migrate.FinishedAt}[i]
		if at.Before(before) {
			t.Errorf("step %d is at %v, before %v", i, at, before)
		}
	}
}

// pgbench runs it in the shop's app container, against the plain name of the
// database's Service.
func pgbench(t *testing.T, seconds string) string {
	t.Helper()
	return kubectl(t, "exec", "-n", "orders", "deployment/shop-web", "-c", "web", "--",
		"pgbench", "--client=4", "--time="+seconds, "--host=orders-db", "--username=postgres", "postgres")
}

func pgbenchAndWire(t *testing.T) {
	db, web := onePod(t, "orders", database).address(t), onePod(t, "orders", shop).address(t)
	// The capture must see the links from their first byte.
	capture, err := c.Capture()
	if err != nil {
		t.Fatal(err)
	}
	restartContainer(t, "orders", shop, "sealane")
	rollout(t, "orders", "deployment/shop-web")
	out := pgbench(t, "8")
	segments, err := capture.Stop()
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out, "number of failed transactions: 0 ") {
		t.Errorf("pgbench says\n%s", out)
	}
	t.Log(out)
	sealed(t, segments, db, web)
}

// plaintextRefused dials the database from a pod that has no sidecar.
func plaintextRefused(t *testing.T) {
	namespace(t, "stranger")
	apply(t, `{apiVersion: v1, kind: Pod, metadata: {name: stranger, namespace: stranger}, spec: {terminationGracePeriodSeconds: 0, containers: [
		{name: shell, image: "postgres:15", command: [sleep, infinity]}]}}`)
	kubectl(t, "wait", "-n", "stranger", "--for=condition=Ready", "pod/stranger", "--timeout=1m")
	psql := func(host string) (string, error) {
		return c.Kubectl(t.Context(), "", "exec", "-n", "stranger", "stranger", "--", "env", "PGPASSWORD=plaintext", "PGCONNECT_TIMEOUT=4",
			"psql", "--host="+host, "--username=postgres", "--command=select 1")
	}
	for _, host := range []string{onePod(t, "orders", database).Status.PodIP, "orders-db.orders"} {
		out, err := psql(host)
		if err == nil || !strings.Contains(err.Error(), "timeout expired") {
			t.Errorf("psql to %s: error %v, output %s", host, err, out)
		}
	}
}

func jobCompletes(t *testing.T) {
	applyFolder(t, "examples/job")
	kubectl(t, "wait", "-n", "orders", "--for=condition=complete", "job/report", "--timeout=2m")
	if out := kubectl(t, "logs", "-n", "orders", "job/report", "-c", "report"); strings.TrimSpace(out) != "100000" {
		t.Errorf("the report is %q", out)
	}
	waitFor(t, time.Minute, "the Job's sidecar to end", func() bool {
		p := onePod(t, "orders", "job-name=report")
		return p.Status.Phase == "Succeeded" && p.container("sealane").State.Terminated != nil
	})
}

// appWaits starts the shop while the database is away: the sidecar runs, its
// startup probe fails, and neither the app nor its init container starts.
func appWaits(t *testing.T) {
	kubectl(t, "scale", "-n", "orders", "--replicas=0", "statefulset/orders-db", "deployment/shop-web")
	waitFor(t, 2*time.Minute, "the pods to end", func() bool { return len(podNames(t.Context(), "orders", shop)) == 0 })
	waitFor(t, 2*time.Minute, "the database to end", func() bool { return len(podNames(t.Context(), "orders", database)) == 0 })
	kubectl(t, "scale", "-n", "orders", "--replicas=1", "deployment/shop-web")
	waitFor(t, time.Minute, "the sidecar to fail its startup probe", func() bool {
		list := pods(t, "orders", shop)
		return len(list) == 1 && list[0].container("sealane").State.Running != nil &&
			strings.Contains(kubectl(t, "get", "events", "-n", "orders", "--field-selector=reason=Unhealthy,involvedObject.name="+list[0].Metadata.Name), "Startup probe failed")
	})
	p := onePod(t, "orders", shop)
	for _, name := range []string{"migrate", "web"} {
		if s := p.container(name).State; s.Running != nil || s.Terminated != nil {
			t.Errorf("container %s started before the sidecar was ready", name)
		}
	}
	kubectl(t, "scale", "-n", "orders", "--replicas=1", "statefulset/orders-db")
	rollout(t, "orders", "deployment/shop-web")
}

// killedSidecar kills the shop's sidecar twice, so that the kubelet waits
// before it starts it again, and looks at what the app can do meanwhile.
func killedSidecar(t *testing.T) {
	capture, err := c.Capture()
	if err != nil {
		t.Fatal(err)
	}
	if out, err := ask(t); err != nil || !strings.Contains(out, "42") {
		t.Fatalf("before: %v %s", err, out)
	}
	restartContainer(t, "orders", shop, "sealane")
	killContainer(t, "orders", shop, "sealane")
	waitFor(t, time.Minute, "the sidecar to be down", func() bool {
		return onePod(t, "orders", shop).container("sealane").State.Running == nil
	})
	if out, err := ask(t); err == nil {
		t.Errorf("without the sidecar the app was answered: %s", out)
	} else if !strings.Contains(err.Error(), "Connection refused") {
		t.Errorf("without the sidecar: %v", err)
	}
	waitFor(t, 2*time.Minute, "traffic after the restart", func() bool {
		out, err := ask(t)
		return err == nil && strings.Contains(out, "42")
	})
	segments, err := capture.Stop()
	if err != nil {
		t.Fatal(err)
	}
	noPlaintext(t, segments, onePod(t, "orders", database).address(t), onePod(t, "orders", shop).address(t))
}

// ask asks the database from the shop's app container.
func ask(t *testing.T) (string, error) {
	return c.Kubectl(t.Context(), "", "exec", "-n", "orders", "deployment/shop-web", "-c", "web", "--",
		"psql", "--host=orders-db", "--username=postgres", "--no-psqlrc", "--tuples-only", "--command=select 41 + 1")
}

// changedConfig takes the shop's right to the database away, and gives it
// back, by the ConfigMap alone.
func changedConfig(t *testing.T) {
	restarts := onePod(t, "orders", database).container("sealane").RestartCount
	text := kubectl(t, "get", "configmap", "orders-sealane", "-n", "orders", `-o=jsonpath={.data.sealane\.yaml}`)
	denied := strings.Replace(text, "allow: [shop, report]", "allow: [report]", 1)
	if denied == text {
		t.Fatalf("the ConfigMap is\n%s", text)
	}
	write := func(text string) {
		patch, err := json.Marshal(map[string]any{"data": map[string]string{"sealane.yaml": text}})
		if err != nil {
			t.Fatal(err)
		}
		kubectl(t, "patch", "configmap", "orders-sealane", "-n", "orders", "--type=merge", "--patch="+string(patch))
	}
	write(denied)
	waitFor(t, 2*time.Minute, "the shop to be refused", func() bool {
		_, err := ask(t)
		return err != nil
	})
	write(text)
	waitFor(t, 2*time.Minute, "the shop to be answered again", func() bool {
		_, err := ask(t)
		return err == nil
	})
	if n := onePod(t, "orders", database).container("sealane").RestartCount; n != restarts {
		t.Errorf("the sidecar was started %d times", n-restarts)
	}
}

func killContainer(t *testing.T, namespace, selector, name string) {
	t.Helper()
	if err := c.Kill(t.Context(), onePod(t, namespace, selector).container(name).ContainerID); err != nil {
		t.Fatal(err)
	}
}

// restartContainer kills one and waits until the kubelet has started it again.
func restartContainer(t *testing.T, namespace, selector, name string) {
	t.Helper()
	before := onePod(t, namespace, selector).container(name).RestartCount
	killContainer(t, namespace, selector, name)
	waitFor(t, 2*time.Minute, "container "+name+" to be started again", func() bool {
		s := onePod(t, namespace, selector).container(name)
		return s.RestartCount > before && s.Started && s.State.Running != nil
	})
}
