package redirect

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Apply replaces what an earlier Apply wrote, in the network namespace of the
// calling thread: lock the goroutine to it if that is not the process's own.
// The change is one transaction, so that no packet sees half of it, and
// applying twice is the same as once. It needs CAP_NET_ADMIN.
//
// The kernel does NAT in tables of family inet from 5.2 on; an older one gets a
// table each of families ip and ip6 instead.
func Apply(r Ruleset) error {
	err := write(r, nftables.TableFamilyINet)
	if err != nil && !errors.Is(err, fs.ErrPermission) {
		if err2 := write(r, r.singleFamilies()...); err2 != nil {
			return fmt.Errorf("write redirection rules: %w", errors.Join(err, err2))
		}
		err = nil
	}
	if err != nil {
		return fmt.Errorf("write redirection rules: %w", err)
	}
	if r.IPv6 {
		if err := setPassthroughAddress(unix.RTM_NEWADDR); err != nil {
			return fmt.Errorf("add the IPv6 address that inbound connections come from: %w", err)
		}
	}
	return nil
}

// Remove takes back all that Apply did, in the network namespace of the calling
// thread. It is no error if there is nothing.
func Remove() error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("end redirection: %w", err)
	}
	tables, err := c.ListTables()
	if err != nil {
		return fmt.Errorf("end redirection: list tables: %w", err)
	}
	for _, t := range tables {
		if t.Name == tableName {
			c.DelTable(t)
		}
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("end redirection: %w", err)
	}
	if err := setPassthroughAddress(unix.RTM_DELADDR); err != nil {
		return fmt.Errorf("end redirection: remove the IPv6 address that inbound connections come from: %w", err)
	}
	return nil
}

// singleFamilies are the table families to use where inet cannot do NAT.
func (r Ruleset) singleFamilies() []nftables.TableFamily {
	if !r.IPv6 {
		return []nftables.TableFamily{nftables.TableFamilyIPv4}
	}
	return []nftables.TableFamily{nftables.TableFamilyIPv4, nftables.TableFamilyIPv6}
}

// write sends one batch that creates the table in each family, instead of the
// one that may be there.
func write(r Ruleset, families ...nftables.TableFamily) error {
	c, err := nftables.New(nftables.WithSockOptions(growBuffers))
	if err != nil {
		return err
	}
	w := &writer{conn: c}
	for _, f := range families {
		table := &nftables.Table{Name: tableName, Family: f}
		// Deleting what is not there is an error, adding what is there is not.
		c.AddTable(table)
		c.DelTable(table)
		c.AddTable(table)
		if err := w.chains(r, table); err != nil {
			return err
		}
	}
	return c.Flush()
}

// growBuffers makes room for a batch with thousands of addresses, which the
// kernel takes as one message only, and for the receipts of its parts. Without
// privileges over the whole machine it is granted less than it asks for.
func growBuffers(c *netlink.Conn) error {
	const size = 4 << 20
	return errors.Join(c.SetWriteBuffer(size), c.SetReadBuffer(size))
}

// writer turns rules into netlink messages.
type writer struct {
	conn *nftables.Conn
	sets uint32 // how many anonymous sets the batch has; their ids count from 1
}

func (w *writer) chains(r Ruleset, table *nftables.Table) error {
	chains := make([]*nftables.Chain, len(r.Chains))
	for i, c := range r.Chains {
		chains[i] = w.conn.AddChain(kernelChain(c, table))
	}
	for i, c := range r.Chains {
		for _, rule := range c.Rules {
			if !inTable(rule, table.Family) {
				continue
			}
			for _, part := range rule.parts() {
				exprs, err := w.rule(part, table)
				if err != nil {
					return fmt.Errorf("rule %q: %w", part, err)
				}
				w.conn.AddRule(&nftables.Rule{Table: table, Chain: chains[i], Exprs: exprs})
			}
		}
	}
	return nil
}

func inTable(r Rule, f nftables.TableFamily) bool {
	switch r.family() {
	case 4:
		return f != nftables.TableFamilyIPv6
	case 6:
		return f != nftables.TableFamilyIPv4
	}
	return true
}

func kernelChain(c Chain, table *nftables.Table) *nftables.Chain {
	k := &nftables.Chain{Name: c.Name, Table: table}
	switch c.Hook {
	case NoHook:
		return k
	case NATPrerouting, NATOutput:
		k.Type, k.Priority = nftables.ChainTypeNAT, nftables.ChainPriorityNATDest
	case RawPrerouting, RawOutput:
		k.Type, k.Priority = nftables.ChainTypeFilter, nftables.ChainPriorityRaw
	}
	k.Hooknum = nftables.ChainHookPrerouting
	if c.Hook == NATOutput || c.Hook == RawOutput {
		k.Hooknum = nftables.ChainHookOutput
	}
	accept := nftables.ChainPolicyAccept
	k.Policy = &accept
	return k
}

