//go:build linux && heddle_root

package lab_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/heddle-mesh/heddle/internal/lab"
)

// users are who the mesh must run for: root, and one without any privilege.
var users = []int{0, 65534}

// built are the programs, in a directory that every user can read.
var built = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "heddle-bin-")
	if err != nil {
		return "", err
	}
	cmd := exec.Command("go", "build", "-o", dir+"/", "../../cmd/...", "../../examples/...")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return dir, os.Chmod(dir, 0o755)
})

// mesh is a running `heddle up`.
type mesh struct {
	t        *testing.T
	uid      int
	bin      string
	dir      string // with the manifests
	state    string
	cmd      *exec.Cmd
	out      lockedBuffer
	waitOnce sync.Once
	waitErr  error
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// credential makes a command run as the mesh's user.
func (m *mesh) credential(cmd *exec.Cmd) {
	cmd.Env = append(os.Environ(), "HOME="+filepath.Dir(m.state))
	if m.uid != 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(m.uid), Gid: uint32(m.uid)}}
	}
}

// up starts a mesh with manifests by file name.
func up(t *testing.T, uid int, manifests map[string]string) *mesh {
	t.Helper()
	bin, err := built()
	if err != nil {
		t.Fatal(err)
	}
	root, err := os.MkdirTemp("", "heddle-mesh-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(root) })
	m := &mesh{t: t, uid: uid, bin: bin, dir: filepath.Join(root, "manifests"), state: filepath.Join(root, "state", "mesh")}
	for _, d := range []string{m.dir, filepath.Dir(m.state)} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []string{root, filepath.Dir(m.state)} {
		if err := errors.Join(os.Chmod(d, 0o755), os.Chown(d, uid, uid)); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range manifests {
		m.write(name, text)
	}
	m.cmd = exec.Command(filepath.Join(bin, "heddle"), "up", "--name", fmt.Sprintf("test-%d", uid), "--state-dir", m.state, m.dir)
	m.cmd.Stdout, m.cmd.Stderr = &m.out, &m.out
	m.credential(m.cmd)
	if err := m.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		m.cmd.Process.Kill()
		m.wait()
		if t.Failed() {
			t.Logf("heddle up said:\n%s", m.out.String())
		}
	})
	return m
}

func (m *mesh) write(name, text string) {
	m.t.Helper()
	tmp := filepath.Join(m.dir, "."+name)
	if err := errors.Join(os.WriteFile(tmp, []byte(text), 0o644), os.Rename(tmp, filepath.Join(m.dir, name))); err != nil {
		m.t.Fatal(err)
	}
}

func (m *mesh) wait() error {
	m.waitOnce.Do(func() { m.waitErr = m.cmd.Wait() })
	return m.waitErr
}

// run runs a subcommand and returns its output and status.
func (m *mesh) run(stdin string, args ...string) (stdout, stderr string, status int) {
	m.t.Helper()
	flags := []string{args[0], "--state-dir", m.state}
	cmd := exec.Command(filepath.Join(m.bin, "heddle"), append(flags, args[1:]...)...)
	m.credential(cmd)
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		m.t.Fatal(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

func (m *mesh) pods() []lab.PodStatus {
	m.t.Helper()
	out, errs, status := m.run("", "ps", "-o", "json")
	if status != 0 {
		return nil
	}
	var pods []lab.PodStatus
	if err := json.Unmarshal([]byte(out), &pods); err != nil {
		m.t.Fatalf("%v: %s%s", err, out, errs)
	}
	return pods
}

func (m *mesh) pod(name string) (lab.PodStatus, bool) {
	for _, p := range m.pods() {
		if p.Name == name {
			return p, true
		}
	}
	return lab.PodStatus{}, false
}

// eventually waits for a condition; what says what is awaited.
func (m *mesh) eventually(what string, ok func() bool) {
	m.t.Helper()
	deadline := time.After(30 * time.Second)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline:
			out, _, _ := m.run("", "ps", "-o", "wide")
			m.t.Fatalf("not in time: %s\n%s", what, out)
		case <-tick.C:
		}
	}
}

