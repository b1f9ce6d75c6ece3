package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// spec is what a cluster is made of. It is written beside the cluster, so that
// down and load need its name alone.
type spec struct {
	Name   string `json:"name"`
	Nodes  int    `json:"nodes"`
	Dual   bool   `json:"dual"` // IPv4 and IPv6, else IPv4 alone
	Subnet int    `json:"subnet"`
	Proxy  string `json:"proxy"` // kube-proxy's mode: nftables or iptables
	Dir    string `json:"dir"`   // all of its files
	Kube   string `json:"kube"`  // the kubeall program

	// More flags for two components, for tests of scale.
	APIServerFlags  []string `json:"apiServerFlags,omitempty"`
	ControllerFlags []string `json:"controllerFlags,omitempty"`
}

// maxSubnet is the highest value of spec.Subnet, and maxNodes that of spec.Nodes.
const (
	maxSubnet = 49
	maxNodes  = 9
)

// Interface names hold 15 bytes, and ours are "hk-NAME-9".
var clusterName = regexp.MustCompile(`^[a-z][a-z0-9]{0,7}$`)

func (s *spec) check() error {
	var errs []error
	if !clusterName.MatchString(s.Name) {
		errs = append(errs, fmt.Errorf("cluster %q: a name is a small letter and at most 7 more small letters and digits", s.Name))
	}
	if s.Nodes < 1 || s.Nodes > maxNodes {
		errs = append(errs, fmt.Errorf("cluster %s: %d nodes; there may be 1 to %d", s.Name, s.Nodes, maxNodes))
	}
	if s.Subnet > maxSubnet {
		errs = append(errs, fmt.Errorf("cluster %s: subnet %d; there are 0 to %d", s.Name, s.Subnet, maxSubnet))
	}
	if s.Proxy != "nftables" && s.Proxy != "iptables" {
		errs = append(errs, fmt.Errorf("cluster %s: kube-proxy mode %q is neither nftables nor iptables", s.Name, s.Proxy))
	}
	return errors.Join(errs...)
}

// Addresses, for subnet n. The machine has .1 and ::1 on the bridge, node i has
// the next ones; the upper half of the nodes' range is free for load balancers.
//
//	nodes     10.200.n.0/24       fd48:ed00:n:1::/64
//	services  10.150+n.0.0/16     fd48:ed00:n:2::/112
//	pods      10.100+n.i.0/24     fd48:ed00:n:10+i::/64 on node i
func (s *spec) hostAddr() netip.Prefix   { return prefix("10.200.%d.1/24", s.Subnet) }
func (s *spec) hostAddr6() netip.Prefix  { return prefix("fd48:ed00:%x:1::1/64", s.Subnet) }
func (s *spec) services() netip.Prefix   { return prefix("10.%d.0.0/16", 150+s.Subnet) }
func (s *spec) services6() netip.Prefix  { return prefix("fd48:ed00:%x:2::/112", s.Subnet) }
func (s *spec) allPods() netip.Prefix    { return prefix("10.%d.0.0/16", 100+s.Subnet) }
func (s *spec) allPods6() netip.Prefix   { return prefix("fd48:ed00:%x:10::/60", s.Subnet) }
func (s *spec) pods(i int) netip.Prefix  { return prefix("10.%d.%d.0/24", 100+s.Subnet, i) }
func (s *spec) pods6(i int) netip.Prefix { return prefix("fd48:ed00:%x:1%x::/64", s.Subnet, i) }
func (s *spec) nodeAddr(i int) netip.Prefix {
	return prefix("10.200.%d.%d/24", s.Subnet, i+1)
}
func (s *spec) nodeAddr6(i int) netip.Prefix {
	return prefix("fd48:ed00:%x:1::%x/64", s.Subnet, i+1)
}

func prefix(format string, args ...any) netip.Prefix {
	return netip.MustParsePrefix(fmt.Sprintf(format, args...))
}

// both joins a value of each family that the cluster has.
func (s *spec) both(v4, v6 fmt.Stringer) string {
	if s.Dual {
		return v4.String() + "," + v6.String()
	}
	return v4.String()
}

// nth returns the address at a distance from the beginning of a range.
func nth(p netip.Prefix, n byte) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	b[len(b)-1] += n
	a, _ := netip.AddrFromSlice(b)
	return a
}

func (s *spec) server() string           { return fmt.Sprintf("https://%s:6443", s.nodeAddr(1).Addr()) }
func (s *spec) dns() netip.Addr          { return nth(s.services(), 10) }
func (s *spec) dns6() netip.Addr         { return nth(s.services6(), 10) }
func (s *spec) bridge() string           { return "hk-" + s.Name }
func (s *spec) veth(i int) string        { return fmt.Sprintf("hk-%s-%d", s.Name, i) }
func (s *spec) node(i int) string        { return fmt.Sprintf("%s-%d", s.Name, i) }
func (s *spec) nodeDir(i int) string     { return filepath.Join(s.Dir, "node"+strconv.Itoa(i)) }
func (s *spec) logDir(i int) string      { return filepath.Join(s.Dir, "log", "node"+strconv.Itoa(i)) }
func (s *spec) pki(file string) string   { return filepath.Join(s.Dir, "pki", file) }
func (s *spec) kubeconfig() string       { return s.pki("admin.kubeconfig") }
func (s *spec) specFile() string         { return filepath.Join(s.Dir, "cluster.json") }
func (s *spec) readyFile() string        { return filepath.Join(s.Dir, "ready") } // up has come to its end
func (s *spec) cgroup(i int) string      { return cgroupTop + "/" + s.Name + "/" + strconv.Itoa(i) }
func (s *spec) processFile(i int) string { return filepath.Join(s.nodeDir(i), "process") }

// socket is where containerd of a node is reached from outside its namespaces;
// paths of sockets are short, so it cannot lie in the state directory.
func (s *spec) socket(pid int) string {
	return fmt.Sprintf("/proc/%d/root%s", pid, containerdSocket)
}

const (
	containerdSocket = "/run/containerd/containerd.sock"
	cgroupTop        = "heddle-e2e"
)

func (s *spec) save() error {
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(s.specFile(), append(b, '\n'), 0o644)
}

// loadSpec reads the spec of a cluster that was begun; fs.ErrNotExist if there is none.
func loadSpec(state, name string) (*spec, error) {
	return readSpec(filepath.Join(state, "clusters", name))
}

func readSpec(dir string) (*spec, error) {
	b, err := os.ReadFile(filepath.Join(dir, "cluster.json"))
	if err != nil {
		return nil, err
	}
	s := new(spec)
	if err := json.Unmarshal(b, s); err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, "cluster.json"), err)
	}
	return s, nil
}

// process is a node's first process, told apart from a later one of the same
// number by the time that it started.
type process struct {
	pid   int
	start string
}

func (s *spec) process(i int) (process, bool) {
	b, err := os.ReadFile(s.processFile(i))
	if err != nil {
		return process{}, false
	}
	var p process
	if _, err := fmt.Sscan(string(b), &p.pid, &p.start); err != nil {
		return process{}, false
	}
	return p, p.alive()
}

func (p process) alive() bool {
	start, state := stat(p.pid)
	return start == p.start && start != "" && state != "Z"
}

// stat returns the start time and state of a process; "" if there is none.
func stat(pid int) (start, state string) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", ""
	}
	// The second field, the program's name, is in parentheses and may hold anything.
	_, rest, _ := strings.Cut(string(b[strings.LastIndexByte(string(b), ')'):]), " ")
	f := strings.Fields(rest)
	return f[19], f[0]
}
