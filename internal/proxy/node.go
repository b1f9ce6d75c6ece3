package proxy

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/heddle-mesh/heddle/internal/proxy/mtls"
)

// Workload says whose proxy this is, in the words of Istio's node metadata.
type Workload struct {
	Gateway        bool // a gateway's proxy: node type router
	PodName        string
	Namespace      string
	ServiceAccount string
	IPs            []netip.Addr
	ClusterID      string // "Kubernetes"
	TrustDomain    string // "cluster.local"
	DNSDomain      string // "default.svc.cluster.local"
	Labels         map[string]string
	Annotations    map[string]string
	WorkloadName   string // of the Deployment
	Owner          string // "kubernetes://apis/apps/v1/namespaces/default/deployments/reviews-v1"
	MeshID         string
	Network        string
	NodeName       string
	Region, Zone   string
	// CertTTL is the life that is asked for; 0 leaves it to the authority.
	CertTTL time.Duration
	// Metadata is added as it is: the values of ISTIO_META_* by their names
	// without the prefix, text or decoded JSON.
	Metadata map[string]any
}

func (w *Workload) check() error {
	var errs []error
	for _, f := range []struct{ name, value string }{
		{"PodName", w.PodName}, {"Namespace", w.Namespace}, {"ServiceAccount", w.ServiceAccount}, {"TrustDomain", w.TrustDomain},
	} {
		if f.value == "" {
			errs = append(errs, fmt.Errorf("%s is missing", f.name))
		}
	}
	if len(w.IPs) == 0 {
		errs = append(errs, errors.New("IPs is missing"))
	}
	return errors.Join(errs...)
}

// id is the node's: "sidecar~10.0.0.7~reviews-v1-5f.default~default.svc.cluster.local".
func (w *Workload) id() string {
	kind := "sidecar"
	if w.Gateway {
		kind = "router"
	}
	return strings.Join([]string{kind, w.IPs[0].String(), w.PodName + "." + w.Namespace, cmp.Or(w.DNSDomain, w.Namespace+".svc.cluster.local")}, "~")
}

// node is what the proxy says of itself to the control plane.
func (w *Workload) node(version string) *corev3.Node {
	texts := func(m map[string]string) map[string]any {
		out := make(map[string]any, len(m))
		for k, v := range m {
			out[k] = v
		}
		return out
	}
	ips := make([]string, len(w.IPs))
	for i, ip := range w.IPs {
		ips[i] = ip.String()
	}
	m := maps.Clone(w.Metadata)
	if m == nil {
		m = make(map[string]any)
	}
	m["INSTANCE_IPS"] = strings.Join(ips, ",")
	m["LABELS"] = texts(w.Labels)
	if len(w.Annotations) > 0 {
		m["ANNOTATIONS"] = texts(w.Annotations)
	}
	for k, v := range map[string]string{
		"NAME": w.PodName, "NAMESPACE": w.Namespace, "SERVICE_ACCOUNT": w.ServiceAccount, "CLUSTER_ID": w.ClusterID,
		"WORKLOAD_NAME": w.WorkloadName, "OWNER": w.Owner, "MESH_ID": w.MeshID, "NETWORK": w.Network, "NODE_NAME": w.NodeName,
		"ISTIO_VERSION": version,
	} {
		if v != "" {
			m[k] = v
		}
	}
	// What marks a node as a proxy for istioctl proxy-status.
	if _, ok := m["PROXY_CONFIG"]; !ok {
		m["PROXY_CONFIG"] = map[string]any{}
	}
	for _, k := range slices.Sorted(maps.Keys(m)) {
		if _, err := structpb.NewValue(m[k]); err != nil {
			delete(m, k) // a value that no JSON has: nobody could read it
		}
	}
	metadata, err := structpb.NewStruct(m)
	if err != nil {
		metadata = &structpb.Struct{} // each value was tried above
	}
	return &corev3.Node{
		Id: w.id(), Cluster: cmp.Or(w.metadataName(), "istio-proxy"), Metadata: metadata,
		Locality:             &corev3.Locality{Region: w.Region, Zone: w.Zone},
		UserAgentName:        "heddle",
		UserAgentVersionType: &corev3.Node_UserAgentVersion{UserAgentVersion: version},
	}
}

// metadataName is the node's cluster in Istio's form, "reviews.default".
func (w *Workload) metadataName() string {
	meta := w.metadata()
	own := meta.Workload()
	if own.CanonicalName == "" {
		return ""
	}
	return own.CanonicalName + "." + w.Namespace
}

// metadata is what the proxy says of itself to its peers.
func (w *Workload) metadata() *mtls.Metadata {
	return &mtls.Metadata{
		ID: w.id(), Name: w.PodName, Namespace: w.Namespace, Owner: w.Owner, WorkloadName: cmp.Or(w.WorkloadName, w.PodName),
		ClusterID: w.ClusterID, Labels: w.Labels,
	}
}
