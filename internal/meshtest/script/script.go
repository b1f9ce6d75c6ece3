// Package script reads and runs mesh scripts: tests that state traffic and its
// outcome, and nothing of how the mesh brings it about.
//
// A script is a txtar archive. Its comment holds the commands, each followed by
// a line "----" and the lines it must print; its files are manifests.
//
//	# Weights of a VirtualService are honoured.
//	apply mesh.yaml split.yaml
//	----
//	ok
//
//	request from=client n=1000 http://reviews:9080/
//	----
//	20±4% 200 pod=reviews-v2-0
//	80±4% 200 pod=reviews-v1-0
//
// Lines that begin with '#' are comments; a script's first one is its title. A
// line "stages: A" before the first command limits where it runs. With -update
// the printed lines replace the expected ones, apart from those with ±.
//
// Commands:
//
//	apply FILE…            put these manifests into the mesh; prints faults, or ok;
//	                       a file that is not in the archive is taken from common/
//	delete FILE…           take them out
//	request from=POD URL   an HTTP request; see [Request] for the words
//	tcp from=POD ADDR      a connection; lines to send follow as send="…"; with
//	                       wait=on the client lets the server speak first, with
//	                       sni=NAME it speaks TLS and asks for that name
//	traffic start NAME …   requests in the background: words of request, and rps
//	traffic stop NAME      prints how many failed
//	kill POD/CONTAINER     ends a process with SIGKILL; istiod/heddled is one
//	advance DURATION       lets time pass
//	metric on=POD NAME label=value… show=label,…   prints the shown labels of matching series
//	ready POD              waits until a pod is ready
//	tap start NAME A B     notes what crosses between two pods
//	tap stop NAME          prints of what kinds it was, each once: "TLS 1.3", "plain text"
//
// The words of request: proto (h2, grpc or ws; HTTP/1.1 otherwise), method, h.NAME
// (a header), size (bytes of body), sni (the server name to ask for with TLS), cert (a
// file with the client's certificate and key), n, parallel, reuse=off, timeout, and show, which
// lists what is printed: status and pod always; mtls (the caller's identity as the
// server was told), proto (what the server was spoken to in), messages (that came
// back, of gRPC and WebSocket), path, host, method, bytes, body, cert (whose certificate
// the server showed), h.NAME of the request
// as the server saw it, r.NAME of the response, with trailers for gRPC. A URL of gRPC
// has the form of the call as its path: unary, upload, download or chat.
package script

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/tools/txtar"

	"github.com/heddle-mesh/heddle/internal/meshtest/echo"
)

var update = flag.Bool("update", false, "write what scripts print into them")

// Stage runs the mesh that a script talks about. Methods are called by one
// goroutine, apart from Get, which background traffic calls too.
type Stage interface {
	// Apply makes files the whole configuration and returns the faults found, one
	// a line, sorted. It returns when every proxy has taken up what can be taken up.
	Apply(ctx context.Context, files map[string][]byte) ([]string, error)
	// Get sends requests from a pod and calls each for every result.
	Get(ctx context.Context, pod string, g echo.Get, each func(echo.Result)) error
	// TCP opens a connection from a pod.
	TCP(ctx context.Context, pod string, f echo.Flow) (echo.Result, error)
	// Kill ends a container's process without warning.
	Kill(ctx context.Context, pod, container string) error
	// Advance lets d pass.
	Advance(d time.Duration)
	// Metrics returns a pod's metrics in Prometheus' text format.
	Metrics(ctx context.Context, pod string) (string, error)
	// Ready returns nil once the pod is ready.
	Ready(ctx context.Context, pod string) error
	// Tap notes what crosses between two pods until stop is called, which returns
	// the kinds of the flows.
	Tap(ctx context.Context, a, b string) (stop func() ([]string, error), err error)
	// Patience is how long an outcome may take to appear: 0 where Apply and
	// Advance leave nothing to wait for.
	Patience() time.Duration
}

// Script is one file, parsed.
type Script struct {
	Title  string
	Stages string // "AB" unless limited
	Files  map[string][]byte
	steps  []step
	raw    *txtar.Archive
	path   string
}

