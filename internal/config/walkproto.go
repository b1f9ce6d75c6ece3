package config

import (
	"encoding/base64"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/heddle-mesh/heddle/internal/config/schema"
)

// message writes a protobuf message.
func (w *walker) message(md protoreflect.MessageDescriptor, t *tree, path string, f *schema.Field) {
	switch md.FullName() {
	case "google.protobuf.Duration":
		w.duration(t, path)
		return
	case "google.protobuf.Timestamp":
		if _, err := time.Parse(time.RFC3339, t.text); t.form != textForm || err != nil {
			w.wrong(t, path, "a time", `such as "2026-01-31T12:00:00Z"`)
			return
		}
		w.out = appendText(w.out, t.text)
		return
	case "google.protobuf.BoolValue", "google.protobuf.StringValue", "google.protobuf.BytesValue",
		"google.protobuf.Int32Value", "google.protobuf.UInt32Value", "google.protobuf.Int64Value",
		"google.protobuf.UInt64Value", "google.protobuf.FloatValue", "google.protobuf.DoubleValue":
		w.single(md.Fields().ByName("value"), t, path, f)
		return
	case "google.protobuf.Struct":
		if t.form != mapForm {
			w.wrong(t, path, "a map", "")
			return
		}
		w.opaque(t, path)
		return
	case "google.protobuf.ListValue":
		if t.form != listForm {
			w.wrong(t, path, "a list", "")
			return
		}
		w.opaque(t, path)
		return
	case "google.protobuf.Value", "google.protobuf.Any":
		w.opaque(t, path)
		return
	}
	if t.form != mapForm {
		w.wrong(t, path, "a map", "with fields of "+string(md.Name()))
		return
	}

	w.out = append(w.out, '{')
	empty := true
	set := map[protoreflect.FieldNumber]string{}
	oneofs := map[protoreflect.Name]string{}
	for _, e := range t.keys {
		fd := md.Fields().ByJSONName(e.name)
		if fd == nil {
			if fd = md.Fields().ByTextName(e.name); fd != nil && !w.bothNames && !slices.Contains(oldNames, e.name) {
				w.warn(e.line, join(path, e.name), "spelled in protobuf's way, which Kubernetes refuses", fmt.Sprintf("write %q", fd.JSONName()))
			}
		}
		if fd == nil {
			w.unknown(e, join(path, e.name), string(md.Name()), jsonNames(md))
			continue
		}
		at := join(path, fd.JSONName())
		w.lines[at] = e.line
		if other, twice := set[fd.Number()]; twice {
			w.error(e.line, at, "stands twice in one map", fmt.Sprintf("%q and %q are the same field", other, e.name))
			continue
		}
		set[fd.Number()] = e.name
		if e.value.form == nullForm && !(fd.Message() != nil && fd.Message().FullName() == "google.protobuf.Value") {
			continue // as good as absent
		}
		if od := fd.ContainingOneof(); od != nil && !od.IsSynthetic() {
			if other := oneofs[od.Name()]; other != "" {
				w.error(e.line, at, fmt.Sprintf("%s and %s exclude each other", other, e.name), "keep one of them")
				continue
			}
			oneofs[od.Name()] = e.name
		}
		child := w.child(f, fd.JSONName(), e.line, at, protoPopulated(fd, e.value))
		if !empty {
			w.out = append(w.out, ',')
		}
		empty = false
		w.out = appendText(w.out, fd.JSONName())
		w.out = append(w.out, ':')
		w.field(fd, e.value, at, child)
	}
	w.out = append(w.out, '}')
}

// oldNames are in protobuf's spelling, and in the CRDs too.
var oldNames = []string{"mirror_percent", "jwks_uri"}

func jsonNames(md protoreflect.MessageDescriptor) []string {
	fields := md.Fields()
	names := make([]string, fields.Len())
	for i := range names {
		names[i] = fields.Get(i).JSONName()
	}
	return names
}

// protoPopulated reports whether a field says anything: proto3 scalars without
// presence do not if they are zero.
func protoPopulated(fd protoreflect.FieldDescriptor, t *tree) bool {
	switch {
	case fd.IsList(), fd.IsMap():
		return len(t.list)+len(t.keys) > 0
	case fd.HasPresence():
		return true
	case fd.Kind() == protoreflect.EnumKind:
		zero := fd.Enum().Values().ByNumber(0)
		return zero == nil || t.text != string(zero.Name())
	}
	return !zero(t)
}

func zero(t *tree) bool {
	return t.form == nullForm || t.text == "" && t.form == textForm || t.form == boolForm && t.text == "false" ||
		(t.form == intForm || t.form == floatForm) && strings.Trim(t.text, "-0.") == ""
}

