package schema

import (
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

func kubernetes() []*Kind {
	v1 := []string{"v1"}
	return []*Kind{
		{
			Name: "Namespace", Plural: "namespaces", Short: []string{"ns"}, Versions: v1,
			New: func() any { return &corev1.Namespace{} },
			Quiet: []Quiet{
				{"finalizers order the deletion of a namespace, which is the API server's work", []string{"spec.finalizers"}},
			},
		},
		{
			Name: "Service", Plural: "services", Short: []string{"svc"}, Versions: v1, Namespaced: true,
			New: func() any { return &corev1.Service{} },
			Acted: slices.Concat(
				under("spec", "selector", "clusterIP", "clusterIPs", "type", "externalName", "publishNotReadyAddresses",
					"ipFamilies", "ipFamilyPolicy"),
				under("spec.ports[]", "name", "port", "targetPort", "protocol", "appProtocol"),
			),
			Quiet: []Quiet{
				{"node ports and load balancers are the cluster's; the local mesh publishes on 127.0.0.1", []string{
					"spec.ports[].nodePort", "spec.allocateLoadBalancerNodePorts", "spec.loadBalancerClass",
					"spec.healthCheckNodePort", "spec.externalTrafficPolicy"}},
				{"the default, written out", []string{
					"spec.sessionAffinity=None", "spec.internalTrafficPolicy=Cluster"}},
			},
		},
		{
			Name: "Pod", Plural: "pods", Short: []string{"po"}, Versions: v1, Namespaced: true,
			New:   func() any { return &corev1.Pod{} },
			Acted: podActed("spec"),
			Quiet: podQuiet("spec"),
		},
		{
			Name: "Node", Plural: "nodes", Short: []string{"no"}, Versions: v1,
			New:   func() any { return &corev1.Node{} },
			Quiet: []Quiet{{"a node's labels place its pods; the rest is the cluster's matter", []string{"spec"}}},
		},
		{
			Group: "discovery.k8s.io", Name: "EndpointSlice", Plural: "endpointslices", Versions: v1, Namespaced: true,
			New: func() any { return &discoveryv1.EndpointSlice{} },
			Acted: slices.Concat(
				[]string{"addressType=IPv4|IPv6", "ports"},
				under("endpoints[]", "addresses", "conditions", "targetRef", "nodeName", "zone"),
			),
			Quiet: []Quiet{
				{"what a pod is called is read from the pod", []string{"endpoints[].hostname"}},
				{"a hint to kube-proxy; who is near is what localities say", []string{"endpoints[].hints"}},
			},
		},
		{
			Group: "apps", Name: "Deployment", Plural: "deployments", Short: []string{"deploy"}, Versions: v1, Namespaced: true,
			New: func() any { return &appsv1.Deployment{} },
			Acted: slices.Concat([]string{"spec.replicas", "spec.selector", "spec.strategy", "spec.template.metadata"},
				podActed("spec.template.spec")),
			Quiet: append(podQuiet("spec.template.spec"), Quiet{
				"how long a roll-out takes and what is remembered of it is the cluster's matter", []string{
					"spec.minReadySeconds", "spec.revisionHistoryLimit", "spec.progressDeadlineSeconds"}}),
		},
		{
			Name: "ServiceAccount", Plural: "serviceaccounts", Short: []string{"sa"}, Versions: v1, Namespaced: true,
			New: func() any { return &corev1.ServiceAccount{} },
			Quiet: []Quiet{
				{"a workload's identity is the account's name; how its pods reach the API server is the cluster's matter", []string{
					"automountServiceAccountToken", "secrets", "imagePullSecrets"}},
			},
		},
		{
			Name: "Secret", Plural: "secrets", Versions: v1, Namespaced: true,
			New:   func() any { return &corev1.Secret{} },
			Acted: []string{"type", "data", "stringData"},
			Quiet: []Quiet{{"the API server keeps it", []string{"immutable"}}},
		},
		{
			Name: "ConfigMap", Plural: "configmaps", Short: []string{"cm"}, Versions: v1, Namespaced: true,
			New:   func() any { return &corev1.ConfigMap{} },
			Acted: []string{"data", "binaryData"},
			Quiet: []Quiet{{"the API server keeps it", []string{"immutable"}}},
		},
	}
}

// podActed lists what the model and the local mesh read of a pod.
func podActed(at string) []string {
	container := []string{"name", "command", "args", "env", "envFrom", "workingDir", "ports", "volumeMounts",
		"restartPolicy", "readinessProbe", "startupProbe", "livenessProbe", "lifecycle.preStop"}
	return slices.Concat(
		under(at, "serviceAccountName", "terminationGracePeriodSeconds", "hostname", "subdomain", "nodeName", "hostAliases", "restartPolicy"),
		under(at+".containers[]", container...),
		under(at+".initContainers[]", container...),
		under(at+".volumes[]", "name", "configMap", "secret", "emptyDir", "projected", "downwardAPI"),
	)
}

func podQuiet(at string) []Quiet {
	container := []string{"image", "imagePullPolicy", "resources", "securityContext",
		"terminationMessagePath", "terminationMessagePolicy", "stdin", "stdinOnce", "tty"}
	return []Quiet{
		{"the kubelet's matter in a cluster; the local mesh runs the command as a process of the user who started it",
			slices.Concat(under(at+".containers[]", container...), under(at+".initContainers[]", container...))},
		{"where and when a pod is placed is the scheduler's matter; the local mesh has one node", under(at,
			"nodeSelector", "affinity", "tolerations", "topologySpreadConstraints", "schedulerName", "priorityClassName",
			"priority", "preemptionPolicy", "overhead", "runtimeClassName", "resources")},
		{"the kubelet's matter; the local mesh pulls no image and mounts no token", under(at,
			"imagePullSecrets", "automountServiceAccountToken", "securityContext", "enableServiceLinks",
			"serviceAccount")}, // the deprecated twin of serviceAccountName, which the API server fills in
		{"the default, written out", under(at, "dnsPolicy=ClusterFirst")},
	}
}
