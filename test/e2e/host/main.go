// Command kubehost runs real Kubernetes clusters on this machine, for tests: all
// components of one are processes, and a node is a set of namespaces that they
// share. It needs root, Debian's containerd and its like, and the Go module
// proxy; no container registry, virtual machine or init system.
//
//	kubehost up          bring a cluster up; nothing to do if it is
//	kubehost down        end it, and remove all of it but its logs
//	kubehost kubeconfig  print the path of its kubeconfig
//	kubehost load        load image archives into all of its nodes
//	kubehost list        say which clusters there are
//	kubehost info        print a cluster's addresses and files as JSON
//	kubehost build       install and build what clusters are made of, as up does
//	kubehost state       print the directory of all state
//
// A cluster is known by its name alone; subnets are chosen so that they overlap
// with nothing that the machine has a route to.
package main

import (
	_ "embed"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

//go:embed dns.yaml
var dnsManifests string

// startTimeout bounds the start of a cluster, on a machine that is busy with
// other things. It is not a pause: what is ready is not waited for.
const startTimeout = 4 * time.Minute

func main() {
	if err := run(os.Args[1:]); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "kubehost:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 {
		return errors.New("usage: kubehost up|down|kubeconfig|load|list|info|build|state [flags]")
	}
	if args[0] == "node" && len(args) == 3 {
		i, err := strconv.Atoi(args[2])
		if err != nil {
			return err
		}
		return runNode(args[1], i)
	}
	began := time.Now()
	say := func(format string, a ...any) {
		fmt.Printf("%5.1fs  %s\n", time.Since(began).Seconds(), fmt.Sprintf(format, a...))
	}
	fs := flag.NewFlagSet("kubehost "+args[0], flag.ContinueOnError)
	state := fs.String("state", stateDir(), "directory of all state")
	name := fs.String("name", "e2e", "name of the cluster")
	var s spec
	var source string
	var apiserver, controller string
	if args[0] == "up" || args[0] == "build" {
		fs.StringVar(&source, "source", "test/e2e/host", "directory of kubehost's sources, of which the clusters' programs are built")
	}
	if args[0] == "up" {
		fs.IntVar(&s.Nodes, "nodes", 1, "number of nodes")
		fs.BoolVar(&s.Dual, "dual", false, "IPv6 beside IPv4")
		fs.IntVar(&s.Subnet, "subnet", -1, "number of the subnet; -1 chooses a free one")
		fs.StringVar(&s.Proxy, "kube-proxy", "nftables", "how kube-proxy works: nftables or iptables")
		fs.StringVar(&apiserver, "apiserver-flags", "", "more flags for kube-apiserver, separated by spaces")
		fs.StringVar(&controller, "controller-flags", "", "more flags for kube-controller-manager, separated by spaces")
	}
	if err := fs.Parse(args[1:]); err != nil {
		return err
	}
	dir, err := filepath.Abs(*state)
	if err != nil {
		return err
	}
	s.Name, s.Dir = *name, filepath.Join(dir, "clusters", *name)
	s.APIServerFlags, s.ControllerFlags = strings.Fields(apiserver), strings.Fields(controller)
	if args[0] != "load" && fs.NArg() > 0 {
		return fmt.Errorf("%s takes no arguments but flags, and there is %q", args[0], fs.Arg(0))
	}
	switch args[0] {
	case "up":
		return up(dir, source, &s, say)
	case "down":
		return down(dir, s.Name, say)
	case "kubeconfig":
		return kubeconfig(dir, s.Name)
	case "load":
		return load(dir, s.Name, fs.Args(), say)
	case "list":
		return list(dir)
	case "info":
		return info(dir, s.Name)
	case "build":
		if err := installPackages(say); err != nil {
			return err
		}
		t, err := buildTools(dir, source, say)
		if err == nil {
			say("the programs of clusters are in %s", t.dir)
		}
		return err
	case "state":
		fmt.Println(dir)
		return os.MkdirAll(dir, 0o755)
	}
	return fmt.Errorf("no command %q; there are up, down, kubeconfig, load, list, info, build and state", args[0])
}

// stateDir is where state is kept unless a flag says otherwise.
func stateDir() string {
	if d := os.Getenv("XDG_STATE_HOME"); d != "" {
		return filepath.Join(d, "heddle-e2e")
	}
	home, err := os.UserHomeDir()
	if err != nil {
		home = "/root"
	}
	return filepath.Join(home, ".local", "state", "heddle-e2e")
}

func kubeconfig(state, name string) error {
	s, err := existing(state, name)
	if err != nil {
		return err
	}
	fmt.Println(s.kubeconfig())
	return nil
}

// existing returns the spec of a cluster that was brought up.
func existing(state, name string) (*spec, error) {
	s, err := loadSpec(state, name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("there is no cluster %s; kubehost up makes it", name)
	}
	return s, err
}

// info is what tests and scripts ask about a cluster.
func info(state, name string) error {
	s, err := existing(state, name)
	if err != nil {
		return err
	}
	addrs := func(v4, v6 netip.Prefix) []string {
		if s.Dual {
			return []string{v4.Addr().String(), v6.Addr().String()}
		}
		return []string{v4.Addr().String()}
	}
	type node struct {
		Name      string   `json:"name"`
		Addresses []string `json:"addresses"`
		Process   int      `json:"process"` // the first one, in whose namespaces the others are
	}
	out := struct {
		Name       string   `json:"name"`
		Kubeconfig string   `json:"kubeconfig"`
		Kubectl    string   `json:"kubectl"`
		Logs       string   `json:"logs"`
		Host       []string `json:"host"` // where pods reach this machine
		Pods       string   `json:"pods"`
		Services   string   `json:"services"`
		Nodes      []node   `json:"nodes"`
	}{
		Name: s.Name, Kubeconfig: s.kubeconfig(), Kubectl: filepath.Join(filepath.Dir(s.Kube), "kubectl"), Logs: filepath.Join(s.Dir, "log"),
		Host: addrs(s.hostAddr(), s.hostAddr6()), Pods: s.both(s.allPods(), s.allPods6()), Services: s.both(s.services(), s.services6()),
	}
	for i := 1; i <= s.Nodes; i++ {
		p, _ := s.process(i)
		out.Nodes = append(out.Nodes, node{Name: s.node(i), Addresses: addrs(s.nodeAddr(i), s.nodeAddr6(i)), Process: p.pid})
	}
	e := json.NewEncoder(os.Stdout)
	e.SetIndent("", "  ")
	return e.Encode(out)
}

func list(state string) error {
	dirs, err := filepath.Glob(filepath.Join(state, "clusters", "*", "cluster.json"))
	if err != nil {
		return err
	}
	for _, f := range dirs {
		s, err := readSpec(filepath.Dir(f))
		if err != nil {
			return err
		}
		running := 0
		for i := 1; i <= s.Nodes; i++ {
			if _, ok := s.process(i); ok {
				running++
			}
		}
		fmt.Printf("%-8s  %d of %d nodes run  subnet %d  %s\n", s.Name, running, s.Nodes, s.Subnet, s.kubeconfig())
	}
	return nil
}
