package schema

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	meshv1alpha1 "istio.io/api/mesh/v1alpha1"
)

// A path that names no field would never make its field quiet, and nobody would
// notice.
func TestListedPathsExist(t *testing.T) {
	for _, k := range All() {
		if k.New == nil {
			continue
		}
		value := k.New()
		resolve := func(path string) error { return goPath(reflect.TypeOf(value), strings.Split(path, ".")) }
		if msg, ok := value.(proto.Message); ok {
			resolve = func(path string) error {
				rest, ok := strings.CutPrefix(path, "spec")
				if !ok {
					return fmt.Errorf("is not in the spec")
				}
				return protoPath(msg.ProtoReflect().Descriptor(), strings.Split(strings.TrimPrefix(rest, "."), "."))
			}
		}
		check(t, k, resolve)
	}
	check(t, MeshConfig(), func(path string) error {
		return protoPath((&meshv1alpha1.MeshConfig{}).ProtoReflect().Descriptor(), strings.Split(path, "."))
	})
}

func check(t *testing.T, k *Kind, resolve func(string) error) {
	t.Helper()
	paths := slices.Concat(k.Acted, k.Guards)
	for _, q := range k.Quiet {
		if q.Why == "" {
			t.Errorf("%s: %v are quiet without a reason", k.Name, q.Paths)
		}
		paths = append(paths, q.Paths...)
	}
	for _, p := range paths {
		field, _, _ := strings.Cut(p, "=")
		if err := resolve(field); err != nil {
			t.Errorf("%s: %s %v", k.Name, p, err)
		}
	}
}

func protoPath(md protoreflect.MessageDescriptor, path []string) error {
	for _, name := range path {
		if name == "" {
			return nil
		}
		name, list := strings.CutSuffix(name, "[]")
		if md == nil {
			return fmt.Errorf("has nothing below a scalar, and so no %s", name)
		}
		fd := md.Fields().ByJSONName(name)
		if fd == nil {
			return fmt.Errorf("names no field: %s has no %s", md.Name(), name)
		}
		if many := fd.IsList() || fd.IsMap(); list && !many {
			return fmt.Errorf("has [] after %s, which is single", name)
		}
		md = fd.Message()
	}
	return nil
}

func goPath(rt reflect.Type, path []string) error {
	for _, name := range path {
		name, list := strings.CutSuffix(name, "[]")
		for rt.Kind() == reflect.Pointer {
			rt = rt.Elem()
		}
		if rt.Kind() != reflect.Struct {
			return fmt.Errorf("has no fields at %s", name)
		}
		next := goField(rt, name)
		if next == nil {
			return fmt.Errorf("names no field: %s has no %s", rt.Name(), name)
		}
		if list {
			if next.Kind() != reflect.Slice && next.Kind() != reflect.Map {
				return fmt.Errorf("has [] after %s, which is single", name)
			}
			next = next.Elem()
		}
		rt = next
	}
	return nil
}

func goField(rt reflect.Type, name string) reflect.Type {
	for i := range rt.NumField() {
		f := rt.Field(i)
		tag, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if tag == name {
			return f.Type
		}
		if tag == "" && f.Anonymous && f.Type.Kind() == reflect.Struct {
			if t := goField(f.Type, name); t != nil {
				return t
			}
		}
	}
	return nil
}

func TestTableIsSound(t *testing.T) {
	seen := map[string]bool{}
	for _, k := range All() {
		id := k.Group + "/" + k.Name
		if seen[id] {
			t.Errorf("%s stands twice", id)
		}
		seen[id] = true
		if len(k.Versions) == 0 {
			t.Errorf("%s is served in no version", id)
		}
		if k.New == nil && k.Inert == "" {
			t.Errorf("%s is not decoded, and nothing says what that means", id)
		}
		if k.New != nil && k.Plural == "" {
			t.Errorf("%s has no plural", id)
		}
		if k.Inert != "" && len(k.Acted) > 0 {
			t.Errorf("%s does not act, and has fields that do", id)
		}
		if Find(k.Group, k.Name) != k || !slices.Contains(Group(k.Group), k) {
			t.Errorf("%s is not found by its name", id)
		}
	}
}

func TestFieldTree(t *testing.T) {
	root := &Field{}
	for _, p := range []string{"spec.http[].match[].uri", "spec.tls.mode=DISABLE|ISTIO_MUTUAL"} {
		root.add(p)
	}
	walk := func(path string) *Field {
		f := root
		for name := range strings.SplitSeq(path, ".") {
			if f = f.Child(name); f == nil {
				return nil
			}
		}
		return f
	}
	for path, want := range map[string]bool{
		"spec": true, "spec.http": true, "spec.http.match.uri": true, "spec.http.match.uri.prefix": true,
		"spec.http.match": true, "spec.http.match.port": false, "spec.tcp": false, "status": false,
	} {
		if got := walk(path) != nil; got != want {
			t.Errorf("%s is listed: %v", path, got)
		}
	}
	mode := walk("spec.tls.mode")
	for value, want := range map[string]bool{"DISABLE": true, "disable": true, "ISTIO_MUTUAL": true, "SIMPLE": false} {
		if mode.Acts(value) != want {
			t.Errorf("%s acts: %v", value, !want)
		}
	}
}
