package lab

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/heddle-mesh/heddle/internal/lab/network"
	"github.com/heddle-mesh/heddle/internal/lab/process"
	"github.com/heddle-mesh/heddle/internal/redirect"
)

// kubelet is what all pods share.
type kubelet struct {
	procs *process.Table
	node  *network.Node
	// podsDir holds a directory for each pod; scratch is an empty one.
	podsDir, scratch string
	binDir           string
	env              []string // what every container has: PATH, HOME
	domain           string   // "cluster.local"
	dns              netip.Addr
	// proxyUser is who proxies run as, nil for the program's user.
	proxyUser *syscall.Credential
	root      bool
	identity  *identities
	// find returns the objects as they are now.
	find func() finder
	// changed is called when a pod's status may have changed; it never blocks.
	changed func()
	// complain prints a sentence for whoever watches.
	complain func(string)
}

// wantsOtherUser reports whether a container asks for a user that it can not have.
func (k *kubelet) wantsOtherUser(pod *corev1.Pod, c *container) bool {
	for _, uid := range []*int64{podUser(pod), containerUser(c.spec)} {
		if uid != nil && *uid != 0 && !k.root {
			return true
		}
	}
	return false
}

func podUser(pod *corev1.Pod) *int64 {
	if s := pod.Spec.SecurityContext; s != nil {
		return s.RunAsUser
	}
	return nil
}

func containerUser(c *corev1.Container) *int64 {
	if s := c.SecurityContext; s != nil {
		return s.RunAsUser
	}
	return nil
}

// user returns whom a container runs as: nil for who started the mesh.
func (k *kubelet) user(pod *corev1.Pod, c *container) *syscall.Credential {
	if c.proxy {
		return k.proxyUser
	}
	var uid, gid *int64
	if s := pod.Spec.SecurityContext; s != nil {
		uid, gid = s.RunAsUser, s.RunAsGroup
	}
	if s := c.spec.SecurityContext; s != nil {
		if s.RunAsUser != nil {
			uid = s.RunAsUser
		}
		if s.RunAsGroup != nil {
			gid = s.RunAsGroup
		}
	}
	if uid == nil || !k.root {
		return nil // without root no other user exists in the namespace
	}
	cred := &syscall.Credential{Uid: uint32(*uid)}
	if gid != nil {
		cred.Gid = uint32(*gid)
	}
	return cred
}

// pod runs one pod.
type pod struct {
	kubelet     *kubelet
	object      *corev1.Pod // metadata and spec; never changed
	manifestDir string      // of the file it comes from
	deployment  string      // "" for a pod written as such
	hash        string      // of the template
	dir         string
	containers  []*container
	inits       []*container
	holdApp     bool

	volumeMu sync.Mutex // held while volumes are written

	stopOnce sync.Once
	stopped  chan struct{} // closed by stop
	grace    time.Duration // set before stopped is closed
	all      bool          // likewise: the whole mesh ends
	done     chan struct{} // closed when nothing is left

	mu sync.Mutex
	// mu guards the following.
	net        *network.Pod
	startTime  time.Time
	readySince time.Time
	leaving    *time.Time
	trouble    string // with the pod's own set-up
	finished   bool   // all containers ended for good
}

func newPod(k *kubelet, object *corev1.Pod, manifestDir string) *pod {
	p := &pod{
		kubelet: k, object: object, manifestDir: manifestDir,
		dir:     filepath.Join(k.podsDir, object.Namespace+"_"+object.Name),
		stopped: make(chan struct{}), done: make(chan struct{}),
		startTime: time.Now(),
	}
	for i := range object.Spec.InitContainers {
		p.inits = append(p.inits, &container{pod: p, spec: &object.Spec.InitContainers[i], waiting: "PodInitializing"})
	}
	for i := range object.Spec.Containers {
		spec := &object.Spec.Containers[i]
		p.containers = append(p.containers, &container{pod: p, spec: spec, proxy: p.hasProxy() && spec.Name == proxyContainer, waiting: "ContainerCreating"})
	}
	p.holdApp = holdsApplication(object)
	return p
}

func (p *pod) key() string { return p.object.Namespace + "/" + p.object.Name }

