package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/heddle-mesh/heddle/internal/config"
)

// PodStatus is a pod as `heddle ps` shows it.
type PodStatus struct {
	Namespace  string            `json:"namespace"`
	Name       string            `json:"name"`
	Ready      bool              `json:"ready"`
	Status     string            `json:"status"` // "Running", or Kubernetes' word for what is wrong
	Problem    string            `json:"problem,omitempty"`
	IP         string            `json:"ip,omitempty"`
	Started    time.Time         `json:"started"`
	Containers []ContainerStatus `json:"containers"`
}

// ContainerStatus is a part of it.
type ContainerStatus struct {
	Name     string    `json:"name"`
	Ready    bool      `json:"ready"`
	State    string    `json:"state"`
	Restarts int       `json:"restarts"`
	LastExit string    `json:"lastExit,omitempty"` // "exit 1", "signal 9 (killed)"
	ExitedAt time.Time `json:"exitedAt,omitzero"`
}

// MeshStatus is a mesh as a whole.
type MeshStatus struct {
	Name      string          `json:"name"`
	Paths     []string        `json:"paths"`
	Published []PublishedPort `json:"published"`
}

// PublishedPort is where a Service is reachable from the machine.
type PublishedPort struct {
	Namespace string `json:"namespace"`
	Service   string `json:"service"`
	Port      uint16 `json:"port"`
	Address   string `json:"address"`
}

// LogRequest asks for what a container printed.
type LogRequest struct {
	Namespace, Pod, Container string
	Tail                      int // lines; negative for all
	Follow                    bool
}

// ObjectRequest asks for objects. Empty fields ask for all.
type ObjectRequest struct {
	Kind            config.Kind
	Namespace, Name string
}

// ExecRequest asks for a command in a container, with the three descriptors
// that come with it as standard input, output and error.
type ExecRequest struct {
	Namespace, Pod, Container string
	Command                   []string
	Env                       []string
	Terminal                  bool
}

// execEvent goes both ways while the command runs.
type execEvent struct {
	Signal  int    `json:"signal,omitempty"` // to the command
	Resized bool   `json:"resized,omitempty"`
	Exited  bool   `json:"exited,omitempty"`
	Status  int    `json:"status,omitempty"`
	Error   string `json:"error,omitempty"`
}

// api answers the commands of the CLI.
type api struct {
	controller *controller
	publisher  *publisher
	name       string
	paths      []string
}

// handler serves everything but exec, which needs descriptors.
func (a *api) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /mesh", func(w http.ResponseWriter, r *http.Request) { answerJSON(w, a.mesh()) })
	mux.HandleFunc("GET /pods", func(w http.ResponseWriter, r *http.Request) { answerJSON(w, a.pods()) })
	mux.HandleFunc("GET /objects", func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		items, err := a.objects(ObjectRequest{config.Kind{Group: q.Get("group"), Name: q.Get("kind")}, q.Get("namespace"), q.Get("name")})
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		answerJSON(w, items)
	})
	mux.HandleFunc("GET /logs", a.logs)
	return mux
}

func answerJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	// The client is gone if this fails.
	_ = json.NewEncoder(w).Encode(v)
}

func (a *api) mesh() MeshStatus {
	m := MeshStatus{Name: a.name, Paths: a.paths, Published: []PublishedPort{}}
	for _, p := range a.publisher.addresses() {
		m.Published = append(m.Published, PublishedPort{p.Namespace, p.Service, p.Port, p.Address.String()})
	}
	return m
}

func (a *api) pods() []PodStatus {
	out := []PodStatus{}
	for _, p := range a.controller.list() {
		out = append(out, p.summary())
	}
	return out
}

// summary describes the pod in kubectl's words.
func (p *pod) summary() PodStatus {
	object := p.current()
	s := PodStatus{
		Namespace: object.Namespace, Name: object.Name,
		Ready: p.isReady(), Status: string(object.Status.Phase), Problem: p.problem(),
		IP: object.Status.PodIP, Started: object.Status.StartTime.Time,
	}
	if s.Status == "Succeeded" {
		s.Status = "Completed"
	}
	for _, cs := range object.Status.ContainerStatuses {
		c := ContainerStatus{Name: cs.Name, Ready: cs.Ready, Restarts: int(cs.RestartCount), State: "Running"}
		switch {
		case cs.State.Waiting != nil:
			c.State = cs.State.Waiting.Reason
			s.Status = c.State
		case cs.State.Terminated != nil:
			c.State = cs.State.Terminated.Reason
		}
		last := cs.LastTerminationState.Terminated
		if last == nil {
			last = cs.State.Terminated
		}
		if last != nil {
			c.LastExit, c.ExitedAt = last.Message, last.FinishedAt.Time
		}
		s.Containers = append(s.Containers, c)
	}
	if object.DeletionTimestamp != nil {
		s.Status = "Terminating"
	}
	return s
}

