// Package webhook answers the API server: it puts proxies into pods that are
// being made, and refuses configuration that could not be understood.
//
// [Server] is a handler that needs no cluster, and says its answers by the same
// functions as `heddle kube-inject` and `heddle validate`. [Keeper] keeps the
// cluster's side of it: the settings of injection as they are now, and the
// webhook configurations, which must name the authority that the server's
// certificate is from, and may refuse objects only once the server was seen to
// answer. A control plane that is down or broken must never stop a cluster.
package webhook

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"strings"
	"sync/atomic"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/heddle-mesh/heddle/internal/config"
	"github.com/heddle-mesh/heddle/internal/config/validate"
	"github.com/heddle-mesh/heddle/internal/inject"
)

// Server answers at /inject, /inject/… and /validate. Its zero value is not
// ready to use.
type Server struct {
	log      *slog.Logger
	injector atomic.Pointer[inject.Injector]

	// Counts are for metrics.
	Counts Counts
}

// Counts of what the server has answered, under the names of Istio's metrics.
type Counts struct {
	InjectionRequests, InjectionSuccess, InjectionSkip, InjectionFailure atomic.Int64
	ValidationPassed, ValidationFailed, HTTPErrors                       atomic.Int64
}

// NewServer makes a server without settings: until it is given some, injection
// is refused, so that a pod comes later rather than without its proxy.
func NewServer(log *slog.Logger) *Server { return &Server{log: log} }

// SetInjector changes what pods are injected with, from the next request on.
func (s *Server) SetInjector(i *inject.Injector) { s.injector.Store(i) }

// Ready says whether pods can be injected.
func (s *Server) Ready() bool { return s.injector.Load() != nil }

// maxReview bounds a request; objects are at most half of that in etcd.
const maxReview = 3 << 20

