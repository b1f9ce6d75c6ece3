package validate

import (
	"fmt"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// The API server checks objects of Kubernetes far more closely. What is checked
// here is what the mesh relies on, for objects that come from files.

func (c *checker) service(s *corev1.Service) {
	external := s.Spec.Type == corev1.ServiceTypeExternalName
	switch s.Spec.Type {
	case "", corev1.ServiceTypeClusterIP, corev1.ServiceTypeNodePort, corev1.ServiceTypeLoadBalancer, corev1.ServiceTypeExternalName:
	default:
		c.err("spec.type", fmt.Sprintf("type %q is unknown", s.Spec.Type), "known are ClusterIP, NodePort, LoadBalancer, ExternalName")
	}
	if external && s.Spec.ExternalName == "" {
		c.err("spec.externalName", "missing", "type ExternalName is a name for another host")
	}
	if len(s.Spec.Ports) == 0 && !external && s.Spec.ClusterIP != corev1.ClusterIPNone {
		c.err("spec.ports", "missing", "a service needs a port")
	}
	if ip := s.Spec.ClusterIP; ip != "" && ip != corev1.ClusterIPNone {
		c.ip("spec.clusterIP", ip)
	}
	c.labels("spec.selector", s.Spec.Selector)
	names, numbers := map[string]bool{}, map[string]bool{}
	for i, p := range s.Spec.Ports {
		path := at("spec.ports", i)
		c.port(path+".port", uint32(max(p.Port, 0)))
		if len(s.Spec.Ports) > 1 && p.Name == "" {
			c.err(path+".name", "missing", "several ports are told apart by name")
		}
		if p.Name != "" {
			c.portName(path+".name", p.Name)
			if names[p.Name] {
				c.err(path+".name", fmt.Sprintf("there are two ports %q", p.Name), "")
			}
			names[p.Name] = true
		}
		switch p.Protocol {
		case "", corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP:
		default:
			c.err(path+".protocol", fmt.Sprintf("%q is no transport", p.Protocol), "write TCP or UDP; the protocol above goes into appProtocol or the name")
		}
		number := fmt.Sprint(p.Port, "/", p.Protocol)
		if numbers[number] {
			c.err(path+".port", fmt.Sprintf("there are two ports %d", p.Port), "")
		}
		numbers[number] = true
		c.targetPort(path+".targetPort", p.TargetPort)
	}
}

func (c *checker) targetPort(path string, p intstr.IntOrString) {
	switch {
	case p.Type == intstr.Int && p.IntVal == 0 && !c.written(path):
	case p.Type == intstr.Int:
		c.port(path, uint32(max(p.IntVal, 0)))
	case !isLabel(p.StrVal) || strings.Trim(p.StrVal, "0123456789") == "":
		c.err(path, fmt.Sprintf("%q is no name of a port", p.StrVal), "write a number without quotes, or the name of a container's port")
	}
}

func (c *checker) deployment(d *appsv1.Deployment) {
	if d.Spec.Replicas != nil && *d.Spec.Replicas < 0 {
		c.err("spec.replicas", fmt.Sprintf("%d is negative", *d.Spec.Replicas), "")
	}
	switch sel := d.Spec.Selector; {
	case sel == nil || len(sel.MatchLabels)+len(sel.MatchExpressions) == 0:
		c.err("spec.selector", "missing", "write matchLabels with the labels of the template")
	default:
		s, err := metav1.LabelSelectorAsSelector(sel)
		if err != nil {
			c.err("spec.selector", err.Error(), "")
		} else if !s.Matches(labelSet(d.Spec.Template.Labels)) {
			c.err("spec.selector", "it does not select the pods of its own template", "use the labels of spec.template.metadata.labels")
		}
	}
	c.labels("spec.template.metadata.labels", d.Spec.Template.Labels)
	c.pod(&d.Spec.Template.Spec, "spec.template.spec")
}

// labelSet is a map of labels as Kubernetes' selectors read it.
type labelSet map[string]string

func (s labelSet) Has(k string) bool              { _, ok := s[k]; return ok }
func (s labelSet) Get(k string) string            { return s[k] }
func (s labelSet) Lookup(k string) (string, bool) { v, ok := s[k]; return v, ok }

func (c *checker) pod(p *corev1.PodSpec, path string) {
	if len(p.Containers) == 0 {
		c.err(path+".containers", "missing", "a pod needs a container")
	}
	volumes := map[string]bool{}
	for i, v := range p.Volumes {
		if volumes[v.Name] {
			c.err(at(path+".volumes", i)+".name", fmt.Sprintf("there are two volumes %q", v.Name), "")
		}
		volumes[v.Name] = true
	}
	names := map[string]bool{}
	for _, list := range []struct {
		field string
		of    []corev1.Container
	}{{".initContainers", p.InitContainers}, {".containers", p.Containers}} {
		for i := range list.of {
			ct := &list.of[i]
			field := at(path+list.field, i)
			if !isLabel(ct.Name) {
				c.err(field+".name", fmt.Sprintf("%q is no name of a container", ct.Name), "")
			}
			if names[ct.Name] {
				c.err(field+".name", fmt.Sprintf("there are two containers %q", ct.Name), "")
			}
			names[ct.Name] = true
			for j, port := range ct.Ports {
				c.port(at(field+".ports", j)+".containerPort", uint32(max(port.ContainerPort, 0)))
			}
			for j, m := range ct.VolumeMounts {
				if !volumes[m.Name] {
					c.err(at(field+".volumeMounts", j)+".name", fmt.Sprintf("the pod has no volume %q", m.Name), "")
				}
			}
		}
	}
}
