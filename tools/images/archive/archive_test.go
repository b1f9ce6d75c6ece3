package archive

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
)

func sample(dir string) Image {
	return Image{
		Names: []string{"example.org/a:1", "example.org/b:2"}, Entrypoint: []string{"/bin/x"}, User: "1337:1337", Dirs: []string{"/var/lib/x"},
		Platforms: []Platform{
			{Arch: "amd64", Files: []File{{Path: "/bin/x", Mode: 0o755, Source: filepath.Join(dir, "x")}, {Path: "/bin/y", Link: "/bin/x"}}},
			{Arch: "arm64", Files: []File{{Path: "/bin/x", Mode: 0o755, Data: []byte("arm")}}},
		},
	}
}

func write(t *testing.T, img Image) (digest string, content []byte) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "image.tar")
	digest, err := Write(file, img)
	if err != nil {
		t.Fatal(err)
	}
	content, err = os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return digest, content
}

func TestSameInputSameBytes(t *testing.T) {
	var digests []string
	var contents [][]byte
	for range 2 {
		dir := t.TempDir() // another path and another time
		if err := os.WriteFile(filepath.Join(dir, "x"), []byte("program"), 0o600); err != nil {
			t.Fatal(err)
		}
		d, c := write(t, sample(dir))
		digests, contents = append(digests, d), append(contents, c)
	}
	if digests[0] != digests[1] || !bytes.Equal(contents[0], contents[1]) {
		t.Errorf("digests %v; the archives are equal: %v", digests, bytes.Equal(contents[0], contents[1]))
	}
	other, _ := write(t, Image{Names: []string{"example.org/a:1"}, Platforms: []Platform{{Arch: "amd64"}}})
	if other == digests[0] {
		t.Error("another image has the same digest")
	}
}

func TestArchiveIsAnOCILayout(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "x"), []byte("program"), 0o600); err != nil {
		t.Fatal(err)
	}
	digest, content := write(t, sample(dir))
	files := make(map[string][]byte)
	for r := tar.NewReader(bytes.NewReader(content)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if files[h.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
	type descriptor struct {
		Digest      string
		Annotations map[string]string
		Platform    struct{ Architecture string }
	}
	var index struct{ Manifests []descriptor }
	parse := func(name string, v any) {
		t.Helper()
		if err := json.Unmarshal(files[name], v); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	blob := func(digest string) string { return "blobs/sha256/" + digest[len("sha256:"):] }
	parse("index.json", &index)
	if len(index.Manifests) != 2 || index.Manifests[1].Annotations[nameAnnotation] != "example.org/b:2" || index.Manifests[0].Digest != digest {
		t.Fatalf("names: %+v", index.Manifests)
	}
	var image struct{ Manifests []descriptor }
	parse(blob(digest), &image)
	if len(image.Manifests) != 2 || image.Manifests[1].Platform.Architecture != "arm64" {
		t.Fatalf("platforms: %+v", image.Manifests)
	}
	var manifest struct{ Config descriptor }
	parse(blob(image.Manifests[0].Digest), &manifest)
	var config struct {
		Architecture string
		Config       struct {
			User       string
			Entrypoint []string
		}
	}
	parse(blob(manifest.Config.Digest), &config)
	if config.Architecture != "amd64" || config.Config.User != "1337:1337" || config.Config.Entrypoint[0] != "/bin/x" {
		t.Errorf("configuration: %+v", config)
	}
}

func TestLayerHasFilesLinksAndDirectories(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "x"), []byte("program"), 0o600); err != nil {
		t.Fatal(err)
	}
	img := sample(dir)
	content, err := layer(img, img.Platforms[0])
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string]string)
	for r := tar.NewReader(bytes.NewReader(content)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if _, twice := got[h.Name]; twice {
			t.Errorf("%s is there twice", h.Name)
		}
		got[h.Name] = fmt.Sprintf("%o %s%s", h.Mode, h.Linkname, b)
	}
	for name, want := range map[string]string{
		"tmp/": "1777 ", "var/": "755 ", "var/lib/": "755 ", "var/lib/x/": "1777 ", "bin/": "755 ",
		"bin/x": "755 program", "bin/y": "777 /bin/x", "etc/": "755 ",
	} {
		if got[name] != want {
			t.Errorf("%s is %q, not %q", name, got[name], want)
		}
	}
}

func TestMissingProgramIsNamed(t *testing.T) {
	_, err := Write(filepath.Join(t.TempDir(), "image.tar"), sample("/no/such"))
	if !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}
