// Package file is the source that reads manifests from files and directories
// and follows their changes.
//
// Directories are read with all that is below them: files named *.yaml, *.yml
// and *.json, but nothing whose name begins with a dot. A file that is named
// itself may be called what it likes.
//
// What stands on disk is applied as a whole or not at all. While anything in it
// has an error, the last good view stays in force, and nothing of the new one
// acts; all errors are reported together. So the first view, too, comes only
// once it is free of errors: an empty mesh is not a good stand-in for one that
// is misspelt.
//
// A write that is caught in the middle deletes nothing: a file that became empty
// keeps its objects until it has content again or is removed, one that is cut
// short has an error, and one that vanished must stay away for a moment before
// its objects go. A path that was given to New and is gone is an error.
//
// Objects are ordered by the time when the source first saw them, and within one
// view by the order of paths and lines, unless they bear a creationTimestamp.
// Editing an object does not change its place. After a restart the order is that
// of paths and lines again.
package file

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/heddle-mesh/heddle/internal/config"
)

// quiet is how long the files must be left alone before they are read: an
// editor's save is several steps, all within a millisecond or so.
const quiet = 10 * time.Millisecond

// patience bounds how long a file that never comes to rest holds up the others.
const patience = time.Second

// stdinPath stands for standard input in a list of paths.
const stdinPath = "-"

// Config is what a Source needs.
type Config struct {
	Name  string    // of the source in batches; "" is "file"
	Paths []string  // directories, files, "-" for Stdin
	Stdin io.Reader // read once, to its end; needed if Paths has "-"
	Log   *slog.Logger
	// OnBatch takes each change of the view, the first with Synced set. Required.
	// It is called by Run, one call at a time; while it blocks, no file is read.
	OnBatch func(config.Batch)
	// OnFaults takes what is wrong with what was read: every error whenever
	// something changed and errors remain, and a warning once for each object and
	// field, and again when the object has changed. An empty list says that the
	// errors of the last one are gone. nil logs them.
	OnFaults func([]config.Fault)
	// Now dates objects; nil is time.Now.
	Now func() time.Time
}

// Source follows files.
type Source struct {
	cfg  Config
	view *view
	// refused is owned by Run: the last reading had errors.
	refused bool
}

// New checks the configuration. It starts nothing and reads nothing.
func New(c Config) (*Source, error) {
	if c.OnBatch == nil {
		return nil, errors.New("file source: OnBatch is missing")
	}
	if len(c.Paths) == 0 {
		return nil, errors.New("file source: Paths is empty")
	}
	stdin := false
	for i, p := range c.Paths {
		switch {
		case p == "":
			return nil, fmt.Errorf("file source: Paths[%d] is empty", i)
		case p == stdinPath && c.Stdin == nil:
			return nil, errors.New("file source: Stdin is missing for the path -")
		case p == stdinPath && stdin:
			return nil, errors.New("file source: standard input cannot be read twice")
		case p == stdinPath:
			stdin = true
		}
	}
	if c.Name == "" {
		c.Name = "file"
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	s := &Source{cfg: c}
	if s.cfg.OnFaults == nil {
		s.cfg.OnFaults = s.log
	}
	s.view = newView(c.Now)
	return s, nil
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

// Run reads the files, reports them and follows their changes until ctx ends. It
// returns nil then, and an error only if files cannot be watched at all.
//
// Standard input is read to its end before anything is reported. A read from a
// terminal cannot be interrupted: if ctx ends first, the reader is closed if it
// can be, and left behind.
func (s *Source) Run(ctx context.Context) error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("file source: %w", err)
	}
	defer w.Close()

	disk := newDisk(s.cfg.Paths)
	if err := s.readStdin(ctx, disk); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("file source: standard input: %w", err)
	}

	// The timer runs from the last event; the first reading is due at once.
	due := time.NewTimer(0)
	defer due.Stop()
	watched := watches{watcher: w, log: s.cfg.Log, infos: map[string]stamp{}}
	var since time.Time // of the first event that was not acted on yet
	for {
		select {
		case <-ctx.Done():
			return nil
		case ev, ok := <-w.Events:
			if !ok {
				return errors.New("file source: the watcher ended")
			}
			path := filepath.Clean(ev.Name)
			if ev.Has(fsnotify.Remove) || ev.Has(fsnotify.Rename) {
				watched.forget(path)
			}
			if !disk.concerns(path) {
				continue
			}
			disk.touch(path)
			if since.IsZero() {
				since = time.Now()
			}
			if time.Since(since) < patience {
				due.Reset(quiet)
			}
		case err, ok := <-w.Errors:
			if !ok {
				return errors.New("file source: the watcher ended")
			}
			// Events were lost, most likely: look at everything.
			s.cfg.Log.Warn("watching files failed; reading all of them again", "error", err)
			disk.touchAll()
			due.Reset(quiet)
		case <-due.C:
			if since.IsZero() {
				since = time.Now()
			}
			if !s.pass(disk, &watched, time.Since(since) >= patience) {
				due.Reset(quiet)
				continue
			}
			since = time.Time{}
		}
	}
}

