package decode

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/heddle-mesh/heddle/internal/plan"
)

// NameTable reads an istio.networking.nds.v1.NameTable. The message is read by
// hand, because the proxy must not link Istio's Go module for it.
func NameTable(a *anypb.Any) (*plan.NameTable, error) {
	if a.GetTypeUrl() != NameTableType {
		return nil, fmt.Errorf("resource: is a %q, want %q", a.GetTypeUrl(), NameTableType)
	}
	t := &plan.NameTable{}
	err := eachField(a.GetValue(), func(field protowire.Number, entry []byte) error {
		if field != 1 { // map<string, NameInfo> table
			return nil
		}
		n, err := nameEntry(entry)
		t.Names = append(t.Names, n)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("name table: %w", err)
	}
	// A map has no order on the wire; of two entries with one key the last counts.
	slices.SortStableFunc(t.Names, func(a, b plan.NameEntry) int { return strings.Compare(a.Host, b.Host) })
	slices.Reverse(t.Names)
	t.Names = slices.CompactFunc(t.Names, func(a, b plan.NameEntry) bool { return a.Host == b.Host })
	slices.Reverse(t.Names)
	return t, nil
}

func nameEntry(b []byte) (n plan.NameEntry, err error) {
	var info []byte
	err = eachField(b, func(field protowire.Number, v []byte) error {
		switch field {
		case 1:
			n.Host = string(v)
		case 2:
			info = v
		}
		return nil
	})
	if err != nil {
		return n, err
	}
	if n.Host == "" {
		return n, errors.New("an entry has no host")
	}
	err = eachField(info, func(field protowire.Number, v []byte) error {
		switch field {
		case 1:
			ip, err := netip.ParseAddr(string(v))
			if err != nil {
				return fmt.Errorf("%s: %q is not an IP address", n.Host, v)
			}
			n.IPs = append(n.IPs, ip)
		case 2:
			n.Registry = string(v)
		case 3:
			n.Short = string(v)
		case 4:
			n.Namespace = string(v)
		}
		return nil
	})
	return n, err
}

// eachField calls f with every length-delimited field; the message has no others,
// and those of a newer form are skipped.
func eachField(b []byte, f func(protowire.Number, []byte) error) error {
	for len(b) > 0 {
		field, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return protowire.ParseError(n)
		}
		b = b[n:]
		if typ != protowire.BytesType {
			if n = protowire.ConsumeFieldValue(field, typ, b); n < 0 {
				return protowire.ParseError(n)
			}
			b = b[n:]
			continue
		}
		v, n := protowire.ConsumeBytes(b)
		if n < 0 {
			return protowire.ParseError(n)
		}
		if err := f(field, v); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}