// maxValues bounds a set, because all of its elements travel in one netlink
// attribute of at most 64 KiB. A range takes two elements of 44 bytes in IPv6.
const maxValues = 500

// parts splits a rule with a long list of values into several.
func (r Rule) parts() []Rule {
	for i, m := range r.Matches {
		if m.Not || max(len(m.Numbers), len(m.Prefixes)) <= maxValues {
			continue
		}
		var parts []Rule
		with := func(m Match) {
			p := Rule{slices.Clone(r.Matches), r.Do}
			p.Matches[i] = m
			parts = append(parts, p)
		}
		for ns := range slices.Chunk(m.Numbers, maxValues) {
			with(Match{Field: m.Field, Numbers: ns})
		}
		for ps := range slices.Chunk(m.Prefixes, maxValues) {
			with(Match{Field: m.Field, Prefixes: ps})
		}
		return parts
	}
	return []Rule{r}
}

func (w *writer) rule(r Rule, table *nftables.Table) ([]expr.Any, error) {
	var exprs []expr.Any
	for _, m := range r.Matches {
		es, err := w.match(m, table)
		if err != nil {
			return nil, err
		}
		exprs = append(exprs, es...)
	}
	switch {
	case r.Do.Return:
		return append(exprs, &expr.Verdict{Kind: expr.VerdictReturn}), nil
	case r.Do.Notrack:
		return append(exprs, &expr.Notrack{}), nil
	case r.Do.Goto != "":
		return append(exprs, &expr.Verdict{Kind: expr.VerdictGoto, Chain: r.Do.Goto}), nil
	}
	return append(exprs,
		&expr.Immediate{Register: 1, Data: binaryutil.BigEndian.PutUint16(r.Do.Redirect)},
		&expr.Redir{RegisterProtoMin: 1}), nil
}

// match loads the field into register 1 and compares it.
func (w *writer) match(m Match, table *nftables.Table) ([]expr.Any, error) {
	meta := func(key expr.MetaKey) expr.Any { return &expr.Meta{Key: key, Register: 1} }
	is := func(key expr.MetaKey, value byte) []expr.Any {
		return []expr.Any{meta(key), &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{value}}}
	}
	port := func(proto byte, offset uint32) []expr.Any {
		return append(is(expr.MetaKeyL4PROTO, proto),
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: 2})
	}
	// Where the ports are in the headers of TCP and UDP.
	const sourcePort, destinationPort = 0, 2

	var load []expr.Any
	var key nftables.SetDatatype
	var values [][]byte
	switch m.Field {
	case TCP:
		return is(expr.MetaKeyL4PROTO, unix.IPPROTO_TCP), nil
	case Family:
		load, key = []expr.Any{meta(expr.MetaKeyNFPROTO)}, nftables.TypeNFProto
		for _, n := range m.Numbers {
			values = append(values, []byte{map[uint32]byte{4: unix.NFPROTO_IPV4, 6: unix.NFPROTO_IPV6}[n]})
		}
	case TCPPort, UDPPort, UDPSource:
		key = nftables.TypeInetService
		switch m.Field {
		case TCPPort:
			load = port(unix.IPPROTO_TCP, destinationPort)
		case UDPPort:
			load = port(unix.IPPROTO_UDP, destinationPort)
		case UDPSource:
			load = port(unix.IPPROTO_UDP, sourcePort)
		}
		for _, n := range m.Numbers {
			values = append(values, binaryutil.BigEndian.PutUint16(uint16(n)))
		}
	case UID, GID, Mark:
		switch m.Field {
		case UID:
			load, key = []expr.Any{meta(expr.MetaKeySKUID)}, nftables.TypeUID
		case GID:
			load, key = []expr.Any{meta(expr.MetaKeySKGID)}, nftables.TypeGID
		case Mark:
			load, key = []expr.Any{meta(expr.MetaKeyMARK)}, nftables.TypeMark
		}
		for _, n := range m.Numbers {
			values = append(values, binaryutil.NativeEndian.PutUint32(n))
		}
	case InInterface, OutInterface:
		load, key = []expr.Any{meta(expr.MetaKeyIIFNAME)}, nftables.TypeIFName
		if m.Field == OutInterface {
			load = []expr.Any{meta(expr.MetaKeyOIFNAME)}
		}
		for _, name := range m.Names {
			b := make([]byte, unix.IFNAMSIZ)
			copy(b, name)
			values = append(values, b)
		}
	case Source, Destination:
		return w.address(m, table)
	}
	if len(values) == 1 {
		op := expr.CmpOpEq
		if m.Not {
			op = expr.CmpOpNeq
		}
		return append(load, &expr.Cmp{Op: op, Register: 1, Data: values[0]}), nil
	}
	elements := make([]nftables.SetElement, len(values))
	for i, v := range values {
		elements[i] = nftables.SetElement{Key: v}
	}
	lookup, err := w.lookup(m, table, &nftables.Set{KeyType: key}, elements)
	return append(load, lookup), err
}

