// Package redirect takes a workload's traffic to its sidecar: outbound TCP to
// port 15001, inbound TCP to 15006 and, where asked for, DNS to 15053.
//
// A [Config] says what is captured, [Rules] makes a [Ruleset] of it, and [Apply]
// writes that to the kernel by netlink, into the network namespace of the
// calling thread; no nft or iptables binary is needed. A Ruleset is a plain
// value: its text is what tests and people read, and [Ruleset.Decide] says what
// it does with a packet without a kernel, for simulated networks.
//
// The behaviour is that of Istio's REDIRECT mode. The proxy's own sockets pass:
// it runs as UID and GID 1337, or marks its sockets with 1337 where no second
// uid exists. The ports must be served on the loopback address of each family,
// DNS on that address alone: a reply from another one finds no way back.
package redirect

import (
	"net/netip"
	"slices"
)

// Config says what is captured and where it goes. Zero ports, UID, GID and Mark
// stand for those of [Default].
type Config struct {
	OutboundPort uint16
	InboundPort  uint16
	DNSPort      uint16

	// UID, GID and Mark are the proxy's; any of them exempts a socket.
	UID, GID, Mark uint32

	// IPv6 captures IPv6 as IPv4; without it IPv6 traffic passes untouched.
	IPv6 bool

	// DNS captures TCP and UDP to port 53, of DNSServers only if there are any.
	// Naming the servers of resolv.conf keeps a local forwarder, which the
	// application asks instead of them, from going round in circles.
	DNS        bool
	DNSServers []netip.Addr

	// Outbound TCP is captured if AllOutbound is set, if its destination is in
	// IncludeOutbound, or if its port is in IncludeOutboundPorts; but never if one
	// of the exclusions holds. An excluded port is excluded for UDP too, so 53
	// there switches DNS capture off.
	AllOutbound          bool
	IncludeOutbound      []netip.Prefix
	ExcludeOutbound      []netip.Prefix
	IncludeOutboundPorts []uint16
	ExcludeOutboundPorts []uint16

	// Inbound TCP is captured on all ports but ExcludeInboundPorts if AllInbound
	// is set, and else on IncludeInboundPorts.
	AllInbound          bool
	IncludeInboundPorts []uint16
	ExcludeInboundPorts []uint16

	// Traffic over ExcludeInterfaces is not captured in either direction.
	ExcludeInterfaces []string
}

// tunnelPort carries mutual TLS of its own (HBONE) and is never captured.
const tunnelPort = 15008

// Default captures everything but DNS and the ports that the sidecar itself
// serves to others: metrics on 15090, health on 15021, the agent on 15020.
func Default() Config {
	return Config{
		OutboundPort:        15001,
		InboundPort:         15006,
		DNSPort:             15053,
		UID:                 1337,
		GID:                 1337,
		Mark:                1337,
		IPv6:                true,
		AllOutbound:         true,
		AllInbound:          true,
		ExcludeInboundPorts: []uint16{15020, 15021, 15090},
	}
}

// PassthroughSources are the addresses from which the proxy calls its own
// workload: what comes from them is never captured. Apply puts the IPv6 one on
// the loopback interface; the IPv4 one is always there.
func PassthroughSources() (v4, v6 netip.Addr) {
	return netip.AddrFrom4([4]byte{127, 0, 0, 6}), netip.AddrFrom16([16]byte{15: 6})
}

