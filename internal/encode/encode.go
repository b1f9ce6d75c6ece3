// Package encode turns a plan into Envoy's xDS v3 resources. Equal plans give
// equal bytes, so a resource's version is the hash of its bytes; each distinct
// resource is encoded once, and all proxies that see it share the bytes.
//
// What is written is what Envoy itself, and Istio's tools, would expect to read:
// Istio's names for filters, secrets and metadata, every reference by ADS. Parts
// for proxyless gRPC differ where gRPC's own client asks for it; see [proxyless].
package encode

import (
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strings"
	"sync"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/heddle-mesh/heddle/internal/plan"
)

// The resource types served; the short names are the ones people use.
const (
	ListenerType  = "type.googleapis.com/envoy.config.listener.v3.Listener"
	RouteType     = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
	ClusterType   = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	EndpointType  = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
	NameTableType = "type.googleapis.com/istio.networking.nds.v1.NameTable"
	SecretType    = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
)

// NameTableName is the name of the one resource of NameTableType.
const NameTableName = "nametable"

// Resource is one encoded resource. It is immutable and shared.
type Resource struct {
	Name    string
	Version string // hash of Body, short
	Body    *anypb.Any
}

// Set holds a proxy's resources by type, each list sorted by name.
type Set map[string][]*Resource

// generation is how many resources one half of the cache holds. A mesh with
// more distinct resources still works; it encodes some of them again.
const generation = 1 << 15

// Encoder encodes, and remembers what it encoded by content. It is safe for
// concurrent use.
type Encoder struct {
	mu sync.Mutex
	// mu guards the two halves of the cache. When young is full it becomes old,
	// and what was old and not asked for since is forgotten.
	young, old map[fingerprint]*Resource
}

// New returns an Encoder with an empty cache.
func New() *Encoder {
	return &Encoder{young: map[fingerprint]*Resource{}}
}

// Plan encodes a plan. Of several elements with one name the first stays, since
// a response that names a resource twice must be refused by the client.
func (e *Encoder) Plan(p *plan.Plan) Set {
	forGRPC := proxyless(p)
	s := Set{}
	for _, l := range p.Listeners {
		s[ListenerType] = append(s[ListenerType], e.resource(ListenerType, l.Name, l, forGRPC, func() []byte {
			return marshal(listener(l, forGRPC))
		}))
	}
	for _, r := range p.Routes {
		s[RouteType] = append(s[RouteType], e.resource(RouteType, r.Name, r, forGRPC, func() []byte {
			return marshal(routeConfig(r, forGRPC))
		}))
	}
	for _, c := range p.Clusters {
		s[ClusterType] = append(s[ClusterType], e.resource(ClusterType, c.Name, c, forGRPC, func() []byte {
			return marshal(cluster(c, forGRPC))
		}))
	}
	if p.Names != nil {
		s[NameTableType] = append(s[NameTableType], e.resource(NameTableType, NameTableName, p.Names, false, func() []byte {
			return nameTable(p.Names)
		}))
	}
	for typ, list := range s {
		slices.SortStableFunc(list, func(a, b *Resource) int { return strings.Compare(a.Name, b.Name) })
		s[typ] = slices.CompactFunc(list, func(a, b *Resource) bool { return a.Name == b.Name })
	}
	return s
}

// LoadAssignment encodes the endpoints of one cluster.
func (e *Encoder) LoadAssignment(l *plan.LoadAssignment) *Resource {
	return e.resource(EndpointType, l.Cluster, l, false, func() []byte { return marshal(loadAssignment(l)) })
}

// proxyless reports whether a plan is for gRPC's own xDS client, which reads less
// than Envoy does: only it has listeners without a socket, or asks for the ones
// that its server side needs by Istio's fixed prefix.
func proxyless(p *plan.Plan) bool {
	return slices.ContainsFunc(p.Listeners, func(l *plan.Listener) bool {
		return l.API != nil || strings.HasPrefix(l.Name, "xds.istio.io/grpc/lds/inbound/")
	})
}

// resource returns the one Resource for an element of the plan, encoding it if
// its content was not seen before.
func (e *Encoder) resource(typeURL, name string, element any, forGRPC bool, encode func() []byte) *Resource {
	key := fingerprintOf(typeURL, forGRPC, element)
	if r := e.lookup(key, nil); r != nil {
		return r
	}
	body := encode()
	sum := sha256.Sum256(body)
	return e.lookup(key, &Resource{
		Name:    name,
		Version: hex.EncodeToString(sum[:8]),
		Body:    &anypb.Any{TypeUrl: typeURL, Value: body},
	})
}

// lookup returns the remembered resource for a key, or else remembers fresh, if
// that is not nil, and returns it.
func (e *Encoder) lookup(key fingerprint, fresh *Resource) *Resource {
	e.mu.Lock()
	defer e.mu.Unlock()
	if r := e.young[key]; r != nil {
		return r
	}
	r := e.old[key]
	if r == nil {
		r = fresh
	}
	if r == nil {
		return nil
	}
	if len(e.young) >= generation {
		e.young, e.old = map[fingerprint]*Resource{}, e.young
	}
	e.young[key] = r
	return r
}

// marshal encodes a message so that equal messages give equal bytes.
func marshal(m proto.Message) []byte {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		// Only a string that is not UTF-8 can fail, and no YAML or JSON decoder
		// lets one in.
		panic("encode: " + err.Error())
	}
	return b
}

// pack puts a message into an Any.
func pack(m proto.Message) *anypb.Any {
	return &anypb.Any{TypeUrl: "type.googleapis.com/" + string(m.ProtoReflect().Descriptor().FullName()), Value: marshal(m)}
}
