package model

import "strings"

// Protocol is what a service port speaks, as far as the mesh treats protocols
// differently.
type Protocol uint8

const (
	Auto  Protocol = iota // not said: told from the first bytes of a connection
	HTTP                  // HTTP/1.1
	HTTP2                 // cleartext HTTP/2
	GRPC                  // gRPC and gRPC-Web, over HTTP/2
	TCP
	TLS // TLS that the application speaks itself, HTTPS included
	UDP // known, and left alone
)

func (p Protocol) String() string {
	return [...]string{"auto", "http", "http2", "grpc", "tcp", "tls", "udp"}[p]
}

// protocols are the words of port names and of appProtocol.
var protocols = map[string]Protocol{
	"http":              HTTP,
	"http_proxy":        HTTP,
	"http2":             HTTP2,
	"grpc":              GRPC,
	"grpc-web":          GRPC,
	"grpc-web-text":     GRPC,
	"tcp":               TCP,
	"mongo":             TCP,
	"mysql":             TCP,
	"redis":             TCP,
	"tls":               TLS,
	"https":             TLS,
	"udp":               UDP,
	"kubernetes.io/h2c": HTTP2,
	"kubernetes.io/ws":  HTTP,
	"kubernetes.io/wss": TLS,
}

// serverFirst are ports whose protocols let the server speak first, so that
// waiting for the client's first bytes would wait for ever.
// Source: Istio, "Protocol Selection", server-first protocols.
func serverFirst(port uint16) bool {
	switch port {
	case 25, 53, 3306, 27017:
		return true
	}
	return false
}

// servicePortProtocol tells the protocol of a Kubernetes service port:
// appProtocol beats the name, and in a name counts what stands before the first
// "-".
func servicePortProtocol(port uint16, name string, appProtocol *string) Protocol {
	if appProtocol != nil && *appProtocol != "" {
		if p, ok := protocols[strings.ToLower(*appProtocol)]; ok {
			return p
		}
		return named(port, "")
	}
	return named(port, name)
}

func named(port uint16, name string) Protocol {
	name = strings.ToLower(name)
	// "grpc-web" is the one word with a hyphen in it.
	if name == "grpc-web" || strings.HasPrefix(name, "grpc-web-") {
		return GRPC
	}
	word, _, _ := strings.Cut(name, "-")
	if p, ok := protocols[word]; ok {
		return p
	}
	if serverFirst(port) {
		return TCP
	}
	return Auto
}
