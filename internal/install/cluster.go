package install

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// fieldManager is whose the fields are that an installation sets.
const fieldManager = "heddle-install"

// Cluster is a Kubernetes API server, spoken to in plain requests: server-side
// apply needs no client per kind.
type Cluster struct {
	http *http.Client
	base string
	// kinds caches what the server said about API groups.
	kinds map[string][]metav1.APIResource
}

// Connect reads a kubeconfig as kubectl does: the file given, or those of
// KUBECONFIG, or ~/.kube/config, or the pod's own account. It asks nothing.
func Connect(kubeconfig, contextName string) (*Cluster, error) {
	cfg, err := Kubeconfig(kubeconfig, contextName)
	if err != nil {
		return nil, err
	}
	return NewCluster(cfg)
}

// Kubeconfig reads a kubeconfig as Connect does.
func Kubeconfig(kubeconfig, contextName string) (*rest.Config, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = kubeconfig
	cfg, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{CurrentContext: contextName}).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("kubernetes: %w", err)
	}
	return cfg, nil
}

// NewCluster speaks to the server of cfg.
func NewCluster(cfg *rest.Config) (*Cluster, error) {
	cfg = rest.CopyConfig(cfg)
	cfg.UserAgent = "heddle"
	web, err := rest.HTTPClientFor(cfg)
	if err != nil {
		return nil, fmt.Errorf("kubernetes: %w", err)
	}
	base, _, err := rest.DefaultServerUrlFor(cfg)
	if err != nil {
		return nil, fmt.Errorf("kubernetes: %w", err)
	}
	return &Cluster{http: web, base: strings.TrimSuffix(base.String(), "/"), kinds: make(map[string][]metav1.APIResource)}, nil
}

// StatusError is an answer of the server that is no success.
type StatusError struct {
	Code    int
	Message string
}

func (e *StatusError) Error() string { return e.Message }

// IsNotFound says whether the server has no such object, or no such kind.
func IsNotFound(err error) bool {
	var s *StatusError
	return errors.As(err, &s) && s.Code == http.StatusNotFound
}

// maxAnswer bounds what one answer may take in memory.
const maxAnswer = 256 << 20

func (c *Cluster) do(ctx context.Context, method, path string, query url.Values, contentType string, body []byte, into any) error {
	target := c.base + path
	if len(query) > 0 {
		target += "?" + query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, method, target, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Accept", "application/json")
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	res, err := c.http.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	if err != nil {
		return err
	}
	if res.StatusCode/100 != 2 {
		var status metav1.Status
		if json.Unmarshal(b, &status) != nil || status.Message == "" {
			status.Message = fmt.Sprintf("%s: %s", res.Status, bytes.TrimSpace(b))
		}
		return &StatusError{Code: res.StatusCode, Message: status.Message}
	}
	if into == nil {
		return nil
	}
	return json.Unmarshal(b, into)
}

// Version is the server's, "v1.34.4".
func (c *Cluster) Version(ctx context.Context) (string, error) {
	var v struct {
		GitVersion string `json:"gitVersion"`
	}
	err := c.do(ctx, http.MethodGet, "/version", nil, "", nil, &v)
	return v.GitVersion, err
}

// root is where an API version's resources are.
func root(apiVersion string) string {
	if strings.Contains(apiVersion, "/") {
		return "/apis/" + apiVersion
	}
	return "/api/" + apiVersion
}

// resource finds what the server calls a kind. A kind may have come a moment
// ago, with its CRD: the server is asked again before it is missed.
func (c *Cluster) resource(ctx context.Context, apiVersion, kind string) (metav1.APIResource, error) {
	for range 2 {
		for _, r := range c.kinds[apiVersion] {
			if r.Kind == kind && !strings.Contains(r.Name, "/") {
				return r, nil
			}
		}
		var list metav1.APIResourceList
		if err := c.do(ctx, http.MethodGet, root(apiVersion), nil, "", nil, &list); err != nil {
			return metav1.APIResource{}, fmt.Errorf("%s %s: %w", apiVersion, kind, err)
		}
		c.kinds[apiVersion] = list.APIResources
	}
	return metav1.APIResource{}, &StatusError{Code: http.StatusNotFound, Message: "the server has no kind " + kind + " in " + apiVersion}
}

func (c *Cluster) path(ctx context.Context, apiVersion, kind, namespace, name string) (string, error) {
	r, err := c.resource(ctx, apiVersion, kind)
	if err != nil {
		return "", err
	}
	p := root(apiVersion)
	if r.Namespaced && namespace != "" {
		p += "/namespaces/" + url.PathEscape(namespace)
	}
	p += "/" + r.Name
	if name != "" {
		p += "/" + url.PathEscape(name)
	}
	return p, nil
}

// Apply makes or changes an object, by server-side apply. A field that somebody
// else has set is taken over: an installation means what it says. With dry the
// server says what would become of it.
func (c *Cluster) Apply(ctx context.Context, o Object, dry bool) (Object, error) {
	p, err := c.path(ctx, o.APIVersion(), o.Kind(), o.Namespace(), o.Name())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", o, err)
	}
	body, err := json.Marshal(o)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", o, err)
	}
	q := url.Values{"fieldManager": {fieldManager}, "force": {"true"}, "fieldValidation": {"Strict"}}
	if dry {
		q.Set("dryRun", "All")
	}
	var live Object
	if err := c.do(ctx, http.MethodPatch, p, q, "application/apply-patch+yaml", body, &live); err != nil {
		return nil, fmt.Errorf("%s: %w", o, err)
	}
	return live, nil
}

// Get returns an object.
func (c *Cluster) Get(ctx context.Context, apiVersion, kind, namespace, name string) (Object, error) {
	p, err := c.path(ctx, apiVersion, kind, namespace, name)
	if err != nil {
		return nil, err
	}
	var o Object
	err = c.do(ctx, http.MethodGet, p, nil, "", nil, &o)
	return o, err
}

// List returns the objects of a kind with the labels. A kind that the server has
// not has no objects.
func (c *Cluster) List(ctx context.Context, apiVersion, kind, namespace, selector string) ([]Object, error) {
	p, err := c.path(ctx, apiVersion, kind, namespace, "")
	if IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var list struct {
		Items []Object `json:"items"`
	}
	q := url.Values{}
	if selector != "" {
		q.Set("labelSelector", selector)
	}
	if err := c.do(ctx, http.MethodGet, p, q, "", nil, &list); err != nil {
		return nil, fmt.Errorf("%s: %w", kind, err)
	}
	for _, o := range list.Items { // a list says it once for all
		o["apiVersion"], o["kind"] = apiVersion, kind
	}
	return list.Items, nil
}

// Delete removes an object; that it is gone already is no error.
func (c *Cluster) Delete(ctx context.Context, o Object) error {
	p, err := c.path(ctx, o.APIVersion(), o.Kind(), o.Namespace(), o.Name())
	if err == nil {
		err = c.do(ctx, http.MethodDelete, p, url.Values{"propagationPolicy": {"Background"}}, "", nil, nil)
	}
	if err != nil && !IsNotFound(err) {
		return fmt.Errorf("%s: %w", o, err)
	}
	return nil
}

// settle waits for d, or until ctx ends.
func settle(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
