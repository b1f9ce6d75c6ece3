//go:build linux && heddle_root

package network

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/heddle-mesh/heddle/internal/lab/isolate"
)

// insideArg makes the test binary run the part that needs namespaces.
const insideArg = "inside-namespaces"

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == insideArg {
		if err := inside(); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

// Pods reach each other, a Service shared by both, and themselves through it,
// over IPv4 and IPv6, for root and for a user without privileges.
func TestPodsReachEachOtherAndServices(t *testing.T) {
	for _, uid := range []int{0, 65534} {
		t.Run(fmt.Sprintf("uid %d", uid), func(t *testing.T) {
			t.Parallel()
			cmd := isolate.Command(insideArg)
			if uid != 0 {
				// The test itself runs as root and may map any user.
				cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
				cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: uid, Size: 1}}
				cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: uid, Size: 1}}
				cmd.SysProcAttr.Credential = &syscall.Credential{NoSetGroups: true}
			}
			cmd.SysProcAttr.Pdeathsig = 0
			var out bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, &out
			if err := cmd.Run(); err != nil {
				t.Fatalf("%v\n%s", err, out.String())
			}
		})
	}
}

func inside() error {
	runtime.LockOSThread() // isolate.Inside asks for it
	if err := isolate.Inside(); err != nil {
		return err
	}
	node, err := Setup()
	if err != nil {
		return err
	}
	var pods []*Pod
	for i := range 3 {
		p, err := node.AddPod()
		if err != nil {
			return err
		}
		pods = append(pods, p)
		for _, ip := range p.IPs {
			if err := serve(p, netip.AddrPortFrom(ip, 9080), fmt.Sprintf("pod%d", i)); err != nil {
				return err
			}
		}
	}
	vips := []netip.Addr{netip.MustParseAddr("10.96.0.7")}
	if node.ipv6 {
		vips = append(vips, netip.MustParseAddr("fd00:10:96::7"))
	}
	for f, vip := range vips {
		ports := []ServicePort{{Protocol: TCP, Port: 80, Endpoints: []netip.AddrPort{
			netip.AddrPortFrom(pods[0].IPs[f], 9080), netip.AddrPortFrom(pods[1].IPs[f], 9080),
		}}}
		if err := node.SetService(vip, ports); err != nil {
			return err
		}
		if got, err := ask(pods[0], netip.AddrPortFrom(pods[1].IPs[f], 9080)); err != nil || got != "pod1 to "+pods[0].IPs[f].String() {
			return fmt.Errorf("pod to pod: %q, %v", got, err)
		}
		// From a pod that is an endpoint itself: half of the tries come back.
		seen := make(map[string]int)
		for range 40 {
			got, err := ask(pods[0], netip.AddrPortFrom(vip, 80))
			if err != nil {
				return fmt.Errorf("service: %w", err)
			}
			seen[strings.Fields(got)[0]]++
		}
		if seen["pod0"] == 0 || seen["pod1"] == 0 || len(seen) != 2 {
			return fmt.Errorf("service %s answered by %v, want both of its endpoints", vip, seen)
		}
		// Endpoints change; then nothing is left.
		ports = []ServicePort{{Protocol: TCP, Port: 80, Endpoints: []netip.AddrPort{netip.AddrPortFrom(pods[2].IPs[f], 9080)}}}
		if err := node.SetService(vip, ports); err != nil {
			return err
		}
		if got, err := ask(pods[0], netip.AddrPortFrom(vip, 80)); err != nil || !strings.HasPrefix(got, "pod2 ") {
			return fmt.Errorf("service after change: %q, %v", got, err)
		}
		if err := node.SetService(vip, nil); err != nil {
			return err
		}
		// The kernel may miss the first refusal while connect(2) still holds the
		// socket, but not that of the second SYN, a second later.
		start := time.Now()
		if got, err := ask(pods[0], netip.AddrPortFrom(vip, 80)); err == nil || time.Since(start) > 3*time.Second {
			return fmt.Errorf("service without endpoints: %q, %v after %s, want a quick refusal", got, err, time.Since(start))
		}
	}
	for _, p := range pods {
		if err := node.RemovePod(p); err != nil {
			return err
		}
	}
	links, err := net.Interfaces()
	if err != nil || len(links) != 1 {
		return fmt.Errorf("interfaces after removing all pods: %v, %v", links, err)
	}
	return nil
}

// serve answers connections with the server's name and the client's address.
func serve(p *Pod, at netip.AddrPort, name string) error {
	return p.Namespace.Do(func() error {
		l, err := net.Listen("tcp", at.String())
		if err != nil {
			return err
		}
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				fmt.Fprintf(c, "%s to %s", name, c.RemoteAddr().(*net.TCPAddr).IP)
				c.Close()
			}
		}()
		return nil
	})
}

func ask(p *Pod, to netip.AddrPort) (string, error) {
	var c net.Conn
	err := p.Namespace.Do(func() (err error) {
		c, err = net.DialTimeout("tcp", to.String(), 5*time.Second)
		return err
	})
	if err != nil {
		return "", err
	}
	defer c.Close()
	b, err := io.ReadAll(c)
	return string(b), err
}
