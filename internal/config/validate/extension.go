package validate

import (
	"fmt"
	"net/url"
	"strings"

	extensionsv1alpha1 "istio.io/api/extensions/v1alpha1"
	typev1beta1 "istio.io/api/type/v1beta1"
)

// Lengths that the CRDs set.
const (
	maxPluginName = 256
	maxSecretName = 253
	maxEnvName    = 256
	maxEnvValue   = 2048
	maxLua        = 64 << 10
)

func (c *checker) wasmPlugin(p *extensionsv1alpha1.WasmPlugin) {
	c.targets(p.Selector, p.TargetRef, p.TargetRefs)
	c.wasm("spec", p.Url, p.Sha256, p.ImagePullSecret, p.PluginName, p.VmConfig)
	for i, m := range p.Match {
		c.matchPorts(at("spec.match", i), m.Ports)
	}
}

func (c *checker) trafficExtension(t *extensionsv1alpha1.TrafficExtension) {
	c.targets(t.Selector, nil, t.TargetRefs)
	wasm, lua := t.GetWasm(), t.GetLua()
	switch {
	case wasm != nil:
		c.wasm("spec.wasm", wasm.Url, wasm.Sha256, wasm.ImagePullSecret, wasm.PluginName, wasm.VmConfig)
	case lua == nil:
		c.err("spec", "the extension runs nothing", "give wasm or lua")
	case lua.InlineCode == "":
		c.err("spec.lua.inlineCode", "missing", "")
	case len(lua.InlineCode) > maxLua:
		c.err("spec.lua.inlineCode", fmt.Sprintf("code of %d bytes", len(lua.InlineCode)), fmt.Sprintf("the most is %d", maxLua))
	}
	for i, m := range t.Match {
		c.matchPorts(at("spec.match", i), m.Ports)
	}
}

func (c *checker) wasm(path, module, sum, secret, name string, vm *extensionsv1alpha1.VmConfig) {
	c.moduleURL(path+".url", module)
	if sum != "" && (len(sum) != 64 || strings.Trim(sum, "0123456789abcdef") != "") {
		c.err(path+".sha256", fmt.Sprintf("%q is no SHA-256", sum), "it is 64 digits 0-9 and a-f")
	}
	c.notEmpty(path+".imagePullSecret", secret)
	if len(secret) > maxSecretName {
		c.err(path+".imagePullSecret", fmt.Sprintf("a name of %d characters", len(secret)), fmt.Sprintf("the most is %d", maxSecretName))
	}
	c.notEmpty(path+".pluginName", name)
	if len(name) > maxPluginName {
		c.err(path+".pluginName", fmt.Sprintf("a name of %d characters", len(name)), fmt.Sprintf("the most is %d", maxPluginName))
	}
	seen := map[string]bool{}
	for i, e := range vm.GetEnv() {
		field := at(path+".vmConfig.env", i)
		switch {
		case e.Name == "":
			c.err(field+".name", "missing", "")
		case len(e.Name) > maxEnvName:
			c.err(field+".name", fmt.Sprintf("a name of %d characters", len(e.Name)), fmt.Sprintf("the most is %d", maxEnvName))
		case seen[e.Name]:
			c.err(field+".name", fmt.Sprintf("%s stands twice", e.Name), "")
		}
		seen[e.Name] = true
		if e.Value != "" && e.ValueFrom != extensionsv1alpha1.EnvValueSource_INLINE {
			c.err(field+".value", "the value comes from the host", "remove it, or valueFrom: HOST")
		}
		if len(e.Value) > maxEnvValue {
			c.err(field+".value", fmt.Sprintf("a value of %d characters", len(e.Value)), fmt.Sprintf("the most is %d", maxEnvValue))
		}
	}
}

// moduleURL checks where a module is fetched from; without a scheme it is an
// image reference.
func (c *checker) moduleURL(path, module string) {
	const hint = "write oci://, https://, http:// or file:///"
	if module == "" {
		c.err(path, "missing", hint)
		return
	}
	u, err := url.ParseRequestURI(module)
	if err != nil {
		if u, err = url.ParseRequestURI("http://" + module); err != nil {
			c.err(path, fmt.Sprintf("%q is no URL", module), hint)
			return
		}
		u.Scheme = ""
	}
	switch u.Scheme {
	case "", "file", "http", "https", "oci":
	default:
		c.err(path, fmt.Sprintf("modules are not fetched by %s", u.Scheme), hint)
	}
}

func (c *checker) matchPorts(path string, ports []*typev1beta1.PortSelector) {
	seen := map[uint32]bool{}
	for i, p := range ports {
		field := at(path+".ports", i) + ".number"
		c.port(field, p.Number)
		if seen[p.Number] {
			c.err(field, fmt.Sprintf("port %d stands twice", p.Number), "")
		}
		seen[p.Number] = true
	}
}
