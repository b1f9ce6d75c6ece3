package proxyproto

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"net/netip"
	"strings"
	"testing"
)

func v2(command, family byte, rest ...byte) string {
	b := append([]byte(signature), command, family)
	b = binary.BigEndian.AppendUint16(b, uint16(len(rest)))
	return string(append(b, rest...))
}

func addresses4() []byte { return []byte{192, 0, 2, 7, 198, 51, 100, 1, 0xdd, 0xd5, 0x01, 0xbb} }

// withChecksum returns a header with an addition that proves the rest.
func withChecksum(flip byte) string {
	b := []byte(v2(cmdProxy, tcp4, append(addresses4(), typeCRC32C, 0, 4, 0, 0, 0, 0)...))
	sum := crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli))
	binary.BigEndian.PutUint32(b[len(b)-4:], sum)
	b[len(b)-1] ^= flip
	return string(b)
}

func TestHeaders(t *testing.T) {
	known := Header{netip.MustParseAddrPort("192.0.2.7:56789"), netip.MustParseAddrPort("198.51.100.1:443")}
	for name, test := range map[string]struct {
		in   string
		want Header
	}{
		"version 1":                    {"PROXY TCP4 192.0.2.7 198.51.100.1 56789 443\r\n", known},
		"version 1, IPv6":              {"PROXY TCP6 2001:db8::1 2001:db8::2 1 2\r\n", Header{netip.MustParseAddrPort("[2001:db8::1]:1"), netip.MustParseAddrPort("[2001:db8::2]:2")}},
		"version 1, IPv4 in IPv6":      {"PROXY TCP6 ::ffff:192.0.2.7 ::ffff:198.51.100.1 56789 443\r\n", known},
		"version 1, unknown":           {"PROXY UNKNOWN\r\n", Header{}},
		"version 1, unknown with more": {"PROXY UNKNOWN ffff::1 1\r\n", Header{}},
		"version 2":                    {v2(cmdProxy, tcp4, addresses4()...), known},
		"version 2, local":             {v2(cmdLocal, tcp4, addresses4()...), Header{}},
		"version 2, local, empty":      {v2(cmdLocal, unspecified), Header{}},
		"version 2, unspecified":       {v2(cmdProxy, unspecified), Header{}},
		"version 2, datagrams":         {v2(cmdProxy, udp4, addresses4()...), Header{}},
		"version 2, Unix":              {v2(cmdProxy, stream, make([]byte, sizeUnix)...), Header{}},
		"version 2, an addition":       {v2(cmdProxy, tcp4, append(addresses4(), 0x02, 0, 3, 'f', 'o', 'o')...), known},
		"version 2, a checksum":        {withChecksum(0), known},
	} {
		for _, rest := range []string{"", "GET / HTTP/1.1\r\n"} {
			h, n, need, err := Parse([]byte(test.in + rest))
			if err != nil || need != 0 || n != len(test.in) || h != test.want {
				t.Errorf("%s: %v, %d bytes, need %d, %v; want %v, %d bytes", name, h, n, need, err, test.want, len(test.in))
			}
		}
		// Every piece of it asks for more than there is, and for no more than all.
		for i := range test.in {
			if _, n, need, err := Parse([]byte(test.in[:i])); err != nil || n != 0 || need <= i && i > 0 || need > len(test.in) {
				t.Errorf("%s: first %d bytes: n %d, need %d, %v", name, i, n, need, err)
			}
		}
	}
}

