// Package apiserver is a small Kubernetes API server for tests: it keeps objects
// in memory and serves get, list, watch, create, update, patch and delete over
// HTTP, as much of it as clients of this module need. It checks nothing.
//
// As with the real one, an update that changes nothing is no event, a watch
// begins where it is told to or with what there is, and a kind of a
// CustomResourceDefinition is served once that was created.
package apiserver

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"
)

// Object is any object as JSON has it.
type Object = map[string]any

// Reaction answers a request in place of the store: what it returns is sent.
type Reaction func(sent Object) (status int, answer Object)

// Server is a running API server.
type Server struct {
	http *httptest.Server

	mu sync.Mutex
	// mu guards all below.
	kinds     map[string]kind // by "group/version/plural"; the core group is ""
	objects   map[string]Object
	revision  int
	history   []event
	watchers  map[chan struct{}]bool
	reactions map[string]Reaction
	requests  []string
}

type kind struct {
	name       string
	namespaced bool
}

type event struct {
	typ      string
	resource string
	object   Object
	before   Object
	revision int
}

// builtin are the kinds that are there from the start.
var builtin = map[string]kind{
	"/v1/namespaces": {"Namespace", false}, "/v1/nodes": {"Node", false}, "/v1/services": {"Service", true},
	"/v1/pods": {"Pod", true}, "/v1/configmaps": {"ConfigMap", true}, "/v1/secrets": {"Secret", true},
	"/v1/serviceaccounts": {"ServiceAccount", true}, "/v1/events": {"Event", true},
	"discovery.k8s.io/v1/endpointslices":                              {"EndpointSlice", true},
	"coordination.k8s.io/v1/leases":                                   {"Lease", true},
	"apiextensions.k8s.io/v1/customresourcedefinitions":               {"CustomResourceDefinition", false},
	"authentication.k8s.io/v1/tokenreviews":                           {"TokenReview", false},
	"authorization.k8s.io/v1/subjectaccessreviews":                    {"SubjectAccessReview", false},
	"admissionregistration.k8s.io/v1/validatingwebhookconfigurations": {"ValidatingWebhookConfiguration", false},
	"admissionregistration.k8s.io/v1/mutatingwebhookconfigurations":   {"MutatingWebhookConfiguration", false},
}

// New starts a server that ends with the test.
func New(t testing.TB) *Server {
	s := &Server{
		kinds: maps.Clone(builtin), objects: map[string]Object{}, revision: 1,
		watchers: map[chan struct{}]bool{}, reactions: map[string]Reaction{},
	}
	s.http = httptest.NewServer(s)
	t.Cleanup(func() {
		s.http.CloseClientConnections()
		s.http.Close()
	})
	return s
}

// Rest says how to reach the server. Connections are not kept, so that nothing
// is left of a client that was stopped.
func (s *Server) Rest() *rest.Config {
	return &rest.Config{Host: s.http.URL, QPS: -1, Transport: &http.Transport{DisableKeepAlives: true}}
}

// React answers creations of a resource ("authentication.k8s.io/v1/tokenreviews")
// by f in place of the store.
func (s *Server) React(resource string, f Reaction) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reactions[resource] = f
}

// Requests returns what was asked, as "GET /api/v1/pods", watches aside.
func (s *Server) Requests() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.requests)
}

// Apply creates or replaces the objects of a manifest. Their kinds must be
// served.
func (s *Server) Apply(t testing.TB, manifest string) {
	t.Helper()
	for _, doc := range strings.Split(manifest, "\n---\n") {
		var o Object
		if err := yaml.Unmarshal([]byte(doc), &o); err != nil {
			t.Fatal(err)
		}
		if len(o) == 0 {
			continue
		}
		resource, ok := s.resourceOf(o)
		if !ok {
			t.Fatalf("no kind %v of %v is served", o["kind"], o["apiVersion"])
		}
		s.mu.Lock()
		s.put(resource, o, true)
		s.mu.Unlock()
	}
}

// Delete removes an object, which must be there.
func (s *Server) Delete(t testing.TB, resource, namespace, name string) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.remove(resource, namespace, name) {
		t.Fatalf("there is no %s %s/%s", resource, namespace, name)
	}
}

// Get returns an object, or nil.
func (s *Server) Get(resource, namespace, name string) Object {
	s.mu.Lock()
	defer s.mu.Unlock()
	return clone(s.objects[key(resource, namespace, name)])
}

