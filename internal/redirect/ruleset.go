package redirect

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Ruleset is the content of the table "heddle". It is never changed once made.
type Ruleset struct {
	IPv6   bool
	Chains []Chain
}

// Hook is where the kernel enters a chain.
type Hook uint8

const (
	NoHook        Hook = iota // only by goto
	NATPrerouting             // what arrives, before its destination is looked at
	NATOutput                 // what a local process sends
	RawPrerouting             // as NATPrerouting, before connection tracking
	RawOutput                 // as NATOutput, before connection tracking
)

func (h Hook) String() string {
	switch h {
	case NATPrerouting:
		return "type nat hook prerouting priority dstnat; policy accept;"
	case NATOutput:
		return "type nat hook output priority dstnat; policy accept;"
	case RawPrerouting:
		return "type filter hook prerouting priority raw; policy accept;"
	case RawOutput:
		return "type filter hook output priority raw; policy accept;"
	}
	return ""
}

// Chain is a list of rules; the first that matches decides.
type Chain struct {
	Name  string
	Hook  Hook
	Rules []Rule
}

func (c *Chain) add(do Verdict, ms ...Match) { c.Rules = append(c.Rules, Rule{ms, do}) }

// Rule does something with packets for which all conditions hold.
type Rule struct {
	Matches []Match
	Do      Verdict
}

// Verdict is what a rule does. Exactly one field is set.
type Verdict struct {
	Return   bool   // let it pass: every base chain's policy is accept
	Notrack  bool   // keep it out of connection tracking
	Goto     string // go on in another chain and do not come back
	Redirect uint16 // to this port of this host
}

var (
	verdictReturn  = Verdict{Return: true}
	verdictNotrack = Verdict{Notrack: true}
)

func redirectTo(port uint16) Verdict { return Verdict{Redirect: port} }
func gotoChain(name string) Verdict  { return Verdict{Goto: name} }

func (v Verdict) String() string {
	switch {
	case v.Return:
		return "return"
	case v.Notrack:
		return "notrack"
	case v.Goto != "":
		return "goto " + v.Goto
	}
	return "redirect to :" + strconv.Itoa(int(v.Redirect))
}

// Field is the part of a packet that a condition looks at.
type Field uint8

const (
	Family       Field = iota // Numbers: 4 or 6
	TCP                       // no operand
	TCPPort                   // Numbers: destination port of TCP
	UDPPort                   // Numbers: destination port of UDP
	UDPSource                 // Numbers: source port of UDP
	UID                       // Numbers: of the sending process
	GID                       // Numbers: of the sending process
	Mark                      // Numbers: of the sending socket
	InInterface               // Names
	OutInterface              // Names
	Source                    // Prefixes, of one family; implies that family
	Destination               // Prefixes, of one family; implies that family
)

// Match is a condition: Field has one of the values, or none of them if Not is
// set. Values are sorted, and prefixes do not overlap.
type Match struct {
	Field    Field
	Not      bool
	Numbers  []uint32
	Names    []string
	Prefixes []netip.Prefix
}

func (m Match) not() Match { m.Not = true; return m }

func isTCP() Match                         { return Match{Field: TCP} }
func tcpPort(ports ...uint16) Match        { return Match{Field: TCPPort, Numbers: numbers(ports)} }
func udpPort(ports ...uint16) Match        { return Match{Field: UDPPort, Numbers: numbers(ports)} }
func outIface(name string) Match           { return Match{Field: OutInterface, Names: []string{name}} }
func source(ps ...netip.Prefix) Match      { return Match{Field: Source, Prefixes: ps} }
func destination(ps ...netip.Prefix) Match { return Match{Field: Destination, Prefixes: ps} }

func numbers(ports []uint16) []uint32 {
	ns := make([]uint32, len(ports))
	for i, p := range ports {
		ns[i] = uint32(p)
	}
	slices.Sort(ns)
	return slices.Compact(ns)
}

func (m Match) String() string {
	key := map[Field]string{
		Family: "meta nfproto", TCP: "meta l4proto tcp", TCPPort: "tcp dport", UDPPort: "udp dport",
		UDPSource: "udp sport", UID: "meta skuid", GID: "meta skgid", Mark: "meta mark",
		InInterface: "iifname", OutInterface: "oifname",
	}[m.Field]
	var values []string
	for _, n := range m.Numbers {
		if m.Field == Family {
			values = append(values, fmt.Sprintf("ipv%d", n))
			continue
		}
		values = append(values, strconv.FormatUint(uint64(n), 10))
	}
	for _, n := range m.Names {
		values = append(values, strconv.Quote(n))
	}
	for _, p := range m.Prefixes {
		key = map[bool]string{true: "ip6", false: "ip"}[p.Addr().Is6()]
		key += map[Field]string{Source: " saddr", Destination: " daddr"}[m.Field]
		if p.IsSingleIP() {
			values = append(values, p.Addr().String())
			continue
		}
		values = append(values, p.String())
	}
	if len(values) == 0 {
		return key
	}
	if m.Not {
		key += " !="
	}
	if len(values) == 1 {
		return key + " " + values[0]
	}
	return key + " { " + strings.Join(values, ", ") + " }"
}