type step struct {
	line    int
	command string
	words   []string
	want    []string
}

// Load parses the script at path.
func Load(path string) (*Script, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	s := &Script{Stages: "AB", Files: map[string][]byte{}, raw: txtar.Parse(b), path: path}
	for _, f := range s.raw.Files {
		s.Files[f.Name] = f.Data
	}
	lines := strings.Split(string(s.raw.Comment), "\n")
	for i := 0; i < len(lines); i++ {
		l := strings.TrimSpace(lines[i])
		switch {
		case l == "":
		case strings.HasPrefix(l, "#"):
			if s.Title == "" {
				s.Title = strings.TrimSpace(l[1:])
			}
		case strings.HasPrefix(l, "stages:"):
			s.Stages = strings.TrimSpace(strings.TrimPrefix(l, "stages:"))
		default:
			st := step{line: i + 1, command: l}
			if st.words, err = split(l); err != nil {
				return nil, fmt.Errorf("%s:%d: %w", path, i+1, err)
			}
			if i+1 < len(lines) && strings.TrimSpace(lines[i+1]) == "----" {
				for i += 2; i < len(lines) && strings.TrimSpace(lines[i]) != ""; i++ {
					st.want = append(st.want, strings.TrimSpace(lines[i]))
				}
			} else {
				return nil, fmt.Errorf("%s:%d: no ---- with an outcome after %q", path, i+1, l)
			}
			s.steps = append(s.steps, st)
		}
	}
	if len(s.steps) == 0 {
		return nil, fmt.Errorf("%s: no commands", path)
	}
	return s, nil
}

// split cuts a line at spaces; double quotes keep spaces and are removed.
func split(l string) ([]string, error) {
	var words []string
	var b strings.Builder
	quoted, any := false, false
	for _, r := range l {
		switch {
		case r == '"':
			quoted, any = !quoted, true
		case r == ' ' && !quoted:
			if any || b.Len() > 0 {
				words = append(words, b.String())
			}
			b.Reset()
			any = false
		default:
			b.WriteRune(r)
		}
	}
	if quoted {
		return nil, errors.New("a quote is not closed")
	}
	if any || b.Len() > 0 {
		words = append(words, b.String())
	}
	return words, nil
}

// Run plays the script on a stage and compares, or with -update rewrites it.
func (s *Script) Run(t *testing.T, stage Stage) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	r := &run{stage: stage, files: map[string][]byte{}, script: s, traffic: map[string]*traffic{}, taps: map[string]func() ([]string, error){}}
	changed := false
	for i := range s.steps {
		st := &s.steps[i]
		got, err := r.play(ctx, st)
		if err != nil {
			t.Fatalf("%s:%d: %s: %v", s.path, st.line, st.command, err)
		}
		if same(st.want, got) {
			continue
		}
		if *update && !strings.Contains(strings.Join(st.want, "\n"), "±") {
			st.want, changed = got, true
			continue
		}
		t.Errorf("%s:%d: %s\n  got:\n    %s\n  want:\n    %s", s.path, st.line, st.command,
			strings.Join(got, "\n    "), strings.Join(st.want, "\n    "))
	}
	for name, tr := range r.traffic {
		tr.stop()
		t.Errorf("%s: traffic %s was never stopped", s.path, name)
	}
	if changed {
		s.rewrite(t)
	}
}

// rewrite stores the outcomes in the file, leaving comments as they are.
func (s *Script) rewrite(t *testing.T) {
	t.Helper()
	var out []string
	lines := strings.Split(string(s.raw.Comment), "\n")
	for i, next := 0, 0; i < len(lines); i++ {
		out = append(out, lines[i])
		if next < len(s.steps) && s.steps[next].line == i+1 {
			out = append(append(out, "----"), s.steps[next].want...)
			for i++; i+1 < len(lines) && strings.TrimSpace(lines[i+1]) != ""; i++ {
			}
			next++
		}
	}
	s.raw.Comment = []byte(strings.Join(out, "\n"))
	if err := os.WriteFile(s.path, txtar.Format(s.raw), 0o644); err != nil {
		t.Fatal(err)
	}
}

