package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"github.com/sealane/sealane/k8s/inject"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeCluster is the API server as far as the injector uses it.
type fakeCluster struct {
	t *testing.T

	mu       sync.Mutex
	version  int
	data     map[string][]byte
	caBundle map[string][]byte // by webhook
	writes   int
	conflict bool // answer the next write of the Secret with a conflict
}

func newFakeCluster(t *testing.T) (*fakeCluster, *api) {
	f := &fakeCluster{t: t, data: map[string][]byte{}, caBundle: map[string][]byte{"pods.sealane.dev": nil, "workloads.sealane.dev": nil}}
	server := httptest.NewServer(f)
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	client := server.Client()
	t.Cleanup(func() {
		client.CloseIdleConnections()
		server.Close()
	})
	return f, &api{base: server.URL, token: token, client: client}
}

func (f *fakeCluster) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if r.Header.Get("Authorization") != "Bearer secret" {
		f.fail(w, http.StatusUnauthorized, "no token")
		return
	}
	switch r.Method + " " + r.URL.Path {
	case "GET /api/v1/namespaces/sealane-system/secrets/certs":
		f.reply(w, map[string]any{"metadata": map[string]any{"resourceVersion": fmt.Sprint(f.version)}, "data": f.data})
	case "PATCH /api/v1/namespaces/sealane-system/secrets/certs":
		f.patchSecret(w, r)
	case "GET /apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/hook":
		var webhooks []any
		for name, b := range f.caBundle {
			webhooks = append(webhooks, map[string]any{"name": name, "clientConfig": map[string]any{"caBundle": b}})
		}
		f.reply(w, map[string]any{"webhooks": webhooks})
	case "PATCH /apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/hook":
		f.patchWebhook(w, r)
	default:
		f.fail(w, http.StatusForbidden, r.Method+" "+r.URL.Path)
	}
}

func (f *fakeCluster) patchSecret(w http.ResponseWriter, r *http.Request) {
	var in struct {
		Metadata struct{ ResourceVersion string }
		Data     map[string][]byte
	}
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil || r.Header.Get("Content-Type") != "application/merge-patch+json" {
		f.fail(w, http.StatusBadRequest, "not a merge patch")
		return
	}
	if in.Metadata.ResourceVersion != fmt.Sprint(f.version) || f.conflict {
		f.conflict = false
		f.fail(w, http.StatusConflict, "the object has been modified")
		return
	}
	f.version++
	f.writes++
	f.data = in.Data
	f.reply(w, map[string]any{})
}

func (f *fakeCluster) patchWebhook(w http.ResponseWriter, r *http.Request) {
	var in struct {
		Webhooks []struct {
			Name         string
			ClientConfig struct{ CABundle []byte }
		}
	}
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil || r.Header.Get("Content-Type") != "application/strategic-merge-patch+json" {
		f.fail(w, http.StatusBadRequest, "not a strategic merge patch")
		return
	}
	for _, webhook := range in.Webhooks {
		f.caBundle[webhook.Name] = webhook.ClientConfig.CABundle
	}
	f.writes++
	f.reply(w, map[string]any{})
}

func (f *fakeCluster) reply(w http.ResponseWriter, v any) {
	if err := json.NewEncoder(w).Encode(v); err != nil {
		f.t.Error(err)
	}
}

func (f *fakeCluster) fail(w http.ResponseWriter, code int, message string) {
	w.WriteHeader(code)
	f.reply(w, status{Code: code, Message: message})
}

// trusted gives the bundles that the API server would verify with.
func (f *fakeCluster) trusted() []*x509.CertPool {
	f.mu.Lock()
	defer f.mu.Unlock()
	var pools []*x509.CertPool
	for _, b := range f.caBundle {
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM(b)
		pools = append(pools, pool)
	}
	return pools
}

func testOptions() options {
	return options{namespace: "sealane-system", service: "injector", secret: "certs", webhook: "hook", image: "sealane:test", rotate: 6 * time.Hour}
}