func (m *mesh) ready(names ...string) {
	m.t.Helper()
	m.eventually("pods ready: "+strings.Join(names, " "), func() bool {
		pods := m.pods()
		for _, name := range names {
			if !slices.ContainsFunc(pods, func(p lab.PodStatus) bool { return p.Name == name && p.Ready }) {
				return false
			}
		}
		return true
	})
}

const plainShop = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: details}
spec:
  replicas: 2
  selector: {matchLabels: {app: details}}
  template:
    metadata: {labels: {app: details}}
    spec:
      containers:
      - name: details
        command: [sh, -c, "echo one; echo two; exec bookstore details"]
        readinessProbe: {httpGet: {path: /health, port: 9080}}
---
apiVersion: v1
kind: Service
metadata: {name: details}
spec:
  type: LoadBalancer
  selector: {app: details}
  ports: [{name: http, port: 19080, targetPort: 9080}]
---
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {color: green}
---
apiVersion: v1
kind: Pod
metadata: {name: client}
spec:
  containers:
  - name: sh
    command: [sh, -c, 'echo started as $WHO; exec sleep 100000']
    env:
    - {name: WHO, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: COLOR, valueFrom: {configMapKeyRef: {name: settings, key: color}}}
    volumeMounts: [{name: settings, mountPath: /nowhere/settings}]
  volumes: [{name: settings, configMap: {name: settings}}]