// Define serves a custom kind, as creating its definition does.
func (s *Server) Define(t testing.TB, group, version, plural, name string, namespaced bool) {
	scope := "Cluster"
	if namespaced {
		scope = "Namespaced"
	}
	s.Apply(t, fmt.Sprintf(`
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: %[3]s.%[1]s}
spec: {group: %[1]s, scope: %[5]s, names: {plural: %[3]s, kind: %[4]s}, versions: [{name: %[2]s, served: true, storage: true}]}
status: {conditions: [{type: Established, status: "True"}]}
`, group, version, plural, name, scope))
}

func (s *Server) resourceOf(o Object) (string, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	av, _ := o["apiVersion"].(string)
	if !strings.Contains(av, "/") {
		av = "/" + av
	}
	for r, k := range s.kinds {
		if k.name == o["kind"] && strings.HasPrefix(r, av+"/") {
			return r, true
		}
	}
	return "", false
}

func key(resource, namespace, name string) string { return resource + " " + namespace + " " + name }

func meta(o Object) Object {
	m, _ := o["metadata"].(Object)
	if m == nil {
		m = Object{}
		o["metadata"] = m
	}
	return m
}

func text(o Object, path ...string) string {
	for _, p := range path[:len(path)-1] {
		o, _ = o[p].(Object)
	}
	t, _ := o[path[len(path)-1]].(string)
	return t
}

func clone(o Object) Object {
	if o == nil {
		return nil
	}
	b, err := json.Marshal(o)
	if err != nil {
		panic(err)
	}
	var out Object
	if err := json.Unmarshal(b, &out); err != nil {
		panic(err)
	}
	return out
}

// put stores an object; s.mu is held. whole is false for its status alone.
func (s *Server) put(resource string, o Object, generation bool) Object {
	o = clone(o)
	m := meta(o)
	if s.kinds[resource].namespaced && m["namespace"] == nil {
		m["namespace"] = "default"
	}
	k := key(resource, text(m, "namespace"), text(m, "name"))
	old := s.objects[k]
	typ := "ADDED"
	if old != nil {
		typ = "MODIFIED"
		for _, f := range []string{"uid", "creationTimestamp", "generation", "resourceVersion"} {
			if v, ok := meta(old)[f]; ok {
				m[f] = v
			}
		}
		if reflect.DeepEqual(old, o) {
			return o
		}
		if generation && !reflect.DeepEqual(old["spec"], o["spec"]) {
			n, _ := m["generation"].(float64)
			m["generation"] = n + 1
		}
	}
	s.revision++
	if old == nil {
		m["uid"] = fmt.Sprintf("uid-%d", s.revision)
		m["generation"] = float64(1)
		if m["creationTimestamp"] == nil {
			// A second each, so that the order of creation is one of time.
			m["creationTimestamp"] = time.Unix(1_700_000_000+int64(s.revision), 0).UTC().Format(time.RFC3339)
		}
	}
	m["resourceVersion"] = strconv.Itoa(s.revision)
	s.objects[k] = o
	s.record(event{typ, resource, o, old, s.revision})
	if s.kinds[resource].name == "CustomResourceDefinition" {
		s.define(o, true)
	}
	return o
}

func (s *Server) define(o Object, there bool) {
	spec, _ := o["spec"].(Object)
	versions, _ := spec["versions"].([]any)
	for _, v := range versions {
		version, _ := v.(Object)
		r := text(spec, "group") + "/" + text(version, "name") + "/" + text(spec, "names", "plural")
		if there {
			s.kinds[r] = kind{text(spec, "names", "kind"), text(spec, "scope") != "Cluster"}
		} else {
			delete(s.kinds, r)
			maps.DeleteFunc(s.objects, func(k string, _ Object) bool { return strings.HasPrefix(k, r+" ") })
		}
	}
}

func (s *Server) remove(resource, namespace, name string) bool {
	k := key(resource, namespace, name)
	old := s.objects[k]
	if old == nil {
		return false
	}
	delete(s.objects, k)
	s.revision++
	last := clone(old)
	meta(last)["resourceVersion"] = strconv.Itoa(s.revision)
	s.record(event{"DELETED", resource, last, old, s.revision})
	if s.kinds[resource].name == "CustomResourceDefinition" {
		s.define(old, false)
	}
	return true
}

