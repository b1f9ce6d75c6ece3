package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/heddle-mesh/heddle/internal/lab/process"
)

// volumes makes a pod's volumes below dir, where each is a directory with its
// name, and returns what each container mounts. It is called again when a
// ConfigMap or Secret changes, and then swaps the files' content at once, as a
// kubelet does.
func volumes(pod *corev1.Pod, dir string, find finder) error {
	var errs []error
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		if err := volume(pod, v, filepath.Join(dir, v.Name), find); err != nil {
			errs = append(errs, fmt.Errorf("volume %s: %w", v.Name, err))
		}
	}
	return errors.Join(errs...)
}

func volume(pod *corev1.Pod, v *corev1.Volume, dir string, find finder) error {
	files := make(map[string]projected)
	switch {
	case v.EmptyDir != nil:
		return os.MkdirAll(dir, 0o777)
	case v.HostPath != nil:
		return nil
	case v.ConfigMap != nil:
		s := &corev1.ConfigMapProjection{LocalObjectReference: v.ConfigMap.LocalObjectReference, Items: v.ConfigMap.Items, Optional: v.ConfigMap.Optional}
		if err := projectConfigMap(files, pod.Namespace, s, v.ConfigMap.DefaultMode, find); err != nil {
			return err
		}
	case v.Secret != nil:
		s := &corev1.SecretProjection{LocalObjectReference: corev1.LocalObjectReference{Name: v.Secret.SecretName}, Items: v.Secret.Items, Optional: v.Secret.Optional}
		if err := projectSecret(files, pod.Namespace, s, v.Secret.DefaultMode, find); err != nil {
			return err
		}
	case v.DownwardAPI != nil:
		if err := projectDownward(files, pod, v.DownwardAPI.Items, v.DownwardAPI.DefaultMode); err != nil {
			return err
		}
	case v.Projected != nil:
		for _, s := range v.Projected.Sources {
			var err error
			switch {
			case s.ConfigMap != nil:
				err = projectConfigMap(files, pod.Namespace, s.ConfigMap, v.Projected.DefaultMode, find)
			case s.Secret != nil:
				err = projectSecret(files, pod.Namespace, s.Secret, v.Projected.DefaultMode, find)
			case s.DownwardAPI != nil:
				err = projectDownward(files, pod, s.DownwardAPI.Items, v.Projected.DefaultMode)
			default:
				err = errors.New("the local mesh projects ConfigMaps, Secrets and the downward API only")
			}
			if err != nil {
				return err
			}
		}
	default:
		return errors.New("the local mesh has emptyDir, configMap, secret, downwardAPI, projected and hostPath volumes only")
	}
	return writeFiles(dir, files)
}

// projected is one file of a volume.
type projected struct {
	data []byte
	mode fs.FileMode
}

func fileMode(item, fallback *int32) fs.FileMode {
	switch {
	case item != nil:
		return fs.FileMode(*item) & fs.ModePerm
	case fallback != nil:
		return fs.FileMode(*fallback) & fs.ModePerm
	}
	return 0o644
}

func projectConfigMap(files map[string]projected, namespace string, s *corev1.ConfigMapProjection, mode *int32, find finder) error {
	cm, ok := find.configMap(namespace, s.Name)
	if !ok {
		if s.Optional != nil && *s.Optional {
			return nil
		}
		return fmt.Errorf("there is no ConfigMap %s/%s", namespace, s.Name)
	}
	data := make(map[string][]byte)
	for k, v := range cm.Data {
		data[k] = []byte(v)
	}
	maps.Copy(data, cm.BinaryData)
	return projectKeys(files, data, s.Items, mode, s.Optional)
}

func projectSecret(files map[string]projected, namespace string, s *corev1.SecretProjection, mode *int32, find finder) error {
	secret, ok := find.secret(namespace, s.Name)
	if !ok {
		if s.Optional != nil && *s.Optional {
			return nil
		}
		return fmt.Errorf("there is no Secret %s/%s", namespace, s.Name)
	}
	return projectKeys(files, secretData(secret), s.Items, mode, s.Optional)
}

