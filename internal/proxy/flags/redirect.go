package flags

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"strconv"

	"github.com/heddle-mesh/heddle/internal/dnsproxy"
	"github.com/heddle-mesh/heddle/internal/redirect"
)

// Redirect writes the rules that take a pod's traffic to its proxy, as the init
// container does. The flags are those of Istio's istio-iptables.
func Redirect(args []string, stdout, stderr io.Writer) error {
	annotations := make(map[string]string)
	fs := flag.NewFlagSet("redirect", flag.ContinueOnError)
	fs.SetOutput(stderr)
	given := func(annotation string) func(string) error {
		return func(v string) error {
			annotations["traffic.sidecar.istio.io/"+annotation] = v
			return nil
		}
	}
	fs.Func("i", "outbound IP ranges to capture, * for all", given("includeOutboundIPRanges"))
	fs.Func("x", "outbound IP ranges not to capture", given("excludeOutboundIPRanges"))
	fs.Func("q", "outbound ports to capture in any case", given("includeOutboundPorts"))
	fs.Func("o", "outbound ports not to capture", given("excludeOutboundPorts"))
	fs.Func("b", "inbound ports to capture, * for all", given("includeInboundPorts"))
	fs.Func("d", "inbound ports not to capture", given("excludeInboundPorts"))
	fs.Func("c", "interfaces not to capture on", given("excludeInterfaces"))
	file := fs.String("annotations", "", "file with the pod's annotations; flags beat them")
	outbound := fs.Uint("p", 15001, "port for outbound connections")
	inbound := fs.Uint("z", 15006, "port for inbound connections")
	uid := fs.String("u", "1337", "user id of the proxy")
	gid := fs.String("g", "1337", "group id of the proxy")
	mode := fs.String("m", "REDIRECT", "REDIRECT is the only mode")
	dns := fs.Bool("redirect-dns", false, "capture DNS queries to the servers of resolv.conf")
	allDNS := fs.Bool("capture-all-dns", false, "capture all DNS queries")
	dry := fs.Bool("dry-run", false, "print the rules and change nothing")
	cleanup := fs.Bool("cleanup-only", false, "remove the rules")
	for _, name := range []string{"drop-invalid", "dual-stack", "native-nftables", "force-apply", "reconcile"} {
		fs.Bool(name, false, "accepted for compatibility")
	}
	if err := fs.Parse(args); err != nil {
		return err
	}
	if fs.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", fs.Arg(0))
	}
	if *cleanup {
		return redirect.Remove()
	}

	var bad faults
	if *mode != "REDIRECT" {
		bad.add(fmt.Errorf("-m %s: only REDIRECT is supported", *mode))
	}
	all := make(map[string]string)
	if *file != "" {
		pairs, err := readPairs(*file)
		bad.add(err)
		maps.Copy(all, pairs)
	}
	maps.Copy(all, annotations)
	cfg, err := redirect.FromAnnotations(all)
	bad.add(err)
	cfg.OutboundPort, cfg.InboundPort = uint16(*outbound), uint16(*inbound)
	for name, v := range map[string]uint{"-p": *outbound, "-z": *inbound} {
		if v == 0 || v > 65535 {
			bad.add(fmt.Errorf("%s %d is not a port", name, v))
		}
	}
	id := func(name, text string, to *uint32) {
		n, err := strconv.ParseUint(text, 10, 32)
		if err != nil {
			bad.add(fmt.Errorf("%s %q is not a number", name, text))
			return
		}
		*to = uint32(n)
	}
	id("-u", *uid, &cfg.UID)
	id("-g", *gid, &cfg.GID)
	cfg.DNS = *dns || *allDNS
	if *dns && !*allDNS {
		if f, err := os.Open(resolvConf); err == nil {
			rc, err := dnsproxy.ParseResolvConf(f)
			f.Close()
			bad.add(err)
			for _, s := range rc.Servers {
				cfg.DNSServers = append(cfg.DNSServers, s.Addr())
			}
		}
	}
	if err := errors.Join(bad...); err != nil {
		return err
	}
	rules := redirect.Rules(cfg)
	if *dry {
		_, err := io.WriteString(stdout, rules.String())
		return err
	}
	return redirect.Apply(rules)
}
