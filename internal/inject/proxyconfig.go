package inject

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	meshv1alpha1 "istio.io/api/mesh/v1alpha1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

// builtIn is the ProxyConfig of a mesh that says nothing. Source: Istio,
// pkg/config/mesh.
func builtIn() *meshv1alpha1.ProxyConfig {
	return &meshv1alpha1.ProxyConfig{
		ConfigPath:               "./etc/istio/proxy",
		ClusterName:              &meshv1alpha1.ProxyConfig_ServiceCluster{ServiceCluster: "istio-proxy"},
		DrainDuration:            durationpb.New(45 * time.Second),
		TerminationDrainDuration: durationpb.New(5 * time.Second),
		ProxyAdminPort:           15000,
		StatusPort:               15020,
		StatNameLength:           189,
		DiscoveryAddress:         "istiod.istio-system.svc:15012",
	}
}

// defaultMesh are the mesh's settings that templates may ask for.
func defaultMesh() *meshv1alpha1.MeshConfig {
	return &meshv1alpha1.MeshConfig{
		TrustDomain:            "cluster.local",
		RootNamespace:          "istio-system",
		ProxyListenPort:        15001,
		ProxyInboundListenPort: 15006,
		EnablePrometheusMerge:  wrapperspb.Bool(true),
	}
}

// readMesh reads the mesh's settings. Fields of newer versions are passed over:
// the control plane, which reads them too, reports them.
func readMesh(text string) (*meshv1alpha1.MeshConfig, error) {
	mesh := new(meshv1alpha1.MeshConfig)
	if err := fromYAML(text, mesh, true); err != nil {
		return nil, fmt.Errorf("mesh settings: %w", err)
	}
	return mesh, nil
}

func fromYAML(text string, into proto.Message, lenient bool) error {
	b, err := yaml.YAMLToJSON([]byte(text))
	if err != nil {
		return err
	}
	if string(b) == "null" {
		return nil
	}
	if err := (protojson.UnmarshalOptions{DiscardUnknown: lenient}).Unmarshal(b, into); err != nil {
		// protobuf puts odd blanks in at random, so that nobody relies on its words.
		return errors.New(strings.ReplaceAll(err.Error(), "\u00a0", " "))
	}
	return nil
}

// mergeFields sets the fields of base that are set in over. Maps are joined; all
// else is replaced as a whole: half a duration of one and half of another would
// be neither.
func mergeFields(base, over proto.Message) {
	b := base.ProtoReflect()
	over.ProtoReflect().Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		if f.IsMap() {
			into := b.Mutable(f).Map()
			v.Map().Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
				into.Set(k, v)
				return true
			})
			return true
		}
		b.Set(f, v)
		return true
	})
}

// defaultProxyConfig is that of the mesh.
func (i *Injector) defaultProxyConfig() *meshv1alpha1.ProxyConfig {
	pc := builtIn()
	if port := i.values.Global.Proxy.StatusPort; port != nil {
		pc.StatusPort = *port
	}
	if d := i.cfg.Mesh.GetDefaultConfig(); d != nil {
		mergeFields(pc, proto.Clone(d))
	}
	return pc
}

// proxyConfig is that of the pod's proxy: the mesh's, and what the pod's own
// annotations say.
func (i *Injector) proxyConfig(pod *corev1.Pod) (*meshv1alpha1.ProxyConfig, error) {
	pc := i.defaultProxyConfig()
	own := new(meshv1alpha1.ProxyConfig)
	if err := fromYAML(pod.Annotations[configAnnotation], own, false); err != nil {
		return nil, fmt.Errorf("annotation %s: %w", configAnnotation, err)
	}
	mergeFields(pc, own)
	if v := pod.Annotations["sidecar.istio.io/discoveryAddress"]; v != "" {
		pc.DiscoveryAddress = v
	}
	if v, ok := pod.Annotations["status.sidecar.istio.io/port"]; ok {
		n, _ := strconv.ParseUint(v, 10, 16) // checked before
		pc.StatusPort = int32(n)
	}
	switch pod.Annotations["sidecar.istio.io/interceptionMode"] {
	case "NONE":
		pc.InterceptionMode = meshv1alpha1.ProxyConfig_NONE
	case "REDIRECT", "TPROXY":
		pc.InterceptionMode = meshv1alpha1.ProxyConfig_REDIRECT
	}
	return pc, nil
}

// withoutDefaults is pc without what a proxy does anyway.
func withoutDefaults(pc *meshv1alpha1.ProxyConfig) *meshv1alpha1.ProxyConfig {
	out := proto.Clone(pc).(*meshv1alpha1.ProxyConfig)
	def, m := builtIn().ProtoReflect(), out.ProtoReflect()
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		if def.Has(f) && def.Get(f).Equal(v) {
			m.Clear(f)
		}
		return true
	})
	return out
}