// field writes the value of a field, be it one, a list or a map.
func (w *walker) field(fd protoreflect.FieldDescriptor, t *tree, path string, f *schema.Field) {
	switch {
	case fd.IsMap():
		w.protoMap(fd, t, path, f)
	case fd.IsList():
		if t.form != listForm {
			w.wrong(t, path, "a list", "put \"- \" before each element")
			return
		}
		w.out = append(w.out, '[')
		for i, v := range t.list {
			if i > 0 {
				w.out = append(w.out, ',')
			}
			at := item(path, i)
			w.lines[at] = v.line
			if v.form == nullForm {
				w.error(v.line, at, "the element is empty", "give it a value, or remove it")
				continue
			}
			w.single(fd, v, at, f)
		}
		w.out = append(w.out, ']')
	default:
		w.single(fd, t, path, f)
	}
}

func (w *walker) protoMap(fd protoreflect.FieldDescriptor, t *tree, path string, f *schema.Field) {
	if t.form != mapForm {
		w.wrong(t, path, "a map", "")
		return
	}
	w.out = append(w.out, '{')
	for i, e := range t.keys {
		if i > 0 {
			w.out = append(w.out, ',')
		}
		at := keyed(path, e.name)
		w.lines[at] = e.line
		switch fd.MapKey().Kind() {
		case protoreflect.StringKind:
			w.out = appendText(w.out, e.name)
		default:
			key := &tree{form: textForm, text: e.name, raw: e.name, line: e.line}
			w.out = append(w.out, '"')
			w.mapKey(fd.MapKey(), key, at)
			w.out = append(w.out, '"')
		}
		w.out = append(w.out, ':')
		if e.value.form == nullForm {
			hint := `write "" if it is to be empty`
			if fd.MapValue().Message() != nil {
				hint = "write {} if it is to be empty"
			}
			w.error(e.line, at, "the key has no value", hint)
			continue
		}
		w.single(fd.MapValue(), e.value, at, f)
	}
	w.out = append(w.out, '}')
}

func (w *walker) mapKey(fd protoreflect.FieldDescriptor, key *tree, path string) {
	bits, signed := intBits(fd.Kind())
	if bits == 0 { // bool keys occur nowhere in these types
		w.wrong(key, path, "a key of kind "+fd.Kind().String(), "")
		return
	}
	w.integer(key, path, bits, signed, true)
}

func intBits(k protoreflect.Kind) (bits int, signed bool) {
	switch k {
	case protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Sfixed32Kind:
		return 32, true
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind:
		return 32, false
	case protoreflect.Int64Kind, protoreflect.Sint64Kind, protoreflect.Sfixed64Kind:
		return 64, true
	case protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		return 64, false
	}
	return 0, false
}

// single writes one value, which is not a list nor a map.
func (w *walker) single(fd protoreflect.FieldDescriptor, t *tree, path string, f *schema.Field) {
	if bits, signed := intBits(fd.Kind()); bits > 0 {
		w.integer(t, path, bits, signed, bits == 64)
		return
	}
	switch fd.Kind() {
	case protoreflect.MessageKind, protoreflect.GroupKind:
		w.message(fd.Message(), t, path, f)
	case protoreflect.StringKind:
		if w.text(t, path) {
			w.value(f, t.line, path, t.text)
		}
	case protoreflect.BoolKind:
		w.boolean(t, path)
	case protoreflect.FloatKind, protoreflect.DoubleKind:
		w.float(t, path)
	case protoreflect.EnumKind:
		if w.enum(fd.Enum(), t, path) {
			w.value(f, t.line, path, t.text)
		}
	case protoreflect.BytesKind:
		w.base64(t, path)
	}
}

func (w *walker) base64(t *tree, path string) {
	if t.form != textForm {
		w.wrong(t, path, "bytes in base64", "")
		return
	}
	packed := strings.Join(strings.Fields(t.text), "")
	if _, err := base64.StdEncoding.DecodeString(packed); err != nil {
		w.error(t.line, path, "not base64: "+err.Error(), "")
		return
	}
	w.out = appendText(w.out, packed)
}

func (w *walker) enum(ed protoreflect.EnumDescriptor, t *tree, path string) bool {
	values := ed.Values()
	names := make([]string, values.Len())
	for i := range names {
		names[i] = string(values.Get(i).Name())
	}
	want := "one of " + strings.Join(names, ", ")
	if t.form != textForm {
		w.wrong(t, path, want, "")
		return false
	}
	if values.ByName(protoreflect.Name(t.text)) == nil {
		hint := ""
		if m := closest(t.text, names); m != "" {
			hint = fmt.Sprintf("did you mean %s?", m)
		}
		w.wrong(t, path, want, hint)
		return false
	}
	w.out = appendText(w.out, t.text)
	return true
}
