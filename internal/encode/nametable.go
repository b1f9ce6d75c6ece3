package encode

import (
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/heddle-mesh/heddle/internal/plan"
)

// The fields of istio.networking.nds.v1.NameTable and of its NameInfo. Written
// by hand, because the proxy must not link Istio's Go module for one message.
const (
	tableField     protowire.Number = 1 // map<string, NameInfo>
	mapKeyField    protowire.Number = 1
	mapValueField  protowire.Number = 2
	ipsField       protowire.Number = 1
	registryField  protowire.Number = 2
	shortField     protowire.Number = 3
	namespaceField protowire.Number = 4
)

// nameTable encodes the table; its entries are sorted, so equal tables give equal
// bytes.
func nameTable(t *plan.NameTable) []byte {
	var out, entry, info []byte
	for _, n := range t.Names {
		info = info[:0]
		for _, ip := range n.IPs {
			info = appendString(info, ipsField, ip.String())
		}
		info = appendString(info, registryField, n.Registry)
		info = appendString(info, shortField, n.Short)
		info = appendString(info, namespaceField, n.Namespace)

		entry = appendString(entry[:0], mapKeyField, n.Host)
		entry = protowire.AppendTag(entry, mapValueField, protowire.BytesType)
		entry = protowire.AppendBytes(entry, info)

		out = protowire.AppendTag(out, tableField, protowire.BytesType)
		out = protowire.AppendBytes(out, entry)
	}
	return out
}

// appendString writes a string field, and nothing for the empty string.
func appendString(b []byte, field protowire.Number, s string) []byte {
	if s == "" {
		return b
	}
	return protowire.AppendString(protowire.AppendTag(b, field, protowire.BytesType), s)
}
