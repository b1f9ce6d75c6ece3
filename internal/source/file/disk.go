package file

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/heddle-mesh/heddle/internal/config"
	"github.com/heddle-mesh/heddle/internal/config/validate"
)

// stamp tells two states of a file or directory apart without reading it.
type stamp struct {
	info os.FileInfo
}

func (s stamp) same(o os.FileInfo) bool {
	return s.info != nil && os.SameFile(s.info, o) && s.info.Size() == o.Size() && s.info.ModTime().Equal(o.ModTime())
}

// manifest is one file with what is in it.
type manifest struct {
	path    string
	stamp   stamp
	data    []byte
	objects []*config.Object
	faults  []config.Fault   // of decoding and validation
	good    []*config.Object // of the last content that was free of errors
}

// decode makes the manifest of a file's content.
func decode(path string, data []byte) *manifest {
	m := &manifest{path: path, data: data}
	m.objects, m.faults = config.Decode(path, data)
	for _, o := range m.objects {
		m.faults = append(m.faults, validate.Object(o)...)
	}
	slices.SortStableFunc(m.faults, func(a, b config.Fault) int { return a.Pos.Line - b.Pos.Line })
	if !m.bad() {
		m.good = m.objects
	}
	return m
}

func (m *manifest) bad() bool {
	return slices.ContainsFunc(m.faults, func(f config.Fault) bool { return f.Severity == config.Error })
}

// disk is what is known of the files. It has no goroutines; Run owns it.
type disk struct {
	roots []string
	stdin bool
	pipes bool                 // a root may be a pipe, which is read once
	given map[string]*manifest // read elsewhere: standard input

	loaded  map[string]*manifest
	order   []string            // of loaded and given, as last found
	dirty   map[string]bool     // named by an event: to be read whatever the stamp says
	missing map[string]bool     // gone at the last look, not yet believed
	targets map[string][]string // of a link's target: the links
	dirs    map[string]bool     // directories whose events matter whatever they name
	problem string              // faults of the last scan, to notice their change
}

func newDisk(paths []string) *disk {
	d := &disk{given: map[string]*manifest{}, loaded: map[string]*manifest{}, dirty: map[string]bool{},
		missing: map[string]bool{}, targets: map[string][]string{}, dirs: map[string]bool{}}
	for _, p := range paths {
		if p == stdinPath {
			d.stdin = true
		} else {
			p = filepath.Clean(p)
		}
		if !slices.Contains(d.roots, p) {
			d.roots = append(d.roots, p)
		}
	}
	return d
}

// found is the outcome of a scan.
type found struct {
	files  []string // in the order of roots, then of names
	infos  map[string]os.FileInfo
	dirs   []string // to be watched
	faults []config.Fault
}

// scan lists the files without reading them.
func (d *disk) scan() *found {
	f := &found{infos: map[string]os.FileInfo{}}
	d.targets = map[string][]string{}
	d.dirs = map[string]bool{}
	for _, root := range d.roots {
		if root == stdinPath {
			f.files = append(f.files, root)
			continue
		}
		// Its own directory tells when the root appears, goes, or is replaced.
		f.watch(ancestor(root))
		info, err := os.Stat(root)
		switch {
		case err != nil:
			f.fault(root, err, "")
		case info.IsDir():
			d.scanDir(f, root, nil)
		case info.Mode().IsRegular() || d.pipes:
			d.scanFile(f, root, info)
			// It may be a link that a neighbour, such as "..data", stands behind.
			d.dirs[filepath.Dir(root)] = true
		default:
			f.fault(root, fmt.Errorf("it is neither a file nor a directory, but %s", info.Mode().Type()), "")
		}
	}
	return f
}

// ancestor returns the nearest directory above a path that exists.
func ancestor(path string) string {
	for {
		up := filepath.Dir(path)
		if info, err := os.Stat(up); err == nil && info.IsDir() || up == path {
			return up
		}
		path = up
	}
}

func (f *found) watch(dir string) {
	if !slices.Contains(f.dirs, dir) {
		f.dirs = append(f.dirs, dir)
	}
}

