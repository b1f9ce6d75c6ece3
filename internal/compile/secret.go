package compile

import (
	"strings"

	"github.com/heddle-mesh/heddle/internal/model"
	"github.com/heddle-mesh/heddle/internal/plan"
)

// Names of secrets, as Istio's proxies ask for them.
const (
	// secretScheme names one of the proxy's own namespace: "kubernetes://name", or
	// "kubernetes://namespace/name".
	secretScheme = "kubernetes://"
	// gatewaySecretScheme is for a Gateway of the Gateway API:
	// "kubernetes-gateway://namespace/name".
	gatewaySecretScheme = "kubernetes-gateway://"
	// rootsSuffix asks for the roots in the secret, or for a secret of their own
	// that has the suffix in its name.
	rootsSuffix = "-cacert"
)

// Secret answers for one secret by the name under which a proxy asks for it. It
// reports false if there is no such thing, or if the proxy may not have it
// because it is of another namespace. Whether its account may read Secrets at
// all, the caller has asked.
func Secret(w *model.World, p *Proxy, name string) (*plan.Secret, bool) {
	path, ok := strings.CutPrefix(name, secretScheme)
	if !ok {
		if path, ok = strings.CutPrefix(name, gatewaySecretScheme); !ok {
			return nil, false
		}
	}
	namespace, key, qualified := strings.Cut(path, "/")
	if !qualified {
		namespace, key = p.Namespace, path
	}
	if namespace != p.Namespace || key == "" {
		return nil, false
	}
	if base, roots := strings.CutSuffix(key, rootsSuffix); roots {
		s := w.Secret(namespace, key)
		if s == nil || s.Roots == nil {
			s = w.Secret(namespace, base)
		}
		if s == nil || s.Roots == nil {
			return nil, false
		}
		return &plan.Secret{Name: name, Roots: s.Roots, CRL: s.CRL}, true
	}
	s := w.Secret(namespace, key)
	if s == nil || s.Certificate == nil || s.Key == nil {
		return nil, false
	}
	return &plan.Secret{Name: name, Certificate: s.Certificate, Key: s.Key, OCSPStaple: s.OCSPStaple}, true
}