// ServeHTTP answers one review.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	answer := s.validate
	switch {
	case r.URL.Path == "/inject" || strings.HasPrefix(r.URL.Path, "/inject/"):
		answer = func(req *admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
			return s.inject(req, r.URL.Path)
		}
	case r.URL.Path == "/validate" || strings.HasPrefix(r.URL.Path, "/validate/"):
	case r.URL.Path == "/ready" && r.Method == http.MethodGet:
		if !s.Ready() {
			http.Error(w, "there are no settings for injection yet", http.StatusServiceUnavailable)
		}
		return
	default:
		s.refuse(w, "no such path", http.StatusNotFound)
		return
	}
	if r.Method != http.MethodPost {
		s.refuse(w, "reviews are posted", http.StatusMethodNotAllowed)
		return
	}
	if t, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || t != "application/json" {
		s.refuse(w, "a review is application/json", http.StatusUnsupportedMediaType)
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxReview))
	if err != nil {
		s.refuse(w, err.Error(), http.StatusRequestEntityTooLarge)
		return
	}
	review, err := readReview(body)
	if err != nil {
		s.refuse(w, err.Error(), http.StatusBadRequest)
		return
	}
	res := answer(review.Request)
	res.UID = review.Request.UID
	out := admissionv1.AdmissionReview{TypeMeta: review.TypeMeta, Response: res}
	b, err := json.Marshal(out)
	if err != nil {
		s.refuse(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(b) // fails only if the caller is gone
}

func (s *Server) refuse(w http.ResponseWriter, why string, code int) {
	s.Counts.HTTPErrors.Add(1)
	http.Error(w, why, code)
}

// readReview reads the body of a request.
func readReview(body []byte) (*admissionv1.AdmissionReview, error) {
	var review admissionv1.AdmissionReview
	if err := json.Unmarshal(body, &review); err != nil {
		return nil, fmt.Errorf("admission review: %w", err)
	}
	switch {
	case review.APIVersion != admissionv1.SchemeGroupVersion.String() || review.Kind != "AdmissionReview":
		return nil, fmt.Errorf("admission review: %s %s is not admission.k8s.io/v1 AdmissionReview", review.APIVersion, review.Kind)
	case review.Request == nil:
		return nil, errors.New("admission review: there is no request")
	}
	return &review, nil
}

func denied(code int32, why string) *admissionv1.AdmissionResponse {
	return &admissionv1.AdmissionResponse{Result: &metav1.Status{Status: metav1.StatusFailure, Message: why, Code: code}}
}

// inject answers for a pod.
func (s *Server) inject(req *admissionv1.AdmissionRequest, path string) *admissionv1.AdmissionResponse {
	s.Counts.InjectionRequests.Add(1)
	fail := func(err error) *admissionv1.AdmissionResponse {
		s.Counts.InjectionFailure.Add(1)
		s.log.Warn("pod is not injected", "namespace", req.Namespace, "pod", req.Name, "error", err)
		return denied(http.StatusBadRequest, "heddle: "+err.Error())
	}
	i := s.injector.Load()
	if i == nil {
		return fail(errors.New("the control plane has not read its settings for injection yet"))
	}
	pod := new(corev1.Pod)
	if err := json.Unmarshal(req.Object.Raw, pod); err != nil {
		return fail(err)
	}
	request, err := readPath(path)
	if err != nil {
		return fail(err)
	}
	request.Pod, request.Namespace = pod, req.Namespace
	res, err := i.Pod(request)
	if err != nil {
		return fail(err)
	}
	if !res.Injected {
		s.Counts.InjectionSkip.Add(1)
		return &admissionv1.AdmissionResponse{Allowed: true}
	}
	before, err := json.Marshal(pod)
	if err != nil {
		return fail(err)
	}
	after, err := json.Marshal(res.Pod)
	if err != nil {
		return fail(err)
	}
	patch, err := Patch(before, after)
	if err != nil {
		return fail(err)
	}
	s.Counts.InjectionSuccess.Add(1)
	kind := admissionv1.PatchTypeJSONPatch
	return &admissionv1.AdmissionResponse{Allowed: true, Patch: patch, PatchType: &kind, Warnings: short(res.Warnings)}
}

// readPath reads what a remote cluster's webhook says of itself by its path:
// /inject/cluster/NAME/net/NAME, and further pairs of variables of the proxy.
func readPath(path string) (inject.Request, error) {
	var req inject.Request
	rest := strings.Trim(strings.TrimPrefix(path, "/inject"), "/")
	if rest == "" {
		return req, nil
	}
	parts := strings.Split(rest, "/")
	if len(parts)%2 != 0 {
		return req, fmt.Errorf("path %s: it is pairs of name and value", path)
	}
	for n := 0; n < len(parts); n += 2 {
		// A name with a slash in it is written with this in its place.
		value := strings.ReplaceAll(parts[n+1], "--slash--", "/")
		switch parts[n] {
		case "cluster":
			req.ClusterID = value
		case "net":
			req.Network = value
		default:
			if req.Environment == nil {
				req.Environment = make(map[string]string)
			}
			req.Environment[parts[n]] = value
		}
	}
	return req, nil
}

// validate answers for an object of configuration: what `heddle validate` calls
// an error is refused, all at once.
func (s *Server) validate(req *admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
	if req.Operation != admissionv1.Create && req.Operation != admissionv1.Update {
		return &admissionv1.AdmissionResponse{Allowed: true}
	}
	objects, faults := config.Decode("", req.Object.Raw)
	for _, o := range objects {
		faults = append(faults, validate.Object(o)...)
	}
	var errs, warnings []string
	for _, f := range faults {
		f.Pos, f.Object = config.Position{}, config.Key{} // the caller knows what it sent
		text := strings.TrimPrefix(strings.TrimPrefix(f.Error(), "-"), " ")
		text = strings.TrimPrefix(text, ": ")
		if f.Severity == config.Error {
			errs = append(errs, text)
		} else {
			warnings = append(warnings, text)
		}
	}
	if len(errs) > 0 {
		s.Counts.ValidationFailed.Add(1)
		return denied(http.StatusUnprocessableEntity, "configuration is invalid: "+strings.Join(errs, "; "))
	}
	s.Counts.ValidationPassed.Add(1)
	return &admissionv1.AdmissionResponse{Allowed: true, Warnings: short(warnings)}
}

// The API server cuts warnings off, each and all of them. Source: Kubernetes,
// apiserver/pkg/endpoints/filters/warning.go.
const (
	maxWarning  = 256
	maxWarnings = 15
)

func short(warnings []string) []string {
	var out []string
	for n, w := range warnings {
		if n == maxWarnings {
			return append(out, fmt.Sprintf("heddle: and %d more", len(warnings)-n))
		}
		w = "heddle: " + w
		if len(w) > maxWarning {
			w = strings.ToValidUTF8(w[:maxWarning-3], "") + "..."
		}
		out = append(out, w)
	}
	return out
}