func TestWhatIsNoHeader(t *testing.T) {
	long := make([]byte, MaxHeader)
	for name, in := range map[string]string{
		"HTTP":                     "GET / HTTP/1.1\r\n",
		"lower case":               "proxy TCP4 192.0.2.7 198.51.100.1 1 2\r\n",
		"no carriage return":       "PROXY TCP4 192.0.2.7 198.51.100.1 1 2\n",
		"two spaces":               "PROXY  TCP4 192.0.2.7 198.51.100.1 1 2\r\n",
		"trailing space":           "PROXY TCP4 192.0.2.7 198.51.100.1 1 2 \r\n",
		"missing port":             "PROXY TCP4 192.0.2.7 198.51.100.1 1\r\n",
		"port too big":             "PROXY TCP4 192.0.2.7 198.51.100.1 1 65536\r\n",
		"port with zeros":          "PROXY TCP4 192.0.2.7 198.51.100.1 01 2\r\n",
		"port with sign":           "PROXY TCP4 192.0.2.7 198.51.100.1 +1 2\r\n",
		"octal address":            "PROXY TCP4 192.0.2.07 198.51.100.1 1 2\r\n",
		"wrong family":             "PROXY TCP4 2001:db8::1 2001:db8::2 1 2\r\n",
		"zone":                     "PROXY TCP6 fe80::1%eth0 fe80::2 1 2\r\n",
		"a name":                   "PROXY TCP4 example.com 198.51.100.1 1 2\r\n",
		"UDP":                      "PROXY UDP4 192.0.2.7 198.51.100.1 1 2\r\n",
		"line without end":         "PROXY UNKNOWN " + strings.Repeat("x", maxLine),
		"version 3":                v2(0x31, tcp4, addresses4()...),
		"command 2":                v2(0x22, tcp4, addresses4()...),
		"family 4":                 v2(cmdProxy, 0x41, addresses4()...),
		"short addresses":          v2(cmdProxy, tcp4, addresses4()[:11]...),
		"short addresses, IPv6":    v2(cmdProxy, tcp6, addresses4()...),
		"addition longer than all": v2(cmdProxy, tcp4, append(addresses4(), 0x02, 0xff, 0xff)...),
		"half an addition":         v2(cmdProxy, tcp4, append(addresses4(), 0x02)...),
		"wrong checksum":           withChecksum(1),
		"short checksum":           v2(cmdProxy, tcp4, append(addresses4(), typeCRC32C, 0, 1, 0)...),
		"too long":                 v2(cmdProxy, tcp4, long...),
	} {
		if h, n, need, err := Parse([]byte(in)); err == nil {
			t.Errorf("%s: %v, %d bytes, need %d, want an error", name, h, n, need)
		}
	}
	if _, _, _, err := Parse([]byte("SSH-2.0")); !errors.Is(err, ErrMissing) {
		t.Errorf("another protocol: %v, want %v", err, ErrMissing)
	}
	// What is wrong is said before more is waited for.
	if _, _, need, err := Parse([]byte(v2(0x22, tcp4, addresses4()...))[:fixed]); err == nil {
		t.Errorf("wrong command: asks for %d bytes, want an error", need)
	}
}

func TestWhatIsWrittenIsRead(t *testing.T) {
	a4, b4 := netip.MustParseAddrPort("192.0.2.7:56789"), netip.MustParseAddrPort("198.51.100.1:443")
	a6, b6 := netip.MustParseAddrPort("[2001:db8::1]:1"), netip.MustParseAddrPort("[fe80::2]:2")
	for _, v := range []Version{V1, V2} {
		for _, test := range []struct {
			src, dst netip.AddrPort
			want     Header
		}{
			{a4, b4, Header{a4, b4}},
			{a6, b6, Header{a6, b6}},
			{netip.MustParseAddrPort("[::ffff:192.0.2.7]:56789"), b4, Header{a4, b4}},
			{a4, b6, Header{}},
			{netip.AddrPort{}, b4, Header{}},
		} {
			b := Append(nil, v, test.src, test.dst)
			h, n, need, err := Parse(b)
			if err != nil || need != 0 || n != len(b) || h != test.want {
				t.Errorf("version %d, %v to %v: %v, %d of %d bytes, need %d, %v; want %v", v, test.src, test.dst, h, n, len(b), need, err, test.want)
			}
		}
	}
}

// FuzzParse: whatever comes, Parse stays inside its bounds, needs no more than
// MaxHeader, and says of the header alone what it says with bytes behind it; and
// what it read, written again, is read as the same.
func FuzzParse(f *testing.F) {
	f.Add([]byte("PROXY TCP4 192.0.2.7 198.51.100.1 56789 443\r\nx"))
	f.Add([]byte("PROXY UNKNOWN\r\n"))
	f.Add([]byte(v2(cmdProxy, tcp4, addresses4()...)))
	f.Add([]byte(v2(cmdProxy, tcp6, make([]byte, size6)...)))
	f.Add([]byte(withChecksum(0)))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, n, need, err := Parse(bytes.Clone(b))
		switch {
		case err != nil:
			if h != (Header{}) || n != 0 || need != 0 {
				t.Errorf("%v, and %v, %d, %d", err, h, n, need)
			}
		case need > 0:
			if need <= len(b) || need > MaxHeader || n != 0 {
				t.Errorf("needs %d bytes, has %d", need, len(b))
			}
		default:
			if n <= 0 || n > len(b) || n > MaxHeader {
				t.Fatalf("header of %d bytes in %d", n, len(b))
			}
			again, m, _, err := Parse(bytes.Clone(b[:n]))
			if again != h || m != n || err != nil {
				t.Errorf("alone: %v, %d, %v; want %v, %d", again, m, err, h, n)
			}
			for _, v := range []Version{V1, V2} {
				w := Append(nil, v, h.Source, h.Destination)
				if again, _, _, err := Parse(w); err != nil || h.Source.IsValid() && h.Source.Addr().Is4() == h.Destination.Addr().Is4() && again != h {
					t.Errorf("%v written as %q is read as %v, %v", h, w, again, err)
				}
			}
		}
	})
}
