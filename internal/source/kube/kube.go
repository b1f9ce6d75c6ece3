// Package kube is the source that reads a Kubernetes cluster and follows it.
//
// It watches the core kinds that the mesh is made of, and each of Istio's and of
// the Gateway API's kinds as soon as its CustomResourceDefinition is there; one
// that goes takes its objects along. Istio's objects are decoded and checked as
// those in files are. There is one copy of each object, without what nobody here
// reads: a watch hands its objects straight to the view, and no cache of the
// client library stands between.
//
// Each object stands alone: one with an error keeps its last good version in
// force, and takes nothing else with it. An object is out of sight if its
// namespace is not chosen by the mesh's discovery selectors, or if it is labelled
// for another revision.
//
// The first batch comes when everything has been read once.
package kube

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/heddle-mesh/heddle/internal/config"
	"github.com/heddle-mesh/heddle/internal/kubeapi"
)

const (
	// quiet is how long no event must come before changes are handed on: what
	// belongs together, such as a pod and its place in a slice, comes close.
	quiet = 10 * time.Millisecond
	// patience bounds how long a stream of events holds changes up.
	patience = 100 * time.Millisecond
	// reminder is how often it is said what the first view still waits for.
	reminder = 15 * time.Second
)

// Config is what a Source needs.
type Config struct {
	Name string // of the source in batches, and of the cluster in faults; "" is "kubernetes"
	// Clients reach the API server.
	Clients kubeapi.Clients
	// RootNamespace holds the mesh's configuration; "" is "istio-system".
	RootNamespace string
	// Revision of this control plane; "" is "default". Objects of Istio's kinds
	// that are labelled istio.io/rev with another one are left to that.
	Revision string
	Log      *slog.Logger
	// OnBatch takes each change of the view, the first with Synced set. Required.
	// It is called by Run, one call at a time.
	OnBatch func(config.Batch)
	// OnFaults takes what is wrong: all errors that stand whenever they change,
	// and a warning once for each state of an object. nil logs them.
	OnFaults func([]config.Fault)
	// Replica is a name that no other replica of the control plane has. If it is
	// set, the one of them that leads writes to objects of Istio's kinds what became
	// of them, into their status.
	Replica string
	// OnNamespaces, if set, takes the names of the namespaces in sight whenever
	// they change, sorted.
	OnNamespaces func([]string)
}

// Source follows a cluster.
type Source struct {
	cfg  Config
	view *view
}

// New checks the configuration. It starts nothing and asks nothing.
func New(c Config) (*Source, error) {
	switch {
	case c.OnBatch == nil:
		return nil, errors.New("kube source: OnBatch is missing")
	case c.Clients.Core == nil || c.Clients.Custom == nil:
		return nil, errors.New("kube source: Clients are missing")
	}
	if c.Name == "" {
		c.Name = "kubernetes"
	}
	if c.RootNamespace == "" {
		c.RootNamespace = "istio-system"
	}
	if c.Revision == "" {
		c.Revision = defaultRevision
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.OnNamespaces == nil {
		c.OnNamespaces = func([]string) {}
	}
	s := &Source{cfg: c, view: newView(c.RootNamespace, MeshConfigName(c.Revision))}
	if s.cfg.OnFaults == nil {
		s.cfg.OnFaults = s.log
	}
	return s, nil
}

// defaultRevision is the revision of a control plane that was not given one.
const defaultRevision = "default"

// MeshConfigName is the name of the ConfigMap that holds the configuration of
// the mesh for a revision.
func MeshConfigName(revision string) string {
	if revision == "" || revision == defaultRevision {
		return "istio"
	}
	return "istio-" + revision
}

// log reports faults for a caller who does not want them.
func (s *Source) log(faults []config.Fault) {
	for _, f := range faults {
		level := slog.LevelWarn
		if f.Severity == config.Error || f.Security {
			level = slog.LevelError
		}
		s.cfg.Log.Log(context.Background(), level, f.Error())
	}
}

// Run reads the cluster, reports it and follows its changes until ctx ends. A
// cluster that can not be reached is waited for.
func (s *Source) Run(ctx context.Context) error {
	var watches sync.WaitGroup
	defer watches.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ctx = kubeapi.Logging(ctx, s.cfg.Log)
	for _, f := range s.coreFeeds() {
		s.view.follow(f)
		watches.Go(func() { f.run(ctx) })
	}
	kinds := &served{source: s, feeds: map[config.Kind]*customFeed{}, versions: map[config.Kind]string{}}
	watches.Go(func() { kinds.run(ctx) })

	if s.cfg.Replica != "" {
		watches.Go(func() {
			if err := s.writeStatuses(ctx); err != nil {
				s.cfg.Log.Error("no status is written", "err", err)
			}
		})
	}

	waiting := time.NewTicker(reminder)
	defer waiting.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-waiting.C:
			if on := s.view.waitsFor(); len(on) > 0 {
				s.cfg.Log.Warn("the cluster is not read yet", "waiting for", strings.Join(on, ", "))
			} else {
				waiting.Stop()
			}
			continue
		case <-s.view.news:
		}
		if !s.settle(ctx) {
			return nil
		}
		kinds.follow(ctx, &watches)
		s.flush()
	}
}

// settle waits until no further event has come for a while. It returns false if
// ctx ended.
func (s *Source) settle(ctx context.Context) bool {
	rest, limit := time.NewTimer(quiet), time.NewTimer(patience)
	defer rest.Stop()
	defer limit.Stop()
	for {
		select {
		case <-s.view.news:
			rest.Reset(quiet)
		case <-rest.C:
			return true
		case <-limit.C:
			return true
		case <-ctx.Done():
			return false
		}
	}
}

// flush hands on what changed.
func (s *Source) flush() {
	out, ok := s.view.take()
	if !ok {
		return
	}
	if out.namespaces != nil {
		s.cfg.OnNamespaces(out.namespaces)
	}
	if out.report {
		s.cfg.OnFaults(out.faults)
	}
	out.batch.Source = s.cfg.Name
	if out.batch.Synced || len(out.batch.Changes) > 0 {
		s.cfg.OnBatch(out.batch)
	}
}
