package redirect

import (
	"bytes"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
)

var update = flag.Bool("update", false, "write the rules as they are now into testdata")

// Each file holds a pod's annotations, options that do not come from
// annotations, and the rules, or the faults.
func TestRulesOfAnnotations(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatal("no testdata", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			a, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			section := func(name string) string {
				for _, f := range a.Files {
					if f.Name == name {
						return string(f.Data)
					}
				}
				return ""
			}
			got := rulesOf(t, section("annotations"), section("options"))
			if *update {
				a.Files[len(a.Files)-1].Data = []byte(got)
				if err := os.WriteFile(file, txtar.Format(a), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if diff := cmp.Diff(section("rules"), got); diff != "" {
				t.Errorf("rules (-want +got):\n%s", diff)
			}
		})
	}
}

func rulesOf(t *testing.T, annotations, options string) string {
	pod := map[string]string{}
	for line := range strings.Lines(annotations) {
		k, v, ok := strings.Cut(strings.TrimSpace(line), ": ")
		if !ok {
			t.Fatalf("annotation %q has no value", line)
		}
		pod[k] = strings.Trim(v, `"`)
	}
	c, err := FromAnnotations(pod)
	if err != nil {
		return err.Error() + "\n"
	}
	for line := range strings.Lines(options) {
		switch word, arg, _ := strings.Cut(strings.TrimSpace(line), " "); word {
		case "dns":
			c.DNS = true
		case "server":
			c.DNSServers = append(c.DNSServers, netip.MustParseAddr(arg))
		case "ipv4":
			c.IPv6 = false
		default:
			t.Fatalf("unknown option %q", line)
		}
	}
	return Rules(c).String()
}

// A caller that fills in only what it cares about gets Istio's ports and owner.
func TestRulesFillInDefaults(t *testing.T) {
	c := Default()
	c.OutboundPort, c.InboundPort, c.DNSPort, c.UID, c.GID, c.Mark = 0, 0, 0, 0, 0, 0
	if got, want := Rules(c).String(), Rules(Default()).String(); got != want {
		t.Errorf("rules differ:\n%s", cmp.Diff(want, got))
	}
}

func TestDecide(t *testing.T) {
	c := Default()
	c.DNS = true
	c.ExcludeInterfaces = []string{"net1"}
	c.ExcludeOutbound = []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}
	r := Rules(c)
	addr := netip.MustParseAddrPort
	src := addr("10.0.0.1:40000")
	for _, test := range []struct {
		name string
		p    Packet
		want uint16
	}{
		{"outbound", Packet{Src: src, Dst: addr("10.0.0.2:80"), Out: "eth0"}, 15001},
		{"outbound UDP", Packet{UDP: true, Src: src, Dst: addr("10.0.0.2:80"), Out: "eth0"}, 0},
		{"excluded range", Packet{Src: src, Dst: addr("10.1.0.2:80"), Out: "eth0"}, 0},
		{"excluded interface", Packet{Src: src, Dst: addr("10.0.0.2:80"), Out: "net1"}, 0},
		{"proxy", Packet{Src: src, Dst: addr("10.0.0.2:80"), Out: "eth0", Mark: 1337}, 0},
		{"proxy to itself", Packet{Src: src, Dst: addr("10.0.0.1:80"), Out: "lo", UID: 1337}, 15006},
		{"proxy to the app", Packet{Src: addr("127.0.0.6:40000"), Dst: addr("10.0.0.1:80"), Out: "lo", UID: 1337}, 0},
		{"app to the app", Packet{Src: src, Dst: addr("10.0.0.1:80"), Out: "lo"}, 0},
		{"DNS", Packet{UDP: true, Src: src, Dst: addr("10.96.0.10:53"), Out: "eth0"}, 15053},
		{"DNS on loopback", Packet{Src: src, Dst: addr("127.0.0.1:53"), Out: "lo"}, 15053},
		{"inbound", Packet{Src: addr("10.0.0.2:40000"), Dst: addr("10.0.0.1:80"), In: "eth0"}, 15006},
		{"inbound as IPv4 in IPv6", Packet{Src: addr("[::ffff:10.0.0.2]:40000"), Dst: addr("[::ffff:10.0.0.1]:80"), In: "eth0"}, 15006},
		{"inbound from an excluded interface", Packet{Src: addr("10.0.0.2:40000"), Dst: addr("10.0.0.1:80"), In: "net1"}, 0},
		{"inbound metrics", Packet{Src: addr("10.0.0.2:40000"), Dst: addr("10.0.0.1:15090"), In: "eth0"}, 0},
		{"inbound UDP", Packet{UDP: true, Src: addr("10.0.0.2:40000"), Dst: addr("10.0.0.1:53"), In: "eth0"}, 0},
	} {
		if got := r.Decide(test.p); got != test.want {
			t.Errorf("%s: redirected to %d, want %d", test.name, got, test.want)
		}
	}
	if got := (Ruleset{}).Decide(Packet{Src: src, Dst: addr("10.0.0.2:80"), Out: "eth0"}); got != 0 {
		t.Errorf("without rules redirected to %d", got)
	}
}

func FuzzFromAnnotations(f *testing.F) {
	f.Add("*", "80,*", "eth0")
	f.Add("10.0.0.0/8, 10.1.0.0/16,fd00::/8", "15001 , 0,65535", "net1,,net2")
	f.Fuzz(func(t *testing.T, ranges, ports, interfaces string) {
		c, err := FromAnnotations(map[string]string{
			annotationPrefix + "includeOutboundIPRanges": ranges,
			annotationPrefix + "excludeOutboundIPRanges": ranges,
			annotationPrefix + "includeInboundPorts":     ports,
			annotationPrefix + "excludeOutboundPorts":    ports,
			annotationPrefix + "excludeInterfaces":       interfaces,
		})
		if err != nil {
			return
		}
		r := Rules(c)
		if text := r.String(); bytes.Count([]byte(text), []byte("{")) != bytes.Count([]byte(text), []byte("}")) {
			t.Errorf("unbalanced rules:\n%s", text)
		}
		// The proxy must get out, whatever the pod says.
		p := Packet{Src: netip.MustParseAddrPort("10.0.0.1:4000"), Dst: netip.MustParseAddrPort("10.0.0.2:80"), Out: "eth0", Mark: 1337}
		if port := r.Decide(p); port != 0 {
			t.Errorf("the proxy's own connection is redirected to %d by\n%s", port, r)
		}
	})
}
