package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"time"
)

// report is what is written about a scenario.
type report struct {
	Scenario string            `json:"scenario"`
	Title    string            `json:"title"`
	When     time.Time         `json:"when"`
	Machine  string            `json:"machine"`
	Versions map[string]string `json:"versions"`
	Note     string            `json:"note,omitempty"`
	Seconds  float64           `json:"seconds"`
	Subjects []*result         `json:"subjects"`

	columns []column
}

// result is what is known of one subject.
type result struct {
	Name   string             `json:"name"`
	Rounds []values           `json:"rounds"`
	Median map[string]float64 `json:"median"`
	// Added are medians of the differences to "direct" in the same round.
	Added map[string]float64 `json:"added,omitempty"`
	// Ratio is of the first column to the peer "haproxy" in the same round.
	Ratio *spread `json:"ratio_to_haproxy,omitempty"`
}

// spread is a median with what lies around it.
type spread struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
}

func newReport(o options, s scenario) *report {
	r := &report{
		Scenario: s.name, Title: s.title, When: time.Now().UTC().Truncate(time.Second), Machine: machine(), Versions: versions(),
		Note: o.note, Seconds: o.duration.Seconds(), columns: s.columns,
	}
	for _, p := range s.peers {
		r.Subjects = append(r.Subjects, &result{Name: p.name})
	}
	return r
}

// add takes a round of one subject in.
func (r *report) add(name string, v values) {
	s := r.subject(name)
	s.Rounds = append(s.Rounds, v)
}

func (r *report) subject(name string) *result {
	if i := slices.IndexFunc(r.Subjects, func(s *result) bool { return s.Name == name }); i >= 0 {
		return r.Subjects[i]
	}
	return nil
}

// conclude makes medians, differences and ratios.
func (r *report) conclude() {
	direct, base := r.subject("direct"), r.subject("haproxy")
	for _, s := range r.Subjects {
		s.Median, s.Added, s.Ratio = map[string]float64{}, nil, nil
		for _, c := range r.columns {
			own := func(i int) (float64, bool) { v, ok := s.Rounds[i][c.key]; return v, ok }
			if all := s.each(own); len(all) > 0 {
				s.Median[c.key] = spreadOf(all).Median
			}
			if !c.added || direct == nil || s == direct {
				continue
			}
			diffs := s.each(func(i int) (float64, bool) {
				v, ok := own(i)
				return v - direct.Rounds[i][c.key], ok
			})
			if s.Added == nil {
				s.Added = map[string]float64{}
			}
			s.Added[c.key] = spreadOf(diffs).Median
		}
		if base == nil || s == direct {
			continue
		}
		key := r.columns[0].key
		if ratios := s.each(func(i int) (float64, bool) { return s.Rounds[i][key] / base.Rounds[i][key], base.Rounds[i][key] > 0 }); len(ratios) > 0 {
			sp := spreadOf(ratios)
			s.Ratio = &sp
		}
	}
}

// each collects a value of each round that has it.
func (s *result) each(value func(round int) (float64, bool)) (out []float64) {
	for i := range s.Rounds {
		if v, ok := value(i); ok {
			out = append(out, v)
		}
	}
	return out
}

func spreadOf(v []float64) spread {
	v = slices.Sorted(slices.Values(v))
	n := len(v)
	return spread{Median: (v[(n-1)/2] + v[n/2]) / 2, Min: v[0], Max: v[n-1]}
}

// print writes the table.
func (r *report) print(w io.Writer) {
	r.conclude()
	rounds := len(r.Subjects[0].Rounds)
	fmt.Fprintf(w, "\n%s: %s (%d rounds)\n", r.Scenario, r.Title, rounds)
	rows := [][]string{{""}}
	for _, c := range r.columns {
		rows[0] = append(rows[0], c.head)
	}
	rows[0] = append(rows[0], "to haproxy", "(spread)")
	for _, s := range r.Subjects {
		row := []string{s.Name}
		for _, c := range r.columns {
			v, ok := s.Median[c.key]
			text := fmt.Sprintf(c.format, v)
			if c.added {
				if s.Added == nil {
					text = "(" + text + ")" // what the others are compared with, or nothing to compare with
				} else {
					text = fmt.Sprintf(c.format, s.Added[c.key])
				}
			}
			if !ok || s.Name == "direct" && !c.added && c.key != "per_second" {
				text = "-"
			}
			row = append(row, text)
		}
		if s.Ratio != nil {
			row = append(row, fmt.Sprintf("%.2f", s.Ratio.Median), fmt.Sprintf("%.2f-%.2f", s.Ratio.Min, s.Ratio.Max))
		}
		rows = append(rows, row)
	}
	widths := make([]int, len(rows[0]))
	for _, row := range rows {
		for i, cell := range row {
			widths[i] = max(widths[i], len([]rune(cell)))
		}
	}
	for _, row := range rows {
		var line strings.Builder
		for i, cell := range row {
			fill := strings.Repeat(" ", widths[i]-len([]rune(cell)))
			if i == 0 {
				line.WriteString("  " + cell + fill)
			} else {
				line.WriteString("  " + fill + cell)
			}
		}
		fmt.Fprintln(w, strings.TrimRight(line.String(), " "))
	}
}

// write writes the JSON form.
func (r *report) write(path string) error {
	r.conclude()
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(b, '\n'), 0o644)
}

// machine says in a few words where this was.
func machine() string {
	kernel, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		kernel = []byte("?")
	}
	model := "?"
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		if m := regexp.MustCompile(`model name\s*: (.*)`).FindSubmatch(b); m != nil {
			model = string(m[1])
		}
	}
	return fmt.Sprintf("%d cores, %s, Linux %s", runtime.NumCPU(), model, bytes.TrimSpace(kernel))
}

// versions asks the peers for theirs.
func versions() map[string]string {
	out := map[string]string{"go": runtime.Version()}
	for name, args := range map[string][]string{"haproxy": {"-v"}, "nginx": {"-v"}, "wrk": {"-v"}} {
		b, _ := exec.Command(name, args...).CombinedOutput() // wrk fails after having said it
		line, _, _ := strings.Cut(string(b), "\n")
		out[name] = strings.TrimSpace(line)
	}
	return out
}
