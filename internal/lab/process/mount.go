package process

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// mounter makes the mounts of one process. Its thread has a mount namespace of
// its own.
type mounter struct {
	scratch string
	// own are the device numbers of the directories in memory that this mounter
	// made: there a missing mount point is simply created.
	own []uint64
}

func mountAll(mounts []Mount, scratch string) error {
	m := &mounter{scratch: scratch}
	// Sources are opened before the first mount, which may hide one.
	sources := make([]*os.File, len(mounts))
	defer func() {
		for _, f := range sources {
			if f != nil {
				f.Close()
			}
		}
	}()
	for i, mt := range mounts {
		if mt.Source == "" {
			continue
		}
		fd, err := unix.Open(mt.Source, unix.O_PATH|unix.O_CLOEXEC, 0)
		if errors.Is(err, unix.ENOENT) && mt.Optional {
			continue
		}
		if err != nil {
			return fmt.Errorf("mount %s at %s: %w", mt.Source, mt.Target, err)
		}
		sources[i] = os.NewFile(uintptr(fd), mt.Source)
	}
	for i, mt := range mounts {
		var err error
		switch {
		case mt.Source == "":
			err = m.empty(mt.Target)
		case sources[i] != nil:
			err = m.bind(sources[i], mt.Target, mt.ReadOnly)
		}
		if err != nil {
			return fmt.Errorf("mount at %s: %w", mt.Target, err)
		}
	}
	return nil
}

func (m *mounter) empty(target string) error {
	at, err := m.point(target, true)
	if err != nil {
		return err
	}
	return m.memory(at)
}

// memory mounts an empty directory in memory.
func (m *mounter) memory(at string) error {
	if err := unix.Mount("heddle", at, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Stat(at, &st); err != nil {
		return err
	}
	m.own = append(m.own, st.Dev)
	return nil
}

func (m *mounter) bind(source *os.File, target string, readOnly bool) error {
	info, err := source.Stat()
	if err != nil {
		return err
	}
	at, err := m.point(target, info.IsDir())
	if err != nil {
		return err
	}
	if err := unix.Mount(fdPath(source), at, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return err
	}
	if !readOnly {
		return nil
	}
	return unix.MountSetattr(unix.AT_FDCWD, at, 0, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
}

func fdPath(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }

// point returns target without symbolic links, as a place that exists.
func (m *mounter) point(target string, dir bool) (string, error) {
	if !filepath.IsAbs(target) {
		return "", errors.New("the path is not absolute")
	}
	missing, at, err := resolve(target)
	if err != nil {
		return "", err
	}
	if missing == "" {
		info, err := os.Stat(at)
		if err != nil {
			return "", err
		}
		if info.IsDir() != dir {
			return "", errors.New("a file and a directory can not take each other's place")
		}
		return at, nil
	}
	if !m.owned(at) {
		if err := m.mirror(at); err != nil {
			return "", fmt.Errorf("make a place in %s: %w", at, err)
		}
	}
	at = filepath.Join(at, missing)
	if dir {
		return at, os.MkdirAll(at, 0o755)
	}
	if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
		return "", err
	}
	f, err := os.OpenFile(at, os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return "", err
	}
	return at, f.Close()
}

// resolve follows target as far as it exists: at is free of symbolic links, and
// missing is what lacks below it. A link to a place that does not exist counts
// as a way to that place.
func resolve(target string) (missing, at string, err error) {
	at = "/"
	rest := strings.Split(strings.Trim(filepath.Clean(target), "/"), "/")
	const maxLinks = 40 // as the kernel
	for links := 0; len(rest) > 0; {
		name := rest[0]
		switch name {
		case "", ".":
			rest = rest[1:]
			continue
		case "..":
			at, rest = filepath.Dir(at), rest[1:]
			continue
		}
		next := filepath.Join(at, name)
		info, err := os.Lstat(next)
		if errors.Is(err, fs.ErrNotExist) {
			return filepath.Join(rest...), at, nil
		}
		if err != nil {
			return "", "", err
		}
		rest = rest[1:]
		if info.Mode()&fs.ModeSymlink == 0 {
			at = next
			continue
		}
		if links++; links > maxLinks {
			return "", "", unix.ELOOP
		}
		to, err := os.Readlink(next)
		if err != nil {
			return "", "", err
		}
		if filepath.IsAbs(to) {
			at = "/"
		}
		rest = slices.Concat(strings.Split(strings.Trim(to, "/"), "/"), rest)
	}
	return "", at, nil
}

func (m *mounter) owned(dir string) bool {
	var st unix.Stat_t
	return unix.Stat(dir, &st) == nil && slices.Contains(m.own, st.Dev)
}

// mirror covers dir with a directory in memory that shows the same entries, so
// that new ones can be added which only this process sees.
func (m *mounter) mirror(dir string) error {
	if dir == "/" {
		return m.mirrorRoot()
	}
	under, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer under.Close()
	if err := m.memory(dir); err != nil {
		return err
	}
	return show(fdPath(under), dir)
}

// mirrorRoot does it for the root directory, which can not be covered: it is
// built elsewhere, and the thread changes its root.
func (m *mounter) mirrorRoot() error {
	if m.scratch == "" {
		return errors.New("no scratch directory to build a root in")
	}
	if err := m.memory(m.scratch); err != nil {
		return err
	}
	if err := show("/", m.scratch); err != nil {
		return err
	}
	if err := unix.Chroot(m.scratch); err != nil {
		return err
	}
	return unix.Chdir("/")
}

// show makes the entries of one directory appear in another, empty one.
func show(from, in string) error {
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, e := range entries {
		src, dst := from+"/"+e.Name(), filepath.Join(in, e.Name())
		switch {
		case e.Type()&fs.ModeSymlink != 0:
			to, err := os.Readlink(src)
			if err != nil {
				return err
			}
			if err := os.Symlink(to, dst); err != nil {
				return err
			}
			continue
		case e.IsDir():
			if err := os.Mkdir(dst, 0o755); err != nil {
				return err
			}
		default:
			f, err := os.Create(dst)
			if err != nil {
				return err
			}
			f.Close()
		}
		if err := unix.Mount(src, dst, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("show %s: %w", e.Name(), err)
		}
	}
	return nil
}
