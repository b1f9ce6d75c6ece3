package process

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestProgramsAreFoundAsAShellDoes(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, mode os.FileMode) {
		if err := errors.Join(os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755), os.WriteFile(filepath.Join(dir, name), nil, mode)); err != nil {
			t.Fatal(err)
		}
	}
	write("a/run", 0o644)
	write("b/run", 0o755)
	write("b/sub/tool", 0o755)
	write("a/only", 0o644)
	env := []string{"X=1", "PATH=" + dir + "/a:" + dir + "/b"}
	for _, c := range []struct{ name, dir, want, problem string }{
		{name: "run", want: "b/run"},
		{name: dir + "/b/run", want: "b/run"},
		{name: "./run", dir: dir + "/b", want: "b/run"},
		{name: "sub/tool", dir: dir + "/b", want: "b/sub/tool"},
		{name: "only", problem: "is not executable"},
		{name: "sub", problem: "is a directory"},
		{name: "none", problem: `no such program "none"`},
	} {
		got, err := lookPath(c.name, env, c.dir)
		if c.problem != "" {
			if err == nil || !strings.Contains(err.Error(), c.problem) {
				t.Errorf("%s: %q, %v, want an error with %q", c.name, got, err, c.problem)
			}
			continue
		}
		if err != nil || got != filepath.Join(dir, c.want) {
			t.Errorf("%s = %q, %v, want %s", c.name, got, err, c.want)
		}
	}
	if _, err := lookPath("none", env, ""); !errors.Is(err, ErrNotFound) {
		t.Errorf("%v is not ErrNotFound", err)
	}
}

func TestMountPointsAreResolvedAsFarAsTheyExist(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(
		os.MkdirAll(dir+"/real/deep", 0o755),
		os.Symlink("real", dir+"/link"),
		os.Symlink("../real/deep", dir+"/real/up"),
		os.Symlink(dir+"/real/gone/conf", dir+"/dangling"),
		os.Symlink("loop", dir+"/loop"),
	); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ target, at, missing string }{
		{"/real/deep", "/real/deep", ""},
		{"/link/deep/", "/real/deep", ""},
		{"/link/up", "/real/deep", ""},
		{"/link/new/dir", "/real", "new/dir"},
		{"/dangling", "/real", "gone/conf"},
		{"/dangling/x", "/real", "gone/conf/x"},
		{"/real/./deep/../deep", "/real/deep", ""},
	} {
		missing, at, err := resolve(dir + c.target)
		if err != nil || at != dir+c.at || missing != c.missing {
			t.Errorf("resolve(%s) = %q at %q, %v, want %q at %q", c.target, missing, at, err, c.missing, dir+c.at)
		}
	}
	if _, _, err := resolve(dir + "/loop"); !errors.Is(err, syscall.ELOOP) {
		t.Errorf("a loop gives %v", err)
	}
	if missing, at, err := resolve("/"); missing != "" || at != "/" || err != nil {
		t.Errorf("the root is %q at %q, %v", missing, at, err)
	}
}

func TestExitAsAShellShowsIt(t *testing.T) {
	for _, c := range []struct {
		exit   Exit
		status int
		text   string
	}{
		{Exit{}, 0, "exit 0"},
		{Exit{Code: 3}, 3, "exit 3"},
		{Exit{Code: -1, Signal: syscall.SIGKILL}, 137, "signal 9 (killed)"},
	} {
		if c.exit.Status() != c.status || c.exit.String() != c.text {
			t.Errorf("%+v: %d, %q", c.exit, c.exit.Status(), c.exit)
		}
	}
}
