package exchange

import (
	"math/bits"
	"strings"
)

// Flags are response flags: what went wrong, in Envoy's short words.
type Flags uint32

// The order is Envoy's: it is the order in which several are printed.
const (
	NoHealthyUpstream   Flags = 1 << iota // UH
	UpstreamTimeout                       // UT
	LocalReset                            // LR
	UpstreamReset                         // UR
	UpstreamFailure                       // UF: no connection
	UpstreamTermination                   // UC: the upstream closed
	UpstreamOverflow                      // UO: a limit of the cluster
	NoRoute                               // NR
	DelayInjected                         // DI
	FaultInjected                         // FI
	RateLimited                           // RL
	Unauthorized                          // UAEX
	ClientLeft                            // DC
	RetriesExhausted                      // URX
	StreamIdle                            // SI
	BadHeader                             // IH
	ClientProtocolError                   // DPE
	DurationTimeout                       // DT
	UpstreamProtocol                      // UPE
	NoCluster                             // NC
	Overloaded                            // OM
	DNSFailure                            // DF
)

var flagNames = [...]string{"UH", "UT", "LR", "UR", "UF", "UC", "UO", "NR", "DI", "FI", "RL", "UAEX", "DC", "URX", "SI",
	"IH", "DPE", "DT", "UPE", "NC", "OM", "DF"}

// String returns the flags joined by commas, and "-" for none.
func (f Flags) String() string {
	switch bits.OnesCount32(uint32(f)) {
	case 0:
		return "-"
	case 1:
		return flagNames[bits.TrailingZeros32(uint32(f))]
	case 2:
		if f == UpstreamFailure|RetriesExhausted {
			return "UF,URX" // the one pair that a whole storm of requests may have
		}
	}
	names := make([]string, 0, 4)
	for f := uint32(f); f != 0; f &= f - 1 {
		names = append(names, flagNames[bits.TrailingZeros32(f)])
	}
	return strings.Join(names, ",")
}