func (s *Server) record(e event) {
	s.history = append(s.history, e)
	for w := range s.watchers {
		select {
		case w <- struct{}{}:
		default:
		}
	}
}

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	// /api/v1/[namespaces/NS/]RESOURCE[/NAME[/SUB]], /apis/GROUP/VERSION/...
	p := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	var prefix string
	switch {
	case len(p) >= 3 && p[0] == "api":
		prefix, p = "/"+p[1], p[2:]
	case len(p) >= 4 && p[0] == "apis":
		prefix, p = p[1]+"/"+p[2], p[3:]
	default:
		fail(w, http.StatusNotFound, "no such path")
		return
	}
	var namespace, name, sub string
	if len(p) >= 3 && p[0] == "namespaces" {
		namespace, p = p[1], p[2:]
	}
	resource := prefix + "/" + p[0]
	if len(p) > 1 {
		name = p[1]
	}
	if len(p) > 2 {
		sub = p[2]
	}
	s.mu.Lock()
	_, served := s.kinds[resource]
	react := s.reactions[resource]
	if r.URL.Query().Get("watch") == "" {
		s.requests = append(s.requests, r.Method+" "+r.URL.Path)
	}
	s.mu.Unlock()
	if !served {
		fail(w, http.StatusNotFound, "the server could not find the requested resource")
		return
	}
	var body Object
	if r.Method == http.MethodPost || r.Method == http.MethodPut || r.Method == http.MethodPatch {
		var err error
		if body, err = read(r); err != nil {
			fail(w, http.StatusBadRequest, err.Error())
			return
		}
	}
	switch {
	case r.Method == http.MethodGet && name == "" && r.URL.Query().Get("watch") != "":
		s.watch(w, r, resource, namespace)
	case r.Method == http.MethodGet && name == "":
		s.list(w, r, resource, namespace)
	case r.Method == http.MethodPost && react != nil:
		status, answer := react(body)
		reply(w, status, answer)
	default:
		s.one(w, r, resource, namespace, name, sub, body)
	}
}

// one answers for a single object.
func (s *Server) one(w http.ResponseWriter, r *http.Request, resource, namespace, name, sub string, body Object) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.Method == http.MethodPost {
		name = text(body, "metadata", "name")
		if namespace != "" {
			meta(body)["namespace"] = namespace
		}
	}
	old := s.objects[key(resource, namespace, name)]
	if old == nil && r.Method != http.MethodPost {
		fail(w, http.StatusNotFound, name+" not found")
		return
	}
	switch r.Method {
	case http.MethodGet:
		reply(w, http.StatusOK, old)
	case http.MethodPost:
		if old != nil {
			fail(w, http.StatusConflict, name+" already exists")
			return
		}
		s.typed(resource, body)
		reply(w, http.StatusCreated, s.put(resource, body, true))
	case http.MethodPut:
		if v := text(body, "metadata", "resourceVersion"); v != "" && v != text(old, "metadata", "resourceVersion") {
			fail(w, http.StatusConflict, "the object has been modified")
			return
		}
		s.typed(resource, body)
		next := body
		if sub == "status" {
			next = clone(old)
			next["status"] = body["status"]
		}
		reply(w, http.StatusOK, s.put(resource, next, sub == ""))
	case http.MethodPatch:
		next := clone(old)
		if sub == "status" {
			body = Object{"status": body["status"]}
		}
		merge(next, body)
		reply(w, http.StatusOK, s.put(resource, next, sub == ""))
	case http.MethodDelete:
		s.remove(resource, namespace, name)
		reply(w, http.StatusOK, Object{"kind": "Status", "apiVersion": "v1", "status": "Success"})
	default:
		fail(w, http.StatusMethodNotAllowed, r.Method)
	}
}

// typed fills in what typed clients leave out.
func (s *Server) typed(resource string, o Object) {
	i := strings.LastIndexByte(resource, '/')
	o["apiVersion"], o["kind"] = strings.TrimPrefix(resource[:i], "/"), s.kinds[resource].name
}

// merge is RFC 7386.
func merge(to, patch Object) {
	for k, v := range patch {
		in, isMap := v.(Object)
		at, _ := to[k].(Object)
		switch {
		case v == nil:
			delete(to, k)
		case isMap:
			if at == nil {
				at = Object{}
				to[k] = at
			}
			merge(at, in)
		default:
			to[k] = v
		}
	}
}

func (s *Server) list(w http.ResponseWriter, r *http.Request, resource, namespace string) {
	match := matcher(r)
	s.mu.Lock()
	defer s.mu.Unlock()
	items := []any{}
	for _, o := range s.all(resource) {
		if (namespace == "" || text(o, "metadata", "namespace") == namespace) && match(o) {
			items = append(items, o)
		}
	}
	list := Object{"metadata": Object{"resourceVersion": strconv.Itoa(s.revision)}, "items": items}
	s.typed(resource, list)
	list["kind"] = s.kinds[resource].name + "List"
	reply(w, http.StatusOK, list)
}