func (r Rule) String() string {
	var b strings.Builder
	for _, m := range r.Matches {
		b.WriteString(m.String() + " ")
	}
	b.WriteString(r.Do.String())
	return b.String()
}

// String is the ruleset in nft's language.
func (r Ruleset) String() string {
	var b strings.Builder
	b.WriteString("table inet " + tableName + " {\n")
	for i, c := range r.Chains {
		if i > 0 {
			b.WriteByte('\n')
		}
		fmt.Fprintf(&b, "\tchain %s {\n", c.Name)
		if c.Hook != NoHook {
			fmt.Fprintf(&b, "\t\t%s\n", c.Hook)
		}
		for _, rule := range c.Rules {
			fmt.Fprintf(&b, "\t\t%s\n", rule)
		}
		b.WriteString("\t}\n")
	}
	b.WriteString("}\n")
	return b.String()
}

// forFamilies takes out the rules for IPv6 if it is not captured, and lets IPv6
// pass at the door instead.
func (r Ruleset) forFamilies() Ruleset {
	if r.IPv6 {
		return r
	}
	for i, c := range r.Chains {
		rules := slices.DeleteFunc(slices.Clone(c.Rules), func(rule Rule) bool { return rule.family() == 6 })
		if c.Hook == NATPrerouting || c.Hook == NATOutput {
			rules = slices.Insert(rules, 0, Rule{[]Match{{Field: Family, Numbers: []uint32{6}}}, verdictReturn})
		}
		r.Chains[i].Rules = rules
	}
	return r
}

// family is the IP version a rule is about, 0 for both.
func (r Rule) family() int {
	for _, m := range r.Matches {
		switch {
		case m.Field == Family:
			return int(m.Numbers[0])
		case len(m.Prefixes) == 0:
		case m.Prefixes[0].Addr().Is6():
			return 6
		default:
			return 4
		}
	}
	return 0
}

// Packet is the first packet of a connection, or a datagram, for
// [Ruleset.Decide].
type Packet struct {
	UDP      bool
	Src, Dst netip.AddrPort
	// In is the interface it arrived on, Out the one it leaves by. One is empty:
	// packets are looked at where they enter this host or where a process sends
	// them; what goes through loopback is only looked at on its way out.
	In, Out        string
	UID, GID, Mark uint32 // of the sending process and socket
}

// Decide says to which port of this host a packet is redirected, or 0 if it
// passes. It does what the kernel does with the same rules.
func (r Ruleset) Decide(p Packet) uint16 {
	hook := NATPrerouting
	if p.In == "" {
		hook = NATOutput
	}
	i := slices.IndexFunc(r.Chains, func(c Chain) bool { return c.Hook == hook })
	for i >= 0 {
		chain := r.Chains[i]
		j := slices.IndexFunc(chain.Rules, func(rule Rule) bool { return rule.holds(p) })
		if j < 0 {
			return 0
		}
		do := chain.Rules[j].Do
		if do.Goto == "" {
			return do.Redirect
		}
		i = slices.IndexFunc(r.Chains, func(c Chain) bool { return c.Name == do.Goto })
	}
	return 0
}

func (r Rule) holds(p Packet) bool {
	return !slices.ContainsFunc(r.Matches, func(m Match) bool { return !m.holds(p) })
}

func (m Match) holds(p Packet) bool {
	number := func(applies bool, n uint32) bool {
		return applies && slices.Contains(m.Numbers, n) != m.Not
	}
	address := func(a netip.Addr) bool {
		a = a.Unmap().WithZone("")
		if a.Is6() != m.Prefixes[0].Addr().Is6() {
			return false // "ip daddr != X" does not hold for IPv6
		}
		return slices.ContainsFunc(m.Prefixes, func(p netip.Prefix) bool { return p.Contains(a) }) != m.Not
	}
	switch m.Field {
	case Family:
		v := uint32(4)
		if p.Dst.Addr().Unmap().Is6() {
			v = 6
		}
		return number(true, v)
	case TCP:
		return !p.UDP
	case TCPPort:
		return number(!p.UDP, uint32(p.Dst.Port()))
	case UDPPort:
		return number(p.UDP, uint32(p.Dst.Port()))
	case UDPSource:
		return number(p.UDP, uint32(p.Src.Port()))
	case UID:
		return number(true, p.UID)
	case GID:
		return number(true, p.GID)
	case Mark:
		return number(true, p.Mark)
	case InInterface:
		return slices.Contains(m.Names, p.In) != m.Not
	case OutInterface:
		return slices.Contains(m.Names, p.Out) != m.Not
	case Source:
		return address(p.Src.Addr())
	}
	return address(p.Dst.Addr())
}
