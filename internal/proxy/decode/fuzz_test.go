package decode

import (
	"reflect"
	"testing"

	"google.golang.org/protobuf/types/known/anypb"

	"github.com/heddle-mesh/heddle/internal/encode"
	"github.com/heddle-mesh/heddle/internal/plan"
)

// What decode accepts, encode can write, and decode reads the same from that: so
// an accepted value is one that the plan has words for.

func fuzz[T any](f *testing.F, typeURL string, seeds []string, decode func(*anypb.Any) (*T, error), encode func(*T) *anypb.Any) {
	for _, s := range seeds {
		f.Add(fromJSON(f, typeURL, s).Value)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		one, err := decode(&anypb.Any{TypeUrl: typeURL, Value: b})
		if err != nil {
			return
		}
		two, err := decode(encode(one))
		if err != nil {
			t.Fatalf("accepted, written, and then refused: %v", err)
		}
		three, err := decode(encode(two))
		if err != nil || !reflect.DeepEqual(two, three) {
			t.Fatalf("%+v became %+v (%v)", two, three, err)
		}
	})
}

func FuzzListener(f *testing.F) {
	fuzz(f, ListenerType, []string{listenerWith(tcpJSON), hcmWith(`"http_filters":[` + routerJSON + `]`)}, Listener, func(l *plan.Listener) *anypb.Any {
		set := encode.New().Plan(&plan.Plan{Listeners: []*plan.Listener{l}})
		if l.API != nil {
			// Written for gRPC, which is another way than the one read here.
			l = &plan.Listener{Name: l.Name, Bound: true, Chains: []*plan.FilterChain{{HTTP: l.API}}}
			set = encode.New().Plan(&plan.Plan{Listeners: []*plan.Listener{l}})
		}
		return set[ListenerType][0].Body
	})
}

func FuzzRoute(f *testing.F) {
	fuzz(f, RouteType, []string{
		routeWith(`{"match":{"prefix":"/"},"route":{"cluster":"c"}}`),
		routeWith(`{"match":{"path":"/"},"redirect":{"path_redirect":"/b"}},{"match":{"safe_regex":{"regex":"a"}},"direct_response":{"status":200}}`),
	}, Route, func(r *plan.RouteConfig) *anypb.Any {
		return encode.New().Plan(&plan.Plan{Routes: []*plan.RouteConfig{r}})[RouteType][0].Body
	})
}

func FuzzCluster(f *testing.F) {
	fuzz(f, ClusterType, []string{`{"name":"c","type":"STATIC"}`, `{"name":"c","type":"EDS","eds_cluster_config":{"eds_config":{"ads":{}}}}`},
		Cluster, func(c *plan.Cluster) *anypb.Any {
			return encode.New().Plan(&plan.Plan{Clusters: []*plan.Cluster{c}})[ClusterType][0].Body
		})
}

func FuzzLoadAssignment(f *testing.F) {
	fuzz(f, EndpointType, []string{`{"cluster_name":"e","endpoints":[{"lb_endpoints":[{"endpoint":{"address":{"socket_address":{"address":"10.0.0.1","port_value":1}}}}]}]}`},
		LoadAssignment, func(l *plan.LoadAssignment) *anypb.Any { return encode.New().LoadAssignment(l).Body })
}

func FuzzNameTable(f *testing.F) {
	f.Add([]byte{})
	table := &plan.NameTable{Names: []plan.NameEntry{{Host: "a.b", Registry: "Kubernetes"}}}
	f.Add(encode.New().Plan(&plan.Plan{Names: table})[NameTableType][0].Body.Value)
	f.Fuzz(func(t *testing.T, b []byte) {
		one, err := NameTable(&anypb.Any{TypeUrl: NameTableType, Value: b})
		if err != nil {
			return
		}
		two, err := NameTable(encode.New().Plan(&plan.Plan{Names: one})[NameTableType][0].Body)
		if err != nil || !reflect.DeepEqual(one, two) {
			t.Fatalf("%+v became %+v (%v)", one, two, err)
		}
	})
}
