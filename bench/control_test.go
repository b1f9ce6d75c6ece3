package bench

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/heddle-mesh/heddle/internal/control"
	"github.com/heddle-mesh/heddle/internal/proxy/decode"
	"github.com/heddle-mesh/heddle/internal/xds/client"
)

// proxies is how many follow the control plane in these benchmarks, each with a
// client and a store of its own.
const proxies = 100

// watcher is one proxy: it tells when a state came in which something holds.
type watcher struct {
	mu    sync.Mutex
	state *decode.State
	holds func(*decode.State) bool
	done  chan time.Time
}

func (w *watcher) change(s *decode.State) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.state = s
	w.check()
}

func (w *watcher) check() {
	if w.holds != nil && w.state != nil && w.holds(w.state) {
		w.holds = nil
		w.done <- time.Now()
	}
}

// await returns a channel on which the time comes when holds is true.
func (w *watcher) await(holds func(*decode.State) bool) <-chan time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.done = make(chan time.Time, 1)
	w.holds = holds
	w.check()
	return w.done
}

// mesh is a file with some services, of which each has two versions, and the
// weight of the first one's first version.
func mesh(services, weight, pods int) string {
	var b strings.Builder
	for i := range services {
		fmt.Fprintf(&b, `
apiVersion: v1
kind: Service
metadata: {name: s%[1]d, namespace: default}
spec: {selector: {app: s%[1]d}, ports: [{name: http, port: 80}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: s%[1]d, namespace: default}
spec: {host: s%[1]d, subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]}
---
`, i)
	}
	for i := range pods {
		fmt.Fprintf(&b, `
apiVersion: v1
kind: Pod
metadata: {name: s0-%[1]d, namespace: default, labels: {app: s0, version: v1}}
spec: {containers: [{name: app}]}
status: {phase: Running, podIP: 10.1.0.%[1]d, conditions: [{type: Ready, status: "True"}]}
---
`, i+1)
	}
	fmt.Fprintf(&b, `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: s0, namespace: default}
spec:
  hosts: [s0]
  http:
  - route:
    - {destination: {host: s0, subset: v1}, weight: %d}
    - {destination: {host: s0, subset: v2}, weight: %d}
`, weight, 100-weight)
	return b.String()
}

// write replaces a file at once.
func write(b *testing.B, file, content string) {
	if err := os.WriteFile(file+".next", []byte(content), 0o600); err != nil {
		b.Fatal(err)
	}
	if err := os.Rename(file+".next", file); err != nil {
		b.Fatal(err)
	}
}

// connected starts a control plane with proxies that have all of it.
func connected(b *testing.B, services int) (file string, all []*watcher) {
	file = filepath.Join(b.TempDir(), "mesh.yaml")
	write(b, file, mesh(services, 50, 2))
	log := slog.New(slog.DiscardHandler)
	serving := make(chan control.Addresses, 1)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	b.Cleanup(func() {
		cancel()
		running.Wait()
	})
	running.Go(func() {
		err := control.Run(ctx, control.Config{
			Sources: []string{file}, PlainAddr: "127.0.0.1:0", Log: log,
			OnServing: func(a control.Addresses) { serving <- a },
		})
		if err != nil {
			b.Error(err)
		}
	})
	at := (<-serving).Plain.String()
	for i := range proxies {
		w := &watcher{}
		store := decode.NewStore(w.change)
		c, err := client.New(client.Config{
			Node:    &corev3.Node{Id: fmt.Sprintf("sidecar~10.9.0.%d~p-%d.default~default.svc.cluster.local", i+1, i)},
			Handler: store, Log: log,
			Connect: func(context.Context) (*grpc.ClientConn, error) {
				return client.Dial("passthrough:///"+at, insecure.NewCredentials())
			},
		})
		if err != nil {
			b.Fatal(err)
		}
		running.Go(func() {
			_ = c.Run(ctx) // it has no error
			store.Close()
		})
		all = append(all, w)
	}
	for _, w := range all {
		<-w.await(func(s *decode.State) bool { return s.Warm })
	}
	return file, all
}

// report runs edits one after the other and reports how long each took to act in
// all proxies, as "median-ms" and "p99-ms".
func report(b *testing.B, file string, all []*watcher, edit func(i int) (content string, holds func(*decode.State) bool)) {
	var took []time.Duration
	for i := 0; b.Loop(); i++ {
		content, holds := edit(i)
		var done []<-chan time.Time
		for _, w := range all {
			done = append(done, w.await(holds))
		}
		began := time.Now()
		write(b, file, content)
		last := began
		for _, d := range done {
			if t := <-d; t.After(last) {
				last = t
			}
		}
		took = append(took, last.Sub(began))
	}
	slices.Sort(took)
	ms := func(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
	b.ReportMetric(ms(took[len(took)/2]), "median-ms")
	b.ReportMetric(ms(took[len(took)*99/100]), "p99-ms")
}

// BenchmarkEditToAllProxies measures from a saved file to the new weights in
// force in all proxies. It includes the source's and the server's waiting for
// quiet.
func BenchmarkEditToAllProxies(b *testing.B) {
	for _, services := range []int{10, 200} {
		b.Run(fmt.Sprintf("services=%d", services), func(b *testing.B) {
			file, all := connected(b, services)
			report(b, file, all, func(i int) (string, func(*decode.State) bool) {
				weight := 1 + i%98
				return mesh(services, weight, 2), func(s *decode.State) bool {
					for _, h := range s.Routes["80"].Hosts {
						if strings.HasPrefix(h.Name, "s0.") {
							return h.Routes[0].Clusters[0].Weight == uint32(weight)
						}
					}
					return false
				}
			})
		})
	}
}

// BenchmarkEndpointToAllProxies measures from a saved file with another number
// of pods to that number in force in all proxies.
func BenchmarkEndpointToAllProxies(b *testing.B) {
	const services = 200
	file, all := connected(b, services)
	report(b, file, all, func(i int) (string, func(*decode.State) bool) {
		pods := 3 + i%2
		return mesh(services, 50, pods), func(s *decode.State) bool {
			n := 0
			for _, g := range s.Endpoints["outbound|80||s0.default.svc.cluster.local"].Localities {
				n += len(g.Endpoints)
			}
			return n == pods
		}
	})
}
