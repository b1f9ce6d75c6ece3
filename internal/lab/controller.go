package lab

import (
	"context"
	"crypto/rand"
	"fmt"
	"maps"
	"net/netip"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/heddle-mesh/heddle/internal/config"
	"github.com/heddle-mesh/heddle/internal/config/analyze"
	"github.com/heddle-mesh/heddle/internal/host"
	"github.com/heddle-mesh/heddle/internal/lab/network"
	"github.com/heddle-mesh/heddle/internal/model"
	"github.com/heddle-mesh/heddle/internal/plan"
)

// controller turns objects into pods: it is the local mesh's API server,
// scheduler, Deployment controller and endpoint controller. One goroutine, run,
// owns it; whatever happens elsewhere only wakes it up, and it then compares
// what is with what should be.
type controller struct {
	kubelet *kubelet
	builtin []*config.Object
	dir     *objectDir
	objects *objectBox
	notify  func(string)         // for whoever watches
	faults  func([]config.Fault) // likewise

	// The following act on the world outside.
	setService func(netip.Addr, []network.ServicePort) error
	setNames   func(*plan.NameTable)
	publish    func(map[published][]netip.AddrPort)

	batches chan config.Batch
	wake    chan struct{} // of size 1
	synced  chan struct{} // closed after the first batch was acted on

	// pods is read by others, under mu, and changed by run alone.
	mu   sync.Mutex
	pods map[string]*pod

	// The following belong to run.
	user    map[config.Key]*config.Object
	fed     map[config.Key]*config.Object // what the builder was given last
	builder *model.Builder
	vips    map[netip.Addr]bool
	found   map[string]bool // by analyze
	serving bool            // the control plane has been ready once
	running sync.WaitGroup
	began   time.Time
}

func newController() *controller {
	return &controller{
		objects: &objectBox{},
		batches: make(chan config.Batch),
		wake:    make(chan struct{}, 1),
		synced:  make(chan struct{}),
		pods:    make(map[string]*pod),
		user:    make(map[config.Key]*config.Object),
		fed:     make(map[config.Key]*config.Object),
		builder: model.NewBuilder(model.Options{ClusterDomain: clusterDomain}),
		vips:    make(map[netip.Addr]bool),
	}
}

// poke wakes the controller up; it never blocks.
func (c *controller) poke() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// apply hands a batch from the source over, in order.
func (c *controller) apply(ctx context.Context, b config.Batch) {
	select {
	case c.batches <- b:
	case <-ctx.Done():
	}
}

// run controls until soft ends, then ends all pods; the end of hard leaves them
// no time. It returns when no pod is left.
func (c *controller) run(soft, hard context.Context) error {
	c.began = time.Now()
	hard, kill := context.WithCancel(hard)
	defer kill()
	for {
		select {
		case <-soft.Done():
			for _, p := range c.list() {
				p.shutdown()
			}
			// Pods that were leaving already may have more time; not now.
			patience := time.AfterFunc(2*shutdownGrace, kill)
			defer patience.Stop()
			c.running.Wait()
			return nil
		case b := <-c.batches:
			changes := c.take(b)
			c.reconcile(hard)
			c.analyze()
			select {
			case <-c.synced:
				if changes != "" {
					c.notify("applied " + changes)
				}
			default:
				close(c.synced)
			}
		case <-c.wake:
			select {
			case <-c.synced:
				c.reconcile(hard)
			default: // nothing is known yet
			}
		}
	}
}

// analyze reports what does not fit together among the objects, each finding
// when it first shows up.
func (c *controller) analyze() {
	var fresh []config.Fault
	found := make(map[string]bool)
	for _, f := range analyze.Check(slices.Collect(maps.Values(c.intended()))) {
		text := f.Error()
		found[text] = true
		if !c.found[text] {
			fresh = append(fresh, f)
		}
	}
	c.found = found
	if len(fresh) > 0 {
		c.faults(fresh)
	}
}