`

// Programs without sidecars: they run, are reached, looked into, replaced and
// started again.
func TestPodsAsAUserSeesThem(t *testing.T) {
	for _, uid := range users {
		t.Run(fmt.Sprintf("uid %d", uid), func(t *testing.T) {
			m := up(t, uid, map[string]string{"shop.yaml": plainShop})
			m.ready("details-0", "details-1", "client")

			t.Run("a published Service answers on the machine", func(t *testing.T) {
				if body := get(t, "http://127.0.0.1:19080/details/0"); !strings.Contains(body, "The Time Machine") {
					t.Errorf("got %q", body)
				}
			})
			t.Run("exec has the pod's network, files and variables, and the caller's streams and status", func(t *testing.T) {
				out, errs, status := m.run("three\n", "exec", "-i", "client", "--", "sh", "-c",
					`read word; echo "$word $COLOR $(hostname) $(cat /nowhere/settings/color)"; echo oops >&2; exit 3`)
				if out != "three green client green\n" || errs != "oops\ncommand terminated with exit code 3\n" || status != 3 {
					t.Errorf("stdout %q, stderr %q, status %d", out, errs, status)
				}
				out, errs, status = m.run("", "exec", "client", "--", "curl", "-sf", "http://details:19080/details/0")
				if status != 0 || !strings.Contains(out, "The Time Machine") {
					t.Errorf("a Service by name: %q, %q, status %d", out, errs, status)
				}
				if _, errs, status = m.run("", "exec", "client", "--", "no-such-program"); status != 127 || !strings.Contains(errs, "no-such-program") {
					t.Errorf("a program that does not exist: %q, status %d", errs, status)
				}
				if _, errs, status = m.run("", "exec", "nobody", "--", "true"); status == 0 || !strings.Contains(errs, "there is no pod nobody") {
					t.Errorf("a pod that does not exist: %q, status %d", errs, status)
				}
			})
			t.Run("logs", func(t *testing.T) {
				if out, errs, status := m.run("", "logs", "client"); out != "started as client\n" || status != 0 {
					t.Errorf("got %q, %q, status %d", out, errs, status)
				}
				if out, _, _ := m.run("", "logs", "deployment/details", "--tail", "1"); out != "two\n" {
					t.Errorf("the last line of a Deployment's pod is %q", out)
				}
			})
			t.Run("orphans are buried", func(t *testing.T) {
				if _, errs, status := m.run("", "exec", "client", "--", "sh", "-c", "(setsid sleep 0.01 &)"); status != 0 {
					t.Fatal(errs)
				}
				m.eventually("no zombie", func() bool {
					_, _, status := m.run("", "exec", "client", "--", "sh", "-c", `! cat /proc/[0-9]*/stat 2>/dev/null | grep -q ") Z "`)
					return status == 0
				})
			})
			t.Run("objects are shown as an API server would", func(t *testing.T) {
				out, errs, _ := m.run("", "get", "svc", "details", "-o", "yaml")
				for _, want := range []string{"kind: Service", "clusterIP: 10.96.", "targetPort: 9080"} {
					if !strings.Contains(out, want) {
						t.Errorf("%s%s lacks %q", out, errs, want)
					}
				}
				if out, _, _ := m.run("", "get", "pods", "-A"); strings.Count(out, "\n") != 5 || !strings.Contains(out, "istiod-0") {
					t.Errorf("pods:\n%s", out)
				}
			})
			t.Run("a program that ends is started again, and ps says so", func(t *testing.T) {
				if _, errs, status := m.run("", "exec", "details-0", "--", "sh", "-c", `kill -9 $(pgrep -f "bookstore details" | head -1)`); status != 0 {
					t.Fatalf("kill: %s", errs)
				}
				restarted := func(p lab.PodStatus) bool {
					return strings.HasPrefix(p.Name, "details-") && p.Ready && p.Containers[0].Restarts == 1 &&
						p.Containers[0].LastExit == "signal 9 (killed)"
				}
				m.eventually("a restart", func() bool { return slices.ContainsFunc(m.pods(), restarted) })
			})
			t.Run("an edit replaces pods one by one", func(t *testing.T) {
				m.write("shop.yaml", strings.Replace(plainShop, "        readinessProbe:", "        env: [{name: NEW, value: \"yes\"}]\n        readinessProbe:", 1))
				m.eventually("two new pods", func() bool {
					n := 0
					for _, p := range m.pods() {
						if !strings.HasPrefix(p.Name, "details-") || !p.Ready {
							continue
						}
						if out, _, _ := m.run("", "exec", p.Name, "--", "sh", "-c", "echo $NEW"); out == "yes\n" {
							n++
						}
					}
					return n == 2
				})
				if !strings.Contains(m.out.String(), "applied Deployment default/details changed") {
					t.Errorf("no word on the edit: %s", m.out.String())
				}
			})
			t.Run("an edit with a mistake changes nothing and says where it is", func(t *testing.T) {
				m.write("more.yaml", "apiVersion: v1\nkind: Service\nmetadata: {name: details2}\nspec: {portz: 1}\n")
				m.eventually("a complaint", func() bool { return strings.Contains(m.out.String(), "more.yaml:4") })
				if out, _, status := m.run("", "get", "svc", "details2"); status == 0 {
					t.Errorf("it was applied: %s", out)
				}
				os.Remove(filepath.Join(m.dir, "more.yaml"))
			})
			t.Run("what is removed goes", func(t *testing.T) {
				m.write("shop.yaml", plainShop[strings.LastIndex(plainShop, "---")-1:])
				m.eventually("only the client left", func() bool {
					_, gone := m.pod("details-0")
					return !gone && len(m.pods()) == 2 // with the control plane
				})
			})
		})
	}
}

const meshedShop = `
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio-injection: enabled}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: ratings, namespace: shop}
spec:
  selector: {matchLabels: {app: ratings}}
  template:
    metadata: {labels: {app: ratings, version: v1}}
    spec:
      containers:
      - name: ratings
        command: [bookstore, ratings]
        readinessProbe: {httpGet: {path: /health, port: 9080}}
---
apiVersion: v1
kind: Service
metadata: {name: ratings, namespace: shop}
spec:
  selector: {app: ratings}
  ports: [{name: http, port: 9080}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: client, namespace: shop}
