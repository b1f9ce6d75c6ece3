// Package plan is the intermediate form between what an operator wrote and what
// goes over the wire: listeners, filter chains, routes, clusters and endpoints,
// with neither protobuf nor Kubernetes in it.
//
// The control plane's compile step makes a [Plan] from a view of the world and
// encode turns it into Envoy's xDS v3 messages. The proxy walks the same road
// back: decode makes the values of this package from xDS messages, and a
// snapshot indexes them. So decode(encode(p)) = p, which a test holds to.
//
// Values are plain data. Whoever makes one may change it until it is handed on;
// after that nobody does. Slices are in a deterministic order chosen by the
// compile step, so that equal input gives equal plans, bytes and versions.
//
// Names follow Istio's, because users and tools read them: see the comments on
// the Name fields.
package plan

import (
	"net/netip"
	"time"
)

// Plan is everything one class of proxy is told, apart from endpoints, which
// take the short road past the compile step.
type Plan struct {
	Listeners []*Listener
	Routes    []*RouteConfig
	Clusters  []*Cluster
	Names     *NameTable // nil for proxies without DNS capture
}

// Direction says on which side of its workload a listener stands.
type Direction uint8

const (
	Outbound Direction = iota // the workload calls
	Inbound                   // the workload is called
	Edge                      // a gateway: traffic enters the mesh here
)

// Listener accepts connections, or takes them over from a listener that does.
type Listener struct {
	// Name is "virtualOutbound", "virtualInbound", "0.0.0.0_9080",
	// "10.96.0.7_5432", or "NAME.NS.svc…:PORT" for a proxyless gRPC client.
	Name      string
	Address   netip.AddrPort
	Direction Direction
	// Bound is true if the proxy opens a socket for it. An unbound listener
	// receives connections whose original destination it matches best: first by
	// address and port, then by port, from a bound one that has UseOriginalDst.
	Bound          bool
	UseOriginalDst bool
	// ProxyProtocol demands that a connection begins with the PROXY protocol's
	// header, of either version, which says whose it is.
	ProxyProtocol bool
	// Inspect says what is peeked from the connection's first bytes before a
	// filter chain is chosen.
	Inspect Inspect
	// Chains are the candidates; the most specific match wins, compared field by
	// field in the order of ChainMatch, as Envoy does.
	Chains  []*FilterChain
	Default *FilterChain // when no chain matches; nil closes the connection
	// API is set instead of chains for a proxyless gRPC client's listener.
	API *HTTPChain
}

// Inspect configures the look at a connection's first bytes.
type Inspect struct {
	TLS  bool // SNI and ALPN of a ClientHello
	HTTP bool // HTTP/1.x request line, or the HTTP/2 preface
	// Timeout after which inspection ends with what is known, so that a protocol
	// in which the server speaks first is never held up. 0 waits forever.
	Timeout time.Duration
	// SkipPorts are original destination ports on which neither look is taken.
	SkipPorts []uint16
	// SkipHTTPPorts are those on which only the HTTP look is not taken.
	SkipHTTPPorts []uint16
}

// FilterChain says how a matching connection is treated.
type FilterChain struct {
	Name  string
	Match ChainMatch
	TLS   *ServerTLS // nil: bytes are handled as they come
	// Exactly one of HTTP and TCP is set.
	HTTP *HTTPChain
	TCP  *TCPChain
}

// Transport is what the TLS inspector found.
type Transport uint8

const (
	AnyTransport Transport = iota
	RawBuffer
	TLSTransport
)

// ChainMatch holds the conditions of a chain; a zero field matches anything.
// Source: Envoy, config.listener.v3.FilterChainMatch.
type ChainMatch struct {
	DestinationPort uint16
	Prefixes        []netip.Prefix // of the original destination address
	ServerNames     []string       // SNI: exact, or "*.example.com"
	Transport       Transport
	ALPN            []string // from the ClientHello; "http/1.1" and "h2c" from the HTTP look
}

