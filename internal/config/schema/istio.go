package schema

import (
	"slices"
	"sync"

	extensionsv1alpha1 "istio.io/api/extensions/v1alpha1"
	networkingv1alpha3 "istio.io/api/networking/v1alpha3"
	networkingv1beta1 "istio.io/api/networking/v1beta1"
	securityv1beta1 "istio.io/api/security/v1beta1"
	telemetryv1alpha1 "istio.io/api/telemetry/v1alpha1"
)

const (
	networkingGroup = "networking.istio.io"
	securityGroup   = "security.istio.io"
	telemetryGroup  = "telemetry.istio.io"
	extensionsGroup = "extensions.istio.io"
)

func istio() []*Kind {
	three := []string{"v1", "v1beta1", "v1alpha3"}
	return []*Kind{
		{
			Group: networkingGroup, Name: "VirtualService", Plural: "virtualservices", Short: []string{"vs"},
			Versions: three, Namespaced: true,
			New: func() any { return &networkingv1alpha3.VirtualService{} },
			Acted: slices.Concat(
				under("spec", "hosts", "gateways", "exportTo"),
				under("spec.http[]", "name", "timeout", "redirect", "directResponse", "rewrite", "headers", "delegate",
					"mirror", "mirrorPercent", "mirrorPercentage", "mirrors", "corsPolicy"),
				under("spec.http[].fault.delay", "fixedDelay", "percent", "percentage"),
				under("spec.http[].fault.abort", "httpStatus", "grpcStatus", "percentage"),
				under("spec.http[].match[]", "name", "uri", "scheme", "method", "authority", "headers", "port", "gateways",
					"queryParams", "ignoreUriCase", "withoutHeaders", "sourceLabels", "sourceNamespace"),
				under("spec.http[].retries", "attempts", "perTryTimeout", "retryOn", "retryIgnorePreviousHosts",
					"retryRemoteLocalities", "backoff"),
				under("spec.http[].route[]", "destination", "weight", "headers"),
				under("spec.tcp[]", "route"),
				under("spec.tcp[].match[]", "port", "gateways", "sourceLabels", "sourceNamespace", "destinationSubnets"),
				under("spec.tls[]", "route"),
				under("spec.tls[].match[]", "sniHosts", "port", "gateways", "sourceLabels", "sourceNamespace", "destinationSubnets"),
			),
		},
		{
			Group: networkingGroup, Name: "DestinationRule", Plural: "destinationrules", Short: []string{"dr"},
			Versions: three, Namespaced: true,
			New: func() any { return &networkingv1alpha3.DestinationRule{} },
			Acted: slices.Concat(
				under("spec", "host", "exportTo", "workloadSelector"),
				under("spec.subsets[]", "name", "labels"),
				trafficPolicy("spec.trafficPolicy"), []string{"spec.trafficPolicy.proxyProtocol", "spec.subsets[].trafficPolicy.proxyProtocol"},
				trafficPolicy("spec.subsets[].trafficPolicy"),
			),
			Guards: []string{
				"spec.trafficPolicy.tls", "spec.trafficPolicy.portLevelSettings[].tls",
				"spec.subsets[].trafficPolicy.tls", "spec.subsets[].trafficPolicy.portLevelSettings[].tls",
			},
		},
		{
			Group: networkingGroup, Name: "Gateway", Plural: "gateways", Short: []string{"gw"},
			Versions: three, Namespaced: true,
			New: func() any { return &networkingv1alpha3.Gateway{} },
			Acted: slices.Concat(
				under("spec", "selector"),
				under("spec.servers[]", "name", "bind", "hosts", "port.number", "port.name",
					"port.protocol=HTTP|TCP|MONGO|MYSQL|REDIS|TLS|HTTPS",
					"tls.mode=PASSTHROUGH|AUTO_PASSTHROUGH|SIMPLE|MUTUAL|OPTIONAL_MUTUAL|ISTIO_MUTUAL", "tls.credentialName", "tls.caCertCredentialName",
					"tls.subjectAltNames", "tls.minProtocolVersion", "tls.maxProtocolVersion", "tls.httpsRedirect"),
			),
			Guards: []string{"spec.servers[].tls"},
		},
		{
			Group: networkingGroup, Name: "ServiceEntry", Plural: "serviceentries", Short: []string{"se"},
			Versions: three, Namespaced: true,
			New: func() any { return &networkingv1alpha3.ServiceEntry{} },
			Acted: under("spec", "hosts", "addresses", "ports", "location", "endpoints", "exportTo", "subjectAltNames",
				"workloadSelector", "resolution=NONE|STATIC|DNS|DNS_ROUND_ROBIN"),
		},
		{
			Group: securityGroup, Name: "PeerAuthentication", Plural: "peerauthentications", Short: []string{"pa"},
			Versions: []string{"v1", "v1beta1"}, Namespaced: true,
			New:   func() any { return &securityv1beta1.PeerAuthentication{} },
			Acted: []string{"spec"},
		},

		{
			Group: securityGroup, Name: "AuthorizationPolicy", Plural: "authorizationpolicies", Short: []string{"ap"},
			Versions: []string{"v1", "v1beta1"}, Namespaced: true,
			New:    func() any { return &securityv1beta1.AuthorizationPolicy{} },
			Acted:  under("spec", "selector", "targetRef", "targetRefs", "rules", "provider", "action=ALLOW|DENY|AUDIT|CUSTOM"),
			Guards: []string{"spec"},
		},
		{
			Group: securityGroup, Name: "RequestAuthentication", Plural: "requestauthentications", Short: []string{"ra"},
			Versions: []string{"v1", "v1beta1"}, Namespaced: true,
			New:   func() any { return &securityv1beta1.RequestAuthentication{} },
			Acted: []string{"spec"},
		},
		{
			Group: networkingGroup, Name: "Sidecar", Plural: "sidecars",
			Versions: three, Namespaced: true,
			New:   func() any { return &networkingv1alpha3.Sidecar{} },
			Inert: "every proxy sees all services that are exported to it",
		},
		{
			Group: networkingGroup, Name: "WorkloadEntry", Plural: "workloadentries", Short: []string{"we"},
			Versions: three, Namespaced: true,
			New:   func() any { return &networkingv1alpha3.WorkloadEntry{} },
			Inert: "its address is no endpoint of any service",
		},
		{
			Group: networkingGroup, Name: "WorkloadGroup", Plural: "workloadgroups", Short: []string{"wg"},
			Versions: three, Namespaced: true,
			New:   func() any { return &networkingv1alpha3.WorkloadGroup{} },
			Inert: "no workload can register with it",
		},
		{
			Group: networkingGroup, Name: "EnvoyFilter", Plural: "envoyfilters",
			Versions: []string{"v1alpha3"}, Namespaced: true,
			New:   func() any { return &networkingv1alpha3.EnvoyFilter{} },
			Inert: "no patch is applied",
		},
		{
			Group: networkingGroup, Name: "ProxyConfig", Plural: "proxyconfigs",
			Versions: []string{"v1beta1"}, Namespaced: true,
			New:   func() any { return &networkingv1beta1.ProxyConfig{} },
			Inert: "proxies keep their defaults",
		},
		{
			Group: telemetryGroup, Name: "Telemetry", Plural: "telemetries", Short: []string{"telemetry"},
			Versions: []string{"v1alpha1", "v1"}, Namespaced: true,
			New:   func() any { return &telemetryv1alpha1.Telemetry{} },
			Inert: "metrics and access logs keep their defaults",
		},
		{
			Group: extensionsGroup, Name: "WasmPlugin", Plural: "wasmplugins",
			Versions: []string{"v1alpha1"}, Namespaced: true,
			New:   func() any { return &extensionsv1alpha1.WasmPlugin{} },
			Inert: "the plugin does not run",
		},
		{
			Group: extensionsGroup, Name: "TrafficExtension", Plural: "trafficextensions",
			Versions: []string{"v1alpha1"}, Namespaced: true,
			New:   func() any { return &extensionsv1alpha1.TrafficExtension{} },
			Inert: "the extension does not run",
		},
	}
}