// take stores a batch and says in a few words what it changes.
func (c *controller) take(b config.Batch) string {
	var added, changed, removed []string
	for _, ch := range b.Changes {
		switch old := c.user[ch.Key]; {
		case ch.Object == nil:
			if old != nil {
				removed = append(removed, ch.Key.String())
			}
			delete(c.user, ch.Key)
		default:
			if old == nil {
				added = append(added, ch.Key.String())
			} else if !sameContent(old, ch.Object) {
				changed = append(changed, ch.Key.String())
			}
			c.user[ch.Key] = ch.Object
		}
	}
	var parts []string
	for _, p := range []struct {
		verb  string
		names []string
	}{{"added", added}, {"changed", changed}, {"removed", removed}} {
		switch n := len(p.names); {
		case n > 3:
			parts = append(parts, fmt.Sprintf("%d %s", n, p.verb))
		case n > 0:
			slices.Sort(p.names)
			parts = append(parts, strings.Join(p.names, ", ")+" "+p.verb)
		}
	}
	return strings.Join(parts, "; ")
}

// sameContent tells an object that only moved within its file from one that
// changed.
func sameContent(a, b *config.Object) bool {
	if !maps.Equal(a.Labels, b.Labels) || !maps.Equal(a.Annotations, b.Annotations) {
		return false
	}
	x, isProto := a.Spec.(proto.Message)
	y, bothProto := b.Spec.(proto.Message)
	if isProto && bothProto {
		return proto.Equal(x, y)
	}
	return reflect.DeepEqual(a.Spec, b.Spec)
}

// list returns the pods by name.
func (c *controller) list() []*pod {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.SortedFunc(maps.Values(c.pods), func(a, b *pod) int { return strings.Compare(a.key(), b.key()) })
}

// reconcile compares and acts. It is called after each change, however small.
func (c *controller) reconcile(hard context.Context) {
	c.forget()
	intended := c.intended()
	c.look(intended)
	c.steer(hard, intended)
	c.look(intended) // with the pods just begun
}

// intended returns the objects that a user or the mesh itself wants.
func (c *controller) intended() map[config.Key]*config.Object {
	all := maps.Clone(c.user)
	for _, o := range c.builtin {
		if _, theirs := all[o.Key]; !theirs {
			all[o.Key] = o
		}
	}
	// A namespace exists when something is in it.
	for k := range c.user {
		ns := config.Key{Kind: config.Namespace, Name: k.Namespace}
		if k.Namespace != "" && all[ns] == nil {
			all[ns] = object(config.Namespace, "v1", &corev1.Namespace{
				TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"},
				ObjectMeta: metav1.ObjectMeta{Name: k.Namespace},
			}, c.began)
		}
	}
	return all
}

// forget drops pods of which nothing is left.
func (c *controller) forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for key, p := range c.pods {
		select {
		case <-p.done:
			delete(c.pods, key)
		default:
		}
	}
}

// steer starts and stops pods.
func (c *controller) steer(hard context.Context, objects map[config.Key]*config.Object) {
	byDeployment := make(map[string][]replica)
	wanted := make(map[string]bool) // pods that are nobody's replica
	for _, p := range c.list() {
		if p.deployment != "" {
			p.mu.Lock()
			leaving := p.leaving != nil
			p.mu.Unlock()
			key := p.object.Namespace + "/" + p.deployment
			byDeployment[key] = append(byDeployment[key], replica{
				name: p.object.Name, hash: p.hash, ready: p.isReady(), terminating: leaving,
			})
		}
	}
	deployments := make(map[string]bool)
	// In a fixed order, so that addresses and names are the same each time.
	for _, key := range slices.SortedFunc(maps.Keys(objects), compareKeys) {
		o := objects[key]
		switch spec := o.Spec.(type) {
		case *appsv1.Deployment:
			name := o.Namespace + "/" + o.Name
			deployments[name] = true
			hash := templateHash(&spec.Spec.Template)
			start, stop := rollout(spec, hash, byDeployment[name])
			for _, s := range stop {
				c.stopPod(o.Namespace + "/" + s)
			}
			for _, s := range start {
				c.startPod(hard, objects, o, &spec.Spec.Template, s, o.Name, hash)
			}
		case *corev1.Pod:
			name := o.Namespace + "/" + o.Name
			wanted[name] = true
			template := &corev1.PodTemplateSpec{ObjectMeta: spec.ObjectMeta, Spec: spec.Spec}
			hash := templateHash(template)
			c.mu.Lock()
			p := c.pods[name]
			c.mu.Unlock()
			switch {
			case p == nil:
				c.startPod(hard, objects, o, template, o.Name, "", hash)
			case p.hash != hash || p.deployment != "":
				c.stopPod(name) // its end brings us here again
			}
		}
	}
	for _, p := range c.list() {
		if p.deployment != "" && !deployments[p.object.Namespace+"/"+p.deployment] || p.deployment == "" && !wanted[p.key()] {
			p.stop()
		}
	}
}