// pass looks at the disk once. It reports false if it is to look again before
// anything is believed, unless it must decide now.
func (s *Source) pass(disk *disk, watched *watches, decide bool) bool {
	// Directories are watched before they are read, and read again if that found
	// new ones, so that no change falls between the two.
	found := disk.scan()
	for watched.set(found.dirs) {
		found = disk.scan()
	}
	changed, settled := disk.load(found, decide)
	if !settled {
		return false
	}
	if !changed && s.view.synced {
		return true
	}
	batch, faults, ok := s.view.update(disk.files(), found.faults)
	if len(faults) > 0 || s.refused {
		s.cfg.OnFaults(faults)
	}
	s.refused = !ok
	if !ok {
		return true
	}
	batch.Source = s.cfg.Name
	if batch.Synced || len(batch.Changes) > 0 {
		s.cfg.OnBatch(batch)
	}
	return true
}

// readStdin reads standard input to its end, if it is among the paths.
func (s *Source) readStdin(ctx context.Context, d *disk) error {
	if !d.stdin {
		return nil
	}
	type result struct {
		data []byte
		err  error
	}
	done := make(chan result, 1)
	go func() {
		data, err := io.ReadAll(io.LimitReader(s.cfg.Stdin, config.MaxFile+1))
		done <- result{data, err}
	}()
	select {
	case <-ctx.Done():
		if c, ok := s.cfg.Stdin.(io.Closer); ok {
			c.Close() //nolint:errcheck // it only unblocks the read
		}
		return ctx.Err()
	case r := <-done:
		d.given[stdinPath] = decode(stdinPath, r.data)
		return r.err
	}
}

// ReadAll reads everything once. Objects that have errors, and the second of two
// with one name, are left out. The faults are in the order of paths and lines.
func ReadAll(paths []string, stdin io.Reader) ([]*config.Object, []config.Fault) {
	d := newDisk(paths)
	d.pipes = true
	if d.stdin {
		if stdin == nil {
			stdin = strings.NewReader("")
		}
		data, err := io.ReadAll(io.LimitReader(stdin, config.MaxFile+1))
		f := decode(stdinPath, data)
		if err != nil {
			f.faults = append(f.faults, config.Fault{Pos: config.Position{File: stdinPath}, Problem: err.Error()})
		}
		d.given[stdinPath] = f
	}
	found := d.scan()
	d.load(found, true)
	v := newView(time.Now)
	v.update(d.files(), found.faults)
	return v.objects, v.faults
}

// hasManifestName reports whether a file in a directory is read.
func hasManifestName(name string) bool {
	switch filepath.Ext(name) {
	case ".yaml", ".yml", ".json":
		return !hidden(name)
	}
	return false
}

func hidden(name string) bool { return strings.HasPrefix(name, ".") }
