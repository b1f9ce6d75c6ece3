package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/heddle-mesh/heddle/internal/identity/ca"
	"github.com/heddle-mesh/heddle/internal/lab/process"
)

const (
	tokenTTL = time.Hour
	// tokenRenewal leaves a proxy half the life of a token to use it.
	tokenRenewal = tokenTTL / 2
)

// identities gives proxies what they prove themselves with and what they check
// others against: a token of their service account, renewed in time, and the
// roots of the mesh.
type identities struct {
	issuer   *ca.Issuer
	rootPath string // where the control plane writes its root certificate
	chown    func(path string) error
	// serving is closed when the control plane has been ready for the first time.
	serving chan struct{}

	mu sync.Mutex
	// mu guards pods, those that have a proxy.
	pods map[*pod]bool
}

// The places of a proxy's files, as Istio's injector mounts them, and those that
// only the local mesh has.
const (
	tokenMount = "/var/run/secrets/tokens"
	rootMount  = "/var/run/secrets/istio"
	cacheMount = "/run/heddle/cache"
	infoMount  = "/run/heddle/podinfo"
)

// proxyMounts are the mounts of the pod's proxy.
func (p *pod) proxyMounts() []process.Mount {
	at := func(name string) string { return filepath.Join(p.dir, "proxy", name) }
	return []process.Mount{
		{Source: at("tokens"), Target: tokenMount, ReadOnly: true},
		{Source: at("roots"), Target: rootMount, ReadOnly: true},
		{Source: at("cache"), Target: cacheMount},
		{Source: at("podinfo"), Target: infoMount, ReadOnly: true},
	}
}

// add prepares the files of a pod's proxy, but for the roots.
func (i *identities) add(p *pod) error {
	for _, d := range []string{"tokens", "roots", "cache", "podinfo"} {
		path := filepath.Join(p.dir, "proxy", d)
		if err := os.MkdirAll(path, 0o700); err != nil {
			return err
		}
		if err := i.chown(path); err != nil {
			return err
		}
	}
	if err := i.renew(p); err != nil {
		return err
	}
	for _, f := range []struct{ name, text string }{
		{"labels", downwardMap(p.object.Labels)},
		{"annotations", downwardMap(p.object.Annotations)},
	} {
		if err := i.write(filepath.Join(p.dir, "proxy/podinfo", f.name), []byte(f.text)); err != nil {
			return err
		}
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.pods[p] = true
	return nil
}

func (i *identities) remove(p *pod) {
	i.mu.Lock()
	defer i.mu.Unlock()
	delete(i.pods, p)
}

func (i *identities) renew(p *pod) error {
	account := p.object.Spec.ServiceAccountName
	if account == "" {
		account = "default"
	}
	token, err := i.issuer.Issue(p.object.Namespace, account, tokenTTL)
	if err != nil {
		return fmt.Errorf("token of service account %s/%s: %w", p.object.Namespace, account, err)
	}
	return i.write(filepath.Join(p.dir, "proxy/tokens/istio-token"), []byte(token))
}

// write replaces a file at once, for the proxy's eyes only.
func (i *identities) write(path string, data []byte) error {
	tmp := path + ".new"
	if err := os.WriteFile(tmp, data, 0o600); err != nil {
		return err
	}
	if err := i.chown(tmp); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// firstServing is how long a proxy is held back for a control plane that is not
// there yet. Later on it would start with what it knew last.
const firstServing = 10 * time.Second

// wait returns when the control plane has made the roots of the mesh, and the
// pod's proxy has a copy of them. While the mesh starts, it waits for the
// control plane to serve, too: a proxy that finds it is ready sooner than one
// that has to come back.
func (i *identities) wait(ctx context.Context, p *pod) error {
	patience := time.NewTimer(firstServing)
	defer patience.Stop()
	select {
	case <-i.serving:
	case <-patience.C:
	case <-ctx.Done():
		return ctx.Err()
	}
	for {
		root, err := os.ReadFile(i.rootPath)
		if err == nil {
			return i.write(filepath.Join(p.dir, "proxy/roots/root-cert.pem"), root)
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if !sleep(ctx, 10*time.Millisecond) {
			return ctx.Err()
		}
	}
}

// run renews tokens until ctx ends.
func (i *identities) run(ctx context.Context, complain func(string)) error {
	for sleep(ctx, tokenRenewal) {
		i.mu.Lock()
		pods := make([]*pod, 0, len(i.pods))
		for p := range i.pods {
			pods = append(pods, p)
		}
		i.mu.Unlock()
		for _, p := range pods {
			if err := i.renew(p); err != nil {
				complain(fmt.Sprintf("pod %s: %v", p.key(), err))
			}
		}
	}
	return nil
}
