package kube

import (
	"context"
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	kschema "k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/heddle-mesh/heddle/internal/config"
	"github.com/heddle-mesh/heddle/internal/config/schema"
	"github.com/heddle-mesh/heddle/internal/kubeapi"
)

const (
	// statusLease is held by who writes statuses. Istio's name.
	statusLease = "istio-status-leader"
	// statusRest is how long statuses are collected, so that an object that is
	// edited again and again is not written to each time.
	statusRest = 500 * time.Millisecond
	// statusAgain is how long the writer waits after something could not be written.
	statusAgain = 5 * time.Second
	// statusPace leaves the API server to others: 20 in a second.
	statusPace = 50 * time.Millisecond

	reconciled = "Reconciled"
)

// status is what an object of Istio's says about itself, as far as we write it.
type status struct {
	version    string // the kind's, for the address
	generation int64
	observed   int64
	conditions []any
	messages   []any // validationMessages
}

// statusOf reads an object's status; nil for kinds that others write to.
func statusOf(kind config.Kind, u *unstructured.Unstructured) *status {
	if !strings.HasSuffix(kind.Group, ".istio.io") {
		return nil
	}
	s := &status{version: u.GroupVersionKind().Version, generation: u.GetGeneration()}
	of, _ := u.Object["status"].(map[string]any)
	s.conditions, _ = of["conditions"].([]any)
	s.messages, _ = of["validationMessages"].([]any)
	s.observed, _ = of["observedGeneration"].(int64)
	return s
}

// condition returns the one that we write, or nil.
func (s *status) condition() map[string]any {
	for _, c := range s.conditions {
		if m, ok := c.(map[string]any); ok && m["type"] == reconciled {
			return m
		}
	}
	return nil
}

// verdict is what the status of an object is to say.
func (e *entry) verdict() (state, reason, message string, messages []any) {
	state, reason, message = "True", "InForce", "the control plane has it in force"
	for _, f := range slices.Concat(e.errors, e.warnings) {
		level := "WARNING"
		if f.Severity == config.Error {
			level = "ERROR"
		}
		kind := map[string]any{"code": f.Code}
		if f.Code == "" {
			// Istio's for all that its validation finds.
			kind = map[string]any{"code": "IST0106", "name": "SchemaValidationError"}
		}
		// There is no place for the text: an API server drops what the definition
		// does not name, and the status would never say what it should.
		messages = append(messages, map[string]any{"level": level, "type": kind})
	}
	if len(e.errors) > 0 {
		state, reason = "False", "Refused"
		f := e.errors[0]
		message = strings.TrimPrefix(strings.TrimSpace(f.Field+": "+f.Problem), ": ")
		if f.Hint != "" {
			message += ", " + f.Hint
		}
		if e.good != nil {
			message += "; the last good version stays in force"
		}
	}
	return state, reason, message, messages
}

// due reports whether an object's status does not say what it should.
func (e *entry) due() bool {
	if e.gone || e.status == nil {
		return false
	}
	state, reason, message, messages := e.verdict()
	c := e.status.condition()
	return c == nil || c["status"] != state || c["reason"] != reason || c["message"] != message ||
		e.status.observed != e.status.generation || !sameJSON(messages, e.status.messages)
}

func sameJSON(a, b []any) bool { return len(a) == 0 && len(b) == 0 || reflect.DeepEqual(a, b) }

// write is one status to be written.
type write struct {
	key   config.Key
	at    kschema.GroupVersionResource
	patch []byte
}

// writes returns what is to be written.
func (v *view) writes(now time.Time) []write {
	v.mu.Lock()
	defer v.mu.Unlock()
	var out []write
	for k := range v.due {
		e := v.entries[k]
		row := schema.Find(k.Kind.Group, k.Kind.Name)
		if e == nil || row == nil || !e.due() || !v.visible(k) {
			continue
		}
		state, reason, message, messages := e.verdict()
		condition := map[string]any{"type": reconciled, "status": state, "reason": reason, "message": message,
			"observedGeneration": e.status.generation, "lastTransitionTime": now.UTC().Format(time.RFC3339)}
		conditions := []any{}
		for _, c := range e.status.conditions {
			if m, ok := c.(map[string]any); !ok || m["type"] != reconciled {
				conditions = append(conditions, c) // somebody else's
			} else if m["status"] == state && m["lastTransitionTime"] != nil {
				condition["lastTransitionTime"] = m["lastTransitionTime"]
			}
		}
		patch, err := json.Marshal(map[string]any{"status": map[string]any{
			"conditions": append(conditions, condition), "observedGeneration": e.status.generation, "validationMessages": messages,
		}})
		if err != nil {
			continue // it is made of JSON
		}
		out = append(out, write{k, kschema.GroupVersionResource{Group: k.Kind.Group, Version: e.status.version, Resource: row.Plural}, patch})
	}
	slices.SortFunc(out, func(a, b write) int { return compareKeys(a.key, b.key) })
	return out
}

// writeStatuses writes until ctx ends, while this replica holds the lease.
func (s *Source) writeStatuses(ctx context.Context) error {
	return kubeapi.Lead(ctx, s.cfg.Clients, s.cfg.RootNamespace, statusLease, s.cfg.Replica, func(ctx context.Context) {
		next := time.NewTimer(0)
		defer next.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-next.C:
			}
			if s.writePass(ctx) {
				next.Reset(statusRest)
			} else {
				next.Reset(statusAgain)
			}
		}
	})
}

// writePass writes what is due. It returns false if something could not be
// written.
func (s *Source) writePass(ctx context.Context) bool {
	ok := true
	for _, w := range s.view.writes(time.Now()) {
		_, err := s.cfg.Clients.Custom.Resource(w.at).Namespace(w.key.Namespace).
			Patch(ctx, w.key.Name, types.MergePatchType, w.patch, metav1.PatchOptions{}, "status")
		if err != nil && !apierrors.IsNotFound(err) && ctx.Err() == nil {
			if ok {
				s.cfg.Log.Warn("a status can not be written", "object", w.key.String(), "err", err)
			}
			ok = false
		}
		select {
		case <-ctx.Done():
			return ok
		case <-time.After(statusPace):
		}
	}
	return ok
}