// Over several rotations, at every moment, every replica's certificate is
// trusted by what the API server has: also by what it had a step ago, and also
// when replicas look at different moments.
func TestRotationWithoutOutage(t *testing.T) {
	f, api := newFakeCluster(t)
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	var replicas []*keeper
	for range 3 {
		replicas = append(replicas, &keeper{options: testOptions(), api: api, log: zerolog.Nop(), now: func() time.Time { return now }})
	}
	seen := make(map[string]bool)
	before := f.trusted()
	step := overlap(6*time.Hour) / 5
	for i := range 5 * 6 * 60 / int(step.Minutes()) {
		for r, k := range replicas {
			if i > 3 && (i+r)%3 == 0 {
				continue // busy
			}
			if err := k.reconcile(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		after := f.trusted()
		for r, k := range replicas {
			cert, err := k.certificate(nil)
			if err != nil {
				t.Fatal(err)
			}
			seen[cert.Leaf.Issuer.String()+cert.Leaf.SerialNumber.String()] = true
			pools := after
			if i > 0 {
				pools = append(pools, before...)
			}
			for _, pool := range pools {
				_, err := cert.Leaf.Verify(x509.VerifyOptions{Roots: pool, DNSName: "injector.sealane-system.svc", CurrentTime: now})
				if err != nil {
					t.Fatalf("step %d, replica %d: %v", i, r, err)
				}
			}
		}
		if n := bytes.Count(f.caBundle["pods.sealane.dev"], []byte("BEGIN")); n < 1 || n > 2 {
			t.Fatalf("step %d: %d authorities are trusted", i, n)
		}
		before, now = after, now.Add(step)
	}
	if len(seen) != 15 { // at the start and at four rotations, by three replicas
		t.Errorf("saw %d serving certificates, want 15", len(seen))
	}
	if f.writes != 2+4*4 { // an authority in and out, in Secret and webhooks
		t.Errorf("%d writes", f.writes)
	}
}

func TestConflictIsReadAgain(t *testing.T) {
	f, api := newFakeCluster(t)
	f.conflict = true
	k := &keeper{options: testOptions(), api: api, log: zerolog.Nop(), now: time.Now}
	if err := k.reconcile(t.Context()); err != nil || len(f.data) != 1 {
		t.Errorf("error %v, Secret %v", err, f.data)
	}
}

func TestDamagedSecretIsReported(t *testing.T) {
	f, api := newFakeCluster(t)
	f.data[dataKey] = []byte("garbage")
	k := &keeper{options: testOptions(), api: api, log: zerolog.Nop(), now: time.Now}
	if err := k.reconcile(t.Context()); err == nil || !strings.Contains(err.Error(), "remove the key to start over") {
		t.Errorf("error %v", err)
	}
	if _, err := k.certificate(nil); err == nil {
		t.Error("a certificate was served all the same")
	}
}

// The server, over TLS with a certificate of its own making, injects a pod.
func TestServes(t *testing.T) {
	f, api := newFakeCluster(t)
	o := testOptions()
	k := &keeper{options: o, api: api, log: zerolog.Nop(), now: time.Now}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		k.run(ctx)
	}()
	defer func() { cancel(); <-done }()

	server := httptest.NewUnstartedServer(handler(o, zerolog.Nop()))
	server.TLS = &tls.Config{GetCertificate: k.certificate}
	server.Config.ErrorLog = nil
	server.StartTLS()
	defer server.Close()
	for k.serving.Load() == nil {
		select {
		case <-t.Context().Done():
			t.Fatal("no certificate")
		case <-time.After(time.Millisecond):
		}
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: f.trusted()[0], ServerName: "injector.sealane-system.svc"}}}
	defer client.CloseIdleConnections()
	// httptest adds a certificate of its own, which GetCertificate goes before
	// only when the client names a server.
	body := reviewOf(t, "Pod", "shop", podJSON)
	res, err := client.Post(server.URL+"/inject", "application/json", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var out review
	if err := json.NewDecoder(res.Body).Decode(&out); err != nil {
		t.Fatal(err)
	}
	if r := out.Response; r == nil || !r.Allowed || r.PatchType != "JSONPatch" || !bytes.Contains(r.Patch, []byte(`"/spec/initContainers"`)) {
		t.Errorf("answer %+v", out.Response)
	}
}

const podJSON = `{"apiVersion": "v1", "kind": "Pod", "metadata": {"generateName": "web-", "annotations": {"sealane.dev/config": "web"}},
	"spec": {"containers": [{"name": "web", "image": "web", "securityContext": {"runAsUser": 7423}}]}}`

