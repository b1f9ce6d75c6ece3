package dnsproxy

import (
	"bufio"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// ResolvConf is what a resolv.conf(5) says.
type ResolvConf struct {
	Servers []netip.AddrPort // in order, without repetition
	Search  []string         // lower case, without dots at the end
	Ndots   int
}

// The limits of resolv.h, beyond which resolvers ignore or cap.
const (
	defaultNdots = 1
	maxNdots     = 15
)

// ParseResolvConf reads a resolv.conf. Like resolvers do, it ignores what it does
// not know, and servers that are no addresses; errors are those of reading.
func ParseResolvConf(r io.Reader) (ResolvConf, error) {
	c := ResolvConf{Ndots: defaultNdots}
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		line, _, _ := strings.Cut(lines.Text(), "#")
		line, _, _ = strings.Cut(line, ";")
		words := strings.Fields(line)
		if len(words) < 2 {
			continue
		}
		switch words[0] {
		case "nameserver":
			if a, err := netip.ParseAddr(words[1]); err == nil {
				if ap := netip.AddrPortFrom(a.Unmap(), dnsPort); !slices.Contains(c.Servers, ap) {
					c.Servers = append(c.Servers, ap)
				}
			}
		case "domain":
			c.Search = domains(words[1:2])
		case "search": // the last of search and domain counts
			c.Search = domains(words[1:])
		case "options":
			for _, o := range words[1:] {
				if v, ok := strings.CutPrefix(o, "ndots:"); ok {
					if n, err := strconv.Atoi(v); err == nil && n >= 0 {
						c.Ndots = min(n, maxNdots)
					}
				}
			}
		}
	}
	if err := lines.Err(); err != nil {
		return ResolvConf{}, fmt.Errorf("read resolv.conf: %w", err)
	}
	return c, nil
}

func domains(words []string) []string {
	var ds []string
	for _, w := range words {
		if w = strings.ToLower(strings.TrimSuffix(w, ".")); w != "" {
			ds = append(ds, w)
		}
	}
	return ds
}

// dnsPort is where the servers of a resolv.conf listen.
const dnsPort = 53
