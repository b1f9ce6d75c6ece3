package main

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"github.com/heddle-mesh/heddle/tools/images/archive"
)

// Names of the images that a cluster itself needs.
const (
	pauseImage = "localhost/pause:local"
	dnsImage   = "localhost/coredns:local"
)

// kubernetes is the version that kubeall/go.mod names; the programs report it.
const kubernetes = "v1.34.4"

// tools are the programs and images that every cluster is made of. They lie in a
// directory that is named for their sources: what is there is up to date, and
// two checkouts do not disturb each other.
type tools struct{ dir string }

func (t tools) kube() string     { return filepath.Join(t.dir, "kubeall") }
func (t tools) images() []string { return []string{t.in("pause.tar"), t.in("coredns.tar")} }

func (t tools) in(name string) string { return filepath.Join(t.dir, name) }

// buildTools builds what is not there yet. The first build takes some ten minutes
// of processor time; source is the directory of this program.
func buildTools(state, source string, say func(string, ...any)) (tools, error) {
	key, err := fingerprint(source, "kubeall", "coredns", "pause")
	if err != nil {
		return tools{}, err
	}
	t := tools{filepath.Join(state, "tools", key)}
	if _, err := os.Stat(t.in("done")); err == nil {
		return t, nil
	}
	if err := os.MkdirAll(t.dir, 0o755); err != nil {
		return t, err
	}
	unlock, err := lock(t.in("lock"))
	if err != nil {
		return t, err
	}
	defer unlock()
	if _, err := os.Stat(t.in("done")); err == nil {
		return t, nil // somebody else built it meanwhile
	}
	flags := "-s -w"
	for _, p := range []string{"k8s.io/component-base/version", "k8s.io/client-go/pkg/version"} {
		// Without these a node says that it is of v0.0.0.
		flags += fmt.Sprintf(" -X %s.gitVersion=%s -X %s.gitMajor=1 -X %s.gitMinor=34 -X %s.gitTreeState=clean", p, kubernetes, p, p, p)
	}
	for _, b := range []struct{ name, dir, pkg, ldflags, tags string }{
		{"pause", ".", "./pause", "-s -w", ""},
		{"coredns", "coredns", ".", "-s -w", ""},
		{"kubeall", "kubeall", ".", flags, "selinux_disabled"},
	} {
		say("building %s (the first time this takes long)", b.name)
		cmd := exec.Command("nice", "go", "build", "-trimpath", "-tags", b.tags, "-ldflags", b.ldflags, "-o", t.in(b.name), b.pkg)
		cmd.Dir = filepath.Join(source, b.dir)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-mod=readonly -buildvcs=false")
		if out, err := cmd.CombinedOutput(); err != nil {
			return t, fmt.Errorf("building %s: %w\n%s", b.name, err, out)
		}
	}
	for _, i := range []struct{ name, image string }{{"pause", pauseImage}, {"coredns", dnsImage}} {
		_, err := archive.Write(t.in(i.name+".tar"), archive.Image{
			Names: []string{i.image}, Entrypoint: []string{"/" + i.name},
			Platforms: []archive.Platform{{Arch: runtime.GOARCH, Files: []archive.File{{Path: "/" + i.name, Mode: 0o755, Source: t.in(i.name)}}}},
		})
		if err != nil {
			return t, err
		}
	}
	if err := os.Symlink("kubeall", t.in("kubectl")); err != nil && !errors.Is(err, fs.ErrExist) {
		return t, err
	}
	return t, os.WriteFile(t.in("done"), nil, 0o644)
}

// fingerprint is a hash of the sources in some directories and of the Go version.
func fingerprint(source string, dirs ...string) (string, error) {
	h := sha256.New()
	fmt.Fprintln(h, runtime.Version(), runtime.GOARCH, kubernetes)
	for _, d := range dirs {
		files, err := filepath.Glob(filepath.Join(source, d, "*"))
		if err != nil || len(files) == 0 {
			return "", fmt.Errorf("no sources in %s (flag -source)", filepath.Join(source, d))
		}
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil {
				return "", err
			}
			fmt.Fprintln(h, filepath.Base(f), len(b))
			h.Write(b)
		}
	}
	return hex.EncodeToString(h.Sum(nil))[:16], nil
}

// packages are Debian's, by a file of theirs that nodes need.
var packages = map[string]string{
	"/usr/bin/containerd": "containerd",
	"/usr/sbin/runc":      "runc",
	"/usr/lib/cni/bridge": "containernetworking-plugins",
	"/usr/sbin/iptables":  "iptables",
	"/usr/sbin/nft":       "nftables",
	"/usr/sbin/conntrack": "conntrack",
}

// installPackages installs the packages that are missing.
func installPackages(say func(string, ...any)) error {
	var missing []string
	for file, name := range packages {
		if _, err := os.Stat(file); err != nil {
			missing = append(missing, name)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	say("installing %s", strings.Join(missing, " "))
	for _, args := range [][]string{
		{"update", "-qq"},
		append([]string{"install", "-y", "-qq", "--no-install-recommends"}, missing...),
	} {
		cmd := exec.Command("apt-get", args...)
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, out)
		}
	}
	return nil
}

// lock waits for the lock on a file, and returns what gives it back.
func lock(file string) (func(), error) {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", file, err)
	}
	return func() { f.Close() }, nil
}
