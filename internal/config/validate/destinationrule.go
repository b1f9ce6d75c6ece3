package validate

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	networkingv1alpha3 "istio.io/api/networking/v1alpha3"
)

// balancerAnnotation chooses a way of balancing that Istio has no field for.
const balancerAnnotation = "heddle.dev/load-balancer"

func (c *checker) destinationRule(r *networkingv1alpha3.DestinationRule) {
	if v, ok := c.o.Annotations[balancerAnnotation]; ok && v != "peak-ewma" {
		c.err(key("metadata.annotations", balancerAnnotation), fmt.Sprintf("%q is no way of balancing", v), "there is peak-ewma")
	}
	c.wildcardHost("spec.host", r.Host)
	c.trafficPolicy("spec.trafficPolicy", r.TrafficPolicy)
	seen := map[string]int{}
	for i, s := range r.Subsets {
		path := at("spec.subsets", i)
		if first, dup := seen[s.Name]; dup {
			c.err(path+".name", fmt.Sprintf("there are two subsets %q", s.Name), fmt.Sprintf("the first is subsets[%d]", first))
		} else {
			seen[s.Name] = i
		}
		c.subsetName(path+".name", s.Name)
		c.labels(path+".labels", s.Labels)
		c.trafficPolicy(path+".trafficPolicy", s.TrafficPolicy)
	}
	c.exportTo(r.ExportTo, false, r.WorkloadSelector != nil)
	c.workloadSelector("spec.workloadSelector", r.WorkloadSelector)
}

func (c *checker) trafficPolicy(path string, p *networkingv1alpha3.TrafficPolicy) {
	switch {
	case p == nil:
		return
	case p.OutlierDetection == nil && p.ConnectionPool == nil && p.LoadBalancer == nil && p.Tls == nil &&
		len(p.PortLevelSettings) == 0 && p.Tunnel == nil && p.ProxyProtocol == nil && p.RetryBudget == nil:
		c.err(path, "the policy is empty", "give it a setting, or leave it out")
		return
	case p.Tunnel != nil && p.ProxyProtocol != nil:
		c.err(path+".proxyProtocol", "tunnel and proxyProtocol exclude each other", "keep one of them")
		return
	}
	c.outlier(path+".outlierDetection", p.OutlierDetection)
	c.connectionPool(path+".connectionPool", p.ConnectionPool)
	c.loadBalancer(path+".loadBalancer", p.LoadBalancer, p.OutlierDetection)
	c.clientTLS(path+".tls", p.Tls)
	for i, s := range p.PortLevelSettings {
		field := at(path+".portLevelSettings", i)
		if s.Port == nil {
			c.err(field+".port", "missing", "a port's settings name the port: {number: 80}")
		}
		if s.OutlierDetection == nil && s.ConnectionPool == nil && s.LoadBalancer == nil && s.Tls == nil {
			c.err(field, "the port has no settings", "give one, or leave the port out")
			continue
		}
		c.outlier(field+".outlierDetection", s.OutlierDetection)
		c.connectionPool(field+".connectionPool", s.ConnectionPool)
		c.loadBalancer(field+".loadBalancer", s.LoadBalancer, s.OutlierDetection)
		c.clientTLS(field+".tls", s.Tls)
	}
	c.tunnel(path+".tunnel", p.Tunnel)
	if b := p.RetryBudget; b != nil {
		if v := b.Percent.GetValue(); v < 0 || v > 100 {
			c.err(path+".retryBudget.percent", fmt.Sprintf("%v is no percentage", v), "it goes from 0 to 100")
		}
		c.duration(path+".retryBudget.budgetInterval", b.BudgetInterval)
	}
}

func (c *checker) tunnel(path string, t *networkingv1alpha3.TrafficPolicy_TunnelSettings) {
	if t == nil {
		return
	}
	if t.Protocol != "" && t.Protocol != "CONNECT" && t.Protocol != "POST" {
		c.err(path+".protocol", fmt.Sprintf("%q does not tunnel", t.Protocol), "write CONNECT or POST")
	}
	if !isIP(t.TargetHost) {
		c.fqdn(path+".targetHost", t.TargetHost)
	}
	c.port(path+".targetPort", t.TargetPort)
}

func (c *checker) outlier(path string, o *networkingv1alpha3.OutlierDetection) {
	if o == nil {
		return
	}
	if o.ConsecutiveErrors != 0 { // deprecated, and still taken
		c.warn(path+".consecutiveErrors", "deprecated", "use consecutiveGatewayErrors or consecutive5xxErrors")
	}
	if !o.SplitExternalLocalOriginErrors && o.ConsecutiveLocalOriginFailures.GetValue() > 0 {
		c.err(path+".consecutiveLocalOriginFailures", "local failures are not counted apart", "set splitExternalLocalOriginErrors")
	}
	c.duration(path+".baseEjectionTime", o.BaseEjectionTime)
	c.duration(path+".interval", o.Interval)
	c.percent(path+".maxEjectionPercent", o.MaxEjectionPercent)
	c.percent(path+".minHealthPercent", o.MinHealthPercent)
}

