package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// up brings a cluster up, or finds that it is.
func up(state, source string, want *spec, say func(string, ...any)) error {
	if os.Geteuid() != 0 {
		return errors.New("namespaces, interfaces and cgroups need root")
	}
	if want.Subnet < 0 {
		want.Subnet = -1
	}
	if err := want.check(); err != nil {
		return err
	}
	if err := os.MkdirAll(want.Dir, 0o755); err != nil {
		return err
	}
	unlock, err := lock(filepath.Join(want.Dir, "lock"))
	if err != nil {
		return err
	}
	defer unlock()
	if s, err := readSpec(want.Dir); err == nil {
		done, err := again(s, want, say)
		if done || err != nil {
			return err
		}
		if err := remove(state, s); err != nil {
			return err
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := installPackages(say); err != nil {
		return err
	}
	t, err := buildTools(state, source, say)
	if err != nil {
		return err
	}
	want.Kube = t.kube()
	if err := begin(state, want, say); err != nil {
		// What was begun is of no use; the logs stay.
		return errors.Join(explain(want, err), remove(state, want))
	}
	if err := os.WriteFile(want.readyFile(), nil, 0o644); err != nil {
		return err
	}
	say("cluster %s is up: export KUBECONFIG=%s", want.Name, want.kubeconfig())
	say("kubectl of its version: %s", t.in("kubectl"))
	return nil
}

// again says whether the cluster that there is will do.
func again(s, want *spec, say func(string, ...any)) (bool, error) {
	running := 0
	for i := 1; i <= s.Nodes; i++ {
		if _, ok := s.process(i); ok {
			running++
		}
	}
	if running < s.Nodes {
		say("of cluster %s %d of %d nodes run: it is made anew", s.Name, running, s.Nodes)
		return false, nil
	}
	if _, err := os.Stat(s.readyFile()); err != nil {
		say("the up of cluster %s was cut short: it is made anew", s.Name)
		return false, nil
	}
	if s.Nodes != want.Nodes || s.Dual != want.Dual || s.Proxy != want.Proxy || want.Subnet >= 0 && s.Subnet != want.Subnet {
		return false, fmt.Errorf("cluster %s is up with %d nodes, dual stack %v, kube-proxy %s and subnet %d; bring it down first", s.Name, s.Nodes, s.Dual, s.Proxy, s.Subnet)
	}
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	c, err := newClient(s)
	if err != nil {
		return false, err
	}
	if err := c.waitReady(ctx); err != nil {
		return false, explain(s, err)
	}
	say("cluster %s is up already: export KUBECONFIG=%s", s.Name, s.kubeconfig())
	return true, nil
}

func begin(state string, s *spec, say func(string, ...any)) error {
	if err := os.RemoveAll(filepath.Join(s.Dir, "log")); err != nil {
		return err
	}
	if err := claimSubnet(state, s); err != nil {
		return err
	}
	say("cluster %s: nodes %s, pods %s, services %s", s.Name, s.both(s.hostAddr().Masked(), s.hostAddr6().Masked()),
		s.both(s.allPods(), s.allPods6()), s.both(s.services(), s.services6()))
	if err := writePKI(s); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(context.Background(), startTimeout, fmt.Errorf("not within %v", startTimeout))
	defer cancel()
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	var nodes []process
	for i := 1; i <= s.Nodes; i++ {
		p, err := startNode(s, i)
		if err != nil {
			return err
		}
		nodes = append(nodes, p)
	}
	go watch(ctx, s, nodes, fail)
	c, err := newClient(s)
	if err != nil {
		return err
	}
	images := tools{filepath.Dir(s.Kube)}.images()
	loaded := make(chan error, 1)
	go func() { loaded <- loadImages(ctx, s, images) }()
	if err := c.waitReady(ctx); err != nil {
		return err
	}
	say("the API server is ready")
	if err := <-loaded; err != nil {
		return err
	}
	if err := c.apply(ctx, dns(s)); err != nil {
		return err
	}
	for i := 1; i <= s.Nodes; i++ {
		if err := c.waitCondition(ctx, "node "+s.node(i), "/api/v1/nodes/"+s.node(i), "Ready"); err != nil {
			return err
		}
	}
	say("nodes are ready")
	// A pod that is made before its ServiceAccount is refused.
	if err := c.waitExists(ctx, "/api/v1/namespaces/default/serviceaccounts/default"); err != nil {
		return err
	}
	if err := c.waitCondition(ctx, "CoreDNS", "/apis/apps/v1/namespaces/kube-system/deployments/coredns", "Available"); err != nil {
		return err
	}
	if err := c.waitDNS(ctx); err != nil {
		return err
	}
	say("DNS answers")
	return nil
}

// watch ends the wait for a cluster as soon as one of its nodes has ended.
func watch(ctx context.Context, s *spec, nodes []process, fail context.CancelCauseFunc) {
	for {
		for i, p := range nodes {
			if !p.alive() {
				fail(fmt.Errorf("node %s has ended; %s says why", s.node(i+1), filepath.Join(s.logDir(i+1), "node.log")))
				return
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(poll):
		}
	}
}

// claimSubnet finds a subnet and takes it, by making the bridge.
func claimSubnet(state string, s *spec) error {
	unlock, err := lock(filepath.Join(state, "lock"))
	if err != nil {
		return err
	}
	defer unlock()
	if err := removeBridge(s); err != nil { // of a cluster whose state was removed by hand
		return err
	}
	if s.Subnet < 0 {
		if s.Subnet, err = freeSubnet(); err != nil {
			return err
		}
	} else {
		used, err := usedRanges()
		if err != nil {
			return err
		}
		if err := inUse(s, used); err != nil {
			return err
		}
	}
	if err := s.save(); err != nil {
		return err
	}
	return makeBridge(s)
}

func dns(s *spec) string {
	families := "ipFamilies: [IPv4]"
	if s.Dual {
		families = fmt.Sprintf("clusterIPs: [%q, %q]\n  ipFamilies: [IPv4, IPv6]\n  ipFamilyPolicy: RequireDualStack", s.dns(), s.dns6())
	}
	return strings.NewReplacer("ADDRESS", s.dns().String(), "FAMILIES", families).Replace(dnsManifests)
}

// explain adds the ends of the components' logs to an error.
func explain(s *spec, err error) error {
	var b bytes.Buffer
	files, _ := filepath.Glob(filepath.Join(s.Dir, "log", "*", "*.log")) // the pattern is good
	for _, f := range files {
		text, readErr := os.ReadFile(f)
		if readErr != nil {
			continue
		}
		lines := strings.Split(strings.TrimSpace(string(text)), "\n")
		fmt.Fprintf(&b, "--- the end of %s\n%s\n", f, strings.Join(lines[max(0, len(lines)-5):], "\n"))
	}
	return fmt.Errorf("cluster %s: %w\n%s", s.Name, err, b.String())
}

// load loads image archives into all nodes of a cluster.
func load(state, name string, files []string, say func(string, ...any)) error {
	if len(files) == 0 {
		return errors.New("load: name the image archives")
	}
	s, err := existing(state, name)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	if err := loadImages(ctx, s, files); err != nil {
		return err
	}
	say("loaded into cluster %s: %s", name, strings.Join(files, " "))
	return nil
}

func loadImages(ctx context.Context, s *spec, files []string) error {
	for i := 1; i <= s.Nodes; i++ {
		p, ok := s.process(i)
		if !ok {
			return fmt.Errorf("node %s does not run", s.node(i))
		}
		ctr := func(args ...string) error {
			cmd := exec.CommandContext(ctx, "ctr", append([]string{"--address", s.socket(p.pid), "--namespace", "k8s.io"}, args...)...)
			if out, err := cmd.CombinedOutput(); err != nil {
				return fmt.Errorf("node %s: ctr %s: %w\n%s", s.node(i), strings.Join(args, " "), err, out)
			}
			return nil
		}
		if err := until(ctx, "containerd of node "+s.node(i), func() error {
			if _, err := os.Stat(s.socket(p.pid)); err != nil {
				return err
			}
			return ctr("version")
		}); err != nil {
			return err
		}
		for _, f := range files {
			if err := ctr("images", "import", f); err != nil {
				return err
			}
		}
	}
	return nil
}
