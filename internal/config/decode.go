package config

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/heddle-mesh/heddle/internal/config/schema"
)

// MaxFile bounds what Decode takes at once, in bytes.
const MaxFile = 64 << 20

// Decode reads the documents of one file, YAML or JSON, lists included. It
// returns the objects that have no errors, and everything that is wrong, both in
// the order of the file. A fault in one document does not hide another.
//
// A field that Heddle does not act on makes a warning; so does an object of a
// kind that it does not know, which is then not returned.
func Decode(file string, data []byte) ([]*Object, []Fault) {
	d := decoder{file: file, types: &goTypes{}}
	if len(data) > MaxFile {
		d.error(1, fmt.Sprintf("the file has %d bytes", len(data)), fmt.Sprintf("the limit is %d", MaxFile))
		return nil, d.faults
	}
	for _, doc := range split(data) {
		t, errs := parse(doc)
		for _, e := range errs {
			d.error(e.line, e.problem, e.hint)
		}
		if t != nil && t.form != nullForm {
			d.document(t, "", "")
		}
	}
	return d.objects, d.faults
}

type decoder struct {
	file    string
	types   *goTypes
	objects []*Object
	faults  []Fault
}

func (d *decoder) error(line int, problem, hint string) {
	d.faults = append(d.faults, Fault{Pos: Position{d.file, line}, Problem: problem, Hint: hint})
}

// document decodes an object or a list of them. Elements of a typed list may
// leave out apiVersion and kind, which the list then gives.
func (d *decoder) document(t *tree, apiVersion, kind string) {
	if t.form != mapForm {
		d.error(t.line, "found "+t.found()+", wanted an object", "a manifest is a map with apiVersion, kind and metadata")
		return
	}
	w := &walker{file: d.file, types: d.types, lines: Lines{}}
	defer func() { d.faults = append(d.faults, w.faults...) }()

	av, ok1 := w.header(t, "apiVersion", apiVersion, `such as "v1" or "networking.istio.io/v1"`)
	name, ok2 := w.header(t, "kind", kind, `such as "VirtualService"`)
	w.object.Kind.Name = name
	if !ok1 || !ok2 {
		return
	}
	group, version := groupVersion(av)

	if element, ok := strings.CutSuffix(name, "List"); ok && t.get("items") != nil {
		if element == "" && av == "v1" {
			d.list(w, t, "", "")
			return
		}
		if schema.Find(group, element) != nil {
			d.list(w, t, av, element)
			return
		}
	}

	w.object.Kind.Group = group
	meta := t.get("metadata")
	if n := meta.get("name"); n != nil && n.form == textForm {
		w.object.Name = n.text
	}
	if n := meta.get("namespace"); n != nil && n.form == textForm {
		w.object.Namespace = n.text
	}

	w.kind = schema.Find(group, name)
	if w.kind == nil {
		w.unknownKind(t, group, name)
		return
	}
	if !slices.Contains(w.kind.Versions, version) {
		w.error(t.get("apiVersion").lineOr(t.line), "apiVersion", fmt.Sprintf("%s is not served in version %q", name, version),
			"served are "+strings.Join(w.kind.Versions, ", "))
		return
	}
	if !w.metadata(t, meta) {
		return
	}
	if w.kind.Inert != "" {
		f := Fault{Pos: Position{d.file, t.line}, Object: w.object, Severity: Warning, Security: w.kind.Guard,
			Problem: name + " is not acted on yet", Hint: w.kind.Inert}
		if w.kind.Guard {
			f.Problem = name + " is NOT ENFORCED yet"
		}
		w.faults = append(w.faults, f)
		if w.kind.New == nil {
			return
		}
	}
	o := &Object{Key: w.object, APIVersion: av, Pos: Position{d.file, t.line}, Lines: w.lines}
	if w.fill(o, t) {
		d.objects = append(d.objects, o)
	}
}

// header reads apiVersion or kind.
func (w *walker) header(t *tree, field, given, hint string) (string, bool) {
	v := t.get(field)
	switch {
	case v == nil && given != "":
		return given, true
	case v == nil || v.form == nullForm || v.form == textForm && v.text == "":
		w.error(t.line, field, "missing", hint)
	case v.form != textForm:
		w.wrong(v, field, "a text", hint)
	default:
		return v.text, true
	}
	return "", false
}

func (t *tree) lineOr(line int) int {
	if t == nil {
		return line
	}
	return t.line
}

func groupVersion(apiVersion string) (group, version string) {
	if group, version, ok := strings.Cut(apiVersion, "/"); ok {
		return group, version
	}
	return "", apiVersion
}

func (d *decoder) list(w *walker, t *tree, apiVersion, kind string) {
	items := t.get("items")
	for _, e := range t.keys {
		if !slices.Contains([]string{"apiVersion", "kind", "metadata", "items"}, e.name) {
			w.unknown(e, e.name, "a list", []string{"apiVersion", "kind", "metadata", "items"})
		}
	}
	if items.form == nullForm {
		return
	}
	if items.form != listForm {
		w.wrong(items, "items", "a list", "")
		return
	}
	for _, v := range items.list {
		d.document(v, apiVersion, kind)
	}
}