func reviewOf(t *testing.T, kind, namespace, object string) []byte {
	t.Helper()
	r := request{UID: "u1", Namespace: namespace, Object: json.RawMessage(object)}
	r.Kind.Kind = kind
	text, err := json.Marshal(review{APIVersion: "admission.k8s.io/v1", Kind: "AdmissionReview", Request: &r})
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestAdmission(t *testing.T) {
	deployment := `{"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": {"template": ` +
		strings.Replace(podJSON, "sealane.dev/config", "sealane.dev/cnfig", 1) + `}}`
	for _, c := range []struct {
		name, kind, namespace, object string
		allowed, patched              bool
		message                       string
	}{
		{"a pod", "Pod", "shop", podJSON, true, true, ""},
		{"an own pod", "Pod", "sealane-system", podJSON, true, false, ""},
		{"a pod of the cluster", "Pod", "kube-system", podJSON, true, false, ""},
		{"a disabled pod", "Pod", "shop", strings.Replace(podJSON, `config": "web"`, `inject": "disabled"`, 1), true, false, ""},
		{"a bad annotation", "Pod", "shop", strings.Replace(podJSON, "config", "cnfig", 1), false, false, `sealane: Pod "web-": unknown annotation sealane.dev/cnfig`},
		{"a workload", "Deployment", "shop", strings.Replace(deployment, "cnfig", "config", 1), true, false, ""},
		{"a bad workload", "Deployment", "shop", deployment, false, false, "unknown annotation sealane.dev/cnfig"},
		{"no object", "Pod", "shop", "null", false, false, "not a JSON object"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var in review
			if err := json.Unmarshal(reviewOf(t, c.kind, c.namespace, c.object), &in); err != nil {
				t.Fatal(err)
			}
			got := admit(in.Request, testOptions())
			if got.UID != "u1" || got.Allowed != c.allowed || (got.Patch != nil) != c.patched {
				t.Errorf("answer %+v", got)
			}
			if c.message != "" && (got.Status == nil || !strings.Contains(got.Status.Message, c.message)) {
				t.Errorf("status %+v, want %q", got.Status, c.message)
			}
			if c.patched && (len(got.Warnings) != 1 || !strings.Contains(got.Warnings[0], "7423")) {
				t.Errorf("warnings %q", got.Warnings)
			}
		})
	}
}

// The webhook's patch is the one that the injection gives offline.
func TestAdmissionPatch(t *testing.T) {
	var in review
	if err := json.Unmarshal(reviewOf(t, "Pod", "shop", podJSON), &in); err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(admit(in.Request, testOptions()))
	if err != nil {
		t.Fatal(err)
	}
	var wire struct{ Patch string }
	if err := json.Unmarshal(text, &wire); err != nil {
		t.Fatal(err)
	}
	got, err := base64.StdEncoding.DecodeString(wire.Patch)
	if err != nil {
		t.Fatal(err)
	}
	result, err := inject.JSON([]byte(podJSON), inject.Options{Image: "sealane:test"})
	if err != nil {
		t.Fatal(err)
	}
	want, err := json.Marshal(result.Patch)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("patch\n%s\nwant\n%s, error %v", got, want, err)
	}
}

func TestBadRequests(t *testing.T) {
	h := handler(testOptions(), zerolog.Nop())
	for body, want := range map[string]int{
		"":   http.StatusBadRequest,
		"{}": http.StatusBadRequest,
		`{"apiVersion": "admission.k8s.io/v1beta1", "request": {}}`: http.StatusBadRequest,
		strings.Repeat(" ", maxReview+1):                            http.StatusBadRequest,
	} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/inject", strings.NewReader(body)))
		if w.Code != want {
			t.Errorf("%.60q gave %d, want %d", body, w.Code, want)
		}
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/ready", nil))
	if w.Code != http.StatusOK {
		t.Errorf("/ready gave %d", w.Code)
	}
}

func TestFlags(t *testing.T) {
	getenv := func(name string) string { return map[string]string{"POD_NAMESPACE": "sealane-system"}[name] }
	o, code := parse([]string{"--rotate-every", "48h"}, getenv, io.Discard)
	if code != -1 || o.namespace != "sealane-system" || o.rotate != 48*time.Hour || o.image != "sealane:devel" {
		t.Errorf("options %+v, code %d", o, code)
	}
	for _, args := range [][]string{{"--rotate-every", "1s"}, {"--namespace", ""}, {"extra"}, {"--unknown"}} {
		if _, code := parse(args, getenv, io.Discard); code != exitUsage {
			t.Errorf("%q gave code %d", args, code)
		}
	}
	if _, code := parse([]string{"--help"}, getenv, io.Discard); code != exitOK {
		t.Errorf("--help gave code %d", code)
	}
}