// Rules makes the rules for c. Equal configurations give equal rules.
func Rules(c Config) Ruleset {
	c = c.withDefaults()
	r := Ruleset{IPv6: c.IPv6}

	pass4, pass6 := PassthroughSources()
	loop4, loop6 := netip.MustParsePrefix("127.0.0.1/32"), netip.MustParsePrefix("::1/128")

	// What the proxy sends to its own pod's address is a call of the workload to
	// its own service: it enters by the front door. All else it sends passes.
	proxy := Chain{Name: "proxy"}
	for _, loop := range []netip.Prefix{loop4, loop6} {
		ms := []Match{outIface("lo"), destination(loop).not(), tcpPort(tunnelPort).not()}
		if c.DNS {
			ms = append(ms, tcpPort(53).not())
		}
		proxy.add(redirectTo(c.InboundPort), ms...)
	}

	pre := Chain{Name: "prerouting", Hook: NATPrerouting}
	out := Chain{Name: "output", Hook: NATOutput}
	if len(c.ExcludeInterfaces) > 0 {
		pre.add(verdictReturn, Match{Field: InInterface, Names: c.ExcludeInterfaces})
		out.add(verdictReturn, Match{Field: OutInterface, Names: c.ExcludeInterfaces})
	}

	// Inbound.
	pre.add(verdictReturn, tcpPort(tunnelPort))
	if c.AllInbound {
		if len(c.ExcludeInboundPorts) > 0 {
			pre.add(verdictReturn, tcpPort(c.ExcludeInboundPorts...))
		}
		pre.add(redirectTo(c.InboundPort), isTCP())
	} else if len(c.IncludeInboundPorts) > 0 {
		pre.add(redirectTo(c.InboundPort), tcpPort(c.IncludeInboundPorts...))
	}

	// Outbound. Excluded ports come first, so that they also hold for the proxy
	// on its way back to its own pod.
	if len(c.ExcludeOutboundPorts) > 0 {
		out.add(verdictReturn, tcpPort(c.ExcludeOutboundPorts...))
		out.add(verdictReturn, udpPort(c.ExcludeOutboundPorts...))
	}
	for _, a := range []netip.Addr{pass4, pass6} {
		out.add(verdictReturn, outIface("lo"), source(netip.PrefixFrom(a, a.BitLen())))
	}
	out.add(gotoChain("proxy"), Match{Field: UID, Numbers: []uint32{c.UID}})
	out.add(gotoChain("proxy"), Match{Field: GID, Numbers: []uint32{c.GID}})
	out.add(gotoChain("proxy"), Match{Field: Mark, Numbers: []uint32{c.Mark}})

	// Before the loopback rule, because a DNS server may be on loopback.
	if c.DNS {
		for _, servers := range dnsServers(c.DNSServers) {
			out.add(redirectTo(c.DNSPort), slices.Concat(servers, []Match{udpPort(53)})...)
			out.add(redirectTo(c.DNSPort), slices.Concat(servers, []Match{tcpPort(53)})...)
		}
	}
	// Within the pod nothing is captured, unless loopback was asked for by name;
	// the address 127.0.0.1 itself not even then.
	if !slices.ContainsFunc(c.IncludeOutbound, func(p netip.Prefix) bool { return p.Addr().IsLoopback() }) {
		out.add(verdictReturn, outIface("lo"))
	}
	out.add(verdictReturn, destination(loop4))
	out.add(verdictReturn, destination(loop6))
	for _, ps := range byFamily(c.ExcludeOutbound) {
		out.add(verdictReturn, destination(ps...))
	}
	if c.AllOutbound {
		out.add(redirectTo(c.OutboundPort), isTCP())
	} else {
		if len(c.IncludeOutboundPorts) > 0 {
			out.add(redirectTo(c.OutboundPort), tcpPort(c.IncludeOutboundPorts...))
		}
		for _, ps := range byFamily(c.IncludeOutbound) {
			out.add(redirectTo(c.OutboundPort), isTCP(), destination(ps...))
		}
	}

	r.Chains = []Chain{proxy, pre, out}
	if c.DNS {
		r.Chains = append(r.Chains, untracked(c)...)
	}
	return r.forFamilies()
}

// untracked keeps the proxy's own DNS queries out of connection tracking.
// Otherwise a query from a port that an application used shortly before meets
// that application's entry, which lives on for 30 s and more, and is sent back
// to the proxy instead of to the server.
func untracked(c Config) []Chain {
	out := Chain{Name: "output-raw", Hook: RawOutput}
	out.add(verdictNotrack, Match{Field: UID, Numbers: []uint32{c.UID}}, udpPort(53))
	out.add(verdictNotrack, Match{Field: GID, Numbers: []uint32{c.GID}}, udpPort(53))
	out.add(verdictNotrack, Match{Field: Mark, Numbers: []uint32{c.Mark}}, udpPort(53))
	pre := Chain{Name: "prerouting-raw", Hook: RawPrerouting}
	pre.add(verdictNotrack, Match{Field: UDPSource, Numbers: []uint32{53}})
	return []Chain{pre, out}
}

func (c Config) withDefaults() Config {
	d := Default()
	c.OutboundPort = or(c.OutboundPort, d.OutboundPort)
	c.InboundPort = or(c.InboundPort, d.InboundPort)
	c.DNSPort = or(c.DNSPort, d.DNSPort)
	c.UID, c.GID, c.Mark = or(c.UID, d.UID), or(c.GID, d.GID), or(c.Mark, d.Mark)
	return c
}

func or[T comparable](v, otherwise T) T {
	var zero T
	if v == zero {
		return otherwise
	}
	return v
}

// dnsServers gives the conditions under which a packet is for one of the
// servers: one for each family, or an empty one if any server will do.
func dnsServers(servers []netip.Addr) [][]Match {
	if len(servers) == 0 {
		return [][]Match{nil}
	}
	var ps []netip.Prefix
	for _, a := range servers {
		a = a.Unmap().WithZone("")
		ps = append(ps, netip.PrefixFrom(a, a.BitLen()))
	}
	var ms [][]Match
	for _, ps := range byFamily(ps) {
		ms = append(ms, []Match{destination(ps...)})
	}
	return ms
}

// byFamily parts prefixes into IPv4 and IPv6, leaves out what others contain,
// and sorts. Empty parts are not returned.
func byFamily(ps []netip.Prefix) [][]netip.Prefix {
	var parts [2][]netip.Prefix
	for _, p := range ps {
		p = p.Masked()
		i := 0
		if p.Addr().Is6() {
			i = 1
		}
		parts[i] = append(parts[i], p)
	}
	var all [][]netip.Prefix
	for _, part := range parts {
		slices.SortFunc(part, netip.Prefix.Compare)
		// A prefix that contains another sorts before it, next to it or with
		// others between that it contains as well.
		var kept []netip.Prefix
		for _, p := range part {
			if n := len(kept); n > 0 && kept[n-1].Overlaps(p) {
				continue
			}
			kept = append(kept, p)
		}
		if len(kept) > 0 {
			all = append(all, kept)
		}
	}
	return all
}