// unknownKind reports a kind without a row: a spelling mistake if the group is
// one of ours, else somebody else's business.
func (w *walker) unknownKind(t *tree, group, name string) {
	line := t.get("kind").lineOr(t.line)
	if rows := schema.Group(group); len(rows) > 0 {
		var names []string
		for _, k := range rows {
			names = append(names, k.Name)
		}
		hint := ""
		if m := closest(name, names); m != "" {
			hint = fmt.Sprintf("did you mean %s?", m)
		} else if elsewhere := otherGroup(name); elsewhere != "" {
			hint = "it is a kind of " + elsewhere
		}
		what := group
		if what == "" {
			what = "the core group"
		}
		w.error(line, "kind", fmt.Sprintf("%s has no kind %s", what, name), hint)
		return
	}
	hint := "the object is ignored"
	if elsewhere := otherGroup(name); elsewhere != "" {
		hint += "; " + name + " is a kind of " + elsewhere
	}
	w.warn(line, "", fmt.Sprintf("Heddle does not know the group %s", group), hint)
}

// otherGroup returns the apiVersion under which a kind of this name exists.
func otherGroup(name string) string {
	for _, k := range schema.All() {
		if k.Name == name {
			return k.APIVersion()
		}
	}
	return ""
}

// metadata checks what identifies the object.
func (w *walker) metadata(t, meta *tree) bool {
	switch {
	case meta == nil || meta.form == nullForm:
		w.error(t.line, "metadata", "missing", "an object needs metadata.name")
		return false
	case meta.form != mapForm:
		w.wrong(meta, "metadata", "a map", "")
		return false
	}
	name := meta.get("name")
	switch {
	case name == nil || name.form == nullForm || name.form == textForm && name.text == "":
		hint := ""
		if meta.get("generateName") != nil {
			hint = "generateName makes a new object each time it is applied; give it a name"
		}
		w.error(meta.line, "metadata.name", "missing", hint)
		return false
	case name.form != textForm:
		w.text(name, "metadata.name")
		return false
	}
	if ns := meta.get("namespace"); ns != nil && ns.form != textForm && ns.form != nullForm {
		w.text(ns, "metadata.namespace")
		return false
	}
	switch {
	case w.kind.Namespaced && w.object.Namespace == "":
		w.object.Namespace = "default"
	case !w.kind.Namespaced && w.object.Namespace != "":
		w.warn(meta.get("namespace").line, "metadata.namespace", w.kind.Name+" belongs to no namespace", "remove it")
		w.object.Namespace = ""
	}
	// Faults that are already there name the object as well as those to come.
	for i := range w.faults {
		w.faults[i].Object = w.object
	}
	return true
}

// fill walks the whole object and fills o.Spec. It reports whether there was no
// error.
func (w *walker) fill(o *Object, t *tree) bool {
	value := w.kind.New()
	msg, specOnly := value.(proto.Message)
	var meta metav1.ObjectMeta
	if specOnly {
		w.envelope(msg, &meta, t)
	} else {
		w.goValue(reflect.TypeOf(value), t, "", w.kind.Fields())
		if !w.bad {
			w.decoded(t.line, json.Unmarshal(w.out, value))
		}
		if m, ok := value.(metav1.ObjectMetaAccessor); ok {
			got := m.GetObjectMeta()
			got.SetNamespace(o.Namespace)
			meta.Labels, meta.Annotations, meta.CreationTimestamp = got.GetLabels(), got.GetAnnotations(), got.GetCreationTimestamp()
		}
	}
	o.Spec, o.Labels, o.Annotations, o.Created = value, meta.Labels, meta.Annotations, meta.CreationTimestamp.Time
	return !w.bad
}

// envelope walks an object of Istio's: metadata, spec and status around a
// message that holds the spec alone.
func (w *walker) envelope(msg proto.Message, meta *metav1.ObjectMeta, t *tree) {
	known := []string{"apiVersion", "kind", "metadata", "spec", "status"}
	for _, e := range t.keys {
		w.lines[e.name] = e.line
		switch e.name {
		case "apiVersion", "kind":
		case "metadata":
			w.out = w.out[:0]
			w.goValue(reflect.TypeFor[metav1.ObjectMeta](), e.value, "metadata", schema.Everything)
			if !w.bad {
				w.decoded(e.line, json.Unmarshal(w.out, meta))
			}
		case "spec":
			if e.value.form == nullForm {
				continue
			}
			w.out = w.out[:0]
			w.message(msg.ProtoReflect().Descriptor(), e.value, "spec", specFields(w.kind))
			if !w.bad {
				w.decoded(e.line, protojson.Unmarshal(w.out, msg))
			}
		case "status":
			w.note(e.value, "status")
		default:
			w.unknown(e, e.name, w.kind.Name, known)
		}
	}
}

// decoded reports what the type's own decoder has against values that passed
// the walk.
func (w *walker) decoded(line int, err error) {
	if err != nil {
		w.error(line, "", strings.TrimPrefix(err.Error(), "proto: "), "")
	}
}

// specFields returns the tree below spec, of which a kind need not list any.
func specFields(k *schema.Kind) *schema.Field {
	if f := k.Fields().Child("spec"); f != nil {
		return f
	}
	return &schema.Field{}
}
