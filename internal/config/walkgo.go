package config

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/heddle-mesh/heddle/internal/config/schema"
)

// goTypes remembers what the struct tags of Kubernetes types say.
type goTypes struct {
	fields map[reflect.Type]map[string]reflect.Type
}

// of returns a struct's fields by JSON name, those of embedded structs included.
func (g *goTypes) of(rt reflect.Type) map[string]reflect.Type {
	if f, ok := g.fields[rt]; ok {
		return f
	}
	f := map[string]reflect.Type{}
	for i := range rt.NumField() {
		sf := rt.Field(i)
		if !sf.IsExported() {
			continue
		}
		name, options, _ := strings.Cut(sf.Tag.Get("json"), ",")
		switch {
		case name == "-":
		case name == "" && (sf.Anonymous || strings.Contains(options, "inline")):
			inner := sf.Type
			if inner.Kind() == reflect.Pointer {
				inner = inner.Elem()
			}
			if inner.Kind() == reflect.Struct {
				for n, t := range g.of(inner) {
					if _, have := f[n]; !have {
						f[n] = t
					}
				}
			}
		case name == "":
			f[sf.Name] = sf.Type
		default:
			f[name] = sf.Type
		}
	}
	if g.fields == nil {
		g.fields = map[reflect.Type]map[string]reflect.Type{}
	}
	g.fields[rt] = f
	return f
}

var unmarshaler = reflect.TypeFor[json.Unmarshaler]()

// goValue writes a value of a Go type whose struct tags describe its JSON.
func (w *walker) goValue(rt reflect.Type, t *tree, path string, f *schema.Field) {
	if rt.Kind() == reflect.Pointer {
		rt = rt.Elem()
	}
	switch rt {
	case reflect.TypeFor[metav1.Time](), reflect.TypeFor[metav1.MicroTime]():
		if _, err := time.Parse(time.RFC3339Nano, t.text); t.form != textForm || err != nil {
			w.wrong(t, path, "a time", `such as "2026-01-31T12:00:00Z"`)
			return
		}
		w.out = appendText(w.out, t.text)
		return
	case reflect.TypeFor[metav1.Duration]():
		if _, err := time.ParseDuration(t.text); t.form != textForm || err != nil {
			w.wrong(t, path, "a duration", `such as "1.5s"`)
			return
		}
		w.out = appendText(w.out, t.text)
		return
	case reflect.TypeFor[resource.Quantity]():
		if _, err := resource.ParseQuantity(t.text); t.form > textForm || err != nil {
			w.wrong(t, path, "a quantity", `such as "100m" or "64Mi"`)
			return
		}
		w.out = appendText(w.out, t.text)
		return
	case reflect.TypeFor[intstr.IntOrString]():
		switch t.form {
		case intForm:
			w.integer(t, path, 32, true, false)
		case textForm:
			w.out = appendText(w.out, t.text)
		default:
			w.wrong(t, path, "a whole number or a name", "")
		}
		return
	}
	if reflect.PointerTo(rt).Implements(unmarshaler) {
		w.opaque(t, path)
		return
	}

	switch rt.Kind() {
	case reflect.Struct:
		w.goStruct(rt, t, path, f)
	case reflect.Map:
		w.goMap(rt, t, path, f)
	case reflect.Slice, reflect.Array:
		if rt.Elem().Kind() == reflect.Uint8 {
			w.base64(t, path)
			return
		}
		w.goList(rt, t, path, f)
	case reflect.String:
		if w.text(t, path) {
			w.value(f, t.line, path, t.text)
		}
	case reflect.Bool:
		w.boolean(t, path)
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		w.integer(t, path, rt.Bits(), true, false)
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		w.integer(t, path, rt.Bits(), false, false)
	case reflect.Float32, reflect.Float64:
		w.float(t, path)
	default:
		w.opaque(t, path)
	}
}

func (w *walker) goStruct(rt reflect.Type, t *tree, path string, f *schema.Field) {
	if t.form != mapForm {
		w.wrong(t, path, "a map", "with fields of "+rt.Name())
		return
	}
	fields := w.types.of(rt)
	w.out = append(w.out, '{')
	empty := true
	for _, e := range t.keys {
		at := join(path, e.name)
		ft, ok := fields[e.name]
		if !ok {
			names := make([]string, 0, len(fields))
			for n := range fields {
				names = append(names, n)
			}
			w.unknown(e, at, rt.Name(), names)
			continue
		}
		w.lines[at] = e.line
		if e.value.form == nullForm {
			continue // as good as absent
		}
		child := w.child(f, e.name, e.line, at, goPopulated(ft, e.value))
		if !empty {
			w.out = append(w.out, ',')
		}
		empty = false
		w.out = appendText(w.out, e.name)
		w.out = append(w.out, ':')
		w.goValue(ft, e.value, at, child)
	}
	w.out = append(w.out, '}')
}

func goPopulated(rt reflect.Type, t *tree) bool {
	switch t.form {
	case listForm:
		return len(t.list) > 0
	case mapForm:
		return len(t.keys) > 0 || rt.Kind() == reflect.Pointer
	}
	return rt.Kind() == reflect.Pointer || !zero(t)
}

func (w *walker) goList(rt reflect.Type, t *tree, path string, f *schema.Field) {
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
		w.goValue(rt.Elem(), v, at, f)
	}
	w.out = append(w.out, ']')
}

func (w *walker) goMap(rt reflect.Type, t *tree, path string, f *schema.Field) {
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
		if rt.Key().Kind() != reflect.String {
			if _, err := strconv.ParseInt(e.name, 10, 64); err != nil {
				w.error(e.line, at, fmt.Sprintf("found the key %q, wanted a whole number", e.name), "")
				continue
			}
		}
		w.out = appendText(w.out, e.name)
		w.out = append(w.out, ':')
		if e.value.form == nullForm {
			// The API server reads "key:" as the zero value.
			w.out = append(w.out, "null"...)
			continue
		}
		w.goValue(rt.Elem(), e.value, at, f)
	}
	w.out = append(w.out, '}')
}
