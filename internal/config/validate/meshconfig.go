package validate

import (
	"fmt"
	"strings"
	"time"

	networkingv1alpha3 "istio.io/api/networking/v1alpha3"

	"github.com/heddle-mesh/heddle/internal/config"
)

// MeshNamespace and meshName are where the mesh's configuration lives, unless
// there are several revisions of the control plane: then a hyphen and the
// revision follow.
const (
	MeshNamespace = "istio-system"
	meshName      = "istio"
)

// meshConfig checks the ConfigMap that holds the mesh's configuration. Others
// hold what only their readers know.
func (c *checker) meshConfig() {
	revisioned := strings.HasPrefix(c.o.Name, meshName+"-")
	if c.o.Name != meshName && !revisioned || c.o.Namespace != MeshNamespace && !revisioned {
		return
	}
	m, faults := config.MeshConfig(c.o)
	c.faults = append(c.faults, faults...)
	if m == nil {
		return
	}
	const at = "data[mesh]: "
	// A fault in the text stands where the text begins.
	before := len(c.faults)
	defer func() {
		for i := range c.faults[before:] {
			f := &c.faults[before+i]
			f.Pos = c.o.At("data[mesh]")
			f.Field = at + f.Field
		}
	}()
	if m.TrustDomain != "" {
		c.trustDomain("trustDomain", m.TrustDomain)
	}
	for i, d := range m.TrustDomainAliases {
		c.trustDomain(fmt.Sprintf("trustDomainAliases[%d]", i), d)
	}
	if ns := m.RootNamespace; ns != "" && !isLabel(ns) {
		c.err("rootNamespace", fmt.Sprintf("%q is no namespace", ns), "")
	}
	c.duration("connectTimeout", m.ConnectTimeout)
	if d := m.ConnectTimeout.AsDuration(); d > time.Hour {
		c.err("connectTimeout", fmt.Sprintf("%v is too long", d), "the most is 1h")
	}
	if d := m.ProtocolDetectionTimeout.AsDuration(); d < 0 || d%time.Millisecond != 0 {
		c.err("protocolDetectionTimeout", fmt.Sprintf("%v is no timeout", d), "0s waits for ever; the unit is a millisecond")
	}
	c.retries("defaultHttpRetryPolicy", m.DefaultHttpRetryPolicy)
	// Where there is no rule there is outlier detection to go by, for all we know.
	c.localityBalancing("localityLbSetting", m.LocalityLbSetting, &networkingv1alpha3.OutlierDetection{})
	if p := m.ProxyListenPort; p != 0 {
		c.port("proxyListenPort", uint32(max(p, 0)))
	}
}

func (c *checker) trustDomain(path, d string) {
	for l := range strings.SplitSeq(strings.TrimSuffix(d, "."), ".") {
		if !isLabel(l) {
			c.err(path, fmt.Sprintf("%q is no trust domain", d), "it is labels of letters, digits and inner hyphens, joined by dots")
			return
		}
	}
}
