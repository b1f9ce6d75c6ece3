package encode_test

import (
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
	"google.golang.org/protobuf/reflect/protopath"
	"google.golang.org/protobuf/reflect/protorange"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/heddle-mesh/heddle/internal/compile"
	"github.com/heddle-mesh/heddle/internal/config"
	"github.com/heddle-mesh/heddle/internal/encode"
	"github.com/heddle-mesh/heddle/internal/model"
	"github.com/heddle-mesh/heddle/internal/plan"
	"github.com/heddle-mesh/heddle/internal/proxy/decode"
)

// TestPlansOfTheCompileStepSurvive sends every plan that the cases of the compile
// step lead to over the wire and back: what is compiled arrives, and no proxy
// refuses it.
func TestPlansOfTheCompileStepSurvive(t *testing.T) {
	cases, err := filepath.Glob("../compile/testdata/*.txtar")
	if err != nil || len(cases) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	for _, file := range cases {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			w := worldOf(t, file)
			e := encode.New()
			for _, p := range proxiesOf(w) {
				made := compile.Plan(compile.ViewOf(w, p))
				set := e.Plan(made)
				for _, list := range set {
					for _, r := range list {
						keepsEnvoysRules(t, r.Name, r.Body)
					}
				}
				got, err := back(set)
				if err != nil {
					t.Errorf("%s: a proxy refuses it: %v", p.ID, err)
					continue
				}
				if want := canonical(made); !reflect.DeepEqual(got, want) {
					t.Errorf("%s: it changes on the way (-sent +received):\n%s", p.ID, cmp.Diff(want, got, equateNetip))
				}
				for _, c := range made.Clusters {
					if c.Discovery != plan.EDS {
						continue
					}
					l, ok := compile.Endpoints(w, c.EDSName())
					if !ok {
						t.Errorf("%s: cluster %s has no endpoint list", p.ID, c.Name)
						continue
					}
					r := e.LoadAssignment(l)
					keepsEnvoysRules(t, r.Name, r.Body)
					if _, err := decode.LoadAssignment(r.Body); err != nil {
						t.Errorf("%s: %v", p.ID, err)
					}
				}
			}
		})
	}
}

func worldOf(t *testing.T, file string) *model.World {
	t.Helper()
	archive, err := txtar.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	b := config.Batch{Source: "test", Synced: true}
	for _, f := range archive.Files {
		if !strings.HasSuffix(f.Name, ".yaml") {
			continue
		}
		objects, _ := config.Decode(f.Name, f.Data)
		for _, o := range objects {
			o.Created = time.Unix(int64(len(b.Changes)), 0)
			b.Changes = append(b.Changes, config.Change{Key: o.Key, Object: o})
		}
	}
	w, _ := model.NewBuilder(model.Options{}).Apply(b)
	return w
}

// proxiesOf returns a sidecar for each workload and namespace, and a gateway for
// each that is configured: ours and Envoy.
func proxiesOf(w *model.World) []*compile.Proxy {
	var base []compile.Proxy
	namespaces := map[string]bool{"default": true}
	for _, s := range w.Services() {
		namespaces[s.Namespace] = true
	}
	for ns := range namespaces {
		base = append(base, compile.Proxy{ID: "any." + ns, Namespace: ns, Labels: map[string]string{"app": "any"}})
	}
	for _, wl := range w.Workloads() {
		base = append(base, compile.Proxy{ID: wl.Name + "." + wl.Namespace, IPs: wl.IPs, Namespace: wl.Namespace, Labels: wl.Labels, ServiceAccount: wl.ServiceAccount})
	}
	for _, g := range w.Gateways() {
		base = append(base, compile.Proxy{Class: compile.Gateway, ID: g.Name + "." + g.Namespace, Namespace: g.Namespace, Labels: g.Spec.Selector})
	}
	var out []*compile.Proxy
	for _, p := range base {
		capturing := p
		capturing.ID, capturing.DNSCapture = "capturing "+p.ID, true
		out = append(out, &p, &capturing)
	}
	return out
}

// canonical orders a plan as a set does.
func canonical(p *plan.Plan) *plan.Plan {
	c := *p
	c.Listeners = slices.Clone(p.Listeners)
	slices.SortFunc(c.Listeners, func(a, b *plan.Listener) int { return strings.Compare(a.Name, b.Name) })
	c.Routes = slices.Clone(p.Routes)
	slices.SortFunc(c.Routes, func(a, b *plan.RouteConfig) int { return strings.Compare(a.Name, b.Name) })
	c.Clusters = slices.Clone(p.Clusters)
	slices.SortFunc(c.Clusters, func(a, b *plan.Cluster) int { return strings.Compare(a.Name, b.Name) })
	return &c
}

// keepsEnvoysRules checks a message, and those packed into it, by the rules that
// Envoy's API states for its fields.
func keepsEnvoysRules(t *testing.T, name string, a *anypb.Any) {
	t.Helper()
	if a.GetTypeUrl() == encode.NameTableType {
		return // not Envoy's
	}
	m, err := a.UnmarshalNew()
	if err != nil {
		t.Errorf("%s: %v", name, err)
		return
	}
	if v, ok := m.(interface{ ValidateAll() error }); ok {
		if err := v.ValidateAll(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	} else {
		t.Errorf("%s: %T has no rules", name, m)
	}
	err = protorange.Range(m.ProtoReflect(), func(v protopath.Values) error {
		if inner, ok := v.Index(-1).Value.Interface().(protoreflect.Message); ok && v.Len() > 1 {
			if packed, ok := inner.Interface().(*anypb.Any); ok {
				keepsEnvoysRules(t, name, packed)
				return protorange.Break
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}