// hasProxy tells a pod that the lab gave a proxy.
func (p *pod) hasProxy() bool { return p.object.Annotations[statusAnnotation] != "" }

func (p *pod) gateway() bool {
	return isGateway(&corev1.PodTemplateSpec{ObjectMeta: p.object.ObjectMeta})
}

func (p *pod) volumeDir() string { return filepath.Join(p.dir, "volumes") }

// makeVolumes writes the pod's volumes, or brings them up to date.
func (p *pod) makeVolumes(find finder) error {
	p.volumeMu.Lock()
	defer p.volumeMu.Unlock()
	return volumes(p.current(), p.volumeDir(), find)
}

func (p *pod) network() *network.Pod {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.net
}

// stop asks the pod to end; its programs get the time it asks for to finish.
func (p *pod) stop() { p.end(p.gracePeriod(), false) }

// shutdownGrace is what programs get when the whole mesh ends.
const shutdownGrace = time.Second

// shutdown asks the pod to end with the whole mesh: no traffic has to be led
// elsewhere first.
func (p *pod) shutdown() { p.end(min(p.gracePeriod(), shutdownGrace), true) }

func (p *pod) end(grace time.Duration, all bool) {
	p.stopOnce.Do(func() {
		now := time.Now()
		p.mu.Lock()
		p.leaving, p.grace, p.all = &now, grace, all
		p.mu.Unlock()
		close(p.stopped)
		p.kubelet.changed()
	})
}

// gracePeriod is what the pod asks for.
func (p *pod) gracePeriod() time.Duration {
	if s := p.object.Spec.TerminationGracePeriodSeconds; s != nil {
		return time.Duration(*s) * time.Second
	}
	return 30 * time.Second
}

const (
	// leaveNotice passes between the news that a pod leaves and the end of its
	// programs, so that callers stop choosing it first.
	leaveNotice = 200 * time.Millisecond
	// proxyGrace is how long a proxy may finish what it carries after the
	// programs have ended.
	proxyGrace = 5 * time.Second
)

// run starts the pod and returns when it was stopped and nothing of it is left.
// The end of ctx leaves no time to anything.
func (p *pod) run(ctx context.Context) {
	defer close(p.done)
	defer p.clean()
	if !p.setUp(ctx) {
		return
	}
	hard, kill := context.WithCancel(ctx)
	defer kill()
	apps, endApps := context.WithCancel(hard)
	defer endApps()
	proxies, endProxies := context.WithCancel(hard)
	defer endProxies()

	var appsGone, proxiesGone sync.WaitGroup
	start := func(c *container) {
		soft, gone := apps, &appsGone
		if c.proxy {
			soft, gone = proxies, &proxiesGone
		}
		gone.Go(func() { c.run(soft, hard, p.restartPolicy()) })
	}
	appsGone.Go(func() {
		for _, c := range p.inits {
			if r := c.spec.RestartPolicy; r != nil && *r == corev1.ContainerRestartPolicyAlways {
				start(c) // a native sidecar: it goes on while the others run
				continue
			}
			policy := corev1.RestartPolicyOnFailure
			if p.restartPolicy() == corev1.RestartPolicyNever {
				policy = corev1.RestartPolicyNever
			}
			if !c.run(apps, hard, policy) {
				return
			}
		}
		for _, c := range p.containers {
			start(c)
		}
	})
	finished := make(chan struct{})
	go func() { // ends with the pod's containers, which the code below waits for
		appsGone.Wait()
		close(finished)
	}()

	select {
	case <-p.stopped:
	case <-finished:
		// A pod without programs of its own, a gateway, is never done.
		p.mu.Lock()
		p.finished = slices.ContainsFunc(p.containers, func(c *container) bool { return !c.proxy })
		p.mu.Unlock()
		p.kubelet.changed()
		<-p.stopped
	}
	if p.all {
		time.AfterFunc(p.grace, kill)
		endProxies()
	} else {
		sleep(hard, leaveNotice)
	}
	endApps()
	patience := time.AfterFunc(p.grace, kill)
	<-finished
	patience.Stop()
	endProxies()
	patience = time.AfterFunc(proxyGrace, kill)
	proxiesGone.Wait()
	patience.Stop()
}

