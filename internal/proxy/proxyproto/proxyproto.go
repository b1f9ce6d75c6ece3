// Package proxyproto reads and writes the PROXY protocol's header, with which a load
// balancer tells at the start of a connection on whose behalf it was made.
//
// Reading is strict: a header that is not wholly right is an error, for the address in
// it decides what the client may do. It is pure and bounded; the caller reads as much
// as Parse asks for.
//
// Source: haproxy.org, "The PROXY protocol", versions 1 and 2.
package proxyproto

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"net/netip"
	"strconv"
	"strings"
)

// MaxHeader is the longest header that is taken. The addresses need 52 bytes; the
// rest is for what load balancers add, a client certificate's names among it.
const MaxHeader = 4 << 10

// maxLine is the longest header of version 1, with its end.
const maxLine = 107

const (
	signature = "\r\n\r\n\x00\r\nQUIT\n"
	line      = "PROXY "
	fixed     = 16 // of version 2, before what its length counts

	typeCRC32C = 0x03
)

// Header is what a header says. Addresses that are not valid mean that the
// connection's own hold: it was made by the sender for itself, or for a client of
// another kind than TCP.
type Header struct {
	Source, Destination netip.AddrPort
}

// ErrMissing is returned for bytes that do not begin as a header does.
var ErrMissing = errors.New("proxyproto: no PROXY protocol header")

// Parse reads the header at the start of b. It returns how long the header is, or,
// with need > 0, how many bytes have to be there before another look can bring
// anything new.
func Parse(b []byte) (h Header, n, need int, err error) {
	switch {
	case len(b) == 0:
		return h, 0, 1, nil
	case begins(b, signature):
		if len(b) < fixed {
			return h, 0, fixed, nil
		}
		length := fixed + int(binary.BigEndian.Uint16(b[14:]))
		if length > MaxHeader {
			return h, 0, 0, fmt.Errorf("proxyproto: header of %d bytes, more than %d", length, MaxHeader)
		}
		if err = checkFixed(b); err != nil {
			return h, 0, 0, err
		}
		if len(b) < length {
			return Header{}, 0, length, nil
		}
		if h, err = parseBinary(b[:length]); err != nil {
			return Header{}, 0, 0, err
		}
		return h, length, 0, nil
	case begins(b, line):
		end := bytes.IndexByte(b[:min(len(b), maxLine)], '\n')
		if end < 0 {
			if len(b) >= maxLine {
				return h, 0, 0, fmt.Errorf("proxyproto: line of more than %d bytes", maxLine)
			}
			return h, 0, len(b) + 1, nil
		}
		text, ok := strings.CutSuffix(string(b[:end]), "\r")
		if !ok {
			return h, 0, 0, errors.New("proxyproto: line ends without carriage return")
		}
		if h, err = parseLine(text); err != nil {
			return Header{}, 0, 0, err
		}
		return h, end + 1, 0, nil
	}
	return h, 0, 0, ErrMissing
}

// begins reports whether b may be the start of something that begins with prefix.
func begins(b []byte, prefix string) bool {
	n := min(len(b), len(prefix))
	return string(b[:n]) == prefix[:n]
}

func parseLine(text string) (h Header, err error) {
	fields := strings.Split(strings.TrimPrefix(text, line), " ")
	if fields[0] == "UNKNOWN" {
		return h, nil // what follows means nothing
	}
	if len(fields) != 5 || fields[0] != "TCP4" && fields[0] != "TCP6" {
		return h, fmt.Errorf("proxyproto: %q is no line of version 1", text)
	}
	want4 := fields[0] == "TCP4"
	if h.Source, err = addrPort(fields[1], fields[3], want4); err != nil {
		return Header{}, err
	}
	if h.Destination, err = addrPort(fields[2], fields[4], want4); err != nil {
		return Header{}, err
	}
	return h, nil
}

