package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// serviceAccount is where a pod finds its credentials.
const serviceAccount = "/var/run/secrets/kubernetes.io/serviceaccount"

// api speaks to the Kubernetes API server.
type api struct {
	base   string
	token  string // file, which the kubelet rotates
	client *http.Client
}

// inCluster gives the API of the cluster that this process is a pod of.
func inCluster() (*api, error) {
	host, port := os.Getenv("KUBERNETES_SERVICE_HOST"), os.Getenv("KUBERNETES_SERVICE_PORT")
	if host == "" || port == "" {
		return nil, errors.New("not in a Kubernetes pod: KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set")
	}
	ca, err := os.ReadFile(filepath.Join(serviceAccount, "ca.crt"))
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(ca) {
		return nil, errors.New("ca.crt of the service account holds no certificate")
	}
	return &api{
		base:  "https://" + net.JoinHostPort(host, port),
		token: filepath.Join(serviceAccount, "token"),
		client: &http.Client{
			Timeout:   10 * time.Second,
			Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}},
		},
	}, nil
}

// statusError is an answer of the API server that is not a success.
type statusError struct {
	code         int
	method, path string
	message      string
}

func (e *statusError) Error() string {
	return fmt.Sprintf("%s %s: %d: %s", e.method, e.path, e.code, e.message)
}

func (a *api) get(ctx context.Context, path string, into any) error {
	return a.do(ctx, http.MethodGet, path, "", nil, into)
}

func (a *api) patch(ctx context.Context, path, contentType string, body any) error {
	return a.do(ctx, http.MethodPatch, path, contentType, body, nil)
}

// do sends a request and decodes the answer.
func (a *api) do(ctx context.Context, method, path, contentType string, body, into any) error {
	var text []byte
	if body != nil {
		var err error
		if text, err = json.Marshal(body); err != nil {
			return err
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, a.base+path, bytes.NewReader(text))
	if err != nil {
		return err
	}
	token, err := os.ReadFile(a.token)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	req.Header.Set("Accept", "application/json")
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	res, err := a.client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(res.Body, maxReview))
	if err != nil {
		return err
	}
	if res.StatusCode/100 != 2 {
		var s status
		_ = json.Unmarshal(answer, &s) // without a message, the code says enough
		return &statusError{code: res.StatusCode, method: method, path: path, message: s.Message}
	}
	if into == nil {
		return nil
	}
	return json.Unmarshal(answer, into)
}