// ServerTLS terminates TLS on the accepting side.
type ServerTLS struct {
	// Certificate and Roots are secret names: "default" and "ROOTCA" are the
	// workload's own identity.
	Certificate string
	Roots       string // "" accepts clients without certificate
	RequireCert bool
	ALPN        []string
	// SubjectAltNames of which a client must present one, exactly; empty: any that the
	// roots sign for.
	SubjectAltNames []string
	// MinVersion and MaxVersion are TLS versions as on the wire, 0x0303 for 1.2; 0 is
	// the proxy's own choice.
	MinVersion, MaxVersion uint16
	// TrustDomains a client's SPIFFE id must belong to; empty accepts any that
	// the roots sign for.
	TrustDomains []string
}

// HTTPChain handles a connection as HTTP.
type HTTPChain struct {
	StatPrefix string
	// RouteName names the RouteConfig to ask for; Inline is used if it is empty.
	RouteName string
	Inline    *RouteConfig
	// ForwardClientCert is how x-forwarded-client-cert is treated.
	ForwardClientCert ClientCertMode
	// UseRemoteAddress trusts the connection's source address, not the
	// x-forwarded-for header, as the client's: true at the edge.
	UseRemoteAddress bool
	// TrustedHops is how many proxies in front are believed what they say in
	// x-forwarded-for.
	TrustedHops uint32
	// AccessLog is the file, "" for none; "/dev/stdout" is the usual.
	AccessLog string
	// Metrics turns Istio's standard metrics on.
	Metrics bool
	// JWT says whose tokens are accepted; without any, none is looked at.
	JWT []*JWT
	// Ask is asked before anything else is decided.
	Ask []*ExtAuthz
	// RBAC decides who may do what, in order.
	RBAC []*RBAC
}

// ClientCertMode is how x-forwarded-client-cert is treated; names as Envoy's.
type ClientCertMode uint8

const (
	SanitizeClientCert ClientCertMode = iota
	ForwardOnlyClientCert
	AppendForwardClientCert
	SanitizeSetClientCert
	AlwaysForwardOnlyClientCert
)

// TCPChain handles a connection as bytes.
type TCPChain struct {
	StatPrefix  string
	Clusters    []WeightedCluster
	IdleTimeout time.Duration // 0: Envoy's default of 1 h
	AccessLog   string
	Metrics     bool
	// PeerExchange asks for Istio's metadata exchange when the ALPN
	// "istio-peer-exchange" was agreed on.
	PeerExchange bool
	// RBAC decides who may connect, in order.
	RBAC []*RBAC
}

// WeightedCluster is one share of a split. Weights are relative; a single
// entry gets everything whatever its weight, an entry with 0 among several
// nothing.
type WeightedCluster struct {
	Cluster string
	Weight  uint32
	// HostRewrite replaces the authority, unless the route does. Headers change
	// what goes this way, before the route's own changes.
	HostRewrite string
	Headers     *Headers
}

// RouteConfig maps authority, path and more to an action.
type RouteConfig struct {
	// Name is "9080", "reviews.default.svc.cluster.local:9080", "http.8080",
	// "inbound|9080||".
	Name  string
	Hosts []*VirtualHost
	// IgnorePort compares the authority without its port.
	IgnorePort bool
}

// VirtualHost groups the routes of some authorities. Domains are exact names,
// "*.suffix", "prefix.*" or "*"; exact beats suffix (longest first) beats prefix
// (longest first) beats "*".
type VirtualHost struct {
	// Name is "reviews.default.svc.cluster.local:9080", "allow_any", "block_all",
	// "blackhole:8080".
	Name    string
	Domains []string
	Routes  []*Route // first match wins
}

// Route is one rule. Exactly one of Clusters, Redirect and Direct acts;
// NonForwarding routes are for proxyless gRPC servers.
type Route struct {
	Name  string
	Match RouteMatch

	Clusters []WeightedCluster
	Direct   *DirectResponse
	Redirect *Redirect

	// Timeout of the whole request; 0 none.
	Timeout time.Duration
	Retry   *Retry
	// PrefixRewrite replaces what Match.Path matched; HostRewrite the authority.
	PrefixRewrite string
	HostRewrite   string
	// RegexRewrite changes every part of the path that it matches; it stands in
	// the place of PrefixRewrite.
	RegexRewrite *RegexRewrite
	Headers      *Headers
	// Hash lists what a consistent choice of the endpoint goes by. All that a
	// request has are combined, up to the first that is terminal.
	Hash    []HashPolicy
	Mirrors []Mirror
	CORS    *CORS
	Fault   *Fault
	// StatPrefix is a name for the route's own counts.
	StatPrefix string
	// Origin is the config object behind the rule,
	// "/apis/networking.istio.io/v1/namespaces/NS/virtual-service/NAME"; tools
	// show it.
	Origin string
	// Decorator is the operation name for traces: "host:port/*".
	Decorator string
}

