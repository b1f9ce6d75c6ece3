package inject

import (
	"encoding/json"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// probersVariable tells the proxy which probe each of its paths stands for.
const probersVariable = "ISTIO_KUBE_APP_PROBERS"

const (
	healthPath    = "/app-health/"
	lifecyclePath = "/app-lifecycle/"
)

// prober is one probe in the form that Istio's agent reads.
type prober struct {
	HTTPGet        *corev1.HTTPGetAction   `json:"httpGet,omitempty"`
	TCPSocket      *corev1.TCPSocketAction `json:"tcpSocket,omitempty"`
	GRPC           *corev1.GRPCAction      `json:"grpc,omitempty"`
	TimeoutSeconds int32                   `json:"timeoutSeconds,omitempty"`
}

// rewriteProbes sends the kubelet's probes and the HTTP hooks of the containers
// to the proxy's status port: the kubelet has no certificate, and a probe of a
// port must see the application and not the proxy in front of it. Commands run
// inside the container, and stay.
func rewriteProbes(pod *corev1.Pod, statusPort int32) error {
	proxy := findContainer(pod, ProxyContainer)
	if proxy == nil || statusPort == 0 {
		return nil
	}
	probers := make(map[string]*prober)
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			if c := &list[i]; c.Name != ProxyContainer {
				if err := rewriteContainer(c, statusPort, probers); err != nil {
					return err
				}
			}
		}
	}
	if len(probers) == 0 {
		return nil
	}
	b, err := json.Marshal(probers)
	if err != nil {
		return err
	}
	setEnv(proxy, probersVariable, string(b))
	return nil
}

func rewriteContainer(c *corev1.Container, statusPort int32, probers map[string]*prober) error {
	for _, p := range []struct {
		name  string
		probe *corev1.Probe
	}{{"livez", c.LivenessProbe}, {"readyz", c.ReadinessProbe}, {"startupz", c.StartupProbe}} {
		if p.probe == nil {
			continue
		}
		h := &p.probe.ProbeHandler
		to := &prober{HTTPGet: h.HTTPGet, TCPSocket: h.TCPSocket, GRPC: h.GRPC, TimeoutSeconds: p.probe.TimeoutSeconds}
		ok, err := to.resolve(c, statusPort)
		if err != nil {
			return fmt.Errorf("container %s: %s: %w", c.Name, p.name, err)
		}
		if ok {
			path := healthPath + c.Name + "/" + p.name
			probers[path] = to
			*h = corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: path, Port: intstr.FromInt32(statusPort)}}
		}
	}
	if c.Lifecycle == nil {
		return nil
	}
	for _, l := range []struct {
		name string
		hook *corev1.LifecycleHandler
	}{{"poststartz", c.Lifecycle.PostStart}, {"prestopz", c.Lifecycle.PreStop}} {
		if l.hook == nil {
			continue
		}
		to := &prober{HTTPGet: l.hook.HTTPGet, TCPSocket: l.hook.TCPSocket}
		ok, err := to.resolve(c, statusPort)
		if err != nil {
			return fmt.Errorf("container %s: %s: %w", c.Name, l.name, err)
		}
		if ok {
			path := lifecyclePath + c.Name + "/" + l.name
			probers[path] = to
			*l.hook = corev1.LifecycleHandler{HTTPGet: &corev1.HTTPGetAction{Path: path, Port: intstr.FromInt32(statusPort)}}
		}
	}
	return nil
}

// resolve puts numbers in the place of names of ports. It reports false for what
// is not to be rewritten: commands, calls of other hosts, and what was rewritten.
func (p *prober) resolve(c *corev1.Container, statusPort int32) (bool, error) {
	named := func(port intstr.IntOrString) (intstr.IntOrString, error) {
		if port.Type == intstr.Int {
			return port, nil
		}
		for _, q := range c.Ports {
			if q.Name == port.StrVal {
				return intstr.FromInt32(q.ContainerPort), nil
			}
		}
		return port, fmt.Errorf("the container has no port %q", port.StrVal)
	}
	var err error
	switch {
	case p.HTTPGet != nil:
		get := *p.HTTPGet
		if get.Port.IntVal == statusPort && (strings.HasPrefix(get.Path, healthPath) || strings.HasPrefix(get.Path, lifecyclePath)) {
			return false, nil
		}
		if get.Host != "" {
			return false, nil // another host's answer does not come through this pod's proxy
		}
		get.Port, err = named(get.Port)
		p.HTTPGet = &get
	case p.TCPSocket != nil:
		if p.TCPSocket.Host != "" {
			return false, nil
		}
		dial := *p.TCPSocket
		dial.Port, err = named(dial.Port)
		p.TCPSocket = &dial
	case p.GRPC != nil:
	default:
		return false, nil
	}
	return err == nil, err
}

// setEnv sets a variable unless the container has it.
func setEnv(c *corev1.Container, name, value string) {
	for _, e := range c.Env {
		if e.Name == name {
			return
		}
	}
	// Kubernetes replaces $(NAME) in values; $$ stands for one $.
	c.Env = append(c.Env, corev1.EnvVar{Name: name, Value: strings.ReplaceAll(value, "$", "$$")})
}