func compareKeys(a, b config.Key) int {
	if c := strings.Compare(a.Namespace, b.Namespace); c != 0 {
		// The control plane first: everybody waits for it.
		if a.Namespace == systemNamespace {
			return -1
		}
		if b.Namespace == systemNamespace {
			return 1
		}
		return c
	}
	if c := strings.Compare(a.Kind.Name, b.Kind.Name); c != 0 {
		return c
	}
	return strings.Compare(a.Name, b.Name)
}

func (c *controller) stopPod(key string) {
	c.mu.Lock()
	p := c.pods[key]
	c.mu.Unlock()
	if p != nil {
		p.stop()
	}
}

// startPod makes a pod of a template and lets it run.
func (c *controller) startPod(hard context.Context, objects map[config.Key]*config.Object, from *config.Object, template *corev1.PodTemplateSpec, name, deployment, hash string) {
	object, err := makePod(objects, from.Namespace, template, name, deployment)
	if err != nil {
		c.kubelet.complain(fmt.Sprintf("pod %s/%s: %v", from.Namespace, name, err))
	}
	dir := filepath.Dir(from.Pos.File)
	if from.Pos.File == "" {
		dir = "/"
	}
	p := newPod(c.kubelet, object, dir)
	p.deployment, p.hash = deployment, hash
	c.mu.Lock()
	if _, taken := c.pods[p.key()]; taken {
		c.mu.Unlock()
		return // two owners want the name; the first has it
	}
	c.pods[p.key()] = p
	c.mu.Unlock()
	c.running.Go(func() { p.run(hard) })
}

// makePod returns the pod that a template stands for, with its proxy if it gets
// one. An error says which settings of the proxy were left out.
func makePod(objects map[config.Key]*config.Object, namespace string, template *corev1.PodTemplateSpec, name, deployment string) (*corev1.Pod, error) {
	pod := &corev1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: *template.ObjectMeta.DeepCopy(),
		Spec:       *template.Spec.DeepCopy(),
	}
	pod.Name, pod.Namespace = name, namespace
	pod.UID = types.UID(newUID())
	pod.CreationTimestamp = metav1.Now()
	pod.Spec.NodeName = nodeName
	if pod.Spec.ServiceAccountName == "" {
		pod.Spec.ServiceAccountName = "default"
	}
	workload := name
	if deployment != "" {
		workload = deployment
		yes := true
		pod.GenerateName = deployment + "-"
		pod.OwnerReferences = []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "Deployment", Name: deployment, Controller: &yes}}
	}
	var namespaceLabels map[string]string
	if ns := objects[config.Key{Kind: config.Namespace, Name: namespace}]; ns != nil {
		namespaceLabels = ns.Labels
	}
	if !injected(namespace, namespaceLabels, template) {
		return pod, nil
	}
	mesh, _ := (&snapshot{objects: objects}).configMap(systemNamespace, meshConfigName)
	cfg, err := proxyConfig(mesh, template.Annotations[configAnnotation])
	inject(pod, workload, isGateway(template), cfg)
	return pod, err
}

