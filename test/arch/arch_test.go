// Package arch holds the architecture to its picture: who may import whom
// (layers.txt), what no binary may link (bans.txt), and that every package says
// what it is for.
package arch

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/heddle-mesh/heddle/"

// pkg is what go list says of one package.
type pkg struct {
	ImportPath string
	Name       string
	Doc        string
	Imports    []string
	Deps       []string
	GoFiles    []string
}

// list runs go list and decodes its stream of JSON objects.
func list(t *testing.T, args ...string) []pkg {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-json=ImportPath,Name,Doc,Imports,Deps,GoFiles"}, args...)...)
	cmd.Dir = "../.."
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var pkgs []pkg
	for d := json.NewDecoder(out); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("go list: %v", err)
	}
	return pkgs
}

// rows reads "key: words" lines; '#' starts a comment.
func rows(t *testing.T, file string) (keys []string, words map[string][]string) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	words = map[string][]string{}
	for s := bufio.NewScanner(f); s.Scan(); {
		line, _, _ := strings.Cut(s.Text(), "#")
		key, rest, ok := strings.Cut(line, ":")
		if !ok {
			if strings.TrimSpace(line) != "" {
				t.Fatalf("%s: %q has no colon", file, line)
			}
			continue
		}
		key = strings.TrimSpace(key)
		if _, dup := words[key]; dup {
			t.Fatalf("%s: two rows for %s", file, key)
		}
		keys = append(keys, key)
		words[key] = strings.Fields(rest)
	}
	return keys, words
}

// room returns the longest row that holds the package's folder below internal/.
func room(keys []string, folder string) string {
	best := ""
	for _, k := range keys {
		if (folder == k || strings.HasPrefix(folder, k+"/")) && len(k) > len(best) {
			best = k
		}
	}
	return best
}

func TestLayers(t *testing.T) {
	keys, may := rows(t, "layers.txt")
	used := map[string]bool{}
	rank := map[string]int{}
	for i, k := range keys {
		rank[k] = i
		for _, to := range may[k] {
			if _, ok := rank[to]; !ok {
				t.Errorf("layers.txt: %s may import %s, which stands above it: arrows go down only", k, to)
			}
		}
	}
	for _, p := range list(t, "./internal/...") {
		from := strings.TrimPrefix(p.ImportPath, module+"internal/")
		fromRoom := room(keys, from)
		if fromRoom == "" {
			t.Errorf("internal/%s stands in no row of layers.txt", from)
			continue
		}
		for _, imp := range p.Imports {
			to, ours := strings.CutPrefix(imp, module+"internal/")
			if !ours {
				continue
			}
			toRoom := room(keys, to)
			if toRoom == fromRoom {
				continue
			}
			if !slices.Contains(may[fromRoom], toRoom) {
				t.Errorf("internal/%s imports internal/%s; layers.txt does not let %s import %s", from, to, fromRoom, toRoom)
			}
			used[fromRoom+" "+toRoom] = true
		}
	}
	for _, k := range keys {
		for _, to := range may[k] {
			if !used[k+" "+to] {
				t.Errorf("layers.txt lets %s import %s, but nothing does: take it out", k, to)
			}
		}
	}
}

// TestBans reads bans.txt: "binary: import-path-prefix reason…".
func TestBans(t *testing.T) {
	f, err := os.Open("bans.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	deps := map[string][]string{}
	for s := bufio.NewScanner(f); s.Scan(); {
		line := strings.TrimSpace(s.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		binary, rest, ok := strings.Cut(line, ":")
		prefix, reason, ok2 := strings.Cut(strings.TrimSpace(rest), " ")
		if !ok || !ok2 {
			t.Fatalf("bans.txt: %q is not of the form binary: prefix reason", line)
		}
		if deps[binary] == nil {
			for _, p := range list(t, "./cmd/"+binary) {
				deps[binary] = append(deps[binary], p.Deps...)
			}
			if len(deps[binary]) == 0 {
				t.Fatalf("cmd/%s links nothing: is it there?", binary)
			}
		}
		for _, d := range deps[binary] {
			if d == prefix || strings.HasPrefix(d, strings.TrimSuffix(prefix, "/")+"/") {
				t.Errorf("%s links %s, banned because: %s", binary, d, reason)
			}
		}
	}
}

func TestEveryPackageSaysWhatItIsFor(t *testing.T) {
	for _, p := range list(t, "./...") {
		if len(p.GoFiles) == 0 {
			continue // nothing but tests: their own files say it
		}
		want := "Package " + p.Name + " "
		if p.Name == "main" {
			want = "Command " + path.Base(p.ImportPath) + " "
		}
		if !strings.HasPrefix(p.Doc, want) {
			t.Errorf("%s: the package comment begins %q, not %q", p.ImportPath, fmt.Sprintf("%.30s", p.Doc), want)
		}
	}
}

// TestMainsAreShort: a main turns flags into a Config and calls Run.
func TestMainsAreShort(t *testing.T) {
	const most = 60
	for _, p := range list(t, "./cmd/...") {
		file := "../../" + strings.TrimPrefix(p.ImportPath, module) + "/main.go"
		b, err := os.ReadFile(file)
		if err != nil {
			t.Errorf("%s: %v", p.ImportPath, err)
			continue
		}
		if n := strings.Count(string(b), "\n"); n > most {
			t.Errorf("%s has %d lines, more than %d", file, n, most)
		}
	}
}
