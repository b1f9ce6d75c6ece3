package model

import (
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	meshconfig "istio.io/api/mesh/v1alpha1"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/heddle-mesh/heddle/internal/config"
)

// Mesh holds the mesh-wide settings: MeshConfig with its defaults applied.
type Mesh struct {
	TrustDomain        string
	TrustDomainAliases []string
	RootNamespace      string
	// RegistryOnly refuses calls to what the mesh does not know.
	RegistryOnly bool
	AutoMTLS     bool
	// UpgradeToHTTP2 makes sidecars speak HTTP/2 to ports of HTTP/1.1.
	UpgradeToHTTP2           bool
	AccessLogFile            string
	ConnectTimeout           time.Duration
	ProtocolDetectionTimeout time.Duration
	// GatewayHops is how many proxies stand in front of gateways, and GatewayClientCert
	// what these do with x-forwarded-client-cert.
	GatewayHops       uint32
	GatewayClientCert meshconfig.ForwardClientCertDetails
	// Locality is where calls go by preference, unless a rule says so; nil is the
	// built-in.
	Locality *networking.LocalityLoadBalancerSetting
	// ProxyProtocol says that callers of gateways begin with the PROXY protocol's
	// header.
	ProxyProtocol bool
	// DefaultRetry is what routes without their own do; nil is the built-in.
	DefaultRetry *networking.HTTPRetry

	// Providers are what policies may refer to, by name.
	Providers map[string]*meshconfig.MeshConfig_ExtensionProvider

	ServiceExportTo         []string
	VirtualServiceExportTo  []string
	DestinationRuleExportTo []string

	Print Print
}

// meshConfig is where MeshConfig lives.
func (o Options) meshConfig() config.Key {
	return config.Key{Kind: config.ConfigMap, Namespace: o.RootNamespace, Name: o.MeshConfig}
}

// connectTimeout is MeshConfig's default.
const connectTimeout = 10 * time.Second

// newMesh reads MeshConfig from its ConfigMap, which may be nil. What cannot be
// read leaves the defaults: sources report it, and a mesh with default settings
// is better than none.
func newMesh(opts Options, cm *config.Object) *Mesh {
	in := &meshconfig.MeshConfig{}
	if cm != nil {
		if read, _ := config.MeshConfig(cm); read != nil {
			in = read
		}
	}
	m := &Mesh{
		TrustDomain:              or(in.TrustDomain, opts.TrustDomain),
		TrustDomainAliases:       in.TrustDomainAliases,
		RootNamespace:            or(in.RootNamespace, opts.RootNamespace),
		AutoMTLS:                 in.EnableAutoMtls == nil || in.EnableAutoMtls.Value,
		UpgradeToHTTP2:           in.H2UpgradePolicy == meshconfig.MeshConfig_UPGRADE,
		AccessLogFile:            in.AccessLogFile,
		ConnectTimeout:           connectTimeout,
		ProtocolDetectionTimeout: duration(in.ProtocolDetectionTimeout),
		GatewayHops:              in.DefaultConfig.GetGatewayTopology().GetNumTrustedProxies(),
		GatewayClientCert:        in.DefaultConfig.GetGatewayTopology().GetForwardClientCertDetails(),
		DefaultRetry:             in.DefaultHttpRetryPolicy,
		Locality:                 in.LocalityLbSetting,
		ProxyProtocol:            in.GetDefaultConfig().GetGatewayTopology().GetProxyProtocol() != nil,
		ServiceExportTo:          in.DefaultServiceExportTo,
		VirtualServiceExportTo:   in.DefaultVirtualServiceExportTo,
		DestinationRuleExportTo:  in.DefaultDestinationRuleExportTo,
	}
	m.Providers = map[string]*meshconfig.MeshConfig_ExtensionProvider{}
	for _, p := range in.ExtensionProviders {
		m.Providers[p.Name] = p
	}
	if d := duration(in.ConnectTimeout); d > 0 {
		m.ConnectTimeout = d
	}
	if p := in.OutboundTrafficPolicy; p != nil {
		// The third mode, ALLOW_ANY_DYNAMIC_DNS, lets through no less than
		// ALLOW_ANY does; its resolving of host names is not there yet.
		m.RegistryOnly = p.Mode == meshconfig.MeshConfig_OutboundTrafficPolicy_REGISTRY_ONLY
	}

	p := NewPrinter()
	p.Text(m.TrustDomain, m.RootNamespace, m.AccessLogFile)
	p.Text(m.TrustDomainAliases...)
	p.Flag(m.RegistryOnly)
	p.Flag(m.AutoMTLS)
	p.Flag(m.ProxyProtocol)
	p.Flag(m.UpgradeToHTTP2)
	p.Number(uint64(m.ConnectTimeout))
	p.Number(uint64(m.ProtocolDetectionTimeout))
	p.Number(uint64(m.GatewayHops)<<32 | uint64(m.GatewayClientCert))
	p.Flag(m.DefaultRetry != nil)
	if m.DefaultRetry != nil {
		p.message(m.DefaultRetry)
	}
	p.Flag(m.Locality != nil)
	if m.Locality != nil {
		p.message(m.Locality)
	}
	p.Text(m.ServiceExportTo...)
	p.Text(m.VirtualServiceExportTo...)
	p.Text(m.DestinationRuleExportTo...)
	p.Number(uint64(len(in.ExtensionProviders)))
	for _, e := range in.ExtensionProviders {
		p.message(e)
	}
	m.Print = p.Sum()
	return m
}

func duration(d *durationpb.Duration) time.Duration {
	if d == nil {
		return 0
	}
	return d.AsDuration()
}

func or(a, b string) string {
	if a != "" {
		return a
	}
	return b
}
