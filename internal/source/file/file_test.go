package file

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/heddle-mesh/heddle/internal/config"
	"github.com/heddle-mesh/heddle/internal/source/sourcetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// writer is an editor that writes files in one directory in its own way.
type writer struct {
	dir   string
	write func(t *testing.T, path, text string)
}

func (w writer) path(name string) string { return filepath.Join(w.dir, name+".yaml") }

func (w writer) Put(t *testing.T, name, text string) { w.write(t, w.path(name), text) }

func (w writer) Remove(t *testing.T, name string) {
	if err := os.Remove(w.path(name)); err != nil {
		t.Fatal(err)
	}
}

func overwrite(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// replace writes a file beside the old one and renames it, as editors do.
func replace(t *testing.T, path, text string) {
	t.Helper()
	tmp := filepath.Join(filepath.Dir(path), ".tmp~"+filepath.Base(path))
	overwrite(t, tmp, text)
	if err := os.Rename(tmp, path); err != nil {
		t.Fatal(err)
	}
}

// mount is a directory as the kubelet mounts a ConfigMap: each file is a link
// into ..data, which is a link to a directory that is replaced as a whole.
type mount struct {
	dir     string
	version *int
	files   map[string]string
}

func (m mount) Put(t *testing.T, name, text string) {
	m.files[name+".yaml"] = text
	m.publish(t)
	link := filepath.Join(m.dir, name+".yaml")
	if _, err := os.Lstat(link); err == nil {
		return
	}
	if err := os.Symlink(filepath.Join("..data", name+".yaml"), link); err != nil {
		t.Fatal(err)
	}
}

func (m mount) Remove(t *testing.T, name string) {
	delete(m.files, name+".yaml")
	m.publish(t)
	if err := os.Remove(filepath.Join(m.dir, name+".yaml")); err != nil {
		t.Fatal(err)
	}
}

func (m mount) publish(t *testing.T) {
	*m.version++
	fresh := fmt.Sprintf("..2026_%d", *m.version)
	if err := os.Mkdir(filepath.Join(m.dir, fresh), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range m.files {
		overwrite(t, filepath.Join(m.dir, fresh, name), text)
	}
	old, _ := os.Readlink(filepath.Join(m.dir, "..data"))
	if err := os.Symlink(fresh, filepath.Join(m.dir, "..data_tmp")); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(m.dir, "..data_tmp"), filepath.Join(m.dir, "..data")); err != nil {
		t.Fatal(err)
	}
	if old != "" {
		if err := os.RemoveAll(filepath.Join(m.dir, old)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestContract(t *testing.T) {
	for name, editor := range map[string]func(dir string) sourcetest.Editor{
		"overwritten files":   func(dir string) sourcetest.Editor { return writer{dir, overwrite} },
		"replaced files":      func(dir string) sourcetest.Editor { return writer{dir, replace} },
		"a ConfigMap's mount": func(dir string) sourcetest.Editor { return mount{dir, new(int), map[string]string{}} },
	} {
		t.Run(name, func(t *testing.T) {
			sourcetest.Run(t, func(t *testing.T, h sourcetest.Handlers) (sourcetest.Editor, func(context.Context) error) {
				dir := t.TempDir()
				s, err := New(Config{Paths: []string{dir}, OnBatch: h.OnBatch, OnFaults: h.OnFaults})
				if err != nil {
					t.Fatal(err)
				}
				return editor(dir), s.Run
			})
		})
	}
}

// running is a source that follows some paths.
type running struct {
	t       *testing.T
	batches chan config.Batch
	faults  chan []config.Fault
	stop    func()
}

func follow(t *testing.T, c Config) *running {
	t.Helper()
	r := &running{t: t, batches: make(chan config.Batch, 64), faults: make(chan []config.Fault, 64)}
	c.OnBatch = func(b config.Batch) { r.batches <- b }
	c.OnFaults = func(f []config.Fault) { r.faults <- f }
	s, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run returned %v", err)
		}
	})
	t.Cleanup(r.stop)
	return r
}

func (r *running) next() (changes string) {
	r.t.Helper()
	select {
	case b := <-r.batches:
		return show(b)
	case <-time.After(20 * time.Second):
		r.t.Fatal("no batch came")
		return ""
	}
}

// complaints waits for faults of which one contains part. Others may come before
// them, as of a write that was caught in the middle.
func (r *running) complaints(part string) string {
	r.t.Helper()
	late := time.After(20 * time.Second)
	for {
		select {
		case f := <-r.faults:
			if s := text(f); strings.Contains(s, part) {
				return s
			}
		case <-late:
			r.t.Fatalf("no fault with %q came", part)
		}
	}
}

func show(b config.Batch) string {
	var out []string
	if b.Synced {
		out = append(out, "synced")
	}
	for _, c := range b.Changes {
		if c.Object == nil {
			out = append(out, "-"+c.Key.Name)
		} else {
			out = append(out, "+"+c.Key.Name)
		}
	}
	return strings.Join(out, " ")
}

func text(faults []config.Fault) string {
	var out []string
	for _, f := range faults {
		out = append(out, f.Error())
	}
	return strings.Join(out, "\n")
}

func namespace(name string) string {
	return "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: " + name + "\n"
}

func mkdir(t *testing.T, path string) string {
	t.Helper()
	if err := os.MkdirAll(path, 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestOnlyManifestsAreRead(t *testing.T) {
	dir := t.TempDir()
	mkdir(t, filepath.Join(dir, "sub", "deep"))
	mkdir(t, filepath.Join(dir, ".git"))
	for path, name := range map[string]string{
		"a.yaml": "a", "b.yml": "b", "sub/deep/c.yaml": "c",
		"n.txt": "n1", "n.yaml.bak": "n2", ".n.yaml": "n3", ".git/n.yaml": "n4",
	} {
		overwrite(t, filepath.Join(dir, path), namespace(name))
	}
	overwrite(t, filepath.Join(dir, "d.json"), `{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"d"}}`)
	r := follow(t, Config{Paths: []string{dir}})
	if got := r.next(); got != "synced +a +b +d +c" {
		t.Errorf("first view: %s", got)
	}
}

func TestNewSubdirectory(t *testing.T) {
	dir := t.TempDir()
	r := follow(t, Config{Paths: []string{dir}})
	r.next()
	mkdir(t, filepath.Join(dir, "x", "y"))
	overwrite(t, filepath.Join(dir, "x", "y", "a.yaml"), namespace("a"))
	if got := r.next(); got != "+a" {
		t.Errorf("new file in a new directory: %s", got)
	}
	overwrite(t, filepath.Join(dir, "x", "y", "b.yaml"), namespace("b"))
	if got := r.next(); got != "+b" {
		t.Errorf("second file there: %s", got)
	}
	if err := os.RemoveAll(filepath.Join(dir, "x")); err != nil {
		t.Fatal(err)
	}
	if got := r.next(); got != "-a -b" {
		t.Errorf("directory removed: %s", got)
	}
	// The same name again, perhaps with the same inode.
	mkdir(t, filepath.Join(dir, "x", "y"))
	overwrite(t, filepath.Join(dir, "x", "y", "c.yaml"), namespace("c"))
	if got := r.next(); got != "+c" {
		t.Errorf("directory made again: %s", got)
	}
	overwrite(t, filepath.Join(dir, "x", "y", "d.yaml"), namespace("d"))
	if got := r.next(); got != "+d" {
		t.Errorf("file in the directory made again: %s", got)
	}
}

func TestNamedFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "mesh.config") // any name will do
	overwrite(t, path, namespace("a"))
	overwrite(t, filepath.Join(dir, "other.yaml"), namespace("other"))
	r := follow(t, Config{Paths: []string{path}})
	if got := r.next(); got != "synced +a" {
		t.Fatalf("first view: %s", got)
	}
	replace(t, path, namespace("b"))
	if got := r.next(); got != "-a +b" {
		t.Errorf("after the edit: %s", got)
	}
}

func TestDotIsTheWorkingDirectory(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	overwrite(t, "a.yaml", namespace("a"))
	r := follow(t, Config{Paths: []string{"."}})
	if got := r.next(); got != "synced +a" {
		t.Fatalf("first view: %s", got)
	}
	overwrite(t, "a.yaml", namespace("b"))
	if got := r.next(); got != "-a +b" {
		t.Errorf("after the edit: %s", got)
	}
}

func TestLinkToAFileElsewhere(t *testing.T) {
	dir, elsewhere := t.TempDir(), t.TempDir()
	target := filepath.Join(elsewhere, "target")
	overwrite(t, target, namespace("a"))
	if err := os.Symlink(target, filepath.Join(dir, "a.yaml")); err != nil {
		t.Fatal(err)
	}
	r := follow(t, Config{Paths: []string{dir}})
	if got := r.next(); got != "synced +a" {
		t.Fatalf("first view: %s", got)
	}
	overwrite(t, target, namespace("b"))
	if got := r.next(); got != "-a +b" {
		t.Errorf("after the edit: %s", got)
	}
}

func TestLinksInACircle(t *testing.T) {
	dir := t.TempDir()
	if err := os.Symlink(dir, filepath.Join(dir, "loop")); err != nil {
		t.Fatal(err)
	}
	r := follow(t, Config{Paths: []string{dir}})
	r.complaints("leads back")
}

// A root that is not there is an error; the source waits for it.
func TestMissingRootAppears(t *testing.T) {
	dir := t.TempDir()
	root := filepath.Join(dir, "conf", "mesh")
	r := follow(t, Config{Paths: []string{root}})
	r.complaints("no such file")
	mkdir(t, filepath.Join(dir, "conf"))
	staged := mkdir(t, filepath.Join(dir, "staged"))
	overwrite(t, filepath.Join(staged, "a.yaml"), namespace("a"))
	if err := os.Rename(staged, root); err != nil {
		t.Fatal(err)
	}
	if got := r.next(); got != "synced +a" {
		t.Fatalf("first view: %s", got)
	}
	// A root that goes deletes nothing.
	if err := os.Rename(root, staged); err != nil {
		t.Fatal(err)
	}
	r.complaints("no such file")
	overwrite(t, filepath.Join(staged, "b.yaml"), namespace("b"))
	if err := os.Rename(staged, root); err != nil {
		t.Fatal(err)
	}
	if got := r.next(); got != "+b" {
		t.Errorf("after the root came back: %s", got)
	}
}

func TestTornWriteDeletesNothing(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a.yaml")
	whole := namespace("a") + "---\n" + namespace("b")
	overwrite(t, path, whole)
	r := follow(t, Config{Paths: []string{dir}})
	if got := r.next(); got != "synced +a +b" {
		t.Fatalf("first view: %s", got)
	}
	overwrite(t, path, namespace("a")+"---\napiVersion: v1\nkind")
	r.complaints("a.yaml:7: not YAML")
	overwrite(t, path, "")
	if got := r.complaints("became empty"); !strings.Contains(got, "2 objects stay") {
		t.Errorf("faults of the empty file: %s", got)
	}
	// Others can change meanwhile.
	overwrite(t, filepath.Join(dir, "c.yaml"), namespace("c"))
	if got := r.next(); got != "+c" {
		t.Errorf("another file: %s", got)
	}
	overwrite(t, path, namespace("a"))
	if got := r.next(); got != "-b" {
		t.Errorf("the file has content again: %s", got)
	}
}

// A file with comments alone is no accident.
func TestCommentedOutFileHasNoObjects(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a.yaml")
	overwrite(t, path, namespace("a"))
	r := follow(t, Config{Paths: []string{dir}})
	r.next()
	overwrite(t, path, "# nothing for now\n")
	if got := r.next(); got != "-a" {
		t.Errorf("batch: %s", got)
	}
}

func TestMovedFile(t *testing.T) {
	dir := t.TempDir()
	overwrite(t, filepath.Join(dir, "a.yaml"), namespace("a"))
	r := follow(t, Config{Paths: []string{dir}})
	r.next()
	if err := os.Rename(filepath.Join(dir, "a.yaml"), filepath.Join(dir, "b.yaml")); err != nil {
		t.Fatal(err)
	}
	overwrite(t, filepath.Join(dir, "c.yaml"), namespace("c"))
	// It is the same object at another place, and not two for a moment.
	seen := r.next()
	for !strings.Contains(seen, "+c") {
		seen += " " + r.next()
	}
	if seen != "+a +c" {
		t.Errorf("batches: %s", seen)
	}
	if len(r.faults) > 0 {
		t.Errorf("faults: %s", text(<-r.faults))
	}
}

func TestOneErrorRefusesTheWholeView(t *testing.T) {
	dir := t.TempDir()
	overwrite(t, filepath.Join(dir, "a.yaml"), namespace("a"))
	r := follow(t, Config{Paths: []string{dir}})
	r.next()
	staged := mkdir(t, filepath.Join(t.TempDir(), "staged"))
	overwrite(t, filepath.Join(staged, "b.yaml"), namespace("b"))
	overwrite(t, filepath.Join(staged, "bad.yaml"), "kind: Namespace\n---\napiVersion: v1\nkind: Namespce\nmetadata: {name: x}\n")
	if err := os.Rename(staged, filepath.Join(dir, "new")); err != nil {
		t.Fatal(err)
	}
	got := r.complaints("bad.yaml:1")
	if !strings.Contains(got, "did you mean Namespace?") {
		t.Errorf("faults: %s", got)
	}
	if err := os.Remove(filepath.Join(dir, "new", "bad.yaml")); err != nil {
		t.Fatal(err)
	}
	if got := r.next(); got != "+b" {
		t.Errorf("after the repair: %s", got)
	}
}

func TestObjectInTwoFiles(t *testing.T) {
	dir := t.TempDir()
	overwrite(t, filepath.Join(dir, "a.yaml"), namespace("x"))
	overwrite(t, filepath.Join(dir, "b.yaml"), "# comment\n"+namespace("x"))
	r := follow(t, Config{Paths: []string{dir}})
	got := r.complaints("b.yaml:2 Namespace x: the object is there twice")
	if !strings.Contains(got, "a.yaml:1") {
		t.Errorf("faults: %s", got)
	}
	if err := os.Remove(filepath.Join(dir, "a.yaml")); err != nil {
		t.Fatal(err)
	}
	if got := r.next(); got != "synced +x" {
		t.Errorf("batch: %s", got)
	}
}

func TestWarningsAreSaidOnce(t *testing.T) {
	dir := t.TempDir()
	plugin := func(path string) string {
		return "apiVersion: extensions.istio.io/v1alpha1\nkind: WasmPlugin\nmetadata: {name: p, namespace: default}\n" +
			"spec: {url: 'file:///opt" + path + "'}\n"
	}
	overwrite(t, filepath.Join(dir, "p.yaml"), plugin("/a"))
	r := follow(t, Config{Paths: []string{dir}})
	r.complaints("not acted on yet")
	r.next()
	overwrite(t, filepath.Join(dir, "a.yaml"), namespace("a"))
	r.next()
	// Another place, the same object.
	replace(t, filepath.Join(dir, "p.yaml"), "\n\n"+plugin("/a"))
	if got := r.next(); got != "+p" {
		t.Errorf("batch: %s", got)
	}
	if len(r.faults) > 0 {
		t.Errorf("said again: %s", text(<-r.faults))
	}
	overwrite(t, filepath.Join(dir, "p.yaml"), plugin("/b"))
	r.next()
	r.complaints("not acted on yet")
}

func TestCreatedOrder(t *testing.T) {
	dir := t.TempDir()
	overwrite(t, filepath.Join(dir, "b.yaml"), namespace("b1")+"---\n"+namespace("b2"))
	overwrite(t, filepath.Join(dir, "a.yaml"), namespace("a"))
	overwrite(t, filepath.Join(dir, "z.yaml"), "apiVersion: v1\nkind: Namespace\nmetadata: {name: z, creationTimestamp: \"2001-01-01T00:00:00Z\"}\n")
	fixed := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	r := follow(t, Config{Paths: []string{dir}, Now: func() time.Time { return fixed }})
	created := map[string]time.Time{}
	for _, c := range (<-r.batches).Changes {
		created[c.Key.Name] = c.Object.Created
	}
	names := slices.SortedFunc(slices.Values([]string{"a", "b1", "b2", "z"}), func(x, y string) int { return created[x].Compare(created[y]) })
	if got := strings.Join(names, " "); got != "z a b1 b2" {
		t.Errorf("order is %s: %v", got, created)
	}
}

func TestStandardInput(t *testing.T) {
	pr, pw := io.Pipe()
	r := follow(t, Config{Paths: []string{"-"}, Stdin: pr})
	if _, err := io.WriteString(pw, namespace("a")); err != nil {
		t.Fatal(err)
	}
	if err := pw.Close(); err != nil {
		t.Fatal(err)
	}
	if got := r.next(); got != "synced +a" {
		t.Errorf("batch: %s", got)
	}
}

func TestRunEndsWhileStandardInputIsOpen(t *testing.T) {
	pr, pw := io.Pipe()
	defer pw.Close()
	r := follow(t, Config{Paths: []string{"-"}, Stdin: pr})
	r.stop()
}

func TestReadAll(t *testing.T) {
	dir := t.TempDir()
	overwrite(t, filepath.Join(dir, "a.yaml"), namespace("a")+"---\nkind: Namespace\n")
	overwrite(t, filepath.Join(dir, "b.yaml"), namespace("a"))
	objects, faults := ReadAll([]string{dir, "-", filepath.Join(dir, "nowhere")}, strings.NewReader(namespace("in")))
	var names []string
	for _, o := range objects {
		names = append(names, o.Name)
	}
	if got := strings.Join(names, " "); got != "a in" {
		t.Errorf("objects: %s", got)
	}
	all := text(faults)
	for _, want := range []string{"nowhere", "a.yaml:6", "b.yaml:1 Namespace a: the object is there twice"} {
		if !strings.Contains(all, want) {
			t.Errorf("no fault has %q:\n%s", want, all)
		}
	}
}

func TestNewChecksItsConfig(t *testing.T) {
	batch := func(config.Batch) {}
	for name, c := range map[string]Config{
		"OnBatch":    {Paths: []string{"x"}},
		"Paths":      {OnBatch: batch},
		"Stdin":      {OnBatch: batch, Paths: []string{"-"}},
		"read twice": {OnBatch: batch, Paths: []string{"-", "-"}, Stdin: strings.NewReader("")},
	} {
		if _, err := New(c); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
