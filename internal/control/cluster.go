package control

import (
	"cmp"
	"context"
	"crypto/tls"
	"fmt"
	"net"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/heddle-mesh/heddle/internal/config"
	"github.com/heddle-mesh/heddle/internal/identity/ca"
	kubeid "github.com/heddle-mesh/heddle/internal/identity/cluster"
	"github.com/heddle-mesh/heddle/internal/kubeapi"
	"github.com/heddle-mesh/heddle/internal/life"
	"github.com/heddle-mesh/heddle/internal/model"
	"github.com/heddle-mesh/heddle/internal/source/kube"
	"github.com/heddle-mesh/heddle/internal/webhook"
)

// Cluster says which Kubernetes cluster is read, and as whom.
type Cluster struct {
	Clients   kubeapi.Clients
	Namespace string // of the control plane; "" means "istio-system"
	Revision  string // "" means "default"
	Replica   string // a name that no other replica has
}

// cluster is what a control plane does in Kubernetes beside reading it; nil
// outside.
type cluster struct {
	signs  *kubeid.Authority
	roots  *kubeid.Roots
	access *kubeid.Access
	hooks  *webhook.Server
	keeps  *webhook.Keeper
}

// joinCluster completes a configuration that is for Kubernetes. It reads there
// what must be known before anything can be served: the trust domain, and what
// to sign with.
func joinCluster(ctx context.Context, cfg *Config) (*cluster, error) {
	if cfg.Cluster == nil {
		return nil, nil
	}
	own := *cfg.Cluster
	own.Namespace = cmp.Or(own.Namespace, "istio-system")
	cfg.Cluster = &own
	if err := own.trustDomain(ctx, cfg); err != nil {
		return nil, err
	}
	cfg.ServerNames = append(serverNames(own), cfg.ServerNames...)
	if cfg.Tokens == nil {
		cfg.Tokens = kubeid.NewTokens(own.Clients, ca.Audience)
	}
	c := &cluster{access: kubeid.NewAccess(own.Clients)}
	c.roots = kubeid.NewRoots(kubeid.RootsConfig{
		Clients: own.Clients, Namespace: own.Namespace, Identity: own.Replica, Log: cfg.Log,
		PEM: func() []byte { return c.signs.RootPEM() },
	})
	var err error
	if c.signs, err = kubeid.Open(ctx, kubeid.AuthorityConfig{
		Clients: own.Clients, Namespace: own.Namespace, CA: ca.Config{TrustDomain: cfg.TrustDomain}, Log: cfg.Log, OnChange: c.roots.Changed,
	}); err != nil {
		return nil, err
	}
	c.hooks = webhook.NewServer(cfg.Log)
	if c.keeps, err = webhook.NewKeeper(webhook.KeeperConfig{
		Client: own.Clients.Core, Server: c.hooks, Namespace: own.Namespace, Revision: cmp.Or(own.Revision, "default"),
		Roots: func() []byte { return c.signs.RootPEM() }, Log: cfg.Log,
	}); err != nil {
		return nil, err
	}
	cfg.NewSource = func(onBatch func(config.Batch), onFaults func([]config.Fault)) (Source, error) {
		return kube.New(kube.Config{
			Name: cfg.ClusterID, Clients: own.Clients, RootNamespace: own.Namespace, Revision: own.Revision, Replica: own.Replica, Log: cfg.Log,
			OnBatch: onBatch, OnFaults: onFaults, OnNamespaces: c.roots.SetNamespaces,
		})
	}
	return c, nil
}

// trustDomain takes over the trust domain that the mesh's configuration names.
// It is part of every identity, so a change acts with the next start.
func (c Cluster) trustDomain(ctx context.Context, cfg *Config) error {
	name := kube.MeshConfigName(c.Revision)
	cm, err := c.Clients.Core.CoreV1().ConfigMaps(c.Namespace).Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("control: the mesh's configuration can not be read: %w", err)
	}
	m, _ := config.MeshConfig(&config.Object{Key: config.Key{Kind: config.ConfigMap, Namespace: cm.Namespace, Name: cm.Name}, Spec: (*corev1.ConfigMap)(cm)})
	if d := m.GetTrustDomain(); d != "" {
		cfg.TrustDomain = d
	}
	return nil
}

// serverNames are what proxies know the control plane of a cluster by.
func serverNames(c Cluster) []string {
	services := []string{"istiod", "heddled", "istiod-remote"}
	if c.Revision != "" && c.Revision != "default" {
		services = append(services, "istiod-"+c.Revision, "heddled-"+c.Revision)
	}
	var out []string
	for _, s := range services {
		out = append(out, s+"."+c.Namespace+".svc", s+"."+c.Namespace+".svc.cluster.local", s+"."+c.Namespace)
	}
	return out
}

// authority returns who signs.
func (c *cluster) authority(cfg Config) (*ca.CA, error) {
	if c == nil {
		return ca.New(ca.Config{StateDir: cfg.StateDir, TrustDomain: cfg.TrustDomain})
	}
	return c.signs.CA, nil
}

// maySecrets says who may read the Secrets of its own namespace. Outside of a
// cluster nobody grants access to them: a proxy that proved whose it is may.
func (c *cluster) maySecrets() func(context.Context, string, string) (bool, error) {
	if c == nil {
		return func(context.Context, string, string) (bool, error) { return true, nil }
	}
	return c.access.MayReadSecrets
}

// options are what the model is to know.
func (c *cluster) options(cfg Config) model.Options {
	o := model.Options{TrustDomain: cfg.TrustDomain, ClusterID: cfg.ClusterID}
	if c != nil {
		o.RootNamespace, o.MeshConfig = cfg.Cluster.Namespace, kube.MeshConfigName(cfg.Cluster.Revision)
	}
	return o
}

// webhooks is what answers the API server; nil outside of a cluster.
func (c *cluster) webhooks() *webhook.Server {
	if c == nil {
		return nil
	}
	return c.hooks
}

// webhookLease is what the replica holds that registers the webhooks.
const webhookLease = "istio-webhook-registration"

// start starts what is done in a cluster.
func (c *cluster) start(cfg Config, g *life.Group, hooks net.Listener) {
	if c == nil {
		return
	}
	if hooks != nil {
		door := tls.NewListener(hooks, &tls.Config{
			MinVersion:     tls.VersionTLS12,
			GetCertificate: c.signs.ServerCertificate(cfg.ServerNames).GetCertificate,
			NextProtos:     []string{"http/1.1"},
		})
		g.Go("webhooks", serveHTTP(c.hooks, door))
		g.Go("webhook settings", c.keeps.RunSettings)
		own := cfg.Cluster
		lease := webhookLease + "-" + cmp.Or(own.Revision, "default")
		g.Go("webhook registration", func(ctx context.Context) error {
			return kubeapi.Lead(ctx, own.Clients, own.Namespace, lease, own.Replica, c.keeps.RunWebhooks)
		})
	}
	g.Go("authority", c.signs.Run)
	g.Go("roots", c.roots.Run)
}
