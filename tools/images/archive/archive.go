// Package archive writes container images as OCI archives, without a container
// engine and without a registry. The same input gives the same bytes: no clock,
// user or file order of the machine enters an image.
package archive

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// nameAnnotation is where containerd looks for the full name of an image in an
// archive; refAnnotation is the standard's place for it.
const (
	nameAnnotation = "io.containerd.image.name"
	refAnnotation  = "org.opencontainers.image.ref.name"
)

// Image says what is in an image: a few files in one layer, over nothing.
type Image struct {
	Names      []string   // all the names that it is to be known by, each with a tag
	Platforms  []Platform // at least one
	Entrypoint []string
	Env        []string
	User       string   // "uid:gid"; "" is root
	Dirs       []string // empty directories that any user may write to
	Labels     map[string]string
}

// Platform is an image's content for one architecture.
type Platform struct {
	Arch  string // as GOARCH
	Files []File
}

// File is one file of an image.
type File struct {
	Path   string // absolute
	Mode   int64
	Link   string // what a symbolic link points to, or
	Source string // a file of this machine, or
	Data   []byte // the content itself
}

// accounts are in every image, so that programs which look up their user find one.
var accounts = []File{
	{Path: "/etc/passwd", Mode: 0o644, Data: []byte("root:x:0:0:root:/root:/sbin/nologin\nheddle:x:1337:1337:heddle:/:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/:/sbin/nologin\n")},
	{Path: "/etc/group", Mode: 0o644, Data: []byte("root:x:0:\nheddle:x:1337:\nnonroot:x:65532:\n")},
}

// Write writes the image to file, replacing it whole, and returns the image's digest.
func Write(file string, img Image) (string, error) {
	index, err := build(img)
	if err != nil {
		return "", fmt.Errorf("image %s: %w", strings.Join(img.Names, ", "), err)
	}
	digest, err := index.Digest()
	if err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp(filepath.Dir(file), ".image-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	out, err := layout.Write(filepath.Join(dir, "layout"), empty.Index)
	if err != nil {
		return "", err
	}
	for _, n := range img.Names {
		ref, err := name.NewTag(n)
		if err != nil {
			return "", err
		}
		if err := out.AppendIndex(index, layout.WithAnnotations(map[string]string{nameAnnotation: ref.Name(), refAnnotation: ref.TagStr()})); err != nil {
			return "", err
		}
	}
	tmp := filepath.Join(dir, "archive.tar")
	if err := pack(tmp, filepath.Join(dir, "layout")); err != nil {
		return "", err
	}
	return digest.String(), os.Rename(tmp, file)
}

func build(img Image) (v1.ImageIndex, error) {
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, p := range img.Platforms {
		content, err := layer(img, p)
		if err != nil {
			return nil, err
		}
		l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
			return io.NopCloser(bytes.NewReader(content)), nil
		}, tarball.WithMediaType(types.OCILayer))
		if err != nil {
			return nil, err
		}
		i, err := mutate.AppendLayers(mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON), l)
		if err != nil {
			return nil, err
		}
		cf, err := i.ConfigFile()
		if err != nil {
			return nil, err
		}
		cf = cf.DeepCopy()
		cf.OS, cf.Architecture = "linux", p.Arch
		cf.Config = v1.Config{
			Entrypoint: img.Entrypoint, User: img.User, Labels: img.Labels, WorkingDir: "/",
			Env: append([]string{"PATH=/usr/local/bin:/usr/bin:/bin"}, img.Env...),
		}
		if i, err = mutate.ConfigFile(i, cf); err != nil {
			return nil, err
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: i, Descriptor: v1.Descriptor{
			Platform: &v1.Platform{OS: "linux", Architecture: p.Arch},
		}})
	}
	return index, nil
}

// layer makes the tar of one platform's files, with the directories they need.
func layer(img Image, p Platform) ([]byte, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	made := map[string]bool{"/": true}
	mkdir := func(dir string, mode int64) error {
		if made[dir] {
			return nil
		}
		made[dir] = true
		return w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir[1:] + "/", Mode: mode})
	}
	parents := func(p string) error {
		for i, r := range p {
			if r == '/' && i > 0 {
				if err := mkdir(p[:i], 0o755); err != nil {
					return err
				}
			}
		}
		return nil
	}
	for _, d := range append([]string{"/tmp"}, img.Dirs...) {
		if err := parents(d); err != nil {
			return nil, err
		}
		if err := mkdir(d, 0o1777); err != nil {
			return nil, err
		}
	}
	files := append(slices.Clone(accounts), p.Files...)
	slices.SortFunc(files, func(a, b File) int { return strings.Compare(a.Path, b.Path) })
	for _, f := range files {
		if err := parents(f.Path); err != nil {
			return nil, err
		}
		if f.Link != "" {
			if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: f.Path[1:], Linkname: f.Link, Mode: 0o777}); err != nil {
				return nil, err
			}
			continue
		}
		data := f.Data
		if f.Source != "" {
			var err error
			if data, err = os.ReadFile(f.Source); err != nil {
				return nil, err
			}
		}
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: f.Path[1:], Mode: f.Mode, Size: int64(len(data))}); err != nil {
			return nil, err
		}
		if _, err := w.Write(data); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

// pack puts a directory into a tar, in the order of the names.
func pack(file, dir string) error {
	out, err := os.Create(file)
	if err != nil {
		return err
	}
	defer out.Close()
	w := tar.NewWriter(out)
	err = filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		if err != nil || p == dir {
			return err
		}
		rel, err := filepath.Rel(dir, p)
		if err != nil {
			return err
		}
		if d.IsDir() {
			return w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: rel + "/", Mode: 0o755})
		}
		data, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: rel, Mode: 0o644, Size: int64(len(data))}); err != nil {
			return err
		}
		_, err = w.Write(data)
		return err
	})
	if err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	return out.Close()
}
