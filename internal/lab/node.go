package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/internal/config"
	"github.com/heddle-mesh/heddle/internal/identity/ca"
	"github.com/heddle-mesh/heddle/internal/lab/isolate"
	"github.com/heddle-mesh/heddle/internal/lab/network"
	"github.com/heddle-mesh/heddle/internal/lab/process"
	"github.com/heddle-mesh/heddle/internal/life"
	"github.com/heddle-mesh/heddle/internal/source/file"
)

// proxyUID is who proxies run as where there is more than one user. Istio's.
const proxyUID = 1337

// Node is the inner half of a mesh: see [NodeCommand]. It returns when the mesh
// has ended.
func Node(configJSON string) error {
	unix.CloseOnExec(linkFd)
	unix.CloseOnExec(lockFd)
	var cfg nodeConfig
	if err := json.Unmarshal([]byte(configJSON), &cfg); err != nil {
		return err
	}
	if err := isolate.Inside(); err != nil {
		return err
	}
	// Whoever reads the output may go; the mesh stays until the front does.
	signal.Ignore(syscall.SIGPIPE)
	l, err := newLink(os.NewFile(linkFd, "link"))
	if err != nil {
		return err
	}
	root := true
	if data, err := os.ReadFile("/proc/self/uid_map"); err == nil {
		var inside, outside, size uint64
		_, scanErr := fmt.Sscan(string(data), &inside, &outside, &size)
		root = scanErr == nil && size > proxyUID
	}
	n := &node{cfg: cfg, layout: layout{cfg.StateDir}, link: l, root: root}
	n.screen = newScreen(os.Stdout, os.Stderr)
	return n.run()
}

// node puts the parts together.
type node struct {
	cfg    nodeConfig
	layout layout
	link   *link
	root   bool
	screen *screen
}

// run is the whole flow:
//
//	files → controller → pods, objects for the control plane,
//	                     rules for cluster IPs, names, published ports
//	CLI   → api        → controller
func (n *node) run() error {
	// soft ends when the front says stop or is gone, hard when time is over.
	soft, stop := context.WithCancel(context.Background())
	defer stop()
	hard, kill := context.WithCancel(context.Background())
	defer kill()
	go func() { // ends with the process
		n.link.follow()
		stop()
		time.AfterFunc(stopPatience-2*time.Second, kill)
	}()

	procs := process.NewTable()
	ground, err := network.Setup()
	if err != nil {
		return err
	}
	if err := ground.AddAddress(dnsAddress); err != nil {
		return err
	}
	c, err := n.controller(procs, ground)
	if err != nil {
		return err
	}
	dns, err := n.dns()
	if err != nil {
		return err
	}
	out, err := newOutside(ground, n.link)
	if err != nil {
		return err
	}
	c.setService, c.setNames = ground.SetService, dns.SetTable
	pub := &publisher{ctx: soft, link: n.link, complain: n.screen.complain, ports: make(map[published]*publishedPort)}
	c.publish = pub.set

	source, err := file.New(file.Config{
		Name: "manifests", Paths: n.cfg.Paths, Log: slog.New(slog.DiscardHandler),
		OnBatch:  func(b config.Batch) { c.apply(soft, b) },
		OnFaults: n.screen.faults,
	})
	if err != nil {
		return err
	}
	a := &api{controller: c, publisher: pub, name: n.cfg.Name, paths: n.cfg.Paths}
	control, err := listenUnix("unix", n.layout.control())
	if err != nil {
		return err
	}
	execs, err := listenUnix("unixpacket", n.layout.exec())
	if err != nil {
		return err
	}

	// Children are reaped until the last one is gone.
	var reaping sync.WaitGroup
	reap, endReap := context.WithCancel(context.Background())
	reaping.Go(func() { procs.Run(reap) })
	defer func() {
		endReap()
		reaping.Wait()
	}()

	g := life.NewGroup(soft)
	g.Go("manifests", source.Run)
	g.Go("DNS", dns.Run)
	g.Go("connections to the outside", out.run)
	g.Go("control socket", func(ctx context.Context) error { return a.serveHTTP(ctx, control) })
	g.Go("exec socket", func(ctx context.Context) error { return a.serveExec(ctx, execs) })
	g.Go("tokens", func(ctx context.Context) error { return c.kubelet.identity.run(ctx, n.screen.complain) })
	g.Go("controller", func(ctx context.Context) error { return c.run(ctx, hard) })
	g.Go("welcome", func(ctx context.Context) error {
		n.welcome(ctx, c, pub)
		return nil
	})
	err = g.Wait()
	pub.wait()
	return errors.Join(err, n.tidy())
}

// controller makes the controller with its kubelet and their directories.
func (n *node) controller(procs *process.Table, ground *network.Node) (*controller, error) {
	// What an earlier run left: nobody needs it.
	if err := os.RemoveAll(n.layout.pods()); err != nil {
		return nil, err
	}
	for _, d := range []string{n.layout.pods(), n.layout.scratch(), n.layout.ca()} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, err
		}
	}
	issuer, err := ca.NewIssuer(n.layout.tokenKey())
	if err != nil {
		return nil, err
	}
	dir, err := newObjectDir(n.layout.objects(), n.layout.staging())
	if err != nil {
		return nil, err
	}
	c := newController()
	c.dir = dir
	c.notify, c.faults = n.screen.say, n.screen.faults
	c.builtin = builtins(n.controlPlane(), n.cfg.Begin)
	k := &kubelet{
		procs: procs, node: ground,
		podsDir: n.layout.pods(), scratch: n.layout.scratch(), binDir: n.cfg.BinDir,
		env:    []string{"PATH=" + binMount + ":" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME")},
		domain: clusterDomain, dns: dnsAddress, root: n.root,
		find:    func() finder { return c.objects.load() },
		changed: c.poke, complain: n.screen.complain,
	}
	if n.root && reachable(n.cfg.BinDir) {
		k.proxyUser = &syscall.Credential{Uid: proxyUID, Gid: proxyUID}
	}
	k.identity = &identities{issuer: issuer, rootPath: n.layout.rootCert(), serving: make(chan struct{}), pods: make(map[*pod]bool), chown: func(path string) error {
		if k.proxyUser == nil {
			return nil
		}
		return os.Chown(path, int(k.proxyUser.Uid), int(k.proxyUser.Gid))
	}}
	c.kubelet = k
	return c, nil
}

// reachable says whether any user may run the programs in dir: the directory is
// mounted elsewhere, so those above it do not matter. If not, proxies run as
// root and are told apart by their mark alone.
func reachable(dir string) bool {
	for _, path := range []string{dir, filepath.Join(dir, "heddle-proxy")} {
		if info, err := os.Stat(path); err != nil || info.Mode()&0o001 == 0 {
			return false
		}
	}
	return true
}

// controlPlane is the command of the control plane.
func (n *node) controlPlane() []string {
	return []string{
		"heddled",
		"--state-dir", n.layout.ca(),
		"--token-key", ca.PublicKeyPath(n.layout.tokenKey()),
		n.layout.objects(),
	}
}

// tidy removes the files that mean nothing without the mesh.
func (n *node) tidy() error {
	var errs []error
	for _, path := range []string{n.layout.control(), n.layout.exec()} {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	for _, dir := range []string{n.layout.objects(), n.layout.staging(), n.layout.scratch()} {
		errs = append(errs, os.RemoveAll(dir))
	}
	return errors.Join(errs...)
}
