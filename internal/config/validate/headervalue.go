package validate

import (
	"fmt"
	"strings"
)

// headerValue checks a value that a proxy puts into a header. Envoy expands
// %NAME% and %NAME(arguments)% in it, and "%%" to a percent sign; it refuses its
// whole configuration over a percent sign that is neither.
// Source: Envoy, configuration/http/http_conn_man/headers, custom headers.
func (c *checker) headerValue(path, value string) {
	for _, r := range value {
		if r < ' ' && r != '\t' || r == 0x7f {
			c.err(path, fmt.Sprintf("%q holds a control character", value), "")
			return
		}
	}
	for rest := value; ; {
		_, after, found := strings.Cut(rest, "%")
		if !found {
			return
		}
		if tail, escaped := strings.CutPrefix(after, "%"); escaped {
			rest = tail
			continue
		}
		tail, ok := substitution(after)
		if !ok {
			c.err(path, fmt.Sprintf("%q has a %% that begins no %%NAME%%", value), "write %% for a percent sign")
			return
		}
		rest = tail
	}
}

// substitution reads "NAME%" or "NAME(arguments)%" and returns what follows.
func substitution(s string) (rest string, ok bool) {
	end := strings.IndexAny(s, "%(")
	if end < 0 {
		return "", false
	}
	if s[end] == '%' {
		return s[end+1:], true
	}
	rest, ok = arguments(s[end+1:])
	if !ok {
		return "", false
	}
	rest = strings.TrimLeft(rest, " ")
	return strings.CutPrefix(rest, "%")
}

// arguments reads a bare text, or a list of quoted ones in brackets, up to the
// closing parenthesis.
func arguments(s string) (rest string, ok bool) {
	s = strings.TrimLeft(s, " ")
	list, ok := strings.CutPrefix(s, "[")
	if !ok {
		if s == "" {
			return "", false
		}
		// The first byte is part of the text, whatever it is.
		return text(s[1:])
	}
	for {
		list = strings.TrimLeft(list, " ")
		if list, ok = strings.CutPrefix(list, `"`); !ok {
			return "", false
		}
		closing := -1
		for i := 0; i < len(list); i++ {
			if list[i] == '\\' {
				i++
				continue
			}
			if list[i] == ')' { // ends the arguments even inside quotes
				return list[i+1:], true
			}
			if list[i] == '"' {
				closing = i
				break
			}
		}
		if closing < 0 {
			return "", false
		}
		list = strings.TrimLeft(list[closing+1:], " ")
		switch {
		case strings.HasPrefix(list, ","):
			list = list[1:]
		case strings.HasPrefix(list, "]"):
			return strings.CutPrefix(strings.TrimLeft(list[1:], " "), ")")
		default:
			return "", false
		}
	}
}

// text reads up to the closing parenthesis; a quote must be followed by the end
// of a list, so a bare text holds none.
func text(s string) (rest string, ok bool) {
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case ')':
			return s[i+1:], true
		case '"':
			return "", false
		}
	}
	return "", false
}
