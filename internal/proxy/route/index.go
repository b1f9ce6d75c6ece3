package route

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
)

// index finds the virtual host of an authority. Exact names beat suffixes, those
// beat prefixes, longer ones beat shorter ones, and "*" comes last. Source: Envoy,
// config.route.v3.VirtualHost.domains.
type index struct {
	exact    map[string]*host
	suffixes []affix // longest first
	prefixes []affix // longest first
	any      *host
}

// affix is all domains with a wildcard and a fixed part of one length.
type affix struct {
	length int
	hosts  map[string]*host
}

func newIndex() index { return index{exact: map[string]*host{}} }

// add enters a domain. Comparison ignores case, so domains are kept in lower case.
func (x *index) add(domain string, h *host) error {
	d := strings.ToLower(domain)
	twice := fmt.Errorf("domain %q is taken", domain)
	switch {
	case d == "":
		return fmt.Errorf("empty domain")
	case d == "*":
		if x.any != nil {
			return twice
		}
		x.any = h
	case d[0] == '*':
		if !addAffix(&x.suffixes, d[1:], h) {
			return twice
		}
	case d[len(d)-1] == '*':
		if !addAffix(&x.prefixes, d[:len(d)-1], h) {
			return twice
		}
	default:
		if x.exact[d] != nil {
			return twice
		}
		x.exact[d] = h
	}
	return nil
}

func addAffix(list *[]affix, fixed string, h *host) bool {
	i, found := slices.BinarySearchFunc(*list, len(fixed), func(a affix, n int) int { return n - a.length })
	if !found {
		*list = slices.Insert(*list, i, affix{len(fixed), map[string]*host{}})
	}
	m := (*list)[i].hosts
	if m[fixed] != nil {
		return false
	}
	m[fixed] = h
	return true
}

// maxAuthority is the longest authority that can match anything but "*": a DNS
// name has 253 bytes at most, and a port follows.
const maxAuthority = 320

// find returns the virtual host for an authority.
func (x *index) find(authority []byte, ignorePort bool) *host {
	if ignorePort {
		authority = withoutPort(authority)
	}
	if len(authority) > maxAuthority {
		return x.any
	}
	var buf [maxAuthority]byte
	a := lowerInto(buf[:0], authority)
	if h := x.exact[string(a)]; h != nil {
		return h
	}
	// The wildcard stands for at least one byte.
	for i := range x.suffixes {
		if s := &x.suffixes[i]; s.length < len(a) {
			if h := s.hosts[string(a[len(a)-s.length:])]; h != nil {
				return h
			}
		}
	}
	for i := range x.prefixes {
		if p := &x.prefixes[i]; p.length < len(a) {
			if h := p.hosts[string(a[:p.length])]; h != nil {
				return h
			}
		}
	}
	return x.any
}

func lowerInto(b, s []byte) []byte {
	for _, c := range s {
		if 'A' <= c && c <= 'Z' {
			c |= 0x20
		}
		b = append(b, c)
	}
	return b
}

// withoutPort cuts ":80" off, and leaves the colons of an IPv6 address alone.
func withoutPort(authority []byte) []byte {
	i := bytes.LastIndexByte(authority, ':')
	if i < 0 || bytes.IndexByte(authority[i:], ']') >= 0 {
		return authority
	}
	for _, c := range authority[i+1:] {
		if c < '0' || c > '9' {
			return authority
		}
	}
	if bytes.IndexByte(authority[:i], ':') >= 0 && authority[0] != '[' {
		return authority // an IPv6 address without brackets
	}
	return authority[:i]
}
