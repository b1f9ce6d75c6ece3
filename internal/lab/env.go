package lab

import (
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// finder looks objects up that a container refers to.
type finder interface {
	configMap(namespace, name string) (*corev1.ConfigMap, bool)
	secret(namespace, name string) (*corev1.Secret, bool)
}

// environment returns a container's variables as "NAME=value", sorted by the
// order of their first definition; later ones may refer to earlier ones. base
// comes first and is what every container has.
func environment(pod *corev1.Pod, c *corev1.Container, base []string, find finder) ([]string, error) {
	var names []string
	values := make(map[string]string)
	set := func(name, value string) {
		if _, again := values[name]; !again {
			names = append(names, name)
		}
		values[name] = value
	}
	for _, e := range base {
		name, value, _ := strings.Cut(e, "=")
		set(name, value)
	}
	var errs []error
	for _, from := range c.EnvFrom {
		data, err := envFrom(pod.Namespace, from, find)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		for _, key := range slices.Sorted(maps.Keys(data)) {
			set(from.Prefix+key, data[key])
		}
	}
	for _, e := range c.Env {
		if e.ValueFrom == nil {
			set(e.Name, expand(e.Value, values))
			continue
		}
		value, ok, err := envValue(pod, c, e.ValueFrom, find)
		if err != nil {
			errs = append(errs, fmt.Errorf("env %s: %w", e.Name, err))
		} else if ok {
			set(e.Name, value)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	env := make([]string, len(names))
	for i, n := range names {
		env[i] = n + "=" + values[n]
	}
	return env, nil
}

func envFrom(namespace string, from corev1.EnvFromSource, find finder) (map[string]string, error) {
	optional := func(o *bool) bool { return o != nil && *o }
	switch {
	case from.ConfigMapRef != nil:
		cm, ok := find.configMap(namespace, from.ConfigMapRef.Name)
		if !ok {
			if optional(from.ConfigMapRef.Optional) {
				return nil, nil
			}
			return nil, fmt.Errorf("there is no ConfigMap %s/%s", namespace, from.ConfigMapRef.Name)
		}
		return cm.Data, nil
	case from.SecretRef != nil:
		s, ok := find.secret(namespace, from.SecretRef.Name)
		if !ok {
			if optional(from.SecretRef.Optional) {
				return nil, nil
			}
			return nil, fmt.Errorf("there is no Secret %s/%s", namespace, from.SecretRef.Name)
		}
		data := make(map[string]string)
		for k, v := range secretData(s) {
			data[k] = string(v)
		}
		return data, nil
	}
	return nil, nil
}

// envValue returns a referred value; false leaves the variable out.
func envValue(pod *corev1.Pod, c *corev1.Container, from *corev1.EnvVarSource, find finder) (string, bool, error) {
	optional := func(o *bool) bool { return o != nil && *o }
	switch {
	case from.FieldRef != nil:
		v, err := field(pod, from.FieldRef.FieldPath)
		return v, true, err
	case from.ResourceFieldRef != nil:
		v, err := resourceField(c, from.ResourceFieldRef)
		return v, true, err
	case from.ConfigMapKeyRef != nil:
		r := from.ConfigMapKeyRef
		cm, ok := find.configMap(pod.Namespace, r.Name)
		if v, has := "", false; ok {
			if v, has = cm.Data[r.Key]; has {
				return v, true, nil
			}
		}
		if optional(r.Optional) {
			return "", false, nil
		}
		if !ok {
			return "", false, fmt.Errorf("there is no ConfigMap %s/%s", pod.Namespace, r.Name)
		}
		return "", false, fmt.Errorf("there is no key %q in ConfigMap %s/%s", r.Key, pod.Namespace, r.Name)
	case from.SecretKeyRef != nil:
		r := from.SecretKeyRef
		s, ok := find.secret(pod.Namespace, r.Name)
		if ok {
			if v, has := secretData(s)[r.Key]; has {
				return string(v), true, nil
			}
		}
		if optional(r.Optional) {
			return "", false, nil
		}
		if !ok {
			return "", false, fmt.Errorf("there is no Secret %s/%s", pod.Namespace, r.Name)
		}
		return "", false, fmt.Errorf("there is no key %q in Secret %s/%s", r.Key, pod.Namespace, r.Name)
	}
	return "", false, errors.New("valueFrom names no source")
}

// secretData merges stringData, which an API server would do on the way in.
func secretData(s *corev1.Secret) map[string][]byte {
	if len(s.StringData) == 0 {
		return s.Data
	}
	data := maps.Clone(s.Data)
	if data == nil {
		data = make(map[string][]byte)
	}
	for k, v := range s.StringData {
		data[k] = []byte(v)
	}
	return data
}

// field is the downward API's view of a pod.
func field(pod *corev1.Pod, path string) (string, error) {
	if base, key, ok := strings.Cut(path, "['"); ok && strings.HasSuffix(key, "']") {
		key = strings.TrimSuffix(key, "']")
		switch base {
		case "metadata.labels":
			return pod.Labels[key], nil
		case "metadata.annotations":
			return pod.Annotations[key], nil
		}
	}
	switch path {
	case "metadata.name":
		return pod.Name, nil
	case "metadata.namespace":
		return pod.Namespace, nil
	case "metadata.uid":
		return string(pod.UID), nil
	case "metadata.labels":
		return downwardMap(pod.Labels), nil
	case "metadata.annotations":
		return downwardMap(pod.Annotations), nil
	case "spec.nodeName":
		return pod.Spec.NodeName, nil
	case "spec.serviceAccountName":
		return pod.Spec.ServiceAccountName, nil
	case "status.hostIP":
		return pod.Status.HostIP, nil
	case "status.hostIPs":
		var ips []string
		for _, ip := range pod.Status.HostIPs {
			ips = append(ips, ip.IP)
		}
		return strings.Join(ips, ","), nil
	case "status.podIP":
		return pod.Status.PodIP, nil
	case "status.podIPs":
		var ips []string
		for _, ip := range pod.Status.PodIPs {
			ips = append(ips, ip.IP)
		}
		return strings.Join(ips, ","), nil
	}
	return "", fmt.Errorf("the downward API has no field %q", path)
}

// downwardMap formats labels or annotations as the downward API's files do:
// key="escaped value", a line each.
func downwardMap(m map[string]string) string {
	var b strings.Builder
	for i, k := range slices.Sorted(maps.Keys(m)) {
		if i > 0 {
			b.WriteByte('\n')
		}
		b.WriteString(k + "=" + strconv.Quote(m[k]))
	}
	return b.String()
}

// resourceField answers with a container's limit or request, or with the whole
// machine where none is set, as a kubelet does.
func resourceField(c *corev1.Container, ref *corev1.ResourceFieldSelector) (string, error) {
	kind, name, _ := strings.Cut(ref.Resource, ".")
	list := c.Resources.Limits
	if kind == "requests" {
		list = c.Resources.Requests
	}
	quantity, set := list[corev1.ResourceName(name)]
	divisor := ref.Divisor
	if divisor.IsZero() {
		divisor = resource.MustParse("1")
	}
	switch name {
	case "cpu":
		if !set {
			quantity = *resource.NewQuantity(int64(runtime.NumCPU()), resource.DecimalSI)
		}
		d := max(divisor.MilliValue(), 1)
		return strconv.FormatInt((quantity.MilliValue()+d-1)/d, 10), nil
	case "memory", "ephemeral-storage":
		d := max(divisor.Value(), 1)
		return strconv.FormatInt((quantity.Value()+d-1)/d, 10), nil
	}
	return "", fmt.Errorf("the downward API has no resource %q", ref.Resource)
}

// expand replaces $(NAME) by the variable's value; $$ stands for $, and a
// reference to an unknown variable stays as it is.
// Source: Kubernetes, "Define dependent environment variables".
func expand(s string, values map[string]string) string {
	if !strings.Contains(s, "$") {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '$' || i+1 == len(s) {
			b.WriteByte(s[i])
			continue
		}
		switch s[i+1] {
		case '$':
			b.WriteByte('$')
			i++
		case '(':
			end := strings.IndexByte(s[i:], ')')
			if end < 0 {
				b.WriteByte('$')
				continue
			}
			ref := s[i : i+end+1]
			if v, ok := values[ref[2:end]]; ok {
				b.WriteString(v)
			} else {
				b.WriteString(ref)
			}
			i += end
		default:
			b.WriteByte('$')
		}
	}
	return b.String()
}

// expandAll expands command and args with the container's final environment.
func expandAll(args, env []string) []string {
	values := make(map[string]string, len(env))
	for _, e := range env {
		name, value, _ := strings.Cut(e, "=")
		values[name] = value
	}
	out := make([]string, len(args))
	for i, a := range args {
		out[i] = expand(a, values)
	}
	return out
}
