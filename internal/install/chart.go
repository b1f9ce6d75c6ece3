package install

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"text/template"

	"github.com/Masterminds/sprig/v3"
	"sigs.k8s.io/yaml"
)

// Chart is a Helm chart without subcharts: values, and templates of manifests.
// Rendering follows Helm's rules, as far as our own charts need them.
type Chart struct {
	meta   map[string]any
	values map[string]any
	files  map[string][]byte // beside the templates, by path
	texts  map[string]string // templates, by path
}

// Release is what a chart is rendered for.
type Release struct {
	Name, Namespace string
	KubeVersion     string // "v1.34.4"; "" for one that is new enough
}

// assumedVersion is that of a cluster that nobody has asked.
const assumedVersion = "v1.34.0"

// LoadChart reads a chart's folder.
func LoadChart(dir fs.FS) (*Chart, error) {
	c := &Chart{files: make(map[string][]byte), texts: make(map[string]string)}
	err := fs.WalkDir(dir, ".", func(name string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		b, err := fs.ReadFile(dir, name)
		if err != nil {
			return err
		}
		switch {
		case name == "Chart.yaml":
			return yaml.Unmarshal(b, &c.meta)
		case name == "values.yaml":
			return yaml.Unmarshal(b, &c.values)
		case strings.HasPrefix(name, "templates/"):
			c.texts[name] = string(b)
		default:
			c.files[name] = b
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("chart: %w", err)
	}
	if c.meta["name"] == nil {
		return nil, errors.New("chart: Chart.yaml has no name")
	}
	return c, nil
}

// Render makes the manifests of a release. values are laid over the chart's own.
func (c *Chart) Render(r Release, values map[string]any) ([]byte, error) {
	name, _ := c.meta["name"].(string)
	meta := make(map[string]any)
	for k, v := range c.meta { // Helm's templates write .Chart.AppVersion
		meta[strings.ToUpper(k[:1])+k[1:]] = v
	}
	if r.KubeVersion == "" {
		r.KubeVersion = assumedVersion
	}
	major, minor, _ := strings.Cut(strings.TrimPrefix(r.KubeVersion, "v"), ".")
	minor, _, _ = strings.Cut(minor, ".")
	data := map[string]any{
		"Values":  merge(c.values, values),
		"Chart":   meta,
		"Release": map[string]any{"Name": r.Name, "Namespace": r.Namespace, "Service": "Helm", "Revision": 1, "IsInstall": true, "IsUpgrade": false},
		"Files":   files(c.files),
		"Capabilities": map[string]any{
			"KubeVersion": kubeVersion{Version: r.KubeVersion, Major: major, Minor: minor, GitVersion: r.KubeVersion},
			"APIVersions": apiVersions{},
		},
	}
	root := template.New(name).Option("missingkey=zero")
	root.Funcs(chartFunctions(root))
	paths := slices.Sorted(maps.Keys(c.texts))
	for _, p := range paths {
		if _, err := root.New(path.Join(name, p)).Parse(c.texts[p]); err != nil {
			return nil, fmt.Errorf("chart: %w", err)
		}
	}
	var out bytes.Buffer
	for _, p := range paths {
		if strings.HasPrefix(path.Base(p), "_") {
			continue
		}
		var text strings.Builder
		full := path.Join(name, p)
		data["Template"] = map[string]any{"Name": full, "BasePath": path.Join(name, "templates")}
		if err := root.ExecuteTemplate(&text, full, data); err != nil {
			return nil, fmt.Errorf("chart: %w", err)
		}
		// What a template prints for a value that is not there.
		body := strings.ReplaceAll(text.String(), "<no value>", "")
		if strings.TrimSpace(body) != "" {
			fmt.Fprintf(&out, "---\n# Source: %s\n%s\n", full, strings.TrimSpace(body))
		}
	}
	return out.Bytes(), nil
}

type kubeVersion struct{ Version, Major, Minor, GitVersion string }

func (v kubeVersion) String() string { return v.Version }

// apiVersions are those of the cluster. The charts have no use for others than
// those that every cluster has.
type apiVersions struct{}

func (apiVersions) Has(string) bool { return true }

// files are a chart's other files.
type files map[string][]byte

// Get returns a file's text, "" if there is none.
func (f files) Get(name string) string { return string(f[name]) }

// Lines returns a file's lines.
func (f files) Lines(name string) []string {
	return strings.Split(strings.TrimSuffix(f.Get(name), "\n"), "\n")
}

// maxDepth bounds templates that include themselves.
const maxDepth = 1000

// chartFunctions are sprig's, without those that look at this machine, and Helm's.
func chartFunctions(root *template.Template) template.FuncMap {
	f := sprig.TxtFuncMap()
	delete(f, "env")
	delete(f, "expandenv")
	depth := 0
	fromYAML := func(text string) map[string]any {
		out := make(map[string]any)
		if err := yaml.Unmarshal([]byte(text), &out); err != nil {
			out["Error"] = err.Error()
		}
		return out
	}
	maps.Copy(f, template.FuncMap{
		"include": func(name string, data any) (string, error) {
			if depth++; depth > maxDepth {
				return "", fmt.Errorf("template %s includes itself", name)
			}
			defer func() { depth-- }()
			var out strings.Builder
			err := root.ExecuteTemplate(&out, name, data)
			return out.String(), err
		},
		"tpl": func(text string, data any) (string, error) {
			t, err := root.Clone()
			if err != nil {
				return "", err
			}
			if t, err = t.New("tpl").Parse(text); err != nil {
				return "", err
			}
			var out strings.Builder
			err = t.Execute(&out, data)
			return strings.ReplaceAll(out.String(), "<no value>", ""), err
		},
		"required": func(why string, v any) (any, error) {
			if v == nil || v == "" {
				return nil, errors.New(why)
			}
			return v, nil
		},
		"toYaml": func(v any) string {
			b, err := yaml.Marshal(v)
			if err != nil {
				return ""
			}
			return strings.TrimSuffix(string(b), "\n")
		},
		"fromYaml": fromYAML,
		"fromYamlArray": func(text string) []any {
			var out []any
			if err := yaml.Unmarshal([]byte(text), &out); err != nil {
				return []any{err.Error()}
			}
			return out
		},
		"toJson": func(v any) string {
			b, err := json.Marshal(v)
			if err != nil {
				return ""
			}
			return string(b)
		},
		"fromJson":      fromYAML, // of which JSON is a part
		"lookup":        func(...any) map[string]any { return map[string]any{} },
		"getHostByName": func(string) string { return "" },
	})
	return f
}