func (f *found) fault(path string, err error, hint string) {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		err = pe.Err // the position says the path
	}
	f.faults = append(f.faults, config.Fault{Pos: config.Position{File: path}, Problem: "cannot be read: " + err.Error(), Hint: hint})
}

// scanDir lists a directory; above are those it stands in, so that links that
// lead in a circle end.
func (d *disk) scanDir(f *found, dir string, above []os.FileInfo) {
	info, err := os.Stat(dir)
	if err != nil {
		return // it went; its parent's event brings us back
	}
	if slices.ContainsFunc(above, func(a os.FileInfo) bool { return os.SameFile(a, info) }) {
		f.fault(dir, errors.New("the link leads back to a directory that it stands in"), "remove it")
		return
	}
	above = append(slices.Clone(above), info)
	f.watch(dir)
	d.dirs[dir] = true
	entries, err := os.ReadDir(dir)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			f.fault(dir, err, "")
		}
		return
	}
	for _, e := range entries {
		if hidden(e.Name()) {
			continue
		}
		path := filepath.Join(dir, e.Name())
		info, err := os.Stat(path)
		switch {
		case err != nil:
			if hasManifestName(e.Name()) && !errors.Is(err, fs.ErrNotExist) {
				f.fault(path, err, "")
			}
		case info.IsDir():
			d.scanDir(f, path, above)
		case hasManifestName(e.Name()) && info.Mode().IsRegular():
			d.scanFile(f, path, info)
		}
	}
}

func (d *disk) scanFile(f *found, path string, info os.FileInfo) {
	if _, twice := f.infos[path]; twice { // below two roots
		return
	}
	f.files = append(f.files, path)
	f.infos[path] = info
	if link, err := os.Lstat(path); err == nil && link.Mode()&fs.ModeSymlink != 0 {
		if target, err := filepath.EvalSymlinks(path); err == nil {
			d.targets[target] = append(d.targets[target], path)
			f.watch(filepath.Dir(target))
		}
	}
}

// concerns reports whether an event can mean a change. Editors' hidden files do
// not; hidden names with two dots do, for Kubernetes mounts a volume behind a
// link named "..data" and replaces that.
func (d *disk) concerns(path string) bool {
	if slices.Contains(d.roots, path) || d.targets[path] != nil {
		return true
	}
	name := filepath.Base(path)
	if d.dirs[filepath.Dir(path)] {
		return !hidden(name) || strings.HasPrefix(name, "..")
	}
	// A directory that is watched for a root in it, or above it, or for the
	// target of a link.
	return slices.ContainsFunc(d.roots, func(r string) bool { return strings.HasPrefix(r, path+string(filepath.Separator)) })
}

// touch marks a file to be read again.
func (d *disk) touch(path string) {
	d.dirty[path] = true
	for _, link := range d.targets[path] {
		d.dirty[link] = true
	}
}

func (d *disk) touchAll() {
	for path := range d.loaded {
		d.dirty[path] = true
	}
}

// load reads what changed since the last time. changed tells whether anything
// differs; settled is false, and nothing is changed, if a file vanished just now
// or is being written, unless the caller must decide now.
func (d *disk) load(f *found, decide bool) (changed, settled bool) {
	gone := map[string]bool{}
	for path := range d.loaded {
		if _, still := f.infos[path]; !still {
			gone[path] = true
		}
	}
	news := false
	for path := range gone {
		news = news || !d.missing[path]
	}
	d.missing = gone
	if news && !decide {
		return false, false
	}

	next := map[string]*manifest{}
	for _, path := range f.files {
		if path == stdinPath {
			continue
		}
		info := f.infos[path]
		old := d.loaded[path]
		if old != nil && old.stamp.same(info) && !d.dirty[path] {
			next[path] = old
			continue
		}
		m, steady := d.read(path, info, old)
		if !steady && !decide {
			return false, false
		}
		if m == nil { // it went after all
			changed = changed || old != nil
			continue
		}
		next[path] = m
		changed = changed || old == nil || m != old
	}
	clear(d.dirty)
	d.missing = map[string]bool{}
	d.loaded = next
	problem := fmt.Sprint(f.faults)
	changed = changed || len(gone) > 0 || !slices.Equal(d.order, f.files) || problem != d.problem
	d.order, d.problem = f.files, problem
	return changed, true
}

