package main

import (
	"net/netip"
	"os"
	"strings"
	"testing"
)

func TestRangesOfClustersAreApart(t *testing.T) {
	type owned struct {
		what string
		p    netip.Prefix
	}
	var all []owned
	for n := range maxSubnet + 1 {
		s := &spec{Name: "x", Nodes: maxNodes, Subnet: n, Dual: true}
		for what, p := range map[string]netip.Prefix{
			"nodes": s.hostAddr().Masked(), "nodes6": s.hostAddr6().Masked(), "services": s.services(), "services6": s.services6(),
			"pods": s.allPods(), "pods6": s.allPods6(),
		} {
			for _, o := range all {
				if o.p.Overlaps(p) {
					t.Fatalf("%s %s of subnet %d overlap with %s %s", what, p, n, o.what, o.p)
				}
			}
			all = append(all, owned{what, p})
		}
	}
}

func TestAddressesAreInTheirRanges(t *testing.T) {
	for n := range maxSubnet + 1 {
		s := &spec{Name: "x", Nodes: maxNodes, Subnet: n, Dual: true}
		for i := 1; i <= maxNodes; i++ {
			for _, c := range []struct {
				outer netip.Prefix
				inner netip.Addr
			}{
				{s.hostAddr().Masked(), s.nodeAddr(i).Addr()}, {s.hostAddr6().Masked(), s.nodeAddr6(i).Addr()},
				{s.allPods(), s.pods(i).Addr()}, {s.allPods6(), s.pods6(i).Addr()},
				{s.services(), s.dns()}, {s.services6(), s.dns6()},
			} {
				if !c.outer.Contains(c.inner) {
					t.Errorf("subnet %d, node %d: %s is not in %s", n, i, c.inner, c.outer)
				}
			}
			if a := s.nodeAddr(i); a == s.hostAddr() {
				t.Errorf("subnet %d: node %d has the machine's address %s", n, i, a)
			}
			if len(s.veth(i)) > 15 {
				t.Errorf("interface name %s is too long", s.veth(i))
			}
		}
	}
}

func TestSubnetInUseIsNamed(t *testing.T) {
	used := []netip.Prefix{netip.MustParsePrefix("10.153.0.0/17")}
	if err := inUse(&spec{Subnet: 2}, used); err != nil {
		t.Error(err)
	}
	if err := inUse(&spec{Subnet: 3}, used); err == nil || !strings.Contains(err.Error(), "10.153.0.0/17") {
		t.Errorf("subnet 3 is in use, and the error is %v", err)
	}
}

func TestBadSpecIsRefusedWhole(t *testing.T) {
	for _, name := range []string{"", "Upper", "toolongname", "a-b", "9a", "../x"} {
		if (&spec{Name: name, Nodes: 1, Proxy: "nftables"}).check() == nil {
			t.Errorf("name %q is accepted", name)
		}
	}
	err := (&spec{Name: "-", Nodes: 10, Subnet: 50, Proxy: "ipvs"}).check()
	for _, want := range []string{"name", "10 nodes", "subnet 50", "ipvs"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("no word of %q in %v", want, err)
		}
	}
	if err := (&spec{Name: "e2e", Nodes: 1, Subnet: -1, Proxy: "iptables"}).check(); err != nil {
		t.Error(err)
	}
}

func TestProcessIsToldFromALaterOneOfItsNumber(t *testing.T) {
	start, state := stat(os.Getpid())
	if start == "" || state == "" {
		t.Fatal("this process has neither start time nor state")
	}
	if !(process{os.Getpid(), start}).alive() {
		t.Error("this process is not alive")
	}
	if (process{os.Getpid(), start + "0"}).alive() {
		t.Error("an earlier process of this number is alive")
	}
}

func TestDNSManifestsFitTheFamilies(t *testing.T) {
	one, two := dns(&spec{Subnet: 4}), dns(&spec{Subnet: 4, Dual: true})
	if !strings.Contains(one, "clusterIP: 10.154.0.10") || strings.Contains(one, "RequireDualStack") {
		t.Error(one)
	}
	if !strings.Contains(two, `clusterIPs: ["10.154.0.10", "fd48:ed00:4:2::a"]`) || !strings.Contains(two, "RequireDualStack") {
		t.Error(two)
	}
}
