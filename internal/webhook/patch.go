package webhook

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// operation is one of a JSON patch, RFC 6902.
type operation struct {
	Op    string `json:"op"`
	Path  string `json:"path"`
	Value any    `json:"value,omitempty"`
}

// MarshalJSON writes the value of all operations that have one, be it zero.
func (o operation) MarshalJSON() ([]byte, error) {
	m := map[string]any{"op": o.Op, "path": o.Path}
	if o.Op != "remove" {
		m["value"] = o.Value
	}
	return json.Marshal(m)
}

// Patch returns the JSON patch that makes after of before. It names no more than
// what differs: the API server may know fields of an object that this program's
// types do not, and these must not be lost.
func Patch(before, after []byte) ([]byte, error) {
	var a, b any
	if err := json.Unmarshal(before, &a); err != nil {
		return nil, fmt.Errorf("patch: %w", err)
	}
	if err := json.Unmarshal(after, &b); err != nil {
		return nil, fmt.Errorf("patch: %w", err)
	}
	ops := diff([]operation{}, "", a, b)
	return json.Marshal(ops)
}

// pointer escapes a key for a JSON pointer, RFC 6901.
var pointer = strings.NewReplacer("~", "~0", "/", "~1")

func diff(ops []operation, path string, a, b any) []operation {
	if reflect.DeepEqual(a, b) {
		return ops
	}
	switch x := a.(type) {
	case map[string]any:
		if y, ok := b.(map[string]any); ok {
			return diffMaps(ops, path, x, y)
		}
	case []any:
		if y, ok := b.([]any); ok {
			if more, ok := diffLists(ops, path, x, y); ok {
				return more
			}
		}
	}
	return append(ops, operation{Op: "replace", Path: path, Value: b})
}

func diffMaps(ops []operation, path string, a, b map[string]any) []operation {
	for _, k := range slices.Sorted(maps.Keys(a)) {
		at := path + "/" + pointer.Replace(k)
		if v, ok := b[k]; ok {
			ops = diff(ops, at, a[k], v)
		} else {
			ops = append(ops, operation{Op: "remove", Path: at})
		}
	}
	for _, k := range slices.Sorted(maps.Keys(b)) {
		if _, ok := a[k]; !ok {
			ops = append(ops, operation{Op: "add", Path: path + "/" + pointer.Replace(k), Value: b[k]})
		}
	}
	return ops
}

// diffLists handles lists of named things, of which b has all that a has, in
// a's order, and more between them. Of other lists it reports false.
func diffLists(ops []operation, path string, a, b []any) ([]operation, bool) {
	kept := 0
	for _, v := range b {
		if kept < len(a) && name(v) != "" && name(v) == name(a[kept]) {
			kept++
		}
	}
	if kept < len(a) {
		return nil, false
	}
	kept = 0
	for n, v := range b {
		at := path + "/" + strconv.Itoa(n)
		if kept < len(a) && name(v) == name(a[kept]) {
			ops = diff(ops, at, a[kept], v)
			kept++
		} else {
			ops = append(ops, operation{Op: "add", Path: at, Value: v})
		}
	}
	return ops, true
}

func name(v any) string {
	m, _ := v.(map[string]any)
	s, _ := m["name"].(string)
	return s
}