var share = regexp.MustCompile(`^(\d+)(?:±(\d+))?% (.*)$`)

// same compares line by line; "80±4% x" accepts 76% to 84%, and "…" at a
// line's end any rest.
func same(want, got []string) bool {
	want = slices.SortedStableFunc(slices.Values(want), byOutcome)
	got = slices.SortedStableFunc(slices.Values(got), byOutcome)
	return slices.EqualFunc(want, got, func(w, g string) bool {
		if w == g {
			return true
		}
		if p, ok := strings.CutSuffix(w, "…"); ok {
			return strings.HasPrefix(g, p)
		}
		wm, gm := share.FindStringSubmatch(w), share.FindStringSubmatch(g)
		if wm == nil || gm == nil || wm[3] != gm[3] {
			return false
		}
		a, _ := strconv.Atoi(wm[1])
		tol, _ := strconv.Atoi(wm[2])
		b, _ := strconv.Atoi(gm[1])
		return b >= a-tol && b <= a+tol
	})
}

// byOutcome orders the lines of a tally by what was seen, not by how often, and
// leaves all others where they are.
func byOutcome(a, b string) int {
	am, bm := share.FindStringSubmatch(a), share.FindStringSubmatch(b)
	if am == nil || bm == nil {
		return 0
	}
	return strings.Compare(am[3], bm[3])
}

type run struct {
	stage   Stage
	script  *Script
	files   map[string][]byte
	traffic map[string]*traffic
	taps    map[string]func() ([]string, error)
}

type traffic struct {
	cancel context.CancelFunc
	done   chan struct{}
	total  int
	failed map[string]int
}

func (tr *traffic) stop() {
	tr.cancel()
	<-tr.done
}

// play runs a step; where outcomes take time to appear it asks again until the
// expected one is seen or patience ends.
func (r *run) play(ctx context.Context, st *step) ([]string, error) {
	deadline := time.Now().Add(r.stage.Patience())
	for {
		got, err := r.once(ctx, st.words)
		again := slices.Contains([]string{"request", "tcp", "metric"}, st.words[0]) && !same(st.want, got)
		if !again || !time.Now().Before(deadline) {
			return got, err
		}
		r.stage.Advance(200 * time.Millisecond)
	}
}

func (r *run) once(ctx context.Context, words []string) ([]string, error) {
	args := words[1:]
	switch words[0] {
	case "apply", "delete":
		for _, f := range args {
			// "split.yaml@2" is a later edition of split.yaml.
			name, _, _ := strings.Cut(f, "@")
			delete(r.files, name)
			if words[0] == "apply" {
				data, ok := r.script.Files[f]
				if !ok {
					var err error
					if data, err = os.ReadFile(filepath.Join(filepath.Dir(r.script.path), "common", f)); err != nil {
						return nil, fmt.Errorf("the script has no file %s, and there is no common one: %w", f, err)
					}
				}
				r.files[name] = data
			}
		}
		faults, err := r.stage.Apply(ctx, maps.Clone(r.files))
		if err == nil && len(faults) == 0 {
			faults = []string{"ok"}
		}
		return faults, err
	case "request":
		q, err := r.parseRequest(args)
		if err != nil {
			return nil, err
		}
		tally := map[string]int{}
		total := 0
		err = r.stage.Get(ctx, q.from, q.get, func(res echo.Result) {
			tally[describe(res, q.show)]++
			total++
		})
		if err != nil {
			return nil, err
		}
		lines := slices.Sorted(maps.Keys(tally))
		if q.get.Count > 1 {
			for i, l := range lines {
				lines[i] = fmt.Sprintf("%d%% %s", (100*tally[l]+total/2)/total, l)
			}
		}
		return lines, nil
	case "tcp":
		return r.tcp(ctx, args)
	case "traffic":
		return r.background(ctx, args)
	case "kill":
		pod, container, ok := strings.Cut(args[0], "/")
		if !ok {
			return nil, errors.New("kill wants POD/CONTAINER")
		}
		return []string{"ok"}, r.stage.Kill(ctx, pod, container)
	case "advance":
		d, err := time.ParseDuration(args[0])
		if err == nil {
			r.stage.Advance(d)
		}
		return []string{"ok"}, err
	case "ready":
		return []string{"ok"}, r.stage.Ready(ctx, args[0])
	case "metric":
		return r.metric(ctx, args)
	case "tap":
		return r.tap(ctx, args)
	}
	return nil, fmt.Errorf("no command %s", words[0])
}

