package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/heddle-mesh/heddle/internal/lab/process"
)

// binMount is where every container finds the programs that came with heddle.
const binMount = "/run/heddle/bin"

// container supervises one program of a pod: it starts it, checks it, and
// starts it again when it ends.
type container struct {
	pod  *pod
	spec *corev1.Container
	log  *logFile
	// proxy is the pod's sidecar or gateway.
	proxy bool
	// identity is memory in which a proxy keeps its certificate and key over a
	// restart; nil until the first run. It has no name, and nobody else reads it.
	identity *os.File

	mu sync.Mutex
	// mu guards the following.
	proc     *process.Process // nil between two runs
	waiting  string           // why there is no process: Kubernetes' word
	message  string           // more about it
	finished bool             // ended for good
	ready    bool
	started  bool // by the startup probe
	restarts int
	last     *process.Exit
	lastRun  time.Time // when the run that ended last had begun
}

// update changes the state under the lock and tells the pod.
func (c *container) update(change func()) {
	c.mu.Lock()
	change()
	c.mu.Unlock()
	c.pod.kubelet.changed()
}

// isReady reports whether the container counts as ready.
func (c *container) isReady() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.proc != nil && c.ready
}

// run keeps the program running until soft ends, which asks it to finish, or
// hard, which kills it. It returns earlier if the restart policy wants no more
// runs; success says whether the last one ended well.
func (c *container) run(soft, hard context.Context, restart corev1.RestartPolicy) (success bool) {
	var pause backoff
	for {
		exit, ran, err := c.once(soft, hard)
		if soft.Err() != nil || hard.Err() != nil {
			return false
		}
		if err == nil {
			switch {
			case exit.Status() == 0 && restart != corev1.RestartPolicyAlways:
				c.update(func() { c.finished = true })
				return true
			case restart == corev1.RestartPolicyNever:
				c.update(func() { c.finished = true })
				return false
			}
		}
		delay := pause.next(ran)
		c.update(func() {
			switch {
			case err != nil:
				c.waiting, c.message = startProblem(err), err.Error()
			default:
				c.waiting, c.message = "CrashLoopBackOff", fmt.Sprintf("ended with %s, starts again in %s", exit, delay)
			}
		})
		if err != nil {
			c.log.note("%v", err)
			c.pod.kubelet.complain(fmt.Sprintf("pod %s, container %s: %v", c.pod.key(), c.spec.Name, err))
		} else {
			said := fmt.Sprintf("pod %s, container %s: ended with %s", c.pod.key(), c.spec.Name, exit)
			if last := c.log.lastLine(); last != "" {
				said += ", after the line: " + last
			}
			c.pod.kubelet.complain(said)
			c.log.note("%s ended with %s, starts again in %s", c.spec.Name, exit, delay)
		}
		if !sleep(soft, delay) {
			return false
		}
		if err == nil {
			c.update(func() { c.restarts++ })
		}
	}
}

// errConfig marks errors about what the container asks for, not about running it.
var errConfig = errors.New("container configuration")

func startProblem(err error) string {
	if errors.Is(err, errConfig) {
		return "CreateContainerConfigError"
	}
	return "RunContainerError"
}

// once runs the program one time.
func (c *container) once(soft, hard context.Context) (exit process.Exit, ran time.Duration, err error) {
	if err := c.pod.waitFor(soft, c); err != nil {
		return exit, 0, err
	}
	spec, err := c.processSpec(nil)
	if err != nil {
		return exit, 0, fmt.Errorf("%w: %w", errConfig, err)
	}
	spec.Stdout, spec.Stderr = c.log.w, c.log.w
	if c.proxy {
		if err := c.keepIdentity(&spec); err != nil {
			return exit, 0, err
		}
	}
	if c.restarts == 0 && c.last == nil && !c.proxy && c.pod.kubelet.wantsOtherUser(c.pod.object, c) {
		c.pod.kubelet.complain(fmt.Sprintf("%s: container %s runs as you, not as its runAsUser: without root there is no other user here", c.pod.key(), c.spec.Name))
	}
	proc, err := c.pod.kubelet.procs.Start(spec)
	if err != nil {
		return exit, 0, err
	}
	c.update(func() {
		c.proc, c.waiting, c.message = proc, "", ""
		c.ready = c.spec.ReadinessProbe == nil && c.spec.StartupProbe == nil
		c.started = c.spec.StartupProbe == nil
	})

	checks, endChecks := context.WithCancel(soft)
	var wg sync.WaitGroup
	wg.Go(func() { c.check(checks, proc) })
	select {
	case <-proc.Done():
	case <-hard.Done():
		proc.Signal(syscall.SIGKILL)
	case <-soft.Done():
		c.preStop(hard)
		proc.Signal(syscall.SIGTERM)
		select {
		case <-proc.Done():
		case <-hard.Done():
			proc.Signal(syscall.SIGKILL)
		}
	}
	<-proc.Done()
	endChecks()
	wg.Wait()
	exit = proc.Exit()
	c.update(func() {
		c.proc, c.ready, c.last, c.lastRun = nil, false, &exit, proc.Started
	})
	return exit, exit.At.Sub(proc.Started), nil
}