func addrPort(addr, port string, want4 bool) (netip.AddrPort, error) {
	a, err := netip.ParseAddr(addr)
	if err != nil || a.Is4() != want4 || a.Zone() != "" {
		return netip.AddrPort{}, fmt.Errorf("proxyproto: %q is no address of the family", addr)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || strconv.FormatUint(n, 10) != port {
		return netip.AddrPort{}, fmt.Errorf("proxyproto: %q is no port", port)
	}
	return netip.AddrPortFrom(a.Unmap(), uint16(n)), nil
}

// Command, family and protocol of version 2.
const (
	cmdLocal, cmdProxy = 0x20, 0x21 // with the version
	unspecified        = 0x00
	tcp4, udp4         = 0x11, 0x12
	tcp6, udp6         = 0x21, 0x22
	stream, datagram   = 0x31, 0x32 // of Unix sockets
)

// size4, size6 and sizeUnix are how long the addresses are.
const size4, size6, sizeUnix = 12, 36, 216

// checkFixed checks what comes before the addresses.
func checkFixed(b []byte) error {
	if b[12] != cmdLocal && b[12] != cmdProxy {
		return fmt.Errorf("proxyproto: version and command %#x", b[12])
	}
	size, ok := addressSize(b[13])
	if !ok {
		return fmt.Errorf("proxyproto: family and protocol %#x", b[13])
	}
	if b[12] == cmdProxy && int(binary.BigEndian.Uint16(b[14:])) < size {
		return errors.New("proxyproto: header shorter than its addresses")
	}
	return nil
}

func addressSize(family byte) (int, bool) {
	switch family {
	case unspecified:
		return 0, true
	case tcp4, udp4:
		return size4, true
	case tcp6, udp6:
		return size6, true
	case stream, datagram:
		return sizeUnix, true
	}
	return 0, false
}

// parseBinary reads a whole header of version 2 whose fixed part is right.
func parseBinary(b []byte) (h Header, err error) {
	size, _ := addressSize(b[13])
	rest := b[fixed:]
	if b[12] == cmdLocal {
		return h, nil // the rest is to be skipped
	}
	switch b[13] {
	case tcp4:
		h.Source = netip.AddrPortFrom(netip.AddrFrom4([4]byte(rest)), binary.BigEndian.Uint16(rest[8:]))
		h.Destination = netip.AddrPortFrom(netip.AddrFrom4([4]byte(rest[4:])), binary.BigEndian.Uint16(rest[10:]))
	case tcp6:
		h.Source = netip.AddrPortFrom(netip.AddrFrom16([16]byte(rest)).Unmap(), binary.BigEndian.Uint16(rest[32:]))
		h.Destination = netip.AddrPortFrom(netip.AddrFrom16([16]byte(rest[16:])).Unmap(), binary.BigEndian.Uint16(rest[34:]))
	}
	for tlvs := rest[size:]; len(tlvs) > 0; {
		if len(tlvs) < 3 || len(tlvs) < 3+int(binary.BigEndian.Uint16(tlvs[1:])) {
			return Header{}, errors.New("proxyproto: an addition is longer than the header")
		}
		n := 3 + int(binary.BigEndian.Uint16(tlvs[1:]))
		if tlvs[0] == typeCRC32C && (n != 3+4 || !checksum(b, len(b)-len(tlvs)+3)) {
			return Header{}, errors.New("proxyproto: wrong checksum")
		}
		tlvs = tlvs[n:]
	}
	return h, nil
}

// checksum reports whether the four bytes at at are the checksum of b with zeros in
// their place.
func checksum(b []byte, at int) bool {
	c := bytes.Clone(b)
	clear(c[at : at+4])
	return crc32.Checksum(c, crc32.MakeTable(crc32.Castagnoli)) == binary.BigEndian.Uint32(b[at:])
}

// Version is which form a header is written in.
type Version uint8

const (
	V1 Version = 1
	V2 Version = 2
)

// Append adds the header for a connection made on behalf of source to destination.
// Where one of them is not valid, or they are of two families, it says no more than
// that the sender does not know.
func Append(b []byte, v Version, source, destination netip.AddrPort) []byte {
	src, dst := source.Addr().Unmap(), destination.Addr().Unmap()
	known := src.IsValid() && dst.IsValid() && src.Is4() == dst.Is4()
	if v == V1 {
		switch {
		case !known:
			return append(b, "PROXY UNKNOWN\r\n"...)
		case src.Is4():
			b = append(b, "PROXY TCP4 "...)
		default:
			b = append(b, "PROXY TCP6 "...)
		}
		return fmt.Appendf(b, "%s %s %d %d\r\n", src.WithZone(""), dst.WithZone(""), source.Port(), destination.Port())
	}
	b = append(b, signature...)
	switch {
	case !known:
		return append(b, cmdLocal, unspecified, 0, 0)
	case src.Is4():
		b = append(b, cmdProxy, tcp4, 0, size4)
	default:
		b = append(b, cmdProxy, tcp6, 0, size6)
	}
	b = append(b, src.AsSlice()...)
	b = append(b, dst.AsSlice()...)
	b = binary.BigEndian.AppendUint16(b, source.Port())
	return binary.BigEndian.AppendUint16(b, destination.Port())
}