// Request is a parsed request command.
type request struct {
	from string
	get  echo.Get
	show []string
}

func (r *run) parseRequest(args []string) (q request, err error) {
	q.get.Method, q.get.KeepBytes = "GET", true
	for _, a := range args {
		k, v, ok := strings.Cut(a, "=")
		if !ok || strings.Contains(k, "/") {
			q.get.URL = a
			continue
		}
		switch {
		case k == "from":
			q.from = v
		case k == "proto":
			q.get.Protocol = v
		case k == "method":
			q.get.Method = v
		case k == "sni":
			q.get.SNI = v
		case k == "cert":
			pem, ok := r.script.Files[v]
			if !ok {
				err = fmt.Errorf("the script has no file %s", v)
			}
			q.get.Cert = string(pem)
		case strings.HasPrefix(k, "h."):
			q.get.Header = append(q.get.Header, k[2:]+": "+v)
		case k == "size":
			q.get.Size, err = strconv.ParseInt(v, 10, 64)
		case k == "n":
			q.get.Count, err = strconv.Atoi(v)
		case k == "parallel":
			q.get.Parallel, err = strconv.Atoi(v)
		case k == "rps":
			q.get.RPS, err = strconv.Atoi(v)
		case k == "timeout":
			q.get.Timeout, err = time.ParseDuration(v)
		case k == "reuse":
			q.get.NoReuse = v == "off"
		case k == "show":
			q.show = strings.Split(v, ",")
		default:
			err = fmt.Errorf("request has no word %s", k)
		}
		if err != nil {
			return q, err
		}
	}
	if q.from == "" || q.get.URL == "" {
		return q, errors.New("request wants from=POD and a URL")
	}
	return q, nil
}

// describe prints one result as a line.
func describe(r echo.Result, show []string) string {
	out := []string{strconv.Itoa(r.Status)}
	switch {
	case r.Code != "":
		out[0] = "grpc=" + r.Code
	case r.Status == 0:
		return "error=" + r.Error
	}
	if r.Reply != nil {
		out = append(out, "pod="+r.Reply.Pod)
	}
	for _, s := range show {
		v, rep := "-", r.Reply
		if rep == nil {
			rep = &echo.Reply{}
		}
		switch {
		case s == "mtls":
			v = rep.Principal()
		case s == "path":
			v = rep.Path
		case s == "proto":
			v = rep.Proto
		case s == "messages":
			v = strconv.Itoa(r.Messages)
		case s == "host":
			v = rep.Host
		case s == "method":
			v = rep.Method
		case s == "received":
			v = strconv.FormatInt(rep.Bytes, 10)
		case s == "bytes":
			v = strconv.FormatInt(r.Bytes, 10)
		case s == "body":
			v = r.Body
		case s == "cert":
			v = r.Certificate
		case strings.HasPrefix(s, "h."):
			v = rep.Header[s[2:]]
		case strings.HasPrefix(s, "r."):
			v = r.Header[s[2:]]
		}
		if v == "" {
			v = "-"
		}
		out = append(out, s+"="+v)
	}
	if r.Error != "" {
		out = append(out, "error="+r.Error)
	}
	return strings.Join(out, " ")
}

func (r *run) tcp(ctx context.Context, args []string) ([]string, error) {
	var from string
	var f echo.Flow
	var err error
	for _, a := range args {
		k, v, ok := strings.Cut(a, "=")
		switch {
		case !ok:
			f.Addr = a
		case k == "from":
			from = v
		case k == "send":
			f.Lines = append(f.Lines, v)
		case k == "size":
			f.Size, err = strconv.ParseInt(v, 10, 64)
		case k == "wait":
			f.Wait = v == "on"
		case k == "sni":
			f.SNI = v
		case k == "timeout":
			f.Timeout, err = time.ParseDuration(v)
		default:
			err = fmt.Errorf("tcp has no word %s", k)
		}
		if err != nil {
			return nil, err
		}
	}
	res, err := r.stage.TCP(ctx, from, f)
	if err != nil {
		return nil, err
	}
	out := strings.Split(strings.TrimSuffix(res.Body, "\n"), "\n")
	if res.Body == "" {
		out = nil
	}
	if res.Error != "" {
		out = append(out, "error="+res.Error)
	}
	return out, nil
}