// keepIdentity hands the proxy the memory that it finds its identity in.
func (c *container) keepIdentity(spec *process.Spec) error {
	if c.identity == nil {
		fd, err := unix.MemfdCreate("identity", unix.MFD_CLOEXEC)
		if err != nil {
			return fmt.Errorf("memory for the identity: %w", err)
		}
		c.identity = os.NewFile(uintptr(fd), "identity")
	}
	spec.Inherit = []*os.File{c.identity}
	spec.Env = append(spec.Env, "HEDDLE_IDENTITY_FD=3")
	return nil
}

// preStop runs the hook that a container may have for its end.
func (c *container) preStop(ctx context.Context) {
	if c.spec.Lifecycle == nil || c.spec.Lifecycle.PreStop == nil {
		return
	}
	switch hook := c.spec.Lifecycle.PreStop; {
	case hook.Exec != nil:
		if status, err := c.exec(ctx, hook.Exec.Command); err != nil || status != 0 {
			c.log.note("preStop ended with status %d: %v", status, err)
		}
	case hook.HTTPGet != nil:
		if err := c.prober().httpGet(ctx, c.spec, hook.HTTPGet); err != nil {
			c.log.note("preStop: %v", err)
		}
	case hook.Sleep != nil:
		sleep(ctx, time.Duration(hook.Sleep.Seconds)*time.Second)
	}
}

func (c *container) prober() *prober {
	n := c.pod.network()
	return &prober{net: n.Namespace, ip: n.IPs[0], exec: c.exec}
}

// check runs the container's probes until ctx ends.
func (c *container) check(ctx context.Context, proc *process.Process) {
	p := c.prober()
	probe := func(ctx context.Context, pr *corev1.Probe, report func(bool, error)) {
		watchProbe(ctx, pr, func(ctx context.Context) error { return p.check(ctx, c.spec, pr) }, report)
	}
	fatal := func(kind string, grace *int64, err error) {
		c.log.note("%s probe failed, so the program is ended: %v", kind, err)
		proc.Signal(syscall.SIGTERM)
		d := 2 * time.Second
		if grace != nil {
			d = time.Duration(*grace) * time.Second
		}
		if sleep(ctx, d) {
			proc.Signal(syscall.SIGKILL)
		}
	}
	if s := c.spec.StartupProbe; s != nil {
		started, stop := context.WithCancel(ctx)
		ok := false
		probe(started, s, func(good bool, err error) {
			ok = good
			stop()
			if !good {
				fatal("startup", s.TerminationGracePeriodSeconds, err)
			}
		})
		stop()
		if !ok {
			return
		}
		c.update(func() {
			c.started = true
			c.ready = c.spec.ReadinessProbe == nil
		})
	}
	var wg sync.WaitGroup
	if r := c.spec.ReadinessProbe; r != nil {
		wg.Go(func() {
			probe(ctx, r, func(good bool, err error) {
				c.update(func() {
					c.ready = good
					if c.message = ""; err != nil {
						c.message = "not ready: " + err.Error()
					}
				})
			})
		})
	}
	if l := c.spec.LivenessProbe; l != nil {
		wg.Go(func() {
			// A liveness probe that has not succeeded yet waits for its whole
			// threshold, as readiness does.
			probe(ctx, l, func(good bool, err error) {
				if !good {
					fatal("liveness", l.TerminationGracePeriodSeconds, err)
				}
			})
		})
	}
	wg.Wait()
}

// exec runs a command beside the program, as in it, and returns its status.
func (c *container) exec(ctx context.Context, command []string) (int, error) {
	spec, err := c.processSpec(command)
	if err != nil {
		return 0, err
	}
	spec.Stdout, spec.Stderr = c.log.w, c.log.w
	proc, err := c.pod.kubelet.procs.Start(spec)
	if err != nil {
		return 0, err
	}
	select {
	case <-proc.Done():
	case <-ctx.Done():
		proc.Signal(syscall.SIGKILL)
		<-proc.Done()
		return 0, ctx.Err()
	}
	return proc.Exit().Status(), nil
}

