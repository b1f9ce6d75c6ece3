package validate

import (
	networkingv1alpha3 "istio.io/api/networking/v1alpha3"
	networkingv1beta1 "istio.io/api/networking/v1beta1"
)

func (c *checker) workloadEntry(w *networkingv1alpha3.WorkloadEntry) {
	c.workload("spec", w, nil, true)
}

func (c *checker) workloadGroup(g *networkingv1alpha3.WorkloadGroup) {
	if g.Template == nil {
		c.err("spec.template", "missing", "it describes the WorkloadEntries of the group")
		return
	}
	c.labels("spec.metadata.labels", g.Metadata.GetLabels())
	c.probe("spec.probe", g.Probe)
}

func (c *checker) probe(path string, p *networkingv1alpha3.ReadinessProbe) {
	if p == nil {
		return
	}
	for field, n := range map[string]int32{"periodSeconds": p.PeriodSeconds, "initialDelaySeconds": p.InitialDelaySeconds,
		"timeoutSeconds": p.TimeoutSeconds, "successThreshold": p.SuccessThreshold, "failureThreshold": p.FailureThreshold} {
		c.nonNegative(path+"."+field, n)
	}
	switch m := p.HealthCheckMethod.(type) {
	case *networkingv1alpha3.ReadinessProbe_HttpGet:
		c.port(path+".httpGet.port", m.HttpGet.Port)
		if s := m.HttpGet.Scheme; s != "" && s != "HTTP" && s != "HTTPS" {
			c.err(path+".httpGet.scheme", "unknown", "write HTTP or HTTPS")
		}
		for i, h := range m.HttpGet.HttpHeaders {
			c.headerName(at(path+".httpGet.httpHeaders", i)+".name", h.Name)
		}
	case *networkingv1alpha3.ReadinessProbe_TcpSocket:
		c.port(path+".tcpSocket.port", m.TcpSocket.Port)
	case *networkingv1alpha3.ReadinessProbe_Exec:
		if len(m.Exec.Command) == 0 {
			c.err(path+".exec.command", "missing", "")
		}
	case *networkingv1alpha3.ReadinessProbe_Grpc:
		c.port(path+".grpc.port", m.Grpc.Port)
	default:
		c.err(path, "the probe probes nothing", "give httpGet, tcpSocket, exec or grpc")
	}
}

func (c *checker) proxyConfig(p *networkingv1beta1.ProxyConfig) {
	c.workloadSelector("spec.selector", p.Selector)
	if p.Concurrency.GetValue() < 0 {
		c.err("spec.concurrency", "negative", "0 uses all cores")
	}
}
