package network

import (
	"net/netip"
	"testing"
)

func TestAddressesOfPods(t *testing.T) {
	for host, want := range map[uint32][2]string{
		2:     {"10.244.0.2", "fd00:10:244::2"},
		255:   {"10.244.0.255", "fd00:10:244::ff"},
		65534: {"10.244.255.254", "fd00:10:244::fffe"},
	} {
		if a, b := nth(PodCIDR, host), nth(PodCIDR6, host); a.String() != want[0] || b.String() != want[1] {
			t.Errorf("%d: %s and %s, want %s", host, a, b, want)
		}
	}
}

// An address is not given again soon, never twice at a time, and in the end again.
func TestAddressesAreGivenInTurn(t *testing.T) {
	n := &Node{last: 1, used: make(map[uint32]bool)}
	seen := make(map[uint32]bool)
	for range 1<<16 - 3 {
		host, err := n.allocate()
		if err != nil {
			t.Fatal(err)
		}
		if a := nth(PodCIDR, host); seen[host] || a == NodeIP || !PodCIDR.Contains(a) {
			t.Fatalf("%d (%s) was given", host, a)
		}
		seen[host] = true
	}
	if host, err := n.allocate(); err == nil {
		t.Fatalf("%d was given though all are in use", host)
	}
	n.free(7)
	if host, err := n.allocate(); err != nil || host != 7 {
		t.Errorf("got %d, %v, want the one that is free", host, err)
	}
}

func TestTheMeshKeepsItsOwnRanges(t *testing.T) {
	for addr, own := range map[string]bool{
		"10.244.3.4": true, "10.96.0.10": true, "127.0.0.6": true, "169.254.1.1": true, "240.240.0.1": true, "224.0.0.1": true,
		"10.0.0.1": false, "192.0.2.1": false, "8.8.8.8": false,
	} {
		got := false
		for _, p := range meshRanges {
			got = got || p.Contains(netip.MustParseAddr(addr))
		}
		if got != own {
			t.Errorf("%s is the mesh's own: %v", addr, got)
		}
	}
}