func (p *pod) restartPolicy() corev1.RestartPolicy {
	if p.object.Spec.RestartPolicy == "" {
		return corev1.RestartPolicyAlways
	}
	return p.object.Spec.RestartPolicy
}

// setUp makes the pod's directory, network and redirection, trying again until
// it works; false means that the pod was stopped first.
func (p *pod) setUp(ctx context.Context) bool {
	var pause backoff
	for {
		err := p.trySetUp()
		if err == nil {
			return true
		}
		p.mu.Lock()
		p.trouble = err.Error()
		p.mu.Unlock()
		p.kubelet.complain(fmt.Sprintf("pod %s: %v", p.key(), err))
		p.kubelet.changed()
		select {
		case <-p.stopped:
			return false
		case <-ctx.Done():
			return false
		case <-time.After(pause.next(0)):
		}
	}
}

func (p *pod) trySetUp() (err error) {
	if err := os.MkdirAll(filepath.Join(p.dir, "etc"), 0o755); err != nil {
		return err
	}
	for _, c := range append(p.inits, p.containers...) {
		if c.log == nil {
			if err := c.openLogIn(filepath.Join(p.dir, "logs")); err != nil {
				return err
			}
		}
	}
	n, err := p.kubelet.node.AddPod()
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			p.kubelet.node.RemovePod(n)
		}
	}()
	if err := p.writeNames(n); err != nil {
		return err
	}
	if p.hasProxy() {
		if !p.gateway() {
			if err := p.redirect(n); err != nil {
				return err
			}
		}
		if err := p.kubelet.identity.add(p); err != nil {
			return err
		}
	}
	p.mu.Lock()
	p.net, p.trouble = n, ""
	p.mu.Unlock()
	p.kubelet.changed()
	return nil
}

// redirect sends the pod's traffic to its sidecar, before any program runs.
func (p *pod) redirect(n *network.Pod) error {
	cfg, err := redirect.FromAnnotations(p.object.Annotations)
	if err != nil {
		return err
	}
	cfg.IPv6 = len(n.IPs) > 1
	cfg.DNS, cfg.DNSServers = capturesDNS(p.object), []netip.Addr{p.kubelet.dns}
	if err := n.Namespace.Do(func() error { return redirect.Apply(redirect.Rules(cfg)) }); err != nil {
		return fmt.Errorf("redirect traffic: %w", err)
	}
	return nil
}

// writeNames writes the pod's resolv.conf and hosts.
func (p *pod) writeNames(n *network.Pod) error {
	domain := p.kubelet.domain
	resolv := fmt.Sprintf("nameserver %s\nsearch %s.svc.%s svc.%s %s\noptions ndots:5\n",
		p.kubelet.dns, p.object.Namespace, domain, domain, domain)
	var hosts strings.Builder
	hosts.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n")
	for _, ip := range n.IPs {
		names := hostname(p.object)
		if sub := p.object.Spec.Subdomain; sub != "" {
			names = fmt.Sprintf("%s.%s.%s.svc.%s\t%s", names, sub, p.object.Namespace, domain, names)
		}
		fmt.Fprintf(&hosts, "%s\t%s\n", ip, names)
	}
	for _, a := range p.object.Spec.HostAliases {
		fmt.Fprintf(&hosts, "%s\t%s\n", a.IP, strings.Join(a.Hostnames, "\t"))
	}
	if err := os.WriteFile(filepath.Join(p.dir, "etc/resolv.conf"), []byte(resolv), 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(p.dir, "etc/hosts"), []byte(hosts.String()), 0o644)
}

// clean removes what run made, but for the logs.
func (p *pod) clean() {
	p.mu.Lock()
	n := p.net
	p.mu.Unlock()
	if n != nil {
		// Programs may have left their group; nothing of a pod outlives it.
		process.KillNamespace(n.Namespace.Inode())
		if err := p.kubelet.node.RemovePod(n); err != nil {
			p.kubelet.complain(fmt.Sprintf("pod %s: %v", p.key(), err))
		}
	}
	p.kubelet.identity.remove(p)
	for _, c := range append(p.inits, p.containers...) {
		if c.log != nil {
			c.log.close()
		}
	}
	p.kubelet.changed()
}