// processSpec describes a process in the container: the program itself, or
// another command with the same surroundings.
func (c *container) processSpec(command []string) (process.Spec, error) {
	p := c.pod
	k := p.kubelet
	object := p.current()
	find := k.find()
	base := slices.Concat(k.env, []string{"HOSTNAME=" + hostname(object)})
	env, err := environment(object, c.spec, base, find)
	if err != nil {
		return process.Spec{}, err
	}
	args := command
	if args == nil {
		args = expandAll(slices.Concat(c.spec.Command, c.spec.Args), env)
		if len(c.spec.Command) == 0 {
			return process.Spec{}, errors.New("it has no command; the local mesh runs programs of this machine instead of images, so it must say which")
		}
	}
	if err := p.makeVolumes(find); err != nil {
		return process.Spec{}, err
	}
	mounts := []process.Mount{{Target: "/run"}}
	for _, keep := range keptRun {
		mounts = append(mounts, process.Mount{Source: keep, Target: keep, Optional: true})
	}
	mounts = append(mounts,
		process.Mount{Source: k.binDir, Target: binMount, ReadOnly: true},
		process.Mount{Source: filepath.Join(p.dir, "etc/resolv.conf"), Target: "/etc/resolv.conf"},
		process.Mount{Source: filepath.Join(p.dir, "etc/hosts"), Target: "/etc/hosts"},
	)
	if c.proxy {
		mounts = append(mounts, p.proxyMounts()...)
	}
	own, err := containerMounts(object, c.spec, p.volumeDir())
	if err != nil {
		return process.Spec{}, err
	}
	dir := c.spec.WorkingDir
	switch {
	case c.proxy && dir == "":
		dir = "/"
	case !filepath.IsAbs(dir):
		dir = filepath.Join(p.manifestDir, dir)
	}
	spec := process.Spec{
		Args: args, Env: env, Dir: dir,
		Net: p.network().Namespace.Fd(), Host: hostname(object),
		Mounts: append(mounts, own...), Scratch: k.scratch,
		User: k.user(object, c),
	}
	return spec, nil
}

// keptRun are the parts of /run that programs need; the rest, the sockets of
// the machine's services, a container does not see, as elsewhere.
var keptRun = []string{
	"/run/user",                                                                        // the session of who uses the machine
	"/run/current-system", "/run/booted-system", "/run/wrappers", "/run/opengl-driver", // NixOS keeps programs here
}

func hostname(pod *corev1.Pod) string {
	if pod.Spec.Hostname != "" {
		return pod.Spec.Hostname
	}
	return pod.Name
}

// status returns the container's status as the API has it.
func (c *container) status() corev1.ContainerStatus {
	c.mu.Lock()
	defer c.mu.Unlock()
	started := c.started && c.proc != nil
	s := corev1.ContainerStatus{
		Name: c.spec.Name, Image: c.spec.Image,
		Ready: c.proc != nil && c.ready, Started: &started, RestartCount: int32(c.restarts),
	}
	terminated := func() *corev1.ContainerStateTerminated {
		t := &corev1.ContainerStateTerminated{
			ExitCode: int32(c.last.Status()), Signal: int32(c.last.Signal), Reason: "Error", Message: c.last.String(),
			StartedAt: metav1.NewTime(c.lastRun), FinishedAt: metav1.NewTime(c.last.At),
		}
		if c.last.Status() == 0 {
			t.Reason = "Completed"
		}
		return t
	}
	switch {
	case c.proc != nil:
		s.State.Running = &corev1.ContainerStateRunning{StartedAt: metav1.NewTime(c.proc.Started)}
	case c.waiting == "" && c.last != nil:
		s.State.Terminated = terminated()
		return s
	default:
		reason := c.waiting
		if reason == "" {
			reason = "ContainerCreating"
		}
		s.State.Waiting = &corev1.ContainerStateWaiting{Reason: reason, Message: c.message}
	}
	if c.last != nil {
		s.LastTerminationState.Terminated = terminated()
	}
	return s
}

// problem says in a few words why the container is not ready, or "".
func (c *container) problem() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.proc != nil && c.ready, c.finished:
		return ""
	case c.message != "":
		return c.message
	case c.proc != nil:
		return "not ready yet"
	}
	return "not started yet"
}

// openLogIn opens the container's log in the pod's directory.
func (c *container) openLogIn(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	log, err := openLog(filepath.Join(dir, c.spec.Name+".log"))
	if err != nil {
		return err
	}
	if user := c.pod.kubelet.user(c.pod.object, c); user != nil {
		// Whoever opens /dev/stdout again needs to own the pipe.
		if err := log.w.Chown(int(user.Uid), int(user.Gid)); err != nil {
			return err
		}
	}
	c.mu.Lock()
	c.log = log
	c.mu.Unlock()
	go log.run() // ends when the pod has closed the log and its programs are gone
	return nil
}

// openedLog returns the log for others than the pod, which may come before it.
func (c *container) openedLog() *logFile {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.log
}