// RouteMatch holds all conditions of a route; all must hold.
type RouteMatch struct {
	Path       PathMatch
	IgnoreCase bool // of Path, unless it is a regex
	// Headers are matched by lower-case name; ":method", ":authority" and
	// ":scheme" stand for the request's parts.
	Headers []HeaderMatch
	Query   []QueryMatch
	// Claims are of the request's verified token.
	Claims []ClaimMatch
}

// PathKind says how PathMatch.Value is compared.
type PathKind uint8

const (
	PathPrefix PathKind = iota // string prefix: "/foo" matches "/foobar"
	PathExact
	PathRegex         // RE2 against the whole path without query
	PathSegmentPrefix // "/foo" matches "/foo" and "/foo/bar" only
)

// PathMatch is a condition on the path without query.
type PathMatch struct {
	Kind  PathKind
	Value string
}

// StringKind says how a header or query value is compared.
type StringKind uint8

const (
	StringPresent StringKind = iota
	StringExact
	StringPrefix
	StringRegex // RE2 against the whole value
	StringSuffix
	StringContains
)

// HeaderMatch is a condition on one header. Invert negates it; a missing header
// counts as "" if MissingIsEmpty is set, and else fails the condition before
// the negation.
type HeaderMatch struct {
	Name           string
	Kind           StringKind
	Value          string
	Invert         bool
	MissingIsEmpty bool
}

// ClaimMatch is a condition on a claim, or on one text of a claim that is a list.
// Invert negates it; without a token or the claim it does not hold before that.
type ClaimMatch struct {
	Path   string // the names on the way to it, joined by "\x00"
	Kind   StringKind
	Value  string
	Invert bool
}

// QueryMatch is a condition on one query parameter.
type QueryMatch struct {
	Name  string
	Kind  StringKind
	Value string
}

// DirectResponse answers without an upstream.
type DirectResponse struct {
	Status uint32
	Body   string
}

// Redirect answers with a Location. Empty fields keep the request's part.
type Redirect struct {
	Scheme, Host  string
	Port          uint32
	Path          string // replaces the whole path
	PrefixRewrite string
	Status        uint32
}

// Retry is when and how often to try again.
type Retry struct {
	On         []string // Envoy's retry_on words
	Codes      []uint32 // with "retriable-status-codes"
	Attempts   uint32   // beyond the first
	PerTry     time.Duration
	HostReopen uint32 // how often to choose another host than those tried; 0 off
	// Remote moves on to other localities: after every second attempt, the
	// priorities that were tried are left alone.
	Remote bool
	// Backoff is the base of the wait before a retry, 0 the usual 25 ms; the
	// longest is ten times that.
	Backoff time.Duration
}

// RegexRewrite replaces every match of an RE2 pattern. "\\1" in the
// substitution stands for the first capture, "\\0" for all of the match.
type RegexRewrite struct {
	Pattern, Substitution string
}

// Headers are changes of a request on its way out and of its response.
type Headers struct {
	Request, Response HeaderEdit
}

// HeaderEdit changes the fields of a message: first it removes, then it sets and
// adds in the order of the list. Source: Envoy, HeaderParser.
type HeaderEdit struct {
	Remove []string
	Put    []HeaderValue
}

// HeaderValue is a field to write. Append keeps the ones of the same name that
// are there. The value may have Envoy's command operators, "%REQ(x)%".
type HeaderValue struct {
	Name, Value string
	Append      bool
}

// HashPolicy is one source of the hash of a request.
type HashPolicy struct {
	Kind HashKind
	// Name of the header, cookie or query parameter.
	Name string
	// TTL of a cookie that is made for clients without one, if Generate is set: 0
	// is a cookie of the session. Path and Attributes go with it.
	Generate   bool
	TTL        time.Duration
	Path       string
	Attributes []CookieAttribute
	Terminal   bool
}

