package redirect

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// annotationPrefix begins the names of the annotations that a pod steers its
// capture with.
const annotationPrefix = "traffic.sidecar.istio.io/"

// FromAnnotations is [Default], changed as a pod's traffic.sidecar.istio.io/*
// annotations say. Lists are separated by commas; "*" is everything and an
// empty value nothing. All faults are reported together, each with the name of
// its annotation.
func FromAnnotations(annotations map[string]string) (Config, error) {
	c := Default()
	var errs []error
	read := func(name string, apply func(list []string) []error) {
		name = annotationPrefix + name
		v, ok := annotations[name]
		if !ok {
			return
		}
		for _, err := range apply(split(v)) {
			errs = append(errs, fmt.Errorf("annotation %s: %w", name, err))
		}
	}

	read("includeOutboundIPRanges", func(list []string) (errs []error) {
		if c.AllOutbound = isAll(list); !c.AllOutbound {
			c.IncludeOutbound, errs = prefixes(list)
		}
		return errs
	})
	read("excludeOutboundIPRanges", func(list []string) (errs []error) {
		c.ExcludeOutbound, errs = prefixes(list)
		return errs
	})
	read("includeOutboundPorts", func(list []string) (errs []error) {
		c.IncludeOutboundPorts, errs = ports(list)
		return errs
	})
	read("excludeOutboundPorts", func(list []string) (errs []error) {
		c.ExcludeOutboundPorts, errs = ports(list)
		return errs
	})
	read("includeInboundPorts", func(list []string) (errs []error) {
		if c.AllInbound = isAll(list); !c.AllInbound {
			c.IncludeInboundPorts, errs = ports(list)
		}
		return errs
	})
	read("excludeInboundPorts", func(list []string) []error {
		more, errs := ports(list)
		// The sidecar's own ports stay excluded whatever the pod says.
		c.ExcludeInboundPorts = sortedUnique(append(more, c.ExcludeInboundPorts...))
		return errs
	})
	read("excludeInterfaces", func(list []string) (errs []error) {
		c.ExcludeInterfaces, errs = interfaces(list)
		return errs
	})
	if err := errors.Join(errs...); err != nil {
		return Config{}, err
	}
	return c, nil
}

func isAll(list []string) bool { return len(list) == 1 && list[0] == "*" }

func split(v string) []string {
	var list []string
	for s := range strings.SplitSeq(v, ",") {
		if s = strings.TrimSpace(s); s != "" {
			list = append(list, s)
		}
	}
	return list
}

func prefixes(list []string) (ps []netip.Prefix, errs []error) {
	for _, s := range list {
		p, err := netip.ParsePrefix(s)
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("%q is not a range such as 10.0.0.0/8", s))
		case p.Addr().Is4In6():
			errs = append(errs, fmt.Errorf("%q is an IPv4 range in IPv6 form; write it as IPv4", s))
		default:
			ps = append(ps, p.Masked())
		}
	}
	return ps, errs
}

func ports(list []string) (ps []uint16, errs []error) {
	for _, s := range list {
		n, err := strconv.ParseUint(s, 10, 16)
		if err != nil || n == 0 {
			errs = append(errs, fmt.Errorf("%q is not a port from 1 to 65535", s))
			continue
		}
		ps = append(ps, uint16(n))
	}
	return sortedUnique(ps), errs
}

// maxInterfaceName is IFNAMSIZ of linux/if.h without the final zero.
const maxInterfaceName = 15

func interfaces(list []string) (names []string, errs []error) {
	for _, s := range list {
		if len(s) > maxInterfaceName || strings.ContainsAny(s, "/ \t\n\"\\") {
			errs = append(errs, fmt.Errorf("%q is not the name of a network interface", s))
			continue
		}
		names = append(names, s)
	}
	return sortedUnique(names), errs
}

func sortedUnique[T cmp.Ordered](vs []T) []T {
	slices.Sort(vs)
	return slices.Compact(vs)
}