// waitFor returns when the container may start: a proxy once the mesh's roots
// are there, and the programs of a pod that asks for it once its proxy is ready.
func (p *pod) waitFor(ctx context.Context, c *container) error {
	if c.proxy {
		return p.kubelet.identity.wait(ctx, p)
	}
	if !p.holdApp {
		return nil
	}
	for _, other := range p.containers {
		for other.proxy && !other.isReady() {
			if !sleep(ctx, 10*time.Millisecond) {
				return ctx.Err()
			}
		}
	}
	return nil
}

// container returns a container by name.
func (p *pod) container(name string) *container {
	for _, c := range append(p.containers, p.inits...) {
		if c.spec.Name == name {
			return c
		}
	}
	return nil
}

// mainContainer is the one that logs and exec mean if none is named.
func (p *pod) mainContainer() *container {
	if c := p.container(p.object.Annotations["kubectl.kubernetes.io/default-container"]); c != nil {
		return c
	}
	for _, c := range p.containers {
		if !c.proxy {
			return c
		}
	}
	if len(p.containers) > 0 {
		return p.containers[0]
	}
	return nil
}

// isReady reports whether all containers are ready and the pod stays.
func (p *pod) isReady() bool {
	p.mu.Lock()
	leaving, n := p.leaving != nil, p.net
	p.mu.Unlock()
	if leaving || n == nil {
		return false
	}
	for _, c := range p.containers {
		if !c.isReady() {
			return false
		}
	}
	return true
}

// problem says why the pod is not ready, or "".
func (p *pod) problem() string {
	p.mu.Lock()
	trouble := p.trouble
	p.mu.Unlock()
	if trouble != "" {
		return trouble
	}
	for _, c := range append(p.inits, p.containers...) {
		if problem := c.problem(); problem != "" {
			return c.spec.Name + ": " + problem
		}
	}
	return ""
}

// current returns the pod as the API shows it: with its status.
func (p *pod) current() *corev1.Pod {
	out := *p.object
	ready := p.isReady()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.leaving != nil {
		t := metav1.NewTime(*p.leaving)
		seconds := int64(p.grace / time.Second)
		out.DeletionTimestamp, out.DeletionGracePeriodSeconds = &t, &seconds
	}
	start := metav1.NewTime(p.startTime)
	s := &out.Status
	*s = corev1.PodStatus{Phase: corev1.PodPending, StartTime: &start, QOSClass: corev1.PodQOSBestEffort}
	s.HostIP = network.NodeIP.String()
	s.HostIPs = []corev1.HostIP{{IP: s.HostIP}}
	if p.net != nil {
		s.PodIP = p.net.IPs[0].String()
		for _, ip := range p.net.IPs {
			s.PodIPs = append(s.PodIPs, corev1.PodIP{IP: ip.String()})
		}
	}
	for _, c := range p.inits {
		s.InitContainerStatuses = append(s.InitContainerStatuses, c.status())
	}
	running, bad := false, false
	for _, c := range p.containers {
		cs := c.status()
		running = running || cs.State.Running != nil || cs.RestartCount > 0
		bad = bad || cs.State.Terminated != nil && cs.State.Terminated.ExitCode != 0
		s.ContainerStatuses = append(s.ContainerStatuses, cs)
	}
	switch {
	case p.finished && bad:
		s.Phase = corev1.PodFailed
	case p.finished:
		s.Phase = corev1.PodSucceeded
	case running:
		s.Phase = corev1.PodRunning
	}
	if !ready {
		p.readySince = time.Time{}
	} else if p.readySince.IsZero() {
		p.readySince = time.Now()
	}
	condition := func(t corev1.PodConditionType, ok bool, since time.Time) corev1.PodCondition {
		c := corev1.PodCondition{Type: t, Status: corev1.ConditionFalse}
		if ok {
			c.Status, c.LastTransitionTime = corev1.ConditionTrue, metav1.NewTime(since)
		}
		return c
	}
	s.Conditions = []corev1.PodCondition{
		condition(corev1.PodScheduled, true, p.startTime),
		condition(corev1.ContainersReady, ready, p.readySince),
		condition(corev1.PodReady, ready, p.readySince),
	}
	return &out
}
