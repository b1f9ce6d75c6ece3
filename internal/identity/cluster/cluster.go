// Package cluster is identity as a Kubernetes cluster vouches for it.
//
// [Tokens] checks service account tokens by asking the API server. [Authority]
// is the mesh's certificate authority with its key in a Secret. [Roots] puts the
// root certificates into a ConfigMap of every namespace, where proxies mount
// them from. [Access] asks whether a service account may read Secrets.
//
// Names and forms are Istio's, so that its installation, its proxies and its
// tools find what they look for.
package cluster

// Names of Secrets and ConfigMaps.
const (
	// pluggedSecret holds an authority that an operator plugs in.
	pluggedSecret = "cacerts"
	// ownSecret holds the root that the control plane made itself.
	ownSecret = "istio-ca-secret"
	ownType   = "istio.io/ca-root"
	// rootsConfigMap holds the root certificates under rootsKey.
	rootsConfigMap = "istio-ca-root-cert"
	rootsKey       = "root-cert.pem"
	// rootsLease is held by who writes these ConfigMaps.
	rootsLease = "istio-namespace-controller-election"
)