// read reads one file. It returns old itself if the content is the same, and nil
// if the file is gone. steady is false if the file changed meanwhile.
func (d *disk) read(path string, info os.FileInfo, old *manifest) (m *manifest, steady bool) {
	data, after, err := readFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, false
	}
	var good []*config.Object
	if old != nil {
		good = old.good
	}
	if err != nil {
		m = &manifest{path: path, good: good, faults: []config.Fault{{Pos: config.Position{File: path}, Problem: "cannot be read: " + err.Error()}}}
		if old != nil && slices.Equal(m.faults, old.faults) {
			return old, true
		}
		return m, true
	}
	steady = stamp{info}.same(after)
	switch {
	case old != nil && old.data != nil && bytes.Equal(old.data, data):
		old.stamp = stamp{after}
		return old, steady
	case len(good) > 0 && len(bytes.TrimSpace(data)) == 0:
		// Most likely a write that has only begun.
		m = &manifest{path: path, data: data, objects: good, good: good, faults: []config.Fault{{
			Pos: config.Position{File: path, Line: 1}, Problem: "the file became empty", Severity: config.Warning,
			Hint: fmt.Sprintf("its %d objects stay in force; remove the file to remove them", len(good)),
		}}}
	default:
		m = decode(path, data)
		if m.bad() {
			m.good = good
		}
	}
	m.stamp = stamp{after}
	return m, steady
}

// readFile reads a file, and looks at it again afterwards.
func readFile(path string) ([]byte, os.FileInfo, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close() //nolint:errcheck // it was only read
	data, err := io.ReadAll(io.LimitReader(f, config.MaxFile+1))
	if err != nil {
		return nil, nil, err
	}
	info, err := os.Stat(path)
	return data, info, err
}

// files returns what was found, in order.
func (d *disk) files() []*manifest {
	var out []*manifest
	for _, path := range d.order {
		if m := d.given[path]; m != nil {
			out = append(out, m)
		} else if m := d.loaded[path]; m != nil {
			out = append(out, m)
		}
	}
	return out
}

// watches keeps the set of watched directories.
type watches struct {
	watcher *fsnotify.Watcher
	log     *slog.Logger
	infos   map[string]stamp
}

// set makes dirs the set of watched directories, and reports whether there are
// new ones among them.
func (w *watches) set(dirs []string) (added bool) {
	for _, dir := range slices.Sorted(maps.Keys(w.infos)) {
		if !slices.Contains(dirs, dir) {
			w.drop(dir)
		}
	}
	for _, dir := range dirs {
		info, err := os.Stat(dir)
		if err != nil {
			continue
		}
		if old, have := w.infos[dir]; have {
			if os.SameFile(old.info, info) {
				continue
			}
			// Another directory now stands under the name.
			w.drop(dir)
		}
		if err := w.watcher.Add(dir); err != nil {
			w.log.Error("a directory cannot be watched; its changes are not noticed", "dir", dir, "error", err)
			w.infos[dir] = stamp{info}
			continue
		}
		w.infos[dir] = stamp{info}
		added = true
	}
	return added
}

// forget notes that a directory went. Another that takes its place may have its
// inode, and would be taken for it.
func (w *watches) forget(path string) {
	if _, have := w.infos[path]; have {
		w.drop(path)
	}
}

func (w *watches) drop(dir string) {
	delete(w.infos, dir)
	// The kernel drops the watch of a directory that is gone by itself.
	if err := w.watcher.Remove(dir); err != nil && !errors.Is(err, fsnotify.ErrNonExistentWatch) {
		w.log.Debug("a directory's watch cannot be removed", "dir", dir, "error", err)
	}
}

// clock gives out times that only go forward.
type clock struct {
	now  func() time.Time
	last time.Time
}

func (c *clock) next() time.Time {
	t := c.now().UTC().Round(0)
	if !t.After(c.last) {
		t = c.last.Add(time.Nanosecond)
	}
	c.last = t
	return t
}