func (c *checker) connectionPool(path string, p *networkingv1alpha3.ConnectionPoolSettings) {
	if p == nil {
		return
	}
	if p.Http == nil && p.Tcp == nil {
		c.err(path, "the pool has no settings", "give tcp or http, or leave it out")
		return
	}
	if h := p.Http; h != nil {
		c.nonNegative(path+".http.http1MaxPendingRequests", h.Http1MaxPendingRequests)
		c.nonNegative(path+".http.http2MaxRequests", h.Http2MaxRequests)
		c.nonNegative(path+".http.maxRequestsPerConnection", h.MaxRequestsPerConnection)
		c.nonNegative(path+".http.maxRetries", h.MaxRetries)
		c.nonNegative(path+".http.maxConcurrentStreams", h.MaxConcurrentStreams)
		c.duration(path+".http.idleTimeout", h.IdleTimeout)
		if h.H2UpgradePolicy == networkingv1alpha3.ConnectionPoolSettings_HTTPSettings_UPGRADE && h.UseClientProtocol {
			c.err(path+".http.useClientProtocol", "the protocol is both upgraded and the client's", "remove h2UpgradePolicy: UPGRADE or useClientProtocol")
		}
	}
	if t := p.Tcp; t != nil {
		c.nonNegative(path+".tcp.maxConnections", t.MaxConnections)
		c.duration(path+".tcp.connectTimeout", t.ConnectTimeout)
		c.duration(path+".tcp.maxConnectionDuration", t.MaxConnectionDuration)
		c.duration(path+".tcp.idleTimeout", t.IdleTimeout)
		c.duration(path+".tcp.tcpKeepalive.time", t.TcpKeepalive.GetTime())
		c.duration(path+".tcp.tcpKeepalive.interval", t.TcpKeepalive.GetInterval())
	}
}

func (c *checker) loadBalancer(path string, l *networkingv1alpha3.LoadBalancerSettings, o *networkingv1alpha3.OutlierDetection) {
	if l == nil {
		return
	}
	if h := l.GetConsistentHash(); h != nil {
		field := path + ".consistentHash"
		if k := h.GetHttpCookie(); k != nil && k.Name == "" {
			c.err(field+".httpCookie.name", "missing", "")
		}
		if h.MinimumRingSize != 0 { // deprecated, and still taken
			c.warn(field+".minimumRingSize", "deprecated", "use ringHash.minimumRingSize")
			if h.HashAlgorithm != nil {
				c.err(field+".minimumRingSize", "minimumRingSize, ringHash and maglev exclude each other", "keep one of them")
			}
		}
		if m := h.GetMaglev(); m != nil {
			c.maglev(field+".maglev.tableSize", m.TableSize)
		}
	}
	c.localityBalancing(path+".localityLbSetting", l.LocalityLbSetting, o)
	c.duration(path+".warmupDurationSecs", l.WarmupDurationSecs)
	if w := l.Warmup; w != nil {
		if l.WarmupDurationSecs != nil {
			c.err(path+".warmupDurationSecs", "warmupDurationSecs and warmup exclude each other", "keep warmup")
		}
		if w.Duration == nil {
			c.err(path+".warmup.duration", "missing", "")
		}
		c.duration(path+".warmup.duration", w.Duration)
		if v := w.MinimumPercent.GetValue(); v < 0 || v > 100 {
			c.err(path+".warmup.minimumPercent", fmt.Sprintf("%v is no percentage", v), "it goes from 0 to 100")
		}
		if v := w.Aggression; v.GetValue() < 0 {
			c.err(path+".warmup.aggression", fmt.Sprintf("%v is negative", v.GetValue()), "1 lets traffic grow linearly")
		}
	}
}

// maglev checks the size of a table as Envoy does, which takes 1 for a prime.
func (c *checker) maglev(path string, n uint64) {
	const tooLarge = 5000011
	switch {
	case n == 0:
		c.err(path, "missing", "the size is a prime number; Envoy's default is 65537")
	case n >= tooLarge:
		c.err(path, fmt.Sprintf("a table of %d", n), fmt.Sprintf("it must be less than %d", tooLarge))
	case !isPrime(n):
		c.err(path, fmt.Sprintf("%d is no prime number", n), "Envoy's default is 65537")
	}
}

func isPrime(n uint64) bool {
	if n < 4 {
		return n > 0
	}
	for f := uint64(2); f <= uint64(math.Sqrt(float64(n))); f++ {
		if n%f == 0 {
			return false
		}
	}
	return true
}