func (r *run) background(ctx context.Context, args []string) ([]string, error) {
	if len(args) < 2 {
		return nil, errors.New("traffic wants start or stop, and a name")
	}
	name := args[1]
	switch args[0] {
	case "start":
		q, err := r.parseRequest(args[2:])
		if err != nil {
			return nil, err
		}
		if q.get.RPS == 0 {
			return nil, errors.New("traffic wants rps=")
		}
		ctx, cancel := context.WithCancel(ctx)
		tr := &traffic{cancel: cancel, done: make(chan struct{}), failed: map[string]int{}}
		r.traffic[name] = tr
		go func() {
			defer close(tr.done)
			err := r.stage.Get(ctx, q.from, q.get, func(res echo.Result) {
				tr.total++
				if res.Status < 200 || res.Status > 299 || res.Error != "" {
					tr.failed[describe(res, []string{"body"})]++
				}
			})
			if err != nil && ctx.Err() == nil {
				tr.failed[err.Error()]++
			}
		}()
		return []string{"ok"}, nil
	case "stop":
		tr := r.traffic[name]
		if tr == nil {
			return nil, fmt.Errorf("no traffic %s", name)
		}
		delete(r.traffic, name)
		tr.stop()
		if tr.total == 0 {
			return []string{"no request was sent"}, nil
		}
		n := 0
		var out []string
		for _, k := range slices.Sorted(maps.Keys(tr.failed)) {
			n += tr.failed[k]
			out = append(out, fmt.Sprintf("%d× %s", tr.failed[k], k))
		}
		return append([]string{fmt.Sprintf("failed=%d", n)}, out...), nil
	}
	return nil, fmt.Errorf("traffic has no %s", args[0])
}

func (r *run) tap(ctx context.Context, args []string) ([]string, error) {
	switch {
	case len(args) == 4 && args[0] == "start":
		stop, err := r.stage.Tap(ctx, args[2], args[3])
		r.taps[args[1]] = stop
		return []string{"ok"}, err
	case len(args) == 2 && args[0] == "stop" && r.taps[args[1]] != nil:
		return r.taps[args[1]]()
	}
	return nil, errors.New("tap wants start NAME A B, or stop NAME of one that was started")
}

// metric prints, for each series of a name whose labels match, the shown labels.
func (r *run) metric(ctx context.Context, args []string) ([]string, error) {
	var pod, name string
	var show []string
	match := map[string]string{}
	for _, a := range args {
		k, v, ok := strings.Cut(a, "=")
		switch {
		case !ok:
			name = a
		case k == "on":
			pod = v
		case k == "show":
			show = strings.Split(v, ",")
		default:
			match[k] = v
		}
	}
	text, err := r.stage.Metrics(ctx, pod)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, line := range strings.Split(text, "\n") {
		if !strings.HasPrefix(line, name+"{") {
			continue
		}
		labels, value := series(line[len(name):])
		if slices.ContainsFunc(slices.Collect(maps.Keys(match)), func(k string) bool { return labels[k] != match[k] }) {
			continue
		}
		var parts []string
		for _, s := range show {
			if s == "value" {
				parts = append(parts, "value="+value)
				continue
			}
			parts = append(parts, s+"="+labels[s])
		}
		out = append(out, strings.Join(parts, " "))
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

var label = regexp.MustCompile(`([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"`)

// series reads `{a="b",…} 12`.
func series(s string) (map[string]string, string) {
	labels := map[string]string{}
	end := strings.LastIndexByte(s, '}')
	for _, m := range label.FindAllStringSubmatch(s[:end+1], -1) {
		labels[m[1]] = m[2]
	}
	return labels, strings.TrimSpace(s[end+1:])
}
