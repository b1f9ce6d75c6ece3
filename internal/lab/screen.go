package lab

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/heddle-mesh/heddle/internal/config"
)

// screen is what the user of `heddle up` sees: notices on standard output, and
// what is wrong on standard error. Each is a line.
type screen struct {
	mu sync.Mutex
	// mu guards the following, and keeps lines whole.
	out, err io.Writer
	said     map[string]time.Time // complaints, to say each once in a while
	runs     bool                 // the mesh has had manifests without errors
}

// begun says that the mesh runs with what it read.
func (s *screen) begun() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.runs = true
}

// complainAgain is when a complaint that goes on is worth a second line.
const complainAgain = time.Minute

func newScreen(out, err io.Writer) *screen {
	return &screen{out: out, err: err, said: make(map[string]time.Time)}
}

// say prints a notice.
func (s *screen) say(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fmt.Fprintln(s.out, "heddle: "+text)
}

// show prints text as it is.
func (s *screen) show(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	io.WriteString(s.out, text)
}

// complain prints what is wrong.
func (s *screen) complain(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if last, ok := s.said[text]; ok && now.Sub(last) < complainAgain {
		return
	}
	maps.DeleteFunc(s.said, func(_ string, t time.Time) bool { return now.Sub(t) >= complainAgain })
	s.said[text] = now
	fmt.Fprintln(s.err, "heddle: "+text)
}

// faults prints what is wrong with manifests.
func (s *screen) faults(faults []config.Fault) {
	refused := false
	for _, f := range faults {
		kind := "warning: "
		if f.Severity == config.Error {
			kind, refused = "error: ", true
		}
		s.mu.Lock()
		fmt.Fprintln(s.err, kind+f.Error())
		s.mu.Unlock()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(faults) == 0 {
		fmt.Fprintln(s.err, "heddle: the errors are mended")
	}
	if !refused {
		return
	}
	if s.runs {
		fmt.Fprintln(s.err, "heddle: nothing of this change was applied; the mesh goes on with what it had")
	} else {
		fmt.Fprintln(s.err, "heddle: nothing runs before this is mended; the files are watched")
	}
}

// welcomeTimeout is when the welcome comes even if something is not ready.
const welcomeTimeout = 10 * time.Second

// tryAnnotation, on any object, holds lines to print when the mesh is up:
// things to try. SERVICE.NAMESPACE:PORT of a published port is replaced by its
// address.
const tryAnnotation = "heddle.dev/try"

// welcome prints what runs and where to reach it, as soon as all is ready.
func (n *node) welcome(ctx context.Context, c *controller, pub *publisher) {
	select {
	case <-c.synced:
		n.screen.begun()
	case <-ctx.Done():
		return
	}
	patience, cancel := context.WithTimeout(ctx, welcomeTimeout)
	defer cancel()
	var unready []*pod
	var total int
	for {
		unready, total = c.unready()
		if len(unready) == 0 || !sleep(patience, 5*time.Millisecond) {
			break
		}
	}
	pub.ready(patience)
	if ctx.Err() != nil {
		return
	}
	n.screen.show(n.welcomeText(c, pub.addresses(), unready, total, time.Since(n.cfg.Begin)))
}

func (n *node) welcomeText(c *controller, addresses []publishedAt, unready []*pod, total int, took time.Duration) string {
	var b strings.Builder
	if len(unready) == 0 {
		fmt.Fprintf(&b, "heddle: mesh %s is ready after %.1f s: %d pods\n\n", n.cfg.Name, took.Seconds(), total)
	} else {
		fmt.Fprintf(&b, "heddle: mesh %s is up, but %d of %d pods are not ready after %.1f s\n\n", n.cfg.Name, len(unready), total, took.Seconds())
	}
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	for _, p := range c.list() {
		s := p.summary()
		state := "ready"
		if !s.Ready {
			if state = s.Problem; state == "" {
				state = strings.ToLower(s.Status)
			}
		}
		fmt.Fprintf(w, "  %s\t%s\t%s\t%s\n", s.Namespace, s.Name, s.IP, state)
	}
	w.Flush()
	var replace []string
	if len(addresses) > 0 {
		b.WriteString("\nReachable from this machine:\n\n")
		w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
		for _, a := range addresses {
			fmt.Fprintf(w, "  http://%s\tService %s/%s, port %d\n", a.Address, a.Namespace, a.Service, a.Port)
			replace = append(replace, a.published.String(), a.Address.String())
		}
		w.Flush()
	}
	if try := tryLines(c.objects.load(), strings.NewReplacer(replace...)); try != "" {
		b.WriteString("\nTry:\n\n" + try)
	}
	b.WriteString("\nCtrl-C ends the mesh. heddle ps, heddle logs and heddle exec work meanwhile.\n\n")
	return b.String()
}

func tryLines(s *snapshot, r *strings.Replacer) string {
	var texts []string
	for _, o := range s.objects {
		if t := strings.TrimSpace(o.Annotations[tryAnnotation]); t != "" {
			texts = append(texts, r.Replace(t))
		}
	}
	slices.Sort(texts)
	var b strings.Builder
	for _, t := range slices.Compact(texts) {
		for line := range strings.Lines(t) {
			b.WriteString("  " + strings.TrimRight(line, "\n") + "\n")
		}
	}
	return b.String()
}