// CookieAttribute is written behind a cookie: "SameSite=Strict", or its name
// alone if it has no value.
type CookieAttribute struct {
	Name, Value string
}

// HashKind says what is hashed.
type HashKind uint8

const (
	HashHeader HashKind = iota
	HashCookie
	HashSourceIP
	HashQuery
)

// Million is the denominator of every Fraction.
const Million = 1_000_000

// Fraction is a part of all requests, in millionths.
type Fraction uint32

// Mirror sends a copy of some requests to a cluster, and forgets the answer.
type Mirror struct {
	Cluster  string
	Fraction Fraction
	// Shadow puts "-shadow" behind the copy's authority.
	Shadow bool
}

// CORS answers the preflights of browsers and marks the responses for them.
type CORS struct {
	Origins     []StringMatch
	Methods     string // "GET,POST"
	Headers     string
	Expose      string
	MaxAge      string // seconds
	Credentials bool
	// ForwardUnmatched sends preflights of an origin that is not allowed on to the
	// upstream.
	ForwardUnmatched bool
}

// StringMatch is a comparison of a text.
type StringMatch struct {
	Kind  StringKind
	Value string
}

// Fault spoils some requests on purpose. Both parts roll independently.
type Fault struct {
	Delay         time.Duration
	DelayFraction Fraction
	// AbortStatus is answered, as a code of gRPC if AbortGRPC is set.
	AbortStatus   uint32
	AbortGRPC     bool
	AbortFraction Fraction
}

// Discovery says where a cluster's endpoints come from.
type Discovery uint8

const (
	EDS         Discovery = iota
	OriginalDst           // the address the client dialled
	Static                // Cluster.Static
	StrictDNS             // Cluster.Static names, every address resolved
	LogicalDNS            // Cluster.Static name, first address resolved
)

// Balancing is the endpoint choice.
type Balancing uint8

const (
	LeastRequest Balancing = iota // power of two choices, Istio's default
	RoundRobin
	Random
	ClusterProvided // by the discovery itself: OriginalDst
	RingHash        // by Route.Hash, on a ring of points
	Maglev          // by Route.Hash, in a table
	PeakEWMA        // the quickest of two, by decaying peaks of latency
)

// Protocol is a version of HTTP, as an upstream is spoken to.
type Protocol uint8

const (
	HTTP1          Protocol = iota
	HTTP2                   // from the first byte, or as ALPN says
	ClientProtocol          // as the client spoke
)

// Cluster is a group of endpoints reached the same way.
type Cluster struct {
	// Name is "outbound|9080|v1|reviews.default.svc.cluster.local",
	// "inbound|9080||", "PassthroughCluster", "BlackHoleCluster",
	// "InboundPassthroughCluster".
	Name      string
	Discovery Discovery
	// ServiceName is the EDS name if it differs from Name.
	ServiceName string
	Static      []StaticEndpoint
	Balancing   Balancing

	ConnectTimeout time.Duration
	MaxConnections uint32 // 0: no limit; all hosts together
	MaxPending     uint32 // 0: no limit
	MaxRequests    uint32 // 0: no limit
	MaxPerConn     uint32 // requests per connection, 0: no limit
	MaxRetries     uint32 // retries in flight at once, 0: no limit
	IdleTimeout    time.Duration
	MaxConnAge     time.Duration // a connection takes no request after it; 0: no limit
	Keepalive      *Keepalive    // nil: the system's own
	RetryBudget    *RetryBudget  // in the place of MaxRetries

	// MinRing is the least number of points on a RingHash's ring, TableSize a
	// Maglev table's; 0 are the usual 1024 and 65537.
	MinRing   uint64
	TableSize uint64
	Warmup    *Warmup
	// LocalityWeighted spreads by the weights of localities first, and then among
	// the endpoints of one.
	LocalityWeighted bool
	// PanicPercent is the part of healthy hosts below which all count as healthy;
	// 0 turns that off.
	PanicPercent uint32
	Outlier      *Outlier // nil: no host is ever ejected

	// Protocol is the version of HTTP that requests are sent in.
	Protocol Protocol
	TLS      *ClientTLS // nil: plain text
	// ProxyProtocol is the version of the header that tells the server, before
	// anything else, on whose behalf a connection is made; 0 sends none.
	ProxyProtocol uint8

	// Service is what metrics call the destination.
	Service ServiceRef
	// BindAddress is the source address of connections to the workload itself:
	// 127.0.0.6 or ::6, so that redirection lets them pass.
	BindAddress netip.Addr
	// Origin is the DestinationRule behind it, as Route.Origin.
	Origin string
}

