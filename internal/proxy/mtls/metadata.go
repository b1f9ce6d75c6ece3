package mtls

import (
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/heddle-mesh/heddle/internal/identity"
	"github.com/heddle-mesh/heddle/internal/telemetry"
)

// Headers that carry a Metadata, and the fields of the frame's struct.
const (
	HeaderMetadata   = "x-envoy-peer-metadata"
	HeaderMetadataID = "x-envoy-peer-metadata-id"
)

// Metadata describes a workload to its peers. It is what a peer claims of
// itself: good for metrics, never for a decision about access.
type Metadata struct {
	ID           string // of the xDS node, "sidecar~10.0.0.7~reviews-v1-5f.default~default.svc.cluster.local"
	Name         string // of the Pod
	Namespace    string
	Owner        string // "kubernetes://apis/apps/v1/namespaces/default/deployments/reviews-v1"
	WorkloadName string
	ClusterID    string
	Labels       map[string]string
	Platform     map[string]string
}

const (
	// maxMetadata bounds an encoded Metadata; see MaxFrame.
	maxMetadata = MaxFrame
	// maxEntries bounds a struct's fields, so that a small message can not make
	// a large map.
	maxEntries = 512

	structType = "type.googleapis.com/google.protobuf.Struct"
)

// Field numbers. Source: google/protobuf/struct.proto and any.proto.
const (
	anyTypeURL  protowire.Number = 1
	anyValue    protowire.Number = 2
	structField protowire.Number = 1 // map<string, Value> fields
	entryKey    protowire.Number = 1
	entryValue  protowire.Number = 2
	valueString protowire.Number = 3
	valueStruct protowire.Number = 5
)

var errMetadata = errors.New("mtls: bad peer metadata")

// Encode returns the body of an exchange frame: a google.protobuf.Any of a
// google.protobuf.Struct with the metadata's struct and the node id under the
// names of the two headers. Equal metadata gives equal bytes.
func (m *Metadata) Encode() []byte {
	body := appendEntry(nil, HeaderMetadata, appendBytes(nil, valueStruct, m.appendStruct(nil)))
	if m.ID != "" {
		body = appendEntry(body, HeaderMetadataID, stringValue(m.ID))
	}
	b := appendBytes(nil, anyTypeURL, []byte(structType))
	return appendBytes(b, anyValue, body)
}

// Headers returns the values of HeaderMetadata and HeaderMetadataID.
func (m *Metadata) Headers() (metadata, id string) {
	return base64.StdEncoding.EncodeToString(m.appendStruct(nil)), m.ID
}

// appendStruct appends the metadata as a google.protobuf.Struct, fields in the
// order of their names. Empty fields are left out, as Istio does.
func (m *Metadata) appendStruct(b []byte) []byte {
	text := func(name, value string) {
		if value != "" {
			b = appendEntry(b, name, stringValue(value))
		}
	}
	nested := func(name string, values map[string]string) {
		if len(values) == 0 {
			return
		}
		var inner []byte
		for _, key := range slices.Sorted(maps.Keys(values)) {
			inner = appendEntry(inner, key, stringValue(values[key]))
		}
		b = appendEntry(b, name, appendBytes(nil, valueStruct, inner))
	}
	text("CLUSTER_ID", m.ClusterID)
	nested("LABELS", m.Labels)
	text("NAME", m.Name)
	text("NAMESPACE", m.Namespace)
	text("OWNER", m.Owner)
	nested("PLATFORM_METADATA", m.Platform)
	text("WORKLOAD_NAME", m.WorkloadName)
	return b
}

func stringValue(s string) []byte {
	// A protobuf string must be UTF-8, or the peer refuses the whole message.
	return appendBytes(nil, valueString, []byte(strings.ToValidUTF8(s, "\uFFFD")))
}

func appendBytes(b []byte, n protowire.Number, value []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(b, n, protowire.BytesType), value)
}

func appendEntry(b []byte, key string, value []byte) []byte {
	entry := appendBytes(nil, entryKey, []byte(strings.ToValidUTF8(key, "\uFFFD")))
	return appendBytes(b, structField, appendBytes(entry, entryValue, value))
}

// Decode reads the body of an exchange frame. The peer is not trusted: size,
// number of fields and depth are bounded, unknown fields are skipped.
func Decode(frame []byte) (Metadata, error) {
	if len(frame) > maxMetadata {
		return Metadata{}, fmt.Errorf("%w: %d bytes", errMetadata, len(frame))
	}
	var typeURL, body []byte
	if err := eachField(frame, func(n protowire.Number, value []byte) error {
		switch n {
		case anyTypeURL:
			typeURL = value
		case anyValue:
			body = value
		}
		return nil
	}); err != nil {
		return Metadata{}, err
	}
	if string(typeURL) != structType {
		return Metadata{}, fmt.Errorf("%w: not a Struct", errMetadata)
	}
	var m Metadata
	err := eachEntry(body, func(key string, v value) error {
		switch key {
		case HeaderMetadata:
			return m.decodeStruct(v.nested)
		case HeaderMetadataID:
			m.ID = v.text
		}
		return nil
	})
	if err != nil {
		return Metadata{}, err
	}
	return m, nil
}