// all returns the objects of a resource by key; s.mu is held.
func (s *Server) all(resource string) []Object {
	var out []Object
	for _, k := range slices.Sorted(maps.Keys(s.objects)) {
		if strings.HasPrefix(k, resource+" ") {
			out = append(out, s.objects[k])
		}
	}
	return out
}

func (s *Server) watch(w http.ResponseWriter, r *http.Request, resource, namespace string) {
	match := matcher(r)
	q := r.URL.Query()
	wake := make(chan struct{}, 1)
	s.mu.Lock()
	s.watchers[wake] = true
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.watchers, wake)
	}()
	from, err := strconv.Atoi(q.Get("resourceVersion"))
	initial := q.Get("sendInitialEvents") == "true" || err != nil || from == 0
	wants := func(o Object) bool {
		return o != nil && (namespace == "" || text(o, "metadata", "namespace") == namespace) && match(o)
	}
	var send []Object
	if initial {
		from = s.revision
		for _, o := range s.all(resource) {
			if wants(o) {
				send = append(send, Object{"type": "ADDED", "object": o})
			}
		}
		if q.Get("sendInitialEvents") == "true" {
			mark := Object{"metadata": Object{"resourceVersion": strconv.Itoa(from), "annotations": Object{metav1.InitialEventsAnnotationKey: "true"}}}
			s.typed(resource, mark)
			send = append(send, Object{"type": "BOOKMARK", "object": mark})
		}
	}
	s.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	enc := json.NewEncoder(w)
	for {
		for _, e := range send {
			if enc.Encode(e) != nil {
				return
			}
		}
		w.(http.Flusher).Flush()
		select {
		case <-r.Context().Done():
			return
		case <-wake:
		}
		s.mu.Lock()
		send = nil
		if _, served := s.kinds[resource]; !served {
			s.mu.Unlock()
			return
		}
		i, _ := slices.BinarySearchFunc(s.history, from+1, func(e event, n int) int { return e.revision - n })
		for _, e := range s.history[i:] {
			if e.resource != resource {
				continue
			}
			// An object that begins or ceases to match comes and goes.
			typ := e.typ
			switch is, was := e.typ != "DELETED" && wants(e.object), wants(e.before); {
			case is && !was:
				typ = "ADDED"
			case !is && was:
				typ = "DELETED"
			case !is:
				continue
			}
			send = append(send, Object{"type": typ, "object": clone(e.object)})
		}
		from = s.revision
		s.mu.Unlock()
	}
}

// matcher reads the selectors of a request: of fields, "a.b=c" and "a.b!=c".
func matcher(r *http.Request) func(Object) bool {
	q := r.URL.Query()
	by, err := labels.Parse(q.Get("labelSelector"))
	if err != nil {
		by = labels.Nothing()
	}
	return func(o Object) bool {
		set := labels.Set{}
		l, _ := meta(o)["labels"].(Object)
		for k := range l {
			set[k] = text(l, k)
		}
		if !by.Matches(set) {
			return false
		}
		for f := range strings.SplitSeq(q.Get("fieldSelector"), ",") {
			if f == "" {
				continue
			}
			path, want, not := strings.Cut(f, "!=")
			if !not {
				path, want, _ = strings.Cut(f, "=")
			}
			if (text(o, strings.Split(path, ".")...) == want) == not {
				return false
			}
		}
		return true
	}
}

// read reads a body, be it JSON, YAML or protobuf.
func read(r *http.Request) (Object, error) {
	b, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	if strings.HasPrefix(r.Header.Get("Content-Type"), "application/vnd.kubernetes.protobuf") {
		o, _, err := scheme.Codecs.UniversalDeserializer().Decode(b, nil, nil)
		if err != nil {
			return nil, err
		}
		if b, err = json.Marshal(o); err != nil {
			return nil, err
		}
	}
	var out Object
	if err := yaml.Unmarshal(b, &out); err != nil {
		return nil, err
	}
	if out == nil {
		return nil, errors.New("the body is empty")
	}
	return out, nil
}

func reply(w http.ResponseWriter, status int, o Object) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(o) // fails only if the client is gone
}

func fail(w http.ResponseWriter, status int, message string) {
	reason := map[int]metav1.StatusReason{
		http.StatusNotFound: metav1.StatusReasonNotFound, http.StatusBadRequest: metav1.StatusReasonBadRequest,
		http.StatusConflict: metav1.StatusReasonConflict, http.StatusMethodNotAllowed: metav1.StatusReasonMethodNotAllowed,
	}[status]
	if strings.Contains(message, "already exists") {
		reason = metav1.StatusReasonAlreadyExists
	}
	reply(w, status, Object{"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "reason": reason, "code": status})
}
