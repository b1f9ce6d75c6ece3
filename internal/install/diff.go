package install

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"
)

// Diff tells what differs between two sets of objects, as lines with - and +
// under the name of each object; "" if nothing does.
func Diff(a, b []Object) (string, error) {
	index := func(list []Object) map[string]Object {
		m := make(map[string]Object)
		for _, o := range list {
			m[o.key()] = o
		}
		return m
	}
	was, is := index(a), index(b)
	keys := make(map[string]bool)
	for k := range was {
		keys[k] = true
	}
	for k := range is {
		keys[k] = true
	}
	var out strings.Builder
	for _, k := range slices.Sorted(maps.Keys(keys)) {
		x, hadIt := was[k]
		y, hasIt := is[k]
		switch {
		case !hasIt:
			fmt.Fprintf(&out, "- %s\n", x)
		case !hadIt:
			fmt.Fprintf(&out, "+ %s\n", y)
		default:
			d, err := diffOne(x, y)
			if err != nil {
				return "", err
			}
			if d != "" {
				fmt.Fprintf(&out, "~ %s\n%s", y, d)
			}
		}
	}
	return out.String(), nil
}

func diffOne(a, b Object) (string, error) {
	x, err := yaml.Marshal(a)
	if err != nil {
		return "", err
	}
	y, err := yaml.Marshal(b)
	if err != nil {
		return "", err
	}
	if string(x) == string(y) {
		return "", nil
	}
	return diffLines(strings.Split(strings.TrimSuffix(string(x), "\n"), "\n"), strings.Split(strings.TrimSuffix(string(y), "\n"), "\n")), nil
}

// diffLines prints the lines that only one side has, by the longest common
// subsequence of what is between the common beginning and the common end.
func diffLines(a, b []string) string {
	for len(a) > 0 && len(b) > 0 && a[0] == b[0] {
		a, b = a[1:], b[1:]
	}
	for len(a) > 0 && len(b) > 0 && a[len(a)-1] == b[len(b)-1] {
		a, b = a[:len(a)-1], b[:len(b)-1]
	}
	common := make([][]int, len(a)+1)
	for i := range common {
		common[i] = make([]int, len(b)+1)
	}
	for i := len(a) - 1; i >= 0; i-- {
		for j := len(b) - 1; j >= 0; j-- {
			if a[i] == b[j] {
				common[i][j] = common[i+1][j+1] + 1
			} else {
				common[i][j] = max(common[i+1][j], common[i][j+1])
			}
		}
	}
	var out strings.Builder
	i, j := 0, 0
	for i < len(a) || j < len(b) {
		switch {
		case i < len(a) && j < len(b) && a[i] == b[j]:
			i, j = i+1, j+1
		case j == len(b) || i < len(a) && common[i+1][j] >= common[i][j+1]:
			fmt.Fprintf(&out, "  - %s\n", a[i])
			i++
		default:
			fmt.Fprintf(&out, "  + %s\n", b[j])
			j++
		}
	}
	return out.String()
}