spec:
  selector: {matchLabels: {app: client}}
  template:
    metadata: {labels: {app: client}}
    spec:
      containers:
      - name: sh
        command: [sleep, "100000"]
---
apiVersion: v1
kind: Pod
metadata: {name: stranger, namespace: default}
spec:
  containers:
  - name: sh
    command: [sleep, "100000"]
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: shop}
spec: {mtls: {mode: STRICT}}
`

// Two pods with sidecars speak mutual TLS; a stranger without one is refused;
// what the client's sidecar does follows an edit.
func TestSidecars(t *testing.T) {
	for _, uid := range users {
		t.Run(fmt.Sprintf("uid %d", uid), func(t *testing.T) {
			m := up(t, uid, map[string]string{"shop.yaml": meshedShop})
			m.ready("ratings-0", "client-0", "stranger")
			curl := func(pod, url string) (string, int) {
				out, _, status := m.run("", "exec", pod, "--", "curl", "-s", "-m", "5", "-w", " %{http_code}", url)
				return out, status
			}
			m.eventually("an answer", func() bool {
				out, status := curl("client-0", "http://ratings:9080/ratings/0")
				return status == 0 && strings.HasSuffix(out, " 200") && strings.Contains(out, "Ada")
			})
			out, status := curl("stranger", "http://ratings.shop:9080/ratings/0")
			if status == 0 {
				t.Errorf("a stranger got %q", out)
			}
			stats, _, _ := m.run("", "exec", "ratings-0", "-c", "istio-proxy", "--", "curl", "-s", "http://127.0.0.1:15000/stats/prometheus")
			if !strings.Contains(stats, `connection_security_policy="mutual_tls"`) {
				t.Error("the server's sidecar counted no request by mutual TLS")
			}
			m.write("route.yaml", `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: ratings, namespace: shop}
spec:
  hosts: [ratings]
  http:
  - directResponse: {status: 418}
