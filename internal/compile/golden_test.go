package compile_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/compile"
	"github.com/heddle-mesh/heddle/internal/config"
	"github.com/heddle-mesh/heddle/internal/meshtest/golden"
	"github.com/heddle-mesh/heddle/internal/model"
)

// TestGolden asks two kinds of questions about the objects of a case:
//
//	sidecar|gateway|grpc NAMESPACE[/POD] [ip=A] [dns] [http2] [proxied] [ask=H:P] [k=v…]: WHAT[; WHAT…]
//	endpoints EDSNAME
//
// WHAT selects blocks of the plan's text by the beginning of their first line,
// and after " > " some of the hosts or chains in them by a part of their text.
func TestGolden(t *testing.T) {
	golden.Run(t, "testdata/*.txtar", []string{".yaml"}, func(t *testing.T, files map[string][]byte, question string) string {
		w := worldOf(t, files)
		if name, ok := strings.CutPrefix(question, "endpoints "); ok {
			la, ok := compile.Endpoints(w, name)
			if !ok {
				return "unknown\n"
			}
			return la.String()
		}
		who, what, ok := cutLast(question, ": ")
		if !ok {
			t.Fatalf("question %q does not say what to show", question)
		}
		p := compile.Plan(compile.ViewOf(w, parseProxy(t, w, who)))
		if err := p.Validate(); err != nil {
			t.Errorf("the plan breaks its own rules: %v", err)
		}
		return selected(p.String(), strings.Split(what, "; "))
	})
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

// objectsOf decodes files; objects without a time are as old as their place in
// them says.
func objectsOf(t *testing.T, files map[string][]byte) []*config.Object {
	t.Helper()
	var out []*config.Object
	names := make([]string, 0, len(files))
	for name := range files {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		objects, faults := config.Decode(name, files[name])
		for _, f := range faults {
			if f.Severity == config.Error {
				t.Fatal(f)
			}
		}
		out = append(out, objects...)
	}
	for i, o := range out {
		if o.Created.IsZero() {
			o.Created = time.Unix(int64(i), 0)
		}
	}
	return out
}

func batchOf(objects []*config.Object) config.Batch {
	b := config.Batch{Source: "test", Synced: true}
	for _, o := range objects {
		b.Changes = append(b.Changes, config.Change{Key: o.Key, Object: o})
	}
	return b
}

func worldOf(t *testing.T, files map[string][]byte) *model.World {
	t.Helper()
	w, _ := model.NewBuilder(model.Options{}).Apply(batchOf(objectsOf(t, files)))
	return w
}

func parseProxy(t *testing.T, w *model.World, text string) *compile.Proxy {
	t.Helper()
	fields := strings.Fields(text)
	p := &compile.Proxy{Labels: map[string]string{}}
	switch fields[0] {
	case "sidecar":
	case "gateway":
		p.Class = compile.Gateway
	case "grpc":
		p.Class = compile.GRPC
	default:
		t.Fatalf("there is no class %s", fields[0])
	}
	p.Namespace, p.ID, _ = strings.Cut(fields[1], "/")
	for _, wl := range w.Workloads() {
		if wl.Namespace == p.Namespace && wl.Name == p.ID {
			p.IPs, p.Labels, p.ServiceAccount = wl.IPs, wl.Labels, wl.ServiceAccount
		}
	}
	if p.ID != "" && len(p.IPs) == 0 {
		t.Fatalf("there is no pod %s", fields[1])
	}
	for _, f := range fields[2:] {
		k, v, _ := strings.Cut(f, "=")
		switch k {
		case "dns":
			p.DNSCapture = true
		case "proxied":
			p.ProxyProtocol = true
		case "ip":
			p.IPs = append(p.IPs, netip.MustParseAddr(v))
		case "ask":
			p.Asked = append(p.Asked, v)
		default:
			p.Labels[k] = v
		}
	}
	return p
}

// selected returns the blocks of a plan's text that are asked for.
func selected(text string, what []string) string {
	var blocks [][]string
	for _, line := range strings.SplitAfter(text, "\n") {
		if line == "" {
			continue
		}
		if !strings.HasPrefix(line, " ") {
			blocks = append(blocks, nil)
		}
		blocks[len(blocks)-1] = append(blocks[len(blocks)-1], line)
	}
	var out strings.Builder
	for _, w := range what {
		start, part, narrow := strings.Cut(w, " > ")
		for _, b := range blocks {
			if !strings.HasPrefix(b[0], start) {
				continue
			}
			out.WriteString(b[0])
			show := !narrow
			for _, line := range b[1:] {
				if narrow && strings.HasPrefix(line, "  ") && line[2] != ' ' {
					show = strings.Contains(line, part)
				}
				if show {
					out.WriteString(line)
				}
			}
		}
	}
	return out.String()
}