// DecodeHeaders reads the values of HeaderMetadata and HeaderMetadataID, with the
// same limits as Decode.
func DecodeHeaders(metadata, id string) (Metadata, error) {
	if len(metadata) > base64.StdEncoding.EncodedLen(maxMetadata) || len(id) > maxMetadata {
		return Metadata{}, fmt.Errorf("%w: header of %d bytes", errMetadata, len(metadata))
	}
	// Some encoders leave the padding out.
	body, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(metadata, "="))
	if err != nil {
		return Metadata{}, fmt.Errorf("%w: %w", errMetadata, err)
	}
	m := Metadata{ID: strings.ToValidUTF8(id, "\uFFFD")}
	if err := m.decodeStruct(body); err != nil {
		return Metadata{}, err
	}
	return m, nil
}

func (m *Metadata) decodeStruct(b []byte) error {
	return eachEntry(b, func(key string, v value) (err error) {
		switch key {
		case "NAME":
			m.Name = v.text
		case "NAMESPACE":
			m.Namespace = v.text
		case "OWNER":
			m.Owner = v.text
		case "WORKLOAD_NAME":
			m.WorkloadName = v.text
		case "CLUSTER_ID":
			m.ClusterID = v.text
		case "LABELS":
			m.Labels, err = decodeMap(v.nested)
		case "PLATFORM_METADATA":
			m.Platform, err = decodeMap(v.nested)
		}
		return err
	})
}

// decodeMap reads a struct's texts; values of other kinds are left out.
func decodeMap(b []byte) (map[string]string, error) {
	var values map[string]string
	err := eachEntry(b, func(key string, v value) error {
		if v.isText {
			if values == nil {
				values = make(map[string]string)
			}
			values[key] = v.text
		}
		return nil
	})
	return values, err
}

// value is a google.protobuf.Value as far as metadata uses it. A nested struct
// is kept in its encoded form, so that depth costs nothing unless asked for.
type value struct {
	isText bool
	text   string
	nested []byte
}

// eachEntry calls f for the entries of an encoded google.protobuf.Struct, in the
// order of the encoding. A key that occurs again overrides, as in protobuf.
func eachEntry(b []byte, f func(key string, v value) error) error {
	entries := 0
	return eachField(b, func(n protowire.Number, entry []byte) error {
		if n != structField {
			return nil
		}
		if entries++; entries > maxEntries {
			return fmt.Errorf("%w: more than %d fields", errMetadata, maxEntries)
		}
		var key string
		var v value
		err := eachField(entry, func(n protowire.Number, field []byte) (err error) {
			switch n {
			case entryKey:
				key, err = toText(field)
			case entryValue:
				v, err = decodeValue(field)
			}
			return err
		})
		if err != nil {
			return err
		}
		return f(key, v)
	})
}

func decodeValue(b []byte) (value, error) {
	var v value
	err := eachField(b, func(n protowire.Number, field []byte) (err error) {
		switch n {
		case valueString:
			v = value{isText: true}
			v.text, err = toText(field)
		case valueStruct:
			v = value{nested: field}
		}
		return err
	})
	return v, err
}

func toText(b []byte) (string, error) {
	if !utf8.Valid(b) {
		return "", fmt.Errorf("%w: text is not UTF-8", errMetadata)
	}
	return string(b), nil
}

// eachField calls f for the length-delimited fields of an encoded message and
// skips the others. Groups, which nest, are refused: nobody sends them here.
func eachField(b []byte, f func(protowire.Number, []byte) error) error {
	for len(b) > 0 {
		n, kind, size := protowire.ConsumeTag(b)
		if size < 0 {
			return errMetadata
		}
		b = b[size:]
		if kind != protowire.BytesType {
			if kind == protowire.StartGroupType || kind == protowire.EndGroupType {
				return errMetadata
			}
			if size = protowire.ConsumeFieldValue(n, kind, b); size < 0 {
				return errMetadata
			}
			b = b[size:]
			continue
		}
		field, size := protowire.ConsumeBytes(b)
		if size < 0 {
			return errMetadata
		}
		b = b[size:]
		if err := f(n, field); err != nil {
			return err
		}
	}
	return nil
}

// maxName bounds what a peer can put into metric labels. Names in Kubernetes
// have 253 bytes at most.
const maxName = 253

// Workload is what metrics say of the peer. The principal is not metadata's to
// tell: it is PeerID's.
func (m *Metadata) Workload() telemetry.Workload {
	name, revision := identity.Canonical(m.Labels, m.WorkloadName)
	return telemetry.Workload{
		Name:              clip(m.WorkloadName),
		Namespace:         clip(m.Namespace),
		App:               clip(m.Labels["app"]),
		Version:           clip(m.Labels["version"]),
		CanonicalName:     clip(name),
		CanonicalRevision: clip(revision),
		Cluster:           clip(m.ClusterID),
	}
}

// clip bounds what a peer can put into a label.
func clip(s string) string { return strings.ToValidUTF8(s[:min(len(s), maxName)], "") }
