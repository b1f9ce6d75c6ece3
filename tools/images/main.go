// Command images writes the container images of Heddle and of its tests as OCI
// archives, one file each. It needs Go alone; the same sources, Go and version
// give the same digests, which it prints.
package main

import (
	"bytes"
	"encoding/pem"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/crypto/x509roots/fallback/bundle"

	"github.com/heddle-mesh/heddle/tools/images/archive"
)

// image is one image: a program of this repository, and how it is run.
type image struct {
	name    string
	pkg     string   // of the program, below the module's directory
	program string   // its path in the image
	links   []string // other paths of the program
	user    string
	dirs    []string // that it writes to, unless a volume is mounted there
	also    []string // further names, with tags, that it is known by
	test    bool     // only tests use it
}

// proxyUser is the user whose traffic redirection leaves alone.
const proxyUser = "1337:1337"

// gateway is where the conformance suite's images are.
const gateway = "registry.k8s.io/gateway-api/"

var images = []image{
	{name: "heddled", pkg: "./cmd/heddled", program: "/usr/local/bin/heddled", user: proxyUser, dirs: []string{"/var/lib/heddled"}},
	// The same image is sidecar, gateway and, as root with NET_ADMIN, what redirects.
	{name: "heddle-proxy", pkg: "./cmd/heddle-proxy", program: "/usr/local/bin/heddle-proxy", user: proxyUser, dirs: []string{"/var/lib/istio/data"}},
	{name: "bookstore", pkg: "./examples/bookstore", program: "/usr/local/bin/bookstore", user: "65532:65532", test: true},
	// The manifests of the Gateway API conformance suite name the others.
	{name: "meshecho", pkg: "./test/meshecho", program: "/usr/local/bin/meshecho", links: []string{"/usr/local/bin/client"},
		user: "65532:65532", test: true, also: []string{gateway + "echo-basic:v1.5.1", gateway + "echo-advanced:v1.5.1"}},
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "images:", err)
		os.Exit(1)
	}
}

func run() error {
	out := flag.String("o", "bin/images", "directory to write to")
	root := flag.String("source", ".", "directory of Heddle's module")
	hub := flag.String("hub", "ghcr.io/heddle-mesh", "what image names begin with")
	tag := flag.String("tag", "dev", "tag of the images")
	arches := flag.String("arch", "amd64,arm64", "architectures, separated by commas")
	version := flag.String("version", "dev", "version that the programs report")
	tests := flag.Bool("tests", false, "write the images of tests, too")
	flag.Parse()
	if err := os.MkdirAll(*out, 0o755); err != nil {
		return err
	}
	roots := rootCertificates()
	var wanted []image
	for _, i := range images {
		if *tests || !i.test {
			wanted = append(wanted, i)
		}
	}
	list := strings.Split(*arches, ",")
	for _, arch := range list {
		if err := compile(*root, programs(*out, arch), arch, *version, wanted); err != nil {
			return err
		}
	}
	for _, i := range wanted {
		img := archive.Image{
			Names:      append([]string{fmt.Sprintf("%s/%s:%s", *hub, i.name, *tag)}, i.also...),
			Entrypoint: []string{i.program}, User: i.user, Dirs: i.dirs,
			Labels: map[string]string{
				"org.opencontainers.image.title":    i.name,
				"org.opencontainers.image.version":  *version,
				"org.opencontainers.image.source":   "https://github.com/heddle-mesh/heddle",
				"org.opencontainers.image.licenses": "Apache-2.0",
			},
		}
		for _, arch := range list {
			p := archive.Platform{Arch: arch, Files: []archive.File{
				{Path: "/etc/ssl/certs/ca-certificates.crt", Mode: 0o644, Data: roots},
				{Path: i.program, Mode: 0o755, Source: filepath.Join(programs(*out, arch), filepath.Base(i.pkg))},
			}}
			for _, path := range i.links {
				p.Files = append(p.Files, archive.File{Path: path, Link: i.program})
			}
			img.Platforms = append(img.Platforms, p)
		}
		file := filepath.Join(*out, i.name+".tar")
		digest, err := archive.Write(file, img)
		if err != nil {
			return err
		}
		fmt.Printf("%s  %s  %s\n", file, digest, strings.Join(img.Names, " "))
	}
	return nil
}

func programs(out, arch string) string { return filepath.Join(out, "programs", arch) }

// compile builds the programs of the images. Neither the machine's paths nor the
// state of version control enter them, so that they can be built again.
func compile(root, out, arch, version string, images []image) error {
	out, err := filepath.Abs(out)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	args := []string{"build", "-trimpath", "-buildvcs=false", "-o", out + "/",
		"-ldflags", "-s -w -buildid= -X main.version=" + version + " -X github.com/heddle-mesh/heddle/internal/life.version=" + version}
	for _, i := range images {
		if !slices.Contains(args, i.pkg) {
			args = append(args, i.pkg)
		}
	}
	cmd := exec.Command("go", args...)
	cmd.Dir, cmd.Stderr = root, os.Stderr
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch, "GOWORK=off")
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("go build for %s on %s: %w", arch, runtime.GOARCH, err)
	}
	return nil
}

// rootCertificates are Mozilla's, of the module version in go.mod and not of this
// machine. They are for what leaves the mesh by TLS.
func rootCertificates() []byte {
	var b bytes.Buffer
	for r := range bundle.Roots() {
		pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: r.Certificate}) // to memory: it cannot fail
	}
	return b.Bytes()
}
