package model

import (
	"encoding/binary"
	"hash/fnv"
	"net/netip"

	"github.com/heddle-mesh/heddle/internal/host"
)

// giveAddresses gives a virtual address to each service that needs one and has
// none: Kubernetes Services that are not headless, from the services' range, as
// an API server would; and ServiceEntries with a name to resolve, from the range
// that Istio takes for them. Services are in order of precedence, and each has a
// preferred place computed from its name, so that addresses stay as they are
// when services come and go; the younger of two with the same place moves on.
func giveAddresses(all []*Service, opts Options) {
	taken := map[netip.Addr]bool{}
	for _, s := range all {
		for _, a := range s.Addresses {
			taken[a] = true
		}
	}
	for i, s := range all {
		if !s.wantsAddress || len(s.Addresses) > 0 || len(s.Prefixes) > 0 || s.Host.IsWildcard() {
			continue
		}
		pool := opts.ServiceCIDR
		if !s.Kubernetes {
			pool = opts.ExternalCIDR
		}
		if a, ok := place(pool, s.Namespace, s.Host, taken); ok {
			taken[a] = true
			next := *s
			next.Addresses = []netip.Addr{a}
			next.Automatic = !s.Kubernetes
			next.seal()
			all[i] = &next
		}
	}
}

// place finds a free address in an IPv4 range of at least 256, beginning where
// the name's hash points. It is the place that Istio takes for a ServiceEntry, so
// that clients which remember an address find the same service behind it.
//
// A range is seen as rows of 255, of which the first place stays free, as does
// the last row: some programs take addresses that end in 0 or 255 for networks
// and broadcasts.
func place(pool netip.Prefix, namespace string, name host.Name, taken map[netip.Addr]bool) (netip.Addr, bool) {
	const row = 255
	rows := uint32(1) << max(24-pool.Bits(), 0)
	size := max(rows-1, 1) * row
	base := binary.BigEndian.Uint32(pool.Masked().Addr().AsSlice())
	h := fnv.New32()
	h.Write([]byte(namespace + ":" + string(name)))
	for i, at := uint32(0), h.Sum32()%size; i < size; i, at = i+1, (at+1)%size {
		if at%row == 0 {
			continue
		}
		var b [4]byte
		binary.BigEndian.PutUint32(b[:], base+at/row*256+at%row)
		if a := netip.AddrFrom4(b); !taken[a] {
			return a, true
		}
	}
	return netip.Addr{}, false
}
