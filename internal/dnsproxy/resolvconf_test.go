package dnsproxy

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestParseResolvConf(t *testing.T) {
	servers := func(s ...string) (aps []netip.AddrPort) {
		for _, s := range s {
			aps = append(aps, netip.MustParseAddrPort(s))
		}
		return aps
	}
	for _, test := range []struct {
		name, in string
		want     ResolvConf
	}{
		{"empty", "", ResolvConf{Ndots: 1}},
		{"a pod's", "search default.svc.cluster.local svc.cluster.local cluster.local\nnameserver 10.96.0.10\noptions ndots:5\n",
			ResolvConf{servers("10.96.0.10:53"), []string{"default.svc.cluster.local", "svc.cluster.local", "cluster.local"}, 5}},
		{"comments and rubbish", "# nameserver 1.1.1.1\n; x\nnameserver\nnameserver example.org\nnameserver\t8.8.8.8 # good\nsortlist 1.2.3.4\n\nnameserver 8.8.8.8",
			ResolvConf{servers("8.8.8.8:53"), nil, 1}},
		{"IPv6", "nameserver fd00::a\nnameserver fe80::1%eth0\nnameserver ::ffff:10.0.0.1\r\n",
			ResolvConf{servers("[fd00::a]:53", "[fe80::1%eth0]:53", "10.0.0.1:53"), nil, 1}},
		{"the last search counts", "search a.example\ndomain B.example.\nsearch c.example. . D.example\n",
			ResolvConf{nil, []string{"c.example", "d.example"}, 1}},
		{"options", "options rotate ndots:99 timeout:1\noptions ndots:x\noptions ndots:-1", ResolvConf{Ndots: 15}},
		{"no dots", "options ndots:0", ResolvConf{}},
	} {
		got, err := ParseResolvConf(strings.NewReader(test.in))
		if err != nil {
			t.Errorf("%s: %v", test.name, err)
		}
		if diff := cmp.Diff(test.want, got, cmpopts.EquateComparable(netip.AddrPort{}), cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", test.name, diff)
		}
	}
	broken := errors.New("broken")
	if _, err := ParseResolvConf(iotest.ErrReader(broken)); !errors.Is(err, broken) {
		t.Errorf("reading fails: %v", err)
	}
}

func FuzzParseResolvConf(f *testing.F) {
	f.Add("search a.example\nnameserver 10.0.0.1\nnameserver fe80::1%x\noptions ndots:5\n")
	f.Fuzz(func(t *testing.T, in string) {
		c, err := ParseResolvConf(strings.NewReader(in))
		if err != nil {
			return
		}
		if c.Ndots < 0 || c.Ndots > maxNdots {
			t.Errorf("ndots is %d", c.Ndots)
		}
		for _, s := range c.Servers {
			if !s.IsValid() || s.Addr().Is4In6() {
				t.Errorf("server %v", s)
			}
		}
		for _, d := range c.Search {
			if d == "" || d != strings.ToLower(d) {
				t.Errorf("search domain %q", d)
			}
		}
	})
}
