package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"

	"github.com/heddle-mesh/heddle/internal/identity/ca"
	"github.com/heddle-mesh/heddle/internal/kubeapi"
)

// openAgain is how long a start waits before it asks an API server again.
const openAgain = 2 * time.Second

// AuthorityConfig is what an Authority needs.
type AuthorityConfig struct {
	Clients   kubeapi.Clients
	Namespace string    // that the Secrets are in
	CA        ca.Config // StateDir is not used
	Log       *slog.Logger
	// OnChange, if set, is called when other material came in force.
	OnChange func()
}

// Authority is the mesh's certificate authority with its key in a Secret: one
// that an operator plugs in, or else a root that it makes itself. All replicas of
// the control plane sign with the same.
type Authority struct {
	*ca.CA
	cfg AuthorityConfig

	mu sync.Mutex
	// mu guards what is signed with, and the Secret that it is from.
	now  ca.Material
	from string
}

// Open reads the Secrets, and makes a root if there is none. While the API
// server can not be reached it waits.
func Open(ctx context.Context, cfg AuthorityConfig) (*Authority, error) {
	if cfg.OnChange == nil {
		cfg.OnChange = func() {}
	}
	for {
		m, from, err := material(ctx, cfg)
		if err == nil {
			signs, err := ca.NewWith(cfg.CA, m)
			if err != nil {
				return nil, err
			}
			return &Authority{CA: signs, cfg: cfg, now: m, from: from}, nil
		}
		if apierrors.IsForbidden(err) || apierrors.IsUnauthorized(err) || errors.Is(err, errMaterial) {
			return nil, fmt.Errorf("certificate authority: %w", err)
		}
		cfg.Log.Warn("the authority's secret can not be read; trying again", "err", err)
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(openAgain):
		}
	}
}

// material finds what to sign with, and the Secret that holds it.
func material(ctx context.Context, cfg AuthorityConfig) (m ca.Material, from string, err error) {
	secrets := cfg.Clients.Core.CoreV1().Secrets(cfg.Namespace)
	read := func(name string) (ca.Material, error) {
		s, err := secrets.Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return ca.Material{}, err
		}
		return materialOf(s)
	}
	for _, name := range []string{pluggedSecret, ownSecret} {
		if m, err := read(name); !apierrors.IsNotFound(err) {
			return m, name, err
		}
	}
	if m, err = ca.NewMaterial(cfg.CA.TrustDomain); err != nil {
		return ca.Material{}, "", err
	}
	_, err = secrets.Create(ctx, &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: ownSecret, Namespace: cfg.Namespace},
		Type:       ownType,
		Data:       map[string][]byte{"ca-cert.pem": m.Certificate, "ca-key.pem": m.Key},
	}, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		// Another replica was faster; its root is the mesh's.
		m, err = read(ownSecret)
	}
	return m, ownSecret, err
}

var errMaterial = errors.New("the secret does not hold an authority")

// materialOf reads a Secret: Istio's form, or the one of cert-manager.
func materialOf(s *corev1.Secret) (ca.Material, error) {
	m := ca.Material{
		Certificate: s.Data["ca-cert.pem"], Key: s.Data["ca-key.pem"],
		Chain: s.Data["cert-chain.pem"], Roots: s.Data["root-cert.pem"],
	}
	if len(m.Certificate) == 0 && len(s.Data[corev1.TLSCertKey]) > 0 {
		m = ca.Material{
			Certificate: s.Data[corev1.TLSCertKey], Key: s.Data[corev1.TLSPrivateKeyKey],
			Chain: s.Data[corev1.TLSCertKey], Roots: s.Data[corev1.ServiceAccountRootCAKey],
		}
	}
	if len(m.Certificate) == 0 || len(m.Key) == 0 {
		return ca.Material{}, fmt.Errorf("%w: %s/%s has no ca-cert.pem and ca-key.pem", errMaterial, s.Namespace, s.Name)
	}
	return m, nil
}

// Run follows the Secrets until ctx ends. What replaces the material in force is
// signed with from then on; what is not sound, or gone, leaves it as it is.
func (a *Authority) Run(ctx context.Context) error {
	ctx = kubeapi.Logging(ctx, a.cfg.Log)
	var watches sync.WaitGroup
	defer watches.Wait()
	for _, name := range []string{pluggedSecret, ownSecret} {
		objects := kubeapi.Objects(a.cfg.Clients.Core.CoreV1().Secrets(a.cfg.Namespace), fields.OneTermEqualSelector(metav1.ObjectNameField, name).String())
		watches.Go(func() {
			kubeapi.Follow(ctx, "secret "+name, objects, &corev1.Secret{}, kubeapi.Handler[*corev1.Secret]{
				Put: a.take,
				All: func(all []*corev1.Secret) {
					for _, s := range all {
						a.take(s)
					}
				},
				Gone: func(s *corev1.Secret) {
					a.cfg.Log.Warn("a secret of the authority is gone; what it held stays in force until the next start", "secret", s.Name)
				},
			})
		})
	}
	return nil
}

// take signs with what a Secret holds, unless one of precedence was seen.
func (a *Authority) take(s *corev1.Secret) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.from == pluggedSecret && s.Name == ownSecret {
		return
	}
	m, err := materialOf(s)
	if err == nil && m.Equal(a.now) {
		return
	}
	if err == nil {
		err = a.Replace(m)
	}
	if err != nil {
		a.cfg.Log.Error("the authority's secret is not sound; the last good one stays in force", "secret", s.Name, "err", err)
		return
	}
	a.now, a.from = m, s.Name
	a.cfg.Log.Info("the authority signs with other material", "secret", s.Name)
	a.cfg.OnChange()
}
