package main

// scenario is one row of what is compared. A new one, or a new kind of traffic,
// is an entry in scenarios, a measure if there is none that fits, and what the
// peers need for a role they did not have yet.
type scenario struct {
	name, title string
	// path are the proxies on the way from the client to the backend.
	path []role
	// peers are compared; ratios are to the one called "haproxy".
	peers []peer
	// columns are what measure returns, in the order of the table; the ratio is
	// made of the first.
	columns []column
	measure measure
	// fresh starts the proxies again for each round.
	fresh bool
	// rounds bounds how often it is measured, if not 0.
	rounds int
}

// role is what one proxy does.
type role struct {
	name   string
	tcp    bool // bytes
	http2  bool // requests of HTTP/2; else of HTTP/1.1
	tlsIn  bool // ends mutual TLS
	tlsOut bool // begins mutual TLS
}

// peer is one way of filling the roles.
type peer struct {
	name  string
	kind  kind
	quiet bool // Heddle only: without metrics
	log   bool // writes an access log
	auto  bool // HAProxy only: option splice-auto, with which it may copy instead
}

// kind is a product.
type kind uint8

const (
	direct kind = iota // no proxy at all
	haproxy
	nginx
	// heddle follows a small control plane in this program, which tells it a plan
	// of its own; heddleGateway follows heddled, which reads manifests.
	heddle
	heddleGateway
)

func scenarios() []scenario {
	var (
		plain  = role{name: "plain"}
		client = role{name: "client", tlsOut: true}
		server = role{name: "server", tlsIn: true}

		tcpPlain  = role{name: "plain", tcp: true}
		tcpClient = role{name: "client", tcp: true, tlsOut: true}
		tcpServer = role{name: "server", tcp: true, tlsIn: true}

		h2Plain  = role{name: "plain", http2: true}
		h2Client = role{name: "client", http2: true, tlsOut: true}
		h2Server = role{name: "server", http2: true, tlsIn: true}

		others = []peer{{name: "direct"}, {name: "haproxy", kind: haproxy}, {name: "nginx", kind: nginx}}
		all    = append(others[:3:3], peer{name: "heddle", kind: heddle})
	)
	return []scenario{
		{
			name: "http1-hop", title: "HTTP/1.1, one hop, plain text, 1 KiB, 64 connections, saturated",
			path: []role{plain}, peers: append(others[:3:3], peer{name: "heddle", kind: heddleGateway}),
			columns: requests(), measure: saturated(64),
		},
		{
			name: "http1-pair", title: "HTTP/1.1, two proxies with mutual TLS between, 1 KiB, 64 connections, saturated",
			path: []role{client, server}, peers: all, columns: requests(), measure: saturated(64),
		},
		{
			name: "http1-pair-1k", title: "HTTP/1.1, two proxies with mutual TLS between, 1 KiB, 16 connections, 1,000 requests/s, open loop",
			path: []role{client, server}, peers: all, columns: requests(), measure: openLoop(16, 1000),
		},
		{
			name: "http2-hop", title: "HTTP/2, one hop, plain text, 1 KiB, 16 connections, 1 stream each, saturated",
			path: []role{h2Plain}, peers: all, columns: throughput(), measure: multiplexed(16, 1, false),
		},
		{
			name: "grpc-hop-1", title: "gRPC unary, one hop, plain text, 1 KiB, 16 connections, 1 stream each, saturated",
			path: []role{h2Plain}, peers: all, columns: throughput(), measure: multiplexed(16, 1, true),
		},
		{
			name: "grpc-hop-10", title: "gRPC unary, one hop, plain text, 1 KiB, 16 connections, 10 streams each, saturated",
			path: []role{h2Plain}, peers: all, columns: throughput(), measure: multiplexed(16, 10, true),
		},
		{
			name: "grpc-pair-1", title: "gRPC unary, two proxies with mutual TLS between, 1 KiB, 16 connections, 1 stream each, saturated",
			path: []role{h2Client, h2Server}, peers: all, columns: throughput(), measure: multiplexed(16, 1, true),
		},
		{
			name: "grpc-pair-10", title: "gRPC unary, two proxies with mutual TLS between, 1 KiB, 16 connections, 10 streams each, saturated",
			path: []role{h2Client, h2Server}, peers: all, columns: throughput(), measure: multiplexed(16, 10, true),
		},
		{
			name: "tcp-hop", title: "TCP, one hop, plain text, 4 streams to the client",
			path: []role{tcpPlain}, peers: append(all[:4:4], peer{name: "haproxy, splice-auto", kind: haproxy, auto: true}), columns: megabytes(), measure: bulk(4),
		},
		{
			name: "tcp-pair", title: "TCP, two proxies with mutual TLS between, 4 streams to the client",
			path: []role{tcpClient, tcpServer}, peers: all, columns: megabytes(), measure: bulk(4),
		},
		{
			name: "memory-plain", title: "memory of one proxy, idle keep-alive connections in plain text",
			path: []role{plain}, peers: all[1:], columns: memory(), measure: connections(false), fresh: true, rounds: 3,
		},
		{
			name: "memory-mtls", title: "memory of one proxy, idle keep-alive connections with mutual TLS",
			path: []role{server}, peers: all[1:], columns: memory(), measure: connections(true), fresh: true, rounds: 3,
		},
		{
			name: "metrics", title: "HTTP/1.1 as http1-hop: what Istio's metrics cost",
			path: []role{plain}, columns: requests(), measure: saturated(64),
			peers: []peer{{name: "haproxy", kind: haproxy}, {name: "heddle", kind: heddle}, {name: "heddle, no metrics", kind: heddle, quiet: true}},
		},
		{
			name: "accesslog", title: "HTTP/1.1 as http1-hop: what an access log costs",
			path: []role{plain}, columns: requests(), measure: saturated(64),
			peers: []peer{
				{name: "haproxy", kind: haproxy, log: true}, {name: "haproxy, no log", kind: haproxy},
				{name: "nginx", kind: nginx, log: true},
				{name: "heddle", kind: heddle, log: true}, {name: "heddle, no log", kind: heddle},
			},
		},
	}
}
