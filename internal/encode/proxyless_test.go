package encode

import (
	"regexp"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"

	"github.com/heddle-mesh/heddle/internal/plan"
)

// TestForGRPC holds the differences that gRPC's xDS client asks for; that it
// accepts the rest is shown with the client itself, in package control.
func TestForGRPC(t *testing.T) {
	san := "spiffe://cluster.local/ns/default/sa/a"
	set := New().Plan(&plan.Plan{
		Listeners: []*plan.Listener{{Name: "a.default:80", API: &plan.HTTPChain{RouteName: "r", Metrics: true}}},
		Clusters: []*plan.Cluster{
			{Name: "auto", TLS: &plan.ClientTLS{Auto: true, Certificate: "default", Roots: "ROOTCA"}},
			{Name: "mutual", TLS: &plan.ClientTLS{Certificate: "default", Roots: "ROOTCA", SubjectAltNames: []string{san}}},
		},
		Routes: []*plan.RouteConfig{{Name: "r", Hosts: []*plan.VirtualHost{{Name: "h", Domains: []string{"*"}, Routes: []*plan.Route{{
			Match:    plan.RouteMatch{Path: plan.PathMatch{Kind: plan.PathSegmentPrefix, Value: "/a.b"}},
			Clusters: []plan.WeightedCluster{{Cluster: "auto"}}, Timeout: 5, Retry: &plan.Retry{},
		}}}}}},
	})

	// gRPC has no choice of socket by endpoint.
	c := &clusterv3.Cluster{}
	if err := set[ClusterType][0].Body.UnmarshalTo(c); err != nil {
		t.Fatal(err)
	}
	if len(c.GetTransportSocketMatches()) > 0 || c.GetTransportSocket() != nil {
		t.Errorf("auto mTLS became %v", c)
	}
	if err := set[ClusterType][1].Body.UnmarshalTo(c); err != nil {
		t.Fatal(err)
	}
	tls := &tlsv3.UpstreamTlsContext{}
	if err := c.GetTransportSocket().GetTypedConfig().UnmarshalTo(tls); err != nil {
		t.Fatal(err)
	}
	common := tls.GetCommonTlsContext()
	v := common.GetCombinedValidationContext().GetDefaultValidationContext()
	if common.GetTlsParams() != nil || len(common.GetTlsCertificateSdsSecretConfigs()) > 0 ||
		common.GetTlsCertificateProviderInstance().GetInstanceName() != "default" ||
		v.GetCaCertificateProviderInstance().GetCertificateName() != "ROOTCA" ||
		v.GetMatchSubjectAltNames()[0].GetExact() != san {
		t.Errorf("TLS is %v", common)
	}

	r := &routev3.RouteConfiguration{}
	if err := set[RouteType][0].Body.UnmarshalTo(r); err != nil {
		t.Fatal(err)
	}
	rule := r.GetVirtualHosts()[0].GetRoutes()[0]
	// gRPC matches the whole path.
	re := regexp.MustCompile("^(?:" + rule.GetMatch().GetSafeRegex().GetRegex() + ")$")
	for path, want := range map[string]bool{"/a.b": true, "/a.b/c": true, "/a.bc": false, "/axb": false} {
		if re.MatchString(path) != want {
			t.Errorf("the pattern %v matches %s: %v", re, path, !want)
		}
	}
	if rule.GetRoute().GetRetryPolicy() != nil {
		t.Error("gRPC would refuse a retry policy without retries")
	}
	if rule.GetRoute().GetMaxStreamDuration().GetMaxStreamDuration().AsDuration() != 5 {
		t.Error("gRPC does not hear of the timeout")
	}
}
