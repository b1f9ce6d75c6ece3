package compile_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/tools/txtar"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/heddle-mesh/heddle/internal/config"
)

// unused lists fields that no case uses, with the reason. A field that begins to
// act loses its row here and gets a case.
var unused = map[string]string{
	"Delay.exponentialDelay":                  "Istio does not implement it",
	"Abort.http2Error":                        "Istio does not implement it",
	"L4MatchAttributes.sourceSubnet":          "Istio does not implement it",
	"LoadBalancerSettings.zoneAwareLbSetting": "does not act yet; localityLbSetting does",
	"ZoneAwareLoadBalancerSetting":            "does not act yet; LocalityLoadBalancerSetting does",
	"HTTPSettings.maxConcurrentStreams":       "does not act yet",
	"HTTPSettings.http2KeepAlive":             "does not act yet",
	"ConnectionKeepalive":                     "does not act yet",
	"ClientTLSSettings.caCrl":                 "does not act yet",
	"TrafficPolicy.tunnel":                    "does not act yet",
	"TunnelSettings":                          "does not act yet",
	"RetryBudget.budgetInterval":              "retries are counted as they are, not over an interval",
	"ServerTLSSettings":                       "of gateways that end TLS",
	"TLSCertificate":                          "of gateways that end TLS",
	"Server.defaultEndpoint":                  "Istio does not implement it",
	"WorkloadEntry.network":                   "there is one network",
	"Port.targetPort":                         "Istio ignores it",
}

// TestEveryFieldHasACase walks the fields of the traffic API and fails for one that
// neither a golden case nor a mesh script sets, unless there is a reason. It fails,
// too, for a reason that is no longer needed.
func TestEveryFieldHasACase(t *testing.T) {
	used := map[string]bool{}
	for _, pattern := range []string{"testdata/*.txtar", "../../test/scripts/*.txtar", "../../test/scripts/common/*.yaml"} {
		files, err := filepath.Glob(pattern)
		if err != nil || len(files) == 0 {
			t.Fatalf("%s: %v", pattern, err)
		}
		for _, name := range files {
			data, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			manifests := []txtar.File{{Name: name, Data: data}}
			if strings.HasSuffix(name, ".txtar") {
				manifests = txtar.Parse(data).Files
			}
			for _, f := range manifests {
				if !strings.HasSuffix(f.Name, ".yaml") {
					continue
				}
				objects, _ := config.Decode(f.Name, f.Data)
				for _, o := range objects {
					if m, ok := o.Spec.(proto.Message); ok {
						mark(used, string(m.ProtoReflect().Descriptor().Name()), m.ProtoReflect())
					}
				}
			}
		}
	}
	var all []string
	for _, m := range []proto.Message{&networking.VirtualService{}, &networking.DestinationRule{}, &networking.Gateway{}, &networking.ServiceEntry{}} {
		d := m.ProtoReflect().Descriptor()
		walk(d, string(d.Name()), nil, &all)
	}
	reasons := map[string]bool{}
	for _, path := range all {
		why := ""
		for prefix, reason := range unused {
			if path == prefix || strings.HasPrefix(path, prefix+".") {
				why = reason
				if !used[path] {
					reasons[prefix] = true
				}
			}
		}
		if !used[path] && why == "" {
			t.Errorf("no case uses %s", path)
		}
	}
	for prefix := range unused {
		if !reasons[prefix] {
			t.Errorf("cases use %s, whose reason for none can go", prefix)
		}
	}
}

// mark notes the fields that a message has set. A policy of a subset or of a port is
// the same as that of the host.
func mark(used map[string]bool, path string, m protoreflect.Message) {
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		at := fieldPath(path, f)
		used[at] = true
		each := func(v protoreflect.Value) {
			if f.Message() != nil && f.MapValue() == nil && f.Message().FullName().Parent() != "google.protobuf" {
				mark(used, at, v.Message())
			}
		}
		switch {
		case f.IsList():
			for i := range v.List().Len() {
				each(v.List().Get(i))
			}
		case f.IsMap():
			if f.MapValue().Message() != nil {
				v.Map().Range(func(_ protoreflect.MapKey, v protoreflect.Value) bool {
					mark(used, at, v.Message())
					return true
				})
			}
		default:
			each(v)
		}
		return true
	})
}

// fieldPath names a field. What is the same message in several places is one.
func fieldPath(path string, f protoreflect.FieldDescriptor) string {
	owner := string(f.Parent().Name())
	switch owner {
	case "PortTrafficPolicy":
		owner = "TrafficPolicy"
	case "HTTPRouteDestination":
		owner = "HTTPRoute.route"
	}
	if strings.Contains(path, ".") {
		return owner + "." + f.JSONName()
	}
	return path + "." + f.JSONName()
}

func walk(d protoreflect.MessageDescriptor, path string, seen []protoreflect.FullName, all *[]string) {
	if slices.Contains(seen, d.FullName()) || d.FullName().Parent() == "google.protobuf" {
		return
	}
	seen = append(seen, d.FullName())
	for i := range d.Fields().Len() {
		f := d.Fields().Get(i)
		at := fieldPath(path, f)
		if !slices.Contains(*all, at) {
			*all = append(*all, at)
		}
		m := f.Message()
		if f.IsMap() {
			m = f.MapValue().Message()
		}
		if m != nil {
			walk(m, at, seen, all)
		}
	}
}