// topologyLabels are the labels of nodes that say where they stand; the last is
// Istio's own.
var topologyLabels = []string{"topology.kubernetes.io/region", "topology.kubernetes.io/zone", "topology.istio.io/subzone"}

func (c *checker) localityBalancing(path string, l *networkingv1alpha3.LocalityLoadBalancerSetting, o *networkingv1alpha3.OutlierDetection) {
	if l == nil {
		return
	}
	if len(l.Distribute) > 0 && len(l.Failover) > 0 {
		c.err(path+".failover", "distribute and failover exclude each other", "keep one of them")
		return
	}
	for i, p := range l.FailoverPriority {
		if len(l.Failover) > 0 && slices.Contains(topologyLabels, p) {
			c.err(at(path+".failoverPriority", i), "failover and the topology in failoverPriority exclude each other", "keep one of them")
		}
	}
	if (len(l.Failover) > 0 || len(l.FailoverPriority) > 0) && o == nil {
		c.warn(path, "failover needs to know which endpoints fail", "give outlierDetection")
	}
	var from []string
	for i, d := range l.Distribute {
		field := at(path+".distribute", i)
		from = append(from, d.From)
		var total uint32
		to := slices.Sorted(maps.Keys(d.To))
		for _, where := range to {
			weight := d.To[where]
			if weight == 0 || weight > 100 {
				c.err(key(field+".to", where), fmt.Sprintf("%d is no share", weight), "it goes from 1 to 100")
			}
			total += min(weight, 1000)
		}
		if total != 100 {
			c.err(field+".to", fmt.Sprintf("the shares come to %d", total), "they must come to 100")
		}
		c.localities(field+".to", to)
	}
	c.localities(path+".distribute", from)
	for i, f := range l.Failover {
		field := at(path+".failover", i)
		if f.From == f.To {
			c.err(field+".to", fmt.Sprintf("%q fails over to itself", f.From), "name another region")
		}
		for name, region := range map[string]string{"from": f.From, "to": f.To} {
			if strings.ContainsAny(region, "/*") {
				c.err(field+"."+name, fmt.Sprintf("%q is no region", region), "failover is between whole regions")
			}
		}
	}
}

// localities checks places "region/zone/subzone", of which the end may be left
// out or "*", against each other.
func (c *checker) localities(path string, places []string) {
	for i, p := range places {
		if n := strings.Count(p, "*"); n > 1 || n == 1 && !strings.HasSuffix(p, "*") {
			c.err(path, fmt.Sprintf("%q has a wildcard that is not at its end", p), "")
			continue
		}
		parts := strings.SplitN(p, "/", 3)
		for _, part := range parts {
			if part == "" {
				c.err(path, fmt.Sprintf("%q has an empty part", p), "a place is region/zone/subzone")
			}
		}
		for _, earlier := range places[:i] {
			if samePlace(earlier, p) {
				c.err(path, fmt.Sprintf("%q and %q overlap", earlier, p), "")
			}
		}
	}
}

func samePlace(a, b string) bool {
	as, bs := strings.SplitN(a, "/", 3), strings.SplitN(b, "/", 3)
	for i := range min(len(as), len(bs)) {
		if as[i] == "*" || bs[i] == "*" {
			return true
		}
		if as[i] != bs[i] {
			return false
		}
	}
	return true
}

func (c *checker) clientTLS(path string, t *networkingv1alpha3.ClientTLSSettings) {
	if t == nil {
		return
	}
	simple := t.Mode == networkingv1alpha3.ClientTLSSettings_SIMPLE
	mutual := t.Mode == networkingv1alpha3.ClientTLSSettings_MUTUAL
	if t.InsecureSkipVerify.GetValue() {
		const problem = "nothing is verified that could be checked against it"
		const hint = "remove it, or insecureSkipVerify"
		if t.CaCertificates != "" && (simple || mutual) {
			c.err(path+".caCertificates", problem, hint)
		}
		if len(t.SubjectAltNames) > 0 && (simple || mutual) {
			c.err(path+".subjectAltNames", problem, hint)
		}
		if t.CredentialName != "" && simple {
			c.err(path+".credentialName", problem, hint)
		}
	}
	if (simple || mutual) && t.CredentialName != "" {
		if t.ClientCertificate != "" || t.CaCertificates != "" || t.PrivateKey != "" || t.CaCrl != "" {
			c.err(path+".credentialName", "certificates come both from a Secret and from files", "remove the files, or credentialName")
		}
		return
	}
	if mutual && t.ClientCertificate == "" {
		c.err(path+".clientCertificate", "missing", "mode MUTUAL needs a certificate and its key, or credentialName")
	}
	if mutual && t.PrivateKey == "" {
		c.err(path+".privateKey", "missing", "mode MUTUAL needs a certificate and its key, or credentialName")
	}
}
