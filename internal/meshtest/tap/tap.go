// Package tap says what crosses a link: for each TCP flow, whether its bytes
// are TLS, of which version, or plain text. Mesh tests use it to show that
// nothing readable leaves a pod.
package tap

import (
	"encoding/binary"
	"net/netip"
	"slices"
)

// Capture collects the first bytes of each direction of each flow. The zero
// value is ready; one goroutine uses it at a time.
type Capture struct {
	flows map[[2]netip.AddrPort][]byte
}

// keep is how much of a direction is looked at: a ServerHello fits well.
const keep = 4 << 10

// Add notes bytes sent from src to dst.
func (c *Capture) Add(src, dst netip.AddrPort, b []byte) {
	if len(b) == 0 {
		return
	}
	if c.flows == nil {
		c.flows = map[[2]netip.AddrPort][]byte{}
	}
	k := [2]netip.AddrPort{src, dst}
	if have := c.flows[k]; len(have) < keep {
		c.flows[k] = append(have, b[:min(len(b), keep-len(have))]...)
	}
}

// AddFrame notes the TCP payload of an Ethernet frame with IPv4 or IPv6.
// Anything else is passed over.
func (c *Capture) AddFrame(f []byte) {
	if len(f) < 14 {
		return
	}
	kind, p := binary.BigEndian.Uint16(f[12:]), f[14:]
	var src, dst netip.Addr
	switch {
	case kind == 0x0800 && len(p) >= 20 && p[9] == 6:
		total, head := int(binary.BigEndian.Uint16(p[2:])), int(p[0]&15)*4
		if total > len(p) || head > total {
			return
		}
		src, dst = netip.AddrFrom4([4]byte(p[12:16])), netip.AddrFrom4([4]byte(p[16:20]))
		p = p[head:total]
	case kind == 0x86dd && len(p) >= 40 && p[6] == 6:
		total := 40 + int(binary.BigEndian.Uint16(p[4:]))
		if total > len(p) {
			return
		}
		src, dst = netip.AddrFrom16([16]byte(p[8:24])), netip.AddrFrom16([16]byte(p[24:40]))
		p = p[40:total]
	default:
		return
	}
	if len(p) < 20 {
		return
	}
	head := int(p[12]>>4) * 4
	if head > len(p) {
		return
	}
	c.Add(netip.AddrPortFrom(src, binary.BigEndian.Uint16(p)), netip.AddrPortFrom(dst, binary.BigEndian.Uint16(p[2:])), p[head:])
}

// Kinds lists what was seen, sorted, each once: "plain text", "TLS 1.3",
// "TLS 1.2", or "TLS" where no ServerHello was seen. Flows for which skip
// answers true do not count, and neither do those of which the first bytes seen
// are records from the midst of a TLS connection.
func (c *Capture) Kinds(skip func(src, dst netip.AddrPort) bool) []string {
	var out []string
	for k, b := range c.flows {
		if skip != nil && (skip(k[0], k[1]) || skip(k[1], k[0])) {
			continue
		}
		kind := version(b)
		if kind == "" {
			continue
		}
		if kind == "TLS" {
			// This is the client's side; the answer tells the version.
			if back, ok := c.flows[[2]netip.AddrPort{k[1], k[0]}]; ok {
				kind = version(back)
			}
		}
		out = append(out, kind)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// version reads a TLS record with a hello in it. Source: RFC 8446 §4.1.3, §4.2.1.
func version(b []byte) string {
	if len(b) >= 3 && b[0] >= 0x14 && b[0] <= 0x17 && b[0] != 0x16 && b[1] == 3 && b[2] <= 4 {
		return ""
	}
	if len(b) < 6 || b[0] != 0x16 || b[1] != 3 {
		return "plain text"
	}
	if b[5] != 2 { // not a ServerHello
		return "TLS"
	}
	p := b[5:]
	if len(p) < 39 {
		return "TLS"
	}
	p = p[38:] // type, length, version, random
	skip := 1 + int(p[0]) + 3
	if len(p) < skip+2 {
		return "TLS"
	}
	p = p[skip:] // session id, cipher suite, compression
	ext := p[2:]
	for len(ext) >= 4 {
		id, n := binary.BigEndian.Uint16(ext), int(binary.BigEndian.Uint16(ext[2:]))
		if len(ext) < 4+n {
			break
		}
		if id == 43 && n == 2 && binary.BigEndian.Uint16(ext[4:]) == 0x0304 {
			return "TLS 1.3"
		}
		ext = ext[4+n:]
	}
	return "TLS 1.2"
}