// Keepalive are TCP's own probes of a connection that is silent. 0 is the
// system's value.
type Keepalive struct {
	Time, Interval time.Duration
	Probes         uint32
}

// RetryBudget allows retries up to a part of the requests in flight, and never
// fewer than MinRetries.
type RetryBudget struct {
	Percent    float64
	MinRetries uint32
}

// Warmup gives a new host a growing share of its weight: at first MinPercent of
// it, after Duration all. With an Aggression of 1 it grows linearly.
type Warmup struct {
	Duration   time.Duration
	MinPercent float64
	Aggression float64
}

// Outlier ejects hosts that answer badly. A count of 0 does not eject.
type Outlier struct {
	Consecutive5xx     uint32
	ConsecutiveGateway uint32 // 502, 503, 504
	// ConsecutiveLocal counts failures to connect and the like apart, with
	// SplitLocal; without that they count as 5xx.
	ConsecutiveLocal uint32
	SplitLocal       bool
	Interval         time.Duration // between looks at who may return
	BaseEjection     time.Duration // times the number of ejections
	MaxPercent       uint32        // of the hosts ejected at once
	// AtLeastOne allows one ejected host whatever the percentage.
	AtLeastOne bool
	// Codes count as failures in the place of 5xx, if there are any.
	Codes []uint32
}

// EDSName is the name that the cluster's endpoints are asked for by.
func (c *Cluster) EDSName() string {
	if c.ServiceName != "" {
		return c.ServiceName
	}
	return c.Name
}

// StaticEndpoint is a fixed address or a DNS name with a port.
type StaticEndpoint struct {
	Host string // IP address or name
	Port uint16
}

// ServiceRef names a service in metrics.
type ServiceRef struct {
	Host, Name, Namespace string
}

// ClientTLS secures connections to a cluster.
type ClientTLS struct {
	// Auto uses TLS only for endpoints that carry tlsMode=istio (auto mTLS);
	// without it every endpoint must speak TLS.
	Auto bool
	// Certificate "default" and Roots "ROOTCA" are the workload's identity.
	Certificate string
	Roots       string
	SNI         string
	// SubjectAltNames of which the server must present one, exactly. Empty:
	// any that the roots sign for.
	SubjectAltNames []string
	ALPN            []string
	// Unverified takes any certificate that the server presents.
	Unverified bool
}

// Locality places an endpoint.
type Locality struct{ Region, Zone, SubZone string }

// Health of an endpoint as discovery reports it.
type Health uint8

const (
	Healthy Health = iota
	Unhealthy
	Draining
)

// LoadAssignment is the endpoints of one cluster.
type LoadAssignment struct {
	Cluster    string // EDS name
	Localities []LocalityEndpoints
}

// LocalityEndpoints is the part of them in one place and of one priority.
type LocalityEndpoints struct {
	Locality  Locality
	Priority  uint32
	Weight    uint32
	Endpoints []Endpoint
}

// Endpoint is one address of a workload.
type Endpoint struct {
	Address  netip.AddrPort
	Health   Health
	Weight   uint32 // 0 and 1 are the same
	MTLS     bool   // tlsMode=istio: its sidecar accepts mutual TLS
	Workload Workload
}

// Workload names the program behind an endpoint, as metrics show it.
type Workload struct {
	Name              string // of the Deployment, not of the Pod
	Namespace         string
	CanonicalName     string
	CanonicalRevision string
	ClusterID         string
}

// NameTable answers captured DNS queries.
type NameTable struct {
	Names []NameEntry // sorted by Host
}

// NameEntry is one host with its addresses. Short and Namespace let a resolver
// answer short names.
type NameEntry struct {
	Host      string
	IPs       []netip.Addr
	Registry  string // "Kubernetes" or "External"
	Short     string
	Namespace string
}