// trafficPolicy lists what acts in a traffic policy, which has the same fields
// for the whole host, for a subset and for a port.
func trafficPolicy(at string) []string {
	settings := slices.Concat(
		// Names are checked only where the mode acts.
		[]string{"outlierDetection", "tls.mode=DISABLE|ISTIO_MUTUAL", "tls.sni", "tls.subjectAltNames"},
		under("loadBalancer", "simple", "consistentHash", "localityLbSetting", "warmupDurationSecs", "warmup"),
		under("connectionPool.tcp", "maxConnections", "connectTimeout", "idleTimeout", "tcpKeepalive"),
		under("connectionPool.http", "http1MaxPendingRequests", "http2MaxRequests", "maxRequestsPerConnection", "maxRetries", "idleTimeout",
			"h2UpgradePolicy", "useClientProtocol"),
	)
	return slices.Concat(
		under(at, settings...),
		under(at+".portLevelSettings[]", settings...),
		[]string{at + ".portLevelSettings[].port", at + ".retryBudget.percent", at + ".retryBudget.minRetryConcurrency"},
	)
}

var meshConfig = sync.OnceValue(func() *Kind {
	k := &Kind{
		Name: "MeshConfig",
		Acted: []string{
			"discoverySelectors",
			"trustDomain", "trustDomainAliases", "rootNamespace", "enableAutoMtls",
			"outboundTrafficPolicy.mode=ALLOW_ANY|REGISTRY_ONLY",
			"defaultConfig.gatewayTopology.numTrustedProxies", "defaultConfig.gatewayTopology.forwardClientCertDetails",
			"accessLogFile", "connectTimeout", "protocolDetectionTimeout", "h2UpgradePolicy", "localityLbSetting",
			"defaultHttpRetryPolicy.attempts", "defaultHttpRetryPolicy.perTryTimeout", "defaultHttpRetryPolicy.retryOn",
			"defaultHttpRetryPolicy.retryIgnorePreviousHosts",
			"extensionProviders[].name",
			"extensionProviders[].envoyExtAuthzHttp.service", "extensionProviders[].envoyExtAuthzHttp.port", "extensionProviders[].envoyExtAuthzHttp.timeout",
			"extensionProviders[].envoyExtAuthzHttp.pathPrefix", "extensionProviders[].envoyExtAuthzHttp.failOpen", "extensionProviders[].envoyExtAuthzHttp.statusOnError",
			"extensionProviders[].envoyExtAuthzHttp.includeHeadersInCheck", "extensionProviders[].envoyExtAuthzHttp.includeRequestHeadersInCheck",
			"extensionProviders[].envoyExtAuthzHttp.includeAdditionalHeadersInCheck", "extensionProviders[].envoyExtAuthzHttp.headersToUpstreamOnAllow",
			"extensionProviders[].envoyExtAuthzHttp.headersToDownstreamOnDeny", "extensionProviders[].envoyExtAuthzHttp.headersToDownstreamOnAllow",
			"extensionProviders[].envoyExtAuthzHttp.clearRouteCache",
			// The injector's.
			"enablePrometheusMerge", "defaultConfig.holdApplicationUntilProxyStarts", "defaultConfig.proxyMetadata",
			"defaultConfig.gatewayTopology.proxyProtocol", "defaultServiceExportTo", "defaultVirtualServiceExportTo", "defaultDestinationRuleExportTo",
		},
		Quiet: []Quiet{
			{"proxies are told the address by whoever starts them", []string{"defaultConfig.discoveryAddress"}},
			{"the default, written out", []string{"defaultProviders.metrics=prometheus", "accessLogEncoding=TEXT"}},
		},
		Guards: []string{"meshMTLS", "tlsDefaults", "caCertificates", "pathNormalization", "outboundTrafficPolicy"},
	}
	k.fields = &Field{}
	k.index()
	return k
})

// MeshConfig is the row of the mesh's configuration, which is no object of its
// own: it stands in a ConfigMap. Its fields stand at the root.
func MeshConfig() *Kind { return meshConfig() }