func (w *writer) address(m Match, table *nftables.Table) ([]expr.Any, error) {
	v6 := m.Prefixes[0].Addr().Is6()
	// Offsets of source and destination in the IPv4 and IPv6 headers.
	family, key, size, offset := byte(unix.NFPROTO_IPV4), nftables.TypeIPAddr, uint32(4), uint32(12)
	if v6 {
		family, key, size, offset = unix.NFPROTO_IPV6, nftables.TypeIP6Addr, 16, 8
	}
	if m.Field == Destination {
		offset += size
	}
	load := []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{family}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size},
	}
	if len(m.Prefixes) == 1 {
		p := m.Prefixes[0]
		op := expr.CmpOpEq
		if m.Not {
			op = expr.CmpOpNeq
		}
		return append(load,
			&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: size,
				Mask: net.CIDRMask(p.Bits(), int(size)*8), Xor: make([]byte, size)},
			&expr.Cmp{Op: op, Register: 1, Data: p.Addr().AsSlice()}), nil
	}
	// A set of intervals: the first address of each, and as its end the first
	// one after it, unless there is none.
	var elements []nftables.SetElement
	for _, p := range m.Prefixes {
		elements = append(elements, nftables.SetElement{Key: p.Addr().AsSlice()})
		if end := lastAddr(p).Next(); end.IsValid() {
			elements = append(elements, nftables.SetElement{Key: end.AsSlice(), IntervalEnd: true})
		}
	}
	lookup, err := w.lookup(m, table, &nftables.Set{KeyType: key, Interval: true}, elements)
	return append(load, lookup), err
}

func lastAddr(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// lookup adds a set that only this rule uses.
func (w *writer) lookup(m Match, table *nftables.Table, s *nftables.Set, elements []nftables.SetElement) (expr.Any, error) {
	w.sets++
	s.Table, s.Anonymous, s.Constant = table, true, true
	// The id names the set within the batch, before the kernel has numbered it.
	// Left to the library it would come from a variable that goroutines share.
	s.ID, s.Name = w.sets, "__set%d"
	if err := w.conn.AddSet(s, elements); err != nil {
		return nil, err
	}
	return &expr.Lookup{SourceRegister: 1, SetName: s.Name, SetID: s.ID, Invert: m.Not}, nil
}

// setPassthroughAddress adds the IPv6 address from which the proxy calls its
// workload to the loopback interface, or removes it. IPv4 needs none, as all of
// 127.0.0.0/8 is local. Where IPv6 is switched off there is nothing to do.
func setPassthroughAddress(message netlink.HeaderType) error {
	lo, err := net.InterfaceByName("lo")
	if err != nil {
		return err
	}
	c, err := netlink.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		return err
	}
	defer c.Close()

	_, addr := PassthroughSources()
	var b bytes.Buffer
	// struct ifaddrmsg of linux/if_addr.h: family, prefix length, flags, scope, index.
	// Without NODAD the address is tentative for a moment, on this interface too, and
	// nobody can bind to it.
	b.Write([]byte{unix.AF_INET6, 128, unix.IFA_F_NODAD, 0})
	b.Write(binaryutil.NativeEndian.PutUint32(uint32(lo.Index)))
	attrs, err := netlink.MarshalAttributes([]netlink.Attribute{
		{Type: unix.IFA_LOCAL, Data: addr.AsSlice()},
		{Type: unix.IFA_ADDRESS, Data: addr.AsSlice()},
	})
	if err != nil {
		return err
	}
	b.Write(attrs)
	flags := netlink.Request | netlink.Acknowledge
	if message == unix.RTM_NEWADDR {
		flags |= netlink.Create | netlink.Excl
	}
	_, err = c.Execute(netlink.Message{Header: netlink.Header{Type: message, Flags: flags}, Data: b.Bytes()})
	done := []error{unix.EEXIST} // the address is there
	if message == unix.RTM_DELADDR {
		done = []error{unix.EADDRNOTAVAIL}
	}
	// Without IPv6 in the kernel, or with it disabled on the interface.
	done = append(done, unix.EOPNOTSUPP, unix.EAFNOSUPPORT, unix.EACCES)
	if slices.ContainsFunc(done, func(e error) bool { return errors.Is(err, e) }) {
		return nil
	}
	return err
}
