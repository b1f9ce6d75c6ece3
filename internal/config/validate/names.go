package validate

import (
	"fmt"
	"maps"
	"net/netip"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Limits of RFC 1123 and RFC 1035.
const (
	maxHost  = 255
	maxLabel = 63
)

// isLabel reports whether s is a label of RFC 1123; upper case counts, as hosts
// are compared without it.
func isLabel(s string) bool {
	if s == "" || len(s) > maxLabel || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for _, c := range []byte(s) {
		if !alphanumeric(c) && c != '-' {
			return false
		}
	}
	return true
}

func alphanumeric(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
}

// isWildcardLabel also takes "*", "*-label" and "*label".
func isWildcardLabel(s string) bool {
	if s == "*" {
		return true
	}
	rest, wild := strings.CutPrefix(s, "*")
	if wild {
		rest = strings.TrimPrefix(rest, "-")
	}
	return len(s) <= maxLabel && isLabel(rest)
}

func isIP(s string) bool {
	_, err := netip.ParseAddr(s)
	return err == nil
}

// hostProblem says what is wrong with a DNS name, "" if nothing is.
func hostProblem(host string, wildcard bool) string {
	switch {
	case host == "":
		return "empty host"
	case len(host) > maxHost:
		return fmt.Sprintf("host has %d characters, more than %d", len(host), maxHost)
	}
	rest := host
	if wildcard {
		first, tail, more := strings.Cut(host, ".")
		if !isWildcardLabel(first) {
			return fmt.Sprintf("%q is no host: label %q is wrong", host, first)
		}
		if !more {
			return ""
		}
		rest = tail
	}
	labels := strings.Split(rest, ".")
	last := labels[len(labels)-1]
	if _, err := strconv.Atoi(last); err == nil {
		return fmt.Sprintf("%q is no host: the last label is a number", host)
	}
	if last == "" { // "example.com." is rooted
		labels = labels[:len(labels)-1]
	}
	for _, l := range labels {
		if !isLabel(l) {
			return fmt.Sprintf("%q is no host: label %q is wrong", host, l)
		}
	}
	return ""
}

const hostHint = "a host is labels of letters, digits and inner hyphens, joined by dots"

func (c *checker) fqdn(path, host string) bool {
	if p := hostProblem(host, false); p != "" {
		c.err(path, p, hostHint)
		return false
	}
	return true
}

func (c *checker) wildcardHost(path, host string) bool {
	if p := hostProblem(host, true); p != "" {
		c.err(path, p, hostHint+`; "*" may stand as the first label`)
		return false
	}
	return true
}

// overlap reports whether two hosts, either of which may be a wildcard, have a
// name in common.
func overlap(a, b string) bool {
	aw, bw := strings.HasPrefix(a, "*"), strings.HasPrefix(b, "*")
	switch {
	case aw && bw:
		return strings.HasSuffix(a[1:], b[1:]) || strings.HasSuffix(b[1:], a[1:])
	case aw:
		return strings.HasSuffix(b, a[1:])
	case bw:
		return strings.HasSuffix(a, b[1:])
	}
	return a == b
}

// within reports whether every name of host is one of outer's.
func within(host, outer string) bool {
	if !strings.HasPrefix(outer, "*") {
		return host == outer
	}
	return strings.HasSuffix(strings.TrimPrefix(host, "*"), outer[1:])
}

// cidr checks an address or a block of them.
func (c *checker) cidr(path, s string) {
	if strings.Contains(s, "/") {
		if _, err := netip.ParsePrefix(s); err != nil {
			c.err(path, fmt.Sprintf("%q is no CIDR block", s), `such as "10.1.0.0/16"`)
		}
		return
	}
	c.ip(path, s)
}

func (c *checker) ip(path, s string) {
	if !isIP(s) {
		c.err(path, fmt.Sprintf("%q is no IP address", s), "")
	}
}

const unixPrefix = "unix://"

// unixSocket checks the path of a Unix socket.
func (c *checker) unixSocket(field, socket string) {
	switch {
	case strings.HasPrefix(socket, "@"): // an abstract name
	case socket == "":
		c.err(field, "empty socket path", "write unix:///run/app.sock or unix://@name")
	case !path.IsAbs(socket) || strings.HasSuffix(socket, "/"):
		c.err(field, fmt.Sprintf("%q is no absolute path to a file", socket), "write unix:///run/app.sock or unix://@name")
	}
}

// protocol is what Istio knows a port's protocol to be.
type protocol struct{ http, tls, tcp bool }

// protocols by name, in lower case.
var protocols = map[string]protocol{
	"http":       {http: true},
	"http2":      {http: true},
	"http_proxy": {http: true},
	"grpc":       {http: true},
	"grpc-web":   {http: true},
	"https":      {tls: true, tcp: true},
	"tls":        {tls: true, tcp: true},
	"tcp":        {tcp: true},
	"mongo":      {tcp: true},
	"redis":      {tcp: true},
	"mysql":      {tcp: true},
	"udp":        {},
}

const protocolHint = "known are HTTP, HTTP2, GRPC, GRPC-WEB, HTTPS, TLS, TCP, UDP, MONGO, REDIS, MYSQL"

func protocolOf(name string) (protocol, bool) {
	p, ok := protocols[strings.ToLower(name)]
	return p, ok
}

// protocol checks a port's protocol, which may be left out for sniffing.
func (c *checker) protocol(path, name string) {
	if _, ok := protocolOf(name); name != "" && !ok {
		c.err(path, fmt.Sprintf("protocol %q is unknown", name), protocolHint)
	}
}

func (c *checker) portName(path, name string) {
	if !isLabel(name) {
		problem := fmt.Sprintf("%q is no port name", name)
		if name == "" {
			problem = "port without name"
		}
		c.err(path, problem, "a name is letters, digits and inner hyphens, such as http-web")
	}
}

// Kubernetes' label grammar, with upper case allowed in the prefix as Istio does.
var (
	labelName  = regexp.MustCompile(`^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$`)
	labelValue = regexp.MustCompile(`^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$`)
)

// labels checks a map of labels.
func (c *checker) labels(path string, labels map[string]string) {
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		v := labels[k]
		if !isLabelKey(k) {
			c.err(key(path, k), fmt.Sprintf("%q is no label key", k), "a key is [prefix/]name of letters, digits, '-', '_' and '.'")
		}
		if len(v) > maxLabel || !labelValue.MatchString(v) {
			c.err(key(path, k), fmt.Sprintf("%q is no label value", v), "a value is at most 63 letters, digits, '-', '_' and '.'")
		}
	}
}

func isLabelKey(k string) bool {
	name := k
	if prefix, rest, ok := strings.Cut(k, "/"); ok {
		if len(prefix) > 253 || prefix == "" {
			return false
		}
		for l := range strings.SplitSeq(prefix, ".") {
			if !isLabel(l) {
				return false
			}
		}
		name = rest
	}
	return len(name) <= maxLabel && labelName.MatchString(name)
}

var headerName = regexp.MustCompile(`^[-_A-Za-z0-9]+$`)

func (c *checker) headerName(path, name string) {
	if !headerName.MatchString(name) {
		c.err(path, fmt.Sprintf("%q is no header name", name), "a name is letters, digits, '-' and '_'")
	}
}

// regex checks an RE2 expression. Envoy bounds the size of the compiled program,
// for which Istio lets the length stand.
func (c *checker) regex(path, re string) {
	const longest = 1024
	switch {
	case re == "":
		c.err(path, "empty regular expression", "")
	case len(re) > longest:
		c.err(path, fmt.Sprintf("regular expression of %d characters", len(re)), fmt.Sprintf("the most is %d", longest))
	default:
		if _, err := regexp.Compile(re); err != nil {
			c.err(path, err.Error(), "the syntax is RE2's")
		}
	}
}