func projectKeys(files map[string]projected, data map[string][]byte, items []corev1.KeyToPath, mode *int32, optional *bool) error {
	if len(items) == 0 {
		for k, v := range data {
			files[k] = projected{v, fileMode(nil, mode)}
		}
		return nil
	}
	for _, it := range items {
		v, ok := data[it.Key]
		if !ok {
			if optional != nil && *optional {
				continue
			}
			return fmt.Errorf("it has no key %q", it.Key)
		}
		files[it.Path] = projected{v, fileMode(it.Mode, mode)}
	}
	return nil
}

func projectDownward(files map[string]projected, pod *corev1.Pod, items []corev1.DownwardAPIVolumeFile, mode *int32) error {
	for _, it := range items {
		if it.FieldRef == nil {
			return fmt.Errorf("file %s: the local mesh projects fields of the pod only", it.Path)
		}
		v, err := field(pod, it.FieldRef.FieldPath)
		if err != nil {
			return err
		}
		files[it.Path] = projected{[]byte(v), fileMode(it.Mode, mode)}
	}
	return nil
}

// dataLink is the link that is swapped when files change. Kubernetes' name.
const dataLink = "..data"

// writeFiles puts files into dir so that a reader sees all old or all new ones:
// they lie in a directory of their own, to which dataLink points, and dir holds
// links through it.
func writeFiles(dir string, files map[string]projected) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if current, err := readFiles(filepath.Join(dir, dataLink)); err == nil && maps.EqualFunc(current, files, func(a, b projected) bool {
		return string(a.data) == string(b.data)
	}) {
		return nil
	}
	fresh, err := os.MkdirTemp(dir, "..")
	if err != nil {
		return err
	}
	if err := os.Chmod(fresh, 0o755); err != nil {
		return err
	}
	tops := make(map[string]bool)
	for name, f := range files {
		if !filepath.IsLocal(name) {
			return fmt.Errorf("%q is not a path below the volume", name)
		}
		path := filepath.Join(fresh, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, f.data, f.mode); err != nil {
			return err
		}
		if err := os.Chmod(path, f.mode); err != nil { // past the umask
			return err
		}
		top := name
		for d := filepath.Dir(top); d != "."; d = filepath.Dir(d) {
			top = d
		}
		tops[top] = true
	}
	old, oldErr := os.Readlink(filepath.Join(dir, dataLink))
	next := filepath.Join(dir, "..data_next")
	os.Remove(next)
	if err := os.Symlink(filepath.Base(fresh), next); err != nil {
		return err
	}
	if err := os.Rename(next, filepath.Join(dir, dataLink)); err != nil {
		return err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Type()&fs.ModeSymlink != 0 && e.Name() != dataLink && !tops[e.Name()] {
			os.Remove(filepath.Join(dir, e.Name()))
		}
	}
	for top := range tops {
		err := os.Symlink(filepath.Join(dataLink, top), filepath.Join(dir, top))
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	if oldErr == nil {
		return os.RemoveAll(filepath.Join(dir, old))
	}
	return nil
}

func readFiles(dir string) (map[string]projected, error) {
	root, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return nil, err
	}
	files := make(map[string]projected)
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		files[name] = projected{data: data}
		return err
	})
	return files, err
}

// containerMounts returns the mounts of a container's volumes, which lie in dir.
func containerMounts(pod *corev1.Pod, c *corev1.Container, dir string) ([]process.Mount, error) {
	var mounts []process.Mount
	for _, m := range c.VolumeMounts {
		i := slices.IndexFunc(pod.Spec.Volumes, func(v corev1.Volume) bool { return v.Name == m.Name })
		if i < 0 {
			return nil, fmt.Errorf("volumeMount %s: the pod has no such volume", m.Name)
		}
		v := &pod.Spec.Volumes[i]
		source := filepath.Join(dir, v.Name)
		if v.HostPath != nil {
			source = v.HostPath.Path
		}
		if m.SubPath != "" {
			if !filepath.IsLocal(m.SubPath) {
				return nil, fmt.Errorf("volumeMount %s: subPath %q leaves the volume", m.Name, m.SubPath)
			}
			source = filepath.Join(source, m.SubPath)
			if v.EmptyDir != nil {
				if err := os.MkdirAll(source, 0o777); err != nil {
					return nil, err
				}
			}
		}
		readOnly := m.ReadOnly || v.EmptyDir == nil && v.HostPath == nil
		mounts = append(mounts, process.Mount{Source: source, Target: m.MountPath, ReadOnly: readOnly})
	}
	return mounts, nil
}
