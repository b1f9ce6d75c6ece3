package lab

import (
	"net/netip"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/heddle-mesh/heddle/internal/config"
)

const (
	clusterDomain   = "cluster.local"
	nodeName        = "heddle"
	systemNamespace = "istio-system"
	meshConfigName  = "istio" // the ConfigMap with the mesh's settings
	istiodName      = "istiod"
	istiodHost      = istiodName + "." + systemNamespace + ".svc"
	istiodPort      = 15012
	istiodAddress   = istiodHost + ":15012"
)

// dnsAddress is the cluster's DNS server, where kubeadm puts it too.
var dnsAddress = netip.MustParseAddr("10.96.0.10")

// builtins are the objects that every mesh has: the control plane as a pod with
// its Service, the cluster's DNS as a Service, and their namespaces. What a user
// writes under the same name takes their place.
func builtins(controlPlane []string, now time.Time) []*config.Object {
	namespace := func(name string) *config.Object {
		return object(config.Namespace, "v1", &corev1.Namespace{
			TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"},
			ObjectMeta: metav1.ObjectMeta{Name: name},
			Status:     corev1.NamespaceStatus{Phase: corev1.NamespaceActive},
		}, now)
	}
	labels := map[string]string{"app": istiodName, "istio": "pilot", injectLabel: "false"}
	return []*config.Object{
		namespace("default"), namespace("kube-system"), namespace(systemNamespace),
		object(config.ServiceAccount, "v1", &corev1.ServiceAccount{
			TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "ServiceAccount"},
			ObjectMeta: metav1.ObjectMeta{Name: istiodName, Namespace: systemNamespace},
		}, now),
		object(config.Service, "v1", &corev1.Service{
			TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Service"},
			ObjectMeta: metav1.ObjectMeta{Name: istiodName, Namespace: systemNamespace, Labels: labels},
			Spec: corev1.ServiceSpec{
				Selector: map[string]string{"app": istiodName},
				Ports: []corev1.ServicePort{
					{Name: "grpc-xds", Port: 15010},
					{Name: "https-dns", Port: 15012},
					{Name: "http-monitoring", Port: 15014},
				},
			},
		}, now),
		object(config.Service, "v1", &corev1.Service{
			TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Service"},
			ObjectMeta: metav1.ObjectMeta{Name: "kube-dns", Namespace: "kube-system"},
			Spec: corev1.ServiceSpec{
				ClusterIP:  dnsAddress.String(),
				ClusterIPs: []string{dnsAddress.String()},
				Ports: []corev1.ServicePort{
					{Name: "dns", Port: 53, Protocol: corev1.ProtocolUDP},
					{Name: "dns-tcp", Port: 53, Protocol: corev1.ProtocolTCP},
				},
			},
		}, now),
		object(config.Pod, "v1", &corev1.Pod{
			TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
			ObjectMeta: metav1.ObjectMeta{Name: istiodName + "-0", Namespace: systemNamespace, Labels: labels},
			Spec: corev1.PodSpec{
				ServiceAccountName: istiodName,
				Containers: []corev1.Container{{
					Name:           "discovery",
					Command:        controlPlane,
					Ports:          []corev1.ContainerPort{{Name: "grpc-xds", ContainerPort: 15010}, {Name: "https-dns", ContainerPort: 15012}, {Name: "http-monitoring", ContainerPort: 15014}},
					ReadinessProbe: istiodReadiness(),
				}},
			},
		}, now),
	}
}

// istiodReadiness is that the first world is there to be served.
func istiodReadiness() *corev1.Probe {
	return &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/ready", Port: intstr.FromInt32(15014)}}}
}

// metaObject is what every Kubernetes type is.
type metaObject interface{ metav1.Object }

func object(kind config.Kind, apiVersion string, o metaObject, created time.Time) *config.Object {
	return &config.Object{
		Key:        config.Key{Kind: kind, Namespace: o.GetNamespace(), Name: o.GetName()},
		APIVersion: apiVersion,
		Labels:     o.GetLabels(), Annotations: o.GetAnnotations(),
		Created: created,
		Spec:    o,
	}
}

// layout is where things are in the state directory.
type layout struct{ dir string }

func (l layout) objects() string  { return filepath.Join(l.dir, "objects") }
func (l layout) staging() string  { return filepath.Join(l.dir, "staging") }
func (l layout) pods() string     { return filepath.Join(l.dir, "pods") }
func (l layout) scratch() string  { return filepath.Join(l.dir, "scratch") }
func (l layout) ca() string       { return filepath.Join(l.dir, "ca") }
func (l layout) rootCert() string { return filepath.Join(l.dir, "ca", "root-cert.pem") }
func (l layout) tokenKey() string { return filepath.Join(l.dir, "ca", "token-key.pem") }
func (l layout) lock() string     { return filepath.Join(l.dir, "lock") }
func (l layout) control() string  { return filepath.Join(l.dir, "control.sock") }
func (l layout) exec() string     { return filepath.Join(l.dir, "exec.sock") }
