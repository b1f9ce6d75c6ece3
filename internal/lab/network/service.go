package network

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Protocol of a Service's port.
type Protocol uint8

const (
	TCP Protocol = unix.IPPROTO_TCP
	UDP Protocol = unix.IPPROTO_UDP
)

// ServicePort is one port of a cluster IP and where connections to it go, each
// to one of the endpoints by chance.
type ServicePort struct {
	Protocol  Protocol
	Port      uint16
	Endpoints []netip.AddrPort
}

// SetService says what a cluster IP stands for from now on; no ports means
// that nothing answers. Open connections stay where they are.
func (n *Node) SetService(vip netip.Addr, ports []ServicePort) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, t := range n.tables {
		if t.ip6 == vip.Is6() {
			return t.setService(vip, ports)
		}
	}
	return nil // no IPv6 in this kernel
}

// table holds the rules for one address family:
//
//	table ip heddle {
//	  set hairpin { type ipv4_addr . ipv4_addr; }
//	  chain prerouting  { type nat hook prerouting priority dstnat; ip daddr VIP jump VIP … }
//	  chain postrouting { type nat hook postrouting priority srcnat; ip saddr . ip daddr @hairpin snat to NODE }
//	  chain VIP { meta l4proto tcp th dport 9080 numgen random mod 2 == 0 dnat to EP1:9080 … }
//	}
//
// The last rule lets a pod reach itself through its Service: it would drop a
// packet that seems to come from itself.
type table struct {
	ip6     bool
	table   *nftables.Table
	pre     *nftables.Chain
	hairpin *nftables.Set
	chains  map[netip.Addr]*nftables.Chain
	ports   map[netip.Addr][]ServicePort
}

func (n *Node) setupTables() error {
	families := []bool{false}
	if n.ipv6 {
		families = append(families, true)
	}
	for _, ip6 := range families {
		t, err := newTable(ip6)
		if err != nil {
			return fmt.Errorf("network: nftables: %w", err)
		}
		n.tables = append(n.tables, t)
	}
	return nil
}

// Offsets of the addresses in the network header.
// Source: RFC 791 section 3.1, RFC 8200 section 3.
func (t *table) saddr() (offset, length uint32) {
	if t.ip6 {
		return 8, 16
	}
	return 12, 4
}

func (t *table) daddr() (offset, length uint32) {
	if t.ip6 {
		return 24, 16
	}
	return 16, 4
}

func newTable(ip6 bool) (*table, error) {
	c, err := nftables.New()
	if err != nil {
		return nil, err
	}
	t := &table{
		ip6:    ip6,
		chains: make(map[netip.Addr]*nftables.Chain),
		ports:  make(map[netip.Addr][]ServicePort),
	}
	family, keyType, node := nftables.TableFamilyIPv4, nftables.TypeIPAddr, NodeIP
	nodeFamily := uint32(unix.NFPROTO_IPV4)
	if ip6 {
		family, keyType, node = nftables.TableFamilyIPv6, nftables.TypeIP6Addr, NodeIP6
		nodeFamily = unix.NFPROTO_IPV6
	}
	t.table = c.AddTable(&nftables.Table{Family: family, Name: "heddle"})
	pair, err := nftables.ConcatSetType(keyType, keyType)
	if err != nil {
		return nil, err
	}
	t.hairpin = &nftables.Set{Table: t.table, Name: "hairpin", KeyType: pair, Concatenation: true}
	if err := c.AddSet(t.hairpin, nil); err != nil {
		return nil, err
	}
	t.pre = c.AddChain(&nftables.Chain{
		Name: "prerouting", Table: t.table, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityNATDest,
	})
	post := c.AddChain(&nftables.Chain{
		Name: "postrouting", Table: t.table, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
	})
	// The two addresses side by side from the first 4-byte register on.
	const first = unix.NFT_REG32_00
	sOff, size := t.saddr()
	dOff, _ := t.daddr()
	c.AddRule(&nftables.Rule{Table: t.table, Chain: post, Exprs: []expr.Any{
		&expr.Payload{DestRegister: first, Base: expr.PayloadBaseNetworkHeader, Offset: sOff, Len: size},
		&expr.Payload{DestRegister: first + size/4, Base: expr.PayloadBaseNetworkHeader, Offset: dOff, Len: size},
		&expr.Lookup{SourceRegister: first, SetName: t.hairpin.Name, SetID: t.hairpin.ID},
		&expr.Immediate{Register: 1, Data: node.AsSlice()},
		&expr.NAT{Type: expr.NATTypeSourceNAT, Family: nodeFamily, RegAddrMin: 1},
	}})
	return t, c.Flush()
}

// hairpin adds a pod to the hairpin sets, or takes it out.
func (n *Node) hairpin(p *Pod, add bool) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, ip := range p.IPs {
		for _, t := range n.tables {
			if t.ip6 != ip.Is6() {
				continue
			}
			c, err := nftables.New()
			if err != nil {
				return err
			}
			elements := []nftables.SetElement{{Key: slices.Concat(ip.AsSlice(), ip.AsSlice())}}
			if add {
				err = c.SetAddElements(t.hairpin, elements)
			} else {
				err = c.SetDeleteElements(t.hairpin, elements)
			}
			if err = errors.Join(err, c.Flush()); err != nil && add {
				return fmt.Errorf("nftables: %w", err)
			}
		}
	}
	return nil
}

func (t *table) setService(vip netip.Addr, ports []ServicePort) error {
	if slices.EqualFunc(t.ports[vip], ports, func(a, b ServicePort) bool {
		return a.Protocol == b.Protocol && a.Port == b.Port && slices.Equal(a.Endpoints, b.Endpoints)
	}) {
		return nil
	}
	c, err := nftables.New()
	if err != nil {
		return err
	}
	chain, known := t.chains[vip]
	if known {
		c.FlushChain(chain)
	} else {
		chain = c.AddChain(&nftables.Chain{Name: vip.String(), Table: t.table})
		offset, size := t.daddr()
		c.AddRule(&nftables.Rule{Table: t.table, Chain: t.pre, Exprs: []expr.Any{
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: vip.AsSlice()},
			&expr.Verdict{Kind: expr.VerdictJump, Chain: chain.Name},
		}})
	}
	for _, p := range ports {
		for i, ep := range p.Endpoints {
			c.AddRule(&nftables.Rule{Table: t.table, Chain: chain, Exprs: t.translate(p, ep, len(p.Endpoints)-i)})
		}
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("network: rules of %s: %w", vip, err)
	}
	t.chains[vip] = chain
	t.ports[vip] = ports
	return nil
}

// translate sends one of n connections to a port to an endpoint: with n counted
// down to 1 along the endpoints, each gets the same share.
func (t *table) translate(p ServicePort, ep netip.AddrPort, n int) []expr.Any {
	family := uint32(unix.NFPROTO_IPV4)
	if t.ip6 {
		family = unix.NFPROTO_IPV6
	}
	exprs := []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{byte(p.Protocol)}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.BigEndian.AppendUint16(nil, p.Port)},
	}
	if n > 1 {
		exprs = append(exprs,
			&expr.Numgen{Register: 1, Modulus: uint32(n), Type: unix.NFT_NG_RANDOM},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(0)})
	}
	return append(exprs,
		&expr.Immediate{Register: 1, Data: ep.Addr().AsSlice()},
		&expr.Immediate{Register: 2, Data: binary.BigEndian.AppendUint16(nil, ep.Port())},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: family, RegAddrMin: 1, RegProtoMin: 2, Specified: true})
}