// newUID returns a random UUID. Source: RFC 9562 section 5.4.
func newUID() string {
	var b [16]byte
	rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// look brings the view of the world up to date, and everything that follows
// from it: the files for the control plane, the rules of cluster IPs, the names
// in DNS and the published ports.
func (c *controller) look(intended map[config.Key]*config.Object) {
	all := maps.Clone(intended)
	maps.DeleteFunc(all, func(k config.Key, _ *config.Object) bool {
		return k.Kind == config.Pod // the pod that runs stands for it
	})
	essences := make(map[config.Key]*config.Object)
	for _, p := range c.list() {
		pod := p.current()
		o := object(config.Pod, "v1", pod, pod.CreationTimestamp.Time)
		all[o.Key] = o
		essences[o.Key] = object(config.Pod, "v1", essence(pod), o.Created)
	}
	var batch config.Batch
	for key, o := range all {
		if c.fed[key] != o {
			batch.Changes = append(batch.Changes, config.Change{Key: key, Object: o})
		}
	}
	for key := range c.fed {
		if all[key] == nil {
			batch.Changes = append(batch.Changes, config.Change{Key: key})
		}
	}
	c.fed = all
	w, _ := c.builder.Apply(batch)
	objects := withAddresses(all, w)
	c.objects.p.Store(&snapshot{objects: objects})

	// Deployments are the lab's own matter.
	told := make([]*config.Object, 0, len(objects))
	for key, o := range objects {
		if e := essences[key]; e != nil {
			o = e
		}
		if key.Kind != config.Deployment && o.Spec != nil {
			told = append(told, o)
		}
	}
	if err := c.dir.sync(told); err != nil {
		c.kubelet.complain(fmt.Sprintf("objects for the control plane: %v", err))
	}
	rules := clusterIPs(w, c.objects.load())
	for vip := range c.vips {
		if _, still := rules[vip]; !still {
			rules[vip] = nil
		}
	}
	for vip, ports := range rules {
		if err := c.setService(vip, ports); err != nil {
			c.kubelet.complain(err.Error())
		}
		c.vips[vip] = true
	}
	if !c.serving {
		if s := w.Service(host.Service(istiodName, systemNamespace, clusterDomain)); s != nil && len(endpointsOf(w, s, istiodPort)) > 0 {
			c.serving = true
			close(c.kubelet.identity.serving)
		}
	}
	c.setNames(names(w))
	c.publish(publishedPorts(w, c.objects.load()))
	c.refreshVolumes()
}

// withAddresses returns the objects with what an API server fills in at Services.
func withAddresses(all map[config.Key]*config.Object, w *model.World) map[config.Key]*config.Object {
	out := maps.Clone(all)
	for _, s := range w.Services() {
		key := config.Key{Kind: config.Service, Namespace: s.Namespace, Name: s.Name}
		o := all[key]
		if !s.Kubernetes || o == nil {
			continue
		}
		svc, ok := o.Spec.(*corev1.Service)
		if !ok {
			continue
		}
		svc = svc.DeepCopy()
		if svc.Spec.Type == "" {
			svc.Spec.Type = corev1.ServiceTypeClusterIP
		}
		for i := range svc.Spec.Ports {
			p := &svc.Spec.Ports[i]
			if p.Protocol == "" {
				p.Protocol = corev1.ProtocolTCP
			}
			if p.TargetPort == (intstr.IntOrString{}) {
				p.TargetPort = intstr.FromInt32(p.Port)
			}
		}
		if svc.Spec.ClusterIP == "" && len(s.Addresses) > 0 {
			for _, a := range s.Addresses {
				svc.Spec.ClusterIPs = append(svc.Spec.ClusterIPs, a.String())
			}
			svc.Spec.ClusterIP = svc.Spec.ClusterIPs[0]
		}
		next := *o
		next.Spec = svc
		out[key] = &next
	}
	return out
}

// refreshVolumes lets running pods see changed ConfigMaps and Secrets.
func (c *controller) refreshVolumes() {
	find := c.kubelet.find()
	for _, p := range c.list() {
		if p.network() == nil || len(p.object.Spec.Volumes) == 0 {
			continue
		}
		// What is missing now is reported when a container needs it.
		_ = p.makeVolumes(find)
	}
}

// essence is what the control plane needs to know of a pod.
func essence(p *corev1.Pod) *corev1.Pod {
	out := &corev1.Pod{TypeMeta: p.TypeMeta, ObjectMeta: p.ObjectMeta}
	out.Spec = corev1.PodSpec{
		ServiceAccountName: p.Spec.ServiceAccountName, NodeName: p.Spec.NodeName,
		Hostname: p.Spec.Hostname, Subdomain: p.Spec.Subdomain,
	}
	for _, c := range p.Spec.Containers {
		out.Spec.Containers = append(out.Spec.Containers, corev1.Container{Name: c.Name, Ports: c.Ports})
	}
	out.Status = corev1.PodStatus{
		Phase: p.Status.Phase, HostIP: p.Status.HostIP, PodIP: p.Status.PodIP, PodIPs: p.Status.PodIPs,
		Conditions: p.Status.Conditions, StartTime: p.Status.StartTime,
	}
	return out
}

// allReady returns the pods that are not ready, and whether there are any pods
// at all. Pods whose programs ended well count as ready.
func (c *controller) unready() (out []*pod, total int) {
	for _, p := range c.list() {
		p.mu.Lock()
		done := p.finished || p.leaving != nil
		p.mu.Unlock()
		total++
		if !done && !p.isReady() {
			out = append(out, p)
		}
	}
	return out, total
}