func (a *api) objects(r ObjectRequest) ([]map[string]any, error) {
	items := []map[string]any{}
	for _, o := range a.controller.objects.load().list(r.Kind) {
		if r.Namespace != "" && o.Namespace != r.Namespace || r.Name != "" && o.Name != r.Name {
			continue
		}
		m, err := manifest(o)
		if err != nil {
			return nil, err
		}
		items = append(items, m)
	}
	return items, nil
}

// findPod returns the pod meant by "name", "pod/name" or "deployment/name"; a
// Deployment stands for one of its pods, a ready one if there is. Without a
// namespace the name must exist in one only.
func (c *controller) findPod(namespace, name string) (*pod, error) {
	kind, rest, ok := strings.Cut(name, "/")
	if ok {
		name = rest
	}
	ofDeployment := false
	switch kind = strings.ToLower(kind); {
	case !ok, kind == "pod", kind == "pods", kind == "po":
	case kind == "deployment", kind == "deployments", kind == "deploy", kind == "deployment.apps":
		ofDeployment = true
	default:
		return nil, fmt.Errorf("%q is no pod: name a pod, or deployment/NAME", kind+"/"+name)
	}
	find := func(match func(*pod) bool) []*pod {
		return slices.DeleteFunc(c.list(), func(p *pod) bool {
			return namespace != "" && p.object.Namespace != namespace || !match(p)
		})
	}
	var found []*pod
	if !ofDeployment {
		found = find(func(p *pod) bool { return p.object.Name == name })
	}
	if len(found) == 0 && (ofDeployment || !ok) {
		found = find(func(p *pod) bool { return p.deployment == name })
		slices.SortStableFunc(found, func(a, b *pod) int {
			switch ra, rb := a.isReady(), b.isReady(); {
			case ra && !rb:
				return -1
			case rb && !ra:
				return 1
			}
			return 0
		})
	}
	if len(found) == 0 {
		if namespace != "" {
			return nil, fmt.Errorf("there is no pod %s in namespace %s", name, namespace)
		}
		return nil, fmt.Errorf("there is no pod %s", name)
	}
	for _, p := range found {
		if p.object.Namespace != found[0].object.Namespace {
			return nil, fmt.Errorf("%s exists in the namespaces %s and %s: choose with -n", name, found[0].object.Namespace, p.object.Namespace)
		}
	}
	return found[0], nil
}

func (c *controller) findContainer(namespace, pod, name string) (*container, error) {
	p, err := c.findPod(namespace, pod)
	if err != nil {
		return nil, err
	}
	if name == "" {
		if main := p.mainContainer(); main != nil {
			return main, nil
		}
		return nil, fmt.Errorf("pod %s has no container", p.key())
	}
	if found := p.container(name); found != nil {
		return found, nil
	}
	var names []string
	for _, other := range append(p.containers, p.inits...) {
		names = append(names, other.spec.Name)
	}
	return nil, fmt.Errorf("pod %s has no container %s: it has %s", p.key(), name, strings.Join(names, ", "))
}

func (a *api) logs(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	tail, err := strconv.Atoi(q.Get("tail"))
	if err != nil {
		http.Error(w, "tail is not a number", http.StatusBadRequest)
		return
	}
	c, err := a.controller.findContainer(q.Get("namespace"), q.Get("pod"), q.Get("container"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	log := c.openedLog()
	if log == nil {
		http.Error(w, "the container has not been started yet", http.StatusNotFound)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	flush := http.NewResponseController(w)
	// The first bytes show that the request was understood.
	w.WriteHeader(http.StatusOK)
	flush.Flush()
	// An error here is the client's end, or the pod's.
	_ = log.copyTo(r.Context(), flushWriter{w, flush}, tail, q.Get("follow") == "true")
}

type flushWriter struct {
	http.ResponseWriter
	flush *http.ResponseController
}

func (f flushWriter) Write(b []byte) (int, error) {
	n, err := f.ResponseWriter.Write(b)
	if err == nil {
		err = f.flush.Flush()
	}
	return n, err
}

// listenUnix listens on a socket in the file system, however long the path: the
// kernel takes 107 bytes, but the directory can be named by a descriptor.
func listenUnix(network, path string) (*net.UnixListener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	dir, short, err := shortPath(path)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	l, err := net.ListenUnix(network, &net.UnixAddr{Name: short, Net: network})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false) // it would try the short name
	return l, nil
}

// shortPath names a file through its directory's descriptor, which must stay
// open while the name is used.
func shortPath(path string) (dir *os.File, short string, err error) {
	dir, err = os.Open(filepath.Dir(path))
	if err != nil {
		return nil, "", err
	}
	return dir, fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(path)), nil
}

// serveHTTP serves the API until ctx ends.
func (a *api) serveHTTP(ctx context.Context, l net.Listener) error {
	srv := &http.Server{Handler: a.handler(), BaseContext: func(net.Listener) context.Context { return ctx }}
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	defer stop()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
