package lab

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/heddle-mesh/heddle/internal/config"
)

// snapshot is all objects at one moment, as an API server would hold them.
type snapshot struct{ objects map[config.Key]*config.Object }

func (s *snapshot) configMap(namespace, name string) (*corev1.ConfigMap, bool) {
	return lookUp[*corev1.ConfigMap](s, config.Key{Kind: config.ConfigMap, Namespace: namespace, Name: name})
}

func (s *snapshot) secret(namespace, name string) (*corev1.Secret, bool) {
	return lookUp[*corev1.Secret](s, config.Key{Kind: config.Secret, Namespace: namespace, Name: name})
}

func lookUp[T any](s *snapshot, k config.Key) (T, bool) {
	var none T
	o := s.objects[k]
	if o == nil {
		return none, false
	}
	v, ok := o.Spec.(T)
	return v, ok
}

// list returns the objects of a kind, by namespace and name.
func (s *snapshot) list(kind config.Kind) []*config.Object {
	var out []*config.Object
	for k, o := range s.objects {
		if k.Kind == kind {
			out = append(out, o)
		}
	}
	slices.SortFunc(out, func(a, b *config.Object) int {
		if c := strings.Compare(a.Namespace, b.Namespace); c != 0 {
			return c
		}
		return strings.Compare(a.Name, b.Name)
	})
	return out
}

// objectBox holds the newest snapshot.
type objectBox struct{ p atomic.Pointer[snapshot] }

func (b *objectBox) load() *snapshot {
	if s := b.p.Load(); s != nil {
		return s
	}
	return &snapshot{}
}

// manifest returns an object as JSON of the form an API server answers with.
func manifest(o *config.Object) (map[string]any, error) {
	out := make(map[string]any)
	var data []byte
	var err error
	if m, ok := o.Spec.(proto.Message); ok {
		if data, err = protojson.Marshal(m); err != nil {
			return nil, err
		}
		var spec map[string]any
		if err := json.Unmarshal(data, &spec); err != nil {
			return nil, err
		}
		out["spec"] = spec
		meta := map[string]any{"name": o.Name}
		if o.Namespace != "" {
			meta["namespace"] = o.Namespace
		}
		if len(o.Labels) > 0 {
			meta["labels"] = o.Labels
		}
		if len(o.Annotations) > 0 {
			meta["annotations"] = o.Annotations
		}
		out["metadata"] = meta
	} else if o.Spec != nil {
		if data, err = json.Marshal(o.Spec); err != nil {
			return nil, err
		}
		if err := json.Unmarshal(data, &out); err != nil {
			return nil, err
		}
	}
	out["apiVersion"], out["kind"] = o.APIVersion, o.Key.Kind.Name
	meta, _ := out["metadata"].(map[string]any)
	if meta == nil {
		meta = map[string]any{"name": o.Name, "namespace": o.Namespace}
		out["metadata"] = meta
	}
	if meta["creationTimestamp"] == nil && !o.Created.IsZero() {
		meta["creationTimestamp"] = o.Created.UTC().Format("2006-01-02T15:04:05Z")
	}
	return out, nil
}

// objectDir is the directory from which the control plane reads all objects: it
// stands in the place of an API server. Only what is free of errors gets there,
// so that a mistake in a manifest does not keep news of pods from the control
// plane; and each Service has its address, so that both agree on it. Each file
// is replaced at once.
type objectDir struct {
	dir     string
	staging string // on the same file system, not watched
	written map[string]writtenObject
}

// writtenObject is what a file holds; equal pointers spare the encoding.
type writtenObject struct {
	object *config.Object
	data   []byte
}

func newObjectDir(dir, staging string) (*objectDir, error) {
	for _, d := range []string{dir, staging} {
		if err := os.RemoveAll(d); err != nil {
			return nil, err
		}
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, err
		}
	}
	return &objectDir{dir: dir, staging: staging, written: make(map[string]writtenObject)}, nil
}

// sync makes the directory hold exactly these objects.
func (d *objectDir) sync(objects []*config.Object) error {
	var errs []error
	keep := make(map[string]bool)
	for _, o := range objects {
		name := strings.ToLower(o.Key.Kind.String()) + "_" + o.Namespace + "_" + o.Name + ".yaml"
		keep[name] = true
		if d.written[name].object == o {
			continue
		}
		m, err := manifest(o)
		if err != nil {
			errs = append(errs, fmt.Errorf("write %s: %w", o.Key, err))
			continue
		}
		data, err := yaml.Marshal(m)
		if err != nil {
			errs = append(errs, fmt.Errorf("write %s: %w", o.Key, err))
			continue
		}
		if bytes.Equal(d.written[name].data, data) {
			d.written[name] = writtenObject{o, data}
			continue
		}
		tmp := filepath.Join(d.staging, name)
		if err := errors.Join(os.WriteFile(tmp, data, 0o600), os.Rename(tmp, filepath.Join(d.dir, name))); err != nil {
			errs = append(errs, err)
			continue
		}
		d.written[name] = writtenObject{o, data}
	}
	for _, name := range slices.Sorted(maps.Keys(d.written)) {
		if !keep[name] {
			if err := os.Remove(filepath.Join(d.dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, err)
			}
			delete(d.written, name)
		}
	}
	return errors.Join(errs...)
}
