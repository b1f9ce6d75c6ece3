package webhook

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	admissionregv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/heddle-mesh/heddle/internal/inject"
)

// KeeperConfig says what to keep, and where. All fields are required but Probe.
type KeeperConfig struct {
	Client    kubernetes.Interface
	Server    *Server
	Namespace string // of the control plane
	Revision  string // "default" for the one without a name
	// Roots is the authority's certificates, PEM, as they are now.
	Roots func() []byte
	// Probe asks the API server to make an object that every webhook of ours
	// refuses, changing nothing, and returns its answer; nil makes the request with
	// Client.
	Probe func(ctx context.Context, labels map[string]string) error
	Log   *slog.Logger
}

// Keeper keeps the settings of injection, and the webhook configurations.
type Keeper struct {
	cfg      KeeperConfig
	settings string // that the injector was made of
	told     string // the last fault that was logged
}

// NewKeeper checks cfg.
func NewKeeper(cfg KeeperConfig) (*Keeper, error) {
	if cfg.Client == nil || cfg.Server == nil || cfg.Namespace == "" || cfg.Revision == "" || cfg.Roots == nil || cfg.Log == nil {
		return nil, errors.New("webhook: KeeperConfig is not complete")
	}
	k := &Keeper{cfg: cfg}
	if k.cfg.Probe == nil {
		k.cfg.Probe = k.probe
	}
	return k, nil
}

// How often is looked. A change of settings acts on pods that are made after it,
// so that a second more or less is nothing; a webhook without its authority stops
// labelled pods, so that it is short until all is well.
const (
	lookOften  = time.Second
	lookSeldom = 15 * time.Second
)

// RunSettings keeps the settings of injection until ctx ends. Each replica does.
func (k *Keeper) RunSettings(ctx context.Context) error {
	for {
		if err := k.Settings(ctx); err != nil && ctx.Err() == nil {
			k.tell("settings of injection", err)
		}
		if !wait(ctx, lookOften) {
			return nil
		}
	}
}

// RunWebhooks keeps the webhook configurations until ctx ends. One replica does,
// the one that holds the lease.
func (k *Keeper) RunWebhooks(ctx context.Context) {
	for {
		settled, err := k.Webhooks(ctx)
		if err != nil && ctx.Err() == nil {
			k.cfg.Log.Warn("webhook configurations", "error", err)
		}
		pause := lookOften
		if settled && err == nil {
			pause = lookSeldom
		}
		if !wait(ctx, pause) {
			return
		}
	}
}

func wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// tell logs a fault once, and not each time that it is met.
func (k *Keeper) tell(what string, err error) {
	if text := what + err.Error(); text != k.told {
		k.told = text
		k.cfg.Log.Error(what, "error", err)
	}
}

func (k *Keeper) suffix() string {
	if k.cfg.Revision == "default" {
		return ""
	}
	return "-" + k.cfg.Revision
}

// nativeMinor is the first 1.x of Kubernetes with native sidecars.
const nativeMinor = 29

// Settings reads the settings of injection once. Faulty ones leave those in
// force that were.
func (k *Keeper) Settings(ctx context.Context) error {
	maps := k.cfg.Client.CoreV1().ConfigMaps(k.cfg.Namespace)
	injector, err := maps.Get(ctx, "istio-sidecar-injector"+k.suffix(), metav1.GetOptions{})
	if err != nil {
		return err
	}
	mesh, err := maps.Get(ctx, "istio"+k.suffix(), metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		mesh, err = new(corev1.ConfigMap), nil // all defaults
	}
	if err != nil {
		return err
	}
	now := injector.ResourceVersion + "/" + mesh.ResourceVersion + "/" + string(mesh.UID)
	if now == k.settings && k.cfg.Server.Ready() {
		return nil
	}
	cfg, err := inject.ReadConfig(injector.Data["config"], injector.Data["values"], mesh.Data["mesh"])
	if err != nil {
		return fmt.Errorf("ConfigMap %s/%s: %w", k.cfg.Namespace, injector.Name, err)
	}
	cfg.Revision = k.cfg.Revision
	version, err := k.cfg.Client.Discovery().ServerVersion()
	if err != nil {
		return err
	}
	var minor int
	if _, err := fmt.Sscanf(version.GitVersion, "v1.%d", &minor); err != nil {
		return fmt.Errorf("the server's version is %q: %w", version.GitVersion, err)
	}
	cfg.NativeSidecars = minor >= nativeMinor
	i, err := inject.New(cfg)
	if err != nil {
		return fmt.Errorf("ConfigMap %s/%s: %w", k.cfg.Namespace, injector.Name, err)
	}
	k.cfg.Server.SetInjector(i)
	k.settings, k.told = now, ""
	k.cfg.Log.Info("settings of injection are in force", "nativeSidecars", cfg.NativeSidecars, "configMap", injector.Name)
	return nil
}

