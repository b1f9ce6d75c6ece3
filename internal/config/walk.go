package config

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/heddle-mesh/heddle/internal/config/schema"
)

// walker checks one object's tree against its type. It collects every fault and
// the line of every field, and writes the values as the JSON that the type's own
// decoder takes. What is wrong is left out of the JSON.
type walker struct {
	file   string
	object Key
	kind   *schema.Kind // nil: no field is said to be idle
	types  *goTypes
	lines  Lines
	faults []Fault
	bad    bool // an Error is among them
	// bothNames takes protobuf's spelling of a field without a warning.
	bothNames bool
	out       []byte
}

func (w *walker) error(line int, path, problem, hint string) {
	w.bad = true
	w.faults = append(w.faults, Fault{Pos: Position{w.file, line}, Object: w.object, Field: path, Problem: problem, Hint: hint})
}

func (w *walker) warn(line int, path, problem, hint string) {
	w.faults = append(w.faults, Fault{Pos: Position{w.file, line}, Object: w.object, Field: path, Problem: problem, Hint: hint, Severity: Warning})
}

// idle says that a field does not act.
func (w *walker) idle(line int, path, what string) {
	f := Fault{Pos: Position{w.file, line}, Object: w.object, Field: path, Problem: what, Severity: Warning}
	if w.kind != nil && w.kind.Guarding(unindexed(path)) {
		f.Security = true
		f.Hint = "the protection it asks for is missing"
	}
	w.faults = append(w.faults, f)
}

const notYet = "not acted on yet"

// child finds the node of a populated field, and warns once if it has none.
func (w *walker) child(f *schema.Field, name string, line int, path string, populated bool) *schema.Field {
	c := f.Child(name)
	if c == nil {
		if populated {
			w.idle(line, path, notYet)
		}
		return schema.Everything
	}
	return c
}

// value checks a scalar against the values that act.
func (w *walker) value(f *schema.Field, line int, path, value string) {
	if !f.Acts(value) {
		w.idle(line, path, fmt.Sprintf("%s is %s, only %s", value, notYet, strings.Join(f.Values(), ", ")))
	}
}