`)
			m.eventually("the new route", func() bool {
				out, _ := curl("client-0", "http://ratings:9080/ratings/0")
				return strings.HasSuffix(out, " 418")
			})
			// The sidecar is a program like others: it comes back, with what it knew.
			if _, errs, status := m.run("", "exec", "client-0", "-c", "istio-proxy", "--", "sh", "-c", `kill -9 $(pgrep heddle-proxy)`); status != 0 && !strings.Contains(errs, "137") {
				t.Fatalf("kill: %s", errs)
			}
			m.eventually("sidecars back", func() bool {
				out, _ := curl("client-0", "http://ratings:9080/ratings/0")
				return strings.HasSuffix(out, " 418")
			})
		})
	}
}

// footprint is what of a mesh could stay behind on a machine; mark is in the
// environment of all its processes.
func footprint(t *testing.T, mark string) map[string]string {
	t.Helper()
	out := make(map[string]string)
	links, err := exec.Command("ip", "-brief", "link").Output()
	if err != nil {
		t.Fatal(err)
	}
	out["links"] = string(links)
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	out["mounts"] = string(mounts)
	out["processes"] = strings.Join(processes(t, mark), "\n")
	for _, dir := range []string{"/run", "/run/netns", "/dev/shm", "/"} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			continue // it need not exist
		}
		var names []string
		for _, e := range entries {
			names = append(names, e.Name())
		}
		out[dir] = strings.Join(names, "\n")
	}
	left, err := filepath.Glob(filepath.Join(os.TempDir(), "*heddle*"))
	if err != nil {
		t.Fatal(err)
	}
	out["temporary files"] = strings.Join(slices.DeleteFunc(left, func(s string) bool { return strings.Contains(s, "heddle-bin-") }), "\n")
	return out
}

// processes lists those with mark in their environment.
func processes(t *testing.T, mark string) []string {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil || !bytes.Contains(b, []byte(mark)) {
			continue // another's, or it ended
		}
		cmdline, err := os.ReadFile(filepath.Join(filepath.Dir(f), "cmdline"))
		if err == nil {
			out = append(out, string(bytes.ReplaceAll(cmdline, []byte{0}, []byte{' '})))
		}
	}
	slices.Sort(out)
	return out
}

// Nothing but the state directory is left, whether the mesh is interrupted or
// killed.
func TestTheEndLeavesNothingBehind(t *testing.T) {
	if _, err := built(); err != nil {
		t.Fatal(err)
	}
	for _, uid := range users {
		for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGKILL} {
			t.Run(fmt.Sprintf("uid %d, %s", uid, sig), func(t *testing.T) {
				before := footprint(t, "none has this in its environment")
				m := up(t, uid, map[string]string{"shop.yaml": meshedShop + "---\n" + plainShop})
				m.ready("ratings-0", "client-0", "details-0")
				mark := "HOME=" + filepath.Dir(m.state)
				if n := len(processes(t, mark)); n < 10 {
					t.Fatalf("only %d processes of the mesh were found: the test looks for them in a wrong way", n)
				}
				begin := time.Now()
				if err := m.cmd.Process.Signal(sig); err != nil {
					t.Fatal(err)
				}
				if err := m.wait(); sig == syscall.SIGINT && err != nil {
					t.Errorf("heddle up ended with %v", err)
				}
				if took := time.Since(begin); took > 8*time.Second {
					t.Errorf("the end took %s", took)
				}
				if err := os.RemoveAll(filepath.Dir(m.dir)); err != nil {
					t.Fatal(err)
				}
				var diff string
				m.eventually("the machine as it was", func() bool {
					diff = cmp.Diff(before, footprint(t, mark))
					return diff == "" || sig == syscall.SIGINT
				})
				if diff != "" {
					t.Errorf("left behind:\n%s", diff)
				}
			})
		}
	}
}

// Two meshes run side by side, but not two with one state directory.
func TestMeshesHaveNames(t *testing.T) {
	m := up(t, 0, map[string]string{"pod.yaml": plainShop})
	m.ready("client")
	other := up(t, 65534, map[string]string{"pod.yaml": plainShop})
	other.ready("client")
	other.eventually("a word on the busy port", func() bool {
		return strings.Contains(other.out.String(), "port 19080 of this machine is in use")
	})
	again := exec.Command(filepath.Join(m.bin, "heddle"), "up", "--name", "test-0", "--state-dir", m.state, m.dir)
	out, err := again.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "a mesh named test-0 runs already") {
		t.Errorf("a second mesh in the same place: %v, %s", err, out)
	}
}

// A container that can not run says why, and runs once the reason is gone.
func TestContainersThatCanNotRun(t *testing.T) {
	pod := func(name, container string) string {
		return fmt.Sprintf("---\napiVersion: v1\nkind: Pod\nmetadata: {name: %s}\nspec:\n  containers:\n  - %s\n", name, container)
	}
	m := up(t, 65534, map[string]string{"pods.yaml": pod("imageonly", `{name: a, image: "busybox"}`) +
		pod("absent", `{name: a, command: [no-such-program]}`) +
		pod("unset", `{name: a, command: [sleep, "1000"], env: [{name: A, valueFrom: {configMapKeyRef: {name: late, key: a}}}]}`)})
	for name, want := range map[string]string{
		"imageonly": "it has no command",
		"absent":    `no such program "no-such-program"`,
		"unset":     "there is no ConfigMap default/late",
	} {
		m.eventually(name+" says why", func() bool {
			p, ok := m.pod(name)
			return ok && !p.Ready && strings.Contains(p.Problem, want)
		})
	}
	m.write("late.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: late}\ndata: {a: b}\n")
	m.ready("unset")
}

func get(t *testing.T, url string) string {
	t.Helper()
	client := http.Client{Timeout: 5 * time.Second}
	resp, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