// Webhooks brings the webhook configurations of this revision to what they
// should be, once. settled is whether there is nothing left to do.
func (k *Keeper) Webhooks(ctx context.Context) (settled bool, err error) {
	roots := k.cfg.Roots()
	if len(roots) == 0 {
		return false, nil
	}
	ours := metav1.ListOptions{LabelSelector: "istio.io/rev=" + k.cfg.Revision}
	var errs []error
	settled = true
	reg := k.cfg.Client.AdmissionregistrationV1()

	mutating, err := reg.MutatingWebhookConfigurations().List(ctx, ours)
	if err != nil {
		return false, err
	}
	for _, c := range mutating.Items {
		var p patches
		for n, w := range c.Webhooks {
			p.bundle(n, w.ClientConfig, k.cfg.Namespace, roots)
		}
		if len(p) == 0 {
			continue
		}
		// The test of the version lets nobody's change be lost.
		_, err := reg.MutatingWebhookConfigurations().Patch(ctx, c.Name, types.JSONPatchType, p.of(c.ResourceVersion), metav1.PatchOptions{FieldManager: fieldManager})
		errs = append(errs, conflictIsLater(err, &settled))
	}

	validating, err := reg.ValidatingWebhookConfigurations().List(ctx, ours)
	if err != nil {
		return false, errors.Join(append(errs, err)...)
	}
	for _, c := range validating.Items {
		var p patches
		for n, w := range c.Webhooks {
			p.bundle(n, w.ClientConfig, k.cfg.Namespace, roots)
		}
		if len(p) == 0 {
			// It has its authority. Does it answer?
			for n, w := range c.Webhooks {
				if w.FailurePolicy == nil || *w.FailurePolicy != admissionregv1.Fail {
					settled = false
					if k.answers(ctx, w) {
						p = append(p, patchOp{"replace", fmt.Sprintf("/webhooks/%d/failurePolicy", n), string(admissionregv1.Fail)})
					}
				}
			}
		} else {
			settled = false
		}
		if len(p) == 0 {
			continue
		}
		_, err := reg.ValidatingWebhookConfigurations().Patch(ctx, c.Name, types.JSONPatchType, p.of(c.ResourceVersion), metav1.PatchOptions{FieldManager: fieldManager})
		errs = append(errs, conflictIsLater(err, &settled))
	}
	return settled, errors.Join(errs...)
}

const fieldManager = "heddled"

// conflictIsLater passes over a change that somebody else has just made: what is
// left to do is seen at the next look.
func conflictIsLater(err error, settled *bool) error {
	if err != nil {
		*settled = false
	}
	// A failed test of a JSON patch is reported as invalid.
	if apierrors.IsConflict(err) || apierrors.IsInvalid(err) {
		return nil
	}
	return err
}

type patchOp struct {
	Op    string `json:"op"`
	Path  string `json:"path"`
	Value any    `json:"value"`
}

type patches []patchOp

// bundle sets the authority of a webhook that calls this control plane by its
// Service. One with a URL is somebody else's to keep.
func (p *patches) bundle(n int, c admissionregv1.WebhookClientConfig, namespace string, roots []byte) {
	if c.Service == nil || c.Service.Namespace != namespace || bytes.Equal(c.CABundle, roots) {
		return
	}
	*p = append(*p, patchOp{"add", fmt.Sprintf("/webhooks/%d/clientConfig/caBundle", n), roots})
}

func (p patches) of(version string) []byte {
	b, err := json.Marshal(append(patches{{"test", "/metadata/resourceVersion", version}}, p...))
	if err != nil {
		return nil // strings and bytes always have a form
	}
	return b
}

// answers says whether a webhook was heard: the API server called it, and it
// refused what it always refuses.
func (k *Keeper) answers(ctx context.Context, w admissionregv1.ValidatingWebhook) bool {
	labels := make(map[string]string)
	if s := w.ObjectSelector; s != nil {
		for _, e := range s.MatchExpressions {
			if e.Key == "istio.io/rev" && e.Operator == metav1.LabelSelectorOpIn && len(e.Values) > 0 {
				labels[e.Key] = e.Values[0]
			}
		}
	}
	err := k.cfg.Probe(ctx, labels)
	if err != nil && strings.Contains(err.Error(), fmt.Sprintf("admission webhook %q denied the request", w.Name)) {
		return true
	}
	k.cfg.Log.Debug("webhook does not answer yet", "webhook", w.Name, "error", err)
	return false
}

// alwaysRefused is the annotation of an object that validation refuses whatever
// it holds.
const alwaysRefused = "internal.istio.io/webhook-always-reject"

// probe asks for a Gateway without servers, dry.
func (k *Keeper) probe(ctx context.Context, labels map[string]string) error {
	body, err := json.Marshal(map[string]any{
		"apiVersion": "networking.istio.io/v1", "kind": "Gateway",
		"metadata": map[string]any{
			"name": "heddle-webhook-probe", "namespace": k.cfg.Namespace, "labels": labels,
			"annotations": map[string]string{alwaysRefused: "true"},
		},
		"spec": map[string]any{},
	})
	if err != nil {
		return err
	}
	return k.cfg.Client.Discovery().RESTClient().Post().
		AbsPath("/apis/networking.istio.io/v1/namespaces/"+k.cfg.Namespace+"/gateways").
		Param("dryRun", "All").SetHeader("Content-Type", "application/json").Body(body).Do(ctx).Error()
}