// unindexed strips the indexes from a path: "spec.http[0].route" to
// "spec.http.route".
func unindexed(path string) string {
	if !strings.Contains(path, "[") {
		return path
	}
	var b strings.Builder
	depth := 0
	for _, c := range path {
		switch {
		case c == '[':
			depth++
		case c == ']' && depth > 0:
			depth--
		case depth == 0:
			b.WriteRune(c)
		}
	}
	return b.String()
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

func item(path string, i int) string { return path + "[" + strconv.Itoa(i) + "]" }

func keyed(path, key string) string { return path + "[" + key + "]" }

// wrong reports a value of the wrong type.
func (w *walker) wrong(t *tree, path, want, hint string) {
	found := t.found()
	if w.object.Kind == Secret && t.form < listForm {
		found, hint = "something else", "" // a secret is not printed, not even a misplaced one
	}
	w.error(t.line, path, fmt.Sprintf("found %s, wanted %s", found, want), hint)
}

// text writes a string, and reports whether it is one.
func (w *walker) text(t *tree, path string) bool {
	switch t.form {
	case textForm:
		w.out = appendText(w.out, t.text)
		return true
	case boolForm, intForm, floatForm:
		w.wrong(t, path, "a text", fmt.Sprintf("put it in quotes: %q", t.raw))
	default:
		w.wrong(t, path, "a text", "")
	}
	return false
}

// boolean writes a bool. Unquoted yes and no are YAML 1.1's booleans, which
// kubectl still reads as such.
func (w *walker) boolean(t *tree, path string) {
	switch {
	case t.form == boolForm:
		w.out = append(w.out, t.text...)
		return
	case t.form == textForm && t.plain:
		switch strings.ToLower(t.text) {
		case "yes", "on", "y":
			w.out = append(w.out, "true"...)
			return
		case "no", "off", "n":
			w.out = append(w.out, "false"...)
			return
		}
	case t.form == textForm && (t.text == "true" || t.text == "false"):
		w.wrong(t, path, "true or false", "write it without quotes")
		return
	}
	w.wrong(t, path, "true or false", "")
}

// integer writes a whole number of so many bits. Protobuf's JSON has 64-bit
// numbers in quotes, so those are taken too.
func (w *walker) integer(t *tree, path string, bits int, signed, quoted bool) {
	number := t.text
	switch {
	case t.form == intForm, t.form == floatForm:
	case t.form == textForm && quoted && decimal(t.text):
	case t.form == textForm && decimal(t.text):
		w.wrong(t, path, "a whole number", "write it without quotes")
		return
	default:
		w.wrong(t, path, "a whole number", "")
		return
	}
	var err error
	if signed {
		_, err = strconv.ParseInt(number, 10, bits)
	} else {
		_, err = strconv.ParseUint(number, 10, bits)
	}
	if err != nil {
		if t.form == floatForm {
			w.wrong(t, path, "a whole number", "")
			return
		}
		low, high := int64(0), uint64(math.MaxUint64)>>(64-bits)
		if signed {
			low, high = math.MinInt64>>(64-bits), high>>1
		}
		w.error(t.line, path, fmt.Sprintf("%s is out of range", t.raw), fmt.Sprintf("it goes from %d to %d", low, high))
		return
	}
	w.out = append(w.out, number...)
}

func decimal(s string) bool {
	s = strings.TrimPrefix(s, "-")
	return s != "" && strings.Trim(s, "0123456789") == ""
}

// float writes a number.
func (w *walker) float(t *tree, path string) {
	switch {
	case t.form == intForm, t.form == floatForm && t.text != ".nan":
		w.out = append(w.out, t.text...)
	case t.form == textForm && !t.plain:
		if _, err := strconv.ParseFloat(t.text, 64); err == nil {
			w.wrong(t, path, "a number", "write it without quotes")
			return
		}
		w.wrong(t, path, "a number", "")
	default:
		w.wrong(t, path, "a number", "")
	}
}

// duration writes a Duration in protobuf's JSON, which has seconds only; people
// write "1h", and Istio takes it.
func (w *walker) duration(t *tree, path string) {
	const form = `such as "1.5s" or "300ms"`
	if t.form != textForm {
		w.wrong(t, path, "a duration", form)
		return
	}
	d, err := time.ParseDuration(t.text)
	if err != nil {
		w.wrong(t, path, "a duration", form)
		return
	}
	w.out = append(w.out, '"')
	if d < 0 {
		w.out = append(w.out, '-')
	}
	s, n := int64(d/time.Second), int64(d%time.Second)
	w.out = fmt.Appendf(w.out, "%d.%09ds\"", max(s, -s), max(n, -n))
}

// opaque writes a value whose type nobody fixes, and notes its lines.
func (w *walker) opaque(t *tree, path string) {
	w.note(t, path)
	w.out = t.json(w.out)
}

func (w *walker) note(t *tree, path string) {
	for i, v := range t.list {
		w.lines[item(path, i)] = v.line
		w.note(v, item(path, i))
	}
	for _, e := range t.keys {
		w.lines[join(path, e.name)] = e.line
		w.note(e.value, join(path, e.name))
	}
}

// unknown reports a field that the type does not have.
func (w *walker) unknown(e entry, path, within string, names []string) {
	hint := ""
	if m := closest(e.name, names); m != "" {
		hint = fmt.Sprintf("did you mean %q?", m)
	} else if len(names) > 0 && len(names) <= 12 {
		slices.Sort(names)
		hint = "known are " + strings.Join(names, ", ")
	}
	problem := "unknown field"
	if within != "" {
		problem += " of " + within
	}
	w.error(e.line, path, problem, hint)
}

// closest returns the name that was probably meant, or "".
func closest(got string, names []string) string {
	fold := func(s string) string {
		return strings.ToLower(strings.NewReplacer("_", "", "-", "", " ", "").Replace(s))
	}
	best, least := "", max(1, len(got)/3)+1
	for _, n := range slices.Sorted(slices.Values(names)) {
		if fold(n) == fold(got) {
			return n
		}
		if d := distance(fold(got), fold(n)); d < least {
			best, least = n, d
		}
	}
	return best
}

// distance is Levenshtein's, on bytes, with neighbours swapped counted as one.
func distance(a, b string) int {
	const most = 64
	if len(a) > most || len(b) > most {
		return most
	}
	var before []int
	prev := make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		cur := make([]int, len(b)+1)
		cur[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			cur[j] = min(prev[j]+1, cur[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				cur[j] = min(cur[j], before[j-2]+1)
			}
		}
		before, prev = prev, cur
	}
	return prev[len(b)]
}
