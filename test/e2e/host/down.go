package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// down ends a cluster, in whatever state it is.
func down(state, name string, say func(string, ...any)) error {
	s, err := loadSpec(state, name)
	if errors.Is(err, fs.ErrNotExist) {
		say("cluster %s is down", name)
		return nil
	}
	if err != nil {
		return err
	}
	unlock, err := lock(filepath.Join(s.Dir, "lock"))
	if err != nil {
		return err
	}
	defer unlock()
	if err := remove(state, s); err != nil {
		return err
	}
	say("cluster %s is down; its logs are in %s", name, filepath.Join(s.Dir, "log"))
	return nil
}

// remove takes away all of a cluster but its logs. Each node's processes, mounts,
// interfaces and packet filters go with its first process.
func remove(state string, s *spec) error {
	var errs []error
	for i := 1; i <= s.Nodes; i++ {
		errs = append(errs, endNode(s, i))
	}
	unlock, err := lock(filepath.Join(state, "lock"))
	if err != nil {
		return err
	}
	defer unlock()
	errs = append(errs, removeBridge(s))
	for i := 1; i <= s.Nodes; i++ {
		errs = append(errs, removeCgroups(s.cgroup(i)))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	entries, err := os.ReadDir(s.Dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() != "log" && e.Name() != "lock" && e.Name() != filepath.Base(s.specFile()) {
			errs = append(errs, os.RemoveAll(filepath.Join(s.Dir, e.Name())))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	// The last one: until here down can be tried again.
	if err := os.Remove(s.specFile()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func endNode(s *spec, i int) error {
	p, ok := s.process(i)
	if !ok {
		return nil
	}
	if err := syscall.Kill(p.pid, syscall.SIGKILL); err != nil && err != syscall.ESRCH {
		return fmt.Errorf("node %s: %w", s.node(i), err)
	}
	// The kernel ends all processes of the PID namespace before its first one, and
	// that one is gone when the machine's first process has buried it.
	for began := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		start, state := stat(p.pid)
		waited := time.Since(began)
		switch {
		case start != p.start, state == "Z" && waited > 5*time.Second:
			return nil
		case waited > 30*time.Second:
			return fmt.Errorf("node %s: process %d does not end", s.node(i), p.pid)
		}
	}
}
