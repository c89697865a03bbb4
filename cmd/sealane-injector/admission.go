package main

import (
	"encoding/json"
	"io"
	"net/http"

	"github.com/rs/zerolog"

	"github.com/sealane/sealane/k8s/inject"
)

// maxReview bounds an admission request: it holds an object, which the API
// server bounds to 3 MiB, and what it was before.
const maxReview = 8 << 20

// review is an AdmissionReview (admission.k8s.io/v1), as far as it is used.
type review struct {
	APIVersion string    `json:"apiVersion"`
	Kind       string    `json:"kind"`
	Request    *request  `json:"request,omitempty"`
	Response   *response `json:"response,omitempty"`
}

type request struct {
	UID       string          `json:"uid"`
	Namespace string          `json:"namespace"`
	Object    json.RawMessage `json:"object"`
	Kind      struct {
		Kind string `json:"kind"`
	} `json:"kind"`
}

type response struct {
	UID       string   `json:"uid"`
	Allowed   bool     `json:"allowed"`
	Warnings  []string `json:"warnings,omitempty"`
	PatchType string   `json:"patchType,omitempty"`
	Patch     []byte   `json:"patch,omitempty"`
	Status    *status  `json:"status,omitempty"`
}

type status struct {
	Code    int    `json:"code"`
	Message string `json:"message"`
}

// handler answers the API server on /inject and probes on /live and /ready.
// Without a certificate no connection comes as far as a probe's answer.
func handler(o options, log zerolog.Logger) http.Handler {
	mux := http.NewServeMux()
	ok := func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok\n") }
	mux.HandleFunc("GET /live", ok)
	mux.HandleFunc("GET /ready", ok)
	mux.HandleFunc("POST /inject", func(w http.ResponseWriter, r *http.Request) {
		var in review
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxReview)).Decode(&in); err != nil {
			http.Error(w, "not an AdmissionReview: "+err.Error(), http.StatusBadRequest)
			return
		}
		if in.Request == nil || in.APIVersion != "admission.k8s.io/v1" {
			http.Error(w, "not a request of admission.k8s.io/v1", http.StatusBadRequest)
			return
		}
		answer := admit(in.Request, o)
		entry(log, in.Request, answer)
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(review{APIVersion: in.APIVersion, Kind: in.Kind, Response: answer})
	})
	return mux
}

func entry(log zerolog.Logger, r *request, a *response) {
	event := log.Info()
	if a.Status != nil {
		event = log.Warn().Str("reason", a.Status.Message)
	}
	event.Str("uid", r.UID).Str("namespace", r.Namespace).Str("kind", r.Kind.Kind).
		Bool("allowed", a.Allowed).Bool("patched", a.Patch != nil).Msg("admission")
}

// admit decides on one object. Pods are changed; of anything else, what it
// would make of its pods is checked, so that a mistake in a Deployment is
// answered to the person who applies it and not only to its controller.
func admit(r *request, o options) *response {
	answer := &response{UID: r.UID, Allowed: true}
	// The webhook configuration leaves these namespaces out too. A cluster that
	// cannot start its own parts, or this webhook, would not recover.
	if r.Namespace == "kube-system" || r.Namespace == o.namespace {
		return answer
	}
	result, err := inject.JSON(r.Object, inject.Options{Image: o.image})
	if err != nil {
		answer.Allowed = false
		answer.Status = &status{Code: http.StatusUnprocessableEntity, Message: "sealane: " + err.Error()}
		return answer
	}
	answer.Warnings = result.Warnings
	if r.Kind.Kind != "Pod" || len(result.Patch) == 0 {
		return answer
	}
	patch, err := json.Marshal(result.Patch)
	if err != nil {
		panic(err) // a decoded tree holds nothing that JSON cannot write
	}
	answer.PatchType, answer.Patch = "JSONPatch", patch
	return answer
}
